//! Whether the lock tables of the nodes are still one table.
//!
//! A table keeps a running hash of all that it did (see `lock-table`, `trail.rs`). At every [`MARK_EVERY`]th log entry
//! each node notes it, and the leader sends its newest note with its heartbeats and appends. A follower compares when it
//! has applied the same entry. Once two tables differ their hashes differ from then on, so that what is missed at one
//! mark is found at the next.
//!
//! A difference is a broken invariant: a disk or a memory that changed bits, or a bug. Two nodes cannot tell which of
//! them is wrong, and a lock service must not guess: the follower stops.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use raftlock_proto::peer::Mark;
use tokio::sync::watch;

/// Log entries between two marks. A cluster whose only entries are its ticks gets there in under a minute.
pub const MARK_EVERY: u64 = 256;

/// Marks kept, of this node's own and of those the leader announced: a follower that is up to 4,096 entries behind or
/// ahead of what it hears still compares.
const MARKS_KEPT: usize = 16;

/// Two tables that are not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// After which log entry.
    pub index: u64,
    /// The leader that said otherwise.
    pub leader: u64,
    /// This node's hash.
    pub ours: u64,
    /// The leader's.
    pub theirs: u64,
}

/// The marks of this node and of its leaders.
#[derive(Clone, Debug)]
pub struct Marks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    diverged: watch::Sender<Option<Divergence>>,
}

#[derive(Debug, Default)]
struct Kept {
    own: VecDeque<Mark>,
    /// By leaders, of entries that this node had not applied yet.
    announced: VecDeque<(u64, Mark)>,
}

impl Marks {
    /// None yet.
    pub fn new() -> Marks {
        Marks(Arc::new(Shared { kept: Mutex::default(), diverged: watch::Sender::new(None) }))
    }

    /// This node has applied the entry at `index`, and its table came to `trail`.
    pub fn applied(&self, index: u64, trail: u64) {
        let mut kept = self.lock();
        bounded_push(&mut kept.own, Mark { index, trail });
        let announced: Vec<(u64, Mark)> =
            kept.announced.iter().filter(|(_, mark)| mark.index == index).copied().collect();
        kept.announced.retain(|(_, mark)| mark.index > index);
        drop(kept);
        for (leader, theirs) in announced {
            self.compare(leader, Mark { index, trail }, theirs);
        }
    }

    /// The table was replaced by a snapshot's: what was noted of the old one is of no use.
    pub fn forget_own(&self) {
        self.lock().own.clear();
    }

    /// A leader says what its table came to.
    pub fn announced(&self, leader: u64, mark: Mark) {
        let mut kept = self.lock();
        let own = kept.own.iter().find(|own| own.index == mark.index).copied();
        let is_ahead = kept.own.back().is_none_or(|newest| newest.index < mark.index);
        if own.is_none() && is_ahead && !kept.announced.contains(&(leader, mark)) {
            bounded_push(&mut kept.announced, (leader, mark));
        }
        drop(kept);
        if let Some(own) = own {
            self.compare(leader, own, mark);
        }
    }

    /// This node's newest mark, to be announced.
    pub fn newest(&self) -> Option<Mark> {
        self.lock().own.back().copied()
    }

    /// Turns to the first divergence, and stays there.
    pub fn diverged(&self) -> watch::Receiver<Option<Divergence>> {
        self.0.diverged.subscribe()
    }

    fn compare(&self, leader: u64, own: Mark, theirs: Mark) {
        if own.trail != theirs.trail {
            let found = Divergence { index: own.index, leader, ours: own.trail, theirs: theirs.trail };
            self.0.diverged.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(found);
                is_first
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn bounded_push<T>(ring: &mut VecDeque<T>, value: T) {
    if ring.len() == MARKS_KEPT {
        ring.pop_front();
    }
    ring.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(index: u64, trail: u64) -> Mark {
        Mark { index, trail }
    }

    fn found(marks: &Marks) -> Option<u64> {
        marks.diverged().borrow().map(|divergence| divergence.index)
    }

    #[test]
    fn equal_tables_are_not_reported_whoever_is_first() {
        let marks = Marks::new();
        marks.applied(256, 7);
        marks.announced(1, mark(256, 7));
        marks.announced(1, mark(512, 8));
        marks.applied(512, 8);
        assert_eq!((found(&marks), marks.newest()), (None, Some(mark(512, 8))));
    }

    #[test]
    fn a_difference_is_found_whoever_is_first() {
        let ahead = Marks::new();
        ahead.applied(256, 7);
        ahead.announced(1, mark(256, 6));
        assert_eq!(found(&ahead), Some(256));
        let behind = Marks::new();
        behind.announced(1, mark(256, 6));
        assert_eq!(found(&behind), None, "not applied yet");
        behind.applied(256, 7);
        assert_eq!(found(&behind), Some(256));
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_forgotten_is_not_compared() {
        let marks = Marks::new();
        for at in 1..=100 {
            marks.announced(1, mark(at * MARK_EVERY, at));
            marks.announced(1, mark(at * MARK_EVERY, at));
        }
        assert_eq!(marks.lock().announced.len(), MARKS_KEPT);
        marks.applied(MARK_EVERY, 0);
        assert_eq!(found(&marks), None, "that announcement made way for newer ones");
        marks.forget_own();
        marks.announced(1, mark(MARK_EVERY, 1));
        assert_eq!(found(&marks), None);
    }
}
