//! The nodes of the cluster: who belongs to it, who votes, who is there.
//!
//! ```text
//! contacts    every node asks every other one whether it is there: alive, suspect, dead
//! roster      what is known of all members, for `status` and for applications that embed a node
//! events      what changed between two looks
//! plan        which change of the membership is due, as a function of what is known
//! controller  on the leader: makes the changes, one at a time, the operator's and those that are due
//! join        how a new node gets in
//! ```
//!
//! What is shown here decides nothing about locks. Liveness decides about the membership only where an operator
//! asked for it (`--remove-dead-after`), or where a disk is known to be gone (a node that came back empty at the same
//! address); the changes themselves are Raft's, so a wrong guess costs availability and never safety.

pub(crate) mod contacts;
pub(crate) mod controller;
mod events;
pub(crate) mod join;
pub(crate) mod plan;
pub(crate) mod roster;

use std::time::Duration;

pub use events::{MemberEvent, MemberEvents};

/// One member, as the node that is asked sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its storage id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// Votes, or only learns.
    pub voter: bool,
    /// Leads, as far as this node knows.
    pub leader: bool,
    /// Whether it is there.
    pub liveness: Liveness,
    /// How long ago it last answered this node; `None` for this node itself, and for one never heard of.
    pub last_contact: Option<Duration>,
    /// The last log index known to be on it; only the leader knows.
    pub matched: Option<u64>,
    /// Log entries that it is behind the newest one this node knows of.
    pub lag: Option<u64>,
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Liveness {
    /// It answered just now.
    #[default]
    Alive,
    /// It is late.
    Suspect,
    /// It has not answered for so long that it is down, cut off, or stopped.
    Dead,
}

impl Liveness {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Alive => "alive",
            Liveness::Suspect => "suspect",
            Liveness::Dead => "dead",
        }
    }
}
