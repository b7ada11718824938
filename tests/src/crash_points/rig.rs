//! What the store's tests share: stores on simulated disks, and futures that need no waiting.

use bytes::Bytes;
use raftlock_server::store::simdisk::{self, Disk, Media, SharedDisk};
use raftlock_server::store::{Floor, SnapshotPointer, Store, StoreError, StoreOptions};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::world::lock;

/// The answer of a call whose writer is inline: it is there at the first poll.
#[track_caller]
pub fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("an inline writer answers before the call returns"),
    }
}

/// A simulated disk with a name of its own, gone at the end of the test.
pub struct Rig {
    pub id: String,
    pub disk: SharedDisk,
}

impl Rig {
    pub fn new() -> Self {
        Self::on(Disk::new())
    }

    pub fn on(disk: Disk) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = format!("disk-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let disk = simdisk::mount(&id, disk);
        Self { id, disk }
    }

    pub fn options(&self) -> StoreOptions {
        StoreOptions::simulated(&self.id)
    }

    pub fn open(&self) -> Result<Store, StoreError> {
        Store::open(self.options())
    }

    /// Cuts the power, and puts what is left in the machine.
    pub fn power_cut(&mut self, seed: u64, keep: u32) {
        let left = {
            let mut disk = lock(&self.disk);
            disk.kill();
            disk.crash(seed, keep)
        };
        self.boot(left);
    }

    pub fn boot(&mut self, media: Media) {
        self.disk = simdisk::mount(&self.id, Disk::boot(media));
    }

    pub fn ops(&self) -> u64 {
        lock(&self.disk).ops()
    }
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        simdisk::unmount(&self.id);
    }
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Rows with an index of their own in them, `len` bytes each.
pub fn rows(range: std::ops::Range<u64>, len: usize) -> Vec<(u64, Bytes)> {
    range.map(|i| (i, Bytes::from(format!("{i:0len$}")))).collect()
}

pub fn floor(index: u64) -> Floor {
    Floor { index, data: bytes(&format!("log id {index}")) }
}

pub fn pointer(id: &str, covers: u64) -> SnapshotPointer {
    SnapshotPointer { id: id.to_owned(), covers: Some(covers), meta: bytes("meta") }
}

/// What `done` callbacks said, in their order.
#[derive(Clone, Default)]
pub struct Said(Arc<Mutex<Vec<(&'static str, bool)>>>);

impl Said {
    pub fn tell(&self, what: &'static str) -> raftlock_server::store::Done {
        let said = self.clone();
        Box::new(move |reply| lock(&said.0).push((what, reply.is_ok())))
    }

    pub fn so_far(&self) -> Vec<(&'static str, bool)> {
        lock(&self.0).clone()
    }
}

/// Appends and forgets the answer.
#[track_caller]
pub fn append(store: &Store, rows: Vec<(u64, Bytes)>) {
    now(store.append(rows, Box::new(|reply| reply.expect("the disk is well")))).expect("rows in order");
}

/// Makes a finished snapshot of one chunk, and makes it current.
#[track_caller]
pub fn snapshot_up_to(store: &Store, id: &str, covers: u64) {
    now(store.begin_snapshot(id, bytes("meta"))).unwrap();
    now(store.append_chunk(id, 0, bytes("state"))).unwrap();
    now(store.finish_snapshot(id)).unwrap();
    now(store.switch_snapshot(pointer(id, covers), None)).unwrap();
}

/// All of the log of a store that is well.
#[track_caller]
pub fn whole_log(store: &Store) -> Vec<(u64, Bytes)> {
    log_in_bites(store).expect("a readable log")
}

/// All of the log, read in small bites.
pub fn log_in_bites(store: &Store) -> Result<Vec<(u64, Bytes)>, StoreError> {
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let bite = now(store.read_range(from..u64::MAX, 3000))?;
        let Some((last, _)) = bite.last() else {
            return Ok(all);
        };
        from = last + 1;
        all.extend(bite);
    }
}
