//! One node, from the opening of its data directory to its orderly end.
//!
//! Start: the store is opened and both ports are bound before [`Node::start`] returns, so that what is wrong with
//! them is said at once. Finding the cluster and electing a leader go on behind; until then calls are answered
//! UNAVAILABLE.
//!
//! Stop, in order: the leader hands over; clients are told to go elsewhere and given a moment; ports close; Raft
//! stops; the store checkpoints and closes. Nothing here ends the process: a node that cannot go on says why through
//! [`Node::failed`].

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lock_table::Ttl;
use prost::Message;
use raftlock_proto::peer::forward_request::Method;
use raftlock_proto::peer::peer_server::PeerServer;
use raftlock_proto::v1::admin_server::AdminServer;
use raftlock_proto::v1::change_members_request::Change;
use raftlock_proto::v1::raft_lock_server::RaftLockServer;
use raftlock_proto::v1::{ChangeMembersRequest, StatusResponse};
use raftlock_proto::{DESCRIPTOR, SESSION_REQUEST_BYTES_MAX};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError, with_peer_port};
use crate::edge::{Edge, Local};
use crate::founding::{Founding, FoundingPlan};
use crate::links::{ClusterLinks, LinkTimes, PEER_MESSAGE_BYTES_MAX, PeerLinks};
use crate::members::MemberView;
use crate::members::controller::Controller;
use crate::members::roster::Roster;
use crate::net::{Listen, Net, TcpNet};
use crate::peers::{Identity, PeerGuard};
use crate::proposer::{FirstEntry, Proposer};
use crate::raft::{Machine, Member, RaftHandle, RaftSettings, compaction, random_u64};
use crate::relay;
use crate::service::admin::AdminService;
use crate::service::lock::{Calls, LockService};
use crate::service::peer::{Membership, PEER_BOOTS, PeerService, boots_from_bytes};
use crate::service::serve;
use crate::service::session::Sessions;
use crate::store::{Store, StoreError, StoreOptions, Writer};
use crate::streams::Streams;

/// How long clients get to move their streams elsewhere when the node stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// How long a dial to another node may take.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// How long a node that leaves waits for the cluster to let it go: a hand-over and a change of the membership.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(15);

/// How long one request to be removed may take, and when it is made again.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(100);

const STORAGE_ID: &str = "storage_id";
const BOOT: &str = "boot";
/// There once the node is no member any more.
const REMOVED: &str = "removed";

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
}

impl Default for Seams {
    fn default() -> Self {
        Seams { net: TcpNet::shared(), clock: SystemClock::shared(), vfs: None, writer: Writer::Thread }
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
    /// It asked to leave, and the cluster did not let it go in time.
    #[error("the cluster did not remove this node in time: remove it with `raftlock members remove`")]
    NotRemoved,
    /// The cluster removed this node, or it left.
    #[error(
        "this node is no member of its cluster any more: it was removed, or it left. To join anew, empty its data \
         directory and start it with --seeds naming a member"
    )]
    Removed,
}

/// A running node.
pub struct Node {
    addresses: Addresses,
    admin: AdminService,
    edge: Arc<Edge>,
    raft: Arc<OnceLock<RaftHandle>>,
    roster: Roster,
    proposer: Proposer,
    store: Store,
    failed: watch::Receiver<Option<NodeError>>,
    stop: CancellationToken,
    ports: CancellationToken,
    tasks: JoinSet<()>,
    election_max: Duration,
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
        let client_port = listen(&*seams.net, &config.listen).await?;
        let peer_port = listen(&*seams.net, &config.peer_listen).await?;
        let addresses = Addresses {
            client: advertised(config.advertise.as_deref(), &client_port.address(), &config.node_name),
            peer: advertised(config.peer_advertise.as_deref(), &peer_port.address(), &config.node_name),
        };
        if store.value(REMOVED).is_some() {
            return Err(NodeError::Removed);
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
            node = config.node_name, id, boot, listen = client_port.address(), peers = peer_port.address(),
            data = %config.data_dir.display(), "node starts"
        );

        let edge = Edge::new();
        let proposer = Proposer::new();
        let raft = Arc::new(OnceLock::new());
        let roster = Roster::new();
        let admin = AdminService {
            founding: founding.clone(),
            edge: edge.clone(),
            proposer: proposer.clone(),
            roster: roster.clone(),
            raft: raft.clone(),
        };
        let peers = PeerService::new(founding.clone(), store.clone());
        let (stop, ports) = (CancellationToken::new(), CancellationToken::new());
        let (fail, failed) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_public(edge.clone(), admin.clone(), config.reflection, client_port, ports.clone()));
        tasks.spawn(serve_peers(peers.clone(), peer_port, ports.clone()));
        let life = Life {
            identity: (id, boot),
            store: store.clone(),
            founding,
            edge: edge.clone(),
            proposer: proposer.clone(),
            roster: roster.clone(),
            raft: raft.clone(),
            peers,
            config: config.clone(),
            seams,
            stop: stop.clone(),
        };
        tasks.spawn(async move {
            if let Err(error) = life.run().await {
                fail.send_replace(Some(error));
            }
        });
        let election_max = config.election_max;
        Ok(Node {
            addresses,
            admin,
            edge,
            raft,
            roster,
            proposer,
            store,
            failed,
            stop,
            ports,
            tasks,
            election_max,
        })
    }

    /// Where clients reach it.
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
        let mut route = self.edge.watch_route();
        let _ = route.wait_for(|route| !matches!(route, crate::edge::Route::Nowhere(_))).await;
    }

    /// Resolves with the reason when this node cannot go on. Cancel safe.
    pub async fn failed(&self) -> NodeError {
        first_some(&mut self.failed.clone()).await
    }

    /// All members of the cluster as this node sees them, and changes of that. Empty before it belongs to one.
    pub fn members(&self) -> watch::Receiver<Vec<MemberView>> {
        self.roster.views()
    }

    /// Leaves the cluster for good, then stops: the others go on as if it had never been there. Its data directory
    /// refuses to start after that. The only member of a cluster has nobody to leave to: it only stops.
    ///
    /// # Errors
    /// The cluster did not let it go within [`LEAVE_LIMIT`]: it may still be a member, and has stopped like one.
    pub async fn leave(self) -> Result<(), NodeError> {
        let left = tokio::time::timeout(LEAVE_LIMIT, self.be_removed()).await;
        self.stop().await;
        left.unwrap_or(Err(NodeError::NotRemoved))
    }

    async fn be_removed(&self) -> Result<(), NodeError> {
        let me = self.admin.founding.me().0;
        let request = ChangeMembersRequest { change: Some(Change::Remove(me.to_string())) };
        loop {
            let alone = self.raft.get().is_none_or(|raft| raft.roll().members.len() <= 1);
            if alone || matches!(*self.failed.borrow(), Some(NodeError::Removed)) {
                return Ok(());
            }
            let asked =
                self.edge.execute(Method::ChangeMembers, request.encode_to_vec().into(), Some(ASK_LIMIT));
            match asked.await {
                Ok(_) => {
                    self.store.put_value(REMOVED, vec![1].into()).await?;
                    return Ok(());
                }
                // The leader changes, if it was this node; or there is none at the moment.
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    /// Stops in order: see the top of the file. A node that failed closes nothing that could write.
    pub async fn stop(mut self) {
        let broken = self.failed.borrow().as_ref().is_some_and(|error| !matches!(error, NodeError::Removed));
        if self.failed.borrow().is_none() {
            if let Some(raft) = self.raft.get() {
                self.proposer.pause();
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
        if !broken && let Err(error) = self.store.close().await {
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

/// What happens behind a started node.
struct Life {
    identity: (u64, u64),
    store: Store,
    founding: Arc<Founding>,
    edge: Arc<Edge>,
    proposer: Proposer,
    roster: Roster,
    raft: Arc<OnceLock<RaftHandle>>,
    peers: PeerService,
    config: Config,
    seams: Seams,
    stop: CancellationToken,
}

impl Life {
    /// Until the node is stopped; an error is why it cannot go on.
    async fn run(self) -> Result<(), NodeError> {
        let mut poisoned = self.store.poisoned();
        let disk_failed = async move { first_some(&mut poisoned).await };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            cause = disk_failed => {
                tracing::error!(%cause, "the disk failed: this node serves no more");
                self.edge.stop();
                Err(NodeError::Store(cause))
            }
            ended = self.live() => {
                self.edge.stop();
                ended
            }
        }
    }

    async fn live(&self) -> Result<(), NodeError> {
        let ping = self.config.election_min;
        let links =
            Arc::new(PeerLinks::new(self.seams.net.clone(), LinkTimes { connect: CONNECT_LIMIT, ping }));
        let founded = self.founding.find(&self.plan(), &links).await?;
        let (me, boot) = self.identity;
        let identity = Identity { cluster: founded.cluster, me, boot };
        let boots = self.store.value(PEER_BOOTS).map(|bytes| boots_from_bytes(&bytes)).unwrap_or_default();
        let links = ClusterLinks { links, guard: Arc::new(PeerGuard::new(identity, boots)) };

        let streams = Arc::new(Streams::default());
        let machine = Machine::new(self.store.clone(), streams.clone());
        let settings = RaftSettings {
            heartbeat: self.config.heartbeat,
            election_min: self.config.election_min,
            election_max: self.config.election_max,
        };
        let raft = RaftHandle::start(settings, links.clone(), self.store.clone(), machine).await;
        let raft = raft.map_err(|error| NodeError::Raft(error.to_string()))?;
        let _ = self.raft.set(raft.clone());
        let calls = Calls {
            proposer: self.proposer.clone(),
            raft: raft.clone(),
            default_ttl: Ttl::new(self.config.default_ttl.as_millis() as u64),
        };
        let sessions =
            Sessions { streams: streams.clone(), proposer: self.proposer.clone(), raft: raft.clone() };
        let members = Controller::new(
            raft.clone(),
            self.proposer.clone(),
            self.roster.clone(),
            self.seams.clock.clone(),
            self.config.remove_dead_after,
            self.config.election_max,
        );
        let local = Arc::new(Local { sessions, calls, members: members.clone() });
        self.peers.joined(Membership { raft: raft.clone(), links: links.clone(), local: local.clone() });
        self.edge.joined(founded.cluster);
        if let Some(members) = founded.initialise {
            let made = raft.initialize(members).await.map_err(|error| NodeError::Raft(error.to_string()))?;
            if made {
                tracing::info!(cluster = %founded.cluster, "new cluster");
            }
        }

        let first = FirstEntry { settings: self.config.settings(), token_floor: self.config.token_floor };
        let propose = self.proposer.clone().run(
            raft.clone(),
            streams,
            self.seams.clock.clone(),
            first,
            self.stop.clone(),
        );
        let route = relay::run(self.edge.clone(), local, raft.clone(), links.clone(), self.stop.clone());
        let compact = compaction::run(
            raft.clone(),
            self.store.clone(),
            self.config.snapshot_log_bytes,
            self.stop.clone(),
        );
        let mut fatal = raft.fatal();
        let stopped = async { NodeError::Raft(first_some(&mut fatal).await) };
        let report = report_leader(raft.clone());
        let manage = members.run(&self.stop);
        tokio::select! {
            removed = self.roster.run(&raft, &links, &self.seams.clock, &self.stop) => match removed {
                true => {
                    self.store.put_value(REMOVED, vec![1].into()).await?;
                    tracing::warn!("{}", NodeError::Removed);
                    Err(NodeError::Removed)
                }
                false => Ok(()),
            },
            error = stopped => {
                tracing::error!(%error, "this node serves no more");
                Err(error)
            }
            _ = futures_util::future::join5(propose, route, compact, report, manage) => Ok(()),
        }
    }

    fn plan(&self) -> FoundingPlan {
        let seeds: Vec<String> = self.config.seeds.iter().map(|seed| with_peer_port(seed)).collect();
        let alone = seeds.iter().all(|seed| *seed == self.founding.me().1.peer_address);
        let expect = self.config.bootstrap_expect.or(alone.then_some(1));
        FoundingPlan { seeds, expect }
    }
}

/// Waits for a value; for ever, if whoever could give one is gone.
async fn first_some<T: Clone>(watched: &mut watch::Receiver<Option<T>>) -> T {
    loop {
        let now = watched.borrow_and_update().clone();
        match now {
            Some(value) => return value,
            None if watched.changed().await.is_err() => std::future::pending().await,
            None => {}
        }
    }
}

/// One line whenever another node leads, with what this one is then.
async fn report_leader(raft: RaftHandle) {
    let mut standing = raft.standing();
    let mut known = None;
    loop {
        let now = standing.borrow_and_update().clone();
        let leader = now.leader.map(|(_, member)| member.name);
        if leader != known {
            match &leader {
                Some(leader) => tracing::info!(leader, role = now.role, term = now.term, "leader known"),
                None => tracing::info!(term = now.term, "no leader known"),
            }
            known = leader;
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}

async fn open_store(config: &Config, seams: &Seams) -> Result<Store, StoreError> {
    let options = StoreOptions {
        vfs: seams.vfs.clone(),
        writer: seams.writer,
        allow_volatile: config.allow_volatile_data,
        ballast_bytes: config.ballast_bytes,
        ..StoreOptions::new(PathBuf::from(&config.data_dir))
    };
    match options.writer {
        Writer::Inline => Store::open(options),
        // It reads the whole log, and a node may start inside an application's runtime.
        Writer::Thread => {
            tokio::task::spawn_blocking(|| Store::open(options)).await.expect("opening does not panic")
        }
    }
}

async fn next_boot(store: &Store) -> Result<(u64, u64), NodeError> {
    let number = |name: &'static str| match store.value(name) {
        None => Ok(None),
        Some(bytes) => match bytes[..].try_into() {
            Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
            Err(_) => Err(NodeError::Identity { what: name }),
        },
    };
    let id = match number(STORAGE_ID)? {
        Some(id) => id,
        None => {
            let id = random_u64();
            store.put_value(STORAGE_ID, id.to_be_bytes().to_vec().into()).await?;
            id
        }
    };
    let boot = number(BOOT)?.unwrap_or(0) + 1;
    store.put_value(BOOT, boot.to_be_bytes().to_vec().into()).await?;
    Ok((id, boot))
}

async fn listen(net: &dyn Net, address: &str) -> Result<Box<dyn Listen>, NodeError> {
    let listening = net.listen(address).await;
    listening.map_err(|source| NodeError::Listen { address: address.to_owned(), source: Arc::new(source) })
}

/// What others are told. A wildcard address is no address: then it is the node's name, with the real port.
fn advertised(given: Option<&str>, listening: &str, node_name: &str) -> String {
    if let Some(given) = given {
        return given.to_owned();
    }
    let (host, port) = listening.rsplit_once(':').unwrap_or((listening, "0"));
    match host {
        "0.0.0.0" | "[::]" => format!("{node_name}:{port}"),
        _ => listening.to_owned(),
    }
}

async fn serve_public(
    edge: Arc<Edge>,
    admin: AdminService,
    reflection: bool,
    port: Box<dyn Listen>,
    stop: CancellationToken,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let lock = RaftLockServer::new(LockService { edge: edge.clone() })
        .max_decoding_message_size(SESSION_REQUEST_BYTES_MAX);
    let admin = AdminServer::new(admin).max_decoding_message_size(SESSION_REQUEST_BYTES_MAX);
    let reflected = reflection.then(|| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptor is checked in with the code")
    });
    let router = serve::builder()
        .layer(serve::corrected())
        .add_service(health)
        .add_service(lock)
        .add_service(admin)
        .add_optional_service(reflected);
    let mut route = edge.watch_route();
    let report = async {
        loop {
            let ready = !matches!(*route.borrow_and_update(), crate::edge::Route::Nowhere(_));
            let status = if ready {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            reporter.set_service_status("raftlock.v1.RaftLock", status).await;
            if route.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        served = serve::run(router, port, stop) => log_end("public", served),
        () = report => {}
    }
}

async fn serve_peers(peers: PeerService, port: Box<dyn Listen>, stop: CancellationToken) {
    let service = PeerServer::new(peers)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let router = serve::builder().add_service(service);
    log_end("peer", serve::run(router, port, stop).await);
}

fn log_end(port: &str, served: Result<(), tonic::transport::Error>) {
    if let Err(error) = served {
        tracing::error!(port, %error, "a port stopped serving");
    }
}
