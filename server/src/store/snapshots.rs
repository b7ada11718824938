//! Snapshots as a caller sees them: written and read in rows, and made current by one small transaction of the log.
//!
//! A snapshot is in its own file, with its own writer: writing one stops no commit. It is whole once finished, and
//! of account once it is current.

use super::batch::Job;
use super::log_desk::{LogDesk, LogReply, LogWork};
use super::row::to_sql;
use super::snapshot_desk::{SnapshotReply, SnapshotWork, check_chunk};
use super::writer::job;
use super::{Floor, SnapshotInfo, SnapshotPointer, Store, StoreError, hold};
use bytes::Bytes;
use std::sync::Arc;

impl Store {
    /// Begins a snapshot, or goes on with one: one of the same id and meta that was begun in this run keeps its
    /// chunks, and the answer says how many it has. Other meta starts it over. A finished one is left as it is.
    pub async fn begin_snapshot(&self, id: &str, meta: Bytes) -> Result<SnapshotInfo, StoreError> {
        self.call_for_info(SnapshotWork::Begin(id.to_owned(), meta)).await
    }

    /// Adds chunk `seq` (from 0, without gaps, at most [`CHUNK_BYTES_MAX`](super::CHUNK_BYTES_MAX)); returns when it
    /// is on disk. A chunk that is there already is fine if it is the same.
    pub async fn append_chunk(&self, id: &str, seq: u64, data: Bytes) -> Result<(), StoreError> {
        check_chunk(id, seq, &data)?;
        self.inner.snapshots.call(SnapshotWork::Append(id.to_owned(), seq, data)).await.map(drop)
    }

    /// Says that the snapshot has all its chunks; returns when all of it is on disk. Twice is fine.
    pub async fn finish_snapshot(&self, id: &str) -> Result<SnapshotInfo, StoreError> {
        self.call_for_info(SnapshotWork::Finish(id.to_owned())).await
    }

    /// Reads a chunk and checks it.
    pub async fn read_chunk(&self, id: &str, seq: u64) -> Result<Bytes, StoreError> {
        match self.inner.snapshots.call(SnapshotWork::Read(id.to_owned(), seq)).await? {
            SnapshotReply::Chunk(data) => Ok(data),
            _ => unreachable!("a read is answered with a chunk"),
        }
    }

    /// What there is of a snapshot, finished or not.
    pub async fn snapshot(&self, id: &str) -> Result<Option<SnapshotInfo>, StoreError> {
        match self.inner.snapshots.call(SnapshotWork::Look(id.to_owned())).await? {
            SnapshotReply::Snapshot(info) => Ok(info),
            _ => unreachable!("a look is answered with what there is"),
        }
    }

    /// Forgets all snapshots but these and the current one, unfinished ones too. They are gone at once; their rows are deleted in slices
    /// when nothing else waits.
    pub async fn keep_snapshots(&self, ids: &[String]) -> Result<(), StoreError> {
        let mut ids = ids.to_vec();
        ids.extend(self.current_snapshot().map(|pointer| pointer.id));
        self.inner.snapshots.call(SnapshotWork::Keep(ids)).await.map(drop)
    }

    /// Makes a finished snapshot the current one and, with `floor`, drops the log that it covers: one transaction;
    /// returns when it is on disk. Once its job is queued it is done, also if the future is dropped.
    pub async fn switch_snapshot(
        &self,
        pointer: SnapshotPointer,
        floor: Option<Floor>,
    ) -> Result<(), StoreError> {
        if !self.snapshot(&pointer.id).await?.is_some_and(|info| info.finished) {
            return Err(StoreError::Missing { what: format!("a finished snapshot {}", pointer.id) });
        }
        if let Some(floor) = &floor {
            to_sql(floor.index.saturating_add(1))?;
            if pointer.covers.is_none_or(|covers| covers < floor.index) {
                let what = format!("snapshot {} does not cover the log up to {}", pointer.id, floor.index);
                return Err(StoreError::Misuse(what));
            }
        }
        let covers = pointer.covers;
        let (Job { work, done }, answer) = job::<LogDesk>(LogWork::Switch(pointer.clone(), floor.clone()));
        let written = Arc::clone(&self.inner.memory);
        let done = Box::new(move |reply: Result<LogReply, StoreError>| {
            if reply.is_ok() {
                hold(&written).pointer = Some(pointer);
            }
            done(reply);
        });
        {
            let mut memory = hold(&self.inner.memory);
            if covers < memory.covers_newest {
                return Ok(()); // a newer one was installed while this one was being taken
            }
            self.inner.log.enqueue(Job { work, done })?;
            memory.covers_newest = covers;
            if let Some(floor) = floor {
                memory.tail.purge(floor);
            }
        }
        self.inner.log.kick();
        self.inner.log.answer(answer).await.map(drop)
    }

    /// The snapshot that is current on disk.
    pub fn current_snapshot(&self) -> Option<SnapshotPointer> {
        hold(&self.inner.memory).pointer.clone()
    }

    async fn call_for_info(&self, work: SnapshotWork) -> Result<SnapshotInfo, StoreError> {
        match self.inner.snapshots.call(work).await? {
            SnapshotReply::Snapshot(Some(info)) => Ok(info),
            _ => unreachable!("to begin and to finish are answered with what there is"),
        }
    }
}
