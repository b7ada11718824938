//! What a node does when its disk has too little room, long before a write fails.
//!
//! A write that finds the disk full ends the node (see `store`). So below the low mark the node takes no new locks and
//! sessions, which leaves what is there to renewals and releases; it leaves elections to nodes that have room, and as
//! the leader hands its office to one. Below the critical mark it deletes its ballast file, so that both files can
//! come to rest. Above the high mark all is as before. The disk is asked here, once in a while, and never by a request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::proposer::Proposer;
use crate::raft::RaftHandle;
use crate::store::{FreeSpace, Space, SpaceGauge, Store, Watermarks};

/// How often the disk is asked. At full speed a node writes some ten megabytes meanwhile; the low mark is far above.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// For so many looks without a leader a node that is low leaves the election to others. Then it stands itself: a
/// cluster whose every node is low must still serve renewals and releases. Others need one or two.
const LOOKS_WITHOUT_LEADER_MAX: u32 = 3;

/// How long to wait for the next leader before the disk is looked at again.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(1);

/// How long after a hand-over was tried it is not tried again: the office came back, so there is a reason.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(30);

/// Whether what a peer last said of its disk still counts: it says it with each answer to a heartbeat.
const PEER_WORD_COUNTS: Duration = Duration::from_secs(2);

/// Whether this node is low, and which others are, as far as their answers told this one.
#[derive(Debug, Default)]
pub struct DiskRoom {
    low: AtomicBool,
    free_bytes: AtomicU64,
    /// When a leader was last heard of.
    leader_heard: Mutex<Option<Instant>>,
    /// By node id; at most one for each member that ever answered this leader.
    peers: Mutex<BTreeMap<u64, (bool, Instant)>>,
}

impl DiskRoom {
    /// Whether this node takes no new locks.
    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// What was free when the disk was last asked.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// A leader's append or heartbeat came.
    pub fn leader_spoke(&self) {
        *self.leader_heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Instant::now());
    }

    /// Whether one came since the disk was last looked at. openraft goes on naming a leader that is gone.
    fn leader_speaks(&self) -> bool {
        let heard = self.leader_heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        heard.is_some_and(|at| at.elapsed() < LOOK_EVERY)
    }

    /// A peer answered, and said whether it is low.
    pub fn peer_said(&self, peer: u64, low: bool) {
        let mut peers = self.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        peers.insert(peer, (low, Instant::now()));
    }

    /// Whether a peer answered just now and has room.
    pub fn peer_has_room(&self, peer: u64) -> bool {
        let peers = self.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        peers.get(&peer).is_some_and(|(low, at)| !low && at.elapsed() < PEER_WORD_COUNTS)
    }

    fn seen(&self, space: Space, low: bool) {
        self.free_bytes.store(space.free_bytes, Ordering::Relaxed);
        self.low.store(low, Ordering::Relaxed);
    }
}

/// Looks after the disk of a node until `stop`. `log_bytes` is what the log grows by between two snapshots.
pub async fn run(
    room: Arc<DiskRoom>,
    raft: RaftHandle,
    proposer: Proposer,
    store: Store,
    free: Arc<dyn FreeSpace>,
    log_bytes: u64,
    stop: CancellationToken,
) {
    let mut gauge = SpaceGauge::default();
    let mut failing = false;
    let mut ballast_gone = false;
    let mut looks_without_leader = 0;
    let mut handed_over: Option<Instant> = None;
    loop {
        match free.space(&store) {
            Ok(space) => {
                let marks = Watermarks::of(space.total_bytes, log_bytes, raft.snapshot_bytes());
                let (was, low) = (room.is_low(), gauge.observe(space, marks));
                room.seen(space, low);
                report(was, low, space, marks);
                if space.free_bytes < marks.critical_bytes && !ballast_gone {
                    ballast_gone = true;
                    drop_ballast(&store, space);
                }
                failing = false;
            }
            // The next write will tell whether the disk failed; until then nothing changes.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the disk's free space cannot be asked for");
            }
            Err(_) => {}
        }

        let low = room.is_low();
        let led = raft.standing().borrow().office.is_some() || room.leader_speaks();
        looks_without_leader = if led { 0 } else { looks_without_leader + 1 };
        raft.stand_for_election(!low || looks_without_leader > LOOKS_WITHOUT_LEADER_MAX);
        let may_hand_over = handed_over.is_none_or(|at| at.elapsed() > HAND_OVER_AGAIN);
        if low && may_hand_over && raft.can_give_office_to_room() {
            handed_over = Some(Instant::now());
            tracing::warn!("the leader's disk is low: it hands its office to a node that has room");
            proposer.hand_over(&raft, None, HAND_OVER_LIMIT).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn report(was: bool, low: bool, space: Space, marks: Watermarks) {
    let Space { free_bytes, total_bytes } = space;
    match (was, low) {
        (false, true) => tracing::warn!(
            free_bytes,
            total_bytes,
            low_bytes = marks.low_bytes,
            "the disk is low: no new locks and sessions here, and no candidacy, until more is free"
        ),
        (true, false) => tracing::info!(free_bytes, "the disk has room again: new locks are taken"),
        _ => {}
    }
}

fn drop_ballast(store: &Store, space: Space) {
    match store.drop_ballast() {
        Ok(true) => tracing::error!(
            free_bytes = space.free_bytes,
            "the disk is nearly full: the ballast file was deleted; free space now, the next full disk ends this node"
        ),
        Ok(false) => tracing::error!(
            free_bytes = space.free_bytes,
            "the disk is nearly full: free space now, a full disk ends this node"
        ),
        Err(error) => tracing::error!(%error, "the disk is nearly full, and the ballast file is still there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_peer_that_answered_just_now_has_room() {
        let room = DiskRoom::default();
        assert!(!room.peer_has_room(1), "nobody heard of it");
        room.peer_said(1, false);
        room.peer_said(2, true);
        assert!(room.peer_has_room(1) && !room.peer_has_room(2));
        tokio::time::advance(PEER_WORD_COUNTS).await;
        assert!(!room.peer_has_room(1), "it may be gone");
    }
}
