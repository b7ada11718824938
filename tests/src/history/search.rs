//! H5: whether the calls on one lock can be put in an order that their times allow, and in which a lock behaves like one.
//!
//! Just-in-time linearization (G. Lowe, "Testing for linearizability", 2016; after Wing and Gong): walk through calls and
//! answers in the order of their times; whenever a call is answered, it must have taken effect, before or after others
//! that are under way. All states that are possible are carried along; when none is left, there is no such order.
//!
//! It knows nothing of the log, and takes of tokens only that they rise. A lease that was not given back may end by itself
//! once its client counts on it no more; calls that nobody saw the end of may have had an effect or none.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Answer, State, Violation};

/// Past this many states at one time the search gives up, and says so: the history has too much under way at once.
const POSSIBLE_MAX: usize = 200_000;

/// What a call does to a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Takes it under a token; it is free, and no token was higher.
    Take(u64),
    /// Frees it, if the token holds it; it must.
    Free(u64),
    /// Finds it so.
    Find(Option<u64>),
}

/// One call: it takes effect between its two times.
#[derive(Clone, Debug)]
struct Call {
    effect: Effect,
    asked: Duration,
    /// `None`: it may take effect at any later time, or never.
    answered: Option<Duration>,
}

/// A lock that may be, at this point of the walk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Possible {
    holder: Option<u64>,
    highest: u64,
    /// Calls under way that have taken effect.
    done: BTreeSet<usize>,
}

pub(super) fn every_lock(state: &State) -> Result<(), Violation> {
    let held = state.holds.iter().map(|hold| hold.lock.as_str());
    let locks: BTreeSet<&str> = held.chain(state.reads.iter().map(|read| read.lock.as_str())).collect();
    locks.into_iter().try_for_each(|lock| {
        one_order(&calls(state, lock))
            .map_err(|seen| Violation { check: "H5", seen: format!("{lock}: {seen}") })
    })
}

fn calls(state: &State, lock: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut known = BTreeSet::new();
    for hold in state.holds.iter().filter(|hold| hold.lock == lock) {
        known.insert(hold.token);
        calls.push(Call {
            effect: Effect::Take(hold.token),
            asked: hold.asked,
            answered: Some(hold.granted),
        });
        let free = |asked, answered| Call { effect: Effect::Free(hold.token), asked, answered };
        if hold.gave_back {
            calls.push(free(hold.ended.unwrap_or(hold.granted), hold.released));
        }
        // Who was frozen, or stopped believing without giving back, does not know when it ended; not before that was promised.
        let of_its_client = state.pauses.iter().filter(|pause| pause.client == hold.client);
        let frozen =
            of_its_client.filter(|pause| pause.to.is_none_or(|to| to > hold.granted)).map(|pause| pause.from);
        let stopped = hold.ended.filter(|_| !hold.gave_back);
        let may_end = stopped.into_iter().chain(frozen).min().filter(|_| hold.released.is_none());
        if let Some(may_end) = may_end {
            let bound = if hold.promised.is_zero() { may_end } else { hold.promised };
            calls.push(free(bound.max(hold.granted), None));
        }
    }
    let reads = state.reads.iter().filter(|read| read.lock == lock);
    let reads = reads.map(|read| (read.token, read.asked, read.answered));
    let refusals = state.refusals.iter().filter(|refusal| refusal.lock == lock && refusal.token.is_some());
    let refusals = refusals.map(|refusal| (refusal.token, refusal.asked, refusal.answered));
    for (found, asked, answered) in reads.chain(refusals) {
        // Somebody who never learned of his grant: it was some time after he asked, and so was its end.
        if let Some(token) = found
            && known.insert(token)
            && let Some(asked) = may_have_asked(state, lock, token)
        {
            calls.push(Call { effect: Effect::Take(token), asked, answered: None });
            calls.push(Call { effect: Effect::Free(token), asked, answered: None });
        }
        calls.push(Call { effect: Effect::Find(found), asked, answered: Some(answered) });
    }
    calls
}

/// When the first of those asked who may have been granted a token of which no client says that it has it. `None`: there is
/// nobody. Who has a token may have had one before, which he lost with his session before he learned of it.
fn may_have_asked(state: &State, lock: &str, token: u64) -> Option<Duration> {
    if state.acquires.is_empty() {
        // Whoever wrote this history down did not say who asks.
        return Some(Duration::ZERO);
    }
    let asks = state.acquires.iter().filter(|acquire| acquire.locks.iter().any(|name| name == lock));
    let may = asks.filter(|acquire| match acquire.answer {
        Some((_, Answer::Granted(other))) => other > token,
        Some((_, Answer::Refused)) | None => true,
    });
    may.map(|acquire| acquire.asked).min()
}

/// Whether there is an order. What was wrong otherwise: the first answer that fits none.
fn one_order(calls: &[Call]) -> Result<(), String> {
    // Calls before answers of the same time: they may overlap.
    let mut steps: Vec<(Duration, bool, usize)> = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        steps.push((call.asked, false, at));
        steps.extend(call.answered.map(|answered| (answered, true, at)));
    }
    steps.sort();
    let mut under_way: BTreeSet<usize> = BTreeSet::new();
    let mut possible = BTreeSet::from([Possible { holder: None, highest: 0, done: BTreeSet::new() }]);
    for (time, is_answer, at) in steps {
        if !is_answer {
            under_way.insert(at);
            continue;
        }
        possible = answered(calls, &under_way, possible, at);
        under_way.remove(&at);
        if possible.len() > POSSIBLE_MAX {
            return Err(format!("more than {POSSIBLE_MAX} states are possible at {time:?}: no verdict"));
        }
        if possible.is_empty() {
            return Err(format!("there is no order in which {:?} is answered at {time:?}", calls[at]));
        }
        under_way.retain(|call| {
            calls[*call].answered.is_some() || possible.iter().any(|lock| lock.may(calls[*call].effect))
        });
    }
    Ok(())
}

/// All that may be once the call `at` is answered.
fn answered(
    calls: &[Call],
    under_way: &BTreeSet<usize>,
    before: BTreeSet<Possible>,
    at: usize,
) -> BTreeSet<Possible> {
    let (mut seen, mut after) = (BTreeSet::new(), BTreeSet::new());
    let mut open: Vec<Possible> = before.into_iter().collect();
    while let Some(mut lock) = open.pop() {
        // What only looks does no harm as soon as it can be.
        let finds = under_way.iter().filter(|call| calls[**call].effect == Effect::Find(lock.holder));
        lock.done.extend(finds);
        if !seen.insert(lock.clone()) {
            continue;
        }
        if lock.done.contains(&at) {
            let mut lock = lock;
            lock.done.remove(&at);
            after.insert(lock);
            continue;
        }
        let not_done = under_way.iter().filter(|call| !lock.done.contains(call));
        open.extend(not_done.filter_map(|call| lock.after(&calls[*call], *call)));
    }
    after
}

impl Possible {
    /// The lock after a call that changes it, if it can have this effect now.
    fn after(&self, call: &Call, at: usize) -> Option<Possible> {
        let mut next = self.clone();
        match call.effect {
            Effect::Take(token) if self.holder.is_none() && token > self.highest => {
                (next.holder, next.highest) = (Some(token), token);
            }
            Effect::Free(token) if self.holder == Some(token) => next.holder = None,
            _ => return None,
        }
        // What nobody waits for needs no mark: it cannot happen twice.
        if call.answered.is_some() {
            next.done.insert(at);
        }
        Some(next)
    }

    /// Whether a call that is not answered may still have an effect, now or later.
    fn may(&self, effect: Effect) -> bool {
        match effect {
            Effect::Take(token) => token > self.highest,
            Effect::Free(token) => token > self.highest || self.holder == Some(token),
            Effect::Find(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn call(effect: Effect, asked: u64, answered: u64) -> Call {
        Call { effect, asked: at(asked), answered: Some(at(answered)) }
    }

    fn open(effect: Effect, asked: u64) -> Call {
        Call { effect, asked: at(asked), answered: None }
    }

    #[test]
    fn overlapping_calls_find_their_order() {
        use Effect::{Find, Free, Take};
        let calls = [
            call(Take(2), 0, 9),
            call(Take(1), 0, 3),
            call(Free(1), 4, 8),
            call(Find(Some(1)), 1, 5),
            call(Find(None), 5, 9),
            call(Find(Some(2)), 7, 12),
        ];
        assert_eq!(one_order(&calls), Ok(()));
    }

    #[test]
    fn a_lease_may_end_by_itself_but_not_before_it_may() {
        use Effect::{Free, Take};
        let ends = |from| one_order(&[call(Take(1), 0, 1), open(Free(1), from), call(Take(2), 2, 5)]);
        assert_eq!(ends(4), Ok(()));
        assert!(ends(6).is_err());
    }

    #[test]
    fn what_no_lock_does_is_seen() {
        use Effect::{Find, Free, Take};
        let two_holders = [call(Take(1), 0, 1), call(Take(2), 2, 3)];
        let falling = [call(Take(2), 0, 1), call(Free(2), 2, 3), call(Take(1), 4, 5)];
        let stale = [call(Take(1), 0, 1), call(Free(1), 2, 3), call(Find(Some(1)), 4, 5)];
        let missed = [call(Take(1), 0, 1), call(Find(None), 2, 3), call(Free(1), 4, 5)];
        let back_and_forth =
            [call(Take(1), 0, 1), open(Free(1), 0), call(Find(None), 2, 3), call(Find(Some(1)), 4, 5)];
        for wrong in [&two_holders[..], &falling, &stale, &missed, &back_and_forth] {
            assert!(one_order(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_call_without_an_answer_may_have_had_an_effect() {
        use Effect::{Find, Free, Take};
        let lost = [open(Take(1), 0), call(Find(Some(1)), 2, 3), open(Free(1), 4), call(Take(2), 5, 6)];
        assert_eq!(one_order(&lost), Ok(()));
        let none = [open(Take(1), 0), call(Take(2), 5, 6), call(Find(Some(2)), 7, 8)];
        assert_eq!(one_order(&none), Ok(()));
    }
}
