//! What clients saw, held against the log: the holders of every exclusive lock over time, as the replicated state has
//! them. A change counts from when anybody applied it first; by then it was committed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checks::was_paused;
use super::{Refusal, State, Violation};

/// By lock: every change of its holder's token, in order.
#[derive(Clone, Debug, Default)]
pub struct Timelines {
    changes: BTreeMap<String, Vec<(Duration, Option<u64>)>>,
    /// By lock: whether anybody waits, in the same way.
    queues: BTreeMap<String, Vec<(Duration, bool)>>,
    /// By token: when it held nothing any more.
    over: BTreeMap<u64, Duration>,
}

impl Timelines {
    /// Who holds a lock from now on; the same as before is no change.
    pub fn holds(&mut self, at: Duration, lock: &str, token: Option<u64>) {
        let changes = self.changes.entry(lock.to_owned()).or_default();
        if changes.last().and_then(|(_, token)| *token) != token {
            changes.push((at, token));
        }
    }

    /// Whether anybody waits for a lock from now on.
    pub fn waits(&mut self, at: Duration, lock: &str, anybody: bool) {
        let changes = self.queues.entry(lock.to_owned()).or_default();
        if changes.last().is_some_and(|(_, last)| *last) != anybody {
            changes.push((at, anybody));
        }
    }

    /// A token holds nothing any more.
    pub fn ends(&mut self, at: Duration, token: u64) {
        self.over.entry(token).or_insert(at);
    }

    /// Whether its holder was so at some moment of a time, ends included.
    fn ever(&self, lock: &str, from: Duration, to: Duration, is_so: impl Fn(Option<u64>) -> bool) -> bool {
        ever(self.changes.get(lock), from, to, is_so)
    }

    /// Whether somebody held it or waited for it at some moment of a time.
    fn ever_busy(&self, lock: &str, from: Duration, to: Duration) -> bool {
        self.ever(lock, from, to, |token| token.is_some()) || ever(self.queues.get(lock), from, to, |any| any)
    }
}

/// Whatever holds at `from`, and all that comes until `to`. What ended just then counts too.
fn ever<T: Copy + Default>(
    changes: Option<&Vec<(Duration, T)>>,
    from: Duration,
    to: Duration,
    is_so: impl Fn(T) -> bool,
) -> bool {
    let changes = changes.map(Vec::as_slice).unwrap_or_default();
    let before = changes.partition_point(|(at, _)| *at < from);
    let at_first = before.checked_sub(1).map(|last| changes[last].1).unwrap_or_default();
    is_so(at_first) || changes[before..].iter().take_while(|(at, _)| *at <= to).any(|(_, one)| is_so(*one))
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
        if !log.ever(&read.lock, read.asked, read.answered, |token| token == read.token) {
            return wrong(format!("{read:?} was never so meanwhile"));
        }
    }
    for refusal in &state.refusals {
        let Refusal { lock, token, asked, answered, .. } = refusal;
        let was_so = match token {
            Some(_) => log.ever(lock, *asked, *answered, |holder| holder == *token),
            None => log.ever_busy(lock, *asked, *answered),
        };
        if !was_so {
            return wrong(format!("{refusal:?} was never so meanwhile"));
        }
    }
    for hold in &state.holds {
        if !log.ever(&hold.lock, hold.asked, hold.granted, |token| token == Some(hold.token)) {
            return wrong(format!("{hold:?} was not granted meanwhile"));
        }
        let Some(released) = hold.released else { continue };
        let over = log.over.get(&hold.token).copied();
        if over.is_none_or(|over| over > released || hold.ended.is_some_and(|sent| over < sent)) {
            return wrong(format!("{hold:?} was answered as released, and was over at {over:?}"));
        }
    }
    for extension in &state.extensions {
        let (hold, Some(answered)) = (&state.holds[extension.hold], extension.answered) else { continue };
        if !log.ever(&hold.lock, extension.asked, answered, |token| token == Some(hold.token)) {
            return wrong(format!("{extension:?} was answered, and {hold:?} was over"));
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
        log.holds(at(10), "k", Some(1));
        log.holds(at(20), "k", None);
        log.holds(at(20), "k", Some(2));
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
        history.refused("b", "k", None, at(10));
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
        refused.refused("b", "k", None, at(0));
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
    fn refusals_and_extensions_are_true_at_some_moment() {
        let refused = |token, queued| {
            let (history, set) = history();
            set(9);
            history.refused("b", "k", token, at(0));
            let mut log = log();
            log.waits(at(5), "k", queued);
            history.check_against(&log).err().map(|violation| violation.check)
        };
        assert_eq!(refused(None, true), None, "another was before it");
        assert_eq!(refused(None, false), Some("H4"), "it was free");
        assert_eq!(refused(Some(1), true), Some("H4"), "nobody held it yet");

        let extended_at = |ms| {
            let (history, set) = history();
            let hold = grant(&history, &set, 1, 5, 12);
            set(13);
            history.releasing(hold);
            set(ms);
            let extension = history.extending(hold, Duration::ZERO);
            history.extended(extension);
            fired(&history)
        };
        assert_eq!((extended_at(14), extended_at(21)), (None, Some("H4")));
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
