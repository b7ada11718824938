//! The look at every living row at start: what is not exactly what was written, is refused.
//!
//! The log is contiguous from its beginning, every row's checksum fits, and what is missing before the floor is
//! covered by the current snapshot. Anything else is a torn or edited store, and a node that runs on one may
//! acknowledge what it does not have.

use super::batch::Desk as _;
use super::log_desk::{BEGIN, COMMITTED, FLOOR, LogDesk, NODE, POINTER, VOTE, checked_row};
use super::row::{checksum, decode_floor, decode_pointer, to_sql};
use super::tail::Tail;
use super::{SnapshotPointer, StoreError};
use bytes::Bytes;
use rusqlite::{Connection, Row, params};
use std::collections::BTreeMap;

/// What `raft.db` holds: the small things, and the end of the log.
pub(super) struct Memory {
    pub(super) tail: Tail,
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) pointer: Option<SnapshotPointer>,
    /// What the last queued switch covers: a snapshot that covers less never takes its place.
    pub(super) covers_newest: Option<u64>,
    /// The caller's values, by the caller's names.
    pub(super) values: BTreeMap<String, Bytes>,
}

/// Reads and checks all of it; the desk knows where the log begins on disk.
pub(super) fn scan(db: &Connection, cache_bytes: usize) -> Result<(Memory, LogDesk), StoreError> {
    let mut values = values(db)?;
    let floor = take(&mut values, FLOOR, decode_floor)?;
    let begin = take(&mut values, BEGIN, |bytes| Some(u64::from_le_bytes(bytes.as_ref().try_into().ok()?)))?;
    let pointer = take(&mut values, POINTER, decode_pointer)?;
    let begin = floor.as_ref().map(|f| f.index.saturating_add(1)).or(begin);

    if let Some(floor) = &floor
        && pointer.as_ref().and_then(|p| p.covers).is_none_or(|covers| covers < floor.index)
    {
        let what = format!("the log was purged up to {}, and no current snapshot covers that", floor.index);
        return Err(StoreError::bad_row(LogDesk::FILE, "value", FLOOR, what));
    }

    let desk = LogDesk::new(floor.as_ref().map(|f| f.index), begin);
    let mut tail = Tail::new(floor, cache_bytes);
    load_log(db, begin, &mut tail)?;
    let (vote, committed) = (values.remove(VOTE), values.remove(COMMITTED));
    let values =
        values.into_iter().filter_map(|(k, v)| Some((k.strip_prefix(NODE)?.to_owned(), v))).collect();
    let covers_newest = pointer.as_ref().and_then(|pointer| pointer.covers);
    Ok((Memory { tail, vote, committed, pointer, covers_newest, values }, desk))
}

fn load_log(db: &Connection, begin: Option<u64>, tail: &mut Tail) -> Result<(), StoreError> {
    let failed = |e| StoreError::from_sqlite(LogDesk::FILE, "scanning the log", e);
    let mut select =
        db.prepare("SELECT idx, crc, data FROM log WHERE idx >= ?1 ORDER BY idx").map_err(failed)?;
    let mut rows = select.query(params![to_sql(begin.unwrap_or(0))?]).map_err(failed)?;
    let mut wanted = begin;
    while let Some(row) = rows.next().map_err(failed)? {
        let Some(index) = wanted else {
            return Err(StoreError::bad_row(
                LogDesk::FILE,
                "value",
                BEGIN,
                "is missing, and the log has rows",
            ));
        };
        let (_, data) = checked_row(row, index)?;
        tail.load(index, data);
        wanted = Some(index + 1);
    }
    if tail.floor().is_none() && begin.is_some() && wanted == begin {
        return Err(StoreError::bad_row(
            LogDesk::FILE,
            "log",
            begin.unwrap_or(0),
            "is missing, and so is all after it",
        ));
    }
    Ok(())
}

fn values(db: &Connection) -> Result<BTreeMap<String, Bytes>, StoreError> {
    let failed = |e| StoreError::from_sqlite(LogDesk::FILE, "reading the values", e);
    let mut select = db.prepare("SELECT name, crc, data FROM value ORDER BY name").map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    let mut values = BTreeMap::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let (name, data) = checked_value(row)?;
        values.insert(name, data);
    }
    Ok(values)
}

fn checked_value(row: &Row<'_>) -> Result<(String, Bytes), StoreError> {
    let columns = || -> rusqlite::Result<(&str, i64, &[u8])> {
        Ok((row.get_ref(0)?.as_str()?, row.get(1)?, row.get_ref(2)?.as_blob()?))
    };
    let (name, crc, data) = columns()
        .map_err(|e| StoreError::bad_row(LogDesk::FILE, "value", "?", format!("unreadable ({e})")))?;
    if crc != checksum(name.as_bytes(), data) {
        return Err(StoreError::bad_row(LogDesk::FILE, "value", name, "its checksum does not match"));
    }
    Ok((name.to_owned(), Bytes::copy_from_slice(data)))
}

fn take<T>(
    values: &mut BTreeMap<String, Bytes>,
    name: &'static str,
    decode: impl FnOnce(Bytes) -> Option<T>,
) -> Result<Option<T>, StoreError> {
    let Some(bytes) = values.remove(name) else {
        return Ok(None);
    };
    let malformed = || StoreError::bad_row(LogDesk::FILE, "value", name, "is malformed");
    decode(bytes).map(Some).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::simdisk::{self, Disk};
    use crate::store::{Floor, SnapshotPointer, Store, StoreOptions};
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("an inline writer answers at once"),
        }
    }

    /// Rows 0 to 9, purged up to 2 where `purged`; then `sql`; then the words with which the start refuses it.
    fn refused_after(disk: &str, purged: bool, sql: &str) -> String {
        simdisk::mount(disk, Disk::new());
        let store = Store::open(StoreOptions::simulated(disk)).unwrap();
        let rows = (0..10).map(|i| (i, Bytes::from_static(b"entry"))).collect();
        now(store.append(rows, Box::new(|reply| reply.unwrap()))).unwrap();
        if purged {
            now(store.begin_snapshot("s", Bytes::new())).unwrap();
            now(store.finish_snapshot("s")).unwrap();
            let pointer = SnapshotPointer { id: "s".to_owned(), covers: Some(5), meta: Bytes::new() };
            now(store.switch_snapshot(pointer, Some(Floor { index: 2, data: Bytes::new() }))).unwrap();
        }
        now(store.close()).unwrap();
        Store::open(StoreOptions::simulated(disk)).expect("it is well before").abandon();

        let db = Connection::open_with_flags_and_vfs(
            format!("{disk}/raft.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE,
            simdisk::VFS,
        )
        .unwrap();
        db.execute_batch(&format!("PRAGMA locking_mode=EXCLUSIVE; {sql}")).unwrap();
        drop(db);
        let refusal = Store::open(StoreOptions::simulated(disk)).expect_err("an edited store").to_string();
        simdisk::unmount(disk);
        refusal
    }

    #[test]
    fn a_log_with_a_hole_or_without_its_head_is_refused() {
        let cases = [
            ("scan-1", false, "DELETE FROM log WHERE idx = 4", "row 4: is missing, the next row is 5"),
            ("scan-2", false, "DELETE FROM log WHERE idx = 0", "row 0: is missing, the next row is 1"),
            ("scan-3", true, "DELETE FROM log WHERE idx = 3", "row 3: is missing, the next row is 4"),
            ("scan-4", false, "DELETE FROM log", "row 0: is missing, and so is all after it"),
            ("scan-5", false, "DELETE FROM value WHERE name = 'raft/begin'", "row raft/begin: is missing"),
            ("scan-6", true, "DELETE FROM value WHERE name = 'raft/snapshot'", "no current snapshot covers"),
            ("scan-7", false, "UPDATE log SET idx = 10 WHERE idx = 9", "row 9: is missing"),
            ("scan-8", false, "UPDATE log SET data = 'text' WHERE idx = 9", "row 9: unreadable"),
            (
                "scan-9",
                false,
                "UPDATE log SET data = x'00' WHERE idx = 9",
                "row 9: its checksum does not match",
            ),
        ];
        for (disk, purged, sql, words) in cases {
            let refusal = refused_after(disk, purged, sql);
            assert!(refusal.contains(words), "{sql}: {refusal}");
        }
    }
}
