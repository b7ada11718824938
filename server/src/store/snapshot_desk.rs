//! What the writer of `snapshots.db` does: write, finish, read and forget snapshots.
//!
//! - A snapshot's number is not used again while chunks of it remain.
//! - A snapshot is whole once its row says how many chunks it has; until then a start sweeps it.
//! - Forgetting one removes its row at once; its chunks become garbage, deleted in slices when nobody waits.

use super::batch::Desk;
use super::row::{checksum_at, to_sql};
use super::snapshot_rows::{Entry, PLACES, chunk, find_garbage, load, row_checksum, run};
use super::{CHUNK_BYTES_MAX, SnapshotInfo, StoreError, schema};
use bytes::Bytes;
use rusqlite::{Connection, params};
use std::collections::{BTreeMap, VecDeque};

/// Rows that one slice deletes: at most this many MiB of pages to read.
const SLICE_ROWS: i64 = 8;

pub(super) enum SnapshotWork {
    Begin(String, Bytes),
    Append(String, u64, Bytes),
    Finish(String),
    Read(String, u64),
    Look(String),
    /// Forget all but these.
    Keep(Vec<String>),
}

pub(super) enum SnapshotReply {
    Done,
    Snapshot(Option<SnapshotInfo>),
    Chunk(Bytes),
}

pub(super) struct SnapshotDesk {
    snapshots: BTreeMap<String, Entry>,
    garbage: VecDeque<u64>,
    number_next: u64,
}

impl SnapshotDesk {
    /// Reads what is there and sweeps what is unfinished. `current` must be whole.
    pub(super) fn open(db: &Connection, current: Option<&str>) -> Result<Self, StoreError> {
        let sweep = "DELETE FROM snapshot WHERE chunks IS NULL";
        run(db, "sweeping", sweep, [])?;
        let snapshots = load(db)?;
        if let Some(id) = current
            && !snapshots.contains_key(id)
        {
            let what = "is current, and is not here";
            return Err(StoreError::bad_row(Self::FILE, "snapshot", id, what));
        }
        let garbage = find_garbage(db, &snapshots)?;
        let taken = snapshots.values().map(|s| s.number).chain(garbage.iter().copied());
        let number_next = taken.max().map_or(0, |number| number + 1);
        Ok(Self { snapshots, garbage, number_next })
    }

    fn begin(&mut self, db: &Connection, id: String, meta: Bytes) -> Result<SnapshotInfo, StoreError> {
        if let Some(entry) = self.snapshots.get(&id) {
            if entry.finished || entry.meta == meta {
                return Ok(entry.info(id));
            }
            self.forget(db, &id)?;
        }
        let entry = Entry { number: self.number_next, meta, chunks: 0, bytes: 0, finished: false };
        self.number_next += 1;
        let sql = "INSERT INTO snapshot(number, id, chunks, crc, meta) VALUES(?1, ?2, NULL, ?3, ?4)";
        let crc = row_checksum(&id, None, &entry.meta);
        run(db, "beginning a snapshot", sql, params![to_sql(entry.number)?, id, crc, entry.meta.as_ref()])?;
        let info = entry.info(id.clone());
        self.snapshots.insert(id, entry);
        Ok(info)
    }

    fn append(&mut self, db: &Connection, id: &str, seq: u64, data: &[u8]) -> Result<(), StoreError> {
        let entry = self.snapshots.get_mut(id).ok_or_else(|| missing(id))?;
        if seq < entry.chunks {
            // A repeat, as after a lost answer: fine if it is the same.
            let there = chunk(db, entry.number, seq)?;
            return if there == data { Ok(()) } else { Err(misuse(id, seq, "is there with other bytes")) };
        }
        if entry.finished {
            return Err(misuse(id, seq, "comes after the end"));
        }
        if seq > entry.chunks {
            return Err(misuse(id, seq, "leaves a gap"));
        }
        let at = entry.number * PLACES + seq;
        let sql = "INSERT INTO chunk(at, crc, data) VALUES(?1, ?2, ?3)";
        run(db, "appending to a snapshot", sql, params![to_sql(at)?, checksum_at(at, data), data])?;
        entry.chunks += 1;
        entry.bytes += data.len() as u64;
        Ok(())
    }

    fn finish(&mut self, db: &Connection, id: String) -> Result<SnapshotInfo, StoreError> {
        let entry = self.snapshots.get_mut(&id).ok_or_else(|| missing(&id))?;
        if !entry.finished {
            let crc = row_checksum(&id, Some(entry.chunks), &entry.meta);
            let sql = "UPDATE snapshot SET chunks = ?2, crc = ?3 WHERE number = ?1";
            run(db, "finishing a snapshot", sql, params![to_sql(entry.number)?, to_sql(entry.chunks)?, crc])?;
            entry.finished = true;
        }
        Ok(entry.info(id))
    }

    fn forget(&mut self, db: &Connection, id: &str) -> Result<(), StoreError> {
        if let Some(entry) = self.snapshots.remove(id) {
            run(
                db,
                "forgetting a snapshot",
                "DELETE FROM snapshot WHERE number = ?1",
                [to_sql(entry.number)?],
            )?;
            self.garbage.push_back(entry.number);
        }
        Ok(())
    }
}

impl Desk for SnapshotDesk {
    type Work = SnapshotWork;
    type Reply = SnapshotReply;
    type Riders = ();

    const FILE: &'static str = schema::SNAPSHOTS.name;

    fn writes(work: &SnapshotWork) -> bool {
        !matches!(work, SnapshotWork::Read(..) | SnapshotWork::Look(_))
    }

    fn perform(&mut self, db: &Connection, work: SnapshotWork) -> Result<SnapshotReply, StoreError> {
        use SnapshotReply::{Chunk, Done, Snapshot};
        match work {
            SnapshotWork::Begin(id, meta) => self.begin(db, id, meta).map(|info| Snapshot(Some(info))),
            SnapshotWork::Append(id, seq, data) => self.append(db, &id, seq, &data).map(|()| Done),
            SnapshotWork::Finish(id) => self.finish(db, id).map(|info| Snapshot(Some(info))),
            SnapshotWork::Look(id) => {
                Ok(Snapshot(self.snapshots.get(&id).map(|entry| entry.info(id.clone()))))
            }
            SnapshotWork::Read(id, seq) => {
                let entry = self.snapshots.get(&id).filter(|entry| seq < entry.chunks);
                let entry = entry.ok_or_else(|| missing(&format!("{id}, chunk {seq}")))?;
                chunk(db, entry.number, seq).map(Chunk)
            }
            SnapshotWork::Keep(ids) => {
                let forgotten: Vec<String> =
                    self.snapshots.keys().filter(|id| !ids.contains(id)).cloned().collect();
                forgotten.iter().try_for_each(|id| self.forget(db, id)).map(|()| Done)
            }
        }
    }

    fn ride(&mut self, _: &Connection, (): ()) -> Result<(), StoreError> {
        Ok(())
    }

    fn has_idle_work(&self) -> bool {
        !self.garbage.is_empty()
    }

    fn idle(&mut self, db: &Connection) -> Result<(), StoreError> {
        let Some(number) = self.garbage.front() else {
            return Ok(());
        };
        let (from, until) = (to_sql(number * PLACES)?, to_sql((number + 1) * PLACES)?);
        let sql = "DELETE FROM chunk WHERE at IN
                   (SELECT at FROM chunk WHERE at >= ?1 AND at < ?2 ORDER BY at LIMIT ?3)";
        if run(db, "sweeping", sql, params![from, until, SLICE_ROWS])? == 0 {
            self.garbage.pop_front();
        }
        Ok(())
    }
}

fn missing(what: &str) -> StoreError {
    StoreError::Missing { what: format!("snapshot {what}") }
}

fn misuse(id: &str, seq: u64, what: &str) -> StoreError {
    StoreError::Misuse(format!("chunk {seq} of snapshot {id} {what}"))
}

/// Refuses a chunk that no row takes.
pub(super) fn check_chunk(id: &str, seq: u64, data: &[u8]) -> Result<(), StoreError> {
    if data.len() > CHUNK_BYTES_MAX {
        return Err(misuse(id, seq, "is larger than a row"));
    }
    if seq >= PLACES {
        return Err(misuse(id, seq, "is beyond the last place"));
    }
    Ok(())
}
