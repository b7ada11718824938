//! A follower's one stream to the leader, which carries all its clients' session streams and calls.
//!
//! [`run`] keeps the edge's route in step with who leads. The leader's end is in `service/peer`. A frame names the
//! client's stream by a number that is good for one relay only; when the relay breaks, nothing is sent again: the
//! clients resume.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use prost::Message;
use raftlock_proto::peer::{self, RelayFrame, forward_request::Method};
use raftlock_proto::v1::{SessionRequest, SessionResponse};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::edge::{Edge, Local, Route, Why};
use crate::links::{ClusterLinks, Lane, PeerCallError};
use crate::outbox::{Ending, Outbox};
use crate::raft::{Member, RaftHandle, Standing};
use crate::service::serve::STREAMS_PER_CONNECTION_MAX;
use crate::service::status;

/// Frames that may wait for the relay: each is at most 64 KiB. Beyond it clients' streams are read more slowly.
const FRAMES_QUEUED_MAX: usize = 1_024;

/// Frames in one message of the relay, so that it stays within what the peer port takes.
const FRAMES_A_MESSAGE: usize = 64;

/// How long to wait before the leader is dialled again.
const REDIAL: Duration = Duration::from_millis(50);

/// How long the leader may take to accept the relay.
const ACCEPT_LIMIT: Duration = Duration::from_secs(2);

/// The longest that a forwarded call without a deadline may take: the longest wait for a lock, and a little.
const FORWARD_LIMIT: Duration = Duration::from_secs(620);

/// Forwarded calls that may wait for a lock at once, each up to ten minutes: three quarters of the streams that the
/// leader takes on the connection, so that calls which are answered at once always find one.
const FORWARDED_WAITS_MAX: usize = STREAMS_PER_CONNECTION_MAX as usize / 4 * 3;

/// The way to one leader.
pub struct RelayLink {
    leader: (u64, Member),
    links: ClusterLinks,
    outgoing: mpsc::Sender<RelayFrame>,
    next: AtomicU64,
    outboxes: Mutex<BTreeMap<u64, Arc<Outbox>>>,
    /// Places for calls that wait, over all relays of this node.
    waits: Arc<Semaphore>,
}

impl RelayLink {
    /// Who is at the other end.
    pub fn leader(&self) -> &(u64, Member) {
        &self.leader
    }

    /// Takes a client's stream in; answers with its number on this relay.
    pub fn open(&self, outbox: Arc<Outbox>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, outbox);
        number
    }

    /// Carries a client's message. If the relay is gone the message is lost, and the client will be told to resume.
    pub async fn send(&self, number: u64, message: &SessionRequest) {
        let frame =
            RelayFrame { stream: number, message: message.encode_to_vec().into(), ..Default::default() };
        let _ = self.outgoing.send(frame).await;
    }

    /// Tells the leader that parts of resume answers have left for the client.
    pub async fn parts_taken(&self, number: u64, parts_taken: u32) {
        let frame = RelayFrame { stream: number, parts_taken, ..Default::default() };
        let _ = self.outgoing.send(frame).await;
    }

    /// The client's stream is over, or has moved to another relay.
    pub fn close(&self, number: u64) {
        self.lock().remove(&number);
        // If the queue is full the leader learns it with the end of the relay; until then it keeps a deaf stream.
        let _ = self.outgoing.try_send(RelayFrame { stream: number, end: true, ..Default::default() });
    }

    /// Has a unary call executed by the leader. `waits`: it may stay there as long as its lock is queued.
    pub async fn forward(
        &self,
        method: Method,
        message: Bytes,
        waits: bool,
        limit: Option<Duration>,
    ) -> Result<Bytes, Status> {
        let _place = match waits {
            true => Some(self.waits.try_acquire().map_err(|_| status::busy())?),
            false => None,
        };
        let (target, node) = &self.leader;
        let request = peer::ForwardRequest {
            envelope: self.links.identity().envelope(*target),
            method: method.into(),
            message,
            deadline_ms: limit.map_or(0, |limit| limit.as_millis().max(1) as u64),
        };
        let (links, address) = (&self.links.links, &node.peer_address);
        let call = async {
            let mut peer = links.peer(Lane::Forward, address).await?;
            let reply = peer.forward(request).await;
            reply.map_err(|status| links.failed(Lane::Forward, address, &peer, status))
        };
        // A caller that has no more time says nothing about the connection, which others go on using; that it is
        // dead, its pings find out.
        let limit = limit.unwrap_or(FORWARD_LIMIT);
        let timeout = |_| Err(PeerCallError::Timeout { address: address.clone(), limit });
        let reply = tokio::time::timeout(limit, call).await.unwrap_or_else(timeout);
        let reads = matches!(method, Method::GetLock | Method::ListLocks);
        let reply = match reply {
            Ok(reply) => reply.into_inner(),
            Err(error) => {
                self.links.heed(*target, &error).await;
                return Err(match error {
                    PeerCallError::Dial { .. } => status::no_leader(),
                    _ if reads => status::no_leader(),
                    _ => status::outcome_unknown(),
                });
            }
        };
        if self.links.check(address, *target, reply.envelope.as_ref()).await.is_err() {
            return Err(status::outcome_unknown());
        }
        if reply.error.is_empty() { Ok(reply.message) } else { Err(status_from_bytes(reply.error)) }
    }

    fn take_back(&self, frame: RelayFrame) {
        let Some(outbox) = self.lock().get(&frame.stream).cloned() else { return };
        if frame.end {
            outbox.end(Ending::SlowConsumer); // the only end that a leader has for one stream alone
            return;
        }
        match SessionResponse::decode(frame.message) {
            Ok(message) => {
                message.events.into_iter().filter_map(|event| event.event).for_each(|e| outbox.push(e))
            }
            Err(error) => tracing::warn!(%error, "the leader sent a session response that cannot be read"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Outbox>>> {
        self.outboxes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A status in the bytes of a `google.rpc.Status`, which it carries already when it has details.
pub fn status_to_bytes(status: &Status) -> Bytes {
    if !status.details().is_empty() {
        return Bytes::copy_from_slice(status.details());
    }
    let plain = tonic_types::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    };
    plain.encode_to_vec().into()
}

fn status_from_bytes(bytes: Bytes) -> Status {
    match tonic_types::Status::decode(bytes.clone()) {
        Ok(plain) => Status::with_details(Code::from(plain.code), plain.message, bytes),
        Err(_) => status::outcome_unknown(),
    }
}

/// Keeps the edge's route in step with who leads, until `stop`.
pub async fn run(
    edge: Arc<Edge>,
    local: Arc<Local>,
    raft: RaftHandle,
    links: ClusterLinks,
    stop: CancellationToken,
) {
    tokio::select! {
        () = follow(&edge, local, raft, links, stop) => {}
        () = edge.watch_over() => {}
    }
}

async fn follow(
    edge: &Arc<Edge>,
    local: Arc<Local>,
    raft: RaftHandle,
    links: ClusterLinks,
    stop: CancellationToken,
) {
    let me = links.identity().me;
    let waits = Arc::new(Semaphore::new(FORWARDED_WAITS_MAX));
    let mut standing = raft.standing();
    loop {
        let now = standing.borrow_and_update().clone();
        let relay_ended = async {
            match &now {
                Standing { office: Some(_), .. } => {
                    edge.set_route(Route::Here(local.clone()));
                    std::future::pending().await
                }
                Standing { leader: Some(leader), .. } if leader.0 != me => {
                    carry(edge, leader.clone(), links.clone(), waits.clone()).await;
                    edge.set_route(Route::Nowhere(Why::NoLeader));
                    tokio::time::sleep(REDIAL).await;
                }
                _ => {
                    edge.set_route(Route::Nowhere(Why::NoLeader));
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changed_way(&mut standing, &now) => if !changed { return },
            () = relay_ended => {}
        }
    }
}

/// Waits for a change that matters to the route. `false`: Raft is gone.
async fn changed_way(standing: &mut tokio::sync::watch::Receiver<Standing>, now: &Standing) -> bool {
    let way = |standing: &Standing| (standing.office, standing.leader.clone());
    let before = way(now);
    standing.wait_for(|next| way(next) != before).await.is_ok()
}

/// Connects to a leader and carries streams until the relay breaks.
async fn carry(edge: &Edge, leader: (u64, Member), links: ClusterLinks, waits: Arc<Semaphore>) {
    let (target, address) = (leader.0, leader.1.peer_address.clone());
    let (outgoing, mut queue) = mpsc::channel::<RelayFrame>(FRAMES_QUEUED_MAX);
    let envelope = links.identity().envelope(target);
    let greeting = peer::RelayRequest { envelope: envelope.clone(), frames: Vec::new() };
    let requests = async_batches(greeting, envelope, move |frames, cx| {
        queue.poll_recv_many(cx, frames, FRAMES_A_MESSAGE)
    });

    let Ok(mut peer) = links.links.peer(Lane::Relay, &address).await else { return };
    let connection = peer.clone();
    let accepted = tokio::time::timeout(ACCEPT_LIMIT, async {
        let mut replies = match peer.relay(requests).await {
            Ok(replies) => replies.into_inner(),
            Err(status) => {
                links.heed(target, &links.links.failed(Lane::Relay, &address, &connection, status)).await;
                return None;
            }
        };
        // The leader greets, so that a node which does not lead is found out before a client is sent there.
        let greeting = replies.message().await.ok()??;
        links.check(&address, target, greeting.envelope.as_ref()).await.ok()?;
        Some(replies)
    });
    let Ok(Some(mut replies)) = accepted.await else {
        links.links.forget(Lane::Relay, &address, &connection);
        return;
    };

    let link = Arc::new(RelayLink {
        leader,
        links: links.clone(),
        outgoing,
        next: AtomicU64::new(0),
        outboxes: Mutex::default(),
        waits,
    });
    edge.set_route(Route::There(link.clone()));
    while let Ok(Some(reply)) = replies.message().await {
        if links.check(&address, target, reply.envelope.as_ref()).await.is_err() {
            break;
        }
        reply.frames.into_iter().for_each(|frame| link.take_back(frame));
    }
}

/// Messages of as many frames as wait, the greeting first.
fn async_batches(
    greeting: peer::RelayRequest,
    envelope: Option<peer::Envelope>,
    mut poll: impl FnMut(&mut Vec<RelayFrame>, &mut std::task::Context<'_>) -> std::task::Poll<usize>
    + Send
    + 'static,
) -> impl futures_util::Stream<Item = peer::RelayRequest> + Send + 'static {
    let mut greeting = Some(greeting);
    stream::poll_fn(move |cx| {
        if let Some(greeting) = greeting.take() {
            return std::task::Poll::Ready(Some(greeting));
        }
        let mut frames = Vec::new();
        poll(&mut frames, cx)
            .map(|count| (count > 0).then(|| peer::RelayRequest { envelope: envelope.clone(), frames }))
    })
}
