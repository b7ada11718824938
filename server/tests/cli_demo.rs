//! `raftlock demo`: it ends well, in time, and leaves nothing behind.

#![allow(clippy::disallowed_methods, reason = "tests measure how long things take")]

mod cli_support;

use std::fs;
use std::time::{Duration, Instant};

use cli_support::{finish, raftlock};

#[test]
fn it_checks_itself_and_exits_with_0() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("target")).expect("a folder");
    let mut command = raftlock(["demo", "--seconds", "4", "--workers", "4"]);
    command.current_dir(folder.path());
    let start = Instant::now();
    let done = finish(command).exits(0);
    assert!(start.elapsed() < Duration::from_secs(30));
    for text in ["is killed", "leads the cluster now", "token", "no two holds of a lock overlapped  ok"] {
        assert!(done.stdout.contains(text), "{done:?}");
    }
    let left = fs::read_dir(folder.path().join("target")).expect("the folder").count();
    assert_eq!(left, 0, "the nodes' data is removed");
}
