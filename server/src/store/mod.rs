//! The store: what a node must still know after the power was cut. It keeps bytes and knows nothing of Raft or locks.
//!
//! Two SQLite files in one folder, each with one connection and one writer: `raft.db` (log, vote, small values, which
//! snapshot is current) and `snapshots.db`. SQLite is named only in here.
//!
//! # The way of an append
//!
//! [`Store::append`] (`log.rs`) puts the rows into the memory tail (`tail.rs`), where they are readable at once, and
//! queues them (`writer.rs`). The writer takes everything that waits into one transaction (`batch.rs`, `log_desk.rs`),
//! commits, which syncs the WAL, and then tells those who wait, in their order. A snapshot goes the same way through
//! the other file (`snapshots.rs`, `snapshot_desk.rs`).
//!
//! # What holds
//!
//! - Nothing is acknowledged before COMMIT returned.
//! - Vote, append, cut, floor and snapshot pointer go through one queue: the disk has a prefix of what was called.
//! - The log on disk has no hole, after any crash. At start every living row is read and checked (`scan.rs`); what
//!   does not fit is refused, never repaired.
//! - The first failure is the last (`poison.rs`): the store answers every call with it and writes nothing more. It
//!   does not retry, and does not end the process: [`Store::poisoned`] tells the node.
//! - Only [`Store::close`] writes at the end. A store that is dropped or [abandoned](Store::abandon) leaves its files as
//!   a crash would.
//!
//! # What is absent
//!
//! No clock, no randomness, no retry, no option to sync less. Under simulation the VFS is `simdisk` and the writer runs
//! in the caller; everything between is production's.

mod batch;
mod connect;
mod error;
mod log;
mod log_desk;
mod options;
mod place;
mod poison;
mod row;
mod scan;
mod schema;
pub mod simdisk;
mod snapshot_desk;
mod snapshot_rows;
mod snapshots;
mod space;
mod tail;
mod writer;

pub use error::StoreError;
pub use options::{CACHE_BYTES, StoreOptions, Writer};
pub use space::{DiskSpace, FreeSpace, Space, SpaceGauge, Watermarks};
pub use writer::Valve;

use batch::{Core, Counters};
use bytes::Bytes;
use connect::{Opened, connect};
use log_desk::LogDesk;
use place::Place;
use poison::Poison;
use rusqlite::Connection;
use scan::Memory;
use snapshot_desk::SnapshotDesk;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use writer::Writer as FileWriter;

/// Told once, from the writer: Ok after COMMIT, or the error that ended the store. Keep it short; it may call the store
/// but must not wait for it.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What one read of the log for a peer should ask for: the peer port takes 8 MiB, and two fill a fast network well.
pub const READ_BYTES_MAX: usize = 2 << 20;

/// The largest row of a snapshot: a transfer acknowledges by rows, and a bigger one would hold up its neighbours.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The largest log entry. Ours are at most 1 MiB; the rest is room for what wraps them. The peer port takes 8 MiB.
pub const ENTRY_BYTES_MAX: usize = 8 << 20;

/// Up to where the log was purged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    /// The last index that is gone.
    pub index: u64,
    /// What the caller keeps with it.
    pub data: Bytes,
}

/// Where the log begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Up to where it was purged, if ever.
    pub floor: Option<Floor>,
    /// Its last entry; None if it has no entry, whatever was purged.
    pub last: Option<u64>,
}

/// Which snapshot is current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPointer {
    /// Its id in `snapshots.db`.
    pub id: String,
    /// The last index that it covers, if any.
    pub covers: Option<u64>,
    /// What the caller keeps with it.
    pub meta: Bytes,
}

/// What there is of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// What the caller gave when it began.
    pub meta: Bytes,
    /// How many chunks are on disk.
    pub chunks: u64,
    /// Their bytes: the offset at which a transfer goes on.
    pub bytes: u64,
    /// Whether it is whole.
    pub finished: bool,
}

/// Counts since open, for metrics and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// `raft.db`.
    pub log: FileStats,
    /// `snapshots.db`.
    pub snapshots: FileStats,
}

/// Counts of one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileStats {
    /// Transactions.
    pub commits: u64,
    /// Calls that were answered from the file; more than `commits` where they shared a transaction.
    pub jobs: u64,
    /// Checkpoints between batches.
    pub checkpoints: u64,
    /// How long the commits took, in all: writing and flushing.
    pub committing: Duration,
    /// What they wrote to the write-ahead log.
    pub wal_bytes: u64,
}

/// An open store. Cheap to clone; the last clone that goes leaves the files as a crash would.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// Never held across a wait. Lock order: memory, then a writer's queue.
    memory: Arc<Mutex<Memory>>,
    log: FileWriter<LogDesk>,
    snapshots: FileWriter<SnapshotDesk>,
    /// Room for appends that wait for the disk, in bytes.
    room: Arc<Semaphore>,
    poison: Arc<Poison>,
    place: Place,
    log_counters: Arc<Counters>,
    snapshot_counters: Arc<Counters>,
}

impl Store {
    /// Opens the folder, makes it if it is absent, and checks everything that the store relies on.
    ///
    /// Reads the whole log, so it blocks: call it before the runtime runs, or on a blocking thread. On an error the
    /// files are as they were, but for what a crash in here would leave.
    pub fn open(options: StoreOptions) -> Result<Self, StoreError> {
        let place = Place::prepare(&options)?;
        let poison = Poison::new();
        let (log_counters, snapshot_counters) = (Arc::default(), Arc::default());

        let db = open_file(&schema::RAFT, &options, &place)?;
        let (memory, desk) = scan::scan(&db, options.cache_bytes)?;
        let core = Core::new(db, desk, Arc::clone(&poison), Arc::clone(&log_counters))?;

        let db = open_file(&schema::SNAPSHOTS, &options, &place)?;
        let desk = SnapshotDesk::open(&db, memory.pointer.as_ref().map(|p| p.id.as_str()))?;
        let snapshot_core = Core::new(db, desk, Arc::clone(&poison), Arc::clone(&snapshot_counters))?;

        place.sync_names()?;
        place.make_ballast(options.ballast_bytes);
        let inner = Inner {
            memory: Arc::new(Mutex::new(memory)),
            log: FileWriter::start(core, Arc::clone(&poison), options.writer.clone())?,
            snapshots: FileWriter::start(snapshot_core, Arc::clone(&poison), options.writer)?,
            room: Arc::new(Semaphore::new(log::WAITING_BYTES_MAX)),
            poison,
            place,
            log_counters,
            snapshot_counters,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Turns to the first cause when the disk failed, and stays there. The node then stops serving and ends.
    pub fn poisoned(&self) -> watch::Receiver<Option<StoreError>> {
        self.inner.poison.subscribe()
    }

    /// The space of the data folder's file system, for a [`SpaceGauge`].
    pub fn space(&self) -> Result<Space, StoreError> {
        self.inner.place.space()
    }

    /// Deletes the ballast file, so that a full disk has room for a last checkpoint. `false`: there is none.
    pub fn drop_ballast(&self) -> Result<bool, StoreError> {
        self.inner.place.drop_ballast()
    }

    /// Counts since open.
    pub fn stats(&self) -> StoreStats {
        StoreStats { log: self.inner.log_counters.read(), snapshots: self.inner.snapshot_counters.read() }
    }

    /// Whether both are handles of one store.
    pub fn is(&self, other: &Store) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Finishes what waits, brings everything into the main files and closes them. Later calls are refused.
    pub async fn close(&self) -> Result<(), StoreError> {
        let snapshots = self.inner.snapshots.close().await;
        let log = self.inner.log.close().await;
        snapshots.and(log)
    }

    /// Leaves as a crash would, and lets go of the files: what waits is neither done nor answered, nothing more is
    /// written. For tests and for a simulation. Blocks for a transaction that is under way.
    pub fn abandon(&self) {
        self.inner.log.abandon();
        self.inner.snapshots.abandon();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("log", &self.log_state()).finish_non_exhaustive()
    }
}

/// Opens a file. One that was made just now is closed, synced and opened again, so that a node never votes on a file
/// whose existence is still in the air.
fn open_file(file: &schema::File, options: &StoreOptions, place: &Place) -> Result<Connection, StoreError> {
    let Opened { db, new } = connect(file, options)?;
    if !new {
        return Ok(db);
    }
    drop(db);
    place.sync_new_file(file.name)?;
    connect(file, options).map(|opened| opened.db)
}

/// Locks, also after a panic elsewhere: every step under these locks is complete or is not begun.
fn hold<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
