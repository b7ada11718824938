//! `raftlock bench`: it reports, leaves nothing behind, and says what does not fit together.

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::{finish, raftlock};
use serde_json::Value;

/// On a disk: it takes no data folder in memory.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder")
}

fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).expect("a line is an object")).collect()
}

#[test]
fn pairs_are_measured_on_nodes_of_its_own_and_nothing_is_left() {
    let folder = folder();
    let mut command = raftlock(["bench", "pairs", "--clients", "1,8", "--secs", "1", "--json"]);
    // Meant for somebody else: the nodes of the bench must not read it.
    command.current_dir(folder.path()).env("RAFTLOCK_BOOTSTRAP_EXPECT", "5").env("NODE_ID", "7");
    let rows = lines(&finish(command).exits(0).stdout);
    assert_eq!(rows.len(), 2);
    for (row, clients) in rows.iter().zip([1, 8]) {
        assert_eq!(
            (&row["workload"], &row["clients"], &row["nodes"]),
            (&"pairs".into(), &clients.into(), &3.into())
        );
        for figure in
            ["ops", "per_s", "p50_us", "flush_us", "wal_bytes_per_op", "ops_per_batch", "cpu_s_server"]
        {
            assert!(row[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {row}");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0, "the nodes' data is removed");
}

#[test]
fn a_killed_leader_is_a_gap_without_grants() {
    let folder = folder();
    let mut command = raftlock(["bench", "failover", "--clients", "4", "--kills", "1", "--json"]);
    command.current_dir(folder.path());
    let rows = lines(&finish(command).exits(0).stdout);
    assert!(rows[0]["elections"].as_u64() >= Some(1), "{}", rows[0]);
    assert!(rows[0]["max_us"].as_u64() > Some(20_000), "nobody stands for election sooner: {}", rows[0]);
}

#[test]
fn a_mix_of_renewals_reads_and_pairs_is_measured() {
    let folder = folder();
    // Each begins at another place of the hundred that a mix has: the first operations of all are of every kind.
    let mut command =
        raftlock(["bench", "mixed", "--clients", "100", "--secs", "1", "--local", "1", "--json"]);
    command.current_dir(folder.path());
    let rows = lines(&finish(command).exits(0).stdout);
    assert!(rows[0]["ops"].as_u64() >= Some(100), "each kind of operation came up: {}", rows[0]);
}

#[test]
fn what_does_not_fit_together_is_said() {
    for (arguments, text) in [
        (vec!["bench", "hot", "--rate", "5"], "--rate is for pairs"),
        (vec!["bench", "hot", "--api", "unary"], "--api unary is for"),
        (vec!["bench", "failover", "--local", "1"], "--local 3"),
        (vec!["bench", "snapshot", "--local", "1"], "--local 3"),
        (vec!["bench", "floor", "--local", "0"], "floor measures the disk"),
        (vec!["bench", "pairs", "--clients", "0"], "--clients"),
    ] {
        let done = finish(raftlock(arguments)).exits(2);
        assert!(done.stderr.contains(text), "{done:?}");
    }
}
