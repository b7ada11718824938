//! gRPC: connections, the session stream, the two reads. Nothing else but `error.rs` names tonic.
//!
//! It decides nothing and repeats nothing; time limits are the caller's.

use std::time::Duration;

use futures_util::TryFutureExt;
use hyper_util::rt::TokioIo;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_proto::{CLUSTER_ID_KEY, LEADER_KEY, SESSION_RESPONSE_BYTES_MAX, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::error::{CallFailure, Failure};
use crate::info::{FencingToken, Holder, LockInfo, LockPage, LockSummary, Mode, Waiter};
use crate::seams::Dial;
use crate::wire::{self, Event};

/// A silent connection is found dead after both.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages under way to one stream. A full queue means that the server does not read; then operations wait in the
/// outbox, where an outage drops them and a resume rebuilds them.
const OUTBOUND_MESSAGES: usize = 4;

/// A connection to one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    client: RaftLockClient<Channel>,
    closed: CancellationToken,
}

impl Conn {
    /// Resolves when the connection is gone.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.closed.clone().cancelled_owned()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

/// An accepted session stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// As the server names it.
    pub cluster: Option<String>,
    /// Where the leader is, if this server is not it.
    pub leader: Option<String>,
    pub outbound: mpsc::Sender<v1::SessionRequest>,
    pub inbound: Inbound,
}

/// Its incoming side.
#[derive(Debug)]
pub(crate) struct Inbound(tonic::Streaming<v1::SessionResponse>);

pub(crate) async fn connect(dial: Dial, address: &str) -> Result<Conn, Failure> {
    let closed = CancellationToken::new();
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(Failure::from_transport)?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let connector = {
        let (address, closed) = (address.to_owned(), closed.clone());
        tower::service_fn(move |_: http::Uri| {
            let guard = closed.clone().drop_guard();
            dial(address.clone()).map_ok(|stream| TokioIo::new(stream.noticed_by(guard)))
        })
    };
    let channel = endpoint.connect_with_connector(connector).await.map_err(Failure::from_transport)?;
    let client = RaftLockClient::new(channel).max_decoding_message_size(2 * SESSION_RESPONSE_BYTES_MAX);
    Ok(Conn { client, closed })
}

/// Opens a session stream. The answer's header comes before anything is sent on it, so a stranger sees no secret.
pub(crate) async fn open(conn: &Conn) -> Result<Stream, Failure> {
    let (outbound, requests) = mpsc::channel(OUTBOUND_MESSAGES);
    let answer =
        conn.client.clone().session(ReceiverStream::new(requests)).await.map_err(Failure::from_status)?;
    let (cluster, leader) = (cluster_of(answer.metadata()), text(answer.metadata(), LEADER_KEY));
    Ok(Stream { cluster, leader, outbound, inbound: Inbound(answer.into_inner()) })
}

impl Inbound {
    /// The events of the next message. The stream's end is a failure as well.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, Failure> {
        match self.0.message().await {
            Ok(Some(message)) => Ok(message.events.into_iter().filter_map(wire::event).collect()),
            Ok(None) => Err(Failure::new("the server ended the stream")),
            Err(status) => Err(Failure::from_status(status)),
        }
    }
}

fn cluster_of(metadata: &MetadataMap) -> Option<String> {
    text(metadata, CLUSTER_ID_KEY)
}

fn text(metadata: &MetadataMap, key: &str) -> Option<String> {
    metadata.get(key)?.to_str().ok().map(str::to_owned)
}

/// What a caller asks about locks.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Lock { name: String },
    Page { prefix: String, size: u32, from: String },
}

#[derive(Debug)]
pub(crate) enum Answer {
    Lock(LockInfo),
    Page(LockPage),
}

/// Asks the cluster; an answer from any other cluster is a failure.
pub(crate) async fn ask(conn: Conn, cluster: String, question: Question) -> Result<Answer, CallFailure> {
    let mut client = conn.client;
    let (metadata, answer) = match question {
        Question::Lock { name } => {
            let answer = client.get_lock(v1::GetLockRequest { resource_id: name }).await;
            let (metadata, message, _) = answer.map_err(CallFailure::from_status)?.into_parts();
            (metadata, Answer::Lock(lock_info(message)))
        }
        Question::Page { prefix, size, from } => {
            let request = v1::ListLocksRequest { prefix, page_size: size, page_token: from };
            let answer = client.list_locks(request).await;
            let (metadata, message, _) = answer.map_err(CallFailure::from_status)?.into_parts();
            (metadata, Answer::Page(lock_page(message)))
        }
    };
    match cluster_of(&metadata) {
        Some(answering) if answering == cluster => Ok(answer),
        _ => Err(CallFailure::Again(Failure::new("the answer came from another cluster"))),
    }
}

fn lock_info(m: v1::GetLockResponse) -> LockInfo {
    let holder = |m: v1::LockHolder| Holder {
        mode: mode(m.mode(), m.permits, m.capacity),
        owner: m.owner,
        token: FencingToken::from(m.fencing_token),
        remaining: millis(m.remaining_ms),
        metadata: m.metadata,
    };
    let waiter = |m: v1::LockWaiter| Waiter {
        mode: mode(m.mode(), 0, 0),
        owner: m.owner,
        place: m.place,
        waiting: millis(m.waiting_ms),
    };
    LockInfo {
        name: m.resource_id,
        holders: m.holders.into_iter().map(holder).collect(),
        waiters: m.waiters.into_iter().map(waiter).collect(),
        holder_count: m.holder_count,
        queue_length: m.queue_length,
    }
}

fn lock_page(m: v1::ListLocksResponse) -> LockPage {
    let summary = |m: v1::LockSummary| LockSummary {
        mode: mode(m.mode(), 0, 0),
        name: m.resource_id,
        owner: (!m.owner.is_empty()).then_some(m.owner),
        token: (m.fencing_token != 0).then(|| FencingToken::from(m.fencing_token)),
        remaining: millis(m.remaining_ms),
        holder_count: m.holder_count,
        queue_length: m.queue_length,
    };
    LockPage {
        locks: m.locks.into_iter().map(summary).collect(),
        next: (!m.next_page_token.is_empty()).then_some(m.next_page_token),
    }
}

fn mode(mode: v1::Mode, permits: u32, capacity: u32) -> Mode {
    match mode {
        v1::Mode::Exclusive => Mode::Exclusive,
        v1::Mode::Shared => Mode::Shared,
        v1::Mode::Permits => Mode::Permits { permits, capacity },
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
