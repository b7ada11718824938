//! What is on a stopped node's disk, and what a node does with a disk that changed behind its back.

use raftlock_proto::v1::LockRequest;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_server::config::Config;
use raftlock_server::node::{Node, NodeError, Seams};
use raftlock_tests::cluster::eventually;
use rusqlite::Connection;

fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::new("n1", dir);
    (config.listen, config.peer_listen) = ("127.0.0.1:0".into(), "127.0.0.1:0".into());
    (config.allow_volatile_data, config.ballast_bytes, config.snapshot_log_bytes) = (true, 0, 5_000);
    config
}

/// Runs a node long enough to have a log, a vote and a snapshot, and stops it.
async fn lived(dir: &std::path::Path) {
    let node = Node::start(config(dir), Seams::default()).await.expect("it starts");
    node.ready().await;
    let mut client =
        RaftLockClient::connect(format!("http://{}", node.client_address())).await.expect("it listens");
    let mut count = 0;
    eventually("a snapshot was taken", async || {
        count += 1;
        let request = LockRequest {
            resource_id: format!("lock-{count}"),
            client_id: "x".repeat(200),
            ..Default::default()
        };
        client.lock(request).await.expect("granted");
        (node.status().snapshot_index > 0).then_some(())
    })
    .await;
    node.stop().await;
}

fn count(file: &std::path::Path, sql: &str) -> i64 {
    let connection = Connection::open(file).expect("a SQLite file");
    connection.query_row(sql, [], |row| row.get(0)).expect(sql)
}

#[tokio::test]
async fn log_vote_and_snapshot_are_rows_of_the_sqlite_files() {
    let dir = tempfile::tempdir().expect("a folder");
    lived(dir.path()).await;
    let (raft, snapshots) = (dir.path().join("raft.db"), dir.path().join("snapshots.db"));
    assert!(count(&raft, "SELECT count(*) FROM log") > 0);
    assert_eq!(count(&raft, "SELECT count(*) FROM value WHERE name = 'raft/vote'"), 1);
    assert_eq!(count(&raft, "SELECT count(*) FROM value WHERE name = 'raft/snapshot'"), 1);
    assert!(count(&snapshots, "SELECT count(*) FROM chunk") > 0);
}

#[tokio::test]
async fn one_flipped_byte_in_a_log_row_keeps_the_node_from_starting() {
    let dir = tempfile::tempdir().expect("a folder");
    lived(dir.path()).await;
    let raft = dir.path().join("raft.db");
    let row = count(&raft, "SELECT max(idx) FROM log");
    {
        let connection = Connection::open(&raft).expect("a SQLite file");
        let select = "SELECT data FROM log WHERE idx = ?1";
        let mut data: Vec<u8> = connection.query_row(select, [row], |row| row.get(0)).expect("the row");
        let middle = data.len() / 2;
        data[middle] ^= 1;
        connection.execute("UPDATE log SET data = ?1 WHERE idx = ?2", (data, row)).expect("changed");
    }
    let error = Node::start(config(dir.path()), Seams::default()).await.err().expect("it refuses");
    assert!(matches!(error, NodeError::Store(_)), "{error}");
    let said = error.to_string();
    assert!(said.contains("raft.db") && said.contains(&row.to_string()), "{said}");
    assert!(said.contains("replace"), "says what to do: {said}");
}

#[tokio::test]
async fn a_restarted_node_has_its_locks_and_its_identity() {
    let dir = tempfile::tempdir().expect("a folder");
    lived(dir.path()).await;
    let node = Node::start(config(dir.path()), Seams::default()).await.expect("it starts");
    node.ready().await;
    let status = node.status();
    assert!(status.locks > 0, "{status:?}");
    let id = status.node.expect("itself").id;
    node.stop().await;
    let node = Node::start(config(dir.path()), Seams::default()).await.expect("it starts");
    assert_eq!(node.status().node.expect("itself").id, id);
    node.stop().await;
}
