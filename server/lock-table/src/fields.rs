//! Protobuf fields one by one, between bytes and our own types: a batch is written once and read on every node, and
//! messages in between would copy each of its texts twice.
//!
//! As proto3 has it, a plain field is left out when it is 0 or empty, and a field that nobody knows is passed over.

use prost::encoding::{self, DecodeContext, WireType};

use crate::convert::invalid;
use crate::envelope::DecodeError;

/// A plain number.
pub(crate) fn number(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        present(out, tag, Some(value));
    }
}

/// A number that says something even if it is 0.
pub(crate) fn present(out: &mut Vec<u8>, tag: u32, value: Option<u64>) {
    if let Some(value) = value {
        encoding::encode_key(tag, WireType::Varint, out);
        encoding::encode_varint(value, out);
    }
}

/// A plain text or string of bytes.
pub(crate) fn bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if !value.is_empty() {
        encoding::encode_key(tag, WireType::LengthDelimited, out);
        encoding::encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

/// A message, even if it is empty.
pub(crate) fn message(out: &mut Vec<u8>, tag: u32, content: impl FnOnce(&mut Vec<u8>)) {
    encoding::encode_key(tag, WireType::LengthDelimited, out);
    // Nearly all are shorter than 128 bytes, whose length is one byte.
    out.push(0);
    let start = out.len();
    content(out);
    let len = out.len() - start;
    let more = prost::length_delimiter_len(len) - 1;
    if more > 0 {
        out.resize(out.len() + more, 0);
        out.copy_within(start..start + len, start + more);
    }
    encoding::encode_varint(len as u64, &mut &mut out[start - 1..start + more]);
}

/// What is left of a message.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

/// What a field holds.
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that is not used here.
    Other,
}

impl<'a> Fields<'a> {
    /// The next field's number and content.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, kind) = encoding::decode_key(&mut self.0)?;
        let value = match kind {
            WireType::Varint => Value::Number(encoding::decode_varint(&mut self.0)?),
            WireType::LengthDelimited => {
                let len = encoding::decode_varint(&mut self.0)?;
                let content = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
                let (content, rest) = content.ok_or(invalid("a length"))?;
                self.0 = rest;
                Value::Bytes(content)
            }
            other => {
                encoding::skip_field(other, tag, &mut self.0, DecodeContext::default())?;
                Value::Other
            }
        };
        Ok(Some((tag, value)))
    }
}

impl<'a> Value<'a> {
    pub(crate) fn number(self, field: &'static str) -> Result<u64, DecodeError> {
        match self {
            Value::Number(number) => Ok(number),
            Value::Bytes(_) | Value::Other => Err(invalid(field)),
        }
    }

    pub(crate) fn bytes(self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) | Value::Other => Err(invalid(field)),
        }
    }

    pub(crate) fn text(self, field: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| invalid(field))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Inner {
        #[prost(string, repeated, tag = 3)]
        names: Vec<String>,
        #[prost(btree_map = "string, string", tag = 7)]
        entries: BTreeMap<String, String>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Outer {
        #[prost(uint64, tag = 1)]
        plain: u64,
        #[prost(uint64, optional, tag = 2)]
        present: Option<u64>,
        #[prost(message, optional, tag = 20)]
        inner: Option<Inner>,
    }

    fn inner() -> impl Strategy<Value = Inner> {
        let names = proptest::collection::vec("[a-z]{1,90}", 0..4);
        let entries = proptest::collection::btree_map("[a-z]{0,3}", "[a-z]{0,90}", 0..300);
        (names, entries).prop_map(|(names, entries)| Inner { names, entries })
    }

    proptest! {
        /// With lengths of one, two and three bytes.
        #[test]
        fn fields_are_written_as_prost_writes_them_and_read_back(
            plain: u64, number: Option<u64>, inner in proptest::option::of(inner()),
        ) {
            let mut out = Vec::new();
            super::number(&mut out, 1, plain);
            present(&mut out, 2, number);
            if let Some(inner) = &inner {
                message(&mut out, 20, |out| {
                    inner.names.iter().for_each(|name| bytes(out, 3, name.as_bytes()));
                    for (key, value) in &inner.entries {
                        message(out, 7, |out| {
                            bytes(out, 1, key.as_bytes());
                            bytes(out, 2, value.as_bytes());
                        });
                    }
                });
            }
            let expected = Outer { plain, present: number, inner };
            prop_assert_eq!(&out, &expected.encode_to_vec());

            let mut read = Outer::default();
            let mut fields = Fields(&out);
            while let Some((tag, value)) = fields.next().expect("good bytes") {
                match tag {
                    1 => read.plain = value.number("plain").expect("a number"),
                    2 => read.present = Some(value.number("present").expect("a number")),
                    _ => read.inner = Some(Inner::decode(value.bytes("inner").expect("bytes")).expect("good")),
                }
            }
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_end_in_an_error_or_are_read_to_their_end(bytes: Vec<u8>) {
            let mut fields = Fields(&bytes);
            let mut left = bytes.len();
            while let Ok(Some(_)) = fields.next() {
                prop_assert!(fields.0.len() < left);
                left = fields.0.len();
            }
        }
    }
}
