//! Bad input: each row of the table of wrong requests gets its answer, and the node goes on serving. Named by row.

use std::time::Duration;

use prost::Message;
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::ticket_outcome::Outcome;
use raftlock_proto::v1::*;
use raftlock_tests::cluster::{PATIENCE, TestCluster, eventually};
use raftlock_tests::raw_codec::RawCodec;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

async fn one_node() -> TestCluster {
    TestCluster::start(1).await
}

fn good(name: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: "me".into(), ttl_seconds: 30, ..Default::default() }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// Every bad Lock is refused as INVALID_ARGUMENT with a message that holds `says`; then a good one is granted.
async fn refused(cluster: &TestCluster, bad: impl IntoIterator<Item = LockRequest>, says: &str) {
    let mut client = cluster.client(0).await;
    for request in bad {
        let shown = format!("{request:?}");
        let status = client.lock(request).await.expect_err(&shown);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?} for {shown:.200}");
        assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
        assert!(!reason(&status).is_empty(), "no machine-readable reason: {status:?}");
    }
    still_serves(cluster).await;
}

async fn still_serves(cluster: &TestCluster) {
    let mut client = cluster.client(0).await;
    let name = "still-serving";
    assert!(client.lock(good(name)).await.expect("it serves").into_inner().success);
    let unlock = UnlockRequest { resource_id: name.into(), client_id: "me".into(), ..Default::default() };
    assert!(client.unlock(unlock).await.expect("it serves").into_inner().success);
}

/// A session stream on a node, spoken by hand.
struct Stream {
    send: mpsc::Sender<SessionRequest>,
    receive: tonic::Streaming<SessionResponse>,
    waiting: std::collections::VecDeque<Event>,
}

impl Stream {
    async fn open(cluster: &TestCluster, at: usize) -> Stream {
        let (send, requests) = mpsc::channel(1_024);
        let receive =
            cluster.client(at).await.session(ReceiverStream::new(requests)).await.expect("a stream");
        Stream { send, receive: receive.into_inner(), waiting: Default::default() }
    }

    async fn say(&self, ops: impl IntoIterator<Item = Op>) {
        let ops = ops.into_iter().map(|op| SessionOp { op: Some(op) }).collect();
        self.send.send(SessionRequest { ops }).await.expect("the stream is open");
    }

    async fn hear(&mut self) -> Result<Event, Status> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            let message =
                tokio::time::timeout(PATIENCE, self.receive.message()).await.expect("an answer in time")?;
            let message = message.ok_or_else(|| Status::cancelled("the stream is over"))?;
            self.waiting.extend(message.events.into_iter().filter_map(|event| event.event));
        }
    }

    async fn outcome(&mut self) -> Outcome {
        loop {
            if let Event::Outcome(outcome) = self.hear().await.expect("an event") {
                return outcome.outcome.expect("an outcome");
            }
        }
    }

    async fn session(&mut self) -> u64 {
        let open = OpenSession {
            key: 1,
            secret: vec![7; 16].into(),
            owner: "me".into(),
            ttl_ms: 10_000,
            number: 1,
            attachment: 1,
        };
        self.say([Op::Open(open)]).await;
        match self.hear().await.expect("an answer") {
            Event::Opened(opened) => opened.session,
            other => panic!("not opened: {other:?}"),
        }
    }

    async fn acquire(&mut self, session: u64, ticket: u64, names: &[&str]) -> Outcome {
        self.say([Op::Acquire(acquire(session, ticket, names))]).await;
        self.outcome().await
    }
}

fn acquire(session: u64, ticket: u64, names: &[&str]) -> Acquire {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Acquire { session, ticket, names, ..Default::default() }
}

fn error_reason(outcome: Outcome) -> String {
    match outcome {
        Outcome::Error(error) => error.reason,
        other => panic!("no error: {other:?}"),
    }
}

#[tokio::test]
async fn row_01_empty_names_and_owners() {
    let cluster = one_node().await;
    refused(&cluster, [LockRequest { resource_id: "".into(), ..good("k") }], "resource_id").await;
    refused(&cluster, [LockRequest { client_id: "".into(), ..good("k") }], "client_id").await;
    cluster.end().await;
}

#[tokio::test]
async fn row_02_names_above_their_bounds_in_bytes() {
    let cluster = one_node().await;
    refused(&cluster, [good(&"x".repeat(513)), good(&"ü".repeat(257))], "512").await;
    refused(&cluster, [LockRequest { client_id: "x".repeat(257), ..good("k") }], "256").await;
    refused(&cluster, [LockRequest { request_id: "x".repeat(257), ..good("k") }], "256").await;
    let longest = "y".repeat(512);
    assert!(
        cluster.client(0).await.lock(good(&longest)).await.expect("512 bytes are fine").into_inner().success
    );
    cluster.end().await;
}

#[tokio::test]
async fn row_03_control_characters_and_their_kin() {
    let cluster = one_node().await;
    let bad = [
        "a\0b",
        "a\nb",
        "a\u{7f}",
        "a\u{85}",
        "a\u{2028}b",
        "a\u{2029}b",
        "a\u{202e}b",
        "a\u{2066}b",
        "a\u{ffff}",
    ];
    refused(&cluster, bad.map(good), "resource_id").await;
    cluster.end().await;
}

#[tokio::test]
async fn row_04_text_that_is_not_utf8() {
    let cluster = one_node().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", cluster.address(0)))
        .expect("an address")
        .connect()
        .await
        .expect("it listens");
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("connected");
    // Field 1, two bytes that are no UTF-8; then a lone surrogate.
    for bytes in [&[0x0a, 0x02, 0xff, 0xfe][..], &[0x0a, 0x03, 0xed, 0xa0, 0x80][..], &[0xff; 7][..]] {
        let path = "/raftlock.v1.RaftLock/Lock".parse().expect("a path");
        let sent: Result<tonic::Response<Vec<u8>>, Status> =
            grpc.unary(tonic::Request::new(bytes.to_vec()), path, RawCodec).await;
        let status = sent.expect_err("no protobuf message");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        grpc.ready().await.expect("the connection goes on");
    }
    still_serves(&cluster).await;
    cluster.end().await;
}

#[tokio::test]
async fn row_05_and_06_odd_names_are_opaque_bytes() {
    let cluster = one_node().await;
    let mut client = cluster.client(0).await;
    let names = ["é", "e\u{301}", "É", "../x", "'; DROP TABLE log; --", "%s%n", "a/b//c/../../d"];
    for name in names {
        assert!(client.lock(good(name)).await.expect("any text").into_inner().success, "{name:?}");
    }
    let listed = client.list_locks(ListLocksRequest::default()).await.expect("listed").into_inner();
    let mut listed: Vec<String> = listed.locks.into_iter().map(|lock| lock.resource_id).collect();
    let mut names = names.map(str::to_owned).to_vec();
    names.sort();
    listed.sort();
    assert_eq!(listed, names, "no two of them are one lock");
    cluster.end().await;
}

#[tokio::test]
async fn row_07_a_ttl_of_0_is_the_default_for_unary_calls_and_an_error_on_a_stream() {
    let cluster = one_node().await;
    let request = LockRequest { ttl_seconds: 0, ..good("k") };
    let granted = cluster.client(0).await.lock(request).await.expect("the default").into_inner();
    assert_eq!((granted.success, granted.remaining_ms), (true, 30_000));
    let mut stream = Stream::open(&cluster, 0).await;
    let open = OpenSession { key: 5, secret: vec![1; 16].into(), owner: "me".into(), ..Default::default() };
    stream.say([Op::Open(open)]).await;
    match stream.hear().await.expect("an answer") {
        Event::Error(error) => {
            let said = error.error.expect("why");
            assert_eq!((error.key, said.reason.as_str()), (5, "INVALID_ARGUMENT"));
            assert!(said.message.contains("ttl_ms"), "{}", said.message);
        }
        other => panic!("opened without a TTL: {other:?}"),
    }
    cluster.end().await;
}

#[tokio::test]
async fn row_08_to_10_ttls_out_of_bounds() {
    let cluster = one_node().await;
    let ttls = [(-1, 0), (0, -5), (0, 999), (24 * 3600 + 1, 0), (i64::MAX, 0), (0, i64::MAX), (i64::MIN, 0)];
    let bad = ttls.map(|(ttl_seconds, ttl_ms)| LockRequest { ttl_seconds, ttl_ms, ..good("k") });
    refused(&cluster, bad, "at least 1 second and at most 24 hours").await;
    refused(&cluster, [LockRequest { ttl_seconds: 5, ttl_ms: 5_000, ..good("k") }], "not both").await;
    cluster.end().await;
}

#[tokio::test]
async fn row_11_waits_out_of_bounds() {
    let cluster = one_node().await;
    let bad = [-1, 600_001, i64::MAX].map(|wait_ms| LockRequest { wait_ms, ..good("k") });
    refused(&cluster, bad, "600000").await;
    cluster.end().await;
}

#[tokio::test]
async fn row_12_a_wait_without_a_deadline_ends_by_itself() {
    let cluster = one_node().await;
    let mut client = cluster.client(0).await;
    client.lock(good("k")).await.expect("granted");
    let waits = LockRequest { client_id: "other".into(), wait_ms: 400, ..good("k") };
    let waited = client.lock(waits).await.expect("OK").into_inner();
    assert!(!waited.success);
    assert_eq!(waited.holder, "me");
    cluster.end().await;
}

#[tokio::test]
async fn row_13_and_14_a_try_on_a_held_lock_is_an_answer() {
    let cluster = one_node().await;
    let mut client = cluster.client(0).await;
    let granted = client.lock(good("k")).await.expect("granted").into_inner();
    let held =
        client.lock(LockRequest { client_id: "b".into(), ..good("k") }).await.expect("OK").into_inner();
    assert!(!held.success && held.remaining_ms > 0);
    assert_eq!((held.holder.as_str(), held.fencing_token), ("me", granted.fencing_token));
    assert_eq!((held.holder_count, held.queue_length), (1, 0));
    cluster.end().await;
}

#[tokio::test]
async fn row_15_an_unknown_session_is_lost() {
    let cluster = one_node().await;
    let mut stream = Stream::open(&cluster, 0).await;
    stream
        .say([Op::Resume(ResumeSession { key: 3, session: 4711, secret: vec![1; 16].into(), attachment: 1 })])
        .await;
    match stream.hear().await.expect("an answer") {
        Event::Lost(lost) => assert_eq!((lost.key, lost.reason()), (3, session_lost::Reason::Expired)),
        other => panic!("{other:?}"),
    }
    // A session that exists, and another's secret: the same answer.
    let session = stream.session().await;
    let mut thief = Stream::open(&cluster, 0).await;
    thief
        .say([Op::Resume(ResumeSession { key: 4, session, secret: vec![9; 16].into(), attachment: 2 })])
        .await;
    assert!(matches!(thief.hear().await, Ok(Event::Lost(lost)) if lost.key == 4));
    cluster.end().await;
}

#[tokio::test]
async fn row_16_17_and_19_old_and_foreign_tokens_have_no_effect() {
    let cluster = one_node().await;
    let mut client = cluster.client(0).await;
    let granted = client.lock(good("k")).await.expect("granted").into_inner();
    let tries = [("me", granted.fencing_token + 1), ("me", u64::MAX), ("other", granted.fencing_token)];
    for (owner, token) in tries {
        let unlock = UnlockRequest {
            resource_id: "k".into(),
            client_id: owner.into(),
            fencing_token: token,
            ..Default::default()
        };
        let answer = client.unlock(unlock).await.expect("OK").into_inner();
        assert!(!answer.success && answer.message.contains("me"), "{answer:?}");
        let renew = RenewRequest {
            resource_id: "k".into(),
            client_id: owner.into(),
            fencing_token: token,
            ..Default::default()
        };
        assert!(!client.renew(renew).await.expect("OK").into_inner().success);
    }
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    let Outcome::Granted(granted) = stream.acquire(session, 1, &["s"]).await else { panic!("granted") };
    let release = |token| Op::Release(Release { session, ticket: 1, token, acked: 0 });
    stream.say([release(granted.token + 1)]).await;
    assert!(matches!(stream.outcome().await, Outcome::NotHolder(_)));
    for _ in 0..2 {
        stream.say([release(granted.token)]).await;
        let outcome = stream.outcome().await;
        let how = finished::How::Released;
        assert!(
            matches!(outcome, Outcome::Finished(done) if done.how() == how),
            "the same answer when repeated"
        );
    }
    cluster.end().await;
}

#[tokio::test]
async fn row_18_a_release_of_a_lock_never_seen() {
    let cluster = one_node().await;
    let unlock = UnlockRequest { resource_id: "never".into(), client_id: "me".into(), ..Default::default() };
    let answer = cluster.client(0).await.unlock(unlock).await.expect("OK").into_inner();
    assert!(!answer.success && answer.message.contains("free"), "{answer:?}");
    cluster.end().await;
}

#[tokio::test]
async fn row_20_an_id_used_again_with_other_arguments() {
    let cluster = one_node().await;
    let mut client = cluster.client(0).await;
    client.lock(LockRequest { request_id: "r".into(), ..good("k") }).await.expect("granted");
    let other = LockRequest { request_id: "r".into(), mode: Mode::Shared.into(), ..good("k") };
    let status = client.lock(other).await.expect_err("reused");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "REQUEST_ID_REUSED"));
    let longer = LockRequest { request_id: "r".into(), ttl_seconds: 60, ..good("k") };
    assert!(client.lock(longer).await.expect("TTL excepted").into_inner().success);

    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    assert!(matches!(stream.acquire(session, 1, &["a"]).await, Outcome::Granted(_)));
    assert_eq!(error_reason(stream.acquire(session, 1, &["b"]).await), "REQUEST_ID_REUSED");
    cluster.end().await;
}

#[tokio::test]
async fn row_21_and_22_tickets_below_and_above_the_window() {
    let cluster = one_node().await;
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    stream.say([Op::Acquire(Acquire { acked: 10, ..acquire(session, 10, &["a"]) })]).await;
    assert!(matches!(stream.outcome().await, Outcome::Granted(_)));
    let old = stream.acquire(session, 3, &["never"]).await;
    assert!(
        matches!(old, Outcome::Finished(done) if done.how() == finished::How::Forgotten),
        "never executed"
    );
    assert_eq!(error_reason(stream.acquire(session, 10 + 65_536, &["b"]).await), "TICKET_GAP");
    let free =
        cluster.client(0).await.get_lock(GetLockRequest { resource_id: "never".into() }).await.expect("read");
    assert_eq!(free.into_inner().holder_count, 0);
    cluster.end().await;
}

#[tokio::test]
async fn row_23_duplicates_and_too_many_locks_in_one_request() {
    let cluster = one_node().await;
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    assert_eq!(error_reason(stream.acquire(session, 1, &["a", "b", "a"]).await), "INVALID_ARGUMENT");
    let many: Vec<String> = (0..65).map(|at| format!("n{at}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(error_reason(stream.acquire(session, 2, &many).await), "INVALID_ARGUMENT");
    assert_eq!(error_reason(stream.acquire(session, 3, &[]).await), "INVALID_ARGUMENT");
    assert!(matches!(stream.acquire(session, 4, &many[..64]).await, Outcome::Granted(_)), "64 are fine");
    cluster.end().await;
}

#[tokio::test]
async fn row_24_metadata_above_4_kib() {
    let cluster = one_node().await;
    let metadata = [("k".to_owned(), "v".repeat(4_096))].into();
    refused(&cluster, [LockRequest { metadata, ..good("k") }], "4096").await;
    cluster.end().await;
}

#[tokio::test]
async fn row_25_more_waiters_than_a_lock_takes() {
    let cluster = TestCluster::start_with(1, |config| config.limits.waiters_per_lock_max = 2).await;
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    assert!(matches!(stream.acquire(session, 1, &["k"]).await, Outcome::Granted(_)));
    for ticket in 2..4 {
        let wait = Some(acquire::Wait::WaitForever(true));
        stream.say([Op::Acquire(Acquire { wait, ..acquire(session, ticket, &["k"]) })]).await;
        assert!(matches!(stream.outcome().await, Outcome::Queued(_)));
    }
    let waits = LockRequest { client_id: "late".into(), wait_ms: 1_000, ..good("k") };
    let status = cluster.client(0).await.lock(waits).await.expect_err("full");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    cluster.end().await;
}

#[tokio::test]
async fn row_26_more_sessions_and_locks_than_the_limits() {
    let cluster = TestCluster::start_with(1, |config| {
        config.limits.sessions_max = 3;
        config.limits.locks_per_session_max = 2;
    })
    .await;
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    assert!(matches!(stream.acquire(session, 1, &["a", "b"]).await, Outcome::Granted(_)));
    assert_eq!(error_reason(stream.acquire(session, 2, &["c"]).await), "LIMIT_REACHED");
    let mut client = cluster.client(0).await;
    for name in ["u1", "u2"] {
        assert!(client.lock(good(name)).await.expect("granted").into_inner().success);
    }
    let status = client.lock(good("u3")).await.expect_err("too many sessions");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "LIMIT_REACHED"));
    cluster.end().await;
}

#[tokio::test]
async fn row_28_the_queue_of_proposals_is_full() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader().await;
    let mut stream = Stream::open(&cluster, leader).await;
    let session = stream.session().await;
    let peers: Vec<String> = cluster.configs.iter().map(|config| config.peer_listen.clone()).collect();
    cluster.switchboard.isolate(&peers[leader], &peers);
    // Nothing is committed any more, so what comes is queued; more than fits is refused and nothing of it executed.
    let mut ticket = 0;
    let busy = async {
        loop {
            let ops = (0..1_000).map(|at| Op::Acquire(acquire(session, ticket + at, &["k"])));
            stream.say(ops.collect::<Vec<_>>()).await;
            ticket += 1_000;
            while let Ok(event) = tokio::time::timeout(Duration::from_millis(1), stream.hear()).await {
                match event.expect("the stream lives") {
                    Event::Outcome(TicketOutcome { outcome: Some(Outcome::Error(error)), .. }) => {
                        return error;
                    }
                    _ => continue,
                }
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, busy).await.expect("the bound is reached");
    assert!(["QUEUE_BUSY", "NOT_LEADER", "NOT_ATTACHED"].contains(&error.reason.as_str()), "{error:?}");
    cluster.switchboard.heal();
    cluster.ready().await;
    eventually("it serves again", async || cluster.client(leader).await.lock(good("after")).await.ok()).await;
    cluster.end().await;
}

#[tokio::test]
async fn row_29_messages_above_64_kib() {
    let cluster = one_node().await;
    let huge = good(&"x".repeat(70_000));
    let status = cluster.client(0).await.lock(huge).await.expect_err("too large");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    stream.say((0..6_000).map(|ticket| Op::Acquire(acquire(session, ticket, &["some-lock-name"])))).await;
    let end = loop {
        match stream.hear().await {
            Ok(_) => continue,
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    still_serves(&cluster).await;
    cluster.end().await;
}

#[tokio::test]
async fn row_36_and_37_without_a_quorum_nothing_is_claimed() {
    let cluster = TestCluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let peers: Vec<String> = cluster.configs.iter().map(|config| config.peer_listen.clone()).collect();
    for peer in &peers {
        cluster.switchboard.isolate(peer, &peers);
    }
    // The old leader may have proposed it: the outcome is unknown, or it was not proposed.
    let mut request = tonic::Request::new(good("k"));
    request.set_timeout(Duration::from_secs(1));
    let status = cluster.client(leader).await.lock(request).await.expect_err("no quorum");
    assert!(
        [Code::DeadlineExceeded, Code::Unavailable, Code::Cancelled].contains(&status.code()),
        "{status:?}"
    );
    // A follower knows in a moment that it can reach nobody.
    let status = eventually("the follower says so", async || {
        let status = cluster.client(follower).await.lock(good("k2")).await.expect_err("no leader");
        (status.code() == Code::Unavailable).then_some(status)
    })
    .await;
    assert_eq!(reason(&status), "NO_LEADER");
    assert!(status.get_error_details().retry_info().is_some(), "says when to try again");
    cluster.switchboard.heal();
    cluster.ready().await;
    eventually("it serves again", async || cluster.client(follower).await.lock(good("k2")).await.ok()).await;
    cluster.end().await;
}

#[tokio::test]
async fn row_38_a_node_that_has_no_cluster_yet_is_not_serving() {
    let cluster = TestCluster::start_with(1, |_| {}).await;
    let mut config = cluster.configs[0].clone();
    let reserved = raftlock_tests::wires::FreePorts::take(3);
    let ports = &reserved.addresses;
    config.data_dir = config.data_dir.with_file_name("alone");
    (config.listen, config.peer_listen) = (ports[0].clone(), ports[1].clone());
    config.seeds = vec![ports[2].clone()];
    config.bootstrap_expect = None;
    let node = raftlock_server::node::Node::start(config, Default::default()).await.expect("it starts");
    let address = format!("http://{}", node.client_address());
    let mut client = raft_lock_client::RaftLockClient::connect(address).await.expect("it listens");
    let status = client.lock(good("k")).await.expect_err("no cluster");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NOT_SERVING"));
    assert!(!node.status().ready);
    node.shutdown().await;
    cluster.end().await;
}

/// `prost` is used for its lengths: a request just below the bound is taken.
#[tokio::test]
async fn a_message_just_below_the_bound_is_taken() {
    let cluster = one_node().await;
    let mut stream = Stream::open(&cluster, 0).await;
    let session = stream.session().await;
    let mut message = SessionRequest::default();
    let mut ticket = 0;
    while message.encoded_len() < 64 * 1024 - 64 {
        ticket += 1;
        message.ops.push(SessionOp { op: Some(Op::Acquire(acquire(session, ticket, &["k"]))) });
    }
    stream.send.send(message).await.expect("the stream is open");
    for _ in 0..ticket {
        stream.outcome().await;
    }
    cluster.end().await;
}
