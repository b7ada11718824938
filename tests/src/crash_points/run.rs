//! Running a script on a store, and knowing at each moment which versions may be on disk.

use super::rig::{bytes, now};
use super::script::{Op, Script};
use crate::world::lock;
use bytes::Bytes;
use raftlock_server::store::simdisk::SharedDisk;
use raftlock_server::store::{Store, StoreError};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

/// How far a run came. Version `v` is asked for with mark `2 v`, told with `2 v + 1`.
#[derive(Clone)]
pub struct Progress {
    disk: SharedDisk,
    asked: Arc<AtomicU64>,
    told: Arc<AtomicU64>,
}

impl Progress {
    pub fn new(disk: SharedDisk) -> Self {
        Self { disk, asked: Arc::default(), told: Arc::default() }
    }

    fn ask(&self, version: u64) {
        self.asked.fetch_max(version, Ordering::Relaxed);
        lock(&self.disk).mark(2 * version);
    }

    fn tell(&self, version: u64) {
        self.told.fetch_max(version, Ordering::Relaxed);
        lock(&self.disk).mark(2 * version + 1);
    }

    /// The versions that may be on disk.
    pub fn possible(&self) -> std::ops::RangeInclusive<usize> {
        self.told.load(Ordering::Relaxed) as usize..=self.asked.load(Ordering::Relaxed) as usize
    }
}

/// Runs the script on a store until its end or its first error; gives back the store it ended with.
pub fn run(
    script: &Script,
    progress: &Progress,
    open: impl Fn() -> Result<Store, StoreError>,
) -> (Option<Store>, Result<(), StoreError>) {
    let mut store = match open() {
        Ok(store) => store,
        Err(e) => return (None, Err(e)),
    };
    for (version, op) in &script.ops {
        let version = *version;
        if !matches!(op, Op::Group(..)) {
            progress.ask(version);
        }
        let done = match op {
            Op::Close | Op::Leave => {
                let closed = if matches!(op, Op::Close) { now(store.close()) } else { Ok(()) };
                if let Err(e) = closed {
                    return (Some(store), Err(e));
                }
                store.abandon();
                match open() {
                    Ok(new) => {
                        store = new;
                        Ok(())
                    }
                    Err(e) => return (None, Err(e)),
                }
            }
            op => perform(&store, op, version, progress),
        };
        match done {
            Ok(()) => progress.tell(version),
            Err(e) => return (Some(store), Err(e)),
        }
    }
    (Some(store), Ok(()))
}

fn perform(store: &Store, op: &Op, version: u64, progress: &Progress) -> Result<(), StoreError> {
    match op {
        Op::Append(rows) => append(store, rows, version, progress),
        Op::Truncate(from) => now(store.truncate_from(*from)),
        Op::Vote(vote) => now(store.save_vote(vote.clone())),
        Op::Put(name, value) => now(store.put_value(name, value.clone())),
        Op::Committed(index) => store.set_committed(index.clone()),
        Op::Purge(floor) => store.purge(floor.clone()),
        Op::Switch(pointer, floor) => now(store.switch_snapshot(pointer.clone(), floor.clone())),
        Op::Keep(ids) => now(store.keep_snapshots(ids)),
        Op::Snapshot(id, chunks) => {
            now(store.begin_snapshot(id, bytes("meta")))?;
            for (seq, chunk) in (0..).zip(chunks) {
                now(store.append_chunk(id, seq, chunk.clone()))?;
            }
            now(store.finish_snapshot(id)).map(drop)
        }
        Op::Group(first, rest) => group(store, first, rest, version, progress),
        Op::Close | Op::Leave => unreachable!("the runner does these"),
    }
}

/// Tells of the version from inside the answer: that is when a caller acts on it.
fn append(store: &Store, rows: &[(u64, Bytes)], version: u64, progress: &Progress) -> Result<(), StoreError> {
    let (told, answer) = std::sync::mpsc::channel();
    let progress = progress.clone();
    let done = Box::new(move |reply: Result<(), StoreError>| {
        if reply.is_ok() {
            progress.tell(version);
        }
        told.send(reply).expect("the caller waits");
    });
    now(store.append(rows.to_vec(), done))?;
    answer.recv().expect("an inline writer has answered")
}

/// Queues the rest from inside the answer of the first append: version - 1, then version.
fn group(
    store: &Store,
    first: &[(u64, Bytes)],
    rest: &[Op],
    version: u64,
    progress: &Progress,
) -> Result<(), StoreError> {
    let (tell, told) = std::sync::mpsc::channel();
    let (inner, rest, theirs) = (store.clone(), rest.to_vec(), progress.clone());
    let done = Box::new(move |reply: Result<(), StoreError>| {
        if let Err(e) = reply {
            return drop(tell.send(Err(e)));
        }
        theirs.tell(version - 1);
        theirs.ask(version);
        for op in rest {
            match op {
                Op::Append(rows) => {
                    let (tell, progress) = (tell.clone(), theirs.clone());
                    let done = Box::new(move |reply: Result<(), StoreError>| {
                        if reply.is_ok() {
                            progress.tell(version);
                        }
                        drop(tell.send(reply));
                    });
                    now(inner.append(rows, done)).expect("rows in order");
                }
                Op::Truncate(from) => poll_once(inner.truncate_from(from)),
                Op::Vote(vote) => poll_once(inner.save_vote(vote)),
                other => unreachable!("{other:?} is not put into groups"),
            }
        }
    });
    progress.ask(version - 1);
    now(store.append(first.to_vec(), done))?;
    told.try_iter().collect()
}

/// Queues what the future asks for. Its answer comes later, to nobody.
fn poll_once<T>(future: impl Future<Output = T>) {
    let pending = pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending();
    assert!(pending, "it is queued behind the transaction under way");
}
