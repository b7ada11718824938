//! Snapshots: whole or absent, beside the log and not in its way.

use bytes::Bytes;
use raftlock_server::store::simdisk::Fault;
use raftlock_server::store::{CHUNK_BYTES_MAX, Store, StoreError, StoreOptions};
use raftlock_tests::crash_points::rig::*;

fn chunk(seq: u64, len: usize) -> Bytes {
    Bytes::from(vec![seq as u8; len])
}

/// Begins a snapshot and gives it `chunks` chunks.
fn write(store: &Store, id: &str, chunks: u64, len: usize) {
    now(store.begin_snapshot(id, bytes("meta"))).unwrap();
    for seq in 0..chunks {
        now(store.append_chunk(id, seq, chunk(seq, len))).unwrap();
    }
}

#[test]
fn a_finished_and_current_snapshot_survives_a_power_cut() {
    let mut rig = Rig::new();
    let store = rig.open().unwrap();
    write(&store, "s", 3, CHUNK_BYTES_MAX);
    let info = now(store.finish_snapshot("s")).unwrap();
    assert_eq!((info.chunks, info.bytes, info.finished), (3, 3 << 20, true));
    assert_eq!(now(store.finish_snapshot("s")).unwrap(), info, "twice is fine");
    now(store.switch_snapshot(pointer("s", 7), None)).unwrap();
    rig.power_cut(1, 0);
    let store = rig.open().unwrap();
    assert_eq!(store.current_snapshot(), Some(pointer("s", 7)));
    assert_eq!(now(store.snapshot("s")).unwrap(), Some(info));
    for seq in 0..3 {
        assert_eq!(now(store.read_chunk("s", seq)).unwrap(), chunk(seq, CHUNK_BYTES_MAX));
    }
    assert!(matches!(now(store.read_chunk("s", 3)), Err(StoreError::Missing { .. })));
    assert!(store.poisoned().borrow().is_none());
}

#[test]
fn an_older_snapshot_never_takes_the_place_of_a_newer_one() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    for (id, covers) in [("installed", 100), ("built", 7)] {
        write(&store, id, 1, 100);
        now(store.finish_snapshot(id)).unwrap();
        now(store.switch_snapshot(pointer(id, covers), None)).unwrap();
        assert_eq!(store.current_snapshot(), Some(pointer("installed", 100)));
    }
    now(store.close()).unwrap();
    assert_eq!(rig.open().unwrap().current_snapshot(), Some(pointer("installed", 100)));
}

#[test]
fn an_unfinished_one_goes_on_in_the_same_run_and_is_swept_at_the_next() {
    let mut rig = Rig::new();
    let store = rig.open().unwrap();
    write(&store, "s", 2, 100);
    let info = now(store.begin_snapshot("s", bytes("meta"))).unwrap();
    assert_eq!((info.chunks, info.bytes, info.finished), (2, 200, false));
    rig.power_cut(1, 100);
    let store = rig.open().unwrap();
    assert_eq!(now(store.snapshot("s")).unwrap(), None);
    let info = now(store.begin_snapshot("s", bytes("meta"))).unwrap();
    assert_eq!(info.chunks, 0);
    now(store.append_chunk("s", 0, bytes("other"))).unwrap();
    now(store.finish_snapshot("s")).unwrap();
    now(store.close()).unwrap();
    assert_eq!(now(rig.open().unwrap().read_chunk("s", 0)).unwrap(), bytes("other"));
}

#[test]
fn a_chunk_that_is_acknowledged_is_on_disk() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    write(&store, "s", 2, 100);
    let mut left = rig.disk.lock().unwrap().crash(0, 0);
    let wal = left.file_mut("snapshots.db-wal").unwrap();
    assert!(wal.windows(100).any(|w| w == chunk(1, 100)));
}

#[test]
fn other_meta_starts_over() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    write(&store, "s", 2, 100);
    let info = now(store.begin_snapshot("s", bytes("of another leader"))).unwrap();
    assert_eq!((info.chunks, info.bytes), (0, 0));
    assert!(matches!(now(store.read_chunk("s", 0)), Err(StoreError::Missing { .. })));
}

#[test]
fn a_repeated_chunk_is_fine_and_a_wrong_one_is_refused() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    write(&store, "s", 2, 100);
    now(store.append_chunk("s", 0, chunk(0, 100))).unwrap();
    let misuse =
        |answer: Result<(), StoreError>| assert!(matches!(answer, Err(StoreError::Misuse(_))), "{answer:?}");
    misuse(now(store.append_chunk("s", 0, chunk(9, 100))));
    misuse(now(store.append_chunk("s", 3, chunk(3, 100))));
    misuse(now(store.append_chunk("s", 2, chunk(2, CHUNK_BYTES_MAX + 1))));
    misuse(now(store.append_chunk("s", u64::MAX, chunk(2, 1))));
    let missing = now(store.append_chunk("other", 0, chunk(0, 1)));
    assert!(matches!(missing, Err(StoreError::Missing { .. })), "{missing:?}");
    now(store.finish_snapshot("s")).unwrap();
    misuse(now(store.append_chunk("s", 2, chunk(2, 100))));
    assert!(store.poisoned().borrow().is_none(), "a wrong call is no disk error");
    assert_eq!(now(store.snapshot("s")).unwrap().unwrap().chunks, 2);
}

#[test]
fn only_a_finished_snapshot_that_covers_the_floor_becomes_current() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    write(&store, "s", 1, 10);
    for id in ["s", "unknown"] {
        let refused = now(store.switch_snapshot(pointer(id, 4), None));
        assert!(matches!(refused, Err(StoreError::Missing { .. })), "{refused:?}");
    }
    now(store.finish_snapshot("s")).unwrap();
    let refused = now(store.switch_snapshot(pointer("s", 4), Some(floor(5))));
    assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
    assert_eq!((store.current_snapshot(), store.log_state().floor), (None, None));
}

#[test]
fn an_install_switches_the_snapshot_and_drops_the_log_in_one_step() {
    for call in 1.. {
        let mut rig = Rig::new();
        let store = rig.open().unwrap();
        append(&store, rows(0..5, 100));
        write(&store, "s", 1, 10);
        now(store.finish_snapshot("s")).unwrap();
        let before = rig.ops();
        rig.disk.lock().unwrap().fail_at(before + call, Fault::PowerCut);
        let switched = now(store.switch_snapshot(pointer("s", 90), Some(floor(90))));
        drop(store);
        rig.power_cut(call, 50);
        let store = rig.open().unwrap();
        if switched.is_ok() || store.current_snapshot().is_some() {
            assert_eq!(store.current_snapshot(), Some(pointer("s", 90)));
            assert_eq!(store.log_state().floor, Some(floor(90)));
            assert_eq!(store.log_state().last, None);
            append(&store, rows(91..92, 10));
        } else {
            assert_eq!((store.log_state().floor, store.log_state().last), (None, Some(4)));
        }
        if switched.is_ok() {
            assert!(call > 2, "the faults have not bitten");
            return;
        }
    }
}

#[test]
fn forgotten_snapshots_are_gone_at_once_and_their_space_is_used_again() {
    let mut rig = Rig::new();
    let store = rig.open().unwrap();
    for i in 0..30 {
        let id = format!("s{i}");
        write(&store, &id, 4, CHUNK_BYTES_MAX);
        now(store.finish_snapshot(&id)).unwrap();
        now(store.switch_snapshot(pointer(&id, i), None)).unwrap();
        now(store.keep_snapshots(&[])).unwrap();
        assert!(i == 0 || now(store.snapshot(&format!("s{}", i - 1))).unwrap().is_none());
        assert!(now(store.snapshot(&id)).unwrap().is_some(), "the current one is always kept");
    }
    now(store.close()).unwrap();
    let size = rig.disk.lock().unwrap().file("snapshots.db").unwrap().len();
    assert!(size < 16 << 20, "{size} bytes for one snapshot of 4 MiB");

    // Garbage that a crash left is found and deleted in the next run.
    let store = rig.open().unwrap();
    write(&store, "partial", 4, CHUNK_BYTES_MAX);
    rig.power_cut(1, 100);
    let store = rig.open().unwrap();
    write(&store, "next", 4, CHUNK_BYTES_MAX);
    write(&store, "and next", 4, CHUNK_BYTES_MAX);
    now(store.close()).unwrap();
    let size = rig.disk.lock().unwrap().file("snapshots.db").unwrap().len();
    assert!(size < 20 << 20, "{size} bytes for three snapshots of 4 MiB");
}

#[test]
fn a_snapshot_is_written_while_the_log_commits() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    // Inside an answer the log's writer is busy; the snapshots' is not.
    let inner = store.clone();
    let done = Box::new(move |reply: Result<(), StoreError>| {
        reply.unwrap();
        write(&inner, "s", 3, 1000);
        now(inner.finish_snapshot("s")).unwrap();
    });
    now(store.append(rows(0..1, 10), done)).unwrap();
    assert!(now(store.snapshot("s")).unwrap().unwrap().finished);
}

#[tokio::test]
async fn a_writer_thread_sweeps_when_nobody_waits() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(StoreOptions::new(dir.path())).unwrap();
    for id in ["a", "b", "c"] {
        store.begin_snapshot(id, bytes("meta")).await.unwrap();
        for seq in 0..20 {
            store.append_chunk(id, seq, chunk(seq, CHUNK_BYTES_MAX)).await.unwrap();
        }
        store.finish_snapshot(id).await.unwrap();
        let before = store.stats().snapshots.commits;
        store.keep_snapshots(&[]).await.unwrap();
        // 20 rows in slices of 8, and one turn that finds nothing more.
        while store.stats().snapshots.commits < before + 1 + 4 {
            tokio::task::yield_now().await;
        }
    }
    store.close().await.unwrap();
    let size = dir.path().join("snapshots.db").metadata().unwrap().len();
    assert!(size < 22 << 20, "{size} bytes: freed pages are used again");
}
