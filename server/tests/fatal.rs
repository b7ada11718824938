//! A real server process whose Raft cannot go on: it ends by itself, with an exit code and a line that say so.

mod support;

use lock_table::Batch;
use prost::Message;
use raftlock_proto::peer::{Entry, entry::Payload};
use raftlock_proto::v1::LockRequest;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_tests::cluster::eventually;
use rusqlite::Connection;
use support::Processes;

/// Makes the last row of a log one that no version of the table can read, with a checksum that fits.
fn spoil_last_batch(data: &std::path::Path) -> i64 {
    let connection = Connection::open(data.join("raft.db")).expect("a SQLite file");
    let last = "SELECT idx, data FROM log ORDER BY idx DESC LIMIT 1";
    let (index, data): (i64, Vec<u8>) =
        connection.query_row(last, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a row");
    let mut entry = Entry::decode(&data[..]).expect("an entry");
    let Some(Payload::Batch(bytes)) = &entry.payload else { panic!("the last entry is a batch") };
    Batch::decode(bytes).expect("a batch");
    entry.payload = Some(Payload::Batch("no batch at all".into()));
    let data = entry.encode_to_vec();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), &data);
    let update = "UPDATE log SET data = ?1, crc = ?2 WHERE idx = ?3";
    connection.execute(update, (data, i64::from(crc), index)).expect("changed");
    index
}

#[tokio::test]
async fn a_node_whose_raft_stopped_ends_and_says_why() {
    let mut processes = Processes::start(1, &[]).await;
    let address = format!("http://{}", processes.nodes[0].listen);
    let mut client = RaftLockClient::connect(address).await.expect("it listens");
    let lock = LockRequest { resource_id: "k".into(), client_id: "a".into(), ..Default::default() };
    assert!(client.lock(lock).await.expect("granted").into_inner().success);
    // Killed, so that the last entry is not known to be committed and is applied only once the node leads again.
    processes.kill(0);
    let index = spoil_last_batch(&processes.nodes[0].data);
    processes.spawn(0);
    let code = eventually("the process ends", async || processes.ended(0)).await;
    let log = processes.log(0);
    assert_eq!(code, Some(1), "{log}");
    let said = log.lines().rfind(|line| line.starts_with("error:")).unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains("Raft") && said.contains("is no batch of the lock table"), "{said}");
    assert!(said.contains(&index.to_string()), "{said}");
}
