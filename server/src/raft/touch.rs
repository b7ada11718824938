//! Whether a leader still hears from its quorum, and who could follow it.
//!
//! openraft keeps a leader that lost its quorum in its place until it hears of another: it refuses new entries, and
//! what it has appended waits. Whoever asked must not wait with it, so such a leader leaves its *office*, and takes up
//! a new one if the quorum comes back to it.

use std::time::Duration;

use tokio::time::Instant;

use super::types::LeaderId;

/// How many of the longest election timeouts a leader stays in office without a word from a quorum. After one,
/// openraft takes no entries and others may have elected a leader; the rest is patience, because leaving costs every
/// client of this node a resume.
const ELECTIONS_IN_SILENCE: u32 = 3;

/// A leader's touch with its quorum.
#[derive(Debug)]
pub struct Touch {
    patience: Duration,
    leads_since: Option<(LeaderId, Instant)>,
    lost: bool,
    losses: u64,
}

impl Touch {
    /// For nodes whose election timeout is at most `election_max`.
    pub fn new(election_max: Duration) -> Self {
        Touch { patience: election_max * ELECTIONS_IN_SILENCE, leads_since: None, lost: false, losses: 0 }
    }

    /// How long `leader` may stay in office if it hears nothing more; zero: it must leave. `silence` is how long ago
    /// a quorum answered; `None`: not yet.
    pub fn left(&mut self, leader: LeaderId, silence: Option<Duration>) -> Duration {
        let now = Instant::now();
        let since = match self.leads_since {
            Some((known, since)) if known == leader => since,
            _ => now,
        };
        self.leads_since = Some((leader, since));
        let left = self.patience.saturating_sub(silence.unwrap_or(now - since));
        self.losses += u64::from(left.is_zero() && !self.lost);
        self.lost = left.is_zero();
        left
    }

    /// How often the quorum was lost. An office from before a loss is not the one after it, even if nobody looked
    /// in between.
    pub fn losses(&self) -> u64 {
        self.losses
    }
}

/// A voter that could take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heir {
    pub id: u64,
    /// Its disk is not low, as it said itself just now.
    pub has_room: bool,
    /// How long ago it last answered.
    pub silence: Option<Duration>,
    /// How far its log is known to reach.
    pub matched: Option<u64>,
}

/// What can be done about a hand-over now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// This one has the whole log.
    Ready(u64),
    /// Somebody is alive, and not there yet.
    Behind,
    /// Nobody is alive.
    Nobody,
}

/// Who may be handed the leadership: only a voter that answered within `fresh` and has the whole log, or the cluster
/// would stand still until an election finds another.
pub fn succession(heirs: &[Heir], last_log: u64, fresh: Duration) -> Succession {
    let alive = || heirs.iter().filter(|heir| heir.silence.is_some_and(|silence| silence <= fresh));
    let ready = alive()
        .filter(|heir| heir.matched == Some(last_log))
        .min_by_key(|heir| (!heir.has_room, heir.silence));
    match ready {
        Some(heir) => Succession::Ready(heir.id),
        None if alive().next().is_some() => Succession::Behind,
        None => Succession::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELECTION: Duration = Duration::from_millis(600);

    fn leader(term: u64) -> LeaderId {
        LeaderId { term, node_id: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_hears_nothing_leaves_and_one_that_does_stays() {
        let mut touch = Touch::new(ELECTION);
        assert_eq!(touch.left(leader(1), Some(Duration::ZERO)), 3 * ELECTION);
        assert_eq!(touch.left(leader(1), Some(ELECTION)), 2 * ELECTION);
        assert_eq!(touch.losses(), 0);
        for _ in 0..2 {
            assert_eq!(touch.left(leader(1), Some(4 * ELECTION)), Duration::ZERO);
            assert_eq!(touch.losses(), 1, "one silence is one loss");
        }
        assert_eq!(touch.left(leader(1), Some(Duration::ZERO)), 3 * ELECTION);
        assert_eq!(touch.left(leader(1), Some(3 * ELECTION)), Duration::ZERO);
        assert_eq!(touch.losses(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_never_answered_has_no_more_time_than_others() {
        let mut touch = Touch::new(ELECTION);
        assert_eq!(touch.left(leader(1), None), 3 * ELECTION);
        tokio::time::advance(ELECTION).await;
        assert_eq!(touch.left(leader(1), None), 2 * ELECTION);
        tokio::time::advance(2 * ELECTION).await;
        assert_eq!(touch.left(leader(1), None), Duration::ZERO);
        assert_eq!(touch.left(leader(2), None), 3 * ELECTION, "another term begins anew");
    }

    #[test]
    fn leadership_goes_to_a_live_voter_with_the_whole_log_only() {
        let fresh = Duration::from_millis(300);
        let heir = |id, silence: Option<u64>, matched| Heir {
            id,
            has_room: true,
            silence: silence.map(Duration::from_millis),
            matched: Some(matched),
        };
        let dead = heir(1, Some(2_000), 90);
        let never_heard = heir(2, None, 90);
        let behind = heir(3, Some(20), 89);
        assert_eq!(succession(&[dead, never_heard, behind], 90, fresh), Succession::Behind);
        let ready = heir(4, Some(50), 90);
        assert_eq!(succession(&[dead, behind, ready, never_heard], 90, fresh), Succession::Ready(4));
        let quicker = heir(5, Some(10), 90);
        assert_eq!(succession(&[ready, quicker, dead], 90, fresh), Succession::Ready(5));
        let low = Heir { has_room: false, ..quicker };
        assert_eq!(succession(&[low, ready], 90, fresh), Succession::Ready(4));
        assert_eq!(succession(&[low, dead], 90, fresh), Succession::Ready(5), "better than nobody");
        assert_eq!(succession(&[dead, never_heard], 90, fresh), Succession::Nobody);
        assert_eq!(succession(&[], 90, fresh), Succession::Nobody);
    }
}
