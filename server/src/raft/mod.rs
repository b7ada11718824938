//! Consensus: openraft, fitted to our log, our lock table and our wire. openraft is named in this folder only.
//!
//! ```text
//! handle   what the rest of the server may ask: propose, read point, who leads
//! members  membership changes
//! machine  committed entries -> lock table -> outcomes; snapshots of the table
//! marks    whether the tables of all nodes are still the same
//! log      openraft's log and vote, kept by `store`
//! network  the sending end of the peer protocol
//! incoming the receiving end, behind `service/peer`
//! codec    openraft's types <-> the messages of peer.proto
//! absence  a leader whose process is gone is followed by another at once
//! touch    whether a leader still hears from its quorum, and who could follow it
//! witness  who looks on while entries are applied: the suites that check histories
//! runtime  tokio, with election timeouts drawn from a generator that a simulation can seed
//! ```
//!
//! Nothing here decides about locks, and no clock is read here but for timers of our own.

mod absence;
pub mod codec;
pub mod compaction;
pub mod handle;
pub mod incoming;
mod log;
mod machine;
pub mod marks;
mod members;
mod network;
mod runtime;
pub(crate) mod snapshot;
#[cfg(test)]
mod suite;
mod touch;
mod witness;

use std::fmt;

use bytes::Bytes;

pub use handle::{Office, ProposeError, RaftHandle, RaftSettings, ReadError, Standing};
pub use log::LogStore;
pub use machine::Machine;
pub use members::{ChangeError, Roll};
pub use runtime::{random_u64, seed_thread_rng};
pub use witness::{Applied, Witness};

openraft::declare_raft_types!(
    /// openraft's types, chosen by us: batches of the lock table go in, nothing comes out (outcomes leave the
    /// table through `streams`, in the order in which they were applied).
    pub Types:
        D = EncodedBatch,
        R = (),
        NodeId = u64,
        Node = Member,
        AsyncRuntime = runtime::NodeRuntime,
);

/// A batch of the lock table as the log holds it. Encoded once, by the proposer, and the same bytes on every
/// node's disk and wire.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EncodedBatch(pub Bytes);

impl fmt::Debug for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

impl fmt::Display for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the membership says of a node besides its id.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Member {
    /// For people; a wiped node keeps it.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
}

/// An alias for each of openraft's generic types that we name.
pub(crate) mod types {
    use super::{Member, Types};

    pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    pub type Vote = openraft::impls::Vote<LeaderId>;
    pub type LogId = openraft::LogId<LeaderId>;
    pub type Entry = openraft::alias::EntryOf<Types>;
    pub type Payload = openraft::EntryPayload<super::EncodedBatch, u64, Member>;
    pub type Membership = openraft::Membership<u64, Member>;
    pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;
    pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
    pub type Snapshot = openraft::alias::SnapshotOf<Types, super::snapshot::SnapshotRef>;
    pub type Raft = openraft::Raft<Types, super::machine::MachineWriter>;
}
