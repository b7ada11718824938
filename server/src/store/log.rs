//! The log, the vote and the small values, as a caller sees them.
//!
//! Memory is changed first and answers at once; the same change is queued for the writer under the same lock, so
//! that the two never differ in their order. A caller that must know of the disk waits for its answer.

use super::batch::Job;
use super::log_desk::{LogDesk, LogReply, LogWork, NODE, VOTE};
use super::row::to_sql;
use super::tail::Place;
use super::writer::job;
use super::{Done, ENTRY_BYTES_MAX, Floor, LogState, Store, StoreError, hold};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// How many bytes of appends may wait for the disk. A disk that is 64 MiB behind does not catch up while more is
/// poured on it: here the caller starts to wait, and with it whoever proposes.
pub(super) const WAITING_BYTES_MAX: usize = 64 << 20;

/// What a row costs beside its bytes, so that many small ones have a limit too.
const ROW_BYTES: usize = 64;

impl Store {
    /// Appends rows that follow the last entry without a gap (an empty log without a floor may begin anywhere).
    ///
    /// When this returns Ok the rows are readable, and `done` is called once: with Ok after they are on disk, with an
    /// error if the store failed first. Calls come in the order of the appends, from the writer. On Err nothing was
    /// changed and `done` is never called. It waits only while 64 MiB of appends wait for the disk; a future that is
    /// dropped there has done nothing.
    pub async fn append(&self, rows: Vec<(u64, Bytes)>, done: Done) -> Result<(), StoreError> {
        let Some((last, _)) = rows.last() else {
            return Err(StoreError::Misuse("append of no rows".to_owned()));
        };
        to_sql(last.saturating_add(1))?;
        if let Some((index, _)) = rows.iter().find(|(_, data)| data.len() > ENTRY_BYTES_MAX) {
            return Err(StoreError::Misuse(format!("entry {index} is larger than {ENTRY_BYTES_MAX} bytes")));
        }
        let next = last + 1;
        let bytes: usize = rows.iter().map(|(_, data)| data.len() + ROW_BYTES).sum();
        let permits = bytes.min(WAITING_BYTES_MAX) as u32;
        let room = Arc::clone(&self.inner.room).acquire_many_owned(permits).await;
        let room = room.map_err(|_| StoreError::Closed)?;

        let written = Arc::clone(&self.inner.memory);
        {
            let mut memory = hold(&self.inner.memory);
            self.inner.log.is_open()?;
            let cut = memory.tail.append(&rows)?;
            let done = Box::new(move |reply: Result<LogReply, StoreError>| {
                if reply.is_ok() {
                    hold(&written).tail.committed(cut, next);
                }
                drop(room);
                done(reply.map(drop));
            });
            self.inner.log.enqueue(Job { work: LogWork::Append(rows), done })?;
        }
        self.inner.log.kick();
        Ok(())
    }

    /// Removes entry `index` and all after it. They are gone at once; returns when that is on disk, in one
    /// transaction. The floor stays, whatever `index` is. Once polled it is done, also if the future is dropped.
    pub async fn truncate_from(&self, index: u64) -> Result<(), StoreError> {
        to_sql(index)?;
        let (job, answer) = job(LogWork::Truncate(index));
        {
            let mut memory = hold(&self.inner.memory);
            self.inner.log.enqueue(job)?;
            memory.tail.truncate(index);
        }
        self.inner.log.kick();
        self.inner.log.answer(answer).await.map(drop)
    }

    /// Moves the floor up to and including its index: what is below is gone at once, on disk with the next
    /// transaction, and its rows are deleted behind later ones. Never waits. A floor that is not higher is ignored.
    ///
    /// The current snapshot must cover it: a store whose floor no snapshot covers refuses to open.
    pub fn purge(&self, floor: Floor) -> Result<(), StoreError> {
        to_sql(floor.index.saturating_add(1))?;
        let mut memory = hold(&self.inner.memory);
        self.inner.log.ride(|riders| {
            if memory.tail.purge(floor.clone()) {
                riders.floor = Some(floor);
            }
        })
    }

    /// What the log has of `range`, from its beginning: at least one entry if it has any, and no more once
    /// `bytes_max` is reached (call again for the rest). An empty answer means that the log has none of them.
    ///
    /// From memory for all that is recent; from the disk, checked, behind what waits for the writer.
    pub async fn read_range(
        &self,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let answer = {
            let memory = hold(&self.inner.memory);
            self.inner.log.is_open()?;
            match memory.tail.read(range, bytes_max) {
                Place::Memory(rows) => return Ok(rows),
                Place::Nowhere => return Ok(Vec::new()),
                Place::Disk(range) => {
                    let (job, answer) = job(LogWork::Read(range, bytes_max));
                    self.inner.log.enqueue(job)?;
                    answer
                }
            }
        };
        self.inner.log.kick();
        match self.inner.log.answer(answer).await? {
            LogReply::Rows(rows) => Ok(rows),
            LogReply::Done => unreachable!("a read is answered with rows"),
        }
    }

    /// Where the log begins and ends, entries that wait for the disk included.
    pub fn log_state(&self) -> LogState {
        let memory = hold(&self.inner.memory);
        LogState { floor: memory.tail.floor().cloned(), last: memory.tail.last() }
    }

    /// Keeps the vote; returns when it is on disk. Once polled it is done, also if the future is dropped.
    pub async fn save_vote(&self, vote: Bytes) -> Result<(), StoreError> {
        let memory = Arc::clone(&self.inner.memory);
        let new = vote.clone();
        self.put(VOTE.to_owned(), vote, move || hold(&memory).vote = Some(new)).await
    }

    /// The vote that was saved last.
    pub fn vote(&self) -> Option<Bytes> {
        hold(&self.inner.memory).vote.clone()
    }

    /// Keeps up to where the log is committed. It rides the next transaction, causes none and is never waited for: a
    /// crash may bring back an older one.
    pub fn set_committed(&self, committed: Bytes) -> Result<(), StoreError> {
        let mut memory = hold(&self.inner.memory);
        memory.committed = Some(committed.clone());
        self.inner.log.ride(|riders| riders.committed = Some(committed))
    }

    /// What was set last, in this run or before it.
    pub fn committed(&self) -> Option<Bytes> {
        hold(&self.inner.memory).committed.clone()
    }

    /// Keeps a small value under a name (identity, boot counter, promise); returns when it is on disk. Once polled it
    /// is done, also if the future is dropped.
    pub async fn put_value(&self, name: &str, value: Bytes) -> Result<(), StoreError> {
        let memory = Arc::clone(&self.inner.memory);
        let (key, new) = (name.to_owned(), value.clone());
        let keep = move || drop(hold(&memory).values.insert(key, new));
        self.put(format!("{NODE}{name}"), value, keep).await
    }

    /// The value that is on disk under `name`.
    pub fn value(&self, name: &str) -> Option<Bytes> {
        hold(&self.inner.memory).values.get(name).cloned()
    }

    /// Writes a named row and runs `keep` when it is on disk, in the order of the commits.
    async fn put(
        &self,
        name: String,
        data: Bytes,
        keep: impl FnOnce() + Send + 'static,
    ) -> Result<(), StoreError> {
        let (Job { work, done }, answer) = job::<LogDesk>(LogWork::Put(name, data));
        let done = Box::new(move |reply: Result<LogReply, StoreError>| {
            if reply.is_ok() {
                keep();
            }
            done(reply);
        });
        self.inner.log.enqueue(Job { work, done })?;
        self.inner.log.kick();
        self.inner.log.answer(answer).await.map(drop)
    }
}
