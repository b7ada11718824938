//! What the writer of `raft.db` does: log rows, small named values, the floor, the snapshot pointer.
//!
//! - A row at or below the floor on disk is dead: no read gives it, a slice of each transaction deletes some.
//! - Rows above the floor are contiguous after every transaction.

use super::batch::Desk;
use super::row::{checksum, checksum_at, encode_floor, encode_pointer, from_sql, to_sql};
use super::{Floor, SnapshotPointer, StoreError, schema};
use bytes::Bytes;
use lock_table::planted;
use rusqlite::{Connection, params};
use std::ops::Range;

/// Names of our own values; a caller's are put behind `NODE`, so that they never meet.
pub(super) const VOTE: &str = "raft/vote";
pub(super) const COMMITTED: &str = "raft/committed";
pub(super) const FLOOR: &str = "raft/floor";
pub(super) const BEGIN: &str = "raft/begin";
pub(super) const POINTER: &str = "raft/snapshot";
pub(super) const NODE: &str = "node/";

/// A transaction deletes at most this many dead rows and bytes, and twice what it appended if that is more: it
/// stays short, and the dead never outgrow the living. Deleting a row reads all its pages.
const PURGE_ROWS: u64 = 256;
const PURGE_BYTES: u64 = 4 << 20;

pub(super) enum LogWork {
    Append(Vec<(u64, Bytes)>),
    Truncate(u64),
    /// A named value, under its name in the table.
    Put(String, Bytes),
    Switch(SnapshotPointer, Option<Floor>),
    /// What the log has of the range, which was in it when this was queued.
    Read(Range<u64>, usize),
}

pub(super) enum LogReply {
    Done,
    Rows(Vec<(u64, Bytes)>),
}

/// What rides the next transaction: newer ones replace older ones.
#[derive(Default)]
pub(super) struct LogRiders {
    pub(super) committed: Option<Bytes>,
    pub(super) floor: Option<Floor>,
}

pub(super) struct LogDesk {
    floor: Option<u64>,
    /// Where the log begins: after the floor, or at its first row.
    begin: Option<u64>,
    /// There may be dead rows.
    dead: bool,
    /// What this transaction appended.
    fresh_rows: u64,
    fresh_bytes: u64,
}

impl LogDesk {
    pub(super) fn new(floor: Option<u64>, begin: Option<u64>) -> Self {
        Self { floor, begin, dead: floor.is_some(), fresh_rows: 0, fresh_bytes: 0 }
    }

    fn append(&mut self, db: &Connection, rows: &[(u64, Bytes)]) -> Result<(), StoreError> {
        if let (None, Some((first, _))) = (self.begin, rows.first()) {
            // A log without a floor: remember where it begins, or a start could not tell a lost head.
            put(db, BEGIN, &first.to_le_bytes())?;
            self.begin = Some(*first);
        }
        let failed = |e| StoreError::from_sqlite(Self::FILE, "appending", e);
        let mut insert =
            db.prepare_cached("INSERT INTO log(idx, crc, data) VALUES(?1, ?2, ?3)").map_err(failed)?;
        for (index, data) in rows {
            insert
                .execute(params![to_sql(*index)?, checksum_at(*index, data), data.as_ref()])
                .map_err(failed)?;
            self.fresh_rows += 1;
            self.fresh_bytes += data.len() as u64;
        }
        Ok(())
    }

    fn truncate(&mut self, db: &Connection, from: u64) -> Result<(), StoreError> {
        if planted::is("truncate-forward") {
            run(db, "truncating", "DELETE FROM log WHERE idx = ?1", params![to_sql(from)?])?;
            run(db, "truncating", "COMMIT", [])?;
            run(db, "truncating", "BEGIN IMMEDIATE", [])?;
        }
        run(db, "truncating", "DELETE FROM log WHERE idx >= ?1", params![to_sql(from)?])?;
        if self.floor.is_none() && self.begin.is_some_and(|begin| from <= begin) {
            run(db, "truncating", "DELETE FROM value WHERE name = ?1", params![BEGIN])?;
            self.begin = None;
        }
        Ok(())
    }

    fn move_floor(&mut self, db: &Connection, floor: &Floor) -> Result<(), StoreError> {
        if self.floor.is_some_and(|f| f >= floor.index) {
            return Ok(());
        }
        put(db, FLOOR, &encode_floor(floor))?;
        self.floor = Some(floor.index);
        self.begin = Some(floor.index + 1);
        self.dead = true;
        Ok(())
    }

    /// Deletes some dead rows, from the head.
    fn bury(&mut self, db: &Connection) -> Result<(), StoreError> {
        let rows_max = PURGE_ROWS.max(2 * std::mem::take(&mut self.fresh_rows));
        let bytes_max = PURGE_BYTES.max(2 * std::mem::take(&mut self.fresh_bytes));
        let (Some(floor), true) = (self.floor, self.dead) else {
            return Ok(());
        };
        match last_to_bury(db, to_sql(floor)?, to_sql(rows_max)?, to_sql(bytes_max)?) {
            Ok(Some(last)) => run(db, "purging", "DELETE FROM log WHERE idx <= ?1", params![last]),
            Ok(None) => {
                self.dead = false;
                Ok(())
            }
            Err(e) => Err(StoreError::from_sqlite(Self::FILE, "purging", e)),
        }
    }
}

impl Desk for LogDesk {
    type Work = LogWork;
    type Reply = LogReply;
    type Riders = LogRiders;

    const FILE: &'static str = schema::RAFT.name;

    fn writes(work: &LogWork) -> bool {
        !matches!(work, LogWork::Read(..))
    }

    fn perform(&mut self, db: &Connection, work: LogWork) -> Result<LogReply, StoreError> {
        match work {
            LogWork::Append(rows) => self.append(db, &rows)?,
            LogWork::Truncate(from) => self.truncate(db, from)?,
            LogWork::Put(name, _) if name == VOTE && planted::is("vote-not-saved") => {}
            LogWork::Put(name, data) => put(db, &name, &data)?,
            LogWork::Switch(pointer, floor) => {
                put(db, POINTER, &encode_pointer(&pointer))?;
                if let Some(floor) = floor {
                    self.move_floor(db, &floor)?;
                }
            }
            LogWork::Read(range, bytes_max) => {
                return read(db, range, bytes_max).map(LogReply::Rows);
            }
        }
        Ok(LogReply::Done)
    }

    fn ride(&mut self, db: &Connection, riders: LogRiders) -> Result<(), StoreError> {
        if let Some(committed) = riders.committed {
            put(db, COMMITTED, &committed)?;
        }
        if let Some(floor) = riders.floor {
            self.move_floor(db, &floor)?;
        }
        self.bury(db)
    }

    /// The dead are buried behind the commits of others only.
    fn has_idle_work(&self) -> bool {
        false
    }

    fn idle(&mut self, _: &Connection) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Checks a row of the log and returns its index and bytes.
pub(super) fn checked_row(row: &rusqlite::Row<'_>, wanted: u64) -> Result<(u64, Bytes), StoreError> {
    let bad = |what: String| StoreError::bad_row(LogDesk::FILE, "log", wanted, what);
    let columns = || -> rusqlite::Result<(i64, i64, &[u8])> {
        Ok((row.get(0)?, row.get(1)?, row.get_ref(2)?.as_blob()?))
    };
    let (index, crc, data) = columns().map_err(|e| bad(format!("unreadable ({e})")))?;
    let index = from_sql(index);
    if index != wanted {
        return Err(bad(format!("is missing, the next row is {index}")));
    }
    if crc != checksum_at(index, data) {
        return Err(bad("its checksum does not match".to_owned()));
    }
    Ok((index, Bytes::copy_from_slice(data)))
}

/// Reads from the range's start, which is in the log, so that a row that is not there was lost.
fn read(db: &Connection, range: Range<u64>, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StoreError> {
    let failed = |e| StoreError::from_sqlite(LogDesk::FILE, "reading the log", e);
    let mut select = db
        .prepare_cached("SELECT idx, crc, data FROM log WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")
        .map_err(failed)?;
    let mut rows = select.query(params![to_sql(range.start)?, to_sql(range.end)?]).map_err(failed)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for wanted in range {
        let Some(row) = rows.next().map_err(failed)? else {
            return Err(StoreError::bad_row(LogDesk::FILE, "log", wanted, "is missing"));
        };
        let (index, data) = checked_row(row, wanted)?;
        bytes += data.len();
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push((index, data));
    }
    Ok(found)
}

/// The last row of the next slice to delete. A row's length is known without reading the row.
fn last_to_bury(db: &Connection, floor: i64, rows_max: i64, bytes_max: i64) -> rusqlite::Result<Option<i64>> {
    let mut select =
        db.prepare_cached("SELECT idx, length(data) FROM log WHERE idx <= ?1 ORDER BY idx LIMIT ?2")?;
    let mut rows = select.query(params![floor, rows_max])?;
    let (mut last, mut bytes) = (None, 0);
    while let Some(row) = rows.next()? {
        bytes += row.get::<_, i64>(1)?;
        if bytes > bytes_max && last.is_some() {
            break;
        }
        last = Some(row.get(0)?);
    }
    Ok(last)
}

fn put(db: &Connection, name: &str, data: &[u8]) -> Result<(), StoreError> {
    let sql = "INSERT INTO value(name, crc, data) VALUES(?1, ?2, ?3)
               ON CONFLICT(name) DO UPDATE SET crc = excluded.crc, data = excluded.data";
    run(db, "writing a value", sql, params![name, checksum(name.as_bytes(), data), data])
}

fn run(
    db: &Connection,
    doing: &'static str,
    sql: &'static str,
    with: impl rusqlite::Params,
) -> Result<(), StoreError> {
    let run = || db.prepare_cached(sql)?.execute(with).map(drop);
    run().map_err(|e| StoreError::from_sqlite(LogDesk::FILE, doing, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk_with_dead_rows(rows: u64, len: usize) -> (Connection, LogDesk) {
        let db = Connection::open_in_memory().unwrap();
        schema::create(&db, &schema::RAFT).unwrap();
        let mut desk = LogDesk::new(None, None);
        let rows: Vec<_> = (0..rows).map(|i| (i, Bytes::from(vec![0; len]))).collect();
        desk.append(&db, &rows).unwrap();
        (desk.fresh_rows, desk.fresh_bytes) = (0, 0);
        let floor = Floor { index: rows.len() as u64 - 1, data: Bytes::new() };
        desk.move_floor(&db, &floor).unwrap();
        (db, desk)
    }

    fn rows_left(db: &Connection) -> u64 {
        db.query_row("SELECT count(*) FROM log", [], |r| r.get(0).map(from_sql)).unwrap()
    }

    #[test]
    fn a_transaction_buries_a_bounded_slice_from_the_head() {
        let (db, mut desk) = desk_with_dead_rows(1000, 10);
        desk.bury(&db).unwrap();
        assert_eq!(rows_left(&db), 1000 - PURGE_ROWS);
        let first = db.query_row("SELECT min(idx) FROM log", [], |r| r.get(0).map(from_sql)).unwrap();
        assert_eq!(first, PURGE_ROWS);
        // It outruns what is appended.
        desk.fresh_rows = 300;
        desk.bury(&db).unwrap();
        assert_eq!(rows_left(&db), 1000 - PURGE_ROWS - 600);
    }

    #[test]
    fn a_slice_is_bounded_in_bytes_and_has_one_row_at_least() {
        let (db, mut desk) = desk_with_dead_rows(8, 1 << 20);
        desk.bury(&db).unwrap();
        assert_eq!(rows_left(&db), 4);
        let (db, mut desk) = desk_with_dead_rows(2, 6 << 20);
        desk.bury(&db).unwrap();
        assert_eq!(rows_left(&db), 1);
    }
}
