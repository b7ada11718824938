//! The log, the vote and the values: what is readable when, what survives, in which order callers are told.

use bytes::Bytes;
use raftlock_server::store::{Store, StoreError, StoreOptions, Writer};
use raftlock_tests::crash_points::rig::*;
use std::sync::{Arc, Mutex, mpsc};

#[test]
fn everything_is_there_after_each_reopening() {
    let rig = Rig::new();
    let reopened = |store: Store| {
        now(store.close()).unwrap();
        rig.open().unwrap()
    };
    let store = rig.open().unwrap();
    assert_eq!((store.vote(), store.committed(), store.log_state().last), (None, None, None));

    now(store.save_vote(bytes("term 1"))).unwrap();
    let store = reopened(store);
    assert_eq!(store.vote(), Some(bytes("term 1")));

    append(&store, rows(0..5, 20));
    let store = reopened(store);
    assert_eq!(whole_log(&store), rows(0..5, 20));

    now(store.truncate_from(3)).unwrap();
    let store = reopened(store);
    assert_eq!(whole_log(&store), rows(0..3, 20));

    append(&store, rows(3..6, 30));
    store.set_committed(bytes("committed 4")).unwrap();
    let store = reopened(store);
    assert_eq!(store.committed(), Some(bytes("committed 4")));

    snapshot_up_to(&store, "s", 4);
    store.purge(floor(4)).unwrap();
    let store = reopened(store);
    assert_eq!(store.log_state().floor, Some(floor(4)));
    assert_eq!(whole_log(&store), rows(5..6, 30));

    now(store.put_value("identity", bytes("node 7"))).unwrap();
    let store = reopened(store);
    assert_eq!((store.value("identity"), store.value("raft/vote")), (Some(bytes("node 7")), None));
    assert_eq!(store.current_snapshot(), Some(pointer("s", 4)));
    assert_eq!(now(store.read_chunk("s", 0)).unwrap(), bytes("state"));
}

#[test]
fn an_append_is_readable_when_it_returns_and_told_after_commit() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    // Inside the answer of the first append the second is queued: it is readable there, and not on disk yet.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (store.clone(), Arc::clone(&seen));
    let first = Box::new(move |reply: Result<(), StoreError>| {
        reply.unwrap();
        let told = Arc::clone(&log);
        now(inner.append(rows(1..2, 10), Box::new(move |_| told.lock().unwrap().push("second told"))))
            .unwrap();
        assert_eq!(now(inner.read_range(0..9, 1000)).unwrap(), rows(0..2, 10));
        log.lock().unwrap().push("second readable");
    });
    now(store.append(rows(0..1, 10), first)).unwrap();
    assert_eq!(*seen.lock().unwrap(), ["second readable", "second told"]);
}

#[test]
fn what_waits_goes_into_one_transaction_and_is_told_in_order() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    let said = Said::default();
    let before = store.stats().log;
    let (inner, says) = (store.clone(), said.clone());
    let first = Box::new(move |reply: Result<(), StoreError>| {
        reply.unwrap();
        for (i, name) in (1..).zip(["b", "c", "d"]) {
            now(inner.append(rows(i..i + 1, 10), says.tell(name))).unwrap();
        }
        drop(inner.set_committed(bytes("3")));
    });
    now(store.append(rows(0..1, 10), first)).unwrap();
    assert_eq!(said.so_far(), [("b", true), ("c", true), ("d", true)]);
    let after = store.stats().log;
    assert_eq!((after.commits - before.commits, after.jobs - before.jobs), (2, 4));
}

#[test]
fn the_floor_and_the_committed_index_cause_no_transaction() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..9, 10));
    snapshot_up_to(&store, "s", 8);
    let (commits, ops) = (store.stats().log.commits, rig.ops());
    store.purge(floor(3)).unwrap();
    store.purge(floor(2)).unwrap();
    store.set_committed(bytes("8")).unwrap();
    assert_eq!((store.stats().log.commits, rig.ops()), (commits, ops));
    assert_eq!(store.log_state().floor, Some(floor(3)), "gone at once all the same");
    assert_eq!(whole_log(&store), rows(4..9, 10));
    append(&store, rows(9..10, 10));
    assert_eq!(store.stats().log.commits, commits + 1);
}

#[test]
fn a_read_from_disk_takes_no_rider_with_it() {
    let rig = Rig::new();
    let store = Store::open(StoreOptions { cache_bytes: 0, ..rig.options() }).unwrap();
    append(&store, rows(0..5, 10));
    store.set_committed(bytes("4")).unwrap();
    assert_eq!(whole_log(&store), rows(0..5, 10));
    append(&store, rows(5..6, 10));
    store.abandon();
    assert_eq!(rig.open().unwrap().committed(), Some(bytes("4")));
}

#[test]
fn purged_rows_are_deleted_behind_commits_until_none_is_left() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..2000, 10));
    let full = rig.disk.lock().unwrap().file("raft.db").unwrap().len();
    snapshot_up_to(&store, "s", 1999);
    store.purge(floor(1999)).unwrap();
    // Without deletion the file would grow by as much again, twenty times.
    for i in (2000..42_000).step_by(100) {
        append(&store, rows(i..i + 100, 10));
        snapshot_up_to(&store, &format!("s{i}"), i);
        now(store.keep_snapshots(&[])).unwrap();
        store.purge(floor(i)).unwrap();
    }
    now(store.close()).unwrap();
    let left = rig.disk.lock().unwrap().file("raft.db").unwrap().len();
    assert!(left < 2 * full.max(200_000), "{left} bytes after 42,000 rows, {full} after 2,000");
    assert_eq!(whole_log(&rig.open().unwrap()).len(), 99);
}

#[test]
fn reads_beyond_the_cache_come_checked_from_disk() {
    let rig = Rig::new();
    let options = StoreOptions { cache_bytes: 100, ..rig.options() };
    let store = Store::open(options).unwrap();
    for i in 0..50 {
        append(&store, rows(i..i + 1, 40));
    }
    assert_eq!(whole_log(&store), rows(0..50, 40));
    assert_eq!(now(store.read_range(0..50, 1)).unwrap(), rows(0..1, 40), "at least one");
    assert_eq!(now(store.read_range(0..50, 100)).unwrap(), rows(0..2, 40), "no more than asked");
    assert_eq!(now(store.read_range(7..9, 1000)).unwrap(), rows(7..9, 40));
    now(store.truncate_from(20)).unwrap();
    append(&store, rows(20..22, 50));
    let expected = [rows(0..20, 40), rows(20..22, 50)].concat();
    assert_eq!(whole_log(&store), expected);
    assert_eq!(now(store.read_range(22..30, 1000)).unwrap(), [], "nothing there");
}

#[test]
fn a_gap_is_refused_and_the_store_lives_on() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..2, 10));
    let refused = now(store.append(rows(3..4, 10), Box::new(|_| panic!("never called"))));
    assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
    let absurd = vec![(u64::MAX, Bytes::new())];
    assert!(matches!(now(store.append(absurd, Box::new(|_| ()))), Err(StoreError::Misuse(_))));
    assert!(store.purge(floor(u64::MAX)).is_err());
    append(&store, rows(2..3, 10));
    assert!(store.poisoned().borrow().is_none());
}

#[test]
fn a_log_may_begin_anywhere_and_a_start_knows_where() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(7..9, 10));
    now(store.truncate_from(0)).unwrap();
    assert_eq!(store.log_state().last, None);
    append(&store, rows(5..8, 10));
    now(store.close()).unwrap();
    assert_eq!(whole_log(&rig.open().unwrap()), rows(5..8, 10));
}

#[test]
fn the_floor_may_pass_the_end_of_the_log() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..4, 10));
    snapshot_up_to(&store, "s", 90);
    store.purge(floor(90)).unwrap();
    append(&store, rows(91..93, 10));
    now(store.close()).unwrap();
    let store = rig.open().unwrap();
    assert_eq!(whole_log(&store), rows(91..93, 10));
    now(store.truncate_from(0)).unwrap();
    assert_eq!((store.log_state().floor, store.log_state().last), (Some(floor(90)), None));
}

#[test]
fn the_wal_is_overwritten_and_does_not_grow() {
    let rig = Rig::new();
    let store = Store::open(StoreOptions { cache_bytes: 0, ..rig.options() }).unwrap();
    for i in 0..64 {
        append(&store, vec![(i, Bytes::from(vec![7; 1 << 20]))]);
    }
    assert!(store.stats().log.checkpoints >= 4, "{:?}", store.stats());
    let wal = rig.disk.lock().unwrap().file("raft.db-wal").unwrap().len();
    assert!((8 << 20..11 << 20).contains(&wal), "the WAL is {wal} bytes");
    now(store.close()).unwrap();
    assert_eq!(rig.disk.lock().unwrap().file("raft.db-wal").unwrap().len(), 0);
}

#[tokio::test]
async fn a_writer_thread_shares_commits_and_keeps_the_order() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = StoreOptions { writer: Writer::Thread, ..StoreOptions::new(dir.path()) };
    let store = Store::open(options.clone()).unwrap();
    let (tell, told) = mpsc::channel();
    for i in 0..500 {
        let tell = tell.clone();
        let done = Box::new(move |reply: Result<(), StoreError>| {
            reply.unwrap();
            tell.send(i).unwrap();
        });
        store.append(rows(i..i + 1, 200), done).await.unwrap();
        assert_eq!(store.log_state().last, Some(i));
    }
    store.save_vote(bytes("after all")).await.unwrap();
    // The vote was queued last, so all appends are told by now.
    assert_eq!(told.try_iter().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
    let stats = store.stats().log;
    assert!(stats.commits < 400, "501 jobs in {} transactions", stats.commits);
    store.close().await.unwrap();
    assert!(matches!(store.save_vote(bytes("late")).await, Err(StoreError::Closed)));

    let store = Store::open(options).unwrap();
    assert_eq!(store.read_range(0..500, usize::MAX).await.unwrap(), rows(0..500, 200));
}

#[tokio::test]
async fn appends_wait_when_the_disk_is_far_behind() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    // 60 MiB are queued from inside an answer, so nothing is written meanwhile; the 65th MiB has to wait.
    let inner = store.clone();
    let entry = Bytes::from(vec![1; 4 << 20]);
    let (tell, told) = mpsc::channel();
    let first = Box::new(move |_: Result<(), StoreError>| {
        let waits = |i: u64| {
            let mut append =
                Box::pin(inner.append(vec![(i, entry.clone())], Box::new(|reply| reply.unwrap())));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            append.as_mut().poll(&mut context).is_pending()
        };
        tell.send((1..20).position(waits)).unwrap();
    });
    now(store.append(rows(0..1, 10), first)).unwrap();
    assert_eq!(told.recv().unwrap(), Some(15));
    assert_eq!(store.log_state().last, Some(15), "the one that waited was dropped and did nothing");
    append(&store, rows(16..17, 10));
}
