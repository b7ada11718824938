//! The receiving end of the peer protocol. Every message passes the guard before anybody acts on it.
//!
//! Before this node belongs to a cluster only the discovery calls are answered; the first Raft message of the cluster
//! that it promised to join makes it a member. A follower's relay ends here, on the leader: its streams are streams
//! of this node's table like any other.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lock_table::planted;
use prost::Message;
use raftlock_proto::peer::peer_server::Peer;
use raftlock_proto::peer::{self, Envelope, RelayFrame, forward_request::Method};
use raftlock_proto::v1::SessionRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use super::status::{unread, with_reason};
use crate::edge::Local;
use crate::founding::Founding;
use crate::links::{ClusterLinks, STALE_STORAGE_METADATA};
use crate::members::controller::Refused;
use crate::outbox::{Dirty, Ending, Outbox};
use crate::peers::{ClusterId, Refusal};
use crate::raft::incoming::NotTaken;
use crate::raft::{RaftHandle, codec, snapshot};
use crate::relay;
use crate::store::Store;
use crate::streams::{StreamId, Streams};

/// Replies that may wait for one peer: it sends no more appends than that without an answer.
const REPLIES_QUEUED_MAX: usize = 64;

/// Frames in one message of the relay.
const FRAMES_A_MESSAGE: usize = 16;

/// What this node is once it belongs to a cluster.
pub struct Membership {
    /// Its Raft.
    pub raft: RaftHandle,
    /// Its identity and guard.
    pub links: ClusterLinks,
    /// The leader's side of streams and calls.
    pub local: Arc<Local>,
}

/// The peer port of a node.
#[derive(Clone)]
pub struct PeerService(Arc<Desk>);

struct Desk {
    founding: Arc<Founding>,
    store: Store,
    membership: OnceLock<Membership>,
}

impl PeerService {
    /// Answers discovery only, until [`PeerService::joined`].
    pub fn new(founding: Arc<Founding>, store: Store) -> Self {
        PeerService(Arc::new(Desk { founding, store, membership: OnceLock::new() }))
    }

    /// From here on this node is a member.
    pub fn joined(&self, membership: Membership) {
        let _ = self.0.membership.set(membership);
    }
}

impl Desk {
    /// The membership that `envelope` is meant for.
    async fn member(&self, envelope: Option<&Envelope>) -> Result<&Membership, Status> {
        let Some(member) = self.membership.get() else { return Err(self.not_a_member(envelope)) };
        let guard = &member.links.guard;
        let checked = guard.check_request(envelope).await;
        checked.map(|()| member).map_err(|refusal| refused(&refusal, guard.told(&refusal).as_ref()))
    }

    /// A Raft message before this node has a cluster: it may be the first one of the cluster that it promised to join.
    fn not_a_member(&self, envelope: Option<&Envelope>) -> Status {
        let me = self.founding.me().0;
        match envelope {
            // Its old self: the data directory was emptied, and this node never answers for the one it was.
            Some(envelope) if envelope.target != me && !planted::is("identity-unchecked") => {
                let refusal = Refusal::WrongNode { meant: envelope.target, me };
                return refused(&refusal, None);
            }
            Some(envelope) => {
                if let Some(cluster) = ClusterId::from_slice(&envelope.cluster_id) {
                    self.founding.contacted(cluster);
                }
            }
            None => {}
        }
        super::status::not_serving("not a member of a cluster yet")
    }
}

/// `told` goes to a sender whose data directory is stale, and makes it stop.
fn refused(refusal: &Refusal, told: Option<&peer::StaleStorage>) -> Status {
    let (code, reason) = match refusal {
        Refusal::NoEnvelope => (Code::InvalidArgument, "NO_ENVELOPE"),
        Refusal::WrongCluster { .. } => (Code::PermissionDenied, "WRONG_CLUSTER"),
        Refusal::WrongNode { .. } | Refusal::WrongSender { .. } => (Code::FailedPrecondition, "WRONG_NODE"),
        Refusal::RolledBack { .. } | Refusal::Cloned { .. } => (Code::FailedPrecondition, "STALE_STORAGE"),
        Refusal::AbsurdBoot { .. } => (Code::FailedPrecondition, "ABSURD"),
        Refusal::Store(error) => return super::status::not_serving(&error.to_string()),
    };
    let mut status = with_reason(code, reason, refusal.to_string(), None);
    if let Some(told) = told {
        let bytes = MetadataValue::from_bytes(&told.encode_to_vec());
        status.metadata_mut().insert_bin(STALE_STORAGE_METADATA, bytes);
    }
    status
}

impl Membership {
    fn envelope(&self, to: Option<&Envelope>) -> Option<Envelope> {
        self.links.identity().envelope(to.map_or(0, |envelope| envelope.sender))
    }

    fn append_reply(
        &self,
        envelope: Option<Envelope>,
        result: peer::append_reply::Result,
    ) -> peer::AppendReply {
        peer::AppendReply { envelope, result: Some(result), disk_low: self.raft.disk_is_low() }
    }
}

fn not_taken(why: &NotTaken) -> Status {
    match why {
        NotTaken::Malformed(codec::Malformed::Absurd(_)) | NotTaken::AbsurdTerm { .. } => {
            tracing::error!("a peer's message was refused: {why}");
            with_reason(Code::FailedPrecondition, "ABSURD", why.to_string(), None)
        }
        NotTaken::Malformed(_) => with_reason(Code::InvalidArgument, "MALFORMED", why.to_string(), None),
        NotTaken::Damaged { .. } => with_reason(Code::DataLoss, "DAMAGED", why.to_string(), None),
        NotTaken::DiskLow => with_reason(Code::FailedPrecondition, "DISK_LOW", why.to_string(), None),
        NotTaken::Stopped(_) | NotTaken::Store(_) => super::status::not_serving(&why.to_string()),
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStream = Replies<peer::AppendReply>;

    async fn append(
        &self,
        request: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let desk = self.0.clone();
        let mut incoming = request.into_inner();
        let (replies, outgoing) = mpsc::channel(REPLIES_QUEUED_MAX);
        tokio::spawn(async move {
            let (good, checked) = mpsc::channel(1);
            // An end without an answer would look as if all had been answered.
            let first = match incoming.next().await {
                Some(Ok(first)) => first,
                Some(Err(status)) => return drop(replies.send(Err(unread(status))).await),
                None => return,
            };
            let member = match desk.member(first.envelope.as_ref()).await {
                Ok(member) => member,
                Err(status) => return drop(replies.send(Err(status)).await),
            };
            let sender = first.envelope.clone();
            let envelope = member.envelope(sender.as_ref());
            let mut results = member.raft.take_appends(ReceiverStream::new(checked));
            let check = async {
                let mut next = Some(Ok(first));
                while let Some(request) = next {
                    let request = request.map_err(unread)?;
                    desk.member(request.envelope.as_ref()).await?;
                    if good.send(request).await.is_err() {
                        break;
                    }
                    next = incoming.next().await;
                }
                drop(good);
                // The peer has said all; what it said is still to be answered.
                std::future::pending::<Result<std::convert::Infallible, Status>>().await
            };
            let answer = async {
                while let Some(result) = results.next().await {
                    let reply = result
                        .map_err(|why| not_taken(&why))
                        .map(|result| member.append_reply(envelope.clone(), result));
                    if replies.send(reply).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                Err(status) = check => drop(replies.send(Err(status)).await),
                () = answer => {}
            }
            drop(replies);
            if let Some(envelope) = sender {
                member.raft.hung_up(envelope.sender, &member.links.links).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn append_once(
        &self,
        request: Request<peer::AppendRequest>,
    ) -> Result<Response<peer::AppendReply>, Status> {
        let request = request.into_inner();
        let member = self.0.member(request.envelope.as_ref()).await?;
        let envelope = member.envelope(request.envelope.as_ref());
        let result = member.raft.take_append(request).await.map_err(|why| not_taken(&why))?;
        Ok(Response::new(member.append_reply(envelope, result)))
    }

    async fn vote(&self, request: Request<peer::VoteRequest>) -> Result<Response<peer::VoteReply>, Status> {
        let request = request.into_inner();
        let member = self.0.member(request.envelope.as_ref()).await?;
        let envelope = member.envelope(request.envelope.as_ref());
        let reply = member.raft.take_vote(request).await.map_err(|why| not_taken(&why))?;
        Ok(Response::new(peer::VoteReply { envelope, ..reply }))
    }

    type SnapshotStream = Replies<peer::SnapshotReply>;

    async fn snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let desk = self.0.clone();
        let mut incoming = request.into_inner();
        let (replies, outgoing) = mpsc::channel(REPLIES_QUEUED_MAX);
        tokio::spawn(async move {
            if let Err(status) = receive_snapshot(&desk, &mut incoming, &replies).await {
                let _ = replies.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn transfer_leader(
        &self,
        request: Request<peer::TransferRequest>,
    ) -> Result<Response<peer::TransferReply>, Status> {
        let request = request.into_inner();
        let member = self.0.member(request.envelope.as_ref()).await?;
        let envelope = member.envelope(request.envelope.as_ref());
        let result = member.raft.take_transfer(request).await.map_err(|why| not_taken(&why))?;
        Ok(Response::new(peer::TransferReply { envelope, result: Some(result) }))
    }

    type RelayStream = Replies<peer::RelayReply>;

    async fn relay(
        &self,
        request: Request<Streaming<peer::RelayRequest>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.ok_or_else(|| Status::cancelled("no greeting"))?;
        let member = self.0.member(first.envelope.as_ref()).await?;
        let mut standing = member.raft.standing();
        let office = standing.borrow_and_update().office;
        if office.is_none() {
            return Err(super::status::not_leader(standing.borrow().leader.as_ref()));
        }
        let envelope = member.envelope(first.envelope.as_ref());
        let (replies, outgoing) = mpsc::channel(REPLIES_QUEUED_MAX);
        let desk = self.0.clone();
        tokio::spawn(async move {
            let Ok(member) = desk.member(first.envelope.as_ref()).await else { return };
            let greeting = peer::RelayReply { envelope: envelope.clone(), frames: Vec::new() };
            if replies.send(Ok(greeting)).await.is_err() {
                return;
            }
            let relayed = Relayed::new(member.local.clone());
            tokio::select! {
                () = relayed.take_in(&desk, &mut incoming) => {}
                () = relayed.send_back(envelope, &replies) => {}
                // The follower dials the next leader.
                _ = standing.wait_for(|now| now.office != office) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn forward(
        &self,
        request: Request<peer::ForwardRequest>,
    ) -> Result<Response<peer::ForwardReply>, Status> {
        let request = request.into_inner();
        let member = self.0.member(request.envelope.as_ref()).await?;
        let envelope = member.envelope(request.envelope.as_ref());
        let limit = (request.deadline_ms > 0).then(|| Duration::from_millis(request.deadline_ms));
        let method = Method::try_from(request.method).unwrap_or(Method::Unspecified);
        let executed = member.local.execute(method, &request.message, limit).await;
        let (message, error) = match executed {
            Ok(message) => (message.into(), Bytes::new()),
            Err(status) => (Bytes::new(), relay::status_to_bytes(&status)),
        };
        Ok(Response::new(peer::ForwardReply { envelope, message, error }))
    }

    async fn hello(&self, _: Request<peer::HelloRequest>) -> Result<Response<peer::HelloReply>, Status> {
        let members = self.0.membership.get().map(|member| {
            let positions = member.raft.positions().members.into_iter();
            positions.map(|at| peer::Member { id: at.id, node: Some(codec::member(&at.node)) }).collect()
        });
        Ok(Response::new(self.0.founding.hello(members.unwrap_or_default())))
    }

    async fn join(&self, request: Request<peer::JoinRequest>) -> Result<Response<peer::JoinReply>, Status> {
        let request = request.into_inner();
        let Some(us) = self.0.membership.get() else {
            return Err(super::status::not_serving("not a member of a cluster yet"));
        };
        if request.cluster_name != self.0.founding.cluster_name() {
            let ours = self.0.founding.cluster_name();
            let message =
                format!("this cluster is named {ours:?}, and you ask for {:?}", request.cluster_name);
            return Err(with_reason(Code::PermissionDenied, "WRONG_CLUSTER", message, None));
        }
        let Some(peer::Member { id, node: Some(node) }) = request.member else {
            return Err(super::status::invalid("member: must name the node that joins"));
        };
        let reply = match us.local.members.join(id, codec::member_back(&node)).await {
            Ok(()) => peer::JoinReply { cluster_id: us.links.identity().cluster.to_bytes(), leader: None },
            Err(Refused::NotLeader) => {
                let leader = us.raft.standing().borrow().leader.clone();
                let leader = leader.filter(|(id, _)| *id != us.raft.me());
                let leader = leader.map(|(id, node)| peer::Member { id, node: Some(codec::member(&node)) });
                peer::JoinReply { cluster_id: Bytes::new(), leader }
            }
            Err(refused) => return Err(super::status::membership(&refused)),
        };
        Ok(Response::new(reply))
    }

    async fn ping(&self, request: Request<peer::PingRequest>) -> Result<Response<peer::PingReply>, Status> {
        let request = request.into_inner();
        let member = self.0.member(request.envelope.as_ref()).await?;
        let sender = request.envelope.as_ref().map_or(0, |envelope| envelope.sender);
        // Said for good, so it takes the leader's word, from behind a ReadIndex; and one whose membership is on its way
        // to be committed is not gone.
        let listed =
            || member.raft.machine().lists(sender) || member.raft.roll().members.contains_key(&sender);
        let removed = !listed() && member.raft.read_point().await.is_ok() && !listed();
        let leader = member.raft.standing().borrow().leader.clone().filter(|_| !removed && !listed());
        Ok(Response::new(peer::PingReply {
            envelope: member.envelope(request.envelope.as_ref()),
            last_log_index: member.raft.positions().last_log,
            removed,
            leader: leader.map(|(id, node)| peer::Member { id, node: Some(codec::member(&node)) }),
        }))
    }

    async fn promise(
        &self,
        request: Request<peer::PromiseRequest>,
    ) -> Result<Response<peer::PromiseReply>, Status> {
        let reply = self.0.founding.promise(request.into_inner()).await;
        reply.map(Response::new).map_err(|error| super::status::not_serving(&error.to_string()))
    }

    async fn forswear(
        &self,
        request: Request<peer::ForswearRequest>,
    ) -> Result<Response<peer::ForswearReply>, Status> {
        let request = request.into_inner();
        let done = self.0.founding.forsworn_by(&request.cluster_id, request.proposer).await;
        done.map_err(|error| super::status::not_serving(&error.to_string()))?;
        Ok(Response::new(peer::ForswearReply {}))
    }
}

async fn receive_snapshot(
    desk: &Desk,
    incoming: &mut Streaming<peer::SnapshotRequest>,
    replies: &mpsc::Sender<Result<peer::SnapshotReply, Status>>,
) -> Result<(), Status> {
    let chunk = async |incoming: &mut Streaming<peer::SnapshotRequest>| {
        let timed = tokio::time::timeout(snapshot::CHUNK_IDLE_LIMIT, incoming.message()).await;
        timed.map_err(|_| Status::deadline_exceeded("no chunk came for too long"))?.map_err(unread)
    };
    let Some(first) = chunk(incoming).await? else { return Ok(()) };
    let member = desk.member(first.envelope.as_ref()).await?;
    let envelope = member.envelope(first.envelope.as_ref());
    let refused = |why: NotTaken| not_taken(&why);
    let mut reception = member.raft.receive_snapshot(&desk.store, &first).await.map_err(refused)?;
    let progress =
        |next_chunk| Ok(peer::SnapshotReply { envelope: envelope.clone(), next_chunk, ..Default::default() });
    let _ = replies.send(progress(reception.next_chunk())).await;
    while !reception.is_complete() {
        let Some(request) = chunk(incoming).await? else { return Ok(()) };
        desk.member(request.envelope.as_ref()).await?;
        reception.take(request).await.map_err(refused)?;
        let _ = replies.send(progress(reception.next_chunk())).await;
    }
    let next_chunk = reception.next_chunk();
    let vote = reception.install().await.map_err(refused)?;
    let done =
        peer::SnapshotReply { envelope: envelope.clone(), next_chunk, installed: true, vote: Some(vote) };
    let _ = replies.send(Ok(done)).await;
    Ok(())
}

/// The streams that one follower relays to this leader. They are closed when it is dropped.
struct Relayed {
    local: Arc<Local>,
    dirty: Arc<Dirty>,
    streams: Mutex<BTreeMap<u64, (StreamId, Arc<Outbox>)>>,
}

impl Relayed {
    fn new(local: Arc<Local>) -> Self {
        Relayed { local, dirty: Arc::default(), streams: Mutex::default() }
    }

    fn table_streams(&self) -> &Streams {
        &self.local.sessions.streams
    }

    async fn take_in(&self, desk: &Desk, incoming: &mut Streaming<peer::RelayRequest>) {
        while let Ok(Some(request)) = incoming.message().await {
            if desk.member(request.envelope.as_ref()).await.is_err() {
                return;
            }
            let messages = request.frames.into_iter().filter_map(|frame| self.frame(frame)).collect();
            self.local.sessions.take(messages).await;
        }
    }

    fn frame(&self, frame: RelayFrame) -> Option<(StreamId, SessionRequest)> {
        let mut streams = self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if frame.end {
            if let Some((stream, _)) = streams.remove(&frame.stream) {
                self.table_streams().close(stream);
            }
            return None;
        }
        if frame.parts_taken > 0 {
            if let Some((_, outbox)) = streams.get(&frame.stream) {
                outbox.allow_parts(frame.parts_taken);
            }
            return None;
        }
        let (stream, _) = streams.entry(frame.stream).or_insert_with(|| {
            let outbox = Outbox::relayed(self.dirty.clone(), frame.stream);
            (self.table_streams().open(outbox.clone()), outbox)
        });
        // The follower decoded it before it encoded it again.
        Some((*stream, SessionRequest::decode(frame.message).ok()?))
    }

    async fn send_back(
        &self,
        envelope: Option<Envelope>,
        replies: &mpsc::Sender<Result<peer::RelayReply, Status>>,
    ) {
        loop {
            let mut frames = Vec::new();
            for number in self.dirty.take().await {
                let outbox = {
                    let streams = self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    streams.get(&number).map(|(_, outbox)| outbox.clone())
                };
                while let Some(next) = outbox.as_ref().and_then(|outbox| outbox.try_next()) {
                    let over = next.is_err();
                    frames.push(match next {
                        Ok(message) => RelayFrame {
                            stream: number,
                            message: message.encode_to_vec().into(),
                            ..Default::default()
                        },
                        Err(Ending::SlowConsumer) => {
                            RelayFrame { stream: number, end: true, ..Default::default() }
                        }
                        Err(_) => break,
                    });
                    if frames.len() >= FRAMES_A_MESSAGE || over {
                        let frames = std::mem::take(&mut frames);
                        if replies
                            .send(Ok(peer::RelayReply { envelope: envelope.clone(), frames }))
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                    if over {
                        break;
                    }
                }
            }
            if !frames.is_empty()
                && replies.send(Ok(peer::RelayReply { envelope: envelope.clone(), frames })).await.is_err()
            {
                return;
            }
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        let streams = self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (stream, _) in streams.values() {
            self.local.sessions.streams.close(*stream);
        }
    }
}
