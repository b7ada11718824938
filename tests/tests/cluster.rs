//! Three nodes in one process: any node answers, nothing acknowledged is lost, a follower that is far behind is
//! caught up by a snapshot.

use std::sync::Arc;
use std::time::Duration;

use raftlock_proto::v1::*;
use raftlock_server::clock::{Clock, SystemClock};
use raftlock_server::node::Seams;
use raftlock_tests::cluster::{PATIENCE, TestCluster, eventually};
use tonic::Code;

fn lock(name: &str, owner: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: owner.into(), ttl_seconds: 30, ..Default::default() }
}

#[tokio::test]
async fn every_node_answers_and_names_the_same_cluster() {
    let cluster = TestCluster::start(3).await;
    let mut ids = Vec::new();
    for at in 0..3 {
        let mut client = cluster.client(at).await;
        let name = format!("job-{at}");
        let answer = client.lock(lock(&name, "worker-42")).await.expect("any node locks");
        ids.push(answer.metadata().get("raftlock-cluster-id").expect("named").clone());
        let granted = answer.into_inner();
        assert!(granted.success, "{granted:?}");
        assert_eq!(granted.message, "Lock acquired");

        let held = client.lock(lock(&name, "other")).await.expect("held is an answer").into_inner();
        assert!(!held.success);
        assert_eq!((held.holder.as_str(), held.fencing_token), ("worker-42", granted.fencing_token));

        let view =
            client.get_lock(GetLockRequest { resource_id: name.clone() }).await.expect("read").into_inner();
        assert_eq!(view.holders[0].fencing_token, granted.fencing_token);

        let unlock = UnlockRequest { resource_id: name, client_id: "worker-42".into(), ..Default::default() };
        let released = client.unlock(unlock).await.expect("any node unlocks").into_inner();
        assert_eq!((released.success, released.message.as_str()), (true, "Lock released"));
    }
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_that_is_asked_not_to_forward_names_the_leader() {
    let cluster = TestCluster::start(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut request = tonic::Request::new(lock("k", "a"));
    request.metadata_mut().insert("raftlock-no-forward", "1".parse().expect("ASCII"));
    let status = cluster.client(follower).await.lock(request).await.expect_err("not the leader");
    assert_eq!(status.code(), Code::Unavailable);
    use tonic_types::StatusExt;
    let details = status.get_error_details();
    let info = details.error_info().expect("a reason");
    assert_eq!(info.reason, "NOT_LEADER");
    assert_eq!(info.metadata["leader_endpoint"], cluster.address(leader));
    cluster.end().await;
}

#[tokio::test]
async fn a_lock_outlives_the_crash_of_the_leader_and_of_all_nodes() {
    let mut cluster = TestCluster::start(3).await;
    let follower = cluster.follower().await;
    let granted = cluster.client(follower).await.lock(lock("k", "a")).await.expect("granted").into_inner();
    assert!(granted.success);

    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    let token = eventually("the survivors serve", async || {
        let view =
            cluster.client(follower).await.get_lock(GetLockRequest { resource_id: "k".into() }).await.ok()?;
        Some(view.into_inner().holders.first()?.fencing_token)
    });
    assert_eq!(token.await, granted.fencing_token);

    for at in (0..3).filter(|at| *at != leader) {
        cluster.kill(at).await;
    }
    for at in 0..3 {
        cluster.restart(at).await;
    }
    cluster.ready().await;
    for at in 0..3 {
        let held = eventually("each node answers again", async || {
            Some(cluster.client(at).await.lock(lock("k", "b")).await.ok()?.into_inner())
        });
        assert_eq!((held.await.holder.as_str(), granted.success), ("a", true));
    }
    let other = eventually("new grants", async || {
        Some(cluster.client(0).await.lock(lock("k2", "b")).await.ok()?.into_inner())
    });
    assert!(other.await.fencing_token > granted.fencing_token, "tokens rise across restarts");
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_far_behind_is_caught_up_by_a_snapshot() {
    let mut cluster = TestCluster::start_with(3, |config| config.snapshot_log_bytes = 20_000).await;
    let down = cluster.follower().await;
    let had = cluster.nodes[down].as_ref().expect("it is up").status().last_log_index;
    cluster.stop(down).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader).await;
    // Until the log that the follower needs is gone everywhere.
    let mut count = 0;
    let purged = eventually("the log is purged", async || {
        for _ in 0..50 {
            count += 1;
            let granted =
                client.lock(lock(&format!("lock-{count}"), &"x".repeat(200))).await.ok()?.into_inner();
            assert!(granted.success);
        }
        let status = cluster.nodes[leader].as_ref()?.status();
        (status.purged_index > had).then_some(())
    });
    purged.await;
    cluster.restart(down).await;
    let node = cluster.nodes[down].as_ref().expect("it is up");
    tokio::time::timeout(PATIENCE, node.ready()).await.expect("it finds the leader");
    let applied = cluster.nodes[leader].as_ref().expect("it is up").status().applied_index;
    eventually("the follower has caught up", async || {
        let status = cluster.nodes[down].as_ref()?.status();
        (status.applied_index >= applied && status.locks >= count).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test]
async fn a_leader_cut_off_from_the_others_grants_nothing() {
    let cluster = TestCluster::start(3).await;
    let old = cluster.leader().await;
    let peers: Vec<String> = cluster.configs.iter().map(|config| config.peer_listen.clone()).collect();
    cluster.switchboard.isolate(&peers[old], &peers);
    let new = (old + 1) % 3;
    let granted = eventually("the majority grants", async || {
        let granted = cluster.client(new).await.lock(lock("k", "majority")).await.ok()?.into_inner();
        granted.success.then_some(granted)
    })
    .await;
    let mut request = tonic::Request::new(lock("k", "minority"));
    request.set_timeout(Duration::from_secs(2));
    let refused = cluster.client(old).await.lock(request).await;
    assert!(refused.as_ref().is_err() || !refused.as_ref().is_ok_and(|a| a.get_ref().success), "{refused:?}");
    cluster.switchboard.heal();
    let held = eventually("the old leader follows", async || {
        Some(cluster.client(old).await.lock(lock("k", "late")).await.ok()?.into_inner())
    })
    .await;
    assert_eq!((held.holder.as_str(), held.fencing_token), ("majority", granted.fencing_token));
    cluster.end().await;
}

#[tokio::test]
async fn a_node_that_is_up_alone_serves_nothing_not_even_reads() {
    let mut cluster = TestCluster::start(3).await;
    let granted = cluster.client(0).await.lock(lock("k", "a")).await.expect("granted").into_inner();
    assert!(granted.success);
    // The leader too: it comes back with the highest log and vote there is.
    let alone = cluster.leader().await;
    for at in 0..3 {
        cluster.kill(at).await;
    }
    cluster.restart(alone).await;
    let mut client = cluster.client(alone).await;
    let watched = tokio::time::Instant::now();
    // Three of the longest election timeouts, and a little.
    while watched.elapsed() < Duration::from_secs(2) {
        let read = client.get_lock(GetLockRequest { resource_id: "k".into() }).await;
        assert_eq!(read.expect_err("no quorum").code(), Code::Unavailable);
        let list = client.list_locks(ListLocksRequest::default()).await;
        assert_eq!(list.expect_err("no quorum").code(), Code::Unavailable);
        let write = client.lock(lock("k2", "a")).await;
        assert_eq!(write.expect_err("no quorum").code(), Code::Unavailable);
        let status = cluster.status(alone);
        assert!(!status.ready && status.leader_name.is_empty(), "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // And with a second one everything is there.
    cluster.restart((alone + 1) % 3).await;
    let token = eventually("two serve", async || {
        let view = client.get_lock(GetLockRequest { resource_id: "k".into() }).await.ok()?.into_inner();
        Some(view.holders.first()?.fencing_token)
    });
    assert_eq!(token.await, granted.fencing_token);
    cluster.end().await;
}

/// A machine whose clock runs away.
#[derive(Debug)]
struct DoubleTime(Arc<dyn Clock>);

impl Clock for DoubleTime {
    fn monotonic(&self) -> Duration {
        self.0.monotonic() * 2
    }

    fn unix_seconds(&self) -> u64 {
        self.0.unix_seconds()
    }
}

#[tokio::test]
async fn a_clock_that_runs_away_is_seen_by_the_others() {
    let wrong = |at, seams: Seams| match at {
        0 => Seams { clock: Arc::new(DoubleTime(SystemClock::shared())), ..seams },
        _ => seams,
    };
    let cluster = TestCluster::start_on(3, |_| {}, wrong).await;
    let leader = cluster.leader().await;
    assert!(cluster.client(leader).await.lock(lock("k", "a")).await.expect("granted").into_inner().success);
    // Time matters now that a session lives. If the wrong clock leads, the others see cluster time run ahead; if it
    // follows, it sees cluster time lag, and the others see nothing wrong. They look again every few seconds, so that a
    // busy machine, on which time does lag, only makes it later.
    eventually("all have compared, and said so", async || {
        let leads = |at| cluster.status(at).node.is_some_and(|node| node.role == "leader");
        let wrong_leads = leads(0);
        let expected = |at| match (at == 0, wrong_leads) {
            (true, true) | (false, false) => "steady",
            (true, false) => "slow",
            (false, true) => "fast",
        };
        (0..3).all(|at| cluster.status(at).cluster_clock == expected(at)).then_some(())
    })
    .await;
    cluster.end().await;
}
