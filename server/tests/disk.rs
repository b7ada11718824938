//! What is on a stopped node's disk, and what a node does with a disk that changed behind its back.

use std::path::Path;

use lock_table::{Batch, Command, Owner};
use prost::Message;
use raftlock_proto::peer::{Entry, entry::Payload};
use raftlock_proto::v1::LockRequest;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_server::config::Config;
use raftlock_server::node::{Node, NodeError, Seams};
use raftlock_tests::cluster::{PATIENCE, TestCluster, eventually};
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
    node.shutdown().await;
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
    node.shutdown().await;
    let node = Node::start(config(dir.path()), Seams::default()).await.expect("it starts");
    assert_eq!(node.status().node.expect("itself").id, id);
    node.shutdown().await;
}

/// Changes the newest batch of a stopped node's log that `change` wants to change, and makes the row's checksum fit.
/// Returns its index.
fn tamper(data: &Path, change: impl Fn(Batch) -> Option<Batch>) -> u64 {
    let connection = Connection::open(data.join("raft.db")).expect("a SQLite file");
    let mut rows = connection.prepare("SELECT idx, data FROM log ORDER BY idx DESC").expect("a log");
    let rows: Vec<(i64, Vec<u8>)> = rows
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("a log")
        .collect::<Result<_, _>>()
        .expect("rows");
    for (index, data) in rows {
        let mut entry = Entry::decode(&data[..]).expect("an entry");
        let Some(Payload::Batch(bytes)) = &entry.payload else { continue };
        let Some(changed) = change(Batch::decode(bytes).expect("a batch")) else { continue };
        entry.payload = Some(Payload::Batch(changed.encode().into()));
        let data = entry.encode_to_vec();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&(index as u64).to_le_bytes()), &data);
        let update = "UPDATE log SET data = ?1, crc = ?2 WHERE idx = ?3";
        connection.execute(update, (data, i64::from(crc), index)).expect("changed");
        return index as u64;
    }
    panic!("no batch was changed");
}

/// A batch in which another owner than before asks for the lock.
fn with_another_owner(batch: Batch) -> Option<Batch> {
    let mut changed = batch.clone();
    for command in &mut changed.commands {
        if let Command::UnaryLock { owner, .. } = command {
            *owner = Owner::new("mallory").expect("a good owner");
        }
    }
    (changed != batch).then_some(changed)
}

#[tokio::test]
async fn a_node_whose_table_is_not_the_leaders_is_found_and_stops() {
    let mut cluster = TestCluster::start(3).await;
    let request = |name: String| LockRequest {
        resource_id: name,
        client_id: "ann".into(),
        ttl_seconds: 600,
        ..Default::default()
    };
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader).await;
    for n in 0..20 {
        assert!(client.lock(request(format!("early-{n}"))).await.expect("granted").into_inner().success);
    }
    let odd = cluster.follower().await;
    let applied = cluster.status(leader).applied_index;
    eventually("it has them too", async || (cluster.status(odd).applied_index >= applied).then_some(()))
        .await;
    cluster.stop(odd).await;
    tamper(&cluster.configs[odd].data_dir, with_another_owner);
    cluster.restart(odd).await;

    // Nobody asks for the lock that has two owners now; a mark comes along all the same.
    let failed = async {
        let node = cluster.nodes[odd].as_ref().expect("it is up");
        tokio::time::timeout(PATIENCE, node.failed()).await.expect("it is found in time")
    };
    let busy = async {
        for n in 0.. {
            let locked = client.lock(request(format!("late-{n}"))).await;
            assert!(locked.expect("the others serve").into_inner().success);
        }
    };
    let error = tokio::select! {
        error = failed => error,
        () = busy => unreachable!("it is never done"),
    };
    let NodeError::Diverged { index, leader: named, .. } = &error else { panic!("{error}") };
    assert!(*index >= 20, "{error}");
    assert_eq!(*named, cluster.configs[leader].node_name);
    assert!(error.to_string().contains("replace this node"), "says what to do: {error}");
    cluster.stop(odd).await;

    for at in (0..3).filter(|at| *at != odd) {
        let mut client = cluster.client(at).await;
        assert!(client.lock(request(format!("after-{at}"))).await.expect("granted").into_inner().success);
    }
    cluster.end().await;
}
