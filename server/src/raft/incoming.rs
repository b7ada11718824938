//! Raft messages from peers, in the wire's own types, handed to openraft. The envelope was checked before.

use std::sync::{Arc, Mutex};

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    VoteRequest,
};
use prost::Message;
use raftlock_proto::peer::{self, append_reply, transfer_reply};

use super::Types;
use super::codec::{self, Malformed};
use super::handle::RaftHandle;
use super::snapshot::{SnapshotRef, TransferGuard};
use super::types::{Snapshot, Vote};
use crate::store::{Store, StoreError};

/// A term this far above ours is not believed. Persisted, it would be with the cluster for good; honest terms rise by
/// one an election.
const TERM_JUMP_MAX: u64 = 1 << 20;

/// Why a peer's message was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotTaken {
    /// It is not what the protocol says.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Its term cannot be right.
    #[error("term {theirs} is absurdly far above this node's term {ours}")]
    AbsurdTerm {
        /// What the message says.
        theirs: u64,
        /// Where we are.
        ours: u64,
    },
    /// Bytes that do not have the checksum they came with.
    #[error("chunk {chunk} of the snapshot does not have its checksum")]
    Damaged {
        /// Which chunk.
        chunk: u64,
    },
    /// This node's disk is low: it takes no office.
    #[error("this node's disk is low: it takes no office")]
    DiskLow,
    /// This node's Raft has stopped.
    #[error("this node's Raft has stopped: {0}")]
    Stopped(String),
    /// This node's disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Refuses a term that cannot be right, in a request or in a reply.
pub fn believable(theirs: u64, ours: u64) -> Result<(), NotTaken> {
    if theirs > ours + TERM_JUMP_MAX { Err(NotTaken::AbsurdTerm { theirs, ours }) } else { Ok(()) }
}

impl RaftHandle {
    /// Appends one request's entries, and answers when they are on disk.
    pub async fn take_append(&self, request: peer::AppendRequest) -> Result<append_reply::Result, NotTaken> {
        let requests = stream::iter([request]);
        let mut results = self.take_appends(requests);
        let result = results.next().await;
        result.unwrap_or_else(|| Err(NotTaken::Stopped("no answer to an append".to_owned())))
    }

    /// Appends a stream of requests, pipelined; results come in their order. The first that fails is the last.
    pub fn take_appends(
        &self,
        requests: impl Stream<Item = peer::AppendRequest> + Send + 'static,
    ) -> BoxStream<'static, Result<append_reply::Result, NotTaken>> {
        let refused: Arc<Mutex<Option<NotTaken>>> = Arc::default();
        let (this, note) = (self.clone(), refused.clone());
        let wanted = requests
            .map(move |request| this.append_from_wire(request))
            .take_while(move |converted| {
                let good = match converted {
                    Ok(_) => true,
                    Err(why) => {
                        *note.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(why.clone());
                        false
                    }
                };
                std::future::ready(good)
            })
            .filter_map(|converted| std::future::ready(converted.ok()));
        let results = self.raft().stream_append(wanted).map(|result| match result {
            Ok(result) => Ok(append_to_wire(result)),
            Err(fatal) => Err(NotTaken::Stopped(fatal.to_string())),
        });
        let why = stream::once(async move {
            refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take().map(Err)
        });
        results.chain(why.filter_map(std::future::ready)).boxed()
    }

    fn append_from_wire(
        &self,
        request: peer::AppendRequest,
    ) -> Result<AppendEntriesRequest<Types>, NotTaken> {
        let vote = self.believable_vote(request.vote.as_ref())?;
        self.leader_spoke();
        let marks = self.machine().marks();
        if let Some(mark) = request.mark {
            marks.announced(vote.leader_id.node_id, mark);
        }
        if marks.diverged().borrow().is_some() {
            return Err(NotTaken::Stopped("its lock table and the leader's differ".to_owned()));
        }
        let prev_log_id = codec::log_id_maybe(request.prev.as_ref())?;
        Ok(AppendEntriesRequest {
            vote,
            prev_log_id,
            entries: codec::entries_back(prev_log_id, request.entries)?,
            leader_commit: codec::log_id_maybe(request.commit.as_ref())?,
        })
    }

    /// Votes, or says how it would.
    pub async fn take_vote(&self, request: peer::VoteRequest) -> Result<peer::VoteReply, NotTaken> {
        let vote = self.believable_vote(request.vote.as_ref())?;
        let mut wanted = VoteRequest::new(vote, codec::log_id_maybe(request.last_log.as_ref())?);
        wanted.leadership_transfer = request.leadership_transfer;
        let voted = match request.pre_vote {
            true => self.raft().pre_vote(wanted).await,
            false => self.raft().vote(wanted).await,
        };
        let voted = voted.map_err(|error| NotTaken::Stopped(error.to_string()))?;
        Ok(peer::VoteReply {
            envelope: None,
            vote: Some(codec::vote(&voted.vote)),
            granted: voted.vote_granted,
            last_log: voted.last_log_id.as_ref().map(codec::log_id),
        })
    }

    /// The leader hands its office to this node.
    pub async fn take_transfer(
        &self,
        request: peer::TransferRequest,
    ) -> Result<transfer_reply::Result, NotTaken> {
        if request.to == *self.raft().node_id() && self.disk_is_low() {
            return Err(NotTaken::DiskLow);
        }
        let from = self.believable_vote(request.from_leader.as_ref())?;
        let last_log = codec::log_id_maybe(request.last_log.as_ref())?;
        let handed =
            self.raft().handle_transfer_leader(TransferLeaderRequest::new(from, request.to, last_log)).await;
        Ok(match handed.map_err(|fatal| NotTaken::Stopped(fatal.to_string()))? {
            Ok(()) => transfer_reply::Result::Accepted(true),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                transfer_reply::Result::VoteChanged(codec::vote(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                transfer_reply::Result::NotFlushed(peer::LogNotFlushed {
                    actual: actual.as_ref().map(codec::log_id),
                })
            }
        })
    }

    /// Begins to receive a snapshot, or goes on with one that broke off.
    pub async fn receive_snapshot(
        &self,
        store: &Store,
        first: &peer::SnapshotRequest,
    ) -> Result<Reception, NotTaken> {
        let vote = self.believable_vote(first.vote.as_ref())?;
        let described = first.meta.clone().ok_or(Malformed::Missing("meta"))?;
        codec::snapshot_meta_back(&described)?;
        let under_way = self.transfers().begin();
        let begun = store.begin_snapshot(&described.id, described.encode_to_vec().into()).await?;
        Ok(Reception {
            raft: self.clone(),
            store: store.clone(),
            vote,
            described,
            next: begun.chunks,
            _under_way: under_way,
        })
    }

    fn believable_vote(&self, vote: Option<&peer::Vote>) -> Result<Vote, NotTaken> {
        let vote = codec::vote_back(vote)?;
        believable(vote.leader_id.term, self.standing().borrow().term)?;
        Ok(vote)
    }
}

/// A snapshot on its way in.
pub struct Reception {
    raft: RaftHandle,
    store: Store,
    vote: Vote,
    described: peer::SnapshotMeta,
    next: u64,
    _under_way: TransferGuard,
}

impl Reception {
    /// The first chunk that is not on disk yet.
    pub fn next_chunk(&self) -> u64 {
        self.next
    }

    /// Whether every chunk is on disk.
    pub fn is_complete(&self) -> bool {
        self.next >= self.described.chunks
    }

    /// Puts a chunk on disk. One that is there already changes nothing.
    pub async fn take(&mut self, request: peer::SnapshotRequest) -> Result<(), NotTaken> {
        if crc32c::crc32c(&request.data) != request.crc {
            return Err(NotTaken::Damaged { chunk: request.chunk });
        }
        if request.chunk != self.next {
            return Ok(()); // sent before the sender knew where to begin
        }
        self.store.append_chunk(&self.described.id, request.chunk, request.data).await?;
        self.next += 1;
        Ok(())
    }

    /// Installs the complete snapshot, and answers with this node's vote.
    pub async fn install(self) -> Result<peer::Vote, NotTaken> {
        self.store.finish_snapshot(&self.described.id).await?;
        let meta = codec::snapshot_meta_back(&self.described)?;
        let (chunks, bytes) = (self.described.chunks, self.described.bytes);
        let snapshot =
            SnapshotRef { store: self.store.clone(), id: self.described.id.clone(), chunks, bytes };
        let index = self.described.last_log.as_ref().map_or(0, |id| id.index);
        let installed = self.raft.raft().install_full_snapshot(self.vote, Snapshot { meta, snapshot }).await;
        let installed = installed.map_err(|fatal| NotTaken::Stopped(fatal.to_string()))?;
        tracing::info!(index, bytes, "snapshot received from the leader");
        Ok(codec::vote(&installed.vote))
    }
}

fn append_to_wire(result: StreamAppendResult<Types>) -> append_reply::Result {
    match result {
        Ok(matched) => {
            append_reply::Result::Matched(peer::Matched { id: matched.as_ref().map(codec::log_id) })
        }
        Err(StreamAppendError::Conflict(at)) => append_reply::Result::Conflict(codec::log_id(&at)),
        Err(StreamAppendError::HigherVote(vote)) => append_reply::Result::HigherVote(codec::vote(&vote)),
    }
}
