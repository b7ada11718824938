//! What a node is told at its start. Every field says how to choose it; defaults are here and nowhere else.

use std::path::PathBuf;
use std::time::Duration;

use lock_table::{Limits, Settings};

/// The port of the public service when none is given.
pub const CLIENT_PORT: u16 = 50051;

/// The port of the peer service when none is given.
pub const PEER_PORT: u16 = 50052;

/// A node's configuration. Start from [`Config::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct Config {
    /// For people, in logs and `members`. A replaced node may keep the name of the one before it.
    pub node_name: String,
    /// Where the node keeps its log, vote and snapshots: a local disk, used by nobody else. It holds the node's
    /// identity; never copy it, never restore an old copy.
    pub data_dir: PathBuf,
    /// Whether there is a port for clients at all. A node inside an application serves its own process without one.
    pub public_port: bool,
    /// The address for clients. There is no authentication: bind what only your services reach.
    pub listen: String,
    /// How clients reach this node, if not as `listen` says.
    pub advertise: Option<String>,
    /// The address for the other nodes. Whoever reaches it owns the cluster: keep it private.
    pub peer_listen: String,
    /// How the other nodes reach this one, if not as `peer_listen` says.
    pub peer_advertise: Option<String>,
    /// Nodes with another cluster name are never talked to. Give each of your clusters its own.
    pub cluster_name: String,
    /// Peer addresses of nodes to found or find a cluster with; this node's own may be among them.
    pub seeds: Vec<String>,
    /// How many new nodes found a cluster together: the number of nodes that you start it with. Without it, a node
    /// that has seeds waits for a cluster to join, and one that has none is a cluster of its own.
    pub bootstrap_expect: Option<usize>,
    /// How many of the members vote, for the cluster that this node founds. Odd; 3 survives one failure, 5 two.
    pub voters: u32,
    /// The limits of the cluster that this node founds. They are replicated: a running cluster keeps its own.
    pub limits: Limits,
    /// The lease of a unary lock that names none.
    pub default_ttl: Duration,
    /// A lower bound for the first fencing token of a new cluster: above every token that a former cluster gave out
    /// for the same resources.
    pub token_floor: u64,
    /// Log bytes after which a snapshot is due. More makes restarts slower, less writes more.
    pub snapshot_log_bytes: u64,
    /// How often the leader is heard of: above the slowest flush of the disks.
    pub heartbeat: Duration,
    /// The shortest election timeout: at least five heartbeats. Where a host or the network is gone, fail-over takes one and
    /// a half to two of the longest; a leader whose process alone is gone is followed at once.
    pub election_min: Duration,
    /// The longest election timeout.
    pub election_max: Duration,
    /// A file that an operator may delete on a full disk. 0 for none.
    pub ballast_bytes: u64,
    /// How long a member may be dead before it is removed from the membership: a voter then gives its place to a
    /// learner that is caught up. Well above any restart. `None`: only operators remove members.
    pub remove_dead_after: Option<Duration>,
    /// Accept a data directory on a file system that forgets at a reboot. For tests and demos.
    pub allow_volatile_data: bool,
    /// Serve gRPC reflection on the public port, for grpcurl.
    pub reflection: bool,
}

/// Voters at most: every commit waits for more than half of them.
pub const VOTERS_MAX: u32 = 9;

/// A member that was only restarted must not lose its place.
const REMOVE_DEAD_AFTER_MIN: Duration = Duration::from_secs(10);

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The field, as the flag names it.
    pub field: &'static str,
    /// The bound that it breaks.
    pub problem: String,
}

impl Config {
    /// A single node on this machine, with its data in `data_dir`.
    pub fn new(node_name: impl Into<String>, data_dir: impl Into<PathBuf>) -> Config {
        Config {
            node_name: node_name.into(),
            data_dir: data_dir.into(),
            public_port: true,
            listen: format!("127.0.0.1:{CLIENT_PORT}"),
            advertise: None,
            peer_listen: format!("127.0.0.1:{PEER_PORT}"),
            peer_advertise: None,
            cluster_name: "raftlock".to_owned(),
            seeds: Vec::new(),
            bootstrap_expect: None,
            voters: 3,
            limits: Limits::standard(),
            default_ttl: Duration::from_secs(30),
            token_floor: 0,
            snapshot_log_bytes: 64 << 20,
            heartbeat: Duration::from_millis(60),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            ballast_bytes: 64 << 20,
            remove_dead_after: None,
            allow_volatile_data: false,
            reflection: false,
        }
    }

    /// Checks every bound; the error names the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field, problem: String| Err(ConfigError { field, problem });
        let name = &self.node_name;
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            return wrong("node-name", "must be 1 to 255 bytes without control characters".into());
        }
        if self.cluster_name.is_empty() || self.cluster_name.len() > 255 {
            return wrong("cluster-name", "must be 1 to 255 bytes".into());
        }
        for (field, address) in [("listen", &self.listen), ("peer-listen", &self.peer_listen)] {
            if port_of(address).is_none() {
                return wrong(field, format!("{address:?} is not HOST:PORT"));
            }
        }
        let advertised = [("advertise", &self.advertise), ("peer-advertise", &self.peer_advertise)];
        for (field, address) in advertised {
            if address.as_deref().is_some_and(|address| port_of(address).is_none_or(|port| port == 0)) {
                return wrong(field, "must be HOST:PORT as others reach it".into());
            }
        }
        if let Some(seed) = self.seeds.iter().find(|seed| port_of(&with_peer_port(seed)).is_none()) {
            return wrong("seeds", format!("{seed:?} is neither HOST nor HOST:PORT"));
        }
        if let Some(expect) = self.bootstrap_expect {
            let mut distinct: Vec<String> = self.seeds.iter().map(|seed| with_peer_port(seed)).collect();
            distinct.sort();
            distinct.dedup();
            if expect == 0 || expect > 64 {
                return wrong("bootstrap-expect", "must be 1 to 64".into());
            }
            if expect * 2 <= distinct.len() {
                let seeds = distinct.len();
                return wrong("bootstrap-expect", format!("must be more than half of the {seeds} seeds"));
            }
        }
        if self.voters.is_multiple_of(2) || self.voters > VOTERS_MAX {
            return wrong("voters", format!("must be odd and at most {VOTERS_MAX}"));
        }
        if self.remove_dead_after.is_some_and(|after| after < REMOVE_DEAD_AFTER_MIN) {
            return wrong("remove-dead-after", "must be at least 10s: a restart is no death".into());
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&self.default_ttl) {
            return wrong("default-ttl", "must be at least 1s and at most 24h".into());
        }
        if self.token_floor >= 1 << 62 {
            return wrong("token-floor", "must be below 2^62, to leave tokens to give out".into());
        }
        if self.snapshot_log_bytes == 0 {
            return wrong("snapshot-log-bytes", "must be above 0".into());
        }
        if self.heartbeat < Duration::from_millis(5) {
            return wrong("heartbeat", "must be at least 5ms".into());
        }
        if self.election_min < self.heartbeat * 5 {
            return wrong("election-min", "must be at least five heartbeats".into());
        }
        if self.election_max <= self.election_min {
            return wrong("election-max", "must be above election-min".into());
        }
        Ok(())
    }

    /// What the first leader of a new cluster writes into its first entry.
    pub fn settings(&self) -> Settings {
        Settings { limits: self.limits.clone(), voters: self.voters }
    }
}

/// The port of `HOST:PORT`.
pub(crate) fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    // A colon in a host is one of an IPv6 address, in brackets.
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !is_bracketed) { None } else { port.parse().ok() }
}

/// `seed` with the peer port, if it names none.
pub fn with_peer_port(seed: &str) -> String {
    // An IPv6 address in brackets may hold colons and no port.
    let has_port = seed.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { seed.to_owned() } else { format!("{seed}:{PEER_PORT}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(change: impl FnOnce(&mut Config)) -> Option<&'static str> {
        let mut config = Config::new("n1", "data");
        change(&mut config);
        config.validate().err().map(|error| error.field)
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(field_of(|_| {}), None);
    }

    #[test]
    fn each_bound_names_its_field() {
        assert_eq!(field_of(|c| c.node_name.clear()), Some("node-name"));
        assert_eq!(field_of(|c| c.listen = "nowhere".into()), Some("listen"));
        assert_eq!(field_of(|c| c.advertise = Some("host:0".into())), Some("advertise"));
        assert_eq!(field_of(|c| c.election_min = c.heartbeat * 4), Some("election-min"));
        assert_eq!(field_of(|c| c.election_max = c.election_min), Some("election-max"));
        assert_eq!(field_of(|c| c.voters = 2), Some("voters"));
        assert_eq!(
            field_of(|c| c.remove_dead_after = Some(Duration::from_secs(9))),
            Some("remove-dead-after")
        );
        assert_eq!(field_of(|c| c.default_ttl = Duration::ZERO), Some("default-ttl"));
        assert_eq!(field_of(|c| c.token_floor = 1 << 62), Some("token-floor"));
    }

    #[test]
    fn fewer_founders_than_half_of_the_seeds_could_found_two_clusters() {
        let with = |seeds: usize, expect| {
            field_of(|c| {
                c.seeds = (0..seeds).map(|n| format!("n{n}:50052")).collect();
                c.bootstrap_expect = Some(expect);
            })
        };
        assert_eq!(with(4, 2), Some("bootstrap-expect"));
        assert_eq!(with(3, 2), None);
        assert_eq!(with(0, 0), Some("bootstrap-expect"));
    }

    #[test]
    fn founders_are_counted_against_distinct_seeds() {
        let with = |seeds: &[&str], expect| {
            field_of(|c| {
                c.seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
                c.bootstrap_expect = Some(expect);
            })
        };
        let five = ["n1", "n2", "n3", "n4", "n5"];
        // Five nodes with two lists that overlap: each list alone is what counts.
        assert_eq!(with(&five, 3), None);
        assert_eq!(with(&five[..3], 3), None);
        assert_eq!(with(&five[2..], 2), None);
        assert_eq!(with(&five, 2), Some("bootstrap-expect"));
        assert_eq!(with(&["n1", "n2", "n3", "n4", "n5", "n6"], 3), Some("bootstrap-expect"));
        assert_eq!(with(&["n1", "n1:50052", "n2", "n3"], 2), None, "the same seed twice is one");
    }

    #[test]
    fn a_seed_without_a_port_gets_the_peer_port() {
        assert_eq!(with_peer_port("node1"), "node1:50052");
        assert_eq!(with_peer_port("node1:7946"), "node1:7946");
        assert_eq!(with_peer_port("[::1]"), "[::1]:50052");
    }
}
