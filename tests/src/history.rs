//! What clients saw, and what must hold of it whatever happened to the servers.
//!
//! | check | what it says |
//! |---|---|
//! | H1 believers | per lock, no two exclusive holds overlap: from the guard handed out to the release sent, or the loss seen. And none goes on after the replicated state has ended it. A client that the harness froze is excused for that time |
//! | H2 fenced resource | accepted writes have tokens that never fall, and each was granted to its writer; a write with an older token than one accepted before is refused |
//! | H3 token order | tokens are unique; a grant that was answered before another was asked for has the lower token |
//! | H4 reads | what a client is told of a lock is not older than what was answered before it asked |
//! | H10 durability | at the end, every hold that was neither released nor lost is in the replicated state, under its token |
//!
//! An operation whose outcome is unknown stays open for ever: it may or may not have happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Everything that clients saw in one run. Clones share it.
#[derive(Clone)]
pub struct History {
    now: Arc<dyn Fn() -> Duration + Send + Sync>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    holds: Vec<Hold>,
    writes: Vec<Write>,
    pauses: Vec<Pause>,
    reads: Vec<Read>,
}

/// What a client was told of who holds an exclusive lock.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "who asked is for people who read a violation")]
struct Read {
    client: String,
    lock: String,
    /// The token of the holder; none if the lock is free.
    token: Option<u64>,
    asked: Duration,
    answered: Duration,
}

/// One guard's life, as its client saw it.
#[derive(Clone, Debug)]
struct Hold {
    client: String,
    lock: String,
    token: u64,
    asked: Duration,
    granted: Duration,
    /// When the client stopped believing: release sent, or loss seen.
    ended: Option<Duration>,
    /// When the cluster said that it is released.
    released: Option<Duration>,
    /// A release may have been lost with its client.
    surely_over: bool,
}

#[derive(Clone, Debug)]
struct Write {
    resource: String,
    client: String,
    token: u64,
    accepted: bool,
}

#[derive(Clone, Debug)]
struct Pause {
    client: String,
    from: Duration,
    to: Option<Duration>,
}

/// A hold that is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldId(usize);

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Grants seen by clients.
    pub grants: usize,
    /// Of them, released or lost.
    pub ended: usize,
    /// Writes that the resource accepted.
    pub writes: usize,
    /// Writes that it refused for their token.
    pub stale_writes_refused: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { grants, ended, writes, stale_writes_refused } = self;
        write!(
            f,
            "{grants} grants ({ended} ended), {writes} writes, {stale_writes_refused} stale writes refused"
        )
    }
}

/// A check that failed: which, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// H1, H2, H3, H4 or H10.
    pub check: &'static str,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.seen)
    }
}

impl History {
    /// An empty history on the machine's monotonic clock.
    #[allow(clippy::disallowed_methods, reason = "the harness stamps what it sees with its own clock")]
    pub fn new() -> History {
        let start = std::time::Instant::now();
        History::with_clock(move || start.elapsed())
    }

    /// An empty history on a clock of the caller's, such as a simulation's.
    pub fn with_clock(now: impl Fn() -> Duration + Send + Sync + 'static) -> History {
        History { now: Arc::new(now), state: Arc::default() }
    }

    /// The time to hand to [`History::granted`] as the moment of asking.
    pub fn now(&self) -> Duration {
        (self.now)()
    }

    /// A client has a guard in its hand.
    pub fn granted(&self, client: &str, lock: &str, token: u64, asked: Duration) -> HoldId {
        let granted = self.now();
        let mut state = self.lock();
        state.holds.push(Hold {
            client: client.to_owned(),
            lock: lock.to_owned(),
            token,
            asked,
            granted,
            ended: None,
            released: None,
            surely_over: false,
        });
        HoldId(state.holds.len() - 1)
    }

    /// The client is about to send its release. Called before it does.
    pub fn releasing(&self, hold: HoldId) {
        self.end(hold, false);
    }

    /// The release was answered.
    pub fn released(&self, hold: HoldId) {
        self.end(hold, true);
        let now = self.now();
        self.lock().holds[hold.0].released = Some(now);
    }

    /// The client was told that it lost the lock.
    pub fn lost(&self, hold: HoldId) {
        self.end(hold, true);
    }

    /// A client's process ended, whatever it held: it believes nothing any more.
    pub fn died(&self, client: &str, now: Duration) {
        let mut state = self.lock();
        state.holds.iter_mut().filter(|hold| hold.client == client).for_each(|hold| {
            hold.ended.get_or_insert(now);
        });
    }

    /// The harness froze a client: it cannot know what it holds.
    pub fn paused(&self, client: &str) {
        self.paused_at(client, self.now());
    }

    /// The same, by a harness that is outside of the history's clock.
    pub fn paused_at(&self, client: &str, from: Duration) {
        self.lock().pauses.push(Pause { client: client.to_owned(), from, to: None });
    }

    /// And let it go on.
    pub fn resumed(&self, client: &str) {
        self.resumed_at(client, self.now());
    }

    /// Whether a client believes to hold something.
    pub fn is_holding(&self, client: &str) -> bool {
        self.lock().holds.iter().any(|hold| hold.client == client && hold.ended.is_none())
    }

    /// Whether the harness has frozen it.
    pub fn is_paused(&self, client: &str) -> bool {
        self.lock().pauses.iter().any(|pause| pause.client == client && pause.to.is_none())
    }

    /// The same, by a harness that is outside of the history's clock.
    pub fn resumed_at(&self, client: &str, now: Duration) {
        let mut state = self.lock();
        let pause = state.pauses.iter_mut().rev().find(|pause| pause.client == client && pause.to.is_none());
        pause.expect("it was paused").to = Some(now);
    }

    /// The fenced resource took a write, or refused it.
    pub fn wrote(&self, resource: &str, client: &str, token: u64, accepted: bool) {
        let write = Write { resource: resource.to_owned(), client: client.to_owned(), token, accepted };
        self.lock().writes.push(write);
    }

    /// A client was told who holds an exclusive lock.
    pub fn read(&self, client: &str, lock: &str, token: Option<u64>, asked: Duration) {
        let (client, lock, answered) = (client.to_owned(), lock.to_owned(), self.now());
        self.lock().reads.push(Read { client, lock, token, asked, answered });
    }

    /// Runs H1, H2, H3 and H4 for reads.
    pub fn check(&self) -> Result<Summary, Violation> {
        let state = self.lock();
        believers(&state)?;
        fenced_resource(&state)?;
        token_order(&state)?;
        reads(&state)?;
        Ok(Summary {
            grants: state.holds.len(),
            ended: state.holds.iter().filter(|hold| hold.ended.is_some()).count(),
            writes: state.writes.iter().filter(|write| write.accepted).count(),
            stale_writes_refused: state.writes.iter().filter(|write| !write.accepted).count(),
        })
    }

    /// Runs H2 and H3: what holds even when clocks are off by more than the contract allows.
    pub fn check_tokens(&self) -> Result<(), Violation> {
        let state = self.lock();
        fenced_resource(&state)?;
        token_order(&state)
    }

    /// Runs H1 against the replicated state: nobody believes longer than that has it. `over` says when each token came to
    /// hold nothing any more.
    pub fn check_beliefs(&self, over: &BTreeMap<u64, Duration>) -> Result<(), Violation> {
        let state = self.lock();
        for hold in &state.holds {
            let Some(over) = over.get(&hold.token).copied() else { continue };
            if hold.ended.is_none_or(|ended| ended > over) && !was_paused(&state, &hold.client, over) {
                let seen = format!("{hold:?} was believed to be held, and was over at {over:?}");
                return Err(Violation { check: "H1", seen });
            }
        }
        Ok(())
    }

    /// Every grant that a client saw: its owner, the lock, the token.
    pub fn grants(&self) -> Vec<(String, String, u64)> {
        let state = self.lock();
        state.holds.iter().map(|hold| (hold.client.clone(), hold.lock.clone(), hold.token)).collect()
    }

    /// Runs H10 against the holders in the replicated state: (lock, token).
    pub fn check_durable(&self, holders: &BTreeSet<(String, u64)>) -> Result<usize, Violation> {
        let state = self.lock();
        let standing: Vec<&Hold> = state.holds.iter().filter(|hold| hold.ended.is_none()).collect();
        for hold in &standing {
            if !holders.contains(&(hold.lock.clone(), hold.token)) {
                return Err(Violation {
                    check: "H10",
                    seen: format!("{hold:?} was acknowledged, neither released nor lost, and is gone"),
                });
            }
        }
        for hold in state.holds.iter().filter(|hold| hold.surely_over) {
            if holders.contains(&(hold.lock.clone(), hold.token)) {
                return Err(Violation { check: "H10", seen: format!("{hold:?} is over, and is held again") });
            }
        }
        Ok(standing.len())
    }

    fn end(&self, hold: HoldId, surely: bool) {
        let now = self.now();
        let hold = &mut self.lock().holds[hold.0];
        hold.ended.get_or_insert(now);
        hold.surely_over |= surely;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Default for History {
    fn default() -> Self {
        History::new()
    }
}

fn believers(state: &State) -> Result<(), Violation> {
    let mut by_lock: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    for hold in &state.holds {
        by_lock.entry(&hold.lock).or_default().push(hold);
    }
    for holds in by_lock.values_mut() {
        holds.sort_by_key(|hold| hold.granted);
        let mut latest: Option<&Hold> = None;
        for next in holds.iter() {
            if let Some(before) = latest {
                let believed_until = before.ended.unwrap_or(Duration::MAX);
                if believed_until > next.granted && !was_paused(state, &before.client, next.granted) {
                    return Err(Violation {
                        check: "H1",
                        seen: format!("{next:?} was granted while {before:?} was believed to be held"),
                    });
                }
            }
            let longer = |hold: &&Hold| hold.ended.unwrap_or(Duration::MAX);
            latest = Some(latest.into_iter().chain([*next]).max_by_key(longer).expect("one at least"));
        }
    }
    Ok(())
}

fn was_paused(state: &State, client: &str, at: Duration) -> bool {
    state.pauses.iter().any(|p| p.client == client && p.from <= at && p.to.is_none_or(|to| at <= to))
}

fn fenced_resource(state: &State) -> Result<(), Violation> {
    let granted: BTreeSet<(&str, u64)> =
        state.holds.iter().map(|hold| (hold.client.as_str(), hold.token)).collect();
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for write in &state.writes {
        let highest = highest.entry(&write.resource).or_insert(0);
        let wrong = |what: &str| {
            Err(Violation { check: "H2", seen: format!("{write:?} {what} (highest: {highest})") })
        };
        if !write.accepted {
            if write.token >= *highest {
                return wrong("was refused although its token is not stale");
            }
            continue;
        }
        if write.token < *highest {
            return wrong("is stale and was accepted");
        }
        if !granted.contains(&(write.client.as_str(), write.token)) {
            return wrong("has a token that its writer was never granted");
        }
        *highest = write.token;
    }
    Ok(())
}

fn token_order(state: &State) -> Result<(), Violation> {
    let mut by_token: Vec<&Hold> = state.holds.iter().collect();
    by_token.sort_by_key(|hold| hold.token);
    // One grant may be of several locks.
    let same_grant = |one: &Hold, other: &Hold| one.client == other.client && one.lock != other.lock;
    let twice = |pair: &&[&Hold]| pair[0].token == pair[1].token && !same_grant(pair[0], pair[1]);
    if let Some(twice) = by_token.windows(2).find(twice) {
        return Err(Violation { check: "H3", seen: format!("one token, two grants: {twice:?}") });
    }
    // Walking up the tokens: nobody may have asked after a grant with a higher token was answered.
    let mut earliest_answer_above: Option<&Hold> = None;
    for hold in by_token.iter().rev() {
        if let Some(above) = earliest_answer_above
            && above.granted < hold.asked
            && above.token > hold.token
        {
            return Err(Violation {
                check: "H3",
                seen: format!(
                    "{above:?} was answered before {hold:?} was asked for, and has the higher token"
                ),
            });
        }
        if earliest_answer_above.is_none_or(|above| hold.granted < above.granted) {
            earliest_answer_above = Some(hold);
        }
    }
    Ok(())
}

fn reads(state: &State) -> Result<(), Violation> {
    let mut by_lock: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    state.holds.iter().for_each(|hold| by_lock.entry(&hold.lock).or_default().push(hold));
    for read in &state.reads {
        for hold in by_lock.get(read.lock.as_str()).into_iter().flatten() {
            let is_older = read.token.is_some_and(|token| token < hold.token) && hold.granted < read.asked;
            let released_before = hold.released.is_some_and(|at| at < read.asked);
            let is_over = read.token == Some(hold.token) && released_before;
            // Whoever believes all the while does hold it, unless it is frozen.
            let held = hold.granted < read.asked && hold.ended.is_none_or(|ended| ended > read.answered);
            let is_missed = held && read.token.is_none() && !was_paused(state, &hold.client, read.answered);
            if is_older || is_over || is_missed {
                return Err(Violation { check: "H4", seen: format!("{read:?} is stale: {hold:?}") });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A history whose clock moves by one with each look.
    fn history() -> History {
        let clock = AtomicU64::new(0);
        History::with_clock(move || Duration::from_millis(clock.fetch_add(1, Ordering::Relaxed)))
    }

    fn grant(history: &History, client: &str, token: u64) -> HoldId {
        let asked = history.now();
        history.granted(client, "k", token, asked)
    }

    fn fired(history: &History) -> Option<&'static str> {
        history.check().err().map(|violation| violation.check)
    }

    #[test]
    fn one_holder_after_another_is_fine() {
        let history = history();
        let first = grant(&history, "a", 1);
        history.wrote("db", "a", 1, true);
        history.releasing(first);
        grant(&history, "b", 2);
        history.wrote("db", "b", 2, true);
        history.wrote("db", "a", 1, false);
        let summary = Summary { grants: 2, ended: 1, writes: 2, stale_writes_refused: 1 };
        assert_eq!(history.check(), Ok(summary));
    }

    #[test]
    fn two_believers_are_seen() {
        let history = history();
        grant(&history, "a", 1);
        grant(&history, "b", 2);
        assert_eq!(fired(&history), Some("H1"));
    }

    #[test]
    fn a_long_hold_under_a_short_one_is_seen() {
        let history = history();
        let long = grant(&history, "a", 1);
        history.paused("a");
        let short = grant(&history, "b", 2);
        history.releasing(short);
        history.resumed("a");
        grant(&history, "c", 3);
        history.releasing(long);
        assert_eq!(fired(&history), Some("H1"), "a was running again when c was granted");
    }

    #[test]
    fn a_frozen_client_is_excused() {
        let history = history();
        grant(&history, "a", 1);
        history.paused("a");
        grant(&history, "b", 2);
        assert_eq!(fired(&history), None);
    }

    #[test]
    fn who_believes_longer_than_the_cluster_is_seen() {
        let history = history();
        let hold = grant(&history, "a", 1);
        history.releasing(hold);
        let over = |at| BTreeMap::from([(1, at)]);
        assert_eq!(history.check_beliefs(&over(history.now())), Ok(()));
        assert_eq!(history.check_beliefs(&over(Duration::ZERO)).map_err(|v| v.check), Err("H1"));

        let frozen = self::history();
        grant(&frozen, "a", 1);
        frozen.paused("a");
        assert_eq!(frozen.check_beliefs(&over(frozen.now())), Ok(()));
    }

    #[test]
    fn a_stale_write_that_is_accepted_is_seen() {
        let history = history();
        let first = grant(&history, "a", 1);
        history.releasing(first);
        grant(&history, "b", 2);
        history.wrote("db", "b", 2, true);
        history.wrote("db", "a", 1, true);
        assert_eq!(fired(&history), Some("H2"));
    }

    #[test]
    fn a_token_nobody_was_granted_is_seen() {
        let history = history();
        grant(&history, "a", 1);
        history.wrote("db", "b", 1, true);
        assert_eq!(fired(&history), Some("H2"));
    }

    #[test]
    fn tokens_that_fall_or_repeat_are_seen() {
        let history = history();
        let first = grant(&history, "a", 5);
        history.releasing(first);
        grant(&history, "b", 4);
        assert_eq!(fired(&history), Some("H3"));

        let history = self::history();
        let first = grant(&history, "a", 5);
        history.releasing(first);
        grant(&history, "b", 5);
        assert_eq!(fired(&history), Some("H3"));
    }

    #[test]
    fn a_stale_read_is_seen() {
        let history = history();
        let first = grant(&history, "a", 1);
        let asked = history.now();
        history.read("c", "k", Some(1), asked);
        history.releasing(first);
        history.released(first);
        assert_eq!(fired(&history), None);
        let asked = history.now();
        history.read("c", "k", Some(1), asked);
        assert_eq!(fired(&history), Some("H4"));

        let lost = self::history();
        lost.lost(grant(&lost, "a", 1));
        lost.read("c", "k", Some(1), lost.now());
        assert_eq!(fired(&lost), None, "the cluster sees the end of a lease later than its client");
    }

    #[test]
    fn a_read_of_what_is_long_over_or_that_misses_a_holder_is_seen() {
        let over = history();
        let first = grant(&over, "a", 1);
        over.releasing(first);
        over.released(first);
        grant(&over, "b", 2);
        over.read("c", "k", Some(1), over.now());
        assert_eq!(fired(&over), Some("H4"));

        let missed = history();
        grant(&missed, "a", 1);
        missed.read("c", "k", None, missed.now());
        assert_eq!(fired(&missed), Some("H4"));
    }

    #[test]
    fn a_grant_that_vanished_is_seen() {
        let history = history();
        let released = grant(&history, "a", 1);
        history.released(released);
        grant(&history, "b", 2);
        let held = |token| BTreeSet::from([("k".to_owned(), token)]);
        assert_eq!(history.check_durable(&held(2)), Ok(1));
        assert_eq!(history.check_durable(&held(3)).map_err(|v| v.check), Err("H10"));
        let both: BTreeSet<_> = held(1).union(&held(2)).cloned().collect();
        assert_eq!(history.check_durable(&both).map_err(|v| v.check), Err("H10"), "a released lock is back");
    }
}
