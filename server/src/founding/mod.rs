//! How new nodes become one cluster, and never two.
//!
//! A node with an empty data directory asks its seeds who they are. If none belongs to a cluster or knows of one, and
//! N pristine nodes see each other, the smallest (name, storage id) of them makes a cluster id and asks all N for a
//! promise. A pristine node gives one promise, durable before it answers, and reports it to later askers. Only the
//! holder of all N, asked anew in one round, initialises the cluster.
//!
//! A proposer gives up by forswearing its cluster id: durably, then it says so, and only after that are its promises
//! void. It does so when another proposer's (name, storage id) is smaller, when one that it asked belongs to another
//! cluster or has lost its data directory, and when the promises do not come together in time.
//!
//! A node that gave a promise becomes a member when the first Raft message of that cluster reaches it, or when it
//! sees a membership that lists it. A node that is free, and sees a running cluster, belongs to it from there on, on its
//! own disk, and only then asks to be let in (`members/join`).
//!
//! # Why there are never two
//!
//! 1. *A cluster id is initialised only by its maker, while all its promises stand.* The maker writes the cluster id
//!    after a round in which all N granted, and it never writes one that it forswore. Whichever came first is on disk
//!    before anything depends on it, so a crash between any two steps changes nothing.
//! 2. *A promise stands until it is on disk that it never counts.* Either its maker forswore the cluster, or it is
//!    moot (3).
//! 3. *A promise for C is moot once a member of C belongs to another cluster D.* Take the first of C's members that
//!    came to belong to D. It came there by a promise for D, or free of any, so then it had no standing promise for C,
//!    and a member gives none to others. Had C been initialised before, that promise would still stand (1, 2). So C
//!    never was, and never will be.
//! 4. So no storage id is a founder of two clusters, and N is more than half of the nodes that a proposer can see, so
//!    any two sets of founders have a node in common.
//!
//! What a membership lists, belongs to it: its founders promised it, and whoever is let in later belongs to the
//! cluster on its own disk before it asks. A membership that is not committed yet is therefore as good a proof.
//!
//! Answers may be late or come twice: "belongs to D", "forswore C" and "promised C to a maker that has not forsworn
//! it" never become untrue while the disk is there.
//!
//! # What no protocol can see
//!
//! A founder whose directory is emptied comes back as a stranger that remembers no promise. If it then reaches just
//! N - 1 pristine nodes and none of its former cluster, they may found a second one. Three things narrow that: a node
//! gives no promise before it has asked all its seeds; whoever has seen a running cluster founds none; and a maker asks
//! for all promises anew in one round, and gives up if one of those nodes is another by now. Where all N seeds must
//! promise, the others' promises close the gap altogether.

mod promise;
mod search;

use std::collections::BTreeMap;

use raftlock_proto::peer::{self, PromiseRequest};

pub use promise::Founding;

use crate::peers::ClusterId;
use crate::raft::{Member, codec, random_u64};

/// How a node comes to its cluster.
#[derive(Clone, Debug)]
pub struct FoundingPlan {
    /// Peer addresses to ask, each once; this node's own may be among them.
    pub seeds: Vec<String>,
    /// How many nodes make a new cluster; `None` waits for one to join.
    pub expect: Option<usize>,
}

/// What a node is to do once it belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founded {
    /// The cluster.
    pub cluster: ClusterId,
    /// Present on the one node that initialises it, unless it has done so before: the members.
    pub initialise: Option<BTreeMap<u64, Member>>,
}

fn wire_member((id, node): &(u64, Member)) -> peer::Member {
    peer::Member { id: *id, node: Some(codec::member(node)) }
}

fn member_back(member: &peer::Member) -> Member {
    member.node.as_ref().map(codec::member_back).unwrap_or_default()
}

/// The maker of a promise, as its members name it.
fn maker(promise: &PromiseRequest) -> Option<(u64, Member)> {
    let maker = promise.members.iter().find(|member| member.id == promise.proposer)?;
    Some((maker.id, member_back(maker)))
}

fn new_cluster_id() -> ClusterId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random_u64().to_be_bytes());
    id[8..].copy_from_slice(&random_u64().to_be_bytes());
    ClusterId(id)
}
