//! The sending end of the peer protocol, as openraft wants it: one [`PeerNetwork`] per target and purpose.
//!
//! A dead peer must cost nothing. openraft sleeps its replication back-off *inside the stream of requests*, so a
//! transport that dials first and fails at once is called again without a pause and burns a core. Here the first
//! request is pulled before the dial, and a failed dial is `Unreachable`, which weighs enough to start the back-off.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use raftlock_proto::peer;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::codec::{self, Malformed};
use super::incoming::{NotTaken, believable};
use super::marks::Marks;
use super::snapshot::{SnapshotRef, Transfers};
use super::types::{LogId, Snapshot, Vote};
use super::{Member, Types};
use crate::links::{ClusterLinks, Lane, Peer, PeerCallError};
use crate::room::DiskRoom;
use crate::store::Store;

/// Makes the network of each target.
#[derive(Debug, Clone)]
pub struct NetworkFactory {
    pub links: ClusterLinks,
    pub store: Store,
    pub transfers: Transfers,
    /// How long an append may go unanswered before its stream is given up. Longer than openraft's own limit for
    /// heartbeats: a follower with a slow disk answers late, and sending it the same entries again does not help.
    pub append_limit: Duration,
    /// Where the targets' words on their disks are kept.
    pub room: Arc<DiskRoom>,
    /// What the lock table here came to, for the targets to compare.
    pub marks: Marks,
}

impl NetworkFactory {
    fn network(&self, lane: Lane, target: u64, node: &Member) -> PeerNetwork {
        PeerNetwork { factory: self.clone(), lane, target, address: node.peer_address.clone() }
    }
}

impl RaftNetworkFactory<Types> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &Member) -> PeerNetwork {
        self.network(Lane::Replication, target, node)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> PeerNetwork {
        self.network(Lane::Control, target, node)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Member) -> PeerNetwork {
        self.network(Lane::Snapshot, target, node)
    }
}

/// The way to one peer for one purpose.
#[derive(Debug)]
pub struct PeerNetwork {
    factory: NetworkFactory,
    lane: Lane,
    target: u64,
    address: String,
}

impl PeerNetwork {
    fn links(&self) -> &ClusterLinks {
        &self.factory.links
    }

    fn envelope(&self) -> Option<peer::Envelope> {
        self.links().identity().envelope(self.target)
    }

    async fn check(&self, envelope: Option<&peer::Envelope>) -> Result<(), RPCError<Types>> {
        let checked = self.links().check(&self.address, self.target, envelope).await;
        checked.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    /// A lost link weighs enough to begin openraft's back-off at once; a late answer does not.
    async fn rpc_error(&self, error: PeerCallError, action: RPCTypes) -> RPCError<Types> {
        self.links().heed(self.target, &error).await;
        match error {
            PeerCallError::Timeout { limit, .. } => RPCError::Timeout(Timeout {
                action,
                id: self.links().identity().me,
                target: self.target,
                timeout: limit,
            }),
            other => RPCError::Unreachable(Unreachable::new(&other)),
        }
    }

    async fn ask_for_vote(
        &self,
        rpc: VoteRequest<Types>,
        limit: Duration,
        pre_vote: bool,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = peer::VoteRequest {
            envelope: self.envelope(),
            vote: Some(codec::vote(&rpc.vote)),
            last_log: rpc.last_log_id.as_ref().map(codec::log_id),
            leadership_transfer: rpc.leadership_transfer,
            pre_vote,
        };
        let links = &self.links().links;
        let call = links
            .call(Lane::Control, &self.address, limit, |mut peer| async move { peer.vote(request).await });
        let reply = match call.await {
            Ok(reply) => reply,
            Err(error) => return Err(self.rpc_error(error, RPCTypes::Vote).await),
        };
        self.check(reply.envelope.as_ref()).await?;
        vote_response(reply, &rpc.vote).map_err(not_taken)
    }
}

impl RaftNetworkV2<Types> for PeerNetwork {
    type SnapshotData = SnapshotRef;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let (prev, last) =
            (rpc.prev_log_id, rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id));
        let ours = rpc.vote;
        let request = append_request(self.envelope(), rpc, self.factory.marks.newest());
        let links = &self.links().links;
        let call = links.call(self.lane, &self.address, option.hard_ttl(), |mut peer| async move {
            peer.append_once(request).await
        });
        let reply = match call.await {
            Ok(reply) => reply,
            Err(error) => return Err(self.rpc_error(error, RPCTypes::AppendEntries).await),
        };
        self.check(reply.envelope.as_ref()).await?;
        self.factory.room.peer_said(self.target, reply.disk_low);
        Ok(match append_result(reply, &ours).map_err(not_taken)? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) if prev.is_some() => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::Conflict(_)) => return Err(not_taken(Malformed::Missing("conflict"))),
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // Before the dial: openraft's back-off is slept in here.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            if self.lane == Lane::Control {
                // A heartbeat is one request; a stream of its own would cost it a round trip more.
                let (prev, last) =
                    (first.prev_log_id, first.entries.last().map(|e| e.log_id).or(first.prev_log_id));
                let reply = self.append_entries(first, option).await?;
                let result = Ok(reply.into_stream_result(prev, last));
                return Ok(Box::pin(stream::iter([result])) as BoxStream<'s, _>);
            }

            let ours = first.vote;
            let unanswered = Unanswered::default();
            let envelope = self.envelope();
            let sent = unanswered.clone();
            let marks = self.factory.marks.clone();
            let session = CancellationToken::new();
            let over = session.clone().cancelled_owned();
            let session = session.drop_guard();
            let requests = in_company(stream::iter([first]).chain(input)).map(move |rpc| {
                sent.add();
                append_request(envelope.clone(), rpc, marks.newest())
            });
            let requests = requests.take_until(over);

            let action = RPCTypes::AppendEntries;
            let links = self.links().links.clone();
            let mut peer = match links.peer(self.lane, &self.address).await {
                Ok(peer) => peer,
                Err(error) => return Err(self.rpc_error(error, action).await),
            };
            let limit = self.factory.append_limit;
            let opened = tokio::time::timeout(limit, peer.append(requests)).await;
            let replies = match opened {
                Ok(Ok(replies)) => replies.into_inner(),
                Ok(Err(status)) => {
                    let error = links.failed(self.lane, &self.address, &peer, status);
                    return Err(self.rpc_error(error, action).await);
                }
                Err(_) => {
                    links.forget(self.lane, &self.address, &peer);
                    let error = PeerCallError::Timeout { address: self.address.clone(), limit };
                    return Err(self.rpc_error(error, action).await);
                }
            };
            let replies = Replies {
                network: self,
                peer,
                ours,
                replies,
                unanswered,
                limit,
                over: false,
                _session: session,
            };
            Ok(Box::pin(stream::unfold(replies, Replies::next)) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(rpc, option.hard_ttl(), false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(rpc, option.hard_ttl(), true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let _under_way = self.factory.transfers.begin();
        let transfer = super::snapshot::send(
            self.factory.links.clone(),
            self.factory.store.clone(),
            self.target,
            self.address.clone(),
            vote,
            snapshot,
        );
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = transfer => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(self.rpc_error(error, RPCTypes::InstallSnapshot).await.into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = peer::TransferRequest {
            envelope: self.envelope(),
            from_leader: Some(codec::vote(req.from_leader())),
            to: *req.to_node_id(),
            last_log: req.last_log_id().map(codec::log_id),
        };
        let links = &self.links().links;
        let call = links.call(Lane::Control, &self.address, option.hard_ttl(), |mut peer| async move {
            peer.transfer_leader(request).await
        });
        let reply = match call.await {
            Ok(reply) => reply,
            Err(error) => return Err(self.rpc_error(error, RPCTypes::TransferLeader).await),
        };
        self.check(reply.envelope.as_ref()).await?;
        match reply.result {
            Some(peer::transfer_reply::Result::Accepted(_)) => Ok(Ok(())),
            Some(peer::transfer_reply::Result::VoteChanged(actual)) => {
                Ok(Err(TransferLeaderError::VoteChanged {
                    expected: *req.from_leader(),
                    actual: vote_back(Some(&actual), req.from_leader()).map_err(not_taken)?,
                }))
            }
            Some(peer::transfer_reply::Result::NotFlushed(at)) => {
                Ok(Err(TransferLeaderError::LogNotFlushed {
                    expected: req.last_log_id().copied(),
                    actual: log_id_maybe(at.actual.as_ref(), req.from_leader()).map_err(not_taken)?,
                }))
            }
            None => Err(not_taken(Malformed::Missing("result"))),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        None // the config's: 50 ms, doubling to 1 s
    }
}

/// How long a commit index waits for entries to travel with. Followers do nothing for it that anybody waits for, and at
/// each of openraft's heartbeats they hear of it anyway; sent at once, it costs a message and a reply for every batch,
/// and the leader sends it before it answers its clients.
const COMMIT_LINGER: Duration = Duration::from_millis(10);

/// The same requests, but for those without entries that another follows within [`COMMIT_LINGER`]: what they say, it says
/// too.
fn in_company<S>(requests: S) -> impl Stream<Item = AppendEntriesRequest<Types>>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Unpin,
{
    stream::unfold(requests.fuse(), |mut requests| async move {
        let mut next = requests.next().await?;
        while next.entries.is_empty() {
            match tokio::time::timeout(COMMIT_LINGER, requests.next()).await {
                Ok(Some(another)) => next = another,
                Ok(None) | Err(_) => break,
            }
        }
        Some((next, requests))
    })
}

/// How many requests of a stream have no reply yet. Clones share it.
#[derive(Debug, Clone, Default)]
struct Unanswered(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    unanswered: AtomicUsize,
    answered: AtomicUsize,
    /// Wakes for the first.
    asked: Notify,
}

impl Unanswered {
    fn add(&self) {
        self.0.unanswered.fetch_add(1, Ordering::Relaxed);
        self.0.asked.notify_one();
    }

    fn answered(&self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// There was a request, and no reply is missing.
    fn is_through(&self) -> bool {
        self.0.unanswered.load(Ordering::Relaxed) == 0 && self.0.answered.load(Ordering::Relaxed) > 0
    }

    async fn any(&self) {
        while self.0.unanswered.load(Ordering::Relaxed) == 0 {
            self.0.asked.notified().await;
        }
    }
}

/// The replies of one append stream.
///
/// - A reply that does not come within the limit ends it: a stream can be wedged while its connection still answers
///   pings.
/// - With it end its requests, at once. hyper asks for more of them for as long as the connection lasts, and openraft's
///   stream of requests takes what is meant for the next one: an old replication is then played again, or entries are sent
///   to nobody.
/// - An end before every request is answered is an error. openraft (0.10.0-alpha.37, `select_next_payload`) takes a clean
///   end after a request that only told the commit index for a reason to play the last replication of log entries again,
///   however long ago that was given up, and what it wants to send may be purged.
struct Replies<'s> {
    network: &'s PeerNetwork,
    peer: Peer,
    /// The vote under which its requests are sent.
    ours: Vote,
    replies: tonic::Streaming<peer::AppendReply>,
    unanswered: Unanswered,
    limit: Duration,
    over: bool,
    _session: DropGuard,
}

impl<'s> Replies<'s> {
    async fn next(mut self) -> Option<(Result<StreamAppendResult<Types>, RPCError<Types>>, Self)> {
        if self.over {
            return None;
        }
        let reply = tokio::select! {
            biased;
            reply = self.replies.message() => Ok(reply),
            () = late(&self.unanswered, self.limit) => Err(()),
        };
        let (network, peer, action) = (self.network, &self.peer, RPCTypes::AppendEntries);
        let links = &network.links().links;
        let result = match reply {
            Ok(Ok(Some(reply))) => {
                self.unanswered.answered();
                let checked = network.check(reply.envelope.as_ref()).await;
                checked.and_then(|()| {
                    network.factory.room.peer_said(network.target, reply.disk_low);
                    append_result(reply, &self.ours).map_err(not_taken)
                })
            }
            Ok(Ok(None)) if self.unanswered.is_through() => return None,
            Ok(Ok(None)) => Err(RPCError::Unreachable(Unreachable::from_string(format!(
                "{} ended the stream and left requests unanswered",
                network.address
            )))),
            Ok(Err(status)) => {
                let error = links.failed(network.lane, &network.address, peer, status);
                Err(network.rpc_error(error, action).await)
            }
            Err(()) => {
                links.forget(network.lane, &network.address, peer);
                let error = PeerCallError::Timeout { address: network.address.clone(), limit: self.limit };
                Err(network.rpc_error(error, action).await)
            }
        };
        self.over = result.is_err();
        Some((result, self))
    }
}

/// Resolves when a request has been waiting for its reply for `limit`.
async fn late(unanswered: &Unanswered, limit: Duration) {
    unanswered.any().await;
    tokio::time::sleep(limit).await;
}

fn append_request(
    envelope: Option<peer::Envelope>,
    rpc: AppendEntriesRequest<Types>,
    mark: Option<peer::Mark>,
) -> peer::AppendRequest {
    peer::AppendRequest {
        envelope,
        vote: Some(codec::vote(&rpc.vote)),
        prev: rpc.prev_log_id.as_ref().map(codec::log_id),
        entries: rpc.entries.iter().map(codec::entry).collect(),
        commit: rpc.leader_commit.as_ref().map(codec::log_id),
        mark,
    }
}

// Replies are believed no more than requests: a term far above the one under which we asked is refused, or it would be
// taken over and be with the cluster for good.

fn append_result(reply: peer::AppendReply, ours: &Vote) -> Result<StreamAppendResult<Types>, NotTaken> {
    Ok(match reply.result.ok_or(Malformed::Missing("result"))? {
        peer::append_reply::Result::Matched(matched) => Ok(log_id_maybe(matched.id.as_ref(), ours)?),
        peer::append_reply::Result::Conflict(at) => {
            let at = log_id_maybe(Some(&at), ours)?.ok_or(Malformed::Missing("conflict"))?;
            Err(StreamAppendError::Conflict(at))
        }
        peer::append_reply::Result::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(vote_back(Some(&vote), ours)?))
        }
    })
}

fn vote_response(reply: peer::VoteReply, ours: &Vote) -> Result<VoteResponse<Types>, NotTaken> {
    let vote = vote_back(reply.vote.as_ref(), ours)?;
    let last_log = log_id_maybe(reply.last_log.as_ref(), ours)?;
    Ok(VoteResponse::new(vote, last_log, reply.granted))
}

fn vote_back(vote: Option<&peer::Vote>, ours: &Vote) -> Result<Vote, NotTaken> {
    let vote = codec::vote_back(vote)?;
    believable(vote.leader_id.term, ours.leader_id.term)?;
    Ok(vote)
}

fn log_id_maybe(id: Option<&peer::LogId>, ours: &Vote) -> Result<Option<LogId>, NotTaken> {
    let id = codec::log_id_maybe(id)?;
    believable(id.map_or(0, |id| id.leader_id.term), ours.leader_id.term)?;
    Ok(id)
}

fn not_taken(why: impl Into<NotTaken>) -> RPCError<Types> {
    let why = why.into();
    if matches!(why, NotTaken::AbsurdTerm { .. } | NotTaken::Malformed(Malformed::Absurd(_))) {
        tracing::error!("a peer's reply was refused: {why}");
    }
    RPCError::Unreachable(Unreachable::new(&why))
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::links::{LinkTimes, PeerLinks};
    use crate::net::TcpNet;
    use crate::peers::{Boot, ClusterId, Identity, PeerGuard};
    use crate::raft::types::{Entry, LeaderId, Payload};
    use crate::store::StoreOptions;

    const ABSURD: u64 = 1 << 30;

    fn asked() -> Vote {
        Vote::new(7, 1)
    }

    fn request(index: u64, entries: usize) -> AppendEntriesRequest<Types> {
        let id = |index| LogId::new(LeaderId { term: 7, node_id: 1 }, index);
        let entry = |at| Entry::new(id(index + 1 + at as u64), Payload::Blank);
        AppendEntriesRequest {
            vote: asked(),
            prev_log_id: Some(id(index)),
            entries: (0..entries).map(entry).collect(),
            leader_commit: Some(id(index)),
        }
    }

    /// Up to where it is committed, and how many entries it has.
    fn shape(request: Option<AppendEntriesRequest<Types>>) -> Option<(u64, usize)> {
        request.map(|request| (request.leader_commit.map_or(0, |id| id.index), request.entries.len()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_index_waits_a_little_for_entries_to_travel_with() {
        let (send, receive) = tokio::sync::mpsc::unbounded_channel();
        let wanted = tokio_stream::wrappers::UnboundedReceiverStream::new(receive);
        let mut sent = std::pin::pin!(in_company(wanted));
        let began = tokio::time::Instant::now();
        // With entries it goes at once, and takes along what waited.
        send.send(request(1, 1)).unwrap();
        assert_eq!(shape(sent.next().await), Some((1, 1)));
        send.send(request(2, 0)).unwrap();
        send.send(request(2, 3)).unwrap();
        assert_eq!(shape(sent.next().await), Some((2, 3)));
        assert!(began.elapsed().is_zero());
        // Alone it goes a little later; the last one as soon as it is known to be that.
        send.send(request(5, 0)).unwrap();
        assert_eq!(shape(sent.next().await), Some((5, 0)));
        assert_eq!(began.elapsed(), COMMIT_LINGER);
        send.send(request(6, 0)).unwrap();
        drop(send);
        assert_eq!(shape(sent.next().await), Some((6, 0)));
        assert_eq!(began.elapsed(), COMMIT_LINGER);
        assert_eq!(shape(sent.next().await), None);
    }

    fn network(address: String, dir: &std::path::Path, append_limit: Duration) -> PeerNetwork {
        let options = StoreOptions { allow_volatile: true, ..StoreOptions::new(dir) };
        let store = Store::open(options).expect("a fresh store opens");
        let boot = Boot { count: 1, nonce: 1 };
        let guard = PeerGuard::open(Identity { cluster: ClusterId([1; 16]), me: 1, boot }, store.clone());
        let times = LinkTimes { connect: append_limit, ping: append_limit };
        let links =
            ClusterLinks { links: PeerLinks::new(Arc::new(TcpNet), times).into(), guard: Arc::new(guard) };
        let (transfers, room, marks) = (Transfers::default(), Arc::default(), Marks::new());
        let factory = NetworkFactory { links, store, transfers, append_limit, room, marks };
        factory.network(Lane::Replication, 2, &Member { peer_address: address, ..Member::default() })
    }

    #[tokio::test]
    async fn nothing_is_asked_of_requests_whose_replies_nobody_waits_for() {
        let (dir, limit) = (tempfile::tempdir().expect("a temporary folder"), Duration::from_millis(200));
        // It takes what is sent, and answers nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = silent.local_addr().expect("it is bound").to_string();
        tokio::spawn(async move {
            let (socket, _) = silent.accept().await.expect("dialled");
            let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
            let mut streams = Vec::new();
            while let Some(Ok((requests, mut respond))) = connection.accept().await {
                let headers = http::Response::builder().header("content-type", "application/grpc");
                let open = respond.send_response(headers.body(()).expect("a response"), false);
                streams.push((requests, open.expect("it still waits")));
            }
        });
        let mut network = network(address, dir.path(), limit);
        let (send, receive) = tokio::sync::mpsc::unbounded_channel();
        send.send(request(1, 1)).unwrap();
        let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(receive);
        let replies = network.stream_append(requests, RPCOption::new(limit)).await;
        let given_up = replies.expect("the stream is open").next().await;
        assert!(matches!(given_up, Some(Err(RPCError::Timeout(_)))), "{given_up:?}");
        // Its connection lasts; what comes now is for the next stream.
        let dropped = tokio::time::timeout(Duration::from_secs(10), send.closed());
        dropped.await.expect("the stream of requests is gone");
    }

    #[test]
    fn a_reply_with_an_absurd_term_is_refused_whatever_it_answers() {
        let vote = |term| peer::Vote { term, node: 2, committed: false };
        let log = |term| peer::LogId { term, node: 2, index: 3 };
        let appended = |result| {
            append_result(
                peer::AppendReply { envelope: None, result: Some(result), disk_low: false },
                &asked(),
            )
        };
        use peer::append_reply::Result::{Conflict, HigherVote, Matched};
        let matched = |term| Matched(peer::Matched { id: Some(log(term)) });
        for absurd in [HigherVote(vote(ABSURD)), Conflict(log(ABSURD)), matched(ABSURD)] {
            assert!(matches!(appended(absurd), Err(NotTaken::AbsurdTerm { theirs: ABSURD, ours: 7 })));
        }
        for good in [HigherVote(vote(9)), Conflict(log(7)), matched(7)] {
            assert!(appended(good).is_ok());
        }
        let voted = |vote, last_log| {
            vote_response(
                peer::VoteReply { envelope: None, vote: Some(vote), granted: false, last_log },
                &asked(),
            )
        };
        assert!(matches!(voted(vote(ABSURD), None), Err(NotTaken::AbsurdTerm { .. })));
        assert!(matches!(voted(vote(9), Some(log(ABSURD))), Err(NotTaken::AbsurdTerm { .. })));
        let good = voted(vote(9), Some(log(8))).expect("terms rise by one an election");
        assert_eq!(good.vote.leader_id, LeaderId { term: 9, node_id: 2 });
    }
}
