//! What a power cut and a failing disk do to a store, case by case. Every crash point of random histories is walked in
//! `raftlock_tests::crash_points`, whose rig this uses.

use raftlock_server::store::simdisk::{Disk, Event, Fault};
use raftlock_server::store::{Store, StoreError, StoreOptions, Writer};
use raftlock_tests::crash_points::rig::*;

/// Random histories are too small to pass the WAL's size bound, so this one does nothing else.
#[test]
fn a_power_cut_during_a_checkpoint_and_the_overwriting_of_the_wal_loses_nothing() {
    let mut rig = Rig::new();
    let store = rig.open().unwrap();
    let row = |i: u64| vec![(i, bytes::Bytes::from(vec![i as u8; 1 << 20]))];
    (0..7).for_each(|i| append(&store, row(i)));
    // All is at rest after a commit, so this is the disk as it is.
    let mut media = rig.disk.lock().unwrap().crash(0, 0);
    rig.disk.lock().unwrap().record();
    for i in 7..10 {
        append(&store, row(i));
        rig.disk.lock().unwrap().mark(i + 1);
    }
    assert_eq!(store.stats().log.checkpoints, 1, "the eighth passed the bound");
    let trace = rig.disk.lock().unwrap().take_trace();
    store.abandon();

    let (mut told, mut images) = (7, 0);
    let every = trace.len() / 60;
    for (at, event) in trace.into_iter().enumerate() {
        let marked = matches!(event, Event::Mark(_) | Event::Sync(_));
        match event {
            Event::Mark(note) => told = note,
            change => media.push(change),
        }
        if marked || at % every == 0 {
            rig.boot(media.crash(at as u64, [0, 50, 100][at % 3]));
            let store = rig.open().unwrap_or_else(|e| panic!("event {at}: {e}"));
            let len = store.log_state().last.unwrap() + 1;
            assert!(len == told || len == told + 1, "event {at}: {len} rows, {told} told");
            images += 1;
        }
    }
    assert!(images > 50);
}

/// SQLite reads a WAL up to its first bad frame. What a checkpoint has copied must not be there any more by then: older
/// pages over newer ones of the main file would be a state that never was.
#[test]
fn a_damaged_wal_is_never_read_over_newer_pages() {
    let copied_at_a_start: fn(&Rig) = |rig| {
        let store = rig.open().unwrap();
        (0..40).for_each(|i| append(&store, rows(i..i + 1, 900)));
        store.abandon();
        rig.open().unwrap().abandon();
    };
    let copied_because_it_was_long: fn(&Rig) = |rig| {
        let store = rig.open().unwrap();
        (0..8).for_each(|i| append(&store, vec![(i, bytes::Bytes::from(vec![i as u8; 1 << 20]))]));
        assert_eq!(store.stats().log.checkpoints, 1, "the eighth passed the bound");
        store.abandon();
    };
    for (what, history) in [("start", copied_at_a_start), ("length", copied_because_it_was_long)] {
        let mut rig = Rig::new();
        history(&rig);
        let mut whole = rig.disk.lock().unwrap().crash(0, 100);
        rig.boot(whole.clone());
        let store = rig.open().unwrap();
        let expected = whole_log(&store);
        store.abandon();
        let len = whole.file_mut("raft.db-wal").unwrap().len();
        for byte in (40..len).step_by(len / 97) {
            let mut media = whole.clone();
            media.file_mut("raft.db-wal").unwrap()[byte] ^= 1;
            rig.boot(media);
            let store = rig.open().unwrap_or_else(|e| panic!("{what}, byte {byte}: {e}"));
            assert!(whole_log(&store) == expected, "{what}, byte {byte} of the WAL: another log");
            store.abandon();
        }
    }
}

#[test]
fn a_failed_checkpoint_ends_the_store_after_the_answers() {
    let row = |i: u64| vec![(i, bytes::Bytes::from(vec![i as u8; 1 << 20]))];
    let calls = |rig: &Rig, store: &Store| {
        (0..7).for_each(|i| append(store, row(i)));
        let before = rig.ops();
        append(store, row(7));
        (before, rig.ops())
    };
    let (_, last) = {
        let rig = Rig::new();
        calls(&rig, &rig.open().unwrap())
    };
    let mut rig = Rig::new();
    let store = rig.open().unwrap();
    rig.disk.lock().unwrap().fail_at(last, Fault::Eio);
    calls(&rig, &store);
    assert_eq!(store.stats().log.checkpoints, 1);
    assert!(store.poisoned().borrow().is_some(), "the answer was given, the store is at its end");
    rig.power_cut(1, 0);
    assert_eq!(rig.open().unwrap().log_state().last, Some(7));
}

#[test]
fn a_failed_sync_is_not_tried_again() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..1, 10));
    let before = rig.ops();
    append(&store, rows(1..2, 10));
    // The last call of a commit is the sync of the WAL.
    let sync = rig.ops() + (rig.ops() - before);
    rig.disk.lock().unwrap().fail_at(sync, Fault::Eio);
    let said = Said::default();
    now(store.append(rows(2..3, 10), said.tell("a"))).unwrap();
    assert_eq!(said.so_far(), [("a", false)]);
    assert_eq!(rig.ops(), sync, "nothing came after the failed sync");
    assert!(matches!(*store.poisoned().borrow(), Some(StoreError::Io { .. })));
    // The WAL holds the frames, and its sync would now say that all is well.
    drop(store);
    assert_eq!(rig.ops(), sync);
}

#[test]
fn a_read_error_ends_the_store_too() {
    let rig = Rig::new();
    let options = StoreOptions { cache_bytes: 0, ..rig.options() };
    let store = Store::open(options.clone()).unwrap();
    for i in 0..600 {
        append(&store, rows(i..i + 1, 8000));
    }
    now(store.close()).unwrap();
    let store = Store::open(options).unwrap();
    let reads = rig.disk.lock().unwrap().reads();
    rig.disk.lock().unwrap().fail_read_at(reads + 1);
    let answer = now(store.read_range(0..600, usize::MAX));
    assert!(matches!(answer, Err(StoreError::Poisoned(_))), "{answer:?}");
    assert!(store.poisoned().borrow().is_some());
}

#[tokio::test]
async fn a_node_that_waits_for_it_hears_of_a_failure_in_a_thread() {
    let rig = Rig::new();
    let options = StoreOptions { writer: Writer::Thread, ..rig.options() };
    let store = Store::open(options).unwrap();
    let mut poisoned = store.poisoned();
    let ops = rig.ops();
    rig.disk.lock().unwrap().fail_at(ops + 1, Fault::Eio);
    let said = Said::default();
    store.append(rows(0..1, 10), said.tell("a")).await.unwrap();
    poisoned.changed().await.unwrap();
    assert!(matches!(store.save_vote(bytes("late")).await, Err(StoreError::Poisoned(_))));
    assert!(matches!(store.close().await, Err(StoreError::Poisoned(_))));
    store.abandon();
    assert_eq!(said.so_far(), [("a", false)]);
    assert_eq!(rig.ops(), ops + 1);
}

#[test]
fn one_disk_one_fate_a_failed_snapshot_stops_the_log() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    now(store.begin_snapshot("s", bytes("meta"))).unwrap();
    let ops = rig.ops();
    rig.disk.lock().unwrap().fail_at(ops + 1, Fault::Enospc);
    assert!(now(store.append_chunk("s", 0, bytes("x"))).is_err());
    assert!(matches!(*store.poisoned().borrow(), Some(StoreError::DiskFull { file: "snapshots.db", .. })));
    assert!(matches!(now(store.save_vote(bytes("v"))), Err(StoreError::Poisoned(_))));
}

#[test]
fn a_store_that_is_left_or_dropped_writes_nothing() {
    for leave in [Store::abandon, |store: &Store| drop(store.clone())] {
        let mut rig = Rig::new();
        let store = rig.open().unwrap();
        append(&store, rows(0..3, 10));
        let ops = rig.ops();
        leave(&store);
        drop(store);
        assert_eq!(rig.ops(), ops, "a connection that is dropped would checkpoint and delete the WAL");
        rig.power_cut(1, 0);
        assert_eq!(whole_log(&rig.open().unwrap()), rows(0..3, 10));
    }
}

#[test]
fn the_simulated_disk_forgets_what_was_not_synced() {
    let mut rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..1, 10));
    // A disk that never held anything back would make every test here vacuous.
    let ops = rig.ops();
    rig.disk.lock().unwrap().fail_at(ops + 2, Fault::PowerCut);
    now(store.append(rows(1..2, 5000), Box::new(|reply| assert!(reply.is_err())))).unwrap();
    rig.power_cut(1, 0);
    assert_eq!(whole_log(&rig.open().unwrap()), rows(0..1, 10));
    assert!(Disk::new().file("raft.db").is_none());
}
