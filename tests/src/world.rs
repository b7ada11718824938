//! A whole cluster and its clients in one thread, on simulated time, network and disks: one seed, one run.
//!
//! The servers are the product's own code, openraft and SQLite included; so is the SDK. What they reach the world
//! through is ours: turmoil's network, tokio's paused clock, a disk that forgets what was not synced, and random numbers
//! that follow from the seed. The same seed gives the same run, line by line, if tokio's own choices are seeded too:
//! that takes `--cfg tokio_unstable` (see `tests/sim.rs`).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use raftlock::Client;
use raftlock_server::clock::Clock;
use raftlock_server::config::Config;
use raftlock_server::net::{BoxFuture, Listen, Net, Wire};
use raftlock_server::node::{Node, Seams};
use raftlock_server::store::{Writer, simdisk};

use crate::history::{History, Summary};

pub(crate) const CLIENT_PORT: u16 = 50051;
pub(crate) const PEER_PORT: u16 = 50052;

/// What a run is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Everything random follows from it.
    pub seed: u64,
    /// Simulated time during which clients work.
    pub length: Duration,
    /// When the leader's power is cut.
    pub crash_at: Duration,
    /// For how long it is down.
    pub down_for: Duration,
    /// Clients, each with locks shared with the others.
    pub clients: usize,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Everything that happened, one line each, with its simulated time.
    pub trace: Vec<String>,
    /// What the clients saw.
    pub summary: Summary,
}

impl Outcome {
    /// A number for the whole trace.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.trace.hash(&mut hasher);
        hasher.finish()
    }
}

/// Runs one plan to its end.
///
/// # Panics
/// When a check fails, or the simulation does: the seed is in the message.
pub fn run(plan: Plan) -> Outcome {
    println!("seed {}", plan.seed);
    align_task_ids();
    raftlock_server::seed_thread_rng(plan.seed);
    let trace = Trace::default();
    let history = History::with_clock(|| turmoil::sim_elapsed().unwrap_or_default());
    let nodes: Nodes = Arc::default();

    let mut sim = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(Duration::from_millis(1))
        .simulation_duration(plan.length + Duration::from_secs(60))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(8))
        .tcp_capacity(65_536)
        .build();
    for name in NAMES {
        let (disk, nodes) = (disk_id(plan.seed, name), nodes.clone());
        simdisk::mount(&disk, simdisk::Disk::new());
        sim.host(name, move || serve(name, disk.clone(), nodes.clone()));
    }
    for at in 0..plan.clients {
        let work = work(plan, at, history.clone(), trace.clone());
        sim.client(format!("c{at}"), work);
    }

    let mut down: Option<(&'static str, Duration)> = None;
    let mut crashed = false;
    loop {
        let finished = sim.step().unwrap_or_else(|error| panic!("seed {}: {error}", plan.seed));
        if finished {
            break;
        }
        let now = sim.elapsed();
        if !crashed && now >= plan.crash_at {
            let Some(leader) = leader(&nodes) else { continue };
            trace.line(now, &format!("power cut of {leader}"));
            let id = disk_id(plan.seed, leader);
            let disk = simdisk::mounted(&id).expect("every node has a disk");
            lock(&disk).kill();
            lock(&nodes).remove(leader);
            sim.crash(leader);
            let left = lock(&disk).crash(plan.seed, 50);
            simdisk::mount(&id, simdisk::Disk::boot(left));
            down = Some((leader, now + plan.down_for));
            crashed = true;
        }
        if let Some((name, until)) = down
            && now >= until
        {
            trace.line(now, &format!("{name} starts again"));
            sim.bounce(name);
            down = None;
        }
    }
    drop(sim);
    lock(&nodes).clear();
    NAMES.iter().for_each(|name| simdisk::unmount(&disk_id(plan.seed, name)));
    let summary = history.check().unwrap_or_else(|violation| panic!("seed {}: {violation}", plan.seed));
    assert!(crashed, "seed {}: no leader was there to crash", plan.seed);
    Outcome { trace: trace.take(), summary }
}

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

type Nodes = Arc<Mutex<BTreeMap<&'static str, Arc<Node>>>>;

fn disk_id(seed: u64, name: &str) -> String {
    format!("sim-{seed}-{name}")
}

fn leader(nodes: &Nodes) -> Option<&'static str> {
    let nodes = lock(nodes);
    let leads = |node: &Node| node.status().node.is_some_and(|node| node.role == "leader");
    nodes.iter().find(|(_, node)| leads(node)).map(|(name, _)| *name)
}

async fn serve(name: &'static str, disk: String, nodes: Nodes) -> turmoil::Result {
    let mut config = Config::new(name, disk);
    config.listen = format!("0.0.0.0:{CLIENT_PORT}");
    config.peer_listen = format!("0.0.0.0:{PEER_PORT}");
    config.seeds = NAMES.iter().map(|name| format!("{name}:{PEER_PORT}")).collect();
    config.bootstrap_expect = Some(NAMES.len());
    config.ballast_bytes = 0;
    config.snapshot_log_bytes = 50_000;
    let seams = Seams {
        net: Arc::new(SimNet),
        clock: Arc::new(SimClock { start: tokio::time::Instant::now() }),
        vfs: Some(simdisk::VFS.to_owned()),
        writer: Writer::Inline,
        ..Seams::default()
    };
    let node = Arc::new(Node::start(config, seams).await?);
    lock(&nodes).insert(name, node.clone());
    Err(format!("{name}: {}", node.failed().await).into())
}

/// A client that acquires, writes under the token, and releases, until the time is over.
async fn work(plan: Plan, at: usize, history: History, trace: Trace) -> turmoil::Result {
    let me = format!("c{at}");
    let endpoints: Vec<String> = NAMES.iter().map(|name| format!("http://{name}:{CLIENT_PORT}")).collect();
    let seams = raftlock::seams::Seams {
        clock: Arc::new(|| turmoil::sim_elapsed().unwrap_or_default()),
        executor: raftlock::seams::Executor::Given(Arc::new(|keeper| drop(tokio::spawn(keeper)))),
        dial: Arc::new(|address| {
            Box::pin(async move {
                let stream = turmoil::net::TcpStream::connect(address).await?;
                Ok(raftlock::seams::Connection::new(stream))
            })
        }),
        seed: Some(plan.seed ^ (at as u64 + 1)),
    };
    let client = Client::builder().endpoints(endpoints).owner(me.as_str()).seams(seams).lazy()?;
    let mut rng = fastrand::Rng::with_seed(plan.seed.wrapping_mul(31) ^ at as u64);
    while history.now() < plan.length {
        let lock = format!("lock-{}", rng.u8(0..3));
        let asked = history.now();
        let ttl = Duration::from_secs(rng.u64(4..10));
        let guard = match client.lock(&lock).ttl(ttl).wait(Duration::from_secs(10)).await {
            Ok(guard) => guard,
            Err(error) => {
                trace.line(history.now(), &format!("{me} did not get {lock}: {:?}", error.kind()));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let token = guard.token().get();
        trace.line(history.now(), &format!("{me} holds {lock} under {token}"));
        let hold = history.granted(&me, &lock, token, asked);
        tokio::select! {
            biased;
            why = guard.lost() => {
                history.lost(hold);
                trace.line(history.now(), &format!("{me} lost {lock}: {why}"));
                continue;
            }
            () = tokio::time::sleep(Duration::from_millis(rng.u64(1..400))) => {}
        }
        history.wrote(&lock, &me, token, true);
        history.releasing(hold);
        if guard.release().await.is_ok() {
            history.released(hold);
        }
        trace.line(history.now(), &format!("{me} released {lock}"));
    }
    client.close().await;
    Ok(())
}

/// Lines, in the order in which things happened.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    fn line(&self, at: Duration, what: &str) {
        lock(&self.0).push(format!("{:>9.3} {what}", at.as_secs_f64()));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0))
    }
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[derive(Debug)]
pub(crate) struct SimNet;

impl Net for SimNet {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Wire>> {
        Box::pin(async move { Ok(Wire::new(turmoil::net::TcpStream::connect(address).await?)) })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        Box::pin(async move {
            let port = turmoil::net::TcpListener::bind(address).await?;
            Ok(Box::new(SimPort { port, address: address.to_owned() }) as Box<dyn Listen>)
        })
    }
}

struct SimPort {
    port: turmoil::net::TcpListener,
    address: String,
}

impl Listen for SimPort {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(async move { Ok(Wire::new(self.port.accept().await?.0)) })
    }
}

#[derive(Debug)]
pub(crate) struct SimClock {
    pub(crate) start: tokio::time::Instant,
}

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix_seconds(&self) -> u64 {
        1_800_000_000
    }
}

/// Brings tokio's counter of task ids to a multiple of 64: the ids choose the order in which a crashed host's tasks are
/// dropped, and that orders what its peers see.
pub(crate) fn align_task_ids() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        loop {
            let task = tokio::spawn(async {});
            let id: u64 = task.id().to_string().parse().expect("a task id is a number");
            task.await.expect("it does nothing");
            if id.is_multiple_of(64) {
                break;
            }
        }
    });
}
