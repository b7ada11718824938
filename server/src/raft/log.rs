//! openraft's log and vote, kept by the store.
//!
//! An append is readable when it returns and reported flushed when its transaction is on disk, in order (R1, R3, R4).
//! A vote and a truncation are waited for; a purge and, now and then, the committed index ride other commits, because
//! openraft waits for those calls inside its loop and a heartbeat would be late.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};

use futures_util::{Stream, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::Types;
use super::codec::{self, Malformed};
use super::types::{Entry, LogId, Vote};
use crate::store::{Floor, READ_BYTES_MAX, Store};

/// The log of this node. Clones are readers of the same log.
#[derive(Clone, Debug)]
pub struct LogStore {
    store: Store,
    /// The vote on disk, so that reading it needs no disk.
    vote: Arc<Mutex<Option<Vote>>>,
    committed: Arc<Mutex<Committed>>,
}

/// Up to where the log is committed, as openraft said last, and the last index that the store was told.
#[derive(Debug, Default)]
struct Committed {
    newest: Option<LogId>,
    told: u64,
}

/// The store is told of every so many entries only. It is a hint of what a restart may apply before it hears of a leader;
/// in each transaction it would be a page of its own, as much as a small batch.
const COMMITTED_EVERY: u64 = 64;

impl LogStore {
    /// The log that the store holds.
    pub fn open(store: Store) -> io::Result<LogStore> {
        let vote = store.vote().map(|bytes| codec::vote_from_bytes(&bytes)).transpose();
        let vote = vote.map_err(|error| unreadable("the vote", error))?;
        let newest = store.committed().map(|bytes| codec::log_id_from_bytes(&bytes)).transpose();
        let newest = newest.map_err(|error| unreadable("the committed index", error))?;
        let committed = Committed { newest, told: newest.map_or(0, |id| id.index) };
        Ok(LogStore { store, vote: Arc::new(Mutex::new(vote)), committed: Arc::new(Mutex::new(committed)) })
    }

    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let rows = self.store.read_range(start..end, bytes_max).await.map_err(io::Error::other)?;
        rows.into_iter()
            .map(|(index, bytes)| {
                codec::entry_from_bytes(bytes).map_err(|error| unreadable(&format!("log row {index}"), error))
            })
            .collect()
    }

    fn floor(&self) -> io::Result<Option<LogId>> {
        let floor =
            self.store.log_state().floor.map(|floor| codec::log_id_from_bytes(&floor.data)).transpose();
        floor.map_err(|error| unreadable("the purge floor", error))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut next, end) = bounds(&range);
        let mut entries = Vec::new();
        while next < end {
            let part = self.read(next, end, READ_BYTES_MAX).await?;
            let Some(last) = part.last() else { break };
            next = last.log_id.index + 1;
            entries.extend(part);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let part = self.read(start, end, READ_BYTES_MAX).await?;
        if start >= end || part.first().is_some_and(|entry| entry.log_id.index == start) {
            return Ok(part);
        }
        // A replication that its leader has given up, or whose leader is none any more, may still ask for what was purged
        // since. The rest does not follow what its target has: it gets nothing, which openraft takes for a heartbeat. An
        // error would end the node.
        if self.floor()?.is_some_and(|floor| start <= floor.index) {
            return Ok(Vec::new());
        }
        Err(missing(start))
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // In parts, because a restart applies the whole log and it need not be in memory at once.
        let (start, end) = bounds(&range);
        let part = Part { log: self.clone(), next: start, end, ready: Vec::new().into_iter() };
        Box::pin(stream::try_unfold(part, Part::take))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(*self.vote.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

struct Part {
    log: LogStore,
    next: u64,
    end: u64,
    ready: std::vec::IntoIter<Entry>,
}

impl Part {
    async fn take(mut self) -> io::Result<Option<(Entry, Part)>> {
        if self.ready.len() == 0 && self.next < self.end {
            self.ready = self.log.read(self.next, self.end, READ_BYTES_MAX).await?.into_iter();
        }
        let Some(entry) = self.ready.next() else { return Ok(None) };
        if entry.log_id.index != self.next {
            return Err(missing(self.next));
        }
        self.next = entry.log_id.index + 1;
        Ok(Some((entry, self)))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let purged = self.floor()?;
        let last = match self.store.log_state().last {
            None => purged,
            Some(index) => {
                self.read(index, index + 1, READ_BYTES_MAX).await?.last().map(|entry| entry.log_id)
            }
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.save_vote(codec::vote_bytes(vote)).await.map_err(io::Error::other)?;
        *self.vote.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(id) = committed else { return Ok(()) };
        let mut known = self.committed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.newest = Some(id);
        if id.index < known.told + COMMITTED_EVERY {
            return Ok(());
        }
        known.told = id.index;
        self.store.set_committed(codec::log_id_bytes(&id)).map_err(io::Error::other)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.committed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).newest)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows =
            entries.into_iter().map(|entry| (entry.log_id().index, codec::entry_bytes(&entry))).collect();
        let done =
            Box::new(move |result: Result<(), _>| flushed.io_completed(result.map_err(io::Error::other)));
        self.store.append(rows, done).await.map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        self.store.truncate_from(from).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let floor = Floor { index: upto.index, data: codec::log_id_bytes(&upto) };
        self.store.purge(floor).map_err(io::Error::other)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn missing(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the log has no entry {index}"))
}

fn unreadable(what: &str, error: Malformed) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "raft.db: {what} cannot be read: {error}. This node's disk cannot be trusted: replace the node"
        ),
    )
}

#[cfg(test)]
mod tests {
    use openraft::RaftLogReader;

    use super::*;
    use crate::raft::types::{LeaderId, Payload};
    use crate::store::{StoreOptions, simdisk};

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: 1 }, index)
    }

    #[tokio::test]
    async fn the_committed_index_costs_a_page_once_in_many_commits() {
        const DISK: &str = "log-committed";
        simdisk::mount(DISK, simdisk::Disk::new());
        let store = Store::open(StoreOptions::simulated(DISK)).expect("a fresh disk");
        let mut log = LogStore::open(store.clone()).expect("an empty log");
        for index in 0..=130 {
            log.append([Entry::new(id(index), Payload::Blank)], IOFlushed::noop()).await.expect("appended");
            log.save_committed(Some(id(index))).await.expect("noted");
            assert_eq!(log.read_committed().await.expect("known"), Some(id(index)));
        }
        store.abandon();
        let store = Store::open(StoreOptions::simulated(DISK)).expect("it was written");
        let known = LogStore::open(store).expect("a log").read_committed().await.expect("known");
        assert_eq!(known, Some(id(128)), "a little behind, and never ahead");
        simdisk::unmount(DISK);
    }

    #[tokio::test]
    async fn what_follows_a_purge_is_not_read_as_if_it_followed_what_was_purged() {
        const DISK: &str = "log-purged-reads";
        simdisk::mount(DISK, simdisk::Disk::new());
        let store = Store::open(StoreOptions::simulated(DISK)).expect("a fresh disk");
        let mut log = LogStore::open(store).expect("an empty log");
        let entries = (0..10).map(|index| Entry::new(id(index), Payload::Blank));
        log.append(entries, IOFlushed::noop()).await.expect("appended");
        log.purge(id(5)).await.expect("purged");

        for start in 0..=5 {
            assert!(log.limited_get_log_entries(start, 10).await.expect("no error").is_empty(), "{start}");
        }
        assert_eq!(log.limited_get_log_entries(6, 10).await.expect("it is there").len(), 4);
        assert!(log.limited_get_log_entries(10, 12).await.is_err(), "it never was there");
        simdisk::unmount(DISK);
    }
}
