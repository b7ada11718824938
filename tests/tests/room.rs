//! A disk with too little room: new locks are refused by name, what is held is served on, and the office goes to a node
//! that has room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raftlock::Client;
use raftlock_proto::v1::*;
use raftlock_server::node::Seams;
use raftlock_server::store::{FreeSpace, Space, Store, StoreError};
use raftlock_tests::cluster::{TestCluster, eventually};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const GIB: u64 = 1 << 30;

/// What each node's disk says is free.
#[derive(Clone, Debug)]
struct Disks(Arc<Vec<AtomicU64>>);

impl Disks {
    fn roomy(count: usize) -> Disks {
        Disks(Arc::new((0..count).map(|_| AtomicU64::new(500 * GIB)).collect()))
    }

    fn set(&self, at: usize, free_bytes: u64) {
        self.0[at].store(free_bytes, Ordering::Relaxed);
    }

    fn seams(&self) -> impl Fn(usize, Seams) -> Seams + Send + Sync + 'static {
        let disks = self.clone();
        move |at, seams| Seams { space: Arc::new(Disk(disks.clone(), at)), ..seams }
    }
}

#[derive(Debug)]
struct Disk(Disks, usize);

impl FreeSpace for Disk {
    fn space(&self, _: &Store) -> Result<Space, StoreError> {
        let free_bytes = self.0.0[self.1].load(Ordering::Relaxed);
        Ok(Space { free_bytes, total_bytes: 1_000 * GIB })
    }
}

fn lock(name: &str, owner: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: owner.into(), ttl_seconds: 60, ..Default::default() }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_low_disk_refuses_what_is_new_and_serves_what_is_held() {
    let disks = Disks::roomy(1);
    let cluster = TestCluster::start_on(1, |config| config.ballast_bytes = 1 << 20, disks.seams()).await;
    let mut client = cluster.client(0).await;
    assert!(client.lock(lock("old", "a")).await.expect("granted").into_inner().success);
    let sdk = Client::connect(&cluster.endpoints()).await.expect("it serves");
    let held = sdk.lock("held").await.expect("granted");
    let ballast = cluster.configs[0].data_dir.join("ballast");
    assert!(ballast.exists());

    disks.set(0, 20 << 20); // below the critical mark
    let refused =
        eventually("a new lock is refused", async || client.lock(lock("new", "a")).await.err()).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "DISK_LOW"));
    let status = cluster.status(0);
    assert!(status.disk_low && status.ready, "{status:?}");
    assert_eq!(status.disk_free_bytes, 20 << 20);
    // On a session stream alike: an acquire of a session that lives, and the open of a new one.
    let error = sdk.lock("new").wait(Duration::from_secs(5)).await.expect_err("refused");
    assert!(format!("{error:?}").contains("DISK_LOW"), "{error:?}");
    let other = Client::connect(&cluster.endpoints()).await.expect("connecting opens no session");
    let error = other.lock("new").wait(Duration::from_secs(5)).await.expect_err("refused");
    assert!(format!("{error:?}").contains("DISK_LOW"), "{error:?}");
    eventually("the ballast makes room", async || (!ballast.exists()).then_some(())).await;

    // What is held is renewed and given back.
    let renew = RenewRequest {
        resource_id: "old".into(),
        client_id: "a".into(),
        ttl_seconds: 90,
        ..Default::default()
    };
    assert!(client.renew(renew).await.expect("renewed").into_inner().success);
    held.release().await.expect("released");
    let unlock = UnlockRequest { resource_id: "old".into(), client_id: "a".into(), ..Default::default() };
    assert!(client.unlock(unlock).await.expect("released").into_inner().success);
    sdk.close().await;

    // A little more is not enough, clearly more is.
    let low = 33 << 20;
    disks.set(0, low + low / 2 + (64 << 20));
    eventually("the disk was asked", async || (cluster.status(0).disk_free_bytes > low).then_some(())).await;
    assert!(cluster.status(0).disk_low, "between the marks it stays low");
    disks.set(0, GIB);
    eventually("new locks are taken again", async || client.lock(lock("new", "a")).await.ok()).await;
    assert!(!cluster.status(0).disk_low);
    other.close().await;
    cluster.end().await;
}

#[tokio::test]
async fn a_leader_with_a_low_disk_hands_over_and_does_not_come_back() {
    let disks = Disks::roomy(3);
    let mut cluster = TestCluster::start_on(3, |_| {}, disks.seams()).await;
    let first = cluster.leader().await;
    disks.set(first, 1 << 20);
    let second = eventually("a node with room leads", async || {
        let leader = cluster.leader().await;
        (leader != first).then_some(leader)
    })
    .await;
    assert!(cluster.status(first).disk_low);
    let granted = eventually("new locks are granted", async || {
        Some(cluster.client(first).await.lock(lock("k", "a")).await.ok()?.into_inner())
    })
    .await;
    assert!(granted.success, "through the node with the low disk, by the leader that has room");

    // The leader goes: of the two that are left, the one with room follows it, every time.
    let third = (0..3).find(|at| *at != first && *at != second).expect("there are three");
    cluster.kill(second).await;
    let leader = eventually("somebody leads", async || {
        let status = cluster.status(third);
        // For a moment it still names the one that is gone.
        let is_gone = status.leader_name == cluster.configs[second].node_name;
        (status.ready && !is_gone).then_some(status.leader_name)
    })
    .await;
    assert_eq!(leader, cluster.configs[third].node_name);

    // Nobody has room: they serve all the same, but for what is new.
    disks.set(third, 1 << 20);
    eventually("both are low", async || cluster.status(third).disk_low.then_some(())).await;
    cluster.restart(second).await;
    disks.set(second, 1 << 20);
    eventually("all are low", async || cluster.status(second).disk_low.then_some(())).await;
    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    let left = (0..3).find(|at| *at != leader).expect("two are left");
    let unlock = || UnlockRequest { resource_id: "k".into(), client_id: "a".into(), ..Default::default() };
    let released = eventually("what is held can be given back", async || {
        Some(cluster.client(left).await.unlock(unlock()).await.ok()?.into_inner())
    })
    .await;
    assert!(released.success);
    cluster.end().await;
}
