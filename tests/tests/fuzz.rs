//! Requests that nobody wrote, at every method of a real node: each gets an answer that is documented, and the node goes on
//! serving. (`prove fuzz` has the decoders behind them.)

mod raw;

use prost::Message;
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
const ANSWERS: [Code; 8] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
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

async fn connected(cluster: &TestCluster) -> Grpc<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", cluster.address(0)));
    let mut grpc = Grpc::new(endpoint.expect("an address").connect().await.expect("it listens"));
    grpc.ready().await.expect("connected");
    grpc
}

async fn still_serves(cluster: &TestCluster, name: &str) {
    let answer = cluster.client(0).await.lock(lock(name, "still")).await.expect("it serves");
    assert!(answer.into_inner().success, "{name}");
}

#[tokio::test]
async fn changed_requests_get_an_answer_of_ours() {
    let cluster = TestCluster::start(1).await;
    let mut grpc = connected(&cluster).await;
    let mut rng = fastrand::Rng::with_seed(1);
    for (method, valid) in requests() {
        let mut refused = 0;
        for _ in 0..INPUTS {
            let mut bytes = valid[rng.usize(0..valid.len())].clone();
            change(&mut rng, &mut bytes, &valid);
            let mut request = Request::new(bytes.clone());
            // One that asks to wait is given up.
            request.set_timeout(std::time::Duration::from_millis(500));
            let path = format!("/raftlock.v1.{method}").parse().expect("a path");
            let sent: Result<tonic::Response<Vec<u8>>, Status> = grpc.unary(request, path, RawCodec).await;
            let code = sent.map_or_else(|status| status.code(), |_| Code::Ok);
            assert!(
                ANSWERS.contains(&code) || code == Code::Cancelled,
                "{method} answers {code:?} to {bytes:02x?}"
            );
            refused += usize::from(code == Code::InvalidArgument);
            grpc.ready().await.expect("the connection goes on");
        }
        assert!(refused < INPUTS, "{method}: all refused, nothing behind the decoder was reached");
        still_serves(&cluster, method).await;
    }
    cluster.end().await;
}

#[tokio::test]
async fn changed_messages_on_a_session_stream_end_it_or_are_answered() {
    let cluster = TestCluster::start(1).await;
    let mut grpc = connected(&cluster).await;
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
        let path = "/raftlock.v1.RaftLock/Session".parse().expect("a path");
        // It says one thing and goodbye.
        let stream = tokio_stream::iter([bytes.clone()]);
        let begun: Result<tonic::Response<tonic::Streaming<Vec<u8>>>, Status> =
            grpc.streaming(Request::new(stream), path, RawCodec).await;
        let mut answers = begun.expect("a stream").into_inner();
        let end = loop {
            match timeout(PATIENCE, answers.message()).await.expect("an answer or the end") {
                Ok(Some(_)) => {}
                Ok(None) => break Code::Ok,
                Err(status) => break status.code(),
            }
        };
        assert!(ANSWERS.contains(&end), "it ends with {end:?} after {bytes:02x?}");
        grpc.ready().await.expect("the connection goes on");
    }
    still_serves(&cluster, "after").await;
    cluster.end().await;
}
