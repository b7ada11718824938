//! What clients saw, and what must hold of it whatever happened to the servers.
//!
//! | check | what it says |
//! |---|---|
//! | H1 believers | per lock, no two exclusive holds overlap: from the guard handed out to the release sent, or the loss seen. And none goes on after the replicated state has ended it. A client that the harness froze is excused for that time |
//! | H2 fenced resource | accepted writes have tokens that never fall, and each was granted to its writer; a write with an older token than one accepted before is refused |
//! | H3 token order | tokens are unique; a grant that was answered before another was asked for has the lower token |
//! | H4 answers | what a client is told of a lock is not older than what was answered before it asked; and where the log is known, it was so at some moment between asking and answer |
//! | H5 search | per lock, the calls that were answered can be put in one order that their times allow and a lock allows |
//! | H7 lease, lower bound | a lease that was not given back does not pass on before its client may have stopped to count on it, nor before the time of an extension that was answered is over |
//! | H10 durability | at the end, every hold that was neither released nor lost is in the replicated state, under its token |
//!
//! An operation whose outcome is unknown stays open for ever: it may or may not have happened.
//!
//! [`History`] records, in `records`; `checks` looks at pairs of what it has; `witness` holds it against the log; `search` needs neither
//! log nor tokens to be right. A history is kept as lines of JSON, so that one that failed can be looked at again.

mod checks;
#[cfg(test)]
mod mutations;
mod records;
mod search;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use records::Answer;
use records::{Acquire, Extension, Hold, Pause, Read, Refusal, State, Write};
pub use witness::Timelines;

/// Everything that clients saw in one run. Clones share it.
#[derive(Clone)]
pub struct History {
    now: Arc<dyn Fn() -> Duration + Send + Sync>,
    state: Arc<Mutex<State>>,
}

/// A hold that is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldId(usize);

/// An acquire that is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcquireId(usize);

/// An extension that is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionId(usize);

/// How much faster than another a clock may go, by the contract: half a percent (rule T5).
const CLOCK_RATE_MAX: f64 = 1.005;

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
    /// Acquires, releases and extensions of which nobody knows what they came to.
    pub unknown: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { grants, ended, writes, stale_writes_refused, unknown } = self;
        write!(
            f,
            "{grants} grants ({ended} ended), {writes} writes, {stale_writes_refused} stale writes refused, \
             {unknown} operations unknown"
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

    /// A client is about to ask for locks. Called before it does; without an answer it stays open for ever.
    pub fn asks(&self, client: &str, locks: &[String]) -> AcquireId {
        let (client, locks, asked) = (client.to_owned(), locks.to_owned(), self.now());
        let mut state = self.lock();
        state.acquires.push(Acquire { client, locks, asked, answer: None });
        AcquireId(state.acquires.len() - 1)
    }

    /// And was answered. A grant of an exclusive lock is recorded by [`History::granted`] as well.
    pub fn answered(&self, acquire: AcquireId, answer: Answer) {
        let now = self.now();
        self.lock().acquires[acquire.0].answer = Some((now, answer));
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

    /// The client counts on its lease for so long, at least: what it was told of the time that is left. None is left to who
    /// looks at a lease that is over: that says nothing of when it ended.
    pub fn promised(&self, hold: HoldId, remaining: Duration) {
        if remaining.is_zero() {
            return;
        }
        let until = self.now() + remaining;
        let hold = &mut self.lock().holds[hold.0];
        hold.promised = hold.promised.max(until);
    }

    /// The client is about to ask for a lease of another length: from here on nothing is promised until it is answered.
    pub fn extending(&self, hold: HoldId, ttl: Duration) -> ExtensionId {
        let asked = self.now();
        let mut state = self.lock();
        state.holds[hold.0].promised = Duration::ZERO;
        state.extensions.push(Extension { hold: hold.0, ttl, asked, answered: None });
        ExtensionId(state.extensions.len() - 1)
    }

    /// And was told that it has it: it counts from before it was asked for.
    pub fn extended(&self, extension: ExtensionId) {
        let now = self.now();
        let mut state = self.lock();
        let extension = &mut state.extensions[extension.0];
        extension.answered = Some(now);
        let (hold, until) = (extension.hold, extension.asked + extension.ttl.div_f64(CLOCK_RATE_MAX));
        let hold = &mut state.holds[hold];
        hold.promised = hold.promised.max(until);
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

    /// A client that did not want to wait (longer) was told that an exclusive lock is held, under this token if it was
    /// told so, or that another waits for it.
    pub fn refused(&self, client: &str, lock: &str, token: Option<u64>, asked: Duration) {
        let (client, lock, answered) = (client.to_owned(), lock.to_owned(), self.now());
        self.lock().refusals.push(Refusal { client, lock, token, asked, answered });
    }

    /// How many operations are open for ever, as long as nothing more is recorded.
    pub fn unknown(&self) -> usize {
        self.lock().unknown()
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
            unknown: state.unknown(),
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
        let state = self.lock().clone();
        state.into_lines()
    }

    /// What [`lines`](History::lines) made.
    ///
    /// # Errors
    /// A line that is none of a history, and its number.
    pub fn of_lines(lines: &str) -> anyhow::Result<History> {
        let state = State::of_lines(lines)?;
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
