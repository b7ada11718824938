//! Committed entries become changes of the lock table, and what the table says goes to those who wait.
//!
//! [`Machine`] is the table as the rest of the node sees it: readable between batches, and only then.
//! [`MachineWriter`] is openraft's side of it and the only one that changes it. The table lives in memory; after a
//! start it comes back from the newest snapshot and the log behind it.
//!
//! Invariants:
//! - Entries are applied in log order, whole batches at a time; no reader sees a batch half applied.
//! - The outputs of a batch reach [`Streams`] before any reader sees its effects, and in log order.
//! - Bytes that do not decode, or a rule version from the future, stop the node: another node may know better.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use lock_table::{Batch, LockTable, Output, Restore, planted};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use raftlock_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Types;
use super::codec;
use super::marks::{MARK_EVERY, Marks};
use super::snapshot::{SnapshotBuilder, SnapshotRef};
use super::types::{LogId, Payload, Snapshot, SnapshotMeta, StoredMembership};
use super::witness::{Applied, Witness};
use crate::clock::offer_processor;
use crate::store::Store;
use crate::streams::Streams;

/// How much of a batch is done before other tasks get a turn: at about a microsecond a unit, well under the few
/// milliseconds that a heartbeat can wait.
const STEP_BUDGET: usize = 2_048;

/// The same for a batch that nobody on this node waits for, as on a follower: some 50 us. After each such step its log's
/// writer, its acknowledgements and, where nodes share a machine, the leader get the processor first: all wait for a
/// follower's disk, nobody for its table.
const STEP_BUDGET_UNAWAITED: usize = 128;

/// An offer of the processor that took longer was the last for a batch: others want it so much that with an offer at each
/// step the node would fall behind.
const OFFER_LIMIT: Duration = Duration::from_millis(1);

/// How many records of a snapshot are encoded before others get a turn at the table.
const SNAPSHOT_STEP_RECORDS: usize = 4_096;

/// The lock table on this node.
#[derive(Clone)]
pub struct Machine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    applied: watch::Sender<Option<LogId>>,
    store: Store,
    streams: Arc<Streams>,
    marks: Marks,
    witness: Option<Arc<dyn Witness>>,
    /// Since the node's start, and how long they took in all.
    applied_batches: AtomicU64,
    applied_us: AtomicU64,
}

struct State {
    table: LockTable,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Log bytes applied since the last snapshot began: what a restart would have to apply again.
    bytes_since_snapshot: u64,
    /// Raised when the table is replaced as a whole, so that a snapshot being taken of the old one ends.
    generation: u64,
}

impl Machine {
    /// An empty table. openraft fills it from the snapshot and the log.
    pub fn new(store: Store, streams: Arc<Streams>, witness: Option<Arc<dyn Witness>>) -> Self {
        let state = State {
            table: LockTable::new(),
            applied: None,
            membership: StoredMembership::default(),
            bytes_since_snapshot: 0,
            generation: 0,
        };
        let (applied, _) = watch::channel(None);
        let state = Mutex::new(state);
        let (applied_batches, applied_us) = Default::default();
        let marks = Marks::new();
        let shared = Shared { state, applied, store, streams, marks, witness, applied_batches, applied_us };
        Machine(Arc::new(shared))
    }

    /// Reads the table between two batches.
    ///
    /// Cancel safe. `read` runs under the table's lock: it must be short, and must not block.
    pub async fn read<T>(&self, read: impl FnOnce(&LockTable) -> T) -> T {
        let mut applied = self.0.applied.subscribe();
        loop {
            {
                let state = self.lock();
                if !state.table.in_batch() {
                    return read(&state.table);
                }
                applied.mark_unchanged();
            }
            // The batch ends with a change of `applied`; the sender lives as long as `self`.
            let _ = applied.changed().await;
        }
    }

    /// What the table is right now, for the proposer and for status: never blocks on a batch, never decides anything.
    pub fn glance<T>(&self, read: impl FnOnce(&LockTable) -> T) -> T {
        read(&self.lock().table)
    }

    /// Adds what was applied and written since the node's start.
    pub fn count(&self, into: &mut v1::Counters) {
        into.applied_batches = self.0.applied_batches.load(Ordering::Relaxed);
        into.applied_us = self.0.applied_us.load(Ordering::Relaxed);
        let log = self.0.store.stats().log;
        into.flushes = log.commits;
        into.flushed_us = log.committing.as_micros() as u64;
        into.wal_bytes = log.wal_bytes;
    }

    /// The last applied log id, and its changes.
    pub fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.0.applied.subscribe()
    }

    /// Whether the applied, hence committed, membership lists a node.
    pub fn lists(&self, id: u64) -> bool {
        self.lock().membership.membership().get_node(&id).is_some()
    }

    /// What the table came to at certain entries, here and on the leader.
    pub fn marks(&self) -> &Marks {
        &self.0.marks
    }

    /// Log bytes applied since the last snapshot.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.lock().bytes_since_snapshot
    }

    pub(super) fn writer(&self) -> MachineWriter {
        MachineWriter(self.clone())
    }

    pub(super) fn store(&self) -> &Store {
        &self.0.store
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Poisoned: a panic while applying. The process aborts on panic in release; in tests others may go on.
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A check looks at the whole table: a small one is checked after every batch, a large one now and then.
    #[cfg(debug_assertions)]
    fn is_to_be_checked(&self, index: u64) -> bool {
        const SMALL_LOCKS: u64 = 200;
        const NOW_AND_THEN: u64 = 64;
        index.is_multiple_of(NOW_AND_THEN) || self.glance(|table| table.counts().locks <= SMALL_LOCKS)
    }

    /// One chunk of the snapshot that was begun at `generation`. `Err`: the table was replaced meanwhile.
    pub(super) fn snapshot_chunk(&self, generation: u64) -> Result<Option<Vec<u8>>, Replaced> {
        let mut state = self.lock();
        match state.generation == generation {
            true => Ok(state.table.snapshot_step(SNAPSHOT_STEP_RECORDS)),
            false => Err(Replaced),
        }
    }

    pub(super) fn snapshot_abort(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.table.snapshot_abort();
        }
    }
}

/// The table that a snapshot was being taken of is no longer the node's.
pub(super) struct Replaced;

/// openraft's side of the table.
pub struct MachineWriter(Machine);

impl MachineWriter {
    async fn apply_batch(&mut self, id: LogId, bytes: &[u8]) -> io::Result<()> {
        let mut batch = Batch::decode(bytes).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("log entry {id} is no batch of the lock table: {error}"),
            )
        })?;
        if planted::is("wall-clock-in-apply") {
            batch.dt_ms += crate::clock::wall_micros() % 3;
        }
        let stamp = batch.stamp;
        let awaited = self.0.0.streams.expects(stamp);
        let (budget, mut offers) = if awaited { (STEP_BUDGET, false) } else { (STEP_BUDGET_UNAWAITED, true) };
        // Each command has one outcome; events are few.
        let mut outputs: Vec<Output> = Vec::with_capacity(batch.commands.len());
        let machine = &self.0;
        {
            let mut state = machine.lock();
            state.bytes_since_snapshot += bytes.len() as u64;
            state.table.begin(batch).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!(
                        "log entry {id}: {error}; this server is too old for the cluster's log: upgrade it"
                    ),
                )
            })?;
        }
        loop {
            {
                let mut state = machine.lock();
                if state.table.step(budget, &mut outputs) {
                    // With what was asked, the hash also tells apart tables that gave the same answers.
                    state.table.mark_trail(&[id.index, crc32c::crc32c(bytes).into()]);
                    // Under the table's lock, so that no reader is ahead of what the streams were told.
                    machine.0.streams.deliver(stamp, outputs);
                    break;
                }
            }
            tokio::task::yield_now().await;
            offers = offers && offer_processor(OFFER_LIMIT);
        }
        #[cfg(debug_assertions)]
        if machine.is_to_be_checked(id.index)
            && let Err(broken) = machine.lock().table.check()
        {
            panic!("the lock table broke an invariant at log entry {id}: {broken}");
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for MachineWriter {
    type SnapshotData = SnapshotRef;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.0.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id();
            let mut applied = None;
            match entry.payload {
                Payload::Blank => {}
                Payload::Normal(batch) => {
                    let began = Instant::now();
                    self.apply_batch(id, &batch.0).await?;
                    self.0.0.applied_batches.fetch_add(1, Ordering::Relaxed);
                    self.0.0.applied_us.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                    applied = Some(batch.0);
                }
                Payload::Membership(members) => {
                    self.0.lock().membership = StoredMembership::new(Some(id), members);
                }
            }
            let trail = {
                let mut state = self.0.lock();
                state.applied = Some(id);
                let trail = state.table.trail();
                if let Some(witness) = &self.0.0.witness {
                    let (term, leader) = (id.leader_id.term, id.leader_id.node_id);
                    witness.applied(&Applied {
                        index: id.index,
                        term,
                        leader,
                        batch: applied.as_deref(),
                        trail,
                    });
                }
                trail
            };
            if id.index.is_multiple_of(MARK_EVERY) {
                self.0.0.marks.applied(id.index, trail);
            }
            self.0.0.applied.send_replace(Some(id));
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        let mut state = self.0.lock();
        state
            .table
            .snapshot_begin()
            .expect("openraft calls this between two applies, so no batch is half done");
        state.bytes_since_snapshot = 0;
        let last_membership = match planted::is("snapshot-without-membership") {
            true => StoredMembership::default(),
            false => state.membership.clone(),
        };
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership };
        Some(SnapshotBuilder::new(self.0.clone(), state.generation, meta))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.try_create_snapshot_builder(true).await.expect("never refused")
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotRef) -> io::Result<()> {
        let store = self.0.store().clone();
        let described = codec::snapshot_meta(&snapshot.id, meta, snapshot.chunks, snapshot.bytes);
        if !snapshot.store.is(&store) {
            super::snapshot::copy_into(&store, &snapshot, &described).await?;
        }
        let mut restore = Restore::new();
        for seq in 0..snapshot.chunks {
            let chunk = store.read_chunk(&snapshot.id, seq).await.map_err(io::Error::other)?;
            restore.push(&chunk).map_err(|error| corrupt(&snapshot, seq, &error))?;
            tokio::task::yield_now().await;
        }
        let table = restore.finish().map_err(|error| corrupt(&snapshot, snapshot.chunks, &error))?;
        if store.current_snapshot().is_none_or(|current| current.id != snapshot.id) {
            super::snapshot::make_current(&store, &described).await?;
        }
        let mut state = self.0.lock();
        state.generation += 1;
        state.table = table;
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.bytes_since_snapshot = 0;
        if let (Some(witness), Some(last)) = (&self.0.0.witness, &meta.last_log_id) {
            witness.installed(last.index, state.table.trail());
        }
        self.0.0.marks.forget_own();
        self.0.0.applied.send_replace(meta.last_log_id);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        super::snapshot::current(self.0.store())
    }
}

fn corrupt(snapshot: &SnapshotRef, seq: u64, error: &lock_table::DecodeError) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("snapshot {} cannot be read at chunk {seq}: {error}; replace this node", snapshot.id),
    )
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use lock_table::{Command, Limits, Metadata, Mode, Name, Owner, Settings, Token, Ttl};
    use openraft::RaftSnapshotBuilder;

    use super::*;
    use crate::raft::types::LeaderId;
    use crate::store::StoreOptions;

    /// More than one chunk of a snapshot.
    const LOCKS: usize = 3 * SNAPSHOT_STEP_RECORDS;

    /// A machine with `count` locks of `owner`, as if the entry at `index` had been applied.
    fn machine(dir: &std::path::Path, owner: &str, count: usize, index: u64) -> Machine {
        let options = StoreOptions { allow_volatile: true, ..StoreOptions::new(dir) };
        let store = Store::open(options).expect("a fresh store opens");
        let machine = Machine::new(store, Default::default(), None);
        let settings = Settings { limits: Limits::standard(), voters: 3 };
        let mut commands = vec![Command::Configure { settings, token_start: Token::new(0) }];
        commands.extend((0..count).map(|number| Command::UnaryLock {
            owner: Owner::new(owner).expect("a good owner"),
            name: Name::new(&format!("k{number}")).expect("a good name"),
            request_id: None,
            ttl: Ttl::new(60_000),
            wait_ms: 0,
            mode: Mode::Exclusive,
            metadata: Metadata::default(),
        }));
        {
            let mut state = machine.lock();
            state.table.begin(Batch { commands, ..Batch::new(0) }).expect("known rules");
            while !state.table.step(usize::MAX, &mut Vec::new()) {}
            state.applied = Some(LogId::new(LeaderId { term: 1, node_id: 1 }, index));
        }
        machine
    }

    async fn snapshot_of(machine: &Machine) -> Snapshot {
        machine.writer().get_snapshot_builder().await.build_snapshot().await.expect("built")
    }

    #[tokio::test]
    async fn a_snapshot_that_arrives_while_one_is_taken_wins() {
        let (ours_dir, theirs_dir) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("one"));
        let theirs = machine(theirs_dir.path(), "leader", 3, 90);
        let received = snapshot_of(&theirs).await;
        for steps in [0, 1, 2, 5] {
            let dir = ours_dir.path().join(steps.to_string());
            let ours = machine(&dir, "old", LOCKS, 10);
            let mut builder = ours.writer().get_snapshot_builder().await;
            let mut build = Box::pin(builder.build_snapshot());
            // So far, and no further: at each step it waits for the disk.
            for _ in 0..steps {
                let polled = build.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending(), "a build of several chunks is under way");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let (meta, snapshot) = (received.meta.clone(), received.snapshot.clone());
            ours.writer().install_snapshot(&meta, snapshot).await.expect("installed");
            let built = build.await.expect("no error");
            drop(builder);

            assert_eq!(built.meta, received.meta, "after {steps} steps the newer one is the answer");
            let current = ours.writer().get_current_snapshot().await.expect("readable").expect("there");
            assert_eq!((current.meta, current.snapshot.id), (built.meta, built.snapshot.id));
            assert!(ours.glance(|table| *table == theirs.lock().table), "the table is the leader's");
            // And the next one is of that table.
            let next = snapshot_of(&ours).await;
            assert_eq!(next.meta.last_log_id.map(|id| id.index), Some(90));
        }
    }
}
