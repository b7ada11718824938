//! Snapshots of the lock table: taken while it goes on changing, kept by the store, sent chunk by chunk.
//!
//! What openraft carries about is a [`SnapshotRef`], never the bytes. A snapshot becomes the node's own by one small
//! transaction, after all its chunks are on disk. A transfer has a time limit for each chunk and none as a whole; a
//! broken one goes on at the first chunk that the receiver lacks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openraft::RaftSnapshotBuilder;
use prost::Message;
use raftlock_proto::peer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Types;
use super::codec::{self, Malformed};
use super::incoming::believable;
use super::machine::Machine;
use super::runtime::random_u64;
use super::types::{LogId, Snapshot, SnapshotMeta, Vote};
use crate::links::{ClusterLinks, Lane, PeerCallError};
use crate::store::{SnapshotPointer, Store};

/// How long the receiver may take over one chunk: a megabyte onto a disk that stalls for several seconds.
pub const CHUNK_IDLE_LIMIT: Duration = Duration::from_secs(20);

/// Chunks under way at once: enough to keep a disk busy while the next one travels.
const CHUNKS_IN_FLIGHT: u64 = 4;

/// A snapshot in a store.
#[derive(Clone, Debug)]
pub struct SnapshotRef {
    /// Where its chunks are.
    pub store: Store,
    /// Its name in the store; unique among all nodes.
    pub id: String,
    /// How many chunks it has.
    pub chunks: u64,
    /// Their bytes in all.
    pub bytes: u64,
}

/// The node's current snapshot, as its pointer row says.
pub fn current(store: &Store) -> io::Result<Option<Snapshot>> {
    let Some(pointer) = store.current_snapshot() else { return Ok(None) };
    let described = describe(&pointer).map_err(unreadable)?;
    let meta = codec::snapshot_meta_back(&described).map_err(unreadable)?;
    let snapshot = SnapshotRef {
        store: store.clone(),
        id: pointer.id,
        chunks: described.chunks,
        bytes: described.bytes,
    };
    Ok(Some(Snapshot { meta, snapshot }))
}

/// The size in bytes of the current snapshot; 0 if there is none.
pub fn current_bytes(store: &Store) -> u64 {
    store
        .current_snapshot()
        .and_then(|pointer| describe(&pointer).ok())
        .map_or(0, |described| described.bytes)
}

fn describe(pointer: &SnapshotPointer) -> Result<peer::SnapshotMeta, Malformed> {
    Ok(peer::SnapshotMeta::decode(pointer.meta.clone())?)
}

/// Makes a snapshot whose chunks are on disk the current one. The others go later, see `compaction`.
pub async fn make_current(store: &Store, described: &peer::SnapshotMeta) -> io::Result<()> {
    let pointer = SnapshotPointer {
        id: described.id.clone(),
        covers: described.last_log.as_ref().map(|id| id.index),
        meta: described.encode_to_vec().into(),
    };
    store.switch_snapshot(pointer, None).await.map_err(io::Error::other)
}

/// Brings a snapshot of another store, and all its chunks, into this one. A peer's snapshot comes chunk by chunk over
/// the wire instead; this is for handles that never left the process.
pub async fn copy_into(store: &Store, from: &SnapshotRef, described: &peer::SnapshotMeta) -> io::Result<()> {
    store.begin_snapshot(&from.id, described.encode_to_vec().into()).await.map_err(io::Error::other)?;
    for seq in 0..from.chunks {
        let chunk = from.store.read_chunk(&from.id, seq).await.map_err(io::Error::other)?;
        store.append_chunk(&from.id, seq, chunk).await.map_err(io::Error::other)?;
    }
    store.finish_snapshot(&from.id).await.map_err(io::Error::other).map(drop)
}

/// Counts the snapshots that are on their way, in or out, on this node. While there is one, none is deleted and no
/// log is let go.
#[derive(Clone, Debug, Default)]
pub struct Transfers(Arc<AtomicUsize>);

impl Transfers {
    /// A transfer begins; it ends when the answer is dropped.
    pub fn begin(&self) -> TransferGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        TransferGuard(self.clone())
    }

    /// Whether one is under way.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// One transfer.
#[derive(Debug)]
pub struct TransferGuard(Transfers);

impl Drop for TransferGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a snapshot of the table as it was when the builder was made.
pub struct SnapshotBuilder {
    machine: Machine,
    generation: u64,
    meta: SnapshotMeta,
    finished: bool,
}

impl SnapshotBuilder {
    pub(super) fn new(machine: Machine, generation: u64, meta: SnapshotMeta) -> Self {
        SnapshotBuilder { machine, generation, meta, finished: false }
    }
}

impl Drop for SnapshotBuilder {
    fn drop(&mut self) {
        if !self.finished {
            self.machine.snapshot_abort(self.generation);
        }
    }
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotRef;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let store = self.machine.store().clone();
        let index = self.meta.last_log_id.map_or(0, |id: LogId| id.index);
        let id = format!("{index:020}-{:016x}", random_u64());
        let begun = codec::snapshot_meta(&id, &self.meta, 0, 0).encode_to_vec();
        store.begin_snapshot(&id, begun.into()).await.map_err(io::Error::other)?;
        let mut snapshot = SnapshotRef { store: store.clone(), id, chunks: 0, bytes: 0 };
        loop {
            let Ok(chunk) = self.machine.snapshot_chunk(self.generation) else {
                // A newer snapshot was installed: it is as good as the one we were asked for.
                self.finished = true;
                let installed = current(&store)?;
                return installed
                    .ok_or_else(|| io::Error::other("an installed snapshot is not the current one"));
            };
            let Some(chunk) = chunk else { break };
            snapshot.bytes += chunk.len() as u64;
            store
                .append_chunk(&snapshot.id, snapshot.chunks, chunk.into())
                .await
                .map_err(io::Error::other)?;
            snapshot.chunks += 1;
            tokio::task::yield_now().await;
        }
        self.finished = true;
        let described = codec::snapshot_meta(&snapshot.id, &self.meta, snapshot.chunks, snapshot.bytes);
        store.finish_snapshot(&snapshot.id).await.map_err(io::Error::other)?;
        make_current(&store, &described).await?;
        tracing::info!(index, bytes = snapshot.bytes, "snapshot taken");
        match current(&store)? {
            // A newer one was installed meanwhile, and stays.
            Some(newer) if newer.snapshot.id != snapshot.id => Ok(newer),
            _ => Ok(Snapshot { meta: self.meta.clone(), snapshot }),
        }
    }
}

/// Sends `snapshot` to `target` and answers with the receiver's vote once it is installed there.
pub async fn send(
    links: ClusterLinks,
    store: Store,
    target: u64,
    address: String,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<Vote, PeerCallError> {
    let envelope = links.identity().envelope(target);
    let described = codec::snapshot_meta(
        &snapshot.snapshot.id,
        &snapshot.meta,
        snapshot.snapshot.chunks,
        snapshot.snapshot.bytes,
    );
    let (requests, outgoing) = mpsc::channel(CHUNKS_IN_FLIGHT as usize);
    let first = peer::SnapshotRequest {
        envelope: envelope.clone(),
        vote: Some(codec::vote(&vote)),
        meta: Some(described),
        ..Default::default()
    };
    requests.send(first).await.expect("the receiver is held here");

    let mut peer = links.links.peer(Lane::Snapshot, &address).await?;
    let connection = peer.clone();
    let status = |status| links.links.failed(Lane::Snapshot, &address, &connection, status);
    let replies = peer.snapshot(ReceiverStream::new(outgoing));
    let mut replies = within(&address, replies).await?.map_err(status)?.into_inner();
    let mut next_to_send = None;
    loop {
        let reply = within(&address, replies.message()).await?.map_err(status)?;
        let reply = reply.ok_or_else(|| status(tonic::Status::aborted("the transfer ended early")))?;
        links.check(&address, target, reply.envelope.as_ref()).await?;
        if let Some(theirs) = &reply.vote {
            let theirs = codec::vote_back(Some(theirs));
            let theirs = theirs.map_err(|error| status(tonic::Status::data_loss(error.to_string())))?;
            let believed = believable(theirs.leader_id.term, vote.leader_id.term);
            believed.map_err(|why| status(tonic::Status::failed_precondition(why.to_string())))?;
            return Ok(theirs);
        }
        let next = next_to_send.get_or_insert(reply.next_chunk);
        while *next < snapshot.snapshot.chunks && *next < reply.next_chunk + CHUNKS_IN_FLIGHT {
            let data = store.read_chunk(&snapshot.snapshot.id, *next).await;
            let data = data.map_err(|error| status(tonic::Status::data_loss(error.to_string())))?;
            let crc = crc32c::crc32c(&data);
            let request = peer::SnapshotRequest {
                envelope: envelope.clone(),
                chunk: *next,
                data,
                crc,
                ..Default::default()
            };
            if requests.send(request).await.is_err() {
                break; // the stream is over; its status comes with the next reply
            }
            *next += 1;
        }
    }
}

async fn within<T>(address: &str, what: impl Future<Output = T>) -> Result<T, PeerCallError> {
    let timed = tokio::time::timeout(CHUNK_IDLE_LIMIT, what).await;
    timed.map_err(|_| PeerCallError::Timeout { address: address.to_owned(), limit: CHUNK_IDLE_LIMIT })
}

fn unreadable(error: Malformed) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the snapshot pointer in raft.db cannot be read: {error}"),
    )
}
