//! Connections to other nodes' peer ports, one per purpose, made when first used and made anew after a failure.
//!
//! Purposes do not share a connection ([`Lane`]): a snapshot or a long append must not stand in front of a heartbeat.
//! Every reply passes the [`PeerGuard`] before anybody counts it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use raftlock_proto::peer::Envelope;
use raftlock_proto::peer::peer_client::PeerClient;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::net::Net;
use crate::peers::{Identity, PeerGuard, Refusal};

/// Largest peer message, in bytes. An append carries at most 2 MiB of entries, or one entry of 1 MiB and a little
/// more; the rest is room for what a newer version may add.
pub const PEER_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A client of another node's peer port.
pub type Peer = PeerClient<Channel>;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Appends, pipelined.
    Replication,
    /// Heartbeats and votes: small, urgent.
    Control,
    /// Snapshot chunks.
    Snapshot,
    /// Clients' calls and streams on their way to the leader.
    Relay,
    /// Whether a member is there. A connection of its own, so that an answer that comes late says something about
    /// the member and nothing about what else it is asked.
    Ping,
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
    channels: Mutex<BTreeMap<(Lane, String), Known>>,
}

/// What is known of the way to an address.
#[derive(Debug, Clone)]
enum Known {
    /// Connected.
    Open(Channel),
    /// It could not be reached; not dialled again before then.
    Down { until: Instant, source: Arc<tonic::transport::Error> },
}

/// How long an address that could not be reached is left alone. A heartbeat is due every few dozen milliseconds, and
/// dialling a dead peer for each of them would cost the leader a few percent of a core.
const REDIAL_AFTER: Duration = Duration::from_millis(200);

impl PeerLinks {
    /// No connection is made before it is used.
    pub fn new(net: Arc<dyn Net>, times: LinkTimes) -> Self {
        PeerLinks { net, times, channels: Mutex::default() }
    }

    /// Connects to `address`, or finds the connection made before.
    pub async fn peer(&self, lane: Lane, address: &str) -> Result<Peer, PeerCallError> {
        let key = (lane, address.to_owned());
        let known = self.lock().get(&key).cloned();
        let was_down = matches!(known, Some(Known::Down { .. }));
        match known {
            Some(Known::Open(channel)) => return Ok(sized(channel)),
            Some(Known::Down { until, source }) if Instant::now() < until => {
                return Err(PeerCallError::Dial { address: address.to_owned(), source });
            }
            _ => {}
        }
        match self.dial(address).await {
            Ok(channel) => {
                if was_down && lane == Lane::Control {
                    tracing::info!(address, "peer is reachable again");
                }
                self.lock().insert(key, Known::Open(channel.clone()));
                Ok(sized(channel))
            }
            Err(source) => {
                if !was_down && lane == Lane::Control {
                    tracing::info!(address, "peer cannot be reached");
                }
                let source = Arc::new(source);
                let down = Known::Down { until: Instant::now() + REDIAL_AFTER, source: source.clone() };
                self.lock().insert(key, down);
                Err(PeerCallError::Dial { address: address.to_owned(), source })
            }
        }
    }

    /// Forgets a connection that failed, so that the next call dials again.
    pub fn forget(&self, lane: Lane, address: &str) {
        let mut channels = self.lock();
        let key = (lane, address.to_owned());
        if matches!(channels.get(&key), Some(Known::Open(_))) {
            channels.remove(&key);
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
        let answer = tokio::time::timeout(limit, async {
            let peer = self.peer(lane, address).await?;
            let answer = call(peer).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.failed(lane, address, status))
        });
        match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                self.forget(lane, address);
                Err(PeerCallError::Timeout { address: address.to_owned(), limit })
            }
        }
    }

    /// A call that the peer answered with a status, or that lost its connection.
    pub fn failed(&self, lane: Lane, address: &str, status: tonic::Status) -> PeerCallError {
        self.forget(lane, address);
        PeerCallError::Status { address: address.to_owned(), status: Box::new(status) }
    }

    async fn dial(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let (net, to) = (self.net.clone(), address.to_owned());
        let connector = tower::service_fn(move |_: Uri| {
            let (net, to) = (net.clone(), to.clone());
            async move { net.dial(&to).await.map(TokioIo::new) }
        });
        endpoint
            .connect_timeout(self.times.connect)
            .http2_keep_alive_interval(self.times.ping)
            .keep_alive_timeout(self.times.ping)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Lane, String), Known>> {
        self.channels.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn sized(channel: Channel) -> Peer {
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
    pub fn check(
        &self,
        address: &str,
        target: u64,
        envelope: Option<&Envelope>,
    ) -> Result<(), PeerCallError> {
        let checked = self.guard.check_reply(target, envelope);
        checked.map_err(|refusal| PeerCallError::Refused { address: address.to_owned(), refusal })
    }
}
