//! Three nodes whose links are cut: everybody who asked is answered, nobody is left waiting at a node that cannot
//! help, and what was under way happens once at most.

mod raw;

use std::time::Duration;

use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::*;
use raftlock_tests::cluster::{PATIENCE, TestCluster, eventually};
use raw::{Stream, acquire, lock, patient, reason};
use tonic::{Code, Status};

/// Not executed, or nobody knows; and it says which.
fn is_told(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => ["NO_LEADER", "NOT_LEADER"].contains(&reason(status).as_str()),
        Code::DeadlineExceeded => reason(status) == "OUTCOME_UNKNOWN",
        _ => false,
    }
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
    let (old, peers) = (cluster.leader().await, cluster.peers());
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
    let (leader, peers) = (cluster.leader().await, cluster.peers());
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
    let (leader, follower, peers) = (cluster.leader().await, cluster.follower().await, cluster.peers());
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
