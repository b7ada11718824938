//! How numbers and small records become columns: the one place for `u64` to `i64`, for checksums and for the few
//! bytes of our own around the caller's.
//!
//! A checksum covers the row's key too, so a row that turns up under another key is caught.

use super::{Floor, SnapshotPointer, StoreError};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// SQLite's integers are signed. An index above `i64::MAX` is no index of a log: it is refused, not wrapped.
pub(super) fn to_sql(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Misuse(format!("{number} is larger than any index")))
}

/// The reverse. A negative number, which we never write, becomes a huge one that no check lets through.
pub(super) fn from_sql(number: i64) -> u64 {
    number.cast_unsigned()
}

/// CRC32C of a row: its key, then its bytes.
pub(super) fn checksum(key: &[u8], data: &[u8]) -> i64 {
    i64::from(crc32c::crc32c_append(crc32c::crc32c(key), data))
}

/// CRC32C of a row whose key is a number.
pub(super) fn checksum_at(index: u64, data: &[u8]) -> i64 {
    checksum(&index.to_le_bytes(), data)
}

/// The floor: its index, then the caller's bytes.
pub(super) fn encode_floor(floor: &Floor) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + floor.data.len());
    out.put_u64_le(floor.index);
    out.put_slice(&floor.data);
    out.freeze()
}

pub(super) fn decode_floor(mut bytes: Bytes) -> Option<Floor> {
    let index = bytes.try_get_u64_le().ok()?;
    Some(Floor { index, data: bytes })
}

/// The pointer: whether and up to where it covers the log, the id's length and text, then the caller's bytes.
pub(super) fn encode_pointer(pointer: &SnapshotPointer) -> Bytes {
    let mut out = BytesMut::with_capacity(17 + pointer.id.len() + pointer.meta.len());
    out.put_u8(u8::from(pointer.covers.is_some()));
    out.put_u64_le(pointer.covers.unwrap_or(0));
    out.put_u64_le(pointer.id.len() as u64);
    out.put_slice(pointer.id.as_bytes());
    out.put_slice(&pointer.meta);
    out.freeze()
}

pub(super) fn decode_pointer(mut bytes: Bytes) -> Option<SnapshotPointer> {
    let covers_any = bytes.try_get_u8().ok()? == 1;
    let covers = bytes.try_get_u64_le().ok()?;
    let id_len = usize::try_from(bytes.try_get_u64_le().ok()?).ok()?;
    if id_len > bytes.len() {
        return None;
    }
    let id = String::from_utf8(bytes.split_to(id_len).to_vec()).ok()?;
    Some(SnapshotPointer { id, covers: covers_any.then_some(covers), meta: bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding_and_short_ones_are_refused() {
        let floor = Floor { index: 7, data: Bytes::from_static(b"log id") };
        assert_eq!(decode_floor(encode_floor(&floor)), Some(floor));
        assert_eq!(decode_floor(Bytes::from_static(b"short")), None);
        for covers in [None, Some(0), Some(u64::MAX)] {
            let pointer = SnapshotPointer { id: "a-1".to_owned(), covers, meta: Bytes::from_static(b"m") };
            assert_eq!(decode_pointer(encode_pointer(&pointer)), Some(pointer.clone()));
            let cut = encode_pointer(&pointer).slice(..18);
            assert_eq!(decode_pointer(cut), None);
        }
    }

    #[test]
    fn a_row_under_another_key_has_another_checksum() {
        assert_ne!(checksum_at(1, b"x"), checksum_at(2, b"x"));
    }
}
