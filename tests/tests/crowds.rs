//! Many at once, through a follower: locks of one session, and calls that wait.

mod raw;

use std::time::Duration;

use raftlock_proto::v1::*;
use raftlock_tests::cluster::{PATIENCE, TestCluster, eventually};
use raw::{Stream, acquire, lock, patient, reason};
use tokio::sync::mpsc;
use tonic::Code;

/// Each of these tests takes the whole machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A table that checks itself after each batch, as it does in tests, is slow when it is large: no reason for an
/// election.
fn unhurried(config: &mut raftlock_server::config::Config) {
    config.heartbeat = Duration::from_millis(600);
    config.election_min = Duration::from_secs(3);
    config.election_max = Duration::from_secs(6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_session_with_many_locks_resumes_through_a_follower() {
    let _alone = ALONE.lock().await;
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
    let _alone = ALONE.lock().await;
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
