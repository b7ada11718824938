//! New nodes that found a cluster while everything goes wrong, on the simulated network and disks of [`crate::world`]:
//! one seed, one schedule.
//!
//! Five nodes start at random times with one of two seed lists that overlap; three of them found a cluster. Meanwhile
//! links are cut and held up, power is cut, one node may die for good, and nodes come back with empty disks. Then all
//! is calm. Checked is:
//!
//! - *safety*: over the whole run, no two clusters are ever seen.
//! - *liveness*: in the calm one is founded, unless nodes wait for a promise's maker that is gone. They say so, and once
//!   an operator has done what they say, it is founded.
//!
//! Nodes are wiped only before a cluster is seen, and stay down for longer than a round of promises takes: what a node
//! forgets after that, no protocol can see (`founding` in the server says more). A wipe may come when all promises of a
//! round are given and the cluster is not seen yet: then one of its founders is forgotten, and the schedule ends there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock_server::config::Config;
use raftlock_server::node::Node;
use raftlock_server::store::simdisk;

use crate::tally::Tally;
use crate::world::hosts::{Nodes, PEER_PORT, config, seams};
use crate::world::{align_task_ids, lock};

/// How long things go wrong, unless a cluster serves before.
const CHAOS: Duration = Duration::from_secs(6);

/// How long the calm may take: proposals that hang are given up after ten seconds.
const CALM: Duration = Duration::from_secs(40);

/// How long things go on once a cluster serves, in the chaos and in the calm, to see no second one.
const AFTER: Duration = Duration::from_millis(1_500);

/// Longer than a round of promises.
const WIPED_FOR: Duration = Duration::from_millis(2_500);

const HOSTS: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
const EXPECT: usize = 3;

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Power cuts whose disk stayed.
    pub crashes: usize,
    /// Nodes that came back with an empty disk.
    pub wipes: usize,
    /// Links that were cut or held up.
    pub cuts: usize,
    /// A node went down and stayed down.
    pub death: bool,
    /// It took an operator who wiped what the nodes named.
    pub blocked: bool,
    /// A founder was wiped in the moment of the founding.
    pub too_late: bool,
}

impl Outcome {
    /// The same, in counts that add up.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        tally.add("founding schedules", 1);
        tally.add("founding power cuts", self.crashes as u64);
        tally.add("founding disks wiped", self.wipes as u64);
        tally.add("founding links cut", self.cuts as u64);
        tally.add("founding deaths", self.death.into());
        tally.add("founding operators called", self.blocked.into());
        tally.add("founding wipes that came too late", self.too_late.into());
        tally
    }
}

/// Whether the faults of many schedules bit: of fewer than 200 nothing is said.
pub fn has_bitten(all: &Tally) -> bool {
    let more = |name: &str, than: u64| all.get(name) > than;
    all.get("founding schedules") < 200
        || more("founding power cuts", 500)
            && more("founding disks wiped", 50)
            && more("founding links cut", 500)
            && more("founding deaths", 10)
            // Nearly all must be schedules that say something.
            && 100 * all.get("founding wipes that came too late") < all.get("founding schedules")
}

/// Runs the schedule of one seed.
///
/// # Panics
/// When a check fails.
pub fn run(seed: u64) -> Outcome {
    align_task_ids();
    raftlock_server::seed_thread_rng(seed);
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        // The span with the host's name is turmoil's.
        .with_env_filter("raftlock_server=info,turmoil=info")
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || Run::new(seed, log).run())
}

struct Run<'a> {
    seed: u64,
    rng: fastrand::Rng,
    sim: turmoil::Sim<'a>,
    nodes: Nodes,
    log: Log,
    /// What is down, and when it starts again; for good without a time.
    down: BTreeMap<&'static str, Option<Duration>>,
    lists: [Vec<&'static str>; 2],
    /// All clusters ever seen, and who was seen to belong to them, each with its storage id.
    clusters: BTreeMap<String, BTreeSet<(&'static str, u64)>>,
    /// Storage ids that were on disks that were wiped, and when.
    wiped: BTreeMap<u64, Duration>,
    serving: bool,
    steps: u64,
    outcome: Outcome,
}

impl Run<'_> {
    fn new(seed: u64, log: Log) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(Duration::from_millis(5))
            .simulation_duration(CHAOS + CALM * 2 + Duration::from_secs(60))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(rng.u64(5..80)))
            .tcp_capacity(65_536)
            .build();
        let lists = match rng.u8(0..3) {
            0 => [HOSTS[..3].to_vec(), HOSTS[2..].to_vec()],
            1 => [HOSTS[..4].to_vec(), HOSTS[1..].to_vec()],
            _ => [HOSTS.to_vec(), HOSTS.to_vec()],
        };
        // The smallest name proposes, so names are dealt out.
        let mut names = ["a", "b", "c", "d", "e"];
        rng.shuffle(&mut names);
        let nodes: Nodes = Arc::default();
        for (host, name) in HOSTS.into_iter().zip(names) {
            let fitting: Vec<_> = lists.iter().filter(|list| list.contains(&host)).collect();
            let seeds = fitting[rng.usize(0..fitting.len())];
            let mut config = config(name, disk_id(seed, host), seeds, EXPECT);
            config.peer_advertise = Some(format!("{host}:{PEER_PORT}"));
            // Slower than the defaults: what is simulated here is the time before there is a leader.
            config.heartbeat = Duration::from_millis(150);
            (config.election_min, config.election_max) =
                (Duration::from_millis(750), Duration::from_millis(1_500));
            simdisk::mount(&disk_id(seed, host), simdisk::Disk::new());
            let (nodes, delay) = (nodes.clone(), Mutex::new(Some(Duration::from_millis(rng.u64(0..2_000)))));
            sim.host(host, move || serve(host, config.clone(), nodes.clone(), lock(&delay).take()));
        }
        let (down, clusters, wiped, serving, steps, outcome) = Default::default();
        Run { seed, rng, sim, nodes, log, down, lists, clusters, wiped, serving, steps, outcome }
    }

    fn run(mut self) -> Outcome {
        let (mut next, mut until) = (Duration::ZERO, CHAOS);
        while self.sim.elapsed() < until {
            if self.outcome.too_late {
                return self.ended();
            }
            if self.serving {
                until = until.min(self.sim.elapsed() + AFTER);
            }
            if self.sim.elapsed() >= next {
                next = self.sim.elapsed() + Duration::from_millis(self.rng.u64(20..700));
                self.something_goes_wrong();
            }
            self.step();
        }
        self.calm();
        if !self.founded_within(CALM) {
            self.operate();
            assert!(
                self.founded_within(CALM),
                "{}",
                self.failure("no cluster is founded, although what the nodes named was wiped")
            );
        }
        let until = self.sim.elapsed() + AFTER;
        while self.sim.elapsed() < until {
            self.step();
        }
        self.ended()
    }

    fn ended(self) -> Outcome {
        drop(self.sim);
        lock(&self.nodes).clear();
        HOSTS.iter().for_each(|host| simdisk::unmount(&disk_id(self.seed, host)));
        self.outcome
    }

    fn something_goes_wrong(&mut self) {
        let now = self.sim.elapsed();
        let (one, other) = (self.rng.usize(0..HOSTS.len()), self.rng.usize(0..HOSTS.len() - 1));
        let (one, other) = (HOSTS[one], HOSTS[(one + 1 + other) % HOSTS.len()]);
        match self.rng.u8(0..10) {
            0 | 1 => {
                self.sim.partition(one, other);
                self.outcome.cuts += 1;
            }
            2 => {
                HOSTS.into_iter().filter(|host| *host != one).for_each(|host| self.sim.partition(one, host));
                self.outcome.cuts += 1;
            }
            3 => {
                self.sim.hold(one, other);
                self.outcome.cuts += 1;
            }
            4 => self.heal(),
            5 if !self.down.contains_key(one) && self.may_die() => {
                self.power_cut(one, false);
                self.down.insert(one, None);
                self.outcome.death = true;
            }
            6 if !self.down.contains_key(one) && self.clusters.is_empty() => {
                self.power_cut(one, true);
                self.down.insert(one, Some(now + WIPED_FOR));
                self.outcome.wipes += 1;
            }
            _ if !self.down.contains_key(one) => {
                self.power_cut(one, false);
                let pause = Duration::from_millis(self.rng.u64(50..2_000));
                self.down.insert(one, Some(now + pause));
                self.outcome.crashes += 1;
            }
            _ => {}
        }
    }

    /// One, where each list still has enough nodes without it.
    fn may_die(&mut self) -> bool {
        !self.outcome.death && self.lists[0].len() > EXPECT && self.rng.bool()
    }

    fn power_cut(&mut self, host: &'static str, wiped: bool) {
        let id = disk_id(self.seed, host);
        let disk = simdisk::mounted(&id).expect("every node has a disk");
        lock(&disk).kill();
        if let Some(node) = lock(&self.nodes).remove(host)
            && wiped
        {
            self.wiped.extend(node.status().node.map(|node| (node.id, self.sim.elapsed())));
        }
        self.sim.crash(host);
        let left = match wiped {
            true => simdisk::Disk::new(),
            false => simdisk::Disk::boot(lock(&disk).crash(self.rng.u64(..), self.rng.u32(0..=100))),
        };
        simdisk::mount(&id, left);
        lock(&self.log.0).lines.push(format!("--- {host}: power cut{}", if wiped { ", wiped" } else { "" }));
    }

    fn heal(&mut self) {
        for (at, one) in HOSTS.into_iter().enumerate() {
            for other in &HOSTS[at + 1..] {
                self.sim.repair(one, *other);
                self.sim.release(one, *other);
            }
        }
    }

    /// Everything works from here on; who is dead stays dead.
    fn calm(&mut self) {
        self.heal();
        let now = self.sim.elapsed();
        self.down.values_mut().flatten().for_each(|until| *until = now.max(*until));
    }

    fn founded_within(&mut self, limit: Duration) -> bool {
        let until = self.sim.elapsed() + limit;
        while self.sim.elapsed() < until && !self.serving {
            self.step();
        }
        self.serving
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            panic!("{}", self.failure(&format!("the simulation ends: {error}")));
        }
        let now = self.sim.elapsed();
        let due: Vec<_> = self.down.iter().filter(|(_, at)| at.is_some_and(|at| at <= now)).collect();
        let due: Vec<&'static str> = due.into_iter().map(|(host, _)| *host).collect();
        for host in due {
            self.down.remove(host);
            self.sim.bounce(host);
        }
        self.steps += 1;
        if self.steps.is_multiple_of(4) {
            self.look();
        }
    }

    /// Notes every cluster that any node belongs to.
    fn look(&mut self) {
        for (host, node) in &*lock(&self.nodes) {
            let status = node.status();
            if status.cluster_id.is_empty() {
                continue;
            }
            let id = status.node.as_ref().map_or(0, |node| node.id);
            self.clusters.entry(status.cluster_id.clone()).or_default().insert((*host, id));
            self.serving |= status.ready && status.leader_id == id;
            let now = self.sim.elapsed();
            let mut wiped = status.members.iter().filter_map(|member| self.wiped.get(&member.id));
            self.outcome.too_late |= !self.outcome.blocked && wiped.any(|at| now < *at + WIPED_FOR);
        }
        if self.outcome.too_late {
            return;
        }
        if self.clusters.len() > 1 {
            panic!("{}", self.failure("two clusters"));
        }
    }

    /// An operator does what the nodes say.
    fn operate(&mut self) {
        self.outcome.blocked = true;
        let emptied = self.says("empty its data directory");
        assert!(
            !emptied.is_empty(),
            "{}",
            self.failure("no cluster is founded, and nobody says what to wipe")
        );
        let until = self.sim.elapsed() + WIPED_FOR;
        for host in &emptied {
            self.power_cut(host, true);
            self.down.insert(host, Some(until));
        }
        // The one that was stuck does not count as a second one: it never served and never will.
        self.clusters.clear();
        // Those who saw it wait for it, until they are started again.
        let others = HOSTS.into_iter().filter(|host| !self.down.contains_key(host));
        for host in others.collect::<Vec<_>>() {
            self.power_cut(host, false);
            self.down.insert(host, Some(until));
        }
    }

    /// The nodes that said this lately.
    fn says(&self, what: &str) -> BTreeSet<&'static str> {
        let lines = &lock(&self.log.0).lines;
        let recent = &lines[lines.len().saturating_sub(3 * HOSTS.len())..];
        let says =
            |host: &str, line: &String| line.contains(&format!("name={host:?}")) && line.contains(what);
        HOSTS.into_iter().filter(|host| recent.iter().any(|line| says(host, line))).collect()
    }

    fn failure(&self, what: &str) -> String {
        let lines = lock(&self.log.0).lines.join("\n");
        format!(
            "{lines}\nseed {}: {what}: {:?}, {:?}, after {:?}, lists {:?}\nagain: FOUNDING_SEED={} cargo test -p \
             raftlock-tests --test founding -- --nocapture",
            self.seed,
            self.clusters,
            self.outcome,
            self.sim.elapsed(),
            self.lists,
            self.seed
        )
    }
}

fn disk_id(seed: u64, host: &str) -> String {
    format!("founding-{seed}-{host}")
}

async fn serve(host: &'static str, config: Config, nodes: Nodes, delay: Option<Duration>) -> turmoil::Result {
    tokio::time::sleep(delay.unwrap_or_default()).await;
    let node = Arc::new(Node::start(config, seams(1.0, None)).await?);
    lock(&nodes).insert(host, node.clone());
    Err(format!("{host}: {}", node.failed().await).into())
}

/// What the nodes log, each line with the host that said it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).lines.push(String::from_utf8_lossy(bytes).trim_end().to_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
