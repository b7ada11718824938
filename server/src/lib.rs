//! A RaftLock node: a replicated lock table behind gRPC, as a library. The binary `raftlock` is a thin command line
//! over it.
//!
//! # The way of a request
//!
//! ```text
//! client ── edge ─┬─ this node leads ──────────────────┐
//!                 └─ relay ── peer port of the leader ─┤
//!                                                      ▼
//!                  service/{session, lock}   shape and limits only; who waits is registered
//!                                                      ▼
//!                  proposer    all that is queued, renewals first, becomes one batch with its dt
//!                                                      ▼
//!                  raft (openraft) ── store: one commit ∥ the peers' stores
//!                                                      ▼
//!                  raft/machine ── lock-table: apply ── outcomes and events
//!                                                      ▼
//!                  streams ── outbox ── edge ── client
//! ```
//!
//! `lock-table` (a crate of its own) decides; everything here carries its decisions around. Nothing else sits on this
//! path: no task per request, no SQLite in apply, no clock.
//!
//! # Where things are
//!
//! | file | what it is for |
//! |---|---|
//! | [`node`] | one node from start to stop; wires the rest (`life`, `disk`, `ports`; `inside`, `apart` for a node inside an application) |
//! | `builder`, `coordinator` | how an application starts a node of its own; locks by name on it |
//! | [`config`] | what a node is told, defaults, bounds |
//! | `founding` | how new nodes become one cluster, and never two |
//! | `edge`, `relay`, `outbox` | clients' connections, and the way from there to the leader |
//! | `service/` | the gRPC services: shape checks and conversion |
//! | `proposer`, [`clock`] | many commands -> few log entries, each with its time |
//! | `streams` | who waits for what on the leader |
//! | `raft/` | consensus; the only folder that names openraft |
//! | [`store`] | log, vote and snapshots in SQLite; the only folder that names rusqlite |
//! | `peers`, `links` | whose word is taken, and the connections to them |
//! | [`members`] | who belongs to the cluster, who is there, who votes; joining and leaving |
//! | `room` | a disk with too little room: what is refused, and who should lead |
//! | `pace` | whether cluster time keeps pace with this node's clock |
//! | [`net`] | the one way to open and accept connections |
//! | [`testing`] | a cluster for the tests of those who use RaftLock, and for our own |
//! | `cli/` | the commands of the binary, one file each |
//!
//! Arrows go one way: `node -> everything`; `service -> proposer, streams, raft`; `proposer -> raft, clock`;
//! `raft -> lock-table, store, streams`; `store` names nothing of ours. `tests/tidy.rs` holds the walls.
//!
//! # Inside an application
//!
//! [`Node::builder`] starts a node in a process of yours, [`Node::client`] is the SDK's client on it, and
//! [`Coordinator`] has locks by name. [`testing::Cluster`] is a whole cluster for a test.
//!
//! # What must hold
//!
//! - Nothing is acknowledged before it is on disk on a quorum: an outcome leaves the table only when its entry was
//!   committed, and an entry counts for a node only after the node's COMMIT.
//! - A node serves only while it is in office: it leads, and its own first entry is applied, so nothing that an earlier
//!   leader acknowledged is missing. Reads take a ReadIndex first.
//! - Cluster time is the sum of the leaders' `dt`s, each at most what passed and at most two ticks; no wall clock
//!   decides anything, and what a stall loses is never caught up.
//! - "Not proposed" is said only of what openraft refused before appending it; anything else without an outcome is
//!   "unknown".
//! - Every peer message names cluster, sender with its boot counter, and target; a message that does not fit is refused
//!   before it counts.
//! - The first disk error is the last: the node stops serving, and the process ends with 74.
//! - The tables of all nodes are one table: nodes compare a running hash of theirs, and one that differs from its
//!   leader's stops (`raft/marks`).
//!
//! What is absent: no TLS and no authentication yet, so both ports belong on a private network.

#![warn(missing_docs)]

#[cfg(all(raftlock_planted, not(tokio_unstable)))]
compile_error!("planted bugs are for the simulation's build only, which has `--cfg tokio_unstable`");

mod builder;
pub mod clock;
pub mod config;
mod coordinator;
mod edge;
mod founding;
#[doc(hidden)]
pub mod host;
mod links;
pub mod members;
pub mod net;
pub mod node;
mod outbox;
mod pace;
mod peers;
mod proposer;
mod raft;
mod relay;
mod room;
mod service;
pub mod store;
mod streams;
pub mod testing;

pub use builder::NodeBuilder;
pub use coordinator::{Coordinator, CoordinatorError, CoordinatorLock};
pub use node::{Node, NodeError};

#[doc(hidden)]
pub use raft::seed_thread_rng;

/// For suites that try what a node makes of bytes that nobody wrote.
#[doc(hidden)]
pub mod raft_doors {
    pub use crate::raft::codec::{Reread, reread};
}
