//! What clients saw, and what must hold of it whatever happened to the servers.
//!
//! | check | what it says |
//! |---|---|
//! | H1 believers | per lock, no two exclusive holds overlap: from the guard handed out to the release sent, or the loss seen. And none goes on after the replicated state has ended it. A client that the harness froze is excused for that time |
//! | H2 fenced resource | accepted writes have tokens that never fall, and each was granted to its writer; a write with an older token than one accepted before is refused |
//! | H3 token order | tokens are unique; a grant that was answered before another was asked for has the lower token |
//! | H4 answers | what a client is told of a lock is not older than what was answered before it asked; and where the log is known, it was so at some moment between asking and answer |
//! | H5 search | per lock, the calls that were answered can be put in one order that their times allow and a lock allows |
//! | H7 lease, lower bound | a lease that was not given back does not pass on before its client may have stopped to count on it |
//! | H10 durability | at the end, every hold that was neither released nor lost is in the replicated state, under its token |
//!
//! An operation whose outcome is unknown stays open for ever: it may or may not have happened.
//!
//! [`History`] records; `checks` looks at pairs of what it has; `witness` holds it against the log; `search` needs neither
//! log nor tokens to be right. A history is kept as lines of JSON, so that one that failed can be looked at again.

mod checks;
#[cfg(test)]
mod mutations;
mod search;
mod witness;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub use witness::Timelines;

/// Everything that clients saw in one run. Clones share it.
#[derive(Clone)]
pub struct History {
    now: Arc<dyn Fn() -> Duration + Send + Sync>,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    holds: Vec<Hold>,
    writes: Vec<Write>,
    pauses: Vec<Pause>,
    reads: Vec<Read>,
    refusals: Vec<Refusal>,
}

/// One line of a history that is kept in a file.
#[derive(Serialize, Deserialize)]
enum Line {
    Hold(Hold),
    Write(Write),
    Pause(Pause),
    Read(Read),
    Refusal(Refusal),
}

/// What a client was told of who holds an exclusive lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Read {
    client: String,
    lock: String,
    /// The token of the holder; none if the lock is free.
    token: Option<u64>,
    asked: Duration,
    answered: Duration,
}

/// A client that did not want to wait was told that an exclusive lock is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Refusal {
    client: String,
    lock: String,
    asked: Duration,
    answered: Duration,
}

/// One guard's life, as its client saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hold {
    client: String,
    lock: String,
    token: u64,
    asked: Duration,
    granted: Duration,
    /// When the client stopped believing: release sent, or loss seen.
    ended: Option<Duration>,
    /// The release was sent then.
    gave_back: bool,
    /// When the cluster said that it is released.
    released: Option<Duration>,
    /// A release may have been lost with its client.
    surely_over: bool,
    /// Its lease does not end before that, as its client counts: from before it asked for its last renewal.
    promised: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Write {
    resource: String,
    client: String,
    token: u64,
    accepted: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// As in the table of the module.
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
            gave_back: false,
            released: None,
            surely_over: false,
            promised: Duration::ZERO,
        });
        HoldId(state.holds.len() - 1)
    }

    /// The client counts on its lease for so long, at least: what its guard says of the time that is left.
    pub fn promised(&self, hold: HoldId, remaining: Duration) {
        if remaining.is_zero() {
            return; // it is over
        }
        let until = self.now() + remaining;
        let hold = &mut self.lock().holds[hold.0];
        hold.promised = hold.promised.max(until);
    }

    /// The client is about to ask for a lease of another length: from here on nothing is promised until it is answered.
    pub fn extending(&self, hold: HoldId) {
        self.lock().holds[hold.0].promised = Duration::ZERO;
    }

    /// The client is about to send its release. Called before it does.
    pub fn releasing(&self, hold: HoldId) {
        self.end(hold, false);
        self.lock().holds[hold.0].gave_back = true;
    }

    /// The release was answered.
    pub fn released(&self, hold: HoldId) {
        self.end(hold, true);
        let now = self.now();
        let hold = &mut self.lock().holds[hold.0];
        (hold.gave_back, hold.released) = (true, Some(now));
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

    /// A client that did not want to wait was told that an exclusive lock is held.
    pub fn refused(&self, client: &str, lock: &str, asked: Duration) {
        let (client, lock, answered) = (client.to_owned(), lock.to_owned(), self.now());
        self.lock().refusals.push(Refusal { client, lock, asked, answered });
    }

    /// Runs every check that takes no log: H1, H2, H3, H4 for reads, H5, H7.
    pub fn check(&self) -> Result<Summary, Violation> {
        let state = self.lock();
        checks::believers(&state)?;
        checks::fenced_resource(&state)?;
        checks::token_order(&state)?;
        checks::reads(&state)?;
        checks::leases(&state)?;
        search::every_lock(&state)?;
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
        checks::fenced_resource(&state)?;
        checks::token_order(&state)
    }

    /// Runs H1, H4 and H7 against the log: nobody believes longer than it has his lease, no lease ends in it before its
    /// client may have stopped to count on it, and every answer was true at some moment between asking and answer.
    pub fn check_against(&self, log: &Timelines) -> Result<(), Violation> {
        let state = self.lock();
        witness::beliefs(&state, log)?;
        witness::leases(&state, log)?;
        witness::answers(&state, log)
    }

    /// As lines of JSON.
    pub fn lines(&self) -> String {
        let State { holds, writes, pauses, reads, refusals } = self.lock().clone();
        let lines = holds.into_iter().map(Line::Hold).chain(writes.into_iter().map(Line::Write));
        let lines = lines.chain(pauses.into_iter().map(Line::Pause)).chain(reads.into_iter().map(Line::Read));
        let lines = lines.chain(refusals.into_iter().map(Line::Refusal));
        lines.map(|line| serde_json::to_string(&line).expect("it is plain data") + "\n").collect()
    }

    /// What [`lines`](History::lines) made.
    ///
    /// # Errors
    /// A line that is none of a history, and its number.
    pub fn of_lines(lines: &str) -> anyhow::Result<History> {
        let mut state = State::default();
        for (at, line) in lines.lines().enumerate() {
            match serde_json::from_str(line).with_context(|| format!("line {}", at + 1))? {
                Line::Hold(hold) => state.holds.push(hold),
                Line::Write(write) => state.writes.push(write),
                Line::Pause(pause) => state.pauses.push(pause),
                Line::Read(read) => state.reads.push(read),
                Line::Refusal(refusal) => state.refusals.push(refusal),
            }
        }
        Ok(History { state: Arc::new(Mutex::new(state)), ..History::new() })
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
    fn a_lease_that_passes_on_too_early_is_seen() {
        let early = history();
        let hold = grant(&early, "a", 1);
        early.promised(hold, Duration::from_secs(1));
        early.died("a", early.now());
        grant(&early, "b", 2);
        assert_eq!(fired(&early), Some("H7"));
    }

    #[test]
    fn a_kept_history_is_the_same_and_fails_the_same() {
        let history = history();
        grant(&history, "a", 1);
        history.wrote("db", "a", 1, true);
        history.paused("a");
        history.refused("b", "k", history.now());
        history.read("c", "k", Some(1), history.now());
        let again = History::of_lines(&history.lines()).expect("it is ours");
        assert_eq!(again.lines(), history.lines());
        assert_eq!(again.check(), history.check());
        let bad = History::of_lines("{}\n").map(drop).expect_err("no line of a history");
        assert!(format!("{bad:#}").starts_with("line 1"), "{bad:#}");
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
