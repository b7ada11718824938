//! What the writer of a file does in one turn: one transaction for all that waited, then the answers, then perhaps a
//! checkpoint. The same code runs in a thread and inline; who calls it is `writer.rs`.
//!
//! Nobody is answered before COMMIT has returned, and all are answered in the order in which they asked. An error
//! ends the file: no second COMMIT, no rollback, no checkpoint, and the connection is not even dropped.

use super::connect::{checkpoint, void_old_frames};
use super::poison::Poison;
use super::{FileStats, StoreError};
use lock_table::planted;
use rusqlite::Connection;
use rusqlite::hooks::Wal;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The WAL is overwritten from its start once it holds this many frames (4 KiB each, so 8 MiB).
///
/// A checkpoint stops commits while it copies and syncs, so it must stay well below a heartbeat: 8 MiB are some ten
/// milliseconds on a disk that suits us. Smaller would sync the main file more often than needed.
const CHECKPOINT_FRAMES: i64 = 2048;

/// A page and its header.
const FRAME_BYTES: u64 = 4096 + 24;

/// The same in bytes, for whoever plans a disk's space.
pub(super) const CHECKPOINT_BYTES: u64 = CHECKPOINT_FRAMES as u64 * 4096;

/// Only a WAL of this many frames (256 MiB) is cut. Cutting costs a sync of its metadata, and growing it again one at
/// each commit; overwriting costs neither.
const TRUNCATE_FRAMES: i64 = 65_536;

/// What a file's writer can do. The log and the snapshots each have one.
pub(super) trait Desk: Send + 'static {
    /// Something that a caller waits for.
    type Work: Send;
    /// What it is answered.
    type Reply: Send;
    /// What waits for a transaction of others and never causes one.
    type Riders: Default + Send;

    /// The file, for messages.
    const FILE: &'static str;

    /// Whether the work changes the file, and so needs a transaction.
    fn writes(work: &Self::Work) -> bool;

    /// Does one piece of work. A refusal (see `StoreError::is_refusal`) answers its caller alone and has changed
    /// nothing; any other error ends the store.
    fn perform(&mut self, db: &Connection, work: Self::Work) -> Result<Self::Reply, StoreError>;

    /// Joins a transaction after its work.
    fn ride(&mut self, db: &Connection, riders: Self::Riders) -> Result<(), StoreError>;

    /// Whether there is work that nobody waits for.
    fn has_idle_work(&self) -> bool;

    /// Does a bounded slice of it.
    fn idle(&mut self, db: &Connection) -> Result<(), StoreError>;
}

/// A piece of work and whom to tell.
pub(super) struct Job<D: Desk> {
    pub(super) work: D::Work,
    pub(super) done: Box<dyn FnOnce(Result<D::Reply, StoreError>) + Send>,
}

/// Counts since open.
#[derive(Debug, Default)]
pub(super) struct Counters {
    commits: AtomicU64,
    jobs: AtomicU64,
    checkpoints: AtomicU64,
    committing_ns: AtomicU64,
    wal_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> FileStats {
        FileStats {
            commits: self.commits.load(Ordering::Relaxed),
            jobs: self.jobs.load(Ordering::Relaxed),
            checkpoints: self.checkpoints.load(Ordering::Relaxed),
            committing: Duration::from_nanos(self.committing_ns.load(Ordering::Relaxed)),
            wal_bytes: self.wal_bytes.load(Ordering::Relaxed),
        }
    }
}

/// The owner of a file's one connection.
pub(super) struct Core<D: Desk> {
    db: ManuallyDrop<Connection>,
    desk: D,
    poison: Arc<Poison>,
    counters: Arc<Counters>,
    /// In the WAL after the last commit, as SQLite says at each commit that wrote something.
    frames: Arc<AtomicI64>,
    /// The same when it was last looked at.
    frames_counted: i64,
}

impl<D: Desk> Core<D> {
    pub(super) fn new(
        mut db: Connection,
        desk: D,
        poison: Arc<Poison>,
        counters: Arc<Counters>,
    ) -> Result<Self, StoreError> {
        let frames: Arc<AtomicI64> = Arc::default();
        let told = Arc::clone(&frames);
        let hook = move |_: &mut Wal, frames| {
            told.store(i64::from(frames), Ordering::Relaxed);
            Ok(())
        };
        db.wal_hook(Some(hook)).map_err(|e| StoreError::from_sqlite(D::FILE, "watching the WAL", e))?;
        Ok(Self { db: ManuallyDrop::new(db), desk, poison, counters, frames, frames_counted: 0 })
    }

    /// Does all the work, in one transaction if `riders` came with it, and answers.
    pub(super) fn batch(&mut self, jobs: Vec<Job<D>>, riders: Option<D::Riders>) {
        let wrote = riders.is_some();
        let (works, answers): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.work, job.done)).unzip();
        match self.transact(works, riders) {
            Ok(replies) => {
                self.counters.jobs.fetch_add(replies.len() as u64, Ordering::Relaxed);
                for (done, reply) in answers.into_iter().zip(replies) {
                    done(reply);
                }
                if wrote {
                    self.checkpoint_if_due();
                }
            }
            Err(cause) => {
                let told = self.poison.set(cause);
                for done in answers {
                    done(Err(told.clone()));
                }
            }
        }
    }

    pub(super) fn has_idle_work(&self) -> bool {
        self.desk.has_idle_work() && !self.poison.is_set()
    }

    /// Does a slice of the work that nobody waits for.
    pub(super) fn idle(&mut self) {
        match self.begin().and_then(|()| self.desk.idle(&self.db)).and_then(|()| self.commit()) {
            Ok(()) => self.checkpoint_if_due(),
            Err(cause) => drop(self.poison.set(cause)),
        }
    }

    /// The clean end: the riders' last transaction, everything into the main file, an empty WAL.
    pub(super) fn close(mut self, riders: D::Riders) -> Result<(), StoreError> {
        if let Some(told) = self.poison.error() {
            return Err(told);
        }
        self.transact(Vec::new(), Some(riders))
            .and_then(|_| self.commit_late())
            .and_then(|()| checkpoint(&self.db, D::FILE, "TRUNCATE").map(drop))
            .map_err(|cause| self.poison.set(cause))
    }

    fn transact(
        &mut self,
        works: Vec<D::Work>,
        riders: Option<D::Riders>,
    ) -> Result<Vec<Result<D::Reply, StoreError>>, StoreError> {
        if let Some(told) = self.poison.error() {
            return Err(told);
        }
        if riders.is_some() {
            self.begin()?;
        }
        let mut replies = Vec::with_capacity(works.len());
        for work in works {
            match self.desk.perform(&self.db, work) {
                Err(cause) if !cause.is_refusal() => return Err(cause),
                reply => replies.push(reply),
            }
        }
        if let Some(riders) = riders {
            self.desk.ride(&self.db, riders)?;
            self.commit()?;
        }
        Ok(replies)
    }

    /// IMMEDIATE: the write lock now, not in the middle.
    fn begin(&self) -> Result<(), StoreError> {
        self.run("BEGIN IMMEDIATE")
    }

    /// With `synchronous=FULL` this returns after the WAL is synced.
    fn commit(&self) -> Result<(), StoreError> {
        if planted::is("ack-before-commit") {
            return Ok(());
        }
        let began = Instant::now();
        self.run("COMMIT")?;
        let took = began.elapsed().as_nanos() as u64;
        self.counters.committing_ns.fetch_add(took, Ordering::Relaxed);
        if !self.db.is_autocommit() {
            let what = "COMMIT returned and left its transaction open".to_owned();
            return Err(StoreError::Unfit { file: D::FILE, what });
        }
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// After the answers: planted.
    fn commit_late(&self) -> Result<(), StoreError> {
        if planted::is("ack-before-commit") && !self.db.is_autocommit() { self.run("COMMIT") } else { Ok(()) }
    }

    fn run(&self, sql: &'static str) -> Result<(), StoreError> {
        let run = || self.db.prepare_cached(sql)?.execute([]).map(drop);
        run().map_err(|e| StoreError::from_sqlite(D::FILE, sql, e))
    }

    /// Between batches, after the answers: nobody waits for it but the next batch.
    fn checkpoint_if_due(&mut self) {
        let mut run = || {
            self.commit_late()?;
            let frames = self.frames.load(Ordering::Relaxed);
            // Fewer than before: the WAL began anew.
            let before = std::mem::replace(&mut self.frames_counted, frames);
            let written = if frames < before { frames } else { frames - before };
            self.counters.wal_bytes.fetch_add(written as u64 * FRAME_BYTES, Ordering::Relaxed);
            let Some(mode) = checkpoint_mode(frames) else {
                return Ok(());
            };
            self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
            if checkpoint(&self.db, D::FILE, mode)? {
                // Only a second connection could be in the way, and locking_mode=EXCLUSIVE lets none in.
                let what = "a checkpoint met another connection".to_owned();
                return Err(StoreError::Unfit { file: D::FILE, what });
            }
            void_old_frames(&self.db, D::FILE)
        };
        if let Err(cause) = run() {
            self.poison.set(cause);
        }
    }
}

impl<D: Desk> Drop for Core<D> {
    /// Without [`Core::close`] this is how a crash leaves the file: the connection was told at open not to
    /// checkpoint when it is dropped. After an error it is not dropped at all: the file stays locked, so that nothing
    /// in this process opens it again and takes the page cache for the disk.
    fn drop(&mut self) {
        if !self.poison.is_set() {
            // SAFETY: dropped here only, and nobody uses `self.db` after `drop`.
            unsafe { ManuallyDrop::drop(&mut self.db) }
        }
    }
}

/// Which checkpoint a WAL of so many frames asks for.
fn checkpoint_mode(frames: i64) -> Option<&'static str> {
    match frames {
        TRUNCATE_FRAMES.. => Some("TRUNCATE"),
        CHECKPOINT_FRAMES.. => Some("RESTART"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wal_is_overwritten_and_cut_only_when_huge() {
        assert_eq!(checkpoint_mode(CHECKPOINT_FRAMES - 1), None);
        assert_eq!(checkpoint_mode(CHECKPOINT_FRAMES), Some("RESTART"));
        assert_eq!(checkpoint_mode(TRUNCATE_FRAMES - 1), Some("RESTART"));
        assert_eq!(checkpoint_mode(TRUNCATE_FRAMES), Some("TRUNCATE"));
    }
}
