//! The rows of `snapshots.db`: how they are keyed, read and checked.
//!
//! A chunk's key is its snapshot's number times 2^24 plus its place, so a snapshot is one range of keys, appended at the
//! end of the table. A chunk whose number has no snapshot is garbage.

use super::batch::Desk as _;
use super::row::{checksum, checksum_at, from_sql, to_sql};
use super::snapshot_desk::SnapshotDesk;
use super::{SnapshotInfo, StoreError};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Params, Row};
use std::collections::{BTreeMap, VecDeque};

/// Places in one snapshot: at 1 MiB a chunk, 16 TiB.
pub(super) const PLACES: u64 = 1 << 24;

/// What is known of a snapshot without reading its chunks.
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) meta: Bytes,
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    pub(super) finished: bool,
}

impl Entry {
    pub(super) fn info(&self, id: String) -> SnapshotInfo {
        SnapshotInfo {
            id,
            meta: self.meta.clone(),
            chunks: self.chunks,
            bytes: self.bytes,
            finished: self.finished,
        }
    }
}

/// The numbers of chunks that have no snapshot, found by one look-up for each number.
pub(super) fn find_garbage(
    db: &Connection,
    snapshots: &BTreeMap<String, Entry>,
) -> Result<VecDeque<u64>, StoreError> {
    let failed = |e| StoreError::from_sqlite(SnapshotDesk::FILE, "looking for garbage", e);
    let mut next = db.prepare("SELECT min(at) FROM chunk WHERE at >= ?1").map_err(failed)?;
    let (mut garbage, mut from) = (VecDeque::new(), 0);
    let first = |row: &Row<'_>| row.get::<_, Option<i64>>(0);
    while let Some(at) = next.query_row([to_sql(from)?], first).map_err(failed)? {
        let number = from_sql(at) / PLACES;
        if !snapshots.values().any(|s| s.number == number) {
            garbage.push_back(number);
        }
        from = (number + 1) * PLACES;
    }
    Ok(garbage)
}

/// The finished snapshots; each must have all its chunks. Their bytes are checked when they are read.
pub(super) fn load(db: &Connection) -> Result<BTreeMap<String, Entry>, StoreError> {
    let failed = |e| StoreError::from_sqlite(SnapshotDesk::FILE, "reading the snapshots", e);
    let mut select =
        db.prepare("SELECT number, id, chunks, crc, meta FROM snapshot ORDER BY number").map_err(failed)?;
    let mut count = db
        .prepare("SELECT count(*), coalesce(sum(length(data)), 0) FROM chunk WHERE at >= ?1 AND at < ?2")
        .map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    let mut snapshots = BTreeMap::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let (id, mut entry) = checked_row(row)?;
        let (from, until) = (to_sql(entry.number * PLACES)?, to_sql((entry.number + 1) * PLACES)?);
        let (chunks, bytes): (i64, i64) =
            count.query_row([from, until], |r| Ok((r.get(0)?, r.get(1)?))).map_err(failed)?;
        if from_sql(chunks) != entry.chunks {
            let what = format!("has {chunks} chunks of {}", entry.chunks);
            return Err(StoreError::bad_row(SnapshotDesk::FILE, "snapshot", id, what));
        }
        entry.bytes = from_sql(bytes);
        snapshots.insert(id, entry);
    }
    Ok(snapshots)
}

fn checked_row(row: &Row<'_>) -> Result<(String, Entry), StoreError> {
    let columns = || -> rusqlite::Result<(i64, &str, i64, i64, &[u8])> {
        Ok((row.get(0)?, row.get_ref(1)?.as_str()?, row.get(2)?, row.get(3)?, row.get_ref(4)?.as_blob()?))
    };
    let bad = |row: String, what: String| StoreError::bad_row(SnapshotDesk::FILE, "snapshot", row, what);
    let (number, id, chunks, crc, meta) =
        columns().map_err(|e| bad("?".to_owned(), format!("unreadable ({e})")))?;
    let chunks = from_sql(chunks);
    if crc != row_checksum(id, Some(chunks), meta) {
        return Err(bad(id.to_owned(), "its checksum does not match".to_owned()));
    }
    let meta = Bytes::copy_from_slice(meta);
    Ok((id.to_owned(), Entry { number: from_sql(number), meta, chunks, bytes: 0, finished: true }))
}

pub(super) fn chunk(db: &Connection, number: u64, seq: u64) -> Result<Bytes, StoreError> {
    let at = number * PLACES + seq;
    let read = || -> rusqlite::Result<Option<(i64, Vec<u8>)>> {
        let mut select = db.prepare_cached("SELECT crc, data FROM chunk WHERE at = ?1")?;
        select.query_row([at.cast_signed()], |r| Ok((r.get(0)?, r.get(1)?))).optional()
    };
    let found = read().map_err(|e| StoreError::from_sqlite(SnapshotDesk::FILE, "reading a snapshot", e))?;
    match found {
        Some((crc, data)) if crc == checksum_at(at, &data) => Ok(data.into()),
        Some(_) => Err(StoreError::bad_row(SnapshotDesk::FILE, "chunk", at, "its checksum does not match")),
        None => Err(StoreError::bad_row(SnapshotDesk::FILE, "chunk", at, "is missing")),
    }
}

/// Covers the id, the number of chunks once it is known, and the caller's bytes.
pub(super) fn row_checksum(id: &str, chunks: Option<u64>, meta: &[u8]) -> i64 {
    let mut key = id.as_bytes().to_vec();
    key.extend(chunks.map_or([0xFF; 8], u64::to_le_bytes));
    checksum(&key, meta)
}

pub(super) fn run(
    db: &Connection,
    doing: &'static str,
    sql: &'static str,
    with: impl Params,
) -> Result<usize, StoreError> {
    let run = || db.prepare_cached(sql)?.execute(with);
    run().map_err(|e| StoreError::from_sqlite(SnapshotDesk::FILE, doing, e))
}
