//! Real processes, killed and frozen: what was acknowledged stays, the queue keeps its order, a holder knows.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use raftlock::{Client, ErrorKind, LockGuard};
use raftlock_tests::cluster::eventually;
use raftlock_tests::history::History;
use support::{Processes, cpu_seconds};

const TTL: Duration = Duration::from_secs(10);

/// These tests measure time, and each of them runs three servers: one at a time, or they measure each other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn client(processes: &Processes, owner: &str) -> Client {
    Client::builder().endpoints(processes.endpoints()).owner(owner).connect().await.expect("a server answers")
}

/// What the replicated state says is held, read through one node.
async fn held(client: &Client) -> BTreeSet<(String, u64)> {
    let locks = eventually("the locks can be listed", async || client.list("").await.ok()).await;
    let mut held = BTreeSet::new();
    for lock in locks {
        let info = eventually("the lock can be read", async || client.get(&lock.name).await.ok()).await;
        held.extend(info.holders.iter().map(|holder| (lock.name.clone(), holder.token.get())));
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness stamps what it sees")]
async fn the_leader_is_killed_under_a_held_guard_and_twenty_waiters() {
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(3, &[]).await;
    let holder = client(&processes, "holder").await;
    let history = History::new();
    let asked = history.now();
    let guard = holder.lock("hot").ttl(TTL).await.expect("granted");
    let hold = history.granted("holder", "hot", guard.token().get(), asked);

    // Twenty clients, queued one after another, so that their order is known.
    let served = Arc::new(AtomicUsize::new(0));
    let mut waiters = Vec::new();
    for at in 0..20usize {
        let (mine, history, served) =
            (client(&processes, &format!("w{at:02}")).await, history.clone(), served.clone());
        let task = tokio::spawn(async move {
            let asked = history.now();
            let guard = mine.lock("hot").ttl(TTL).await.expect("granted in the end");
            let hold = history.granted(&format!("w{at:02}"), "hot", guard.token().get(), asked);
            let place = served.fetch_add(1, Ordering::SeqCst);
            history.releasing(hold);
            guard.release().await.expect("released");
            history.released(hold);
            mine.close().await;
            place
        });
        waiters.push(task);
        eventually("the waiter is queued", async || {
            (holder.get("hot").await.ok()?.queue_length as usize > at).then_some(())
        })
        .await;
    }

    let leader = processes.leader().await;
    let killed = Instant::now();
    processes.kill(leader);
    // Held through it, with the same token, and the queue as it was.
    let info = eventually("a new leader answers", async || {
        let info = holder.get("hot").await.ok()?;
        (info.queue_length == 20).then_some(info)
    })
    .await;
    println!("answering again {:?} after kill -9 of the leader", killed.elapsed());
    assert_eq!(info.holders[0].token, guard.token());
    assert!(guard.is_held());
    let order: Vec<String> = info.waiters.iter().map(|waiter| waiter.owner.clone()).collect();
    let expected: Vec<String> = (0..20).map(|at| format!("w{at:02}")).collect();
    assert_eq!(order, expected);
    // Renewed at the new leader: still held when the lease that the old one knew would be over.
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    assert!(guard.is_held(), "{:?}", guard.state());

    history.releasing(hold);
    guard.release().await.expect("released");
    history.released(hold);
    for (at, waiter) in waiters.into_iter().enumerate() {
        assert_eq!(waiter.await.expect("no panic"), at, "first come, first served");
    }
    let summary = history.check().expect("H1 to H3");
    assert_eq!(summary.grants, 21);

    // All nodes, restarted from disk, agree.
    let last = holder.lock("after").ttl(Duration::from_secs(600)).await.expect("granted");
    let survivors: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    survivors.iter().for_each(|at| processes.kill(*at));
    (0..3).for_each(|at| processes.spawn(at));
    processes.ready().await;
    for node in &processes.nodes {
        let alone = Client::builder()
            .endpoints(format!("http://{}", node.listen))
            .connect()
            .await
            .expect("it answers");
        assert_eq!(held(&alone).await, BTreeSet::from([("after".to_owned(), last.token().get())]));
        alone.close().await;
    }
    holder.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_killed_under_load_and_nothing_acknowledged_is_lost() {
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(3, &[]).await;
    let history = History::new();
    let (tried, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = Vec::new();
    for at in 0..4 {
        clients.push(client(&processes, &format!("c{at}")).await);
    }
    let loads: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(at, client)| {
            let (client, history) = (client.clone(), history.clone());
            let (tried, stop) = (tried.clone(), stop.clone());
            tokio::spawn(take_and_keep(format!("c{at}"), client, history, tried, stop))
        })
        .collect();
    let more_are_tried = async |more: u64| {
        let before = tried.load(Ordering::Relaxed);
        let ran = async || (tried.load(Ordering::Relaxed) > before + more).then_some(());
        eventually("the load runs", ran).await;
    };
    for round in 1..=3 {
        more_are_tried(200).await;
        (0..3).for_each(|at| processes.kill(at));
        (0..3).for_each(|at| processes.spawn(at));
        processes.ready().await;
        println!("round {round}: {} locks tried", tried.load(Ordering::Relaxed));
    }
    more_are_tried(50).await;
    stop.store(true, Ordering::Relaxed);
    // They outlive the check: a guard that is dropped is released.
    let mut guards = Vec::new();
    for load in loads {
        guards.extend(load.await.expect("no panic"));
    }
    println!("{}", history.check().expect("H1 to H3"));
    let reader = client(&processes, "reader").await;
    let standing = history.check_durable(&held(&reader).await).expect("H10");
    println!("{standing} grants stand");
    assert!(standing > 100, "a load this small shows nothing: {standing} grants stand");
    assert_eq!(standing, guards.len());
    assert!(guards.iter().all(LockGuard::is_held));
    drop(guards);
    reader.close().await;
    for client in clients {
        client.close().await;
    }
}

/// Takes one lock after another until told to stop, releases every third, and comes back with the others.
async fn take_and_keep(
    owner: String,
    client: Client,
    history: History,
    tried: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Vec<LockGuard> {
    // Nothing expires meanwhile: at the end every hold must still be there.
    const TTL: Duration = Duration::from_secs(3600);
    let mut kept = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = tried.fetch_add(1, Ordering::Relaxed);
        let (name, asked) = (format!("lock-{number}"), history.now());
        let guard = match client.lock(&name).ttl(TTL).await {
            Ok(guard) => guard,
            // Without any server for too long. Whether it was granted is unknown, and nobody was told that it is.
            Err(error) if error.kind() == ErrorKind::Unavailable => continue,
            Err(error) => panic!("{owner}: {name}: {error}"),
        };
        let hold = history.granted(&owner, &name, guard.token().get(), asked);
        if number.is_multiple_of(3) {
            history.releasing(hold);
            if guard.release().await.is_ok() {
                history.released(hold);
            }
        } else {
            kept.push(guard);
        }
    }
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness stamps what it sees")]
async fn all_servers_stop_and_the_holder_knows_before_its_lease_can_be_over() {
    let _alone = ALONE.lock().await;
    let processes = Processes::start(3, &[]).await;
    let holder = client(&processes, "holder").await;
    let ttl = Duration::from_secs(3);
    let guard = holder.lock("k").ttl(ttl).await.expect("granted");
    // Frozen right after a renewal was answered at the latest a third of the TTL ago.
    let remaining = guard.remaining();
    (0..3).for_each(|at| processes.signal(at, libc::SIGSTOP));
    let frozen = Instant::now();
    let why = tokio::time::timeout(ttl + Duration::from_secs(1), guard.lost()).await.expect("lost() fires");
    let after = frozen.elapsed();
    println!("lost ({why}) {after:?} after the servers froze; {remaining:?} were left then; TTL {ttl:?}");
    assert!(!guard.is_held());
    assert!(after <= ttl, "the holder believed for {after:?} after the last answer could have been sent");
    (0..3).for_each(|at| processes.signal(at, libc::SIGCONT));
    holder.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness stamps what it sees")]
async fn the_leader_is_told_to_stop_under_load_and_no_call_fails() {
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(3, &[]).await;
    let history = History::new();
    let mut clients = Vec::new();
    for at in 0..4 {
        clients.push(client(&processes, &format!("c{at}")).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(at, client)| {
            let (client, history, stop) = (client.clone(), history.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut longest, mut last) = (Duration::ZERO, Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("lock-{at}");
                    let asked = history.now();
                    let guard = client.lock(&name).ttl(TTL).await.expect("no acquire fails");
                    let hold = history.granted(&format!("c{at}"), &name, guard.token().get(), asked);
                    history.releasing(hold);
                    guard.release().await.expect("no release fails");
                    history.released(hold);
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                longest
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let leader = processes.leader().await;
    let code = processes.terminate(leader).await;
    assert_eq!(code, Some(0));
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let mut gaps = Vec::new();
    for load in loads {
        gaps.push(load.await.expect("no call fails"));
    }
    println!(
        "longest gap of each client around the hand-over: {gaps:?}; {}",
        history.check().expect("H1 to H3")
    );
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_millis(500)), "{gaps:?}");
    for client in clients {
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_costs_the_leader_next_to_nothing() {
    let _alone = ALONE.lock().await;
    let mut processes = Processes::start(3, &[]).await;
    let leader = processes.leader().await;
    let used = async |processes: &Processes| {
        let (before, span) = (cpu_seconds(processes.pid(leader)), 5.0);
        tokio::time::sleep(Duration::from_secs_f64(span)).await;
        100.0 * (cpu_seconds(processes.pid(leader)) - before) / span
    };
    let alone = used(&processes).await;
    processes.kill((leader + 1) % 3);
    // Past the first dials and back-offs.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let beside = used(&processes).await;
    println!("the leader used {alone:.1} % of a core, and {beside:.1} % beside a dead peer");
    // What an idle leader takes depends on the machine. A hot loop takes a whole core in either build.
    let bound = if cfg!(debug_assertions) { 10.0 } else { 2.0 };
    assert!(beside < alone + bound, "{alone:.1} % of a core became {beside:.1} %");
}
