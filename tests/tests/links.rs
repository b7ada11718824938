//! Links that lie: silent one way, cut and whole again. Nothing acknowledged is lost, nobody is deposed for it, and what
//! was cut off comes back by itself.

use std::time::{Duration, Instant};

use raftlock_proto::v1::*;
use raftlock_tests::cluster::{TestCluster, eventually};

/// After this a silent link must have been replaced: the ping (the shortest election timeout, 300 ms) and its answer as
/// long, and room for a machine that does other things too.
const NOTICED: Duration = Duration::from_secs(5);

fn lock(name: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: "a".into(), ttl_seconds: 60, ..Default::default() }
}

/// Who leads in which term.
async fn office(cluster: &TestCluster) -> (usize, u64) {
    let leader = cluster.leader().await;
    (leader, cluster.status(leader).term)
}

async fn caught_up(cluster: &TestCluster, follower: usize, index: u64) {
    eventually("the follower has what it missed", async || {
        (cluster.status(follower).applied_index >= index).then_some(())
    })
    .await;
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the test measures how long a dead link stays")]
async fn a_link_that_is_silent_one_way_is_noticed_and_replaced() {
    let cluster = TestCluster::start(3).await;
    let (leader, term) = office(&cluster).await;
    let follower = cluster.follower().await;
    let peers = cluster.peers();
    let mut client = cluster.client(leader).await;
    for (round, leader_is_mute) in [true, false].into_iter().enumerate() {
        let dials = cluster.switchboard.dials(&peers[leader], &peers[follower]);
        let muted = Instant::now();
        match leader_is_mute {
            true => cluster.switchboard.mute(&peers[leader], &peers[follower]),
            false => cluster.switchboard.mute(&peers[follower], &peers[leader]),
        }
        eventually("the leader dials again", async || {
            (cluster.switchboard.dials(&peers[leader], &peers[follower]) > dials + 1).then_some(())
        })
        .await;
        assert!(muted.elapsed() < NOTICED, "round {round}: noticed after {:?}", muted.elapsed());
        let granted = client.lock(lock(&format!("k{round}"))).await.expect("the other two are a quorum");
        assert!(granted.into_inner().success);

        let applied = cluster.status(leader).applied_index;
        cluster.switchboard.heal();
        let healed = Instant::now();
        caught_up(&cluster, follower, applied).await;
        assert!(healed.elapsed() < NOTICED, "round {round}: whole again after {:?}", healed.elapsed());
        assert_eq!(office(&cluster).await, (leader, term), "round {round}: nobody was deposed for it");
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_that_was_cut_off_comes_back_without_an_election() {
    let cluster = TestCluster::start(3).await;
    let (leader, term) = office(&cluster).await;
    let follower = cluster.follower().await;
    cluster.switchboard.isolate(&cluster.peers()[follower], &cluster.peers());
    // Two seconds: long enough to stand for election three times. What it must not do is raise its term meanwhile.
    let mut client = cluster.client(leader).await;
    for n in 0..20 {
        client.lock(lock(&format!("k{n}"))).await.expect("the other two are a quorum");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.status(follower).term, term, "it asked first, and nobody would vote for it");
    let applied = cluster.status(leader).applied_index;
    cluster.switchboard.heal();
    caught_up(&cluster, follower, applied).await;
    assert_eq!(office(&cluster).await, (leader, term));
    cluster.end().await;
}
