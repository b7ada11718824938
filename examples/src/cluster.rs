//! A private cluster inside this process, for those who have none at hand. Real nodes, real ports, a disk of its own.
//!
//! It is gone when the process ends. A real one is `raftlock serve` on three machines.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use raftlock::Client;
use raftlock_server::config::Config;
use raftlock_server::node::{Node, NodeError, Seams};

/// How long an election may take before something is wrong.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How often other peer ports are tried when somebody took one in between.
const PORT_ATTEMPTS: usize = 5;

/// The cluster that the user names, or else a private one of three nodes with its data in `dir`.
///
/// # Errors
///
/// If the cluster does not answer, or cannot be started.
pub async fn given_or_private(given: Option<&str>, dir: &Path) -> Result<(String, Option<LocalCluster>)> {
    if let Some(endpoints) = given {
        // One clear error now is better than one from each worker later.
        Client::connect(endpoints).await?.close().await;
        return Ok((endpoints.to_owned(), None));
    }
    let cluster = LocalCluster::start(3, dir).await?;
    let endpoints = cluster.endpoints();
    println!("a private cluster of three nodes is up: {endpoints}");
    Ok((endpoints, Some(cluster)))
}

/// Some nodes that are one cluster.
pub struct LocalCluster {
    nodes: Vec<Node>,
}

impl LocalCluster {
    /// Starts `count` nodes with their data in `dir`, and waits until all of them serve.
    ///
    /// # Errors
    ///
    /// What a node cannot start for: its disk or its ports.
    pub async fn start(count: usize, dir: &Path) -> Result<LocalCluster> {
        for attempt in 1..=PORT_ATTEMPTS {
            let configs = configs(count, &dir.join(format!("cluster-{attempt}")))?;
            let mut cluster = LocalCluster { nodes: Vec::new() };
            match cluster.start_nodes(configs).await {
                Ok(()) => {
                    cluster.ready().await?;
                    return Ok(cluster);
                }
                Err(NodeError::Listen { .. }) => cluster.stop().await,
                Err(error) => return Err(error.into()),
            }
        }
        bail!("no free ports found in {PORT_ATTEMPTS} attempts")
    }

    /// As the SDK takes them.
    pub fn endpoints(&self) -> String {
        let addresses: Vec<&str> = self.nodes.iter().map(Node::client_address).collect();
        addresses.join(",")
    }

    /// Stops all nodes in order.
    pub async fn stop(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
    }

    async fn start_nodes(&mut self, configs: Vec<Config>) -> Result<(), NodeError> {
        for config in configs {
            self.nodes.push(Node::start(config, Seams::default()).await?);
        }
        Ok(())
    }

    async fn ready(&self) -> Result<()> {
        for node in &self.nodes {
            let ready = async {
                tokio::select! {
                    () = node.ready() => Ok(()),
                    error = node.failed() => Err(error),
                }
            };
            tokio::time::timeout(READY_LIMIT, ready).await.context("no leader was elected")??;
        }
        Ok(())
    }
}

/// Nodes find each other by their peer ports, so these are chosen before the start. A node takes its port for clients
/// itself.
fn configs(count: usize, dir: &Path) -> Result<Vec<Config>> {
    // All are held until the last is chosen, so that they differ.
    let held: Vec<std::net::TcpListener> =
        (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let peers: Vec<String> =
        held.iter().map(|port| Ok(port.local_addr()?.to_string())).collect::<std::io::Result<_>>()?;
    let node = |(at, peer): (usize, &String)| {
        let name = format!("n{}", at + 1);
        let mut config = Config::new(&name, dir.join(&name));
        // A port that another cluster took in between must not make one cluster of two.
        config.cluster_name = format!("private-{}-{}", std::process::id(), peers[0]);
        config.listen = "127.0.0.1:0".to_owned();
        config.peer_listen = peer.clone();
        config.seeds = peers.clone();
        config.bootstrap_expect = Some(count);
        config.allow_volatile_data = true;
        config.ballast_bytes = 0;
        config
    };
    Ok(peers.iter().enumerate().map(node).collect())
}
