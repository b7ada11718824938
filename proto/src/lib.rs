//! The wire of RaftLock: messages and gRPC stubs generated from `raftlock/v1/*.proto`, checked in.
//!
//! [`v1`] is what clients speak and stays compatible within a major version. [`peer`] is what the nodes of one
//! cluster speak among themselves; it changes with the server.
//!
//! Nothing here decides anything. `tests/generated.rs` regenerates the code and fails when it has drifted.

mod codec;

pub use codec::WireCodec;

/// The public service: `RaftLock` and `Admin`.
#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod v1 {
    include!("gen/raftlock.v1.rs");
}

/// The peer service: Raft, the relay, and how nodes find each other.
#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod peer {
    include!("gen/raftlock.peer.v1.rs");
}

/// The compiled description of [`v1`], for gRPC server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!("gen/descriptor.bin");

/// Metadata key: the answering node's cluster id, on every answer of the public service.
pub const CLUSTER_ID_KEY: &str = "raftlock-cluster-id";

/// Metadata key: `host:port` of the leader for clients, with which a follower accepts a session stream. A client that names
/// it among its endpoints may save itself the relay.
pub const LEADER_KEY: &str = "raftlock-leader";

/// Metadata key: set by a caller that wants an answer from the leader only, never through a relay.
pub const NO_FORWARD_KEY: &str = "raftlock-no-forward";

/// Largest `SessionRequest`, encoded, in bytes. One batch of the log holds sixteen of them.
pub const SESSION_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Largest `SessionResponse`, encoded, in bytes.
pub const SESSION_RESPONSE_BYTES_MAX: usize = 256 * 1024;
