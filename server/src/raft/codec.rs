//! openraft's types to and from the messages of peer.proto. The log rows are the same messages, so what is on disk
//! is what was on the wire.
//!
//! Encoding cannot fail. Decoding answers [`Malformed`], which names the field, and never panics.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::entry::RaftEntry;
use prost::Message;
use raftlock_proto::peer;

use super::types::{Entry, LeaderId, LogId, Membership, Payload, SnapshotMeta, StoredMembership, Vote};
use super::{EncodedBatch, Member};

/// Bytes from a peer or a log row that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The protobuf itself could not be read.
    #[error("not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A field that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A number that no cluster can have reached, see [`TERM_MAX`] and [`INDEX_MAX`].
    #[error("the field `{0}` is absurdly large")]
    Absurd(&'static str),
    /// An entry that does not follow the one before it.
    #[error("the field `entries` goes on at index {index} after {before}")]
    Gap {
        /// Its index.
        index: u64,
        /// The index before it.
        before: u64,
    },
}

/// No term above this is believed. One stored term of `u64::MAX` would stop the cluster for good; at a thousand
/// elections a second this bound is 35 years away.
pub const TERM_MAX: u64 = 1 << 40;

/// No log index above this is believed: a million entries a second for 292 years, and it fits SQLite's integers.
pub const INDEX_MAX: u64 = 1 << 53;

pub fn vote(vote: &Vote) -> peer::Vote {
    peer::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn vote_back(vote: Option<&peer::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed::Missing("vote"))?;
    let term = bounded("vote.term", vote.term, TERM_MAX)?;
    Ok(match vote.committed {
        true => Vote::new_committed(term, vote.node),
        false => Vote::new(term, vote.node),
    })
}

pub fn log_id(id: &LogId) -> peer::LogId {
    peer::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn log_id_back(id: &peer::LogId) -> Result<LogId, Malformed> {
    let term = bounded("log_id.term", id.term, TERM_MAX)?;
    let index = bounded("log_id.index", id.index, INDEX_MAX)?;
    Ok(LogId::new(LeaderId { term, node_id: id.node }, index))
}

/// A log id that may be absent, as it is before the first entry.
pub fn log_id_maybe(id: Option<&peer::LogId>) -> Result<Option<LogId>, Malformed> {
    id.map(log_id_back).transpose()
}

pub fn member(member: &Member) -> peer::Node {
    peer::Node {
        name: member.name.clone(),
        peer_address: member.peer_address.clone(),
        client_address: member.client_address.clone(),
    }
}

pub fn member_back(node: &peer::Node) -> Member {
    Member {
        name: node.name.clone(),
        peer_address: node.peer_address.clone(),
        client_address: node.client_address.clone(),
    }
}

pub fn membership(membership: &Membership) -> peer::Membership {
    let configs = membership.get_joint_config().iter();
    peer::Membership {
        configs: configs.map(|ids| peer::VoterSet { ids: ids.iter().copied().collect() }).collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, member(node))).collect(),
    }
}

pub fn membership_back(membership: &peer::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.iter().map(|set| set.ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, Member> =
        membership.nodes.iter().map(|(id, node)| (*id, member_back(node))).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed::Missing("membership.nodes"))
}

pub fn entry(entry: &Entry) -> peer::Entry {
    let payload = match &entry.payload {
        Payload::Blank => peer::entry::Payload::Blank(true),
        Payload::Normal(batch) => peer::entry::Payload::Batch(batch.0.clone()),
        Payload::Membership(members) => {
            let members: &Membership = members;
            peer::entry::Payload::Membership(membership(members))
        }
    };
    peer::Entry { id: Some(log_id(&entry.log_id)), payload: Some(payload) }
}

pub fn entry_back(entry: peer::Entry) -> Result<Entry, Malformed> {
    let id = log_id_back(entry.id.as_ref().ok_or(Malformed::Missing("entry.id"))?)?;
    let payload = match entry.payload.ok_or(Malformed::Missing("entry.payload"))? {
        peer::entry::Payload::Blank(_) => Payload::Blank,
        peer::entry::Payload::Batch(bytes) => Payload::Normal(EncodedBatch(bytes)),
        peer::entry::Payload::Membership(members) => Payload::Membership(membership_back(&members)?),
    };
    Ok(Entry::new(id, payload))
}

/// An entry as a log row holds it.
pub fn entry_bytes(one: &Entry) -> Bytes {
    entry(one).encode_to_vec().into()
}

/// Entries that follow `prev` and each other without a gap: a log with a hole could be acknowledged beyond it.
pub fn entries_back(prev: Option<LogId>, entries: Vec<peer::Entry>) -> Result<Vec<Entry>, Malformed> {
    let mut next = prev.map_or(0, |id| id.index + 1);
    let follows = |entry: peer::Entry| {
        let entry = entry_back(entry)?;
        let index = entry.log_id.index;
        if index != next {
            return Err(Malformed::Gap { index, before: next.saturating_sub(1) });
        }
        next += 1;
        Ok(entry)
    };
    entries.into_iter().map(follows).collect()
}

pub fn entry_from_bytes(bytes: Bytes) -> Result<Entry, Malformed> {
    entry_back(peer::Entry::decode(bytes)?)
}

pub fn vote_bytes(one: &Vote) -> Bytes {
    vote(one).encode_to_vec().into()
}

pub fn vote_from_bytes(bytes: &[u8]) -> Result<Vote, Malformed> {
    vote_back(Some(&peer::Vote::decode(bytes)?))
}

pub fn log_id_bytes(id: &LogId) -> Bytes {
    log_id(id).encode_to_vec().into()
}

pub fn log_id_from_bytes(bytes: &[u8]) -> Result<LogId, Malformed> {
    log_id_back(&peer::LogId::decode(bytes)?)
}

/// A snapshot's description, with its own id and size.
pub fn snapshot_meta(id: &str, meta: &SnapshotMeta, chunks: u64, bytes: u64) -> peer::SnapshotMeta {
    peer::SnapshotMeta {
        id: id.to_owned(),
        last_log: meta.last_log_id.as_ref().map(log_id),
        membership_log: meta.last_membership.log_id().as_ref().map(log_id),
        membership: Some(membership(meta.last_membership.membership())),
        chunks,
        bytes,
    }
}

pub fn snapshot_meta_back(meta: &peer::SnapshotMeta) -> Result<SnapshotMeta, Malformed> {
    let members = meta.membership.as_ref().ok_or(Malformed::Missing("snapshot.membership"))?;
    let membership_log = log_id_maybe(meta.membership_log.as_ref())?;
    Ok(SnapshotMeta {
        last_log_id: log_id_maybe(meta.last_log.as_ref())?,
        last_membership: StoredMembership::new(membership_log, membership_back(members)?),
    })
}

/// Bytes that a node reads back from its disk or hears from its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reread {
    /// A row of the log.
    Entry,
    /// A vote.
    Vote,
    /// The description of a snapshot.
    Snapshot,
}

/// Reads bytes as a node does, and writes what it read; `None` if it refuses them.
pub fn reread(kind: Reread, bytes: &[u8]) -> Option<Vec<u8>> {
    let written = match kind {
        Reread::Entry => entry_bytes(&entry_from_bytes(Bytes::copy_from_slice(bytes)).ok()?),
        Reread::Vote => vote_bytes(&vote_from_bytes(bytes).ok()?),
        Reread::Snapshot => {
            let given = peer::SnapshotMeta::decode(bytes).ok()?;
            let read = snapshot_meta_back(&given).ok()?;
            snapshot_meta(&given.id, &read, given.chunks, given.bytes).encode_to_vec().into()
        }
    };
    Some(written.into())
}

fn bounded(field: &'static str, value: u64, max: u64) -> Result<u64, Malformed> {
    if value > max { Err(Malformed::Absurd(field)) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_log_id() -> LogId {
        LogId::new(LeaderId { term: 3, node_id: u64::MAX }, 9)
    }

    fn some_membership() -> Membership {
        let node = |name: &str| Member {
            name: name.into(),
            peer_address: "p:1".into(),
            client_address: "c:1".into(),
        };
        Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 7])],
            BTreeMap::from([(1, node("a")), (2, node("b")), (7, node("c")), (9, node("learner"))]),
        )
        .expect("every voter has a node")
    }

    #[test]
    fn every_kind_of_entry_survives_the_way_to_the_log_and_back() {
        let payloads = [
            Payload::Blank,
            Payload::Normal(EncodedBatch(Bytes::from_static(b"batch"))),
            Payload::Membership(some_membership()),
        ];
        for payload in payloads {
            let one = Entry::new(some_log_id(), payload);
            assert_eq!(entry_from_bytes(entry_bytes(&one)), Ok(one));
        }
    }

    #[test]
    fn entries_that_leave_a_gap_are_refused() {
        let at =
            |index| entry(&Entry::new(LogId::new(LeaderId { term: 3, node_id: 1 }, index), Payload::Blank));
        let prev = Some(LogId::new(LeaderId { term: 3, node_id: 1 }, 9));
        assert_eq!(entries_back(prev, vec![at(10), at(11)]).map(|taken| taken.len()), Ok(2));
        assert_eq!(entries_back(None, vec![at(0)]).map(|taken| taken.len()), Ok(1));
        for gap in [vec![at(11)], vec![at(9)], vec![at(10), at(12)], vec![at(10), at(10)]] {
            assert!(matches!(entries_back(prev, gap), Err(Malformed::Gap { .. })));
        }
    }

    #[test]
    fn votes_keep_whether_a_quorum_granted_them() {
        for one in [Vote::new(4, 1), Vote::new_committed(4, 1)] {
            assert_eq!(vote_from_bytes(&vote_bytes(&one)), Ok(one));
        }
    }

    #[test]
    fn an_absurd_term_or_index_is_refused() {
        let absurd_vote = peer::Vote { term: u64::MAX, node: 1, committed: true };
        assert_eq!(vote_back(Some(&absurd_vote)), Err(Malformed::Absurd("vote.term")));
        let absurd_id = peer::LogId { term: 1, node: 1, index: u64::MAX };
        assert_eq!(log_id_back(&absurd_id), Err(Malformed::Absurd("log_id.index")));
    }

    #[test]
    fn a_row_that_is_cut_short_is_an_error_and_no_panic() {
        let whole = entry_bytes(&Entry::new(some_log_id(), Payload::Membership(some_membership())));
        for end in 0..whole.len() {
            let _ = entry_from_bytes(whole.slice(..end));
        }
        assert_eq!(entry_from_bytes(Bytes::new()), Err(Malformed::Missing("entry.id")));
    }
}
