//! One run: chaos, in which things go wrong; calm, in which all of it works and everybody gets what he waits for; quiet,
//! after which nothing is left. What must hold is checked all the time, and once more over the whole at the end.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock_server::node::{Node, Seams};
use raftlock_server::store::{Valve, Writer, simdisk};

use super::clients::{CALM_WAIT, Shared, work};
use super::faults::Faults;
use super::freeze::Ice;
use super::hosts::{Ended, Nodes, Valves, config, seams, serve};
use super::plan::Plan;
use super::reader::{READER, read};
use super::watch::Watch;
use super::{align_task_ids, lock};
use crate::tally::Tally;

/// A step of the simulation. A message takes two of them at least, so a commit is slower than on a real network.
const TICK: Duration = Duration::from_millis(5);

/// How long the calm may take in all: several waits follow each other.
const CALM_LIMIT: Duration = Duration::from_secs(3 * CALM_WAIT.as_secs());

/// The longest lease of the plan, the time in which cluster time may stand, and some.
const QUIET_LIMIT: Duration = Duration::from_secs(30);

/// Looks at the nodes are not free: every so many steps.
const LOOK_EVERY: u64 = 10;

/// Lines, in the order in which things happened.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    pub(crate) fn line(&self, at: Duration, what: &str) {
        lock(&self.0).push(format!("{:>9.3} {what}", at.as_secs_f64()));
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Everything that happened, one line each, with its simulated time.
    pub trace: Vec<String>,
    /// In counts.
    pub tally: Tally,
}

impl Outcome {
    /// A number for the whole trace.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.trace.hash(&mut hasher);
        hasher.finish()
    }
}

/// A run that failed: what was wrong, and everything that happened before.
#[derive(Debug)]
pub struct Failure {
    /// The check that failed, and what was seen.
    pub what: String,
    /// Everything up to there.
    pub trace: Vec<String>,
    /// What the clients saw, as lines of JSON.
    pub history: String,
}

/// Runs the plan of one seed to its end.
///
/// # Errors
/// The first check that failed.
pub fn run(seed: u64) -> Result<Outcome, Failure> {
    align_task_ids();
    raftlock_server::seed_thread_rng(seed);
    let mut world = World::new(Plan::of(seed));
    let (trace, history) = (world.trace.clone(), world.shared.history.clone());
    let ended = catch_unwind(AssertUnwindSafe(|| world.live()));
    let taken = || std::mem::take(&mut *lock(&trace.0));
    let failure = |what| Failure { what, trace: taken(), history: history.lines() };
    match ended {
        Ok(ended) => {
            world.end();
            match ended {
                Ok(tally) => Ok(Outcome { trace: taken(), tally }),
                Err(what) => Err(failure(what)),
            }
        }
        Err(panic) => {
            // Half of it may be in the middle of something: dropped, it could panic again and end the process.
            std::mem::forget(world);
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            Err(failure(said.unwrap_or_else(|| "a panic".to_owned())))
        }
    }
}

/// The world while it runs.
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) sim: turmoil::Sim<'static>,
    pub(crate) nodes: Nodes,
    pub(crate) ended: Ended,
    pub(crate) valves: Valves,
    pub(crate) ices: Vec<Ice>,
    pub(crate) trace: Trace,
    pub(crate) shared: Shared,
    pub(crate) watch: Watch,
    steps: u64,
}

impl World {
    fn new(plan: Plan) -> World {
        let plan = Arc::new(plan);
        let trace = Trace::default();
        let shared = Shared::new(plan.clone(), trace.clone());
        let rates = plan.rates[0].iter().copied();
        let rates = (rates.clone().fold(1.0, f64::min), rates.fold(1.0, f64::max));
        let watch = Watch::new(rates, trace.clone());
        let (nodes, ended, valves) = (Nodes::default(), Ended::default(), Valves::default());
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .tick_duration(TICK)
            .simulation_duration(plan.chaos + CALM_LIMIT + QUIET_LIMIT + Duration::from_secs(60))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(plan.latency_max)
            .tcp_capacity(65_536)
            .build();
        for (at, host) in plan.hosts().iter().enumerate() {
            simdisk::mount(&disk_id(plan.seed, host), simdisk::Disk::new());
            let (plan, watch) = (plan.clone(), watch.clone());
            let (nodes, ended, valves) = (nodes.clone(), ended.clone(), valves.clone());
            sim.host(*host, move || {
                let mut config =
                    config(host, disk_id(plan.seed, host), &plan.hosts()[..plan.founders], plan.founders);
                config.snapshot_log_bytes = plan.snapshot_log_bytes;
                config.voters = plan.founders as u32;
                config.remove_dead_after = plan.remove_dead.then_some(Duration::from_secs(10));
                let (plan, watch) = (plan.clone(), watch.clone());
                let (nodes, ended) = (nodes.clone(), ended.clone());
                let valve = Valve::default();
                lock(&valves).insert(host, valve.clone());
                async move {
                    let late = if at < plan.founders { None } else { plan.joins_at };
                    let now = turmoil::sim_elapsed().unwrap_or_default();
                    tokio::time::sleep(late.unwrap_or_default().saturating_sub(now)).await;
                    let seams = Seams {
                        writer: Writer::Behind(valve.clone()),
                        ..seams(plan.rates[0][at], Some(watch.of(host)))
                    };
                    tokio::spawn(async move { valve.tend().await });
                    serve(host, config, seams, nodes, ended).await
                }
            });
        }
        let ices: Vec<Ice> = plan.client_hosts().iter().map(|_| Ice::default()).collect();
        for (host, ice) in plan.client_hosts().iter().zip(&ices) {
            let (shared, ice, life) = (shared.clone(), ice.clone(), Arc::new(AtomicU64::new(0)));
            sim.host(*host, move || {
                work(host, life.fetch_add(1, Ordering::Relaxed) + 1, shared.clone(), ice.clone())
            });
        }
        let asked = shared.clone();
        sim.host(READER, move || read(asked.clone()));
        World { plan, sim, nodes, ended, valves, ices, trace, shared, watch, steps: 0 }
    }

    /// What the world sees of time.
    pub(crate) fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    pub(crate) fn say(&self, what: &str) {
        self.trace.line(self.now(), &format!("--- {what}"));
    }

    /// A node that calls itself the leader.
    pub(crate) fn leader(&self) -> Option<(&'static str, Arc<Node>)> {
        let nodes = lock(&self.nodes);
        let leads = |node: &Node| node.status().node.is_some_and(|node| node.role == "leader");
        nodes.iter().find(|(_, node)| leads(node)).map(|(host, node)| (*host, node.clone()))
    }

    fn live(&mut self) -> Result<Tally, String> {
        let mut faults = Faults::new(&self.plan);
        while self.now() < self.plan.chaos {
            faults.go_on(self)?;
            self.step()?;
        }
        faults.over(self);
        self.say("calm");
        let clients = self.plan.clients;
        let all_served = |world: &World| lock(&world.shared.done).len() == clients;
        self.until("every client gets every lock", CALM_LIMIT, &mut faults, all_served)?;
        self.say("quiet");
        self.until("every lease ends and every node has it all", QUIET_LIMIT, &mut faults, World::is_quiet)?;
        self.verdict(&faults)
    }

    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        faults: &mut Faults,
        holds: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        let until = self.now() + limit;
        while !holds(self) {
            if self.now() > until {
                return Err(format!("liveness: not within {limit:?}: {what}; {}", self.scene()));
            }
            if let Some(what) = lock(&self.shared.unserved).clone() {
                return Err(format!("liveness: {what}; {}", self.scene()));
            }
            faults.look_after(self)?;
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("the simulation ends: {error}"))?;
        self.steps += 1;
        if self.steps.is_multiple_of(LOOK_EVERY) {
            self.watch.broken().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// No session lives, nobody waits, and every node has applied the same.
    fn is_quiet(&self) -> bool {
        let nodes = lock(&self.nodes);
        let views = nodes.values().map(|node| node.status());
        let views: Vec<_> =
            views.map(|seen| (seen.applied_index, seen.sessions, seen.locks, seen.waiters)).collect();
        nodes.len() == self.plan.hosts().len()
            && views.iter().all(|view| *view == (views[0].0, 0, 0, 0))
            && nodes.values().all(|node| node.status().ready)
    }

    fn scene(&self) -> String {
        let nodes = lock(&self.nodes);
        let views = nodes.iter().map(|(host, node)| {
            let seen = node.status();
            let role = seen.node.map(|node| node.role).unwrap_or_default();
            let members: Vec<String> =
                seen.members.iter().map(|member| format!("{}:{}:{}", member.name, member.role, member.state)).collect();
            format!(
                "{host} {role} term {} applied {} of {}, {} sessions, {} locks, {} waiters, members {members:?}",
                seen.term, seen.applied_index, seen.last_log_index, seen.sessions, seen.locks, seen.waiters
            )
        });
        let views = views.collect::<Vec<_>>().join("; ");
        format!("{views}; ended {:?}; done {:?}", *lock(&self.ended), *lock(&self.shared.done))
    }

    fn verdict(&self, faults: &Faults) -> Result<Tally, String> {
        self.watch.broken().map_or(Ok(()), Err)?;
        let replay = self.watch.replay(self.plan.chaos)?;
        for (client, name, token) in self.shared.history.grants() {
            let granted = replay.grants.get(&token);
            if granted.is_none_or(|(owner, names)| *owner != client || !names.contains(&name)) {
                return Err(format!("{client} saw token {token} for {name}; the log says {granted:?}"));
            }
        }
        let left = replay.table.counts();
        if (left.sessions, left.held, left.waiters) != (0, 0, 0) {
            return Err(format!("H9: {left:?} are left in the end"));
        }
        let history = &self.shared.history;
        let checked = match self.plan.wild_clocks {
            true => history.check_tokens(),
            false => history.check_against(&replay.timelines).and_then(|()| history.check().map(drop)),
        };
        checked.map_err(|violation| violation.to_string())?;
        let mut tally = lock(&self.shared.tally).clone();
        if !faults.have_bitten() || tally.get("grants") == 0 {
            return Err(format!("H11: the run is invalid: {tally}, {}", faults.tally));
        }
        tally.add("leases ended in the calm", replay.ended_in_the_calm);
        tally.add("unknown operations", history.unknown() as u64);
        tally.merge(&faults.tally);
        tally.merge(&self.watch.tally());
        tally.add("simulated seeds", 1);
        tally.add("simulated seconds", self.now().as_secs());
        Ok(tally)
    }

    /// Everything is dropped while its disks are dead, so that nothing is written.
    fn end(self) {
        let World { plan, sim, nodes, .. } = self;
        let ids = plan.hosts().iter().map(|host| disk_id(plan.seed, host));
        let ids: Vec<String> = ids.collect();
        ids.iter().filter_map(|id| simdisk::mounted(id)).for_each(|disk| lock(&disk).kill());
        drop(sim);
        lock(&nodes).clear();
        ids.iter().for_each(|id| simdisk::unmount(id));
    }
}

pub(crate) fn disk_id(seed: u64, host: &str) -> String {
    format!("sim-{seed}-{host}")
}
