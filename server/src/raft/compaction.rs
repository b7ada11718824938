//! When a node takes a snapshot, and what it lets go of after one.
//!
//! A snapshot is due when the log behind the last one would take a restart too long: at `log_bytes`, or half the
//! last snapshot's size if that is more, so that a large table is not written over and over. Each node draws its own
//! share on top, so that the nodes of a cluster do not do it at once. One generation of the log stays behind the
//! snapshot: a follower that was away for a moment is served from it. While a snapshot travels to a follower, no new
//! one is begun and nothing is let go.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::handle::RaftHandle;
use crate::store::Store;

/// How often it is looked at. A log of 64 MiB takes a busy leader a few seconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs until the node stops or its Raft does.
pub async fn run(raft: RaftHandle, store: Store, log_bytes: u64, stop: CancellationToken) {
    let me = *raft.raft().node_id();
    let mut covered_before = raft.positions().snapshot;
    let mut covered = covered_before;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if raft.transfers().any() {
            continue;
        }
        let positions = raft.positions();
        if positions.snapshot > covered {
            (covered_before, covered) = (covered, positions.snapshot);
            let current: Vec<String> =
                store.current_snapshot().map(|pointer| pointer.id).into_iter().collect();
            if store.keep_snapshots(&current).await.is_err() {
                return; // the store failed, and the node stops for it
            }
            if covered_before > positions.purged && raft.purge(covered_before).await.is_err() {
                return;
            }
        }
        let due = with_share(log_bytes.max(super::snapshot::current_bytes(&store) / 2), me);
        let new_entries = positions.applied > positions.snapshot;
        if new_entries && raft.machine().bytes_since_snapshot() >= due && raft.take_snapshot().await.is_err()
        {
            return;
        }
    }
}

/// `bytes` and up to a quarter more, the same on each start of a node and different between nodes.
fn with_share(bytes: u64, node: u64) -> u64 {
    bytes.saturating_add(bytes / 4 / 255 * (node >> 56))
}

#[cfg(test)]
mod tests {
    use super::with_share;

    #[test]
    fn nodes_take_their_snapshots_at_different_times() {
        let due = |node: u64| with_share(64 << 20, node);
        assert_eq!(due(0), 64 << 20);
        assert!(due(u64::MAX) > due(1 << 60) && due(1 << 60) > due(0));
        assert!(due(u64::MAX) <= 80 << 20, "at most a quarter more");
    }
}
