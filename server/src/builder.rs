//! How an application describes the node that is to run inside it.
//!
//! It fills in a [`Config`] and speaks of its fields in its own words; checks and defaults are the config's.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Config, ConfigError, port_of};
use crate::host::host_name;
use crate::node::{Node, NodeError, Seams};

/// Describes a node inside an application. Begin with [`Node::builder`], end with [`start`](NodeBuilder::start).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use raftlock_server::Node;
///
/// let node = Node::builder()
///     .bind("10.0.0.2:7946")
///     .seeds(["10.0.0.1:7946"])
///     .data_dir("/var/lib/billing/raftlock")
///     .start()
///     .await?;
/// let client = node.client();
/// let guard = client.lock("payment:42").await?;
/// tokio::select! {
///     () = charge(guard.token()) => guard.release().await?,
///     why = guard.lost() => return Err(why.into()),
/// }
/// node.shutdown().await; // else the last releases may be lost with the process
/// # Ok(())
/// # }
/// # async fn charge(_: raftlock::FencingToken) {}
/// ```
///
/// # Which seeds
///
/// The very first node's only seed is itself: it is a cluster of one. Every other node's seeds are members, one or
/// more; it joins their cluster, and waits for it if it is not there yet, so the nodes may be started in any order. A
/// node that has been a member finds its cluster again whatever its seeds say.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct NodeBuilder {
    config: Config,
    bind: Option<String>,
    name: Option<String>,
    data_dir: Option<PathBuf>,
    seams: Seams,
}

impl Node {
    /// For a node inside an application.
    pub fn builder() -> NodeBuilder {
        let mut config = Config::new("", "");
        config.public_port = false;
        NodeBuilder { config, bind: None, name: None, data_dir: None, seams: Seams::default() }
    }
}

impl NodeBuilder {
    /// The address for the other nodes, `host:port`; required. There is no authentication, and whoever reaches it owns
    /// the cluster: keep it private. Port 0 takes a free one.
    pub fn bind(mut self, address: impl Into<String>) -> NodeBuilder {
        self.bind = Some(address.into());
        self
    }

    /// How the other nodes reach this one. Default: as it binds; the host's name if that is 0.0.0.0.
    pub fn bind_advertise(mut self, address: impl Into<String>) -> NodeBuilder {
        self.config.peer_advertise = Some(address.into());
        self
    }

    /// Peer addresses of members, this node's own if it is the first; see [`NodeBuilder`].
    pub fn seeds<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> NodeBuilder {
        self.config.seeds = seeds.into_iter().map(Into::into).collect();
        self
    }

    /// Where the node keeps its log and votes; required. A local disk, used by nobody else. It is the node's identity:
    /// never copy it, never restore an old copy.
    pub fn data_dir(mut self, folder: impl Into<PathBuf>) -> NodeBuilder {
        self.data_dir = Some(folder.into());
        self
    }

    /// The node's name for people, and the owner of its client's locks. Default: the host's name and the port.
    pub fn name(mut self, name: impl Into<String>) -> NodeBuilder {
        self.name = Some(name.into());
        self
    }

    /// Nodes with another cluster name are never talked to. Default: `raftlock`.
    pub fn cluster_name(mut self, name: impl Into<String>) -> NodeBuilder {
        self.config.cluster_name = name.into();
        self
    }

    /// Opens a port for clients of other processes too. Default: none.
    pub fn listen(mut self, address: impl Into<String>) -> NodeBuilder {
        self.config.listen = address.into();
        self.config.public_port = true;
        self
    }

    /// How clients of other processes reach this node, if not as it listens.
    pub fn listen_advertise(mut self, address: impl Into<String>) -> NodeBuilder {
        self.config.advertise = Some(address.into());
        self
    }

    /// Found a cluster together with the seeds, once so many new nodes are there: another way than a first node alone.
    pub fn bootstrap_expect(mut self, nodes: usize) -> NodeBuilder {
        self.config.bootstrap_expect = Some(nodes);
        self
    }

    /// How many members vote in a cluster that this node founds: odd; 3 survives one failure, 5 two. Default: 3.
    pub fn voters(mut self, voters: u32) -> NodeBuilder {
        self.config.voters = voters;
        self
    }

    /// The lease of locks that name none, 1 s to 24 h. Default: 30 s.
    pub fn default_ttl(mut self, ttl: Duration) -> NodeBuilder {
        self.config.default_ttl = ttl;
        self
    }

    /// A lower bound for the first fencing token of a cluster that this node founds.
    pub fn token_floor(mut self, token: u64) -> NodeBuilder {
        self.config.token_floor = token;
        self
    }

    /// How often the leader is heard of: above the slowest flush of the disks. Default: 60 ms.
    pub fn heartbeat(mut self, every: Duration) -> NodeBuilder {
        self.config.heartbeat = every;
        self
    }

    /// Bounds between which each election timeout is drawn; the shorter at least five heartbeats. Default: 300 ms and
    /// 600 ms.
    pub fn election_timeout(mut self, min: Duration, max: Duration) -> NodeBuilder {
        (self.config.election_min, self.config.election_max) = (min, max);
        self
    }

    /// Log bytes after which a snapshot is due. Default: 64 MiB.
    pub fn snapshot_log_bytes(mut self, bytes: u64) -> NodeBuilder {
        self.config.snapshot_log_bytes = bytes;
        self
    }

    /// The size of a file that may be deleted when the disk is full; 0 for none. Default: 64 MiB.
    pub fn ballast_bytes(mut self, bytes: u64) -> NodeBuilder {
        self.config.ballast_bytes = bytes;
        self
    }

    /// Accept a data folder that forgets at a reboot, such as tmpfs. For tests and demos.
    pub fn allow_volatile_data(mut self, allow: bool) -> NodeBuilder {
        self.config.allow_volatile_data = allow;
        self
    }

    /// Other surroundings than the operating system's.
    #[doc(hidden)]
    pub fn seams(mut self, seams: Seams) -> NodeBuilder {
        self.seams = seams;
        self
    }

    /// Starts the node on threads of its own. It is there when this returns; [`Node::ready`] says when it has found its
    /// cluster and a leader, and a client waits for that by itself.
    ///
    /// # Errors
    /// [`NodeError::Config`] names the method whose value is wrong; else what is wrong with the disk or a port.
    ///
    /// # Cancel safety
    /// Dropping the future ends what was started.
    pub async fn start(self) -> Result<Node, NodeError> {
        let config = self.config()?;
        Node::start_apart(config, self.seams).await
    }

    fn config(&self) -> Result<Config, ConfigError> {
        let missing = |field| ConfigError { field, problem: "is required".to_owned() };
        let mut config = self.config.clone();
        config.peer_listen = self.bind.clone().ok_or_else(|| missing("bind"))?;
        config.data_dir = self.data_dir.clone().ok_or_else(|| missing("data_dir"))?;
        // Several nodes may run on one host, and the port tells them apart.
        let port = config.peer_listen.rsplit_once(':').map_or("", |(_, port)| port);
        config.node_name = self.name.clone().unwrap_or_else(|| format!("{}-{port}", host_name()));
        config.peer_advertise = match config.peer_advertise.take() {
            Some(given) => Some(given),
            None => behind_wildcard("bind", &config.peer_listen)?,
        };
        if config.public_port && config.advertise.is_none() {
            config.advertise = behind_wildcard("listen", &config.listen)?;
        }
        config.validate().map_err(|error| ConfigError { field: method(error.field), ..error })?;
        Ok(config)
    }
}

/// What to tell others when the address bound is no address: the host's name. Nothing, if it is one.
fn behind_wildcard(field: &'static str, address: &str) -> Result<Option<String>, ConfigError> {
    let wildcard = matches!(address.rsplit_once(':'), Some(("0.0.0.0" | "[::]", _)));
    match port_of(address).filter(|_| wildcard) {
        None => Ok(None),
        Some(0) => {
            let problem = "a wildcard with port 0 names no address that others could be told".to_owned();
            Err(ConfigError { field, problem })
        }
        Some(port) => Ok(Some(format!("{}:{port}", host_name()))),
    }
}

/// The method that sets a field of the config.
fn method(field: &'static str) -> &'static str {
    match field {
        "node-name" => "name",
        "cluster-name" => "cluster_name",
        "peer-listen" => "bind",
        "peer-advertise" => "bind_advertise",
        "advertise" => "listen_advertise",
        "bootstrap-expect" => "bootstrap_expect",
        "default-ttl" => "default_ttl",
        "token-floor" => "token_floor",
        "snapshot-log-bytes" => "snapshot_log_bytes",
        "election-min" | "election-max" => "election_timeout",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> NodeBuilder {
        Node::builder().bind("127.0.0.1:7946").data_dir("data")
    }

    fn field(builder: NodeBuilder) -> &'static str {
        builder.config().expect_err("it is wrong").field
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = good().config().expect("it is whole");
        assert_eq!(config.node_name, format!("{}-7946", host_name()));
        assert_eq!((config.peer_listen.as_str(), config.peer_advertise), ("127.0.0.1:7946", None));
        assert!(!config.public_port, "there is no port for clients unless one is asked for");
        let config = good().listen("127.0.0.1:0").config().expect("it is whole");
        assert!(config.public_port);
    }

    #[test]
    fn two_nodes_on_one_host_differ_in_name() {
        let name = |bind| good().bind(bind).config().expect("it is whole").node_name;
        assert_ne!(name("127.0.0.1:7946"), name("127.0.0.1:7947"));
    }

    #[test]
    fn an_error_names_the_method() {
        assert_eq!(field(Node::builder().data_dir("data")), "bind");
        assert_eq!(field(Node::builder().bind("127.0.0.1:7946")), "data_dir");
        assert_eq!(field(good().bind("nowhere")), "bind");
        assert_eq!(field(good().bind_advertise("host:0")), "bind_advertise");
        assert_eq!(field(good().bind("0.0.0.0:0")), "bind");
        assert_eq!(field(good().listen("nowhere")), "listen");
        assert_eq!(field(good().listen("0.0.0.0:0")), "listen");
        assert_eq!(field(good().listen("127.0.0.1:1").listen_advertise("x")), "listen_advertise");
        assert_eq!(field(good().seeds(["x:y"])), "seeds");
        assert_eq!(field(good().name("a\nb")), "name");
        assert_eq!(field(good().cluster_name("")), "cluster_name");
        assert_eq!(field(good().bootstrap_expect(0)), "bootstrap_expect");
        assert_eq!(field(good().voters(2)), "voters");
        assert_eq!(field(good().default_ttl(Duration::ZERO)), "default_ttl");
        assert_eq!(field(good().token_floor(u64::MAX)), "token_floor");
        assert_eq!(field(good().snapshot_log_bytes(0)), "snapshot_log_bytes");
        assert_eq!(field(good().heartbeat(Duration::ZERO)), "heartbeat");
        let second = Duration::from_secs(1);
        assert_eq!(field(good().election_timeout(second, second)), "election_timeout");
    }

    #[test]
    fn behind_a_wildcard_others_are_told_the_host() {
        let config = good().bind("0.0.0.0:7946").listen("0.0.0.0:50051").config().expect("it is whole");
        assert_eq!(config.peer_advertise, Some(format!("{}:7946", host_name())));
        assert_eq!(config.advertise, Some(format!("{}:50051", host_name())));
    }
}
