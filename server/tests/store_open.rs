//! Opening: what is refused, with which words, and what a first start leaves.

use raftlock_server::store::simdisk::{Fault, Media};
use raftlock_server::store::{Space, SpaceGauge, Store, StoreError, StoreOptions, Watermarks};
use raftlock_tests::crash_points::rig::*;
use std::path::Path;

/// A folder on a disk of this machine, under the target folder.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn inline(dir: &Path) -> StoreOptions {
    StoreOptions {
        writer: raftlock_server::store::Writer::Inline,
        allow_volatile: true,
        ..StoreOptions::new(dir)
    }
}

/// A closed store with some of everything, as bytes to damage.
fn closed() -> (Rig, Media) {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..20, 200));
    now(store.save_vote(bytes("the vote of term 7"))).unwrap();
    now(store.put_value("identity", bytes("the name of the node"))).unwrap();
    snapshot_up_to(&store, "snap-1", 10);
    now(store.close()).unwrap();
    let media = rig.disk.lock().unwrap().crash(0, 100);
    (rig, media)
}

/// Changes one byte wherever `needle` is: a page also keeps old copies in its free space.
fn flip(media: &mut Media, file: &str, needle: &[u8]) {
    let file = media.file_mut(file).unwrap();
    let is_at = |at: &usize| file[*at..].starts_with(needle);
    let places: Vec<usize> = (0..file.len()).filter(is_at).collect();
    assert!(!places.is_empty(), "it is in the file");
    for at in places {
        file[at + needle.len() / 2] ^= 1;
    }
}

fn refused(rig: &mut Rig, media: Media) -> StoreError {
    rig.boot(media);
    rig.open().expect_err("a damaged store")
}

#[test]
fn a_flipped_byte_in_a_log_row_is_refused_by_its_index() {
    let (mut rig, mut media) = closed();
    flip(&mut media, "raft.db", &rows(13..14, 200)[0].1);
    let error = refused(&mut rig, media);
    let StoreError::Corrupt { file: "raft.db", table: "log", row, .. } = &error else { panic!("{error:?}") };
    assert_eq!(row, "13");
    let text = error.to_string();
    assert!(text.contains("row 13") && text.contains("replace the node"), "{text}");
}

#[test]
fn a_flipped_byte_in_a_value_is_refused_by_its_name() {
    for (needle, name) in [("the vote of term 7", "raft/vote"), ("the name of the node", "node/identity")] {
        let (mut rig, mut media) = closed();
        flip(&mut media, "raft.db", needle.as_bytes());
        let error = refused(&mut rig, media);
        assert!(matches!(&error, StoreError::Corrupt { row, .. } if row == name), "{error:?}");
    }
}

#[test]
fn a_flipped_byte_in_a_snapshot_is_refused_when_it_is_read_and_ends_the_store() {
    let (mut rig, mut media) = closed();
    flip(&mut media, "snapshots.db", b"state");
    rig.boot(media);
    let store = rig.open().unwrap();
    assert!(matches!(now(store.read_chunk("snap-1", 0)), Err(StoreError::Poisoned(_))));
    let cause = store.poisoned().borrow().clone();
    assert!(
        matches!(cause, Some(StoreError::Corrupt { file: "snapshots.db", table: "chunk", .. })),
        "{cause:?}"
    );

    let (mut rig, mut media) = closed();
    flip(&mut media, "snapshots.db", b"snap-1");
    let error = refused(&mut rig, media);
    assert!(matches!(error, StoreError::Corrupt { file: "snapshots.db", .. }), "{error:?}");
}

#[test]
fn damage_that_no_row_shows_is_found_by_the_quick_check() {
    let (mut rig, mut media) = closed();
    // The number of free pages, in the header.
    media.file_mut("raft.db").unwrap()[39] = 5;
    let error = refused(&mut rig, media);
    assert!(error.to_string().contains("quick_check"), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_name_and_left_alone() {
    for file in ["raft.db", "snapshots.db"] {
        let (mut rig, mut media) = closed();
        // user_version, in the header.
        media.file_mut(file).unwrap()[63] = 2;
        let error = refused(&mut rig, media.clone());
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error:?}");
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(rig.disk.lock().unwrap().file(file).unwrap(), media.file_mut(file).unwrap().as_slice());
    }
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    let (mut rig, mut media) = closed();
    // application_id, in the header.
    media.file_mut("raft.db").unwrap()[68] ^= 1;
    assert!(matches!(refused(&mut rig, media), StoreError::Foreign { file: "raft.db" }));

    let (mut rig, mut media) = closed();
    media.file_mut("raft.db").unwrap()[..16].fill(b'x');
    assert!(matches!(refused(&mut rig, media), StoreError::Corrupt { file: "raft.db", .. }));
}

#[test]
fn a_floor_that_no_snapshot_covers_is_refused() {
    let rig = Rig::new();
    let store = rig.open().unwrap();
    append(&store, rows(0..9, 10));
    snapshot_up_to(&store, "s", 3);
    store.purge(floor(4)).unwrap();
    now(store.close()).unwrap();
    let error = rig.open().unwrap_err();
    assert!(error.to_string().contains("no current snapshot covers"), "{error}");
}

#[test]
fn a_current_snapshot_that_is_gone_is_refused() {
    let dir = folder();
    let store = Store::open(inline(dir.path())).unwrap();
    append(&store, rows(0..9, 10));
    snapshot_up_to(&store, "snap-1", 3);
    now(store.close()).unwrap();
    for name in ["snapshots.db", "snapshots.db-wal"] {
        drop(std::fs::remove_file(dir.path().join(name)));
    }
    let error = Store::open(inline(dir.path())).unwrap_err();
    assert!(error.to_string().contains("snap-1"), "{error}");
}

#[test]
fn an_error_while_switching_to_wal_refuses_the_open() {
    let calls = {
        let rig = Rig::new();
        rig.open().unwrap();
        rig.ops()
    };
    let mut refused = 0;
    for call in 1..=calls {
        let mut rig = Rig::new();
        rig.disk.lock().unwrap().fail_at(call, Fault::Eio);
        let Ok(store) = rig.open() else {
            refused += 1;
            continue;
        };
        // Whatever was survived, this must be WAL mode: a rollback journal loses its last commit.
        append(&store, rows(0..1, 10));
        assert!(rig.disk.lock().unwrap().file("raft.db-journal").is_none(), "call {call}");
        assert!(rig.disk.lock().unwrap().file("raft.db-wal").is_some_and(|f| !f.is_empty()), "call {call}");
        rig.power_cut(call, 0);
        assert_eq!(whole_log(&rig.open().unwrap()), rows(0..1, 10), "call {call}");
    }
    assert!(refused > 20, "{refused} of {calls}: the faults have not bitten");
}

#[test]
fn a_second_store_in_the_same_folder_is_refused_and_shares_no_memory() {
    let dir = folder();
    let store = Store::open(inline(dir.path())).unwrap();
    append(&store, rows(0..1, 10));
    assert!(matches!(Store::open(inline(dir.path())), Err(StoreError::InUse { file: "raft.db" })));
    append(&store, rows(1..2, 10));
    assert!(!dir.path().join("raft.db-shm").exists(), "EXCLUSIVE was set before the first access");
    store.abandon();
    assert_eq!(whole_log(&Store::open(inline(dir.path())).unwrap()), rows(0..2, 10));
}

#[test]
fn a_store_that_failed_keeps_its_files_locked() {
    let dir = folder();
    let store = Store::open(inline(dir.path())).unwrap();
    snapshot_up_to(&store, "s", 3);
    now(store.close()).unwrap();
    let path = dir.path().join("snapshots.db");
    let mut file = std::fs::read(&path).unwrap();
    let at = file.windows(5).position(|w| w == b"state").unwrap();
    file[at] ^= 1;
    std::fs::write(&path, file).unwrap();

    let store = Store::open(inline(dir.path())).unwrap();
    assert!(now(store.read_chunk("s", 0)).is_err());
    store.abandon();
    drop(store);
    // Nothing in this process takes the page cache for the disk.
    assert!(matches!(Store::open(inline(dir.path())), Err(StoreError::InUse { .. })));
}

#[test]
fn a_first_start_is_at_rest_before_anything_is_promised() {
    let mut rig = Rig::new();
    rig.open().unwrap();
    let mut left = rig.disk.lock().unwrap().crash(0, 0);
    for file in ["raft.db", "snapshots.db"] {
        assert_eq!(&left.file_mut(file).expect("its name is there")[68..72], b"RLCK", "{file}");
    }
    rig.boot(left);
    rig.open().unwrap();
}

#[test]
fn a_folder_that_forgets_needs_permission() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = StoreOptions { allow_volatile: false, ..inline(dir.path()) };
    let error = Store::open(options).unwrap_err();
    assert!(matches!(&error, StoreError::Volatile { kind: "tmpfs", .. }), "{error:?}");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing was made");
    Store::open(inline(dir.path())).unwrap();
}

#[test]
fn the_ballast_takes_real_space_and_can_be_dropped() {
    let dir = folder();
    let options = StoreOptions { ballast_bytes: 3 << 20, ..inline(dir.path()) };
    let ballast = dir.path().join("ballast");
    let store = Store::open(options.clone()).unwrap();
    assert_eq!(ballast.metadata().unwrap().len(), 3 << 20);
    assert!(std::os::unix::fs::MetadataExt::blocks(&ballast.metadata().unwrap()) * 512 >= 3 << 20);
    store.drop_ballast().unwrap();
    store.drop_ballast().unwrap();
    assert!(!ballast.exists());
    let space = store.space().unwrap();
    assert!(0 < space.free_bytes && space.free_bytes < space.total_bytes);
    now(store.close()).unwrap();
    Store::open(options).unwrap();
    assert!(ballast.exists());
    let plain = folder();
    Store::open(inline(plain.path())).unwrap();
    assert!(!plain.path().join("ballast").exists());
}

#[test]
fn a_node_is_low_until_it_has_clearly_more_space() {
    let mut gauge = SpaceGauge::default();
    let marks = Watermarks { low_bytes: 100, high_bytes: 200, critical_bytes: 50 };
    let seen = [150, 99, 100, 199, 200, 150]
        .map(|free_bytes| gauge.observe(Space { free_bytes, total_bytes: 1000 }, marks));
    assert_eq!(seen, [false, true, true, true, false, false]);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = folder();
    std::fs::write(dir.path().join("file"), "in the way").unwrap();
    let error = Store::open(inline(&dir.path().join("file/data"))).unwrap_err();
    assert!(matches!(error, StoreError::Access { .. }), "{error:?}");
    assert!(error.to_string().contains("file/data"), "{error}");
}
