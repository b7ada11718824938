//! Connections to other nodes' peer ports, one per purpose, made when first used and made anew after a failure.
//!
//! Purposes do not share a connection ([`Lane`]): a snapshot or a long append must not stand in front of a heartbeat.
//! Every reply passes the [`PeerGuard`] before anybody counts it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use raftlock_proto::peer::peer_client::PeerClient;
use raftlock_proto::peer::{Envelope, StaleStorage};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::net::Net;
use crate::peers::{Identity, PeerGuard, Refusal};

/// The metadata in which a node that refuses a stale data directory proves it.
pub const STALE_STORAGE_METADATA: &str = "raftlock-stale-storage-bin";

/// Largest peer message, in bytes. An append carries at most 2 MiB of entries, or one entry of 1 MiB and a little
/// more; the rest is room for what a newer version may add.
pub const PEER_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A client of another node's peer port, over one connection.
#[derive(Debug, Clone)]
pub struct Peer {
    client: PeerClient<Channel>,
    /// Which connection, so that only this one is forgotten when it fails.
    connection: u64,
}

impl std::ops::Deref for Peer {
    type Target = PeerClient<Channel>;

    fn deref(&self) -> &PeerClient<Channel> {
        &self.client
    }
}

impl std::ops::DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut PeerClient<Channel> {
        &mut self.client
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Appends, pipelined.
    Replication,
    /// Heartbeats and votes: small, urgent.
    Control,
    /// Snapshot chunks.
    Snapshot,
    /// Clients' session streams on their way to the leader, on one stream.
    Relay,
    /// Whether a member is there. A connection of its own, so that an answer that comes late says something about
    /// the member and nothing about what else it is asked.
    Ping,
    /// Clients' unary calls on their way to the leader: each is a stream of its own, and thousands of those must not
    /// stand in front of the sessions.
    Forward,
}

/// Why a call to a peer gave no answer that counts.
#[derive(Debug, thiserror::Error)]
pub enum PeerCallError {
    /// No connection.
    #[error("{address} cannot be reached")]
    Dial {
        /// The peer address.
        address: String,
        /// What the dial said.
        #[source]
        source: Arc<tonic::transport::Error>,
    },
    /// Connected, and the call failed.
    #[error("{address} answered {:?}: {}", status.code(), status.message())]
    Status {
        /// The peer address.
        address: String,
        /// Its status. Boxed, for it is large and errors are rare.
        status: Box<tonic::Status>,
    },
    /// No answer in time. Whether the peer acted on the call is unknown.
    #[error("{address} did not answer within {limit:?}")]
    Timeout {
        /// The peer address.
        address: String,
        /// How long we waited.
        limit: Duration,
    },
    /// An answer that must not be counted.
    #[error("the answer of {address} was refused: {refusal}")]
    Refused {
        /// The peer address.
        address: String,
        /// Why.
        #[source]
        refusal: Refusal,
    },
}

impl PeerCallError {
    /// The peer understood, and will not do it however often it is asked: why.
    pub fn final_refusal(&self) -> Option<&str> {
        use tonic::Code;
        match self {
            PeerCallError::Status { status, .. }
                if matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument
                ) =>
            {
                Some(status.message())
            }
            _ => None,
        }
    }
}

/// Timeouts of peer connections.
#[derive(Debug, Clone, Copy)]
pub struct LinkTimes {
    /// How long a dial may take.
    pub connect: Duration,
    /// Idle time after which a connection is pinged, and how long the answer may take: at most the shortest election
    /// timeout, so that a link that loses packets one way is noticed before an election is due.
    pub ping: Duration,
}

/// The connections of this node to the others.
#[derive(Debug)]
pub struct PeerLinks {
    net: Arc<dyn Net>,
    times: LinkTimes,
    ways: Arc<Mutex<Ways>>,
}

#[derive(Debug, Default)]
struct Ways {
    /// Counts dials.
    last: u64,
    known: BTreeMap<(Lane, String), Known>,
}

/// What is known of the way to an address.
#[derive(Debug, Clone)]
enum Known {
    /// Being dialled, once for all who want it; the sender is gone when that is over.
    Dialled { dial: u64, over: watch::Receiver<()> },
    /// Connected.
    Open(Peer),
    /// It could not be reached; not dialled again before then.
    Down { until: Instant, source: Arc<tonic::transport::Error> },
}

/// How long an address that could not be reached is left alone. A heartbeat is due every few dozen milliseconds, and
/// dialling a dead peer for each of them would cost the leader a few percent of a core.
const REDIAL_AFTER: Duration = Duration::from_millis(200);

impl PeerLinks {
    /// No connection is made before it is used.
    pub fn new(net: Arc<dyn Net>, times: LinkTimes) -> Self {
        PeerLinks { net, times, ways: Arc::default() }
    }

    /// Connects to `address`, or finds the connection made before. Cancel safe: a dial under way goes on, for it is
    /// everybody's.
    pub async fn peer(&self, lane: Lane, address: &str) -> Result<Peer, PeerCallError> {
        loop {
            let (dial, mut over) = match self.way(lane, address) {
                Known::Open(peer) => return Ok(peer),
                Known::Down { source, .. } => {
                    return Err(PeerCallError::Dial { address: address.to_owned(), source });
                }
                Known::Dialled { dial, over } => (dial, over),
            };
            let _ = over.changed().await;
            self.unless_answered(lane, address, dial);
        }
    }

    /// The way to an address: open, down, or being dialled from now on.
    fn way(&self, lane: Lane, address: &str) -> Known {
        let mut ways = lock(&self.ways);
        let key = (lane, address.to_owned());
        let was_down = match ways.known.get(&key) {
            Some(known @ (Known::Open(_) | Known::Dialled { .. })) => return known.clone(),
            Some(known @ Known::Down { until, .. }) if Instant::now() < *until => return known.clone(),
            Some(Known::Down { .. }) => true,
            None => false,
        };
        ways.last += 1;
        let dial = ways.last;
        let (end, over) = watch::channel(());
        let known = Known::Dialled { dial, over };
        ways.known.insert(key, known.clone());
        drop(ways);
        // A task, which ends within the limit of a dial: a caller may give up, and the others still want it.
        tokio::spawn({
            let (ways, address) = (self.ways.clone(), address.to_owned());
            let dialled = self.dial(&address);
            async move {
                let outcome = match dialled.await {
                    Ok(channel) => Known::Open(Peer { client: sized(channel), connection: dial }),
                    Err(source) => {
                        Known::Down { until: Instant::now() + REDIAL_AFTER, source: Arc::new(source) }
                    }
                };
                if lane == Lane::Control {
                    match (&outcome, was_down) {
                        (Known::Open(_), true) => tracing::info!(address, "peer is reachable again"),
                        (Known::Down { .. }, false) => tracing::info!(address, "peer cannot be reached"),
                        _ => {}
                    }
                }
                lock(&ways).known.insert((lane, address), outcome);
                drop(end);
            }
        });
        known
    }

    /// Forgets a dial that is over without an outcome: its task was ended with its runtime.
    fn unless_answered(&self, lane: Lane, address: &str, over: u64) {
        let mut ways = lock(&self.ways);
        let key = (lane, address.to_owned());
        if matches!(ways.known.get(&key), Some(Known::Dialled { dial, .. }) if *dial == over) {
            ways.known.remove(&key);
        }
    }

    /// Forgets a connection that failed, so that the next call dials again. One that was made since stays.
    pub fn forget(&self, lane: Lane, address: &str, failed: &Peer) {
        let mut ways = lock(&self.ways);
        let key = (lane, address.to_owned());
        if matches!(ways.known.get(&key), Some(Known::Open(peer)) if peer.connection == failed.connection) {
            ways.known.remove(&key);
        }
    }

    /// One call and its answer within `limit`; a failed connection is forgotten.
    pub async fn call<R, F>(
        &self,
        lane: Lane,
        address: &str,
        limit: Duration,
        call: impl FnOnce(Peer) -> F,
    ) -> Result<R, PeerCallError>
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        let until = Instant::now() + limit;
        let timeout = || PeerCallError::Timeout { address: address.to_owned(), limit };
        let peer =
            tokio::time::timeout_at(until, self.peer(lane, address)).await.map_err(|_| timeout())??;
        match tokio::time::timeout_at(until, call(peer.clone())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failed(lane, address, &peer, status)),
            Err(_) => {
                self.forget(lane, address, &peer);
                Err(timeout())
            }
        }
    }

    /// A call that the peer answered with a status, or that lost its connection.
    pub fn failed(&self, lane: Lane, address: &str, peer: &Peer, status: tonic::Status) -> PeerCallError {
        self.forget(lane, address, peer);
        PeerCallError::Status { address: address.to_owned(), status: Box::new(status) }
    }

    /// Whether `address` refuses a connection at once: the host is there, and nobody listens. Nothing is sent.
    /// Takes as long as a dial does, without a limit; cancel safe.
    pub async fn is_refused(&self, address: &str) -> bool {
        let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        self.net.dial(address).await.is_err_and(|error| refused(&error))
    }

    fn dial(
        &self,
        address: &str,
    ) -> impl Future<Output = Result<Channel, tonic::transport::Error>> + Send + use<> {
        let (net, to, times) = (self.net.clone(), address.to_owned(), self.times);
        async move {
            let endpoint = Endpoint::from_shared(format!("http://{to}"))?;
            let connector = tower::service_fn(move |_: Uri| {
                let (net, to) = (net.clone(), to.clone());
                async move { net.dial(&to).await.map(TokioIo::new) }
            });
            endpoint
                .connect_timeout(times.connect)
                .http2_keep_alive_interval(times.ping)
                .keep_alive_timeout(times.ping)
                .keep_alive_while_idle(true)
                .connect_with_connector(connector)
                .await
        }
    }
}

fn lock(ways: &Mutex<Ways>) -> MutexGuard<'_, Ways> {
    ways.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn sized(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

/// The links of a node that belongs to a cluster: calls carry its envelope, replies pass its guard.
#[derive(Debug, Clone)]
pub struct ClusterLinks {
    /// The connections.
    pub links: Arc<PeerLinks>,
    /// Who may answer.
    pub guard: Arc<PeerGuard>,
}

impl ClusterLinks {
    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.guard.identity()
    }

    /// Refuses a reply that `target` did not send to us.
    pub async fn check(
        &self,
        address: &str,
        target: u64,
        envelope: Option<&Envelope>,
    ) -> Result<(), PeerCallError> {
        let checked = self.guard.check_reply(target, envelope).await;
        checked.map_err(|refusal| PeerCallError::Refused { address: address.to_owned(), refusal })
    }

    /// Looks whether `target` answered that our data directory is stale. Every failed call of a member comes by here:
    /// a node that is refused everywhere must not go on as if its peers were only away.
    pub async fn heed(&self, target: u64, error: &PeerCallError) {
        if let PeerCallError::Status { status, .. } = error
            && let Some(told) = status.metadata().get_bin(STALE_STORAGE_METADATA)
            && let Ok(bytes) = told.to_bytes()
            && let Ok(told) = StaleStorage::decode(bytes)
        {
            self.guard.heed(target, &told).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::net::{BoxFuture, Listen, TcpNet, Wire};

    /// TCP that counts dials, and takes its time.
    #[derive(Debug, Default)]
    struct SlowNet(AtomicUsize);

    impl Net for SlowNet {
        fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Wire>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                TcpNet.dial(address).await
            })
        }

        fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
            TcpNet.listen(address)
        }
    }

    fn links() -> (Arc<SlowNet>, PeerLinks) {
        let net = Arc::new(SlowNet::default());
        let times = LinkTimes { connect: Duration::from_secs(10), ping: Duration::from_secs(10) };
        (net.clone(), PeerLinks::new(net, times))
    }

    /// A port that takes connections and says nothing: enough for a dial.
    async fn port() -> (tokio::net::TcpListener, String) {
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = port.local_addr().expect("it is bound").to_string();
        (port, address)
    }

    #[tokio::test]
    async fn all_who_want_a_connection_share_one_dial() {
        let (net, links) = links();
        let (_port, address) = port().await;
        // One of them gives up before the dial is over; the others are not the worse for it.
        let hasty = tokio::time::timeout(Duration::from_millis(5), links.peer(Lane::Forward, &address));
        let others = (0..20).map(|_| links.peer(Lane::Forward, &address));
        let (hasty, others) = tokio::join!(hasty, futures_util::future::join_all(others));
        assert!(hasty.is_err());
        let connections: Vec<u64> =
            others.into_iter().map(|peer| peer.expect("connected").connection).collect();
        assert!(connections.iter().all(|connection| *connection == connections[0]), "{connections:?}");
        assert_eq!(net.0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn only_the_connection_that_failed_is_forgotten() {
        let (net, links) = links();
        let (_port, address) = port().await;
        let old = links.peer(Lane::Relay, &address).await.expect("connected");
        links.forget(Lane::Relay, &address, &old);
        let new = links.peer(Lane::Relay, &address).await.expect("connected");
        assert_ne!(new.connection, old.connection);
        // Another caller learns only now that the old one failed.
        links.forget(Lane::Relay, &address, &old);
        let still = links.peer(Lane::Relay, &address).await.expect("connected");
        assert_eq!(still.connection, new.connection);
        assert_eq!(net.0.load(Ordering::Relaxed), 2);
        links.forget(Lane::Relay, &address, &new);
        links.peer(Lane::Relay, &address).await.expect("connected");
        assert_eq!(net.0.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn an_address_that_is_down_is_left_alone_for_a_moment() {
        let (net, links) = links();
        let (port, address) = port().await;
        drop(port);
        for _ in 0..3 {
            let refused = links.peer(Lane::Control, &address).await;
            assert!(matches!(refused, Err(PeerCallError::Dial { .. })), "{refused:?}");
        }
        assert_eq!(net.0.load(Ordering::Relaxed), 1);
    }
}
