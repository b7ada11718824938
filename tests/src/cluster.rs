//! A cluster in one process, on real ports, whose links can be cut and whose nodes can be killed and restarted.
use std::sync::Arc;
use std::time::Duration;

use raftlock_proto::v1::StatusResponse;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_server::config::Config;
use raftlock_server::node::{Node, Seams};
use tonic::transport::Channel;

use crate::wires::{FreePorts, Switchboard, WiredNet};

/// How long anything may take before a test gives up on it. Far above what it takes on a quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Three nodes, or however many a test wants.
pub struct TestCluster {
    /// Each node's configuration, kept over its restarts.
    pub configs: Vec<Config>,
    /// The nodes that are up.
    pub nodes: Vec<Option<Node>>,
    /// The links between them.
    pub switchboard: Arc<Switchboard>,
    seams: Box<dyn Fn(usize, Seams) -> Seams + Send + Sync>,
    _dir: tempfile::TempDir,
}

impl TestCluster {
    /// Starts `count` nodes that found one cluster, and waits until all of them serve.
    pub async fn start(count: usize) -> TestCluster {
        TestCluster::start_with(count, |_| {}).await
    }

    /// The same, with `change` made to each node's configuration.
    pub async fn start_with(count: usize, change: impl Fn(&mut Config)) -> TestCluster {
        TestCluster::start_on(count, change, |_, seams| seams).await
    }

    /// The same, each node with seams of its own: its clock, its disk's space.
    pub async fn start_on(
        count: usize,
        change: impl Fn(&mut Config),
        seams: impl Fn(usize, Seams) -> Seams + Send + Sync + 'static,
    ) -> TestCluster {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ports = FreePorts::take(count * 2);
        let seeds: Vec<String> = ports.addresses[..count].to_vec();
        let configs = (0..count).map(|at| {
            let mut config = Config::new(format!("n{}", at + 1), dir.path().join(format!("n{}", at + 1)));
            config.peer_listen = seeds[at].clone();
            config.listen = ports.addresses[count + at].clone();
            config.seeds = seeds.clone();
            config.bootstrap_expect = Some(count);
            config.allow_volatile_data = true;
            config.ballast_bytes = 0;
            change(&mut config);
            config
        });
        let configs: Vec<Config> = configs.collect();
        drop(ports);
        let switchboard = Arc::new(Switchboard::default());
        let nodes = (0..count).map(|_| None).collect();
        let mut cluster = TestCluster { nodes, configs, switchboard, seams: Box::new(seams), _dir: dir };
        for at in 0..count {
            cluster.restart(at).await;
        }
        cluster.ready().await;
        cluster
    }

    /// Starts a node that is down.
    pub async fn restart(&mut self, at: usize) {
        assert!(self.nodes[at].is_none(), "the node is up");
        let config = self.configs[at].clone();
        let net = WiredNet { me: config.peer_listen.clone(), switchboard: self.switchboard.clone() };
        let seams = (self.seams)(at, Seams { net: Arc::new(net), ..Seams::default() });
        self.nodes[at] = Some(Node::start(config, seams).await.expect("the node starts"));
    }

    /// Takes a node down as a crash does: nothing more is written.
    pub async fn kill(&mut self, at: usize) {
        self.nodes[at].take().expect("the node is up").abandon().await;
    }

    /// Stops a node in order.
    pub async fn stop(&mut self, at: usize) {
        self.nodes[at].take().expect("the node is up").shutdown().await;
    }

    /// Waits until every node that is up serves.
    pub async fn ready(&self) {
        for node in self.nodes.iter().flatten() {
            tokio::time::timeout(PATIENCE, node.ready()).await.expect("a leader is elected in time");
        }
    }

    /// Which node leads. Waits until one does and says so itself.
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

    /// A node that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.nodes.len())
            .find(|at| *at != leader && self.nodes[*at].is_some())
            .expect("another node is up")
    }

    /// What a node that is up says of itself.
    pub fn status(&self, at: usize) -> StatusResponse {
        self.nodes[at].as_ref().expect("the node is up").status()
    }

    /// All peer addresses, which name the links.
    pub fn peers(&self) -> Vec<String> {
        self.configs.iter().map(|config| config.peer_listen.clone()).collect()
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

    /// A raw client of one node.
    pub async fn client(&self, at: usize) -> RaftLockClient<Channel> {
        RaftLockClient::connect(format!("http://{}", self.address(at))).await.expect("the node listens")
    }

    /// Stops every node that is up.
    pub async fn end(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await;
        }
    }
}

/// Asks again until the answer is there, or the test's patience is over.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never: {what}"))
}
