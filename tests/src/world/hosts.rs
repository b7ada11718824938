//! Nodes in the simulated world: the product's own, on turmoil's network, a clock with a rate, and a disk that forgets.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock_server::clock::Clock;
use raftlock_server::config::Config;
use raftlock_server::net::{BoxFuture, Listen, Net, Wire};
use raftlock_server::node::{Node, NodeError, Seams, Witness};
use raftlock_server::store::{Valve, Writer, simdisk};

use super::lock;

pub(crate) const CLIENT_PORT: u16 = 50051;
pub(crate) const PEER_PORT: u16 = 50052;

/// The nodes that are up, by host.
pub(crate) type Nodes = Arc<Mutex<BTreeMap<&'static str, Arc<Node>>>>;

/// What holds the disk of each host up, in the present life of its node.
pub(crate) type Valves = Arc<Mutex<BTreeMap<&'static str, Valve>>>;

/// The nodes that ended by themselves, and why.
pub(crate) type Ended = Arc<Mutex<BTreeMap<&'static str, NodeError>>>;

/// What a node of the simulation starts with.
pub(crate) fn config(host: &str, disk: String, seeds: &[&str], expect: usize) -> Config {
    let mut config = Config::new(host, disk);
    config.listen = format!("0.0.0.0:{CLIENT_PORT}");
    config.peer_listen = format!("0.0.0.0:{PEER_PORT}");
    config.seeds = seeds.iter().map(|seed| format!("{seed}:{PEER_PORT}")).collect();
    config.bootstrap_expect = Some(expect);
    config.ballast_bytes = 0;
    config
}

/// What it reaches the world through.
pub(crate) fn seams(rate: f64, witness: Option<Arc<dyn Witness>>) -> Seams {
    Seams {
        net: Arc::new(SimNet),
        clock: Arc::new(SimClock { start: tokio::time::Instant::now(), rate }),
        vfs: Some(simdisk::VFS.to_owned()),
        writer: Writer::Inline,
        witness,
        ..Seams::default()
    }
}

/// Runs a node until the host is crashed. One that ends by itself is noted, and its process is gone.
pub(crate) async fn serve(
    host: &'static str,
    config: Config,
    seams: Seams,
    nodes: Nodes,
    ended: Ended,
) -> turmoil::Result {
    let why = match Node::start(config, seams).await {
        Ok(node) => {
            let node = Arc::new(node);
            lock(&nodes).insert(host, node.clone());
            let why = node.failed().await;
            lock(&nodes).remove(host);
            // Its process exits.
            if let Some(node) = Arc::into_inner(node) {
                node.abandon().await;
            }
            why
        }
        Err(why) => why,
    };
    lock(&ended).insert(host, why);
    std::future::pending().await
}

#[derive(Debug)]
struct SimNet;

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

/// A monotonic clock that begins with its node and goes at a rate of its own.
#[derive(Debug)]
struct SimClock {
    start: tokio::time::Instant,
    rate: f64,
}

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed().mul_f64(self.rate)
    }

    fn unix_seconds(&self) -> u64 {
        1_800_000_000
    }
}
