//! The cluster: a leader that closes batches, and the log that decides.

use crate::{CLAMP, Lease, Rule, TTL};

/// What a leader has proposed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// When it was closed.
    closed: u8,
    /// What it adds to cluster time.
    dt: u8,
    /// Of the holder, by number.
    renewals: Vec<u8>,
}

/// Batches under way at a time.
const PROPOSED_MAX: usize = 2;

/// The leader, and the state that is the same on all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// Leader changes that may still come.
    pub elections: u8,
    /// When the leader closed its last batch; without one yet, nothing.
    closed: Option<u8>,
    /// Renewals that the leader has and that are in no batch.
    pub(crate) arrived: Vec<u8>,
    /// Closed, not committed; the oldest first.
    pub proposed: Vec<Batch>,
    /// Cluster time.
    time: u8,
    /// When the holder's lease ends, in cluster time, and since when it counts, in real time; `None` once it has ended,
    /// and the lock is the other's.
    lease: Option<(u8, u8)>,
    /// The highest renewal that it counts from.
    covered: u8,
    /// A lease ended before its time had really passed.
    pub ended_early: bool,
}

impl Cluster {
    pub(crate) fn new() -> Cluster {
        Cluster {
            elections: 1,
            closed: None,
            arrived: Vec::new(),
            proposed: Vec::new(),
            time: 0,
            lease: Some((TTL, 0)),
            covered: 0,
            ended_early: false,
        }
    }

    pub(crate) fn may_close(&self) -> bool {
        self.proposed.len() < PROPOSED_MAX
    }

    /// Time is read after the batch is closed: what has arrived is in it.
    pub(crate) fn close(&mut self, rules: Lease, now: u8) {
        let renewals = std::mem::take(&mut self.arrived);
        let dt = match self.closed {
            None => 0,
            Some(before) => (now - before).min(CLAMP),
        };
        self.closed =
            Some(match (rules.has(Rule::Reanchor) && rules.has(Rule::TimeFromBatches), self.closed) {
                (false, Some(before)) => before + dt,
                _ => now,
            });
        self.proposed.push(Batch { closed: now, dt, renewals });
    }

    /// Applies the oldest batch: time, then renewals, then what is due, then who waits. Gives the answer.
    pub(crate) fn commit(&mut self, now: u8) -> Option<(u8, u8, bool)> {
        let Batch { closed, dt, renewals } = self.proposed.remove(0);
        self.time += dt;
        let (end, since) = self.lease?;
        let newest = renewals.last().copied();
        let (end, since) = newest.map_or((end, since), |_| (self.time + TTL, closed));
        self.covered = self.covered.max(newest.unwrap_or(0));
        self.lease = (end > self.time).then_some((end, since));
        if self.lease.is_none() {
            self.ended_early |= now - since < TTL;
            return Some((1, 0, true));
        }
        newest.map(|_| (0, self.covered, true))
    }

    /// Another leader: it has no renewals yet, and its first batch adds no time.
    pub(crate) fn elect(&mut self, rules: Lease, now: u8, survives: bool) {
        self.elections -= 1;
        self.arrived.clear();
        let again = self.proposed.clone();
        if !survives {
            self.proposed.clear();
        }
        if !rules.has(Rule::OneLeaderPerBatch) && survives {
            self.proposed.extend(again);
        }
        self.closed = (!rules.has(Rule::TimeFromBatches)).then_some(now);
    }
}
