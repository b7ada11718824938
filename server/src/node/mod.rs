//! One node, from the opening of its data directory to its orderly end.
//!
//! Start: the store is opened and both ports are bound before [`Node::start`] returns, so that what is wrong with
//! them is said at once. Finding the cluster and electing a leader go on behind; until then calls are answered
//! UNAVAILABLE.
//!
//! Stop, in order: the client of this process is closed, and its locks are free; the leader hands over; other clients
//! are told to go elsewhere and given a moment; ports close; Raft stops; the store checkpoints and closes. Nothing here
//! ends the process: a node that cannot go on says why through [`Node::failed`].

mod apart;
mod disk;
mod inside;
mod leave;
mod life;
mod ports;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use raftlock::Client;
use raftlock_proto::v1::StatusResponse;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::edge::Edge;
use crate::founding::Founding;
use crate::members::roster::Roster;
use crate::members::{MemberEvents, MemberView};
use crate::net::{Net, TcpNet};
use crate::pace::PaceReport;
use crate::proposer::Proposer;
pub use crate::raft::{Applied, Witness};
use crate::raft::{Member, RaftHandle};
use crate::room::DiskRoom;
use crate::service::admin::AdminService;
use crate::service::peer::PeerService;
use crate::store::{DiskSpace, FreeSpace, Store, StoreError, Writer};
use apart::Apart;
use disk::{REMOVED, STALE, next_boot, open_store};
use inside::Inside;
use life::Life;
use ports::{advertised, listen, serve_peers, serve_public};

/// How long clients get to move their streams elsewhere when the node stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// What a node reaches the world through. Production has one of each; a simulation brings its own.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Connections.
    pub net: Arc<dyn Net>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// A registered SQLite VFS instead of the operating system's files.
    pub vfs: Option<String>,
    /// Who writes to the store.
    pub writer: Writer,
    /// Who says how much space the disk has.
    pub space: Arc<dyn FreeSpace>,
    /// Who looks on while entries are applied.
    pub witness: Option<Arc<dyn Witness>>,
}

impl Default for Seams {
    fn default() -> Self {
        Seams {
            net: TcpNet::shared(),
            clock: SystemClock::shared(),
            vfs: None,
            writer: Writer::Thread,
            space: Arc::new(DiskSpace),
            witness: None,
        }
    }
}

/// Why a node did not start, or could not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration breaks a bound.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The disk, or what is on it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// What the data directory says of this node cannot be read.
    #[error("the data directory's {what} cannot be read: replace this node")]
    Identity {
        /// Which value.
        what: &'static str,
    },
    /// Raft stopped: an invariant broke, or the disk failed under it.
    #[error("Raft stopped: {0}")]
    Raft(String),
    /// The cluster has seen a later state of this data directory, or another node that runs on a copy of it. A start
    /// more would not help: it must be emptied.
    #[error("{0}")]
    StaleStorage(String),
    /// This node's lock table is not the leader's.
    #[error(
        "after log entry {index} this node's lock table is not that of the leader {leader} ({ours:#018x} here, \
         {theirs:#018x} there). One of the two is wrong, and two cannot tell which. If the other followers go on, they \
         agree with the leader: replace this node. If they stop with this message too, the leader is the odd one: \
         replace it, then start these again"
    )]
    Diverged {
        /// After which log entry.
        index: u64,
        /// The leader, by name if it is known.
        leader: String,
        /// The running hash here.
        ours: u64,
        /// The running hash on the leader.
        theirs: u64,
    },
    /// It asked to leave, and the cluster did not let it go in time.
    #[error("the cluster did not remove this node in time: remove it with `raftlock members remove`")]
    NotRemoved,
    /// The cluster removed this node, or it left.
    #[error(
        "this node is no member of its cluster any more: it was removed, or it left. To join anew, empty its data \
         directory and start it with --seeds naming a member"
    )]
    Removed,
    /// The operating system refuses a thread or what else a node inside an application needs.
    #[error("the operating system refuses what a node needs: {0}")]
    System(#[source] Arc<std::io::Error>),
    /// A part of the node panicked, which is a defect. Only where panics unwind; else the process ends with them.
    #[error("a part of the node panicked: {0}")]
    Panicked(String),
}

impl NodeError {
    /// Whether a node that stopped for it may still write, to close its store in order: nothing is wrong with the disk
    /// or with what is on it, it only counts no more.
    fn leaves_the_disk_sound(&self) -> bool {
        matches!(self, NodeError::Removed | NodeError::StaleStorage(_))
    }
}

/// A running node.
///
/// Inside an application it begins with [`Node::builder`], and runs on threads of its own. It never ends the process:
/// when it cannot go on, [`Node::failed`] says why, and the guards of its [client](Node::client) are lost. End it with
/// [`Node::shutdown`]; dropped, it ends as in a crash, and its locks are free when their TTL is over.
pub struct Node {
    addresses: Addresses,
    admin: AdminService,
    edge: Arc<Edge>,
    raft: Arc<OnceLock<RaftHandle>>,
    proposer: Proposer,
    store: Store,
    failed: watch::Receiver<Option<NodeError>>,
    stop: CancellationToken,
    ports: CancellationToken,
    tasks: JoinSet<()>,
    election_max: Duration,
    inside: Arc<Inside>,
    members: watch::Receiver<Vec<MemberView>>,
    /// Last, because it ends what runs on it.
    apart: Option<Apart>,
}

#[derive(Clone, Debug)]
struct Addresses {
    client: String,
    peer: String,
}

impl Node {
    /// Opens the data directory, binds both ports, and goes looking for its cluster.
    ///
    /// # Errors
    /// What is wrong with the configuration, the disk or the ports. Nothing was changed but what the disk holds.
    pub async fn start(config: Config, seams: Seams) -> Result<Node, NodeError> {
        config.validate()?;
        let store = open_store(&config, &seams).await?;
        let client_port = match config.public_port {
            true => Some(listen(&*seams.net, &config.listen).await?),
            false => None,
        };
        let peer_port = listen(&*seams.net, &config.peer_listen).await?;
        let advertise = config.advertise.as_deref();
        let client_address =
            client_port.as_ref().map(|port| advertised(advertise, &port.address(), &config.node_name));
        let addresses = Addresses {
            client: client_address.unwrap_or_default(),
            peer: advertised(config.peer_advertise.as_deref(), &peer_port.address(), &config.node_name),
        };
        if store.value(REMOVED).is_some() {
            return Err(NodeError::Removed);
        }
        if let Some(why) = store.value(STALE) {
            return Err(NodeError::StaleStorage(String::from_utf8_lossy(&why).into_owned()));
        }
        let (id, boot) = next_boot(&store).await?;
        let member = Member {
            name: config.node_name.clone(),
            peer_address: addresses.peer.clone(),
            client_address: addresses.client.clone(),
        };
        let founding = Founding::open(config.cluster_name.clone(), (id, member), store.clone());
        let founding = founding.map_err(|_| NodeError::Identity { what: "promise" })?;
        tracing::info!(
            node = config.node_name, id, boot = boot.count, listen = addresses.client, peers = peer_port.address(),
            data = %config.data_dir.display(), "node starts"
        );

        let edge = Edge::new();
        let (room, pace) = (Arc::<DiskRoom>::default(), Arc::<PaceReport>::default());
        let proposer = Proposer::new(room.clone());
        let raft = Arc::new(OnceLock::new());
        let roster = Roster::new();
        let admin = AdminService {
            founding: founding.clone(),
            edge: edge.clone(),
            proposer: proposer.clone(),
            roster: roster.clone(),
            room: room.clone(),
            pace: pace.clone(),
            raft: raft.clone(),
        };
        let peers = PeerService::new(founding.clone(), store.clone());
        let (stop, ports) = (CancellationToken::new(), CancellationToken::new());
        let (fail, failed) = watch::channel(None);
        let members = roster.views();
        let (inside, inside_port) = Inside::new(&config.node_name, &addresses.peer, config.default_ttl);
        let mut tasks = JoinSet::new();
        for port in [Some(inside_port), client_port].into_iter().flatten() {
            tasks.spawn(serve_public(edge.clone(), admin.clone(), config.reflection, port, ports.clone()));
        }
        tasks.spawn(serve_peers(peers.clone(), peer_port, ports.clone()));
        let life = Life {
            identity: (id, boot),
            store: store.clone(),
            founding,
            edge: edge.clone(),
            proposer: proposer.clone(),
            roster,
            room,
            pace,
            raft: raft.clone(),
            peers,
            config: config.clone(),
            seams,
            stop: stop.clone(),
        };
        let at_the_end = (edge.clone(), inside.clone());
        tasks.spawn(async move {
            let lived = AssertUnwindSafe(life.run()).catch_unwind().await;
            let lived = lived.unwrap_or_else(|panic| Err(NodeError::Panicked(panic_text(&*panic))));
            if let Err(error) = lived {
                let (edge, inside) = at_the_end;
                edge.stop();
                // The reason comes first, so that whoever finds the client closed finds it.
                fail.send_replace(Some(error));
                inside.close().await;
            }
        });
        Ok(Node {
            addresses,
            admin,
            edge,
            raft,
            proposer,
            store,
            failed,
            stop,
            ports,
            tasks,
            election_max: config.election_max,
            inside,
            members,
            apart: None,
        })
    }

    /// The SDK's client, connected to this node without a socket: the node takes its calls to the leader over the peer
    /// port. It is the same one at every call, so closing it closes it for all; [`Node::shutdown`] does so anyway.
    /// The owner that others see is the node's name.
    ///
    /// A guard of it is lost when the node cannot renew it in time, as with any client, and at once when the node
    /// fails.
    ///
    /// # Panics
    /// If the operating system refuses a thread, on a node of [`Node::start`]. One of [`Node::builder`] has its client
    /// from the start.
    pub fn client(&self) -> Client {
        self.inside.client().expect("the operating system starts a thread")
    }

    /// The members of the cluster as this node sees them, by id. Empty until it belongs to one.
    pub fn members(&self) -> Vec<MemberView> {
        self.members.borrow().clone()
    }

    /// What changes among the members, beginning with one `Joined` for each that is there. Ends with the node.
    pub fn member_events(&self) -> MemberEvents {
        MemberEvents::new(self.members.clone())
    }

    pub(crate) fn watch_members(&self) -> watch::Receiver<Vec<MemberView>> {
        self.members.clone()
    }

    pub(crate) fn watch_failed(&self) -> watch::Receiver<Option<NodeError>> {
        self.failed.clone()
    }

    /// Where clients reach it; empty if it has no public port.
    pub fn client_address(&self) -> &str {
        &self.addresses.client
    }

    /// Where other nodes reach it.
    pub fn peer_address(&self) -> &str {
        &self.addresses.peer
    }

    /// Its own view of itself and the cluster. No I/O.
    pub fn status(&self) -> StatusResponse {
        self.admin.status_now()
    }

    /// Waits until calls get somewhere: a leader is known and reachable. Cancel safe.
    pub async fn ready(&self) {
        self.until_ready().await;
    }

    /// The same, to be awaited without the node. Never resolves if the node ends first.
    pub(crate) fn until_ready(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut route = self.edge.watch_route();
        async move {
            let ready = route.wait_for(|route| !matches!(route, crate::edge::Route::Nowhere(_)));
            if ready.await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Resolves with the reason when this node cannot go on. Cancel safe.
    pub async fn failed(&self) -> NodeError {
        first_some(&mut self.failed.clone()).await
    }

    /// Stops in order: see the top of the file. The locks of this node's [client](Node::client) pass on at once; its
    /// guards are lost first. A node that failed closes nothing that could write.
    ///
    /// Takes at most the 5 s of [`Client::close`], one election timeout, 3 s for other clients to leave, and 1 s for
    /// the rest, on a disk that answers.
    ///
    /// # Cancel safety
    /// Dropping the future ends the node as a crash would.
    pub async fn shutdown(mut self) {
        let disk_is_sound = self.failed.borrow().as_ref().is_none_or(NodeError::leaves_the_disk_sound);
        if self.failed.borrow().is_none() {
            self.inside.close().await;
            if let Some(raft) = self.raft.get() {
                // What is on its way is settled first. Without a quorum it is not, and the office ends anyway.
                let _ = tokio::time::timeout(self.election_max, self.proposer.pause()).await;
                raft.hand_over(None, self.election_max).await;
            }
            self.edge.drain();
            self.streams_gone().await;
        }
        self.edge.stop();
        self.stop.cancel();
        self.ports.cancel();
        if let Some(raft) = self.raft.get() {
            raft.shutdown().await;
        }
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
        self.tasks.abort_all();
        if disk_is_sound && let Err(error) = self.store.close().await {
            tracing::error!(%error, "the store did not close");
        }
        tracing::info!("node stopped");
    }

    /// Ends as a crash would: nothing more is written, nobody is told. For tests.
    pub async fn abandon(mut self) {
        self.store.abandon();
        // A crash closes its connections; here their tasks would go on.
        self.edge.stop();
        self.stop.cancel();
        self.ports.cancel();
        self.tasks.shutdown().await;
        if let Some(raft) = self.raft.get() {
            raft.shutdown().await;
        }
    }

    async fn streams_gone(&self) {
        let gone = async {
            while self.edge.stream_count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(DRAIN_LIMIT, gone).await;
    }
}

/// Waits for a value; for ever, if whoever could give one is gone.
pub(crate) async fn first_some<T: Clone>(watched: &mut watch::Receiver<Option<T>>) -> T {
    loop {
        let now = watched.borrow_and_update().clone();
        match now {
            Some(value) => return value,
            None if watched.changed().await.is_err() => std::future::pending().await,
            None => {}
        }
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned())
}
