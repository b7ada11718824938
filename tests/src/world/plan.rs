//! What a run is to be like. All of it follows from the seed, and nothing else does.

use std::time::Duration;

/// Nodes that found the cluster; with one more that joins later.
pub(crate) const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];

/// Clients, at most.
pub(crate) const CLIENTS: [&str; 8] = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];

/// How far clocks may be off by the contract: half a percent, see rule T5 of the clients' deadline.
const RATE_OFF: f64 = 0.005;

/// How far they are off in runs that go beyond it: then only what tokens promise must hold.
const RATE_WILD: f64 = 0.1;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything random follows from it.
    pub seed: u64,
    /// Nodes that found the cluster.
    pub founders: usize,
    /// When another node joins it, if one does.
    pub joins_at: Option<Duration>,
    /// Clients that work.
    pub clients: usize,
    /// Exclusive locks that they share.
    pub locks: usize,
    /// Leases, in milliseconds.
    pub ttl_ms: std::ops::Range<u64>,
    /// How long things go wrong.
    pub chaos: Duration,
    /// The longest that a message takes.
    pub latency_max: Duration,
    /// A small one lets followers fall behind the log.
    pub snapshot_log_bytes: u64,
    /// Dead members give their place away.
    pub remove_dead: bool,
    /// How fast the clocks of nodes and clients go, by their place among the hosts.
    pub rates: [Vec<f64>; 2],
    /// Clocks are off by more than the contract allows.
    pub wild_clocks: bool,
    /// Between two faults, in milliseconds.
    pub pause_ms: std::ops::Range<u64>,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x0005_EED0_F91A);
        let founders = if rng.u8(0..5) == 0 { 5 } else { 3 };
        let wild_clocks = rng.u8(0..10) == 0;
        let off = if wild_clocks { RATE_WILD } else { RATE_OFF };
        let rates = [NODES.len(), CLIENTS.len()]
            .map(|count| (0..count).map(|_| 1.0 + off * (2.0 * rng.f64() - 1.0)).collect());
        let ttl_from = rng.u64(1_000..5_000);
        let pause_from = rng.u64(100..1_500);
        Plan {
            seed,
            founders,
            joins_at: rng.bool().then(|| Duration::from_millis(rng.u64(3_000..30_000))),
            clients: rng.usize(2..=CLIENTS.len()),
            locks: rng.usize(1..=5),
            ttl_ms: ttl_from..ttl_from + rng.u64(1..5_000),
            chaos: Duration::from_secs(rng.u64(30..50)),
            latency_max: Duration::from_millis(rng.u64(2..20)),
            snapshot_log_bytes: rng.u64(2_000..25_000),
            remove_dead: rng.u8(0..3) == 0,
            rates,
            wild_clocks,
            pause_ms: pause_from..2 * pause_from + 100,
        }
    }

    /// The hosts that may run a node.
    pub(crate) fn hosts(&self) -> &'static [&'static str] {
        let count = self.founders + usize::from(self.joins_at.is_some());
        &NODES[..count]
    }

    /// The hosts that run clients.
    pub(crate) fn client_hosts(&self) -> &'static [&'static str] {
        &CLIENTS[..self.clients]
    }
}
