//! Three nodes whose links are cut: everybody who asked is answered, nobody is left waiting at a node that cannot
//! help, and what was under way happens once at most.

use std::collections::VecDeque;
use std::time::Duration;

use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::ticket_outcome::Outcome;
use raftlock_proto::v1::*;
use raftlock_tests::cluster::{PATIENCE, TestCluster, eventually};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

fn lock(name: &str, owner: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: owner.into(), ttl_seconds: 60, ..Default::default() }
}

/// With a deadline that no test waits for, so that only the server can have ended the call.
fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE * 4);
    request
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// Not executed, or nobody knows; and it says which.
fn is_told(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => ["NO_LEADER", "NOT_LEADER"].contains(&reason(status).as_str()),
        Code::DeadlineExceeded => reason(status) == "OUTCOME_UNKNOWN",
        _ => false,
    }
}

/// A session stream on a node, spoken by hand.
struct Stream {
    send: mpsc::Sender<SessionRequest>,
    receive: tonic::Streaming<SessionResponse>,
    waiting: VecDeque<Event>,
}

impl Stream {
    async fn open(cluster: &TestCluster, at: usize) -> Stream {
        let (send, requests) = mpsc::channel(1_024);
        let receive =
            cluster.client(at).await.session(ReceiverStream::new(requests)).await.expect("a stream");
        Stream { send, receive: receive.into_inner(), waiting: VecDeque::new() }
    }

    async fn say(&self, ops: impl IntoIterator<Item = Op>) {
        let ops = ops.into_iter().map(|op| SessionOp { op: Some(op) }).collect();
        self.send.send(SessionRequest { ops }).await.expect("the stream is open");
    }

    async fn hear(&mut self) -> Event {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            let message = tokio::time::timeout(PATIENCE, self.receive.message()).await;
            let message = message.expect("a word in time").expect("the stream goes on").expect("no end");
            self.waiting.extend(message.events.into_iter().filter_map(|event| event.event));
        }
    }

    /// Hears on until `of` finds what it wants.
    async fn until<T>(&mut self, mut of: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = of(self.hear().await) {
                return found;
            }
        }
    }

    async fn session(&mut self) -> u64 {
        self.say([Op::Open(OpenSession {
            key: 1,
            secret: vec![7; 16].into(),
            owner: "session".into(),
            ttl_ms: 60_000,
            number: 1,
            attachment: 1,
        })])
        .await;
        self.until(|event| match event {
            Event::Opened(opened) => Some(opened.session),
            _ => None,
        })
        .await
    }

    async fn resume(&mut self, session: u64) -> Vec<HeldTicket> {
        let secret = vec![7; 16].into();
        self.say([Op::Resume(ResumeSession { key: 2, session, secret, attachment: 2 })]).await;
        let mut held = Vec::new();
        self.until(|event| match event {
            Event::Resumed(part) => {
                held.extend(part.held);
                (!part.more).then_some(())
            }
            Event::Error(error) => panic!("{error:?}"),
            _ => None,
        })
        .await;
        held
    }

    async fn granted(&mut self, ticket: u64) -> u64 {
        self.until(|event| match event {
            Event::Outcome(outcome) if outcome.ticket == ticket => match outcome.outcome {
                Some(Outcome::Granted(granted)) => Some(granted.token),
                other => panic!("{other:?}"),
            },
            _ => None,
        })
        .await
    }

    async fn hear_moved(&mut self) {
        self.until(|event| matches!(event, Event::Moved(_)).then_some(())).await;
    }

    async fn hear_draining(&mut self) {
        self.until(|event| matches!(event, Event::Draining(_)).then_some(())).await;
    }
}

fn acquire(session: u64, ticket: u64, name: String) -> Op {
    Op::Acquire(Acquire { session, ticket, names: vec![name], ..Default::default() })
}

fn peers(cluster: &TestCluster) -> Vec<String> {
    cluster.configs.iter().map(|config| config.peer_listen.clone()).collect()
}

async fn holders(cluster: &TestCluster, at: usize, name: &str) -> Vec<LockHolder> {
    eventually("the node reads", async || {
        let view =
            cluster.client(at).await.get_lock(GetLockRequest { resource_id: name.into() }).await.ok()?;
        Some(view.into_inner().holders)
    })
    .await
}

#[tokio::test]
async fn a_leader_cut_off_from_its_quorum_answers_everybody() {
    const CALLS: usize = 40;
    let cluster = TestCluster::start(3).await;
    let (old, peers) = (cluster.leader().await, peers(&cluster));
    let mut stream = Stream::open(&cluster, old).await;
    let session = stream.session().await;
    let client = cluster.client(old).await;
    assert!(client.clone().lock(lock("held", "a")).await.expect("granted").into_inner().success);
    let waits = LockRequest { wait_ms: 600_000, ..lock("held", "b") };
    let parked = tokio::spawn({
        let mut client = client.clone();
        async move { client.lock(patient(waits)).await }
    });
    eventually("the call is parked", async || {
        let view = client.clone().get_lock(GetLockRequest { resource_id: "held".into() }).await.ok()?;
        (view.into_inner().queue_length == 1).then_some(())
    })
    .await;

    cluster.switchboard.isolate(&peers[old], &peers);
    // Some of these are appended by the old leader, some only queued, some come when it serves no more.
    stream.say([acquire(session, 1, "s".into())]).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|at| {
            let mut client = client.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(at as u64 * 60)).await;
                client.lock(patient(lock(&format!("x-{at}"), "a"))).await
            })
        })
        .collect();
    let mut kinds = std::collections::BTreeSet::new();
    for call in calls.into_iter().chain([parked]) {
        let answer = tokio::time::timeout(PATIENCE, call).await.expect("answered in time");
        let status = answer.expect("no panic").expect_err("nothing is granted without a quorum");
        assert!(is_told(&status), "{status:?}");
        kinds.insert(reason(&status));
    }
    assert!(kinds.contains("OUTCOME_UNKNOWN") && kinds.contains("NO_LEADER"), "{kinds:?}");
    stream.hear_draining().await;

    cluster.switchboard.heal();
    stream.hear_moved().await;
    let held = stream.resume(session).await;
    stream.say([acquire(session, 1, "s".into())]).await;
    let token = stream.granted(1).await;
    assert!(held.iter().all(|held| held.token == token), "granted twice: {held:?} and {token}");
    assert_eq!(holders(&cluster, old, "s").await.len(), 1);
    for at in 0..CALLS {
        let name = format!("x-{at}");
        let again = eventually("the old leader follows", async || {
            Some(cluster.client(old).await.lock(lock(&name, "a")).await.ok()?.into_inner())
        })
        .await;
        assert!(again.success, "{again:?}");
        let holders = holders(&cluster, old, &name).await;
        assert_eq!(holders.len(), 1, "one holder, however often it was asked for: {holders:?}");
        assert_eq!(holders[0].fencing_token, again.fencing_token);
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_leader_whose_quorum_comes_back_takes_up_its_office_again() {
    let cluster = TestCluster::start(3).await;
    let (leader, peers) = (cluster.leader().await, peers(&cluster));
    let status = || cluster.nodes[leader].as_ref().expect("it is up").status();
    let term = status().term;
    let mut stream = Stream::open(&cluster, leader).await;
    let session = stream.session().await;
    let mut client = cluster.client(leader).await;

    for node in &peers {
        cluster.switchboard.isolate(node, &peers);
    }
    let unknown = client.lock(patient(lock("k", "a"))).await.expect_err("no quorum");
    assert!(is_told(&unknown), "{unknown:?}");
    stream.hear_draining().await;
    assert!(!status().ready);
    // Only the leader's way to the others is whole again, so nobody else can be elected.
    for node in peers.iter().filter(|node| **node != peers[leader]) {
        cluster.switchboard.mend(&peers[leader], node);
    }
    stream.hear_moved().await;
    assert_eq!(stream.resume(session).await, []);
    stream.say([acquire(session, 1, "s".into())]).await;
    stream.granted(1).await;
    let granted = client.lock(lock("k", "a")).await.expect("it serves again").into_inner();
    assert!(granted.success, "{granted:?}");
    assert_eq!(holders(&cluster, leader, "k").await.len(), 1);
    let now = status();
    assert_eq!((now.term, now.ready), (term, true), "the same leadership");

    // Time goes on in the new office.
    let before = now.cluster_time_ms;
    eventually("cluster time moves", async || (status().cluster_time_ms > before + 1_000).then_some(()))
        .await;
    cluster.switchboard.heal();
    cluster.end().await;
}

#[tokio::test]
async fn an_idle_leader_keeps_its_office() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader().await;
    let mut stream = Stream::open(&cluster, leader).await;
    // No session, so nothing is proposed: only heartbeats are answered. Longer than a leader may hear nothing.
    let quiet = tokio::time::timeout(Duration::from_secs(4), stream.hear()).await;
    assert!(quiet.is_err(), "the stream was told {quiet:?}");
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_that_loses_its_leader_sends_its_clients_away_once() {
    let cluster = TestCluster::start(3).await;
    let (leader, follower, peers) = (cluster.leader().await, cluster.follower().await, peers(&cluster));
    let third = 3 - leader - follower;
    let mut stream = Stream::open(&cluster, follower).await;
    let session = stream.session().await;
    // The third node is a bridge: it hears both, so the leader stays and the follower finds no other.
    cluster.switchboard.cut(&peers[follower], &peers[leader]);
    cluster.switchboard.cut(&peers[leader], &peers[follower]);
    stream.say([acquire(session, 1, "s".into())]).await;
    stream.hear_draining().await;
    let mut elsewhere = Stream::open(&cluster, third).await;
    let held = elsewhere.resume(session).await;
    elsewhere.say([acquire(session, 1, "s".into())]).await;
    let token = elsewhere.granted(1).await;
    assert!(held.iter().all(|held| held.token == token), "granted twice: {held:?} and {token}");

    // A client that stayed keeps its stream.
    cluster.switchboard.heal();
    let mut drained = 0;
    stream
        .until(|event| match event {
            Event::Moved(_) => Some(()),
            Event::Draining(_) => {
                drained += 1;
                None
            }
            _ => None,
        })
        .await;
    assert_eq!(drained, 0, "told once an outage");
    cluster.end().await;
}

/// A table that checks itself after each batch, as it does in tests, is slow when it is large: no reason for an
/// election.
fn unhurried(config: &mut raftlock_server::config::Config) {
    config.heartbeat = Duration::from_millis(600);
    config.election_min = Duration::from_secs(3);
    config.election_max = Duration::from_secs(6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_session_with_many_locks_resumes_through_a_follower() {
    // Ten parts of an answer; the leader sends eight ahead of what the client has read.
    const LOCKS: u64 = 10_000;
    const A_MESSAGE: u64 = 1_000;
    let cluster = TestCluster::start_with(3, unhurried).await;
    let follower = cluster.follower().await;
    let mut stream = Stream::open(&cluster, follower).await;
    let session = stream.session().await;
    for first in (1..=LOCKS).step_by(A_MESSAGE as usize) {
        let tickets = first..first + A_MESSAGE;
        stream.say(tickets.clone().map(|ticket| acquire(session, ticket, format!("n{ticket}")))).await;
        stream.granted(tickets.end - 1).await;
    }
    let mut again = Stream::open(&cluster, follower).await;
    let held = again.resume(session).await;
    assert!(held.iter().map(|held| held.ticket).eq(1..=LOCKS), "{} tickets", held.len());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn calls_that_wait_leave_room_for_others_on_the_way_to_the_leader() {
    // A follower lets 3,072 of them wait at the leader.
    const WAITS: usize = 3_072;
    const TOO_MANY: usize = 20;
    let cluster = TestCluster::start_with(3, unhurried).await;
    let follower = cluster.follower().await;
    let mut client = cluster.client(follower).await;
    assert!(client.lock(lock("busy", "a")).await.expect("granted").into_inner().success);
    let (answers, mut answered) = mpsc::channel(WAITS + TOO_MANY);
    let waits: Vec<_> = (0..WAITS + TOO_MANY)
        .map(|at| {
            let (mut client, answers) = (client.clone(), answers.clone());
            let request = LockRequest { wait_ms: 600_000, ..lock("busy", &format!("w-{at}")) };
            tokio::spawn(async move { answers.send(client.lock(patient(request)).await).await })
        })
        .collect();
    for _ in 0..TOO_MANY {
        let answer = tokio::time::timeout(PATIENCE, answered.recv()).await.expect("refused in time");
        let status = answer.expect("held here").expect_err("no place is left");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unavailable, "QUEUE_BUSY"),
            "{status:?}"
        );
    }
    // Calls and sessions that do not wait have their way.
    let free = tokio::time::timeout(PATIENCE, client.lock(lock("free", "a"))).await.expect("in time");
    assert!(free.expect("answered").into_inner().success);
    let mut stream = Stream::open(&cluster, follower).await;
    let session = stream.session().await;
    stream.say([acquire(session, 1, "s".into())]).await;
    stream.granted(1).await;
    // A place that was given up is free again.
    waits.iter().for_each(|wait| wait.abort());
    let request = LockRequest { wait_ms: 1, ..lock("busy", "late") };
    eventually("a wait finds a place", async || {
        let answer = client.lock(request.clone()).await.ok()?.into_inner();
        (!answer.success).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test]
async fn a_stopping_leader_hands_over_to_a_voter_that_is_alive() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.leader().await;
    let id = |at: usize| {
        let status = cluster.nodes[at].as_ref().expect("it is up").status();
        status.node.expect("it is somebody").id
    };
    let mut others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    others.sort_by_key(|at| id(*at));
    let (alive, dead) = (others[0], others[1]);
    // Both have the whole log, and nothing tells them apart but that one answers no more.
    eventually("the followers have the whole log", async || {
        let status = cluster.nodes[leader].as_ref()?.status();
        let mut followers = status.members.iter().filter(|member| !member.leader);
        followers.all(|member| member.matched_index == Some(status.last_log_index)).then_some(())
    })
    .await;
    cluster.kill(dead).await;
    tokio::time::sleep(Duration::from_millis(400)).await; // its last answer is stale by now
    cluster.stop(leader).await;
    let node = cluster.nodes[alive].as_ref().expect("it is up").status().node.expect("it is somebody");
    assert_eq!(node.role, "leader", "without the old leader's vote it can never be elected");
    cluster.restart(leader).await;
    cluster.ready().await;
    cluster.end().await;
}
