//! `raftlock demo`: three nodes and some workers in this one process, and the leader killed in the middle.
//!
//! Everything is the real thing, over 127.0.0.1: nodes from the library, workers on the SDK. What the workers saw is
//! checked at the end (`check.rs`).

mod check;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock::{Client, LockGuard};
use raftlock_server::clock::{Clock, SystemClock};
use raftlock_server::config::Config;
use raftlock_server::node::{Node, Seams};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::check::Hold;
use super::failure::{Failure, chain};
use super::logging::{self, LogFormat};
use super::print;
use super::scratch::{Folder, free_ports};

const NODES: usize = 3;

/// Few, so that the workers get into each other's way.
const LOCKS: [&str; 3] = ["invoices", "payments", "shipping"];

/// Long enough to outlast the leader's death.
const TTL: Duration = Duration::from_secs(10);

/// For an election among nodes that have just started, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The shortest and the longest that a worker holds a lock.
const HOLD_MS: std::ops::Range<u64> = 250..750;

/// Run three nodes in one process, let workers contend for locks, kill the leader, and check who held what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many workers contend for the locks.
    #[arg(long, value_name = "N", default_value = "6", value_parser = clap::value_parser!(u32).range(2..=100))]
    workers: u32,
    /// How long, in seconds. The leader is killed after a third of it.
    #[arg(long, value_name = "SECONDS", default_value = "9", value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
}

/// Runs it all, and checks.
pub fn execute(args: Args) -> Result<(), Failure> {
    logging::start("off", LogFormat::Text)?;
    let folder = folder()?;
    super::block_on(async {
        tokio::select! {
            outcome = play(args, folder.path()) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Failure::Other("interrupted".into())),
        }
    })
}

async fn play(args: Args, folder: &Path) -> Result<(), Failure> {
    let (workers, time) = (args.workers, Duration::from_secs(args.seconds));
    print::line(format_args!("Three nodes in one process, their data in {}", folder.display()))?;
    let mut nodes = start_nodes(folder).await?;
    let stage = Arc::new(Stage::default());
    stage.say(format_args!("{} leads the cluster", leader_of(&nodes).await?))?;
    stage.say(format_args!("{workers} workers contend for {}", LOCKS.join(", ")))?;

    let endpoints: Vec<String> = nodes.iter().map(|node| node.client_address().to_owned()).collect();
    let mut working = JoinSet::new();
    for number in 1..=workers {
        working.spawn(work(format!("worker-{number}"), endpoints.clone(), stage.clone()));
    }
    tokio::time::sleep(time / 3).await;
    let leader = leader_of(&nodes).await?;
    let at = nodes.iter().position(|node| name_of(node) == leader).unwrap_or(0);
    stage.say(format_args!("*** {leader} is killed ***"))?;
    nodes.remove(at).abandon().await;
    let successor = leader_of(&nodes).await?;
    stage.say(format_args!("*** {successor} leads the cluster now ***"))?;
    tokio::time::sleep(time * 2 / 3).await;

    stage.over.cancel();
    while let Some(worked) = working.join_next().await {
        worked.map_err(|error| Failure::Other(format!("a worker failed: {error}")))??;
    }
    for node in nodes {
        node.shutdown().await;
    }
    let holds = std::mem::take(&mut *stage.holds.lock().expect("nobody panics while adding a hold"));
    report(&holds)
}

fn report(holds: &[Hold]) -> Result<(), Failure> {
    let found =
        check::check(holds).map_err(|broken| Failure::Other(format!("the check failed: {broken}")))?;
    print::line("")?;
    print::line(format_args!("{} grants of {} locks, one leader killed.", found.grants, found.locks))?;
    print::line(format_args!("  no two holds of a lock overlapped  ok"))?;
    print::line(format_args!("  fencing tokens rose in every lock  ok"))?;
    print::line(format_args!("  longest time without a new grant   {}", print::brief(found.longest_pause)))
}

/// What nodes and workers share.
struct Stage {
    clock: Arc<dyn Clock>,
    holds: Mutex<Vec<Hold>>,
    over: CancellationToken,
}

impl Default for Stage {
    fn default() -> Stage {
        Stage { clock: SystemClock::shared(), holds: Mutex::default(), over: CancellationToken::new() }
    }
}

impl Stage {
    fn say(&self, what: impl std::fmt::Display) -> Result<(), Failure> {
        let now = self.clock.monotonic();
        print::line(format_args!("{:>3}.{:03}s  {what}", now.as_secs(), now.subsec_millis()))
    }
}

/// Takes one lock after another until it is over.
async fn work(name: String, endpoints: Vec<String>, stage: Arc<Stage>) -> Result<(), Failure> {
    let failed = |error: raftlock::Error| Failure::Other(format!("{name}: {}", chain(&error)));
    let client = Client::builder().endpoints(endpoints).owner(&name).default_ttl(TTL);
    let client = client.connect().await.map_err(failed)?;
    loop {
        let lock = LOCKS[rand::random_range(0..LOCKS.len())];
        let granted = tokio::select! {
            granted = client.lock(lock) => granted.map_err(failed)?,
            () = stage.over.cancelled() => break,
        };
        hold(&name, granted, &stage).await?;
    }
    client.close().await;
    Ok(())
}

/// Holds a lock for a while, and remembers from when to when the worker believed so.
async fn hold(worker: &str, guard: LockGuard, stage: &Stage) -> Result<(), Failure> {
    let from = stage.clock.monotonic();
    let (lock, token) = (guard.name().to_owned(), guard.token().get());
    stage.say(format_args!("{worker:<10} holds {lock:<9} token {token}"))?;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(rand::random_range(HOLD_MS))) => {}
        why = guard.lost() => stage.say(format_args!("{worker:<10} lost  {lock:<9} {why}"))?,
    }
    let until = stage.clock.monotonic();
    // Dropping releases, and does not wait for the answer.
    drop(guard);
    let hold = Hold { lock, worker: worker.to_owned(), token, from, until };
    stage.holds.lock().expect("nobody panics while adding a hold").push(hold);
    Ok(())
}

async fn start_nodes(folder: &Path) -> Result<Vec<Node>, Failure> {
    let ports = free_ports(NODES)?;
    let seeds = &ports.addresses;
    let mut nodes = Vec::new();
    for (number, peer) in seeds.iter().enumerate() {
        let name = format!("node-{}", number + 1);
        let mut config = Config::new(&name, folder.join(&name));
        config.cluster_name = format!("demo-{}", std::process::id());
        config.listen = "127.0.0.1:0".into();
        config.peer_listen = peer.clone();
        config.seeds = seeds.clone();
        config.bootstrap_expect = Some(NODES);
        config.allow_volatile_data = true;
        config.ballast_bytes = 0;
        let started = Node::start(config, Seams::default()).await;
        nodes.push(started.map_err(|error| Failure::Other(format!("{name}: {}", chain(&error))))?);
    }
    Ok(nodes)
}

/// The name of the leader, as soon as all nodes agree on one of them.
async fn leader_of(nodes: &[Node]) -> Result<String, Failure> {
    let agreed = async {
        loop {
            let names: Vec<String> = nodes.iter().map(name_of).collect();
            let told: Vec<String> = nodes.iter().map(|node| node.status().leader_name).collect();
            if told.iter().all(|leader| names.contains(leader) && *leader == told[0]) {
                return told[0].clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let agreed = tokio::time::timeout(START_LIMIT, agreed).await;
    agreed.map_err(|_| Failure::Other(format!("no leader was found within {}", print::brief(START_LIMIT))))
}

fn name_of(node: &Node) -> String {
    node.status().node.map(|node| node.name).unwrap_or_default()
}

/// Where the nodes keep their data: in a build's `target` folder if there is one here.
fn folder() -> Result<Folder, Failure> {
    let target = Path::new("target");
    let parent = if target.is_dir() { target.to_owned() } else { std::env::temp_dir() };
    Folder::within(&parent, "demo")
}
