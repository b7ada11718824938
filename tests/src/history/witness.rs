//! What clients saw, held against the log: the holders of every exclusive lock over time, as the replicated state has
//! them. A change counts from when anybody applied it first; by then it was committed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checks::was_paused;
use super::{State, Violation};

/// Every exclusive lock over time.
#[derive(Clone, Debug, Default)]
pub struct Timelines {
    /// By lock: every change, in order.
    changes: BTreeMap<String, Vec<(Duration, Seen)>>,
    /// By token: when it held nothing any more.
    over: BTreeMap<u64, Duration>,
}

/// A lock as it is from one change to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    token: Option<u64>,
    is_waited_for: bool,
}

impl Timelines {
    /// Who holds a lock from now on, and whether somebody waits for it, be it for another lock besides; the same as before
    /// is no change.
    pub fn holds(&mut self, at: Duration, lock: &str, token: Option<u64>, is_waited_for: bool) {
        let changes = self.changes.entry(lock.to_owned()).or_default();
        let seen = Seen { token, is_waited_for };
        if changes.last().map(|(_, seen)| *seen).unwrap_or_default() != seen {
            changes.push((at, seen));
        }
    }

    /// Somebody waits for a lock, and whoever holds it goes on.
    pub fn is_waited_for(&mut self, at: Duration, lock: &str) {
        let token =
            self.changes.get(lock).and_then(|changes| changes.last()).and_then(|(_, seen)| seen.token);
        self.holds(at, lock, token, true);
    }

    /// A token holds nothing any more.
    pub fn ends(&mut self, at: Duration, token: u64) {
        self.over.entry(token).or_insert(at);
    }

    /// Whether it was so at some moment of a time, ends included.
    fn ever(&self, lock: &str, from: Duration, to: Duration, is_so: impl Fn(Seen) -> bool) -> bool {
        let changes = self.changes.get(lock).map(Vec::as_slice).unwrap_or_default();
        // Whatever holds at `from`, and all that comes until `to`. What ended just then counts too.
        let before = changes.partition_point(|(at, _)| *at < from);
        let at_first = before.checked_sub(1).map(|last| changes[last].1).unwrap_or_default();
        is_so(at_first)
            || changes[before..].iter().take_while(|(at, _)| *at <= to).any(|(_, seen)| is_so(*seen))
    }
}

pub(super) fn beliefs(state: &State, log: &Timelines) -> Result<(), Violation> {
    for hold in &state.holds {
        let Some(over) = log.over.get(&hold.token).copied() else { continue };
        if hold.ended.is_none_or(|ended| ended > over) && !was_paused(state, &hold.client, over) {
            let seen = format!("{hold:?} was believed to be held, and was over at {over:?}");
            return Err(Violation { check: "H1", seen });
        }
    }
    Ok(())
}

pub(super) fn leases(state: &State, log: &Timelines) -> Result<(), Violation> {
    for hold in state.holds.iter().filter(|hold| !hold.gave_back) {
        let Some(over) = log.over.get(&hold.token).copied() else { continue };
        if over < hold.promised {
            let seen = format!("the lease of {hold:?} ended at {over:?}");
            return Err(Violation { check: "H7", seen });
        }
    }
    Ok(())
}

pub(super) fn answers(state: &State, log: &Timelines) -> Result<(), Violation> {
    let wrong = |what: String| Err(Violation { check: "H4", seen: what });
    for read in &state.reads {
        if !log.ever(&read.lock, read.asked, read.answered, |seen| seen.token == read.token) {
            return wrong(format!("{read:?} was never so meanwhile"));
        }
    }
    for refusal in &state.refusals {
        if !log.ever(&refusal.lock, refusal.asked, refusal.answered, |seen| {
            seen.token.is_some() || seen.is_waited_for
        }) {
            return wrong(format!("{refusal:?}, and it was free all the while"));
        }
    }
    for hold in &state.holds {
        if !log.ever(&hold.lock, hold.asked, hold.granted, |seen| seen.token == Some(hold.token)) {
            return wrong(format!("{hold:?} was not granted meanwhile"));
        }
        if let Some(released) = hold.released
            && log.over.get(&hold.token).is_none_or(|over| *over > released)
        {
            return wrong(format!("{hold:?} was answered as released, and was not"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{History, HoldId};
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A lock that is held under 1 from 10 to 20, and under 2 from 20 on.
    fn log() -> Timelines {
        let mut log = Timelines::default();
        log.holds(at(10), "k", Some(1), false);
        log.holds(at(20), "k", None, false);
        log.holds(at(20), "k", Some(2), false);
        log.ends(at(20), 1);
        log
    }

    /// A history whose clock stands where it is put.
    fn history() -> (History, impl Fn(u64)) {
        let clock = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let read = clock.clone();
        let now = move || at(read.load(std::sync::atomic::Ordering::Relaxed));
        (History::with_clock(now), move |ms| clock.store(ms, std::sync::atomic::Ordering::Relaxed))
    }

    fn grant(history: &History, set: &impl Fn(u64), token: u64, asked: u64, granted: u64) -> HoldId {
        set(granted);
        history.granted("a", "k", token, at(asked))
    }

    fn fired(history: &History) -> Option<&'static str> {
        history.check_against(&log()).err().map(|violation| violation.check)
    }

    #[test]
    fn answers_that_were_true_at_some_moment_pass() {
        let (history, set) = history();
        let hold = grant(&history, &set, 1, 5, 12);
        set(18);
        history.releasing(hold);
        set(21);
        history.released(hold);
        for (token, asked, answered) in
            [(None, 0, 10), (Some(1), 9, 10), (Some(1), 20, 30), (Some(2), 15, 20)]
        {
            set(answered);
            history.read("b", "k", token, at(asked));
        }
        set(11);
        history.refused("b", "k", at(10));
        assert_eq!(fired(&history), None);
    }

    #[test]
    fn answers_that_never_were_true_are_seen() {
        for (token, asked, answered) in [(Some(1), 0, 9), (Some(1), 21, 30), (None, 11, 19), (Some(3), 0, 30)]
        {
            let (history, set) = history();
            set(answered);
            history.read("b", "k", token, at(asked));
            assert_eq!(fired(&history), Some("H4"), "{token:?} from {asked} to {answered}");
        }
        let (refused, set) = history();
        set(9);
        refused.refused("b", "k", at(0));
        assert_eq!(fired(&refused), Some("H4"));

        let (early, set) = history();
        grant(&early, &set, 2, 0, 15);
        assert_eq!(fired(&early), Some("H4"));

        let (kept, set) = history();
        let hold = grant(&kept, &set, 1, 5, 12);
        set(13);
        kept.releasing(hold);
        set(14);
        kept.released(hold);
        assert_eq!(fired(&kept), Some("H4"));
    }

    #[test]
    fn who_believes_longer_than_the_log_is_seen() {
        let (history, set) = history();
        grant(&history, &set, 1, 5, 12);
        assert_eq!(fired(&history), Some("H1"));
        history.paused_at("a", at(15));
        assert_eq!(fired(&history), None, "it is excused");
    }

    #[test]
    fn a_lease_that_ends_early_is_seen_unless_it_was_given_back() {
        let (history, set) = history();
        let hold = grant(&history, &set, 1, 5, 12);
        history.promised(hold, at(9));
        history.died("a", at(13));
        assert_eq!(fired(&history), Some("H7"));

        let (given, set) = self::history();
        let hold = grant(&given, &set, 1, 5, 12);
        given.promised(hold, at(9));
        given.releasing(hold);
        assert_eq!(fired(&given), None);
    }
}
