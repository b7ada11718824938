//! Large snapshots: they hold up nobody while they are taken and while they travel, and a broken transfer goes on where
//! it ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_proto::v1::*;
use raftlock_tests::cluster::{TestCluster, eventually};
use tonic::transport::Channel;

/// Of metadata in each lock: the most there may be.
const METADATA_BYTES: usize = 4_000;

/// Locks of a table whose snapshot has some 6 MB: many chunks, and a debug build still checks it after each batch.
const LOCKS: usize = 1_500;

/// No answer may take longer. A heartbeat that is late by this much would have cost several elections.
const SLOWEST: Duration = Duration::from_secs(3);

fn heavy(number: usize) -> LockRequest {
    let metadata = BTreeMap::from([("m".to_owned(), "x".repeat(METADATA_BYTES))]);
    LockRequest {
        resource_id: format!("heavy-{number}"),
        client_id: "loader".into(),
        ttl_seconds: 600,
        metadata: metadata.into_iter().collect(),
        ..Default::default()
    }
}

/// A cluster with one node down, a large table on the others, a snapshot of all of it, and no log that the node could
/// still use.
async fn loaded() -> (TestCluster, usize, usize) {
    let mut cluster = TestCluster::start_with(3, |config| {
        config.snapshot_log_bytes = 1 << 19;
        // A debug build on a busy machine: these tests are about snapshots, and an election would only be in the way.
        config.heartbeat = Duration::from_millis(200);
        (config.election_min, config.election_max) =
            (Duration::from_millis(1_500), Duration::from_millis(2_500));
    })
    .await;
    let down = cluster.follower().await;
    let had = cluster.status(down).last_log_index;
    cluster.stop(down).await;
    let leader = cluster.leader().await;
    let client = cluster.client(leader).await;
    load(&client, LOCKS).await;
    let all = cluster.status(leader).applied_index;
    eventually("a snapshot has all of it, and the log that the node needs is gone", async || {
        load(&client, 50).await;
        // A leader looks twice a second: what is written meanwhile should be little beside the table.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = cluster.status(leader);
        (status.purged_index > had && status.snapshot_index >= all).then_some(())
    })
    .await;
    (cluster, leader, down)
}

/// Takes the first `count` locks, or renews them.
async fn load(client: &RaftLockClient<Channel>, count: usize) {
    let calls = stream::iter(0..count).map(|number| {
        let mut client = client.clone();
        async move { client.lock(heavy(number)).await.expect("granted") }
    });
    calls.buffer_unordered(64).for_each(async |_| {}).await;
}

/// One caller after another, and how long the slowest of them waited.
struct Prober {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Duration>,
}

impl Prober {
    #[allow(clippy::disallowed_methods, reason = "the test measures how long answers take")]
    fn start(mut client: RaftLockClient<Channel>) -> Prober {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), answered.clone());
        let task = tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let name = "probe".to_owned();
                let lock = LockRequest {
                    resource_id: name.clone(),
                    client_id: "prober".into(),
                    ..Default::default()
                };
                assert!(client.lock(lock).await.expect("granted").into_inner().success);
                let unlock =
                    UnlockRequest { resource_id: name, client_id: "prober".into(), ..Default::default() };
                assert!(client.unlock(unlock).await.expect("released").into_inner().success);
                slowest = slowest.max(asked.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
            }
            slowest
        });
        Prober { stop, answered, task }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    async fn slowest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every call was answered")
    }
}

async fn caught_up(cluster: &TestCluster, node: usize, index: u64) {
    eventually("the node has caught up", async || {
        (cluster.status(node).applied_index >= index).then_some(())
    })
    .await;
}

/// The link breaks after every half of the snapshot: no transfer that began again from the start would ever end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_broke_off_goes_on_where_it_ended() {
    /// A half brings at least two chunks across: the leader's probes with log entries, and the four chunks that are
    /// under way at the cut, are some 2 MB of its 3.
    const CUTS_MAX: usize = 12;
    let (mut cluster, leader, down) = loaded().await;
    let (from, to) = (cluster.peers()[leader].clone(), cluster.peers()[down].clone());
    let applied = cluster.status(leader).applied_index;
    let half = (LOCKS * METADATA_BYTES / 2) as u64;
    let mut cuts = 0;
    cluster.switchboard.cut_after(&from, &to, half);
    cluster.restart(down).await;
    loop {
        let done = eventually("the link is cut, or all is there", async || {
            let done = cluster.status(down).applied_index >= applied;
            (done || cluster.switchboard.is_cut(&from, &to)).then_some(done)
        })
        .await;
        if done {
            break;
        }
        cuts += 1;
        assert!(cuts <= CUTS_MAX, "it began again from the start, each time");
        cluster.switchboard.cut_after(&from, &to, half);
        cluster.switchboard.heal();
    }
    println!("{cuts} cuts");
    assert!(cuts > 0, "no link was cut");
    assert!(cluster.status(down).locks as usize >= LOCKS);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_go_on_while_large_snapshots_are_taken_and_travel() {
    let (mut cluster, leader, down) = loaded().await;
    let client = cluster.client(leader).await;
    let term = cluster.status(leader).term;
    let prober = Prober::start(client.clone());

    let snapshot = cluster.status(leader).snapshot_index;
    load(&client, LOCKS).await;
    eventually("a snapshot of the large table was taken", async || {
        load(&client, 50).await;
        (cluster.status(leader).snapshot_index > snapshot).then_some(())
    })
    .await;
    let while_taken = prober.answered();
    assert!(while_taken > 0, "nobody was answered while the snapshot was taken");

    // Travelling.
    let applied = cluster.status(leader).applied_index;
    cluster.restart(down).await;
    caught_up(&cluster, down, applied).await;
    let while_travelling = prober.answered() - while_taken;
    let slowest = prober.slowest().await;
    println!("answered {while_taken} while taken, {while_travelling} while travelling; slowest {slowest:?}");
    assert!(while_travelling > 0, "nobody was answered while the snapshot travelled");
    assert!(slowest < SLOWEST, "somebody waited {slowest:?}");
    assert_eq!(cluster.status(leader).term, term, "no election for it");
    cluster.end().await;
}
