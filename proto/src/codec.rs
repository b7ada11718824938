//! Protobuf for tonic, with buffers to send from that are as large as what they hold.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// Bytes that the buffer to send from starts with: a pair's messages fit, and larger ones make it grow. tonic's 8 KiB cost
/// a node 3.5 KiB more memory for a connection whose client seldom asks. Those to read into stay as they are: small ones
/// cost 2 % of the processor time of a pair with 1,024 in flight.
const BUFFER_BYTES: usize = 512;

/// Encoded messages are handed on when they are so many bytes together, which is what tonic does by default.
const HANDED_ON_BYTES: usize = 32 * 1024;

/// What the generated clients and services use.
#[derive(Debug)]
pub struct WireCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for WireCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for WireCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = WireEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> WireEncoder<T> {
        WireEncoder(PhantomData)
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::default()
    }
}

/// Makes room for a message once; field by field, a large one would make its buffer grow many times.
#[derive(Debug)]
pub struct WireEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for WireEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(message.encoded_len());
        message.encode_raw(to);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, HANDED_ON_BYTES)
    }
}
