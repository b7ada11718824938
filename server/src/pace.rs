//! Whether cluster time keeps pace with this node's clock: said once at each change, shown in `status`, decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Pace, PaceGauge, TICK};
use crate::raft::RaftHandle;

/// A node that has more committed entries than this still to apply catches up, and its table's time leaps with it.
const BEHIND_MAX: u64 = 64;

/// What was last said, for `status`.
#[derive(Debug, Default)]
pub struct PaceReport(AtomicU8);

impl PaceReport {
    /// In a word; empty while nothing can be said.
    pub fn word(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            1 => "steady",
            2 => "slow",
            3 => "fast",
            _ => "",
        }
    }

    fn set(&self, pace: Option<Pace>) {
        let number = match pace {
            None => 0,
            Some(Pace::Steady) => 1,
            Some(Pace::Slow) => 2,
            Some(Pace::Fast) => 3,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}

/// Compares until `stop`.
pub async fn run(report: Arc<PaceReport>, raft: RaftHandle, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let mut gauge = PaceGauge::default();
    let mut last = None;
    let mut term = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let standing = raft.standing().borrow().clone();
        let same_term = std::mem::replace(&mut term, standing.term) == standing.term;
        let leader = standing.leader.filter(|_| same_term);
        let (now, moves) = raft.machine().glance(|table| (table.now(), table.has_sessions()));
        let positions = raft.positions();
        let behind = positions.committed.saturating_sub(positions.applied) > BEHIND_MAX;
        let told = leader.is_some() && moves && !behind;
        let cluster = told.then(|| Duration::from_millis(now.get()));
        let said = gauge.observe(clock.monotonic(), cluster);
        if cluster.is_none() {
            last = None;
            report.set(None);
        }
        let Some(pace) = said else { continue };
        report.set(Some(pace));
        let leader = leader.map(|(_, member)| member.name).unwrap_or_default();
        match pace {
            _ if last == Some(pace) => {}
            Pace::Slow => tracing::warn!(
                leader,
                "cluster time lags behind this node's clock: the leader stalls or cannot commit; leases last longer"
            ),
            Pace::Fast => tracing::warn!(
                leader,
                "cluster time runs ahead of this node's clock: check the clocks of the leader and of this machine; \
                 leases may end early"
            ),
            Pace::Steady if last.is_some() => tracing::info!(leader, "cluster time is steady again"),
            Pace::Steady => {}
        }
        last = Some(pace);
    }
}
