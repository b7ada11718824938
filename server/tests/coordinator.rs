//! Locks by name on a node inside the application: what each call does, and what it says when it cannot.

use std::sync::Arc;
use std::time::Duration;

use raftlock::LostReason;
use raftlock_server::node::Seams;
use raftlock_server::store::simdisk::{self, Disk};
use raftlock_server::testing::PATIENCE;
use raftlock_server::{Coordinator, CoordinatorError, Node, NodeBuilder, NodeError};
use raftlock_tests::cluster::eventually;

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(1);

fn config(dir: &std::path::Path) -> NodeBuilder {
    Node::builder().data_dir(dir).allow_volatile_data(true).ballast_bytes(0).name("me")
}

/// A coordinator whose node is a cluster of one.
async fn alone(dir: &std::path::Path) -> Arc<Coordinator> {
    let coordinator = Coordinator::new("127.0.0.1:0", Vec::<String>::new(), config(dir));
    in_time(coordinator.connect()).await.expect("it starts");
    Arc::new(coordinator)
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

fn is_not_held(result: Result<(), CoordinatorError>) -> bool {
    matches!(result, Err(CoordinatorError::NotHeld { .. }))
}

#[tokio::test]
async fn a_lock_is_taken_seen_and_released() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = alone(dir.path()).await;
    let token = coordinator.lock("k", LONG).await.expect("granted");
    assert_eq!(coordinator.token("k"), Some(token));
    let locks = coordinator.locks();
    assert_eq!((locks.len(), locks[0].name.as_str(), locks[0].token), (1, "k", token));
    assert!(locks[0].remaining > LONG / 2, "{locks:?}");
    let info = coordinator.client().expect("connected").get("k").await.expect("an answer");
    assert_eq!((info.holders[0].owner.as_str(), info.holders[0].token), ("me", token));

    let lost = coordinator.lost("k").expect("held");
    coordinator.release("k").await.expect("released");
    assert_eq!(in_time(lost).await, LostReason::Released);
    assert_eq!((coordinator.token("k"), coordinator.locks()), (None, vec![]));
    assert!(is_not_held(coordinator.release("k").await));
    assert!(is_not_held(coordinator.renew("k", LONG).await));
    assert!(coordinator.lost("k").is_err());
    assert!(coordinator.lock("k", LONG).await.expect("granted") > token);
    coordinator.shutdown().await;
}

#[tokio::test]
async fn a_lock_ends_at_its_ttl_however_alive_its_holder_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = alone(dir.path()).await;
    let token = coordinator.lock("k", SHORT).await.expect("granted");
    assert_eq!(in_time(coordinator.lost("k").expect("held")).await, LostReason::Expired);
    assert_eq!(coordinator.token("k"), None);
    assert!(is_not_held(coordinator.renew("k", LONG).await));
    // The name can be asked for again at once, and is granted once the cluster sees the end too.
    assert!(in_time(coordinator.lock("k", LONG)).await.expect("granted") > token);
    coordinator.shutdown().await;
}

#[tokio::test]
async fn a_renewal_counts_from_now_be_it_longer_or_shorter() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = alone(dir.path()).await;
    let remaining = || coordinator.locks()[0].remaining;
    coordinator.lock("k", LONG).await.expect("granted");
    coordinator.renew("k", 2 * LONG).await.expect("renewed");
    assert!(remaining() > LONG);
    coordinator.renew("k", SHORT).await.expect("renewed");
    assert!(remaining() <= SHORT);
    assert_eq!(in_time(coordinator.lost("k").expect("held")).await, LostReason::Expired);
    coordinator.shutdown().await;
}

#[tokio::test]
async fn a_lock_of_another_is_waited_for_and_not_taken_by_a_try() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = alone(dir.path()).await;
    let other = coordinator.client().expect("connected").lock("k").await.expect("granted");
    assert_eq!(coordinator.try_lock("k", LONG).await.expect("an answer"), None);
    let waiting = tokio::spawn({
        let coordinator = coordinator.clone();
        async move { coordinator.lock("k", LONG).await }
    });
    let client = coordinator.client().expect("connected");
    eventually("it waits", async || (client.get("k").await.ok()?.queue_length == 1).then_some(())).await;
    assert!(matches!(coordinator.lock("k", LONG).await, Err(CoordinatorError::InUse { .. })));
    assert!(is_not_held(coordinator.release("k").await), "it only waits");
    let token = other.token();
    other.release().await.expect("released");
    assert!(in_time(waiting).await.expect("no panic").expect("granted") > token);
    assert!(matches!(coordinator.try_lock("k", LONG).await, Err(CoordinatorError::InUse { .. })));
    assert!(coordinator.try_lock("free", LONG).await.expect("an answer").is_some());
    coordinator.shutdown().await;
}

#[tokio::test]
async fn a_wait_that_is_dropped_leaves_the_name_and_the_queue() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = alone(dir.path()).await;
    let client = coordinator.client().expect("connected");
    let other = client.lock("k").await.expect("granted");
    let waited = tokio::time::timeout(Duration::from_millis(100), coordinator.lock("k", LONG)).await;
    assert!(waited.is_err(), "it is held by another");
    eventually("nobody waits", async || (client.get("k").await.ok()?.queue_length == 0).then_some(())).await;
    other.release().await.expect("released");
    in_time(coordinator.lock("k", LONG)).await.expect("the name is free to be asked for");
    coordinator.shutdown().await;
}

#[tokio::test]
async fn renewals_and_a_release_at_once_end_in_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = alone(dir.path()).await;
    for _ in 0..20 {
        coordinator.lock("k", LONG).await.expect("granted");
        let (first, released, second) = in_time(async {
            tokio::join!(
                coordinator.renew("k", 2 * LONG),
                coordinator.release("k"),
                coordinator.renew("k", 2 * LONG)
            )
        })
        .await;
        first.expect("it was first");
        released.expect("it waited for the renewal");
        assert!(is_not_held(second));
        assert_eq!(coordinator.token("k"), None);
    }
    coordinator.shutdown().await;
}

#[tokio::test]
async fn without_a_node_every_call_says_so_and_it_can_be_connected_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let coordinator = Arc::new(Coordinator::new("127.0.0.1:0", Vec::<String>::new(), config(dir.path())));
    let is_not_connected = |error| matches!(error, CoordinatorError::NotConnected);
    assert!(is_not_connected(coordinator.lock("k", LONG).await.expect_err("no node")));
    assert!(is_not_connected(coordinator.client().expect_err("no node")));
    assert!(coordinator.members().is_empty());
    in_time(coordinator.connect()).await.expect("it starts");
    let token = coordinator.lock("k", LONG).await.expect("granted");
    let _held = coordinator.client().expect("connected").lock("other").await.expect("granted");
    let waiting = tokio::spawn({
        let coordinator = coordinator.clone();
        async move { coordinator.lock("other", LONG).await }
    });
    let client = coordinator.client().expect("connected");
    eventually("it waits", async || (client.get("other").await.ok()?.queue_length == 1).then_some(())).await;

    in_time(coordinator.shutdown()).await;
    assert!(is_not_connected(in_time(waiting).await.expect("no panic").expect_err("shut down")));
    assert!(is_not_connected(coordinator.renew("k", LONG).await.expect_err("shut down")));
    assert_eq!(coordinator.token("k"), None);
    in_time(coordinator.connect()).await.expect("it starts again");
    assert!(in_time(coordinator.lock("k", LONG)).await.expect("it was freed at the end") > token);
    coordinator.shutdown().await;
}

#[tokio::test]
async fn a_failed_node_is_the_reason_that_calls_give() {
    let disk = simdisk::mount("coordinator-fails", Disk::new());
    let seams = Seams { vfs: Some(simdisk::VFS.to_owned()), ..Seams::default() };
    let config = config("coordinator-fails".as_ref()).seams(seams);
    let coordinator = Coordinator::new("127.0.0.1:0", Vec::<String>::new(), config);
    in_time(coordinator.connect()).await.expect("it starts");
    coordinator.lock("k", LONG).await.expect("granted");
    let lost = coordinator.lost("k").expect("held");
    disk.lock().expect("nobody panicked").kill();
    assert!(matches!(in_time(coordinator.failed()).await, NodeError::Store(_)));
    assert_eq!(in_time(lost).await, LostReason::ClientClosed);
    let error = in_time(coordinator.lock("other", LONG)).await.expect_err("the node has failed");
    assert!(matches!(error, CoordinatorError::Node(NodeError::Store(_))), "{error}");
    assert!(is_not_held(coordinator.renew("k", LONG).await));
    in_time(coordinator.shutdown()).await;
    simdisk::unmount("coordinator-fails");
}

#[tokio::test]
async fn a_coordinator_that_looks_for_its_cluster_can_be_shut_down() {
    let dir = tempfile::tempdir().expect("a folder");
    // Nobody is there.
    let seeds = raftlock_server::testing::wires::FreePorts::take(1);
    let coordinator = Arc::new(Coordinator::new("127.0.0.1:0", &seeds.addresses, config(dir.path())));
    let connecting = tokio::spawn({
        let coordinator = coordinator.clone();
        async move { coordinator.connect().await }
    });
    eventually("the node runs", async || coordinator.client().ok()).await;
    in_time(coordinator.shutdown()).await;
    let ended = in_time(connecting).await.expect("no panic");
    assert!(matches!(ended, Err(CoordinatorError::NotConnected)), "{ended:?}");
}

#[tokio::test]
async fn what_is_wrong_with_the_node_is_said_at_connect() {
    let coordinator = Coordinator::new("nowhere", ["127.0.0.1:7946"], Node::builder().data_dir("x"));
    let error = coordinator.connect().await.expect_err("it is no address");
    assert!(error.to_string().contains("bind"), "{error}");
}
