//! A leader whose process is gone: its followers elect another at once, not after an election timeout.
//!
//! A process that was killed, or aborted, took its connections with it, and nobody listens on its port any more: the
//! kernel says both at once. A follower that sees both no longer holds the leader's lease against other candidates, and
//! stands itself, by pre-vote.
//!
//! It is a hint, and nothing is staked on it. A pre-vote needs a quorum of nodes that miss the leader too; reads go
//! by ReadIndex, and never by a lease; so a hint that is wrong costs an election. A host that is gone, or a network
//! that swallows packets, refuses nothing: there the election timeout decides, as ever.

use std::time::Duration;

use openraft::raft::TransferLeaderRequest;

use super::handle::{RaftHandle, Standing};
use super::types::Vote;
use crate::links::PeerLinks;

/// How long after the time before, in milliseconds, the port of a leader that hung up is asked: a process that dies may
/// lose its streams a little before its port, and one that comes back answers.
const ASKED_AFTER_MS: [u64; 6] = [0, 5, 10, 20, 40, 80];

/// For how long it is asked. A network that says nothing says nothing about the process either.
const ASKED_AT_MOST: Duration = Duration::from_millis(300);

/// How long a voter waits for those before it, and then between its tries: for a pre-vote and a vote there and back,
/// each with a flush. In this order two voters do not split the votes.
const TURN: Duration = Duration::from_millis(40);

/// How often a voter stands. The others may have noticed later, or may lack log entries; after that its election
/// timeout is near.
const TRIES: u32 = 3;

impl RaftHandle {
    /// To be called when `leader` ended a stream of appends. Resolves when somebody else leads, the leader turns out to
    /// be there, or it is left to the election timeout; within a second.
    pub async fn hung_up(&self, leader: u64, links: &PeerLinks) {
        // One at a time: a leader has several streams.
        let Ok(_asking) = self.absence().try_lock() else { return };
        let mut standing = self.standing();
        let Standing { leader: Some((known, member)), term, .. } = standing.borrow_and_update().clone()
        else {
            return;
        };
        if known != leader || leader == self.me() || !is_gone(&member.peer_address, links).await {
            return;
        }
        // openraft (0.10.0-alpha.37) lets go of a leader's lease when that hands over, to whomever. Here to itself.
        let vote = Vote::new_committed(term, leader);
        if self.raft().handle_transfer_leader(TransferLeaderRequest::new(vote, leader, None)).await.is_err() {
            return; // Raft has stopped
        }
        tracing::info!(leader = member.name, "the leader's process is gone");

        let voters = self.roll().voters;
        let Some(rank) = voters.iter().filter(|id| **id != leader).position(|id| *id == self.me()) else {
            return;
        };
        let still =
            |now: &Standing| now.term == term && now.leader.as_ref().is_some_and(|(id, _)| *id == leader);
        let turns = u32::try_from(rank).unwrap_or(u32::MAX).saturating_add(1);
        let mut wait = TURN.saturating_mul(turns) - TURN / 2;
        for _ in 0..TRIES {
            let settled = tokio::time::timeout(wait, standing.wait_for(|now| !still(now))).await.is_ok();
            if settled || self.disk_is_low() || self.raft().trigger().elect(true).await.is_err() {
                return;
            }
            wait = TURN * 2;
        }
    }
}

/// Whether nobody listens there.
async fn is_gone(address: &str, links: &PeerLinks) -> bool {
    let asked = async {
        for wait in ASKED_AFTER_MS {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            if links.is_refused(address).await {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(ASKED_AT_MOST, asked).await.unwrap_or(false)
}
