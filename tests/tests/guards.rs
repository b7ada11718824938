//! Guards against a real cluster: a blocked application, futures dropped at bad moments, a program that just returns.

use std::time::{Duration, Instant};

use raftlock::Client;
use raftlock_tests::cluster::{TestCluster, eventually};
use tokio::sync::RwLock;

/// One of these tests measures a tenth of a second, and has the machine for itself.
static MEASURED: RwLock<()> = RwLock::const_new(());

async fn client(cluster: &TestCluster, owner: &str) -> Client {
    Client::builder().endpoints(cluster.endpoints()).owner(owner).connect().await.expect("a server answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
async fn a_blocked_application_keeps_its_lock() {
    let _turn = MEASURED.read().await;
    let cluster = TestCluster::start(3).await;
    let watcher = client(&cluster, "watcher").await;
    let (endpoints, ttl) = (cluster.endpoints(), Duration::from_secs(1));
    let (taken, told) = tokio::sync::oneshot::channel();
    let (seen, done) = std::sync::mpsc::channel::<()>();
    let application = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let client =
                Client::builder().endpoints(endpoints).owner("blocked").connect().await.expect("it answers");
            let guard = client.lock("k").ttl(ttl).await.expect("granted");
            taken.send(guard.token().get()).expect("the test listens");
            // The only worker spins: no task of this runtime runs.
            let begun = Instant::now();
            while begun.elapsed() < 3 * ttl {
                std::hint::spin_loop();
            }
            assert!(guard.is_held(), "{:?}", guard.state());
            done.recv().expect("the test has looked");
            client.close().await;
        });
    });
    let token = told.await.expect("granted");
    let begun = Instant::now();
    while begun.elapsed() < 3 * ttl {
        let info = watcher.get("k").await.expect("read");
        assert_eq!(info.holders[0].token.get(), token, "held all the time");
        assert!(watcher.lock("k").try_acquire().await.expect("an answer").is_none());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    seen.send(()).expect("the application waits");
    tokio::task::spawn_blocking(|| application.join()).await.expect("joined").expect("no panic");
    watcher.close().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquire_that_is_dropped_leaves_neither_waiter_nor_holder() {
    let _turn = MEASURED.read().await;
    let cluster = TestCluster::start(3).await;
    let (holder, hasty) = (client(&cluster, "holder").await, client(&cluster, "hasty").await);
    let guard = holder.lock("k").await.expect("granted");
    // Dropped while queued.
    let queued = tokio::spawn({
        let hasty = hasty.clone();
        async move { hasty.lock("k").await }
    });
    eventually("queued", async || (holder.get("k").await.ok()?.queue_length == 1).then_some(())).await;
    queued.abort();
    eventually("no ghost waiter", async || (holder.get("k").await.ok()?.queue_length == 0).then_some(()))
        .await;
    guard.release().await.expect("released");

    // Dropped around the instant of its grant: the release of the lock and the drop race, a hundred times.
    for round in 0..100u64 {
        let guard = holder.lock("k").await.expect("granted");
        let queued = tokio::spawn({
            let hasty = hasty.clone();
            async move { drop(hasty.lock("k").await) }
        });
        eventually("queued", async || (holder.get("k").await.ok()?.queue_length == 1).then_some(())).await;
        let released = tokio::spawn(guard.release());
        tokio::time::sleep(Duration::from_micros(round * 20)).await;
        queued.abort();
        released.await.expect("no panic").expect("released");
        eventually("no orphan holder", async || holder.get("k").await.ok()?.is_free().then_some(())).await;
    }
    holder.close().await;
    hasty.close().await;
    cluster.end().await;
}

const CHILD: &str = "RAFTLOCK_TEST_CHILD_ENDPOINTS";

/// The program of the next test: drops its guard, closes, and returns from `main`.
#[test]
fn child_drops_its_guard_and_returns() {
    let Ok(endpoints) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(endpoints).await.expect("it answers");
        drop(client.lock("k").ttl(Duration::from_secs(600)).await.expect("granted"));
        client.close().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
async fn a_program_that_closes_and_returns_leaves_its_lock_free() {
    let _turn = MEASURED.write().await;
    let cluster = TestCluster::start(3).await;
    let next = client(&cluster, "next").await;
    let ended = tokio::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_drops_its_guard_and_returns"])
        .env(CHILD, cluster.endpoints())
        .output()
        .await
        .expect("it runs");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let asked = Instant::now();
    let guard = next.lock("k").wait(Duration::from_secs(5)).await.expect("granted");
    let took = asked.elapsed();
    println!("the next acquire took {took:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
    guard.release().await.expect("released");
    next.close().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_of_every_kind_against_a_real_cluster() {
    let _turn = MEASURED.read().await;
    let cluster = TestCluster::start(3).await;
    let (a, b) = (client(&cluster, "a").await, client(&cluster, "b").await);
    // Shared with shared, against exclusive.
    let (one, two) = (a.lock("s").shared().await.expect("a"), b.lock("s").shared().await.expect("b"));
    assert!(a.lock("s").try_acquire().await.expect("an answer").is_none());
    drop((one, two));
    eventually("free again", async || a.get("s").await.ok()?.is_free().then_some(())).await;
    // Permits up to the capacity.
    let both =
        (a.lock("p").permits(2, 3).await.expect("2 of 3"), b.lock("p").permits(1, 3).await.expect("1 of 3"));
    assert!(b.lock("p").permits(1, 3).try_acquire().await.expect("an answer").is_none());
    drop(both);
    // Several at once, all or nothing.
    let held = b.lock("y").await.expect("granted");
    assert!(a.lock_all(["x", "y"]).try_acquire().await.expect("an answer").is_none());
    assert!(a.get("x").await.expect("read").is_free(), "nothing of it was taken");
    held.release().await.expect("released");
    let all = a.lock_all(["x", "y"]).await.expect("granted");
    assert_eq!(a.get("x").await.expect("read").holders[0].token, all.token());
    // A wait that ends names who holds it.
    let error = b.lock("x").wait(Duration::from_millis(200)).await.expect_err("held");
    assert!(error.to_string().contains('a'), "{error}");
    a.close().await;
    assert!(b.get("x").await.expect("read").is_free(), "close frees everything");
    b.close().await;
    cluster.end().await;
}
