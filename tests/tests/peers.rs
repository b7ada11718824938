//! The peer port: what is not meant for a node, is of another cluster, or comes from a disk that was emptied, copied or
//! rolled back, never counts. Rows are those of the table of bad input.

use std::time::Duration;

use raftlock_proto::peer::peer_client::PeerClient;
use raftlock_proto::peer::{self, Envelope};
use raftlock_proto::v1::{GetLockRequest, LockRequest};
use raftlock_server::node::NodeError;
use raftlock_tests::cluster::{PATIENCE, TestCluster, copy_folder, eventually};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn lock(name: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: "a".into(), ttl_seconds: 60, ..Default::default() }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

async fn peer_of(cluster: &TestCluster, at: usize) -> PeerClient<Channel> {
    let address = format!("http://{}", cluster.configs[at].peer_listen);
    PeerClient::connect(address).await.expect("the peer port listens")
}

fn id(cluster: &TestCluster, at: usize) -> u64 {
    cluster.nodes[at].as_ref().expect("it is up").status().node.expect("a node").id
}

fn cluster_id(cluster: &TestCluster, at: usize) -> Vec<u8> {
    let hex = cluster.nodes[at].as_ref().expect("it is up").status().cluster_id;
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// An envelope for node `at` that is in order, from a node that nobody knows.
fn envelope(cluster: &TestCluster, at: usize) -> Envelope {
    Envelope {
        cluster_id: cluster_id(cluster, at).into(),
        sender: 99,
        sender_boot: 1,
        target: id(cluster, at),
        sender_nonce: 1,
    }
}

async fn vote(
    client: &mut PeerClient<Channel>,
    envelope: Envelope,
    term: u64,
) -> Result<peer::VoteReply, Status> {
    let vote = peer::Vote { term, node: envelope.sender, committed: false };
    let asked = peer::VoteRequest {
        envelope: Some(envelope),
        vote: Some(vote),
        pre_vote: true,
        ..Default::default()
    };
    client.vote(asked).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn rows_47_to_51_messages_that_are_not_meant_or_cannot_be_right() {
    let cluster = TestCluster::start(1).await;
    let mut client = peer_of(&cluster, 0).await;
    let good = envelope(&cluster, 0);
    let term = cluster.nodes[0].as_ref().expect("it is up").status().term;

    let foreign = Envelope { cluster_id: vec![9; 16].into(), ..good.clone() };
    let refused = vote(&mut client, foreign, 1).await.expect_err("another cluster");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "WRONG_CLUSTER"));

    let misled = Envelope { target: good.target + 1, ..good.clone() };
    let refused = vote(&mut client, misled, 1).await.expect_err("another node");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "WRONG_NODE"));

    // Row 50: a sender that no membership lists is answered; Raft decides what its vote is worth.
    let later = Envelope { sender_boot: 5, ..good.clone() };
    vote(&mut client, later.clone(), 1).await.expect("an answer");
    for stale in [good.clone(), Envelope { sender_nonce: 2, ..later.clone() }] {
        let refused = vote(&mut client, stale, 1).await.expect_err("an older start, or a clone");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "STALE_STORAGE"));
        assert!(refused.message().contains("let th"), "it says what to do: {refused}");
    }

    for absurd in [term + (1 << 21), u64::MAX] {
        let refused = vote(&mut client, later.clone(), absurd).await.expect_err("an absurd term");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "ABSURD"));
    }
    let refused = vote(&mut client, Envelope { sender: 98, sender_boot: u64::MAX, ..good }, 1).await;
    let refused = refused.expect_err("an absurd boot counter");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "ABSURD"));
    assert_eq!(cluster.nodes[0].as_ref().expect("it is up").status().term, term, "nothing was taken over");
    cluster.client(0).await.lock(lock("k")).await.expect("it goes on");
    cluster.end().await;
}

#[tokio::test]
async fn row_52_a_snapshot_whose_bytes_are_not_what_their_checksum_says() {
    let cluster = TestCluster::start(1).await;
    let mut client = peer_of(&cluster, 0).await;
    let envelope = Some(envelope(&cluster, 0));
    let log = |index| Some(peer::LogId { term: 1, node: 99, index });
    let meta = peer::SnapshotMeta {
        id: "x".into(),
        last_log: log(9),
        chunks: 1,
        bytes: 3,
        membership: Some(Default::default()),
        ..Default::default()
    };
    let vote = Some(peer::Vote { term: 1, node: 99, committed: true });
    let first =
        peer::SnapshotRequest { envelope: envelope.clone(), vote, meta: Some(meta), ..Default::default() };
    let chunk = peer::SnapshotRequest {
        envelope,
        chunk: 0,
        data: vec![1, 2, 3].into(),
        crc: 7,
        ..Default::default()
    };
    let mut replies =
        client.snapshot(tokio_stream::iter([first, chunk])).await.expect("a stream").into_inner();
    let refused = loop {
        match replies.message().await {
            Ok(Some(reply)) => assert!(!reply.installed),
            Ok(None) => panic!("it ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::DataLoss, "DAMAGED"));
    // A message above the cap of the peer port.
    let huge = peer::ForwardRequest { message: vec![0; 9 << 20].into(), ..Default::default() };
    let refused = client.forward(huge).await.expect_err("above the cap");
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&refused.code()), "{refused}");
    cluster.client(0).await.lock(lock("k")).await.expect("it goes on");
    cluster.end().await;
}

/// A node that was wiped comes back as another one. For its old self it neither votes nor acknowledges anything, though
/// the cluster still lists it, and so the cluster lives without it.
#[tokio::test]
async fn a_wiped_node_never_answers_for_its_old_self() {
    let mut cluster = TestCluster::start(3).await;
    let wiped = cluster.follower().await;
    let (old, the_cluster) = (id(&cluster, wiped), cluster_id(&cluster, wiped));
    cluster.kill(wiped).await;
    std::fs::remove_dir_all(&cluster.configs[wiped].data_dir).expect("its directory is emptied");
    // Its seeds are out of reach, so that it is not let in again, under its new id.
    cluster.configs[wiped].seeds = vec!["127.0.0.1:1".to_owned()];
    cluster.configs[wiped].bootstrap_expect = None;
    cluster.restart(wiped).await;
    assert_ne!(id(&cluster, wiped), old, "another node");

    let leader = cluster.leader().await;
    let from = Envelope {
        cluster_id: the_cluster.into(),
        sender: id(&cluster, leader),
        sender_boot: 1,
        target: old,
        sender_nonce: 0,
    };
    let mut client = peer_of(&cluster, wiped).await;
    let refused = vote(&mut client, from.clone(), 1_000).await.expect_err("it is not that node any more");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "WRONG_NODE"));
    let append = peer::AppendRequest { envelope: Some(from), ..Default::default() };
    let refused = client.append_once(append).await.expect_err("it is not that node any more");
    assert_eq!(reason(&refused), "WRONG_NODE");

    // With it and the third node there is no quorum of the old membership: it must not be taken for one.
    let other = (0..3).find(|at| *at != wiped && *at != leader).expect("a third node");
    cluster.kill(leader).await;
    let is_ready =
        |cluster: &TestCluster| cluster.nodes[other].as_ref().is_some_and(|node| node.status().ready);
    eventually("the leader is missed", async || (!is_ready(&cluster)).then_some(())).await;
    let begun = tokio::time::timeout(Duration::from_secs(4), async {
        loop {
            if is_ready(&cluster) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(begun.await.is_err(), "a node led with the vote of one that was wiped");
    cluster.restart(leader).await;
    let view = eventually("two of the old three serve", async || {
        cluster.client(other).await.get_lock(GetLockRequest { resource_id: "k".into() }).await.ok()
    });
    view.await;
    cluster.end().await;
}

/// An old copy of a data directory is put in place of the real one. The others know a later start of it, and the node
/// learns that from them, stops with what to do, and does not start again.
#[tokio::test]
async fn a_node_on_a_rolled_back_disk_stops_and_says_what_to_do() {
    let mut cluster = TestCluster::start(3).await;
    let at = cluster.follower().await;
    cluster.stop(at).await;
    let dir = cluster.configs[at].data_dir.clone();
    let copied = dir.with_file_name("copy");
    copy_folder(&dir, &copied);
    // Two starts more than the copy has seen.
    for _ in 0..2 {
        cluster.restart(at).await;
        cluster.ready().await;
        cluster.stop(at).await;
    }
    std::fs::remove_dir_all(&dir).expect("removed");
    copy_folder(&copied, &dir);
    cluster.restart(at).await;
    let node = cluster.nodes[at].take().expect("it is up");
    let failed = tokio::time::timeout(PATIENCE, node.failed()).await.expect("it is told");
    let NodeError::StaleStorage(why) = &failed else { panic!("{failed}") };
    assert!(why.contains("rolled back") && why.contains("Empty it and let the node join anew"), "{why}");
    node.shutdown().await;

    let again = raftlock_server::node::Node::start(cluster.configs[at].clone(), Default::default()).await;
    assert!(matches!(again.err(), Some(NodeError::StaleStorage(_))), "a start more does not help");
    eventually("the others go on", async || {
        cluster.client(cluster.leader().await).await.lock(lock("k")).await.ok()
    })
    .await;
    cluster.end().await;
}

/// Two nodes start on copies of one disk. The second one to be heard is refused by those who heard the first, and stops.
#[tokio::test]
async fn the_second_of_two_clones_stops() {
    let mut cluster = TestCluster::start(3).await;
    let at = cluster.follower().await;
    cluster.stop(at).await;
    let dir = cluster.configs[at].data_dir.clone();
    let mut clone = cluster.configs[at].clone();
    clone.data_dir = dir.with_file_name("clone");
    copy_folder(&dir, &clone.data_dir);
    let reserved = raftlock_tests::wires::FreePorts::take(2);
    let ports = &reserved.addresses;
    (clone.listen, clone.peer_listen) = (ports[0].clone(), ports[1].clone());
    // It says what the first one says: it is a copy in this too.
    clone.peer_advertise = Some(cluster.configs[at].peer_listen.clone());
    clone.advertise = Some(cluster.configs[at].listen.clone());
    cluster.restart(at).await;
    cluster.ready().await;
    let second = raftlock_server::node::Node::start(clone, Default::default()).await.expect("it starts");
    let failed = tokio::time::timeout(PATIENCE, second.failed()).await.expect("it is told");
    let NodeError::StaleStorage(why) = &failed else { panic!("{failed}") };
    assert!(why.contains("copied, and runs twice"), "{why}");
    second.shutdown().await;
    eventually("the first goes on", async || cluster.client(at).await.lock(lock("k")).await.ok()).await;
    cluster.end().await;
}

#[tokio::test]
async fn row_53_a_node_of_another_cluster_name_is_not_promised_anything() {
    let cluster = TestCluster::start(1).await;
    let reserved = raftlock_tests::wires::FreePorts::take(3);
    let ports = &reserved.addresses;
    let mut config = cluster.configs[0].clone();
    config.data_dir = config.data_dir.with_file_name("pristine");
    (config.listen, config.peer_listen) = (ports[0].clone(), ports[1].clone());
    config.seeds = vec![ports[1].clone(), ports[2].clone()];
    config.bootstrap_expect = Some(2);
    let node =
        raftlock_server::node::Node::start(config.clone(), Default::default()).await.expect("it starts");
    let address = format!("http://{}", config.peer_listen);
    let mut client = PeerClient::connect(address).await.expect("it listens");
    let hello = client.hello(peer::HelloRequest::default()).await.expect("an answer").into_inner();
    let me = hello.me.expect("it says who it is");
    let asker = peer::Member { id: me.id.wrapping_add(1), node: me.node.clone() };
    let asked = |cluster_name: &str| peer::PromiseRequest {
        cluster_name: cluster_name.into(),
        cluster_id: vec![5; 16].into(),
        proposer: asker.id,
        members: vec![me.clone(), asker.clone()],
    };
    let refused = client.promise(asked("another")).await.expect("an answer").into_inner();
    assert!(!refused.granted, "{refused:?}");
    let granted = eventually("the seeds were asked", async || {
        let reply = client.promise(asked(&config.cluster_name)).await.expect("an answer").into_inner();
        reply.granted.then_some(reply)
    });
    assert_eq!(granted.await.me, me.id);
    node.shutdown().await;
    cluster.end().await;
}
