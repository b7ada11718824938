//! A cluster of real processes through its life: restarts, deaths, disks that come back empty or old, newcomers.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raftlock::Client;
use raftlock_tests::cluster::eventually;
use raftlock_tests::history::History;
use support::Processes;

/// These tests measure time, and each of them runs three servers: one at a time, or they measure each other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const ROUNDS: usize = 5;

async fn client(processes: &Processes, owner: &str) -> Client {
    Client::builder().endpoints(processes.endpoints()).owner(owner).connect().await.expect("a server answers")
}

/// Clients that lock and release all the time. A call that fails is a panic.
struct Load {
    stop: Arc<AtomicBool>,
    history: History,
    clients: Vec<Client>,
    tasks: Vec<tokio::task::JoinHandle<Duration>>,
}

impl Load {
    #[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
    async fn start(processes: &Processes, count: usize) -> Load {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), History::new());
        let mut load = Load { stop, history, clients: Vec::new(), tasks: Vec::new() };
        for at in 0..count {
            let client = client(processes, &format!("c{at}")).await;
            load.clients.push(client.clone());
            let (stop, history) = (load.stop.clone(), load.history.clone());
            load.tasks.push(tokio::spawn(async move {
                let (mut longest, mut last) = (Duration::ZERO, Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    let (name, asked) = (format!("lock-{at}"), history.now());
                    let guard = client.lock(&name).ttl(Duration::from_secs(10)).await.expect("no call fails");
                    let hold = history.granted(&format!("c{at}"), &name, guard.token().get(), asked);
                    history.releasing(hold);
                    guard.release().await.expect("no call fails");
                    history.released(hold);
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                longest
            }));
        }
        load
    }

    /// Waits until more calls were answered.
    async fn goes_on(&self) {
        let before = self.history.check().expect("H1 to H3").grants;
        eventually("the load goes on", async || {
            (self.history.check().expect("H1 to H3").grants > before + 20).then_some(())
        })
        .await;
    }

    /// Stops it; the longest time that any client was without a grant.
    async fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for task in self.tasks {
            longest = longest.max(task.await.expect("no call fails"));
        }
        println!("{}", self.history.check().expect("H1 to H3"));
        for client in self.clients {
            client.close().await;
        }
        longest
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_fail_no_call() {
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(3, &[]).await;
    let load = Load::start(&processes, 4).await;
    for round in 0..ROUNDS {
        for at in 0..3 {
            assert_eq!(processes.terminate(at).await, Some(0), "round {round}");
            processes.spawn(at);
            processes.ready().await;
        }
    }
    load.goes_on().await;
    println!("{ROUNDS} rolling restarts: longest gap between two grants of a client {:?}", load.end().await);
}

/// The kernel says that the process is gone: nobody waits for an election timeout, and here that would be 20 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
async fn a_killed_leader_is_followed_at_once() {
    let _alone = ALONE.lock().await;
    let slow = ["--heartbeat=1s", "--election-min=20s", "--election-max=30s"];
    let mut processes = Processes::start(3, &slow).await;
    {
        let victim = processes.leader().await;
        let begun = Instant::now();
        processes.kill(victim);
        let next = processes.leader().await;
        println!("n{} killed; n{} leads after {:?}", victim + 1, next + 1, begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let client = client(&processes, "after").await;
        client.lock("free").await.expect("granted").release().await.expect("released");
        processes.spawn(victim);
        processes.votes(next, &format!("n{}", victim + 1), 3).await;
        processes.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
async fn a_killed_member_is_dead_on_every_other_within_two_seconds() {
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(3, &[]).await;
    processes.votes(0, "n3", 3).await;
    for victim in [processes.leader().await, (processes.leader().await + 1) % 3] {
        let name = format!("n{}", victim + 1);
        let begun = Instant::now();
        processes.kill(victim);
        for other in (0..3).filter(|at| *at != victim) {
            eventually("it is seen dead", async || {
                let members = processes.status(other).await?.members;
                members.iter().any(|member| member.name == name && member.state == "dead").then_some(())
            })
            .await;
            println!("{name} killed; n{} saw it dead after {:?}", other + 1, begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        }
        processes.spawn(victim);
        processes.ready().await;
        processes.votes((victim + 1) % 3, &name, 3).await;
    }
}

/// A million locks take a debug build too long. `.ci/run release` runs it.
#[cfg(not(debug_assertions))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
async fn a_node_joins_a_cluster_of_a_million_locks_under_load() {
    use futures_util::StreamExt;
    const LOCKS: usize = 1_000_000;
    const HOLDERS: usize = 4;
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(2, &[]).await;
    let begun = Instant::now();
    let mut guards = Vec::with_capacity(LOCKS);
    let mut holders = Vec::new();
    for at in 0..HOLDERS {
        let holder = client(&processes, &format!("holder-{at}")).await;
        let asked = (0..LOCKS / HOLDERS).map(|number| {
            let holder = holder.clone();
            async move {
                let lock = holder.lock(format!("held-{at}-{number}")).ttl(Duration::from_secs(3600));
                lock.await.expect("granted")
            }
        });
        guards.extend(futures_util::stream::iter(asked).buffer_unordered(1_024).collect::<Vec<_>>().await);
        holders.push(holder);
    }
    println!("{LOCKS} locks held after {:?}", begun.elapsed());
    let load = Load::start(&processes, 4).await;
    load.goes_on().await;
    let begun = Instant::now();
    let new = processes.add(0);
    processes.votes(0, "n3", 3).await;
    let took = begun.elapsed();
    processes.ready().await;
    let longest = load.end().await;
    println!("a voter {took:?} after its start; longest gap between two grants of a client {longest:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(guards.iter().all(raftlock::LockGuard::is_held), "no lease was lost");
    // A voter has the log on its disk; it applies it meanwhile.
    eventually("it knows every lock", async || {
        (processes.status(new).await?.locks >= LOCKS as u64).then_some(())
    })
    .await;
    // A million releases are not what is looked at here.
    std::mem::forget(guards);
}
