//! What is around everything this crate writes as bytes: one byte that names the format, and a
//! checksum.
//!
//! The checksum (CRC32C) covers the format byte too. It finds what a disk or a bug did to the
//! bytes, not what an attacker did.

use prost::Message;

/// Format byte of a batch, first version.
pub(crate) const BATCH_FORMAT: u8 = 0x11;
/// Format byte of a chunk of a snapshot, second version: the first had no trail, and a table without one could not be
/// told from a table that went wrong.
pub(crate) const SNAPSHOT_FORMAT: u8 = 0x22;

/// Format byte and checksum.
pub(crate) const ENVELOPE_BYTES: usize = 5;

/// Why bytes are not a batch or not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DecodeError {
    #[error("only {len} bytes: cut off")]
    CutOff { len: usize },
    #[error("format {found:#04x} is not known here: a newer version wrote it, or nobody did")]
    UnknownFormat { found: u8 },
    #[error("the batch needs rule version {found}: install a newer version")]
    UnknownRuleVersion { found: u32 },
    #[error("the checksum does not fit: the bytes changed since they were written")]
    Checksum,
    #[error("the bytes do not parse")]
    Malformed(#[from] prost::DecodeError),
    #[error("{field} has a value that is never written")]
    Field { field: &'static str },
    #[error("the chunks of the snapshot are not all there, or not in order: {0}")]
    ChunkOrder(&'static str),
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(String),
}

/// The message as bytes.
pub(crate) fn seal(format: u8, message: &impl Message) -> Vec<u8> {
    seal_written(format, message.encoded_len(), |bytes| {
        message.encode(bytes).expect("a Vec grows as needed");
    })
}

/// What `write` appends, about `len` bytes, as bytes with a format and a checksum.
pub(crate) fn seal_written(format: u8, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENVELOPE_BYTES + len);
    bytes.extend([format, 0, 0, 0, 0]);
    write(&mut bytes);
    let sum = checksum(format, &bytes[ENVELOPE_BYTES..]);
    bytes[1..ENVELOPE_BYTES].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The message's bytes, if format and checksum are right.
pub(crate) fn open(format: u8, bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let Some(([found, sum @ ..], body)) = bytes.split_first_chunk::<ENVELOPE_BYTES>() else {
        return Err(DecodeError::CutOff { len: bytes.len() });
    };
    if *found != format {
        return Err(DecodeError::UnknownFormat { found: *found });
    }
    if checksum(format, body) != u32::from_le_bytes(*sum) {
        return Err(DecodeError::Checksum);
    }
    Ok(body)
}

fn checksum(format: u8, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[format]), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_format_and_content() {
        assert_eq!(checksum(b'1', b"23456789"), 0xE306_9283);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let sealed = seal(BATCH_FORMAT, &"some text".to_string());
        assert!(open(BATCH_FORMAT, &sealed).is_ok());
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(BATCH_FORMAT, &bad).is_err(), "bit {bit}");
        }
    }
}
