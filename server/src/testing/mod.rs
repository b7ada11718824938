//! A cluster for tests: nodes in this process, on ports of their own, whose links can be cut and which can be killed
//! and restarted. No containers, nothing to install.
//!
//! ```
//! use std::time::Duration;
//! use raftlock_server::testing::Cluster;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), raftlock::Error> {
//! let mut cluster = Cluster::start(3).await;
//! let client = cluster.connect().await;
//! let guard = client.lock("payment:42").ttl(Duration::from_secs(10)).await?;
//!
//! // The leader crashes, and the lock is still held.
//! let leader = cluster.leader().await;
//! cluster.kill(leader).await;
//! guard.extend(Duration::from_secs(10)).await?; // answered by its successor
//! assert!(guard.is_held());
//!
//! guard.release().await?;
//! client.close().await;
//! cluster.end().await;
//! # Ok(())
//! # }
//! ```
//!
//! Nodes run on threads of their own, so a test may block its own. Their data is in a temporary folder that goes with
//! the cluster. Whatever cannot be had panics, as a failed assertion does.

#[doc(hidden)]
pub mod desk;
pub mod wires;

use std::sync::Arc;
use std::time::Duration;

use raftlock::Client;
use raftlock_proto::v1::StatusResponse;

use crate::config::Config;
use crate::node::{Node, Seams};
use wires::{FreePorts, Switchboard, WiredNet};

/// How long anything may take before a test gives up on it. Far above what it takes on a quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes that are one cluster; see [`testing`](self).
pub struct Cluster {
    /// Each node's configuration, kept over its restarts.
    pub configs: Vec<Config>,
    /// The nodes that are up.
    pub nodes: Vec<Option<Node>>,
    /// The links between them.
    pub switchboard: Arc<Switchboard>,
    seams: Box<dyn Fn(usize, Seams) -> Seams + Send + Sync>,
    /// Held, so that a node that is down comes back to its own.
    _ports: FreePorts,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `count` nodes that found one cluster, and waits until all of them serve.
    ///
    /// # Panics
    /// If a node does not start, or none leads within [`PATIENCE`].
    pub async fn start(count: usize) -> Cluster {
        Cluster::start_with(count, |_| {}).await
    }

    /// The same, with `change` made to each node's configuration.
    ///
    /// # Panics
    /// As [`start`](Cluster::start).
    pub async fn start_with(count: usize, change: impl Fn(&mut Config)) -> Cluster {
        Cluster::start_on(count, change, |_, seams| seams).await
    }

    /// The same, each node with seams of its own: its clock, its disk's space.
    ///
    /// # Panics
    /// As [`start`](Cluster::start).
    pub async fn start_on(
        count: usize,
        change: impl Fn(&mut Config),
        seams: impl Fn(usize, Seams) -> Seams + Send + Sync + 'static,
    ) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ports = FreePorts::take(count * 2);
        let seeds = &ports.addresses[..count];
        let configs = (0..count).map(|at| {
            let name = format!("n{}", at + 1);
            let mut config = Config::new(&name, dir.path().join(&name));
            config.peer_listen = seeds[at].clone();
            config.listen = ports.addresses[count + at].clone();
            config.seeds = seeds.to_vec();
            config.bootstrap_expect = Some(count);
            config.allow_volatile_data = true;
            config.ballast_bytes = 0;
            change(&mut config);
            config
        });
        let configs: Vec<Config> = configs.collect();
        let nodes = (0..count).map(|_| None).collect();
        let switchboard = Arc::new(Switchboard::default());
        let seams = Box::new(seams);
        let mut cluster = Cluster { nodes, configs, switchboard, seams, _ports: ports, _dir: dir };
        for at in 0..count {
            cluster.restart(at).await;
        }
        cluster.ready().await;
        cluster
    }

    /// Starts a node that is down.
    ///
    /// # Panics
    /// If it is up, or does not start.
    pub async fn restart(&mut self, at: usize) {
        assert!(self.nodes[at].is_none(), "the node is up");
        let config = self.configs[at].clone();
        let net = WiredNet { me: config.peer_listen.clone(), switchboard: self.switchboard.clone() };
        let seams = (self.seams)(at, Seams { net: Arc::new(net), ..Seams::default() });
        self.nodes[at] = Some(Node::start_apart(config, seams).await.expect("the node starts"));
    }

    /// Takes a node down as a crash does: nothing more is written, nobody is told.
    ///
    /// # Panics
    /// If it is down.
    pub async fn kill(&mut self, at: usize) {
        self.nodes[at].take().expect("the node is up").abandon().await;
    }

    /// Stops a node in order.
    ///
    /// # Panics
    /// If it is down.
    pub async fn stop(&mut self, at: usize) {
        self.nodes[at].take().expect("the node is up").shutdown().await;
    }

    /// Cuts the link between two nodes, both ways: what is sent gets lost, and nobody is told. Links to clients stay.
    pub fn cut(&self, one: usize, other: usize) {
        let (one, other) = (self.peer_address(one), self.peer_address(other));
        self.switchboard.cut(one, other);
        self.switchboard.cut(other, one);
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, at: usize) {
        (0..self.configs.len()).filter(|other| *other != at).for_each(|other| self.cut(at, other));
    }

    /// Makes all links whole again.
    pub fn heal(&self) {
        self.switchboard.heal();
    }

    /// Waits until every node that is up serves: it leads, or reaches the leader.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub async fn ready(&self) {
        for node in self.nodes.iter().flatten() {
            tokio::time::timeout(PATIENCE, node.ready()).await.expect("a leader is elected in time");
        }
    }

    /// Which node leads. Waits until one does and says so itself.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub async fn leader(&self) -> usize {
        let found = async {
            loop {
                for (at, node) in self.nodes.iter().enumerate() {
                    let Some(status) = node.as_ref().map(Node::status) else { continue };
                    let role = status.node.map(|node| node.role).unwrap_or_default();
                    if role == "leader" && status.ready {
                        return at;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("somebody leads in time")
    }

    /// A node that is up and does not lead.
    ///
    /// # Panics
    /// If there is none.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.nodes.len())
            .find(|at| *at != leader && self.nodes[*at].is_some())
            .expect("another node is up")
    }

    /// A node that is up.
    ///
    /// # Panics
    /// If it is down.
    pub fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("the node is up")
    }

    /// What a node that is up says of itself.
    ///
    /// # Panics
    /// If it is down.
    pub fn status(&self, at: usize) -> StatusResponse {
        self.node(at).status()
    }

    /// All peer addresses, which name the links.
    pub fn peers(&self) -> Vec<String> {
        self.configs.iter().map(|config| config.peer_listen.clone()).collect()
    }

    /// A client that knows all nodes.
    ///
    /// # Panics
    /// If none of them answers.
    pub async fn connect(&self) -> Client {
        Client::connect(self.endpoints()).await.expect("a node answers")
    }

    /// Where clients reach a node.
    pub fn address(&self, at: usize) -> String {
        self.configs[at].listen.clone()
    }

    /// All client addresses, as the SDK takes them.
    pub fn endpoints(&self) -> String {
        let endpoints: Vec<String> =
            self.configs.iter().map(|config| format!("http://{}", config.listen)).collect();
        endpoints.join(",")
    }

    /// Stops every node that is up, in order. A cluster that is dropped instead ends as in a crash.
    pub async fn end(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await;
        }
    }

    fn peer_address(&self, at: usize) -> &str {
        &self.configs[at].peer_listen
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let up: Vec<bool> = self.nodes.iter().map(Option::is_some).collect();
        f.debug_struct("Cluster").field("up", &up).finish_non_exhaustive()
    }
}
