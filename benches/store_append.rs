//! The log on disk: a batch of so many operations, which is one row, appended and committed. Beside it what the disk
//! takes for a write of as many bytes and a flush, below which no commit can be.
//!
//! The flush is measured alone, and beside two others, as three nodes on one machine have it. On a virtual disk the
//! two differ by much, and either way: one that has nothing else to do may answer at the next tick of a timer only.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raftlock_benches::folder_on_disk;
use raftlock_server::store::{Store, StoreError, StoreOptions};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Of a batch, and of each operation in it: an acquire of a name of 16 bytes.
const BATCH_BYTES: usize = 60;
const OPERATION_BYTES: usize = 40;

const OPERATIONS: [usize; 4] = [1, 16, 256, 1024];

const PAGE_BYTES: usize = 4096;

/// How many pages the file of the bare writes has.
const PAGES: usize = 256;

fn store_append(c: &mut Criterion) {
    let dir = folder_on_disk(env!("CARGO_TARGET_TMPDIR"));
    let mut group = c.benchmark_group("store_append");
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(4));

    let others: Vec<Busy> = (0..2).map(|_| Busy::start(dir.path())).collect();
    let mut pages = Pages::new(dir.path());
    group.bench_function("floor_4k_beside_two_others", |bencher| bencher.iter(|| pages.write_and_flush(1)));
    drop(others);

    let runtime = Runtime::new().expect("a runtime");
    for operations in OPERATIONS {
        let bytes = BATCH_BYTES + operations * OPERATION_BYTES;
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(BenchmarkId::new("floor_write_fdatasync", operations), |bencher| {
            bencher.iter(|| pages.write_and_flush(bytes.div_ceil(PAGE_BYTES)));
        });
        let folder = dir.path().join(format!("store-{operations}"));
        let options = StoreOptions { allow_volatile: true, ..StoreOptions::new(folder) };
        let store = Store::open(options).expect("a new store");
        let row = Bytes::from(vec![7; bytes]);
        let mut index = 0;
        group.bench_function(BenchmarkId::new("batch", operations), |bencher| {
            bencher.iter(|| {
                index += 1;
                runtime.block_on(append(&store, vec![(index, row.clone())])).expect("committed");
            });
        });
        runtime.block_on(store.close()).expect("closed");
    }
    group.finish();
}

/// A file of pages that are written over, round and round, as SQLite does in its WAL.
struct Pages {
    file: File,
    next: usize,
}

impl Pages {
    fn new(dir: &Path) -> Pages {
        let file = tempfile::tempfile_in(dir).expect("a file");
        file.write_all_at(&[1; PAGE_BYTES * PAGES], 0).expect("written");
        file.sync_all().expect("flushed");
        Pages { file, next: 0 }
    }

    fn write_and_flush(&mut self, pages: usize) {
        let first = if self.next + pages > PAGES { 0 } else { self.next };
        self.file.write_all_at(&vec![2; pages * PAGE_BYTES], (first * PAGE_BYTES) as u64).expect("written");
        self.file.sync_data().expect("flushed");
        self.next = first + pages;
    }
}

/// Another who flushes to the same disk all the time, until it is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    fn start(dir: &Path) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let mut pages = Pages::new(dir);
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                pages.write_and_flush(1);
            }
        });
        Busy { stop, thread: Some(thread) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()), "the other writer panicked");
    }
}

/// Returns when the rows are on disk.
async fn append(store: &Store, rows: Vec<(u64, Bytes)>) -> Result<(), StoreError> {
    let (done, committed) = oneshot::channel();
    let tell = move |result| {
        let _ = done.send(result);
    };
    store.append(rows, Box::new(tell)).await?;
    committed.await.expect("the store answers every append")
}

criterion_group!(benches, store_append);
criterion_main!(benches);
