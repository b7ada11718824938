//! What goes wrong in a run, and when each of it is over.
//!
//! A disk that is lost for good (wiped, failed, with a flipped bit) is more than a power cut: with it go entries that
//! were acknowledged from it. The promise is that one such loss is survived. So they come one at a time: the next one
//! only when the node that lost its disk is back as another member, and its old self is none.

use std::collections::BTreeMap;
use std::time::Duration;

use raftlock_proto::v1::MemberStatus;
use raftlock_server::node::{Node, NodeError};
use raftlock_server::store::simdisk::{self, Disk, Fault, Media, SharedDisk};
use raftlock_server::store::{Store, StoreOptions};

use super::lock;
use super::plan::Plan;
use super::run::{World, disk_id};
use crate::tally::Tally;

/// How long a node may serve on after its disk has failed.
const FAILED_FOR: Duration = Duration::from_secs(2);

/// How long an operator takes to put an empty disk in.
const REPLACED_AFTER_MS: std::ops::Range<u64> = 1_000..2_000;

/// The thaw and what the process then does of itself take a step of the simulation each.
const THAW: Duration = Duration::from_millis(20);

/// What ends a fault.
enum Undo {
    Repair(&'static str, &'static str),
    Release(&'static str, &'static str),
    Latency(&'static str, &'static str),
    Thaw(usize),
    Thawed(usize),
    Disk(&'static str),
    Start(&'static str),
}

/// A disk on which an error was ordered.
struct Ordered {
    host: &'static str,
    disk: SharedDisk,
    call: u64,
    hit: Option<Duration>,
}

/// The faults of one run.
pub(crate) struct Faults {
    pub(crate) tally: Tally,
    rng: fastrand::Rng,
    next: Duration,
    undo: Vec<(Duration, Undo)>,
    /// Nodes that are down, and will be started by an undo.
    down: Vec<&'static str>,
    /// The node that lost its disk last, and its id before.
    lost: Option<(&'static str, u64)>,
    ordered: Option<Ordered>,
    /// Disks that do what waits in one of so many steps only.
    slow: BTreeMap<&'static str, u32>,
    lives: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Partition,
    OneWay,
    Bridge,
    LeaderCutOff,
    ClientCutOff,
    HeldUp,
    SegmentsLost,
    Slow,
    Kill,
    ShortPowerCut,
    LongPowerCut,
    AllPowerCut,
    ClientFrozen,
    ClientKilled,
    DiskWiped,
    DiskError,
    DiskSlow,
    DiskStalled,
    NodeStalled,
}

/// All kinds, as the tally names them.
const KINDS: [(Kind, &str); 19] = [
    (Kind::Partition, "partitions of two"),
    (Kind::OneWay, "one-way partitions"),
    (Kind::Bridge, "bridges"),
    (Kind::LeaderCutOff, "leaders cut off with a minority"),
    (Kind::ClientCutOff, "clients cut off"),
    (Kind::HeldUp, "links held up"),
    (Kind::SegmentsLost, "segments lost"),
    (Kind::Slow, "delay spikes"),
    (Kind::Kill, "kills"),
    (Kind::ShortPowerCut, "power cuts, short"),
    (Kind::LongPowerCut, "power cuts, long"),
    (Kind::AllPowerCut, "power cuts of all nodes"),
    (Kind::ClientFrozen, "clients frozen"),
    (Kind::ClientKilled, "clients killed"),
    (Kind::DiskWiped, "disks wiped"),
    (Kind::DiskError, "disk errors ordered"),
    (Kind::DiskSlow, "slow disks"),
    (Kind::DiskStalled, "disks stalled"),
    (Kind::NodeStalled, "nodes stalled"),
];

/// How a node goes down.
#[derive(Clone, Copy)]
enum Down {
    /// Its process ends. What it wrote is there, and its peers hear of the end.
    Process,
    /// Its machine does. So many percent of what was not synced arrived, and nobody hears of it.
    Machine { keep: u32 },
}

impl Faults {
    pub(crate) fn new(plan: &Plan) -> Faults {
        let mut tally = Tally::default();
        KINDS.iter().for_each(|(_, name)| tally.add(name, 0));
        Faults {
            tally,
            rng: fastrand::Rng::with_seed(plan.seed ^ 0xFA01_7500),
            next: Duration::from_secs(3),
            undo: Vec::new(),
            down: Vec::new(),
            lost: None,
            ordered: None,
            slow: BTreeMap::new(),
            lives: BTreeMap::new(),
        }
    }

    /// H11: a run in which nothing went wrong shows nothing. What is counted is what there was something to do it to.
    pub(crate) fn have_bitten(&self) -> bool {
        KINDS.iter().any(|(_, name)| self.tally.get(name) > 0)
    }

    /// Called before each step of the chaos.
    pub(crate) fn go_on(&mut self, world: &mut World) -> Result<(), String> {
        self.look_after(world)?;
        if world.now() >= self.next {
            let pause = self.rng.u64(world.plan.pause_ms.clone());
            self.next = world.now() + Duration::from_millis(pause);
            self.inject(world);
        }
        Ok(())
    }

    /// Everything works from here on.
    pub(crate) fn over(&mut self, world: &mut World) {
        if let Some(ordered) = self.ordered.take_if(|ordered| ordered.hit.is_none()) {
            lock(&ordered.disk).fail_at(0, Fault::Eio);
        }
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.apply(world, undo);
        }
        let hosts = everybody(&world.plan);
        for (at, one) in hosts.iter().enumerate() {
            hosts[at + 1..].iter().for_each(|other| {
                world.sim.repair(*one, *other);
                world.sim.release(*one, *other);
            });
        }
    }

    /// Ends what is over, and does what an operator does: called before each step.
    pub(crate) fn look_after(&mut self, world: &mut World) -> Result<(), String> {
        let now = world.now();
        let (due, later) = std::mem::take(&mut self.undo).into_iter().partition(|(at, _)| *at <= now);
        self.undo = later;
        let due: Vec<(Duration, Undo)> = due;
        due.into_iter().for_each(|(_, undo)| self.apply(world, undo));
        for (host, one_in) in &self.slow {
            if self.rng.u32(0..*one_in) == 0 {
                lock(&world.valves)[host].let_through();
            }
        }
        self.look_at_ordered(world)?;
        self.replace_the_ended(world)
    }

    fn later(&mut self, world: &World, ms: std::ops::Range<u64>, undo: Undo) {
        let at = world.now() + Duration::from_millis(self.rng.u64(ms));
        self.undo.push((at, undo));
    }

    fn apply(&mut self, world: &mut World, undo: Undo) {
        match undo {
            Undo::Repair(one, other) => world.sim.repair(one, other),
            Undo::Release(one, other) => world.sim.release(one, other),
            Undo::Latency(one, other) => {
                world.sim.set_link_max_message_latency(one, other, world.plan.latency_max);
            }
            Undo::Thaw(at) => {
                world.ices[at].thaw();
                self.undo.push((world.now() + THAW, Undo::Thawed(at)));
            }
            Undo::Thawed(at) => {
                let name = self.process(world.plan.client_hosts()[at]);
                world.shared.history.resumed_at(&name, world.now());
            }
            Undo::Disk(host) => {
                self.slow.remove(host);
                lock(&world.valves)[host].open();
            }
            Undo::Start(host) => {
                world.say(&format!("{host} starts"));
                self.down.retain(|down| *down != host);
                world.plan.hosts().iter().filter(|other| **other != host).for_each(|other| {
                    world.sim.repair(host, *other);
                });
                world.sim.bounce(host);
            }
        }
    }

    fn inject(&mut self, world: &mut World) {
        let (kind, name) = KINDS[self.rng.usize(0..KINDS.len())];
        if self.one(world, kind) {
            self.tally.add(name, 1);
            world.say(name);
        }
    }

    /// Says whether there was anything to do it to.
    fn one(&mut self, world: &mut World, kind: Kind) -> bool {
        let hosts = world.plan.hosts();
        match kind {
            Kind::Partition => {
                let (one, other) = self.two(hosts);
                world.sim.partition(one, other);
                self.later(world, 100..6_000, Undo::Repair(one, other));
                true
            }
            Kind::OneWay => {
                let (one, other) = self.two(&everybody(&world.plan));
                world.sim.partition_oneway(one, other);
                self.later(world, 100..6_000, Undo::Repair(one, other));
                true
            }
            Kind::Bridge => {
                let bridge = hosts[self.rng.usize(0..hosts.len())];
                let sides: Vec<bool> = hosts.iter().map(|_| self.rng.bool()).collect();
                let ms = self.rng.u64(300..6_000);
                self.cut(world, ms, |one, other| {
                    let side = |host| hosts.iter().position(|name| *name == host).map(|at| sides[at]);
                    one != bridge && other != bridge && side(one) != side(other)
                })
            }
            Kind::LeaderCutOff => {
                let Some((leader, _)) = world.leader() else { return false };
                let friend = self.rng.bool().then(|| hosts[self.rng.usize(0..hosts.len())]);
                let friend = friend.filter(|_| world.plan.founders > 3);
                let inside = |host: &str| host == leader || Some(host) == friend;
                let ms = self.rng.u64(300..8_000);
                self.cut(world, ms, |one, other| inside(one) != inside(other))
            }
            Kind::ClientCutOff => {
                let client = self.some_client(world).1;
                let ms = self.rng.u64(200..12_000);
                for node in hosts {
                    world.sim.partition(client, *node);
                    self.later(world, ms..ms + 1, Undo::Repair(client, node));
                }
                true
            }
            Kind::HeldUp => {
                let (one, other) = self.two(&everybody(&world.plan));
                world.sim.hold(one, other);
                self.later(world, 50..3_000, Undo::Release(one, other));
                true
            }
            Kind::SegmentsLost => {
                let all = everybody(&world.plan);
                for _ in 0..5 {
                    let (one, other) = self.two(&all);
                    world.sim.partition_oneway(one, other);
                    self.later(world, 10..120, Undo::Repair(one, other));
                }
                true
            }
            Kind::Slow => {
                let (one, other) = self.two(&everybody(&world.plan));
                let slow = Duration::from_millis(self.rng.u64(50..500));
                world.sim.set_link_max_message_latency(one, other, slow);
                self.later(world, 200..4_000, Undo::Latency(one, other));
                true
            }
            Kind::Kill | Kind::ShortPowerCut | Kind::LongPowerCut => {
                let Some(host) = self.some_up(world) else { return false };
                let ms = if kind == Kind::LongPowerCut { 8_000..16_000 } else { 20..2_500 };
                let down = if kind == Kind::Kill { Down::Process } else { self.power_cut() };
                self.take_down(world, host, down, Disk::boot, ms);
                true
            }
            Kind::AllPowerCut => {
                let up: Vec<&'static str> = lock(&world.nodes).keys().copied().collect();
                for host in &up {
                    let down = self.power_cut();
                    self.take_down(world, host, down, Disk::boot, 50..3_000);
                }
                !up.is_empty()
            }
            Kind::ClientFrozen => {
                let (at, host) = self.some_holder(world);
                let name = self.process(host);
                if world.shared.history.is_paused(&name) {
                    return false;
                }
                world.ices[at].freeze();
                world.shared.history.paused_at(&name, world.now());
                self.later(world, 100..15_000, Undo::Thaw(at));
                true
            }
            Kind::ClientKilled => self.kill_a_client(world),
            Kind::DiskWiped | Kind::DiskError => self.lose_a_disk(world, kind),
            Kind::DiskSlow => {
                let Some(host) = self.some_up(world) else { return false };
                self.slow.insert(host, self.rng.u32(2..10));
                self.stall_the_disk(world, host, 500..6_000);
                true
            }
            Kind::DiskStalled => {
                let Some(host) = self.some_up(world) else { return false };
                self.stall_the_disk(world, host, 100..6_000);
                true
            }
            Kind::NodeStalled => {
                // As far as others see: its timers go on. A leader is the one with something to lose.
                let leader = world.leader().map(|(host, _)| host).filter(|_| self.rng.bool());
                let Some(host) = leader.or_else(|| self.some_up(world)) else { return false };
                let ms = self.rng.u64(100..6_000);
                self.stall_the_disk(world, host, ms..ms + 1);
                for other in everybody(&world.plan).into_iter().filter(|other| *other != host) {
                    world.sim.hold(host, other);
                    self.later(world, ms..ms + 1, Undo::Release(host, other));
                }
                true
            }
        }
    }

    /// Cuts every link between nodes for which it holds. Says whether there was one.
    fn cut(&mut self, world: &mut World, ms: u64, is_cut: impl Fn(&str, &str) -> bool) -> bool {
        let hosts = world.plan.hosts();
        let mut any = false;
        for (at, one) in hosts.iter().enumerate() {
            for other in hosts[at + 1..].iter().filter(|other| is_cut(one, other)) {
                world.sim.partition(*one, *other);
                self.later(world, ms..ms + 1, Undo::Repair(one, other));
                any = true;
            }
        }
        any
    }

    fn power_cut(&mut self) -> Down {
        Down::Machine { keep: self.rng.u32(0..=100) }
    }

    /// Takes a node down. It starts again after some time, on the disk that `next` makes of what is left.
    fn take_down(
        &mut self,
        world: &mut World,
        host: &'static str,
        down: Down,
        next: impl FnOnce(Media) -> Disk,
        ms: std::ops::Range<u64>,
    ) {
        let id = disk_id(world.plan.seed, host);
        let disk = simdisk::mounted(&id).expect("every node has a disk");
        lock(&disk).kill();
        let keep = match down {
            Down::Process => 100,
            Down::Machine { keep } => {
                let others = world.plan.hosts().iter().filter(|other| **other != host);
                others.for_each(|other| world.sim.partition(host, *other));
                keep
            }
        };
        lock(&world.nodes).remove(host);
        lock(&world.ended).remove(host);
        world.sim.crash(host);
        self.down.push(host);
        world.say(&format!("{host} is down"));
        let left = lock(&disk).crash(self.rng.u64(..), keep);
        simdisk::mount(&id, next(left));
        self.later(world, ms, Undo::Start(host));
    }

    fn kill_a_client(&mut self, world: &mut World) -> bool {
        let (at, host) = self.some_client(world);
        let name = self.process(host);
        if world.shared.history.is_paused(&name) {
            return false;
        }
        world.shared.history.died(&name, world.now());
        world.sim.crash(host);
        *self.lives.entry(host).or_insert(1) += 1;
        world.ices[at].thaw();
        world.sim.bounce(host);
        true
    }

    /// What is written waits, and so do the answers.
    fn stall_the_disk(&mut self, world: &World, host: &'static str, ms: std::ops::Range<u64>) {
        lock(&world.valves)[host].shut();
        self.later(world, ms, Undo::Disk(host));
    }

    /// Takes a node's disk for good, if the cluster is whole; or orders that it fails.
    fn lose_a_disk(&mut self, world: &mut World, kind: Kind) -> bool {
        if self.ordered.is_some() || !self.is_whole(world) {
            return false;
        }
        let Some(host) = self.some_up(world) else { return false };
        self.lost = Some((host, id_of(&lock(&world.nodes)[host])));
        if kind == Kind::DiskWiped {
            self.take_down(world, host, Down::Machine { keep: 0 }, |_| Disk::new(), 50..3_000);
            return true;
        }
        let fault = match self.rng.u8(0..3) {
            0 => {
                self.flip_a_bit(world, host);
                return true;
            }
            1 => Fault::Eio,
            _ => Fault::Enospc,
        };
        let disk = simdisk::mounted(&disk_id(world.plan.seed, host)).expect("every node has a disk");
        let call = lock(&disk).ops() + self.rng.u64(1..60);
        lock(&disk).fail_at(call, fault);
        self.ordered = Some(Ordered { host, disk, call, hit: None });
        true
    }

    /// Flips a bit on a stopped node's disk. Where the store refuses it, so must the node; where it cannot know, an
    /// operator who does puts an empty disk in.
    fn flip_a_bit(&mut self, world: &mut World, host: &'static str) {
        let file = ["raft.db", "raft.db-wal", "snapshots.db"][self.rng.usize(0..3)];
        let place = self.rng.f64();
        let look = format!("{}-look", disk_id(world.plan.seed, host));
        let mut refused = false;
        let flip = |mut left: Media| {
            if let Some(bytes) = left.file_mut(file).filter(|bytes| !bytes.is_empty()) {
                let bit = (place * (8 * bytes.len()) as f64) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            simdisk::mount(&look, Disk::boot(left.clone()));
            refused = Store::open(StoreOptions::simulated(&look)).map(|store| store.abandon()).is_err();
            simdisk::unmount(&look);
            if refused { Disk::boot(left) } else { Disk::new() }
        };
        self.take_down(world, host, Down::Machine { keep: 100 }, flip, 50..1_000);
        self.tally.add("flipped bits refused", refused.into());
        self.tally.add("flipped bits that nobody can see", (!refused).into());
    }

    /// A disk that failed ends its node in time.
    fn look_at_ordered(&mut self, world: &mut World) -> Result<(), String> {
        let Some(ordered) = &mut self.ordered else { return Ok(()) };
        let now = world.now();
        if ordered.hit.is_none() && lock(&ordered.disk).ops() >= ordered.call {
            ordered.hit = Some(now);
            self.tally.add("disk errors", 1);
            world.say(&format!("the disk of {} fails", ordered.host));
        }
        let serves = lock(&world.nodes).contains_key(ordered.host);
        match ordered.hit {
            Some(at) if serves && now > at + FAILED_FOR => {
                Err(format!("{} goes on {:?} after its disk failed", ordered.host, now - at))
            }
            Some(_) if !serves => {
                self.ordered = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A node that ended by itself gets an empty disk, if it had a reason that asks for one.
    fn replace_the_ended(&mut self, world: &mut World) -> Result<(), String> {
        let ended: Vec<(&'static str, NodeError)> =
            lock(&world.ended).iter().map(|(host, why)| (*host, why.clone())).collect();
        for (host, why) in ended {
            let lost = self.lost.is_some_and(|(lost, _)| lost == host);
            let asks = matches!(why, NodeError::Removed | NodeError::StaleStorage(_));
            if !(asks || lost && is_of_the_disk(&why)) {
                return Err(format!("{host} ended: {why}"));
            }
            world.say(&format!("{host} ended: {why}; it gets an empty disk"));
            self.tally.add("nodes that ended and were replaced", 1);
            self.take_down(world, host, Down::Machine { keep: 0 }, |_| Disk::new(), REPLACED_AFTER_MS);
        }
        Ok(())
    }

    /// Nothing is down or cut, every member is alive and caught up, and a node that lost its disk is one of them again.
    /// What the leader says of the members counts only if all its log is committed: a change that is not may be lost with
    /// it, and the old self still be needed.
    fn is_whole(&mut self, world: &World) -> bool {
        let Some((_, leader)) = world.leader() else { return false };
        let status = leader.status();
        let is_well =
            |member: &MemberStatus| member.state == "alive" && member.lag.is_none_or(|lag| lag < 20);
        let is_old = |member: &MemberStatus| self.lost.is_some_and(|(_, id)| member.id == id);
        let voters = status.members.iter().filter(|member| member.role == "voter").count();
        let up = lock(&world.nodes).len();
        let all_up = up == world.plan.hosts().len() || world.now() < world.plan.joins_at.unwrap_or_default();
        let whole = self.down.is_empty()
            && self.undo.is_empty()
            && all_up
            && status.commit_index == status.last_log_index
            && voters == world.plan.founders
            && status.members.iter().all(|member| is_well(member) && !is_old(member));
        if whole {
            self.lost = None;
        }
        whole
    }

    fn two<'a>(&mut self, of: &[&'a str]) -> (&'a str, &'a str) {
        let (one, other) = (self.rng.usize(0..of.len()), self.rng.usize(1..of.len()));
        (of[one], of[(one + other) % of.len()])
    }

    fn some_up(&mut self, world: &World) -> Option<&'static str> {
        let nodes = lock(&world.nodes);
        let up: Vec<&'static str> = nodes.keys().copied().collect();
        (!up.is_empty()).then(|| up[self.rng.usize(0..up.len())])
    }

    fn some_client(&mut self, world: &World) -> (usize, &'static str) {
        let hosts = world.plan.client_hosts();
        let at = self.rng.usize(0..hosts.len());
        (at, hosts[at])
    }

    /// A client that holds something, if one does: it has more to lose.
    fn some_holder(&mut self, world: &World) -> (usize, &'static str) {
        let hosts = world.plan.client_hosts().iter().copied().enumerate();
        let holds = |(_, host): &(usize, &'static str)| world.shared.history.is_holding(&self.process(host));
        let holders: Vec<(usize, &'static str)> = hosts.filter(holds).collect();
        match holders.len() {
            0 => self.some_client(world),
            count => holders[self.rng.usize(0..count)],
        }
    }

    /// The name under which the process of a host works in its present life.
    fn process(&self, host: &str) -> String {
        format!("{host}.{}", self.lives.get(host).unwrap_or(&1))
    }
}

fn everybody(plan: &Plan) -> Vec<&'static str> {
    plan.hosts().iter().chain(plan.client_hosts()).copied().collect()
}

fn id_of(node: &Node) -> u64 {
    node.status().node.map_or(0, |node| node.id)
}

/// Whether a node ended as one whose disk failed does.
fn is_of_the_disk(why: &NodeError) -> bool {
    matches!(why, NodeError::Store(_) | NodeError::Raft(_))
}
