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
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, TryStreamExt};
use lock_table::{Batch, LockTable, Output, Restore};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use tokio::sync::watch;

use super::Types;
use super::codec;
use super::snapshot::{SnapshotBuilder, SnapshotRef};
use super::types::{LogId, Payload, Snapshot, SnapshotMeta, StoredMembership};
use crate::store::Store;
use crate::streams::Streams;

/// How much of a batch is done before other tasks get a turn: at about a microsecond a unit, well under the few
/// milliseconds that a heartbeat can wait.
const STEP_BUDGET: usize = 2_048;

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
    pub fn new(store: Store, streams: Arc<Streams>) -> Self {
        let state = State {
            table: LockTable::new(),
            applied: None,
            membership: StoredMembership::default(),
            bytes_since_snapshot: 0,
            generation: 0,
        };
        let (applied, _) = watch::channel(None);
        Machine(Arc::new(Shared { state: Mutex::new(state), applied, store, streams }))
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

    /// The last applied log id, and its changes.
    pub fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.0.applied.subscribe()
    }

    /// Whether the applied, hence committed, membership lists a node.
    pub fn lists(&self, id: u64) -> bool {
        self.lock().membership.membership().get_node(&id).is_some()
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
        let batch = Batch::decode(bytes).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("log entry {id} is no batch of the lock table: {error}"),
            )
        })?;
        let stamp = batch.stamp;
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
        let mut outputs: Vec<Output> = Vec::new();
        loop {
            {
                let mut state = machine.lock();
                if state.table.step(STEP_BUDGET, &mut outputs) {
                    // Under the table's lock, so that no reader is ahead of what the streams were told.
                    machine.0.streams.deliver(stamp, outputs);
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        #[cfg(debug_assertions)]
        if let Err(broken) = machine.lock().table.check() {
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
            match entry.payload {
                Payload::Blank => {}
                Payload::Normal(batch) => self.apply_batch(id, &batch.0).await?,
                Payload::Membership(members) => {
                    self.0.lock().membership = StoredMembership::new(Some(id), members);
                }
            }
            self.0.lock().applied = Some(id);
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
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
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
