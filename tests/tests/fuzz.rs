//! Requests that nobody wrote, at every method of a real node: each gets an answer that is documented, and the node goes on
//! serving. (`prove fuzz` has the decoders behind them.)

mod raw;

use std::time::Duration;

use prost::Message;
use raftlock_proto::peer::{self, peer_client::PeerClient};
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::*;
use raftlock_tests::cluster::{PATIENCE, TestCluster};
use raftlock_tests::fuzz::change;
use raftlock_tests::raw_codec::RawCodec;
use raw::lock;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Changed requests to each method. One takes a fraction of a millisecond, or a commit.
const INPUTS: usize = 300;

/// Whatever is asked, a node says one of these. INTERNAL and UNKNOWN would be our own faults; a wait may end with the call's
/// deadline.
const ANSWERS: [Code; 9] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::PermissionDenied,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::Unavailable,
    Code::DeadlineExceeded,
    Code::Aborted,
];

fn requests() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let short = LockRequest { ttl_seconds: 1, request_id: "r".into(), ..lock("k", "c") };
    let permits = LockRequest { mode: Mode::Permits.into(), permits: 1, capacity: 2, ..short.clone() };
    let (resource_id, client_id, fencing_token) = ("k".to_owned(), "c".to_owned(), 7);
    let unlock = UnlockRequest {
        resource_id: resource_id.clone(),
        client_id: client_id.clone(),
        fencing_token,
        ..UnlockRequest::default()
    };
    let renew = RenewRequest {
        resource_id: resource_id.clone(),
        client_id,
        fencing_token,
        ..RenewRequest::default()
    };
    let list = ListLocksRequest { prefix: "k".into(), page_size: 10, ..ListLocksRequest::default() };
    let nobody = change_members_request::Change::Remove("nobody".into());
    vec![
        ("RaftLock/Lock", vec![short.encode_to_vec(), permits.encode_to_vec()]),
        ("RaftLock/Unlock", vec![unlock.encode_to_vec()]),
        ("RaftLock/Renew", vec![renew.encode_to_vec()]),
        ("RaftLock/GetLock", vec![GetLockRequest { resource_id }.encode_to_vec()]),
        ("RaftLock/ListLocks", vec![list.encode_to_vec()]),
        ("Admin/Status", vec![StatusRequest {}.encode_to_vec()]),
        ("Admin/ChangeMembers", vec![ChangeMembersRequest { change: Some(nobody) }.encode_to_vec()]),
    ]
}

async fn connected(address: &str) -> Grpc<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let mut grpc = Grpc::new(endpoint.expect("an address").connect().await.expect("it listens"));
    grpc.ready().await.expect("connected");
    grpc
}

/// Sends changed requests to a method. How many of them were refused as malformed.
async fn barrage(grpc: &mut Grpc<Channel>, rng: &mut fastrand::Rng, path: &str, valid: &[Vec<u8>]) -> usize {
    let mut refused = 0;
    for _ in 0..INPUTS {
        let mut bytes = valid[rng.usize(0..valid.len())].clone();
        change(rng, &mut bytes, valid);
        let code = ask(grpc, path, bytes.clone()).await;
        assert!(
            ANSWERS.contains(&code) || code == Code::Cancelled,
            "{path} answers {code:?} to {bytes:02x?}"
        );
        refused += usize::from(code == Code::InvalidArgument);
    }
    refused
}

/// One request, as these bytes. One that asks to wait is given up.
async fn ask(grpc: &mut Grpc<Channel>, path: &str, bytes: Vec<u8>) -> Code {
    let mut request = Request::new(bytes);
    request.set_timeout(Duration::from_millis(500));
    let path = path.parse().expect("a path");
    let sent: Result<tonic::Response<Vec<u8>>, Status> = grpc.unary(request, path, RawCodec).await;
    grpc.ready().await.expect("the connection goes on");
    sent.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Says one thing on a stream, and goodbye. How the stream ends.
async fn say(grpc: &mut Grpc<Channel>, path: &str, bytes: Vec<u8>) -> Code {
    let path = path.parse().expect("a path");
    let stream = Request::new(tokio_stream::iter([bytes]));
    let begun: Result<tonic::Response<tonic::Streaming<Vec<u8>>>, Status> =
        grpc.streaming(stream, path, RawCodec).await;
    let end = match begun {
        Err(status) => status.code(),
        Ok(answers) => {
            let mut answers = answers.into_inner();
            loop {
                match timeout(PATIENCE, answers.message()).await.expect("an answer or the end") {
                    Ok(Some(_)) => {}
                    Ok(None) => break Code::Ok,
                    Err(status) => break status.code(),
                }
            }
        }
    };
    grpc.ready().await.expect("the connection goes on");
    end
}

async fn still_serves(cluster: &TestCluster, name: &str) {
    let answer = cluster.client(0).await.lock(lock(name, "still")).await.expect("it serves");
    assert!(answer.into_inner().success, "{name}");
}

#[tokio::test]
async fn changed_requests_get_an_answer_of_ours() {
    let cluster = TestCluster::start(1).await;
    let mut grpc = connected(&cluster.address(0)).await;
    let mut rng = fastrand::Rng::with_seed(1);
    for (method, valid) in requests() {
        let refused = barrage(&mut grpc, &mut rng, &format!("/raftlock.v1.{method}"), &valid).await;
        assert!(refused < INPUTS, "{method}: all refused, nothing behind the decoder was reached");
        still_serves(&cluster, method).await;
    }
    cluster.end().await;
}

#[tokio::test]
async fn changed_messages_on_a_session_stream_end_it_or_are_answered() {
    let cluster = TestCluster::start(1).await;
    let mut grpc = connected(&cluster.address(0)).await;
    let mut rng = fastrand::Rng::with_seed(2);
    let open = OpenSession {
        key: 1,
        secret: vec![7; 16].into(),
        owner: "o".into(),
        ttl_ms: 1_000,
        number: 1,
        attachment: 1,
    };
    let acquire = Acquire { session: 1, ticket: 1, names: vec!["k".into()], ..Acquire::default() };
    let ops = [Op::Open(open), Op::Acquire(acquire), Op::Close(CloseSession { session: 1 })];
    let message = |ops: &[Op]| SessionRequest {
        ops: ops.iter().map(|op| SessionOp { op: Some(op.clone()) }).collect(),
    };
    let valid: Vec<Vec<u8>> = (1..=ops.len()).map(|count| message(&ops[..count]).encode_to_vec()).collect();
    for _ in 0..INPUTS {
        let mut bytes = valid[rng.usize(0..valid.len())].clone();
        change(&mut rng, &mut bytes, &valid);
        let end = say(&mut grpc, "/raftlock.v1.RaftLock/Session", bytes.clone()).await;
        assert!(ANSWERS.contains(&end), "it ends with {end:?} after {bytes:02x?}");
    }
    still_serves(&cluster, "after").await;
    cluster.end().await;
}

/// What a peer may say by itself: discovery, which asks for no envelope, and what a follower carries for its clients. Then
/// the log's messages, from another cluster. (A member that lies about the log owns the cluster.)
#[tokio::test]
async fn changed_messages_of_peers_do_no_harm() {
    let cluster = TestCluster::start(1).await;
    let mut grpc = connected(&cluster.configs[0].peer_listen).await;
    let mut rng = fastrand::Rng::with_seed(3);
    let mut discovery =
        PeerClient::connect(format!("http://{}", cluster.configs[0].peer_listen)).await.unwrap();
    let us = discovery.hello(peer::HelloRequest::default()).await.expect("it answers").into_inner();
    let target = us.me.clone().expect("it has a name").id;
    let envelope = |cluster_id: &[u8]| peer::Envelope {
        cluster_id: cluster_id.to_vec().into(),
        sender: 99,
        sender_boot: 1,
        target,
        sender_nonce: 5,
    };
    let (ours, foreign) = (Some(envelope(&us.cluster_id)), Some(envelope(&[7; 16])));

    for (method, valid) in discovery_messages(&us).into_iter().chain(carried_messages(ours.clone())) {
        barrage(&mut grpc, &mut rng, &format!("/raftlock.peer.v1.Peer/{method}"), &valid).await;
        still_serves(&cluster, method).await;
    }
    for (method, message) in log_messages(&foreign) {
        let path = format!("/raftlock.peer.v1.Peer/{method}");
        assert_eq!(ask(&mut grpc, &path, message.clone()).await, Code::PermissionDenied, "{method}");
        barrage(&mut grpc, &mut rng, &path, &[message]).await;
        still_serves(&cluster, method).await;
    }
    for (method, message) in streamed_messages(&foreign) {
        let path = format!("/raftlock.peer.v1.Peer/{method}");
        assert_eq!(say(&mut grpc, &path, message.clone()).await, Code::PermissionDenied, "{method}");
    }
    let relay = relayed(ours);
    for (path, valid) in streamed_messages(&foreign).into_iter().chain([("Relay", relay)]) {
        let path = format!("/raftlock.peer.v1.Peer/{path}");
        for _ in 0..INPUTS {
            let mut bytes = valid.clone();
            change(&mut rng, &mut bytes, std::slice::from_ref(&valid));
            let end = say(&mut grpc, &path, bytes.clone()).await;
            assert!(
                ANSWERS.contains(&end) || end == Code::Cancelled,
                "{path} ends with {end:?} after {bytes:02x?}"
            );
        }
        still_serves(&cluster, &path).await;
    }
    assert_eq!(cluster.status(0).term, 1, "nobody was elected anew");
    cluster.end().await;
}

type Valid = (&'static str, Vec<Vec<u8>>);

fn discovery_messages(us: &peer::HelloReply) -> Vec<Valid> {
    let node = peer::Node {
        name: "n9".into(),
        peer_address: "127.0.0.1:1".into(),
        client_address: "127.0.0.1:2".into(),
    };
    let member = peer::Member { id: 99, node: Some(node) };
    let cluster_name = us.cluster_name.clone();
    let hello = peer::HelloRequest { cluster_name: cluster_name.clone(), from: Some(member.clone()) };
    let promise = peer::PromiseRequest {
        cluster_name: cluster_name.clone(),
        cluster_id: vec![7; 16].into(),
        proposer: 99,
        members: vec![member.clone()],
    };
    let forswear = peer::ForswearRequest { cluster_id: vec![7; 16].into(), proposer: 99 };
    let join = peer::JoinRequest { cluster_name: "another".into(), member: Some(member) };
    vec![
        ("Hello", vec![hello.encode_to_vec()]),
        ("Promise", vec![promise.encode_to_vec()]),
        ("Forswear", vec![forswear.encode_to_vec()]),
        ("Join", vec![join.encode_to_vec()]),
    ]
}

fn carried_messages(envelope: Option<peer::Envelope>) -> Vec<Valid> {
    let ping = peer::PingRequest { envelope: envelope.clone() };
    let short = LockRequest { ttl_seconds: 1, request_id: "r".into(), ..lock("k", "c") };
    let message = short.encode_to_vec().into();
    let forward = peer::ForwardRequest {
        envelope,
        method: peer::forward_request::Method::Lock.into(),
        message,
        deadline_ms: 100,
    };
    vec![("Ping", vec![ping.encode_to_vec()]), ("Forward", vec![forward.encode_to_vec()])]
}

fn log_id() -> peer::LogId {
    peer::LogId { term: 9, node: 99, index: 1_000 }
}

fn vote() -> Option<peer::Vote> {
    Some(peer::Vote { term: 9, node: 99, committed: true })
}

fn append(envelope: &Option<peer::Envelope>) -> peer::AppendRequest {
    let entry = peer::Entry { id: Some(log_id()), payload: Some(peer::entry::Payload::Blank(true)) };
    peer::AppendRequest {
        envelope: envelope.clone(),
        vote: vote(),
        prev: None,
        entries: vec![entry],
        commit: Some(log_id()),
        mark: None,
    }
}

fn log_messages(envelope: &Option<peer::Envelope>) -> [(&'static str, Vec<u8>); 3] {
    let ballot = peer::VoteRequest {
        envelope: envelope.clone(),
        vote: vote(),
        last_log: Some(log_id()),
        leadership_transfer: false,
        pre_vote: false,
    };
    let transfer = peer::TransferRequest {
        envelope: envelope.clone(),
        from_leader: vote(),
        to: 99,
        last_log: Some(log_id()),
    };
    [
        ("AppendOnce", append(envelope).encode_to_vec()),
        ("Vote", ballot.encode_to_vec()),
        ("TransferLeader", transfer.encode_to_vec()),
    ]
}

fn streamed_messages(envelope: &Option<peer::Envelope>) -> [(&'static str, Vec<u8>); 2] {
    let meta = peer::SnapshotMeta { id: "s".into(), last_log: Some(log_id()), ..Default::default() };
    let snapshot = peer::SnapshotRequest {
        envelope: envelope.clone(),
        vote: vote(),
        meta: Some(meta),
        ..Default::default()
    };
    [("Append", append(envelope).encode_to_vec()), ("Snapshot", snapshot.encode_to_vec())]
}

fn relayed(envelope: Option<peer::Envelope>) -> Vec<u8> {
    let open = OpenSession { key: 1, secret: vec![7; 16].into(), ttl_ms: 1_000, ..OpenSession::default() };
    let ops = vec![SessionOp { op: Some(Op::Open(open)) }];
    let message = SessionRequest { ops }.encode_to_vec().into();
    let frame = peer::RelayFrame { stream: 1, message, ..Default::default() };
    peer::RelayRequest { envelope, frames: vec![frame] }.encode_to_vec()
}
