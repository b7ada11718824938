//! What a history is made of, and the lines in which it is kept.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) holds: Vec<Hold>,
    pub(super) writes: Vec<Write>,
    pub(super) pauses: Vec<Pause>,
    pub(super) reads: Vec<Read>,
    pub(super) refusals: Vec<Refusal>,
    pub(super) acquires: Vec<Acquire>,
    pub(super) extensions: Vec<Extension>,
}

/// One line of a history that is kept in a file.
#[derive(Serialize, Deserialize)]
enum Line {
    Hold(Hold),
    Write(Write),
    Pause(Pause),
    Read(Read),
    Refusal(Refusal),
    Acquire(Acquire),
    Extension(Extension),
}

/// What a client was told of who holds an exclusive lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Read {
    pub(super) client: String,
    pub(super) lock: String,
    /// The token of the holder; none if the lock is free.
    pub(super) token: Option<u64>,
    pub(super) asked: Duration,
    pub(super) answered: Duration,
}

/// A client that did not want to wait (longer) was told that an exclusive lock is held, or waited for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) client: String,
    pub(super) lock: String,
    /// The token of the holder, if it was told.
    pub(super) token: Option<u64>,
    pub(super) asked: Duration,
    pub(super) answered: Duration,
}

/// A client asks for locks, all or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Acquire {
    pub(super) client: String,
    pub(super) locks: Vec<String>,
    pub(super) asked: Duration,
    /// `None`: nobody knows. It may be granted at any later time, and what it was granted may be given back then.
    pub(super) answer: Option<(Duration, Answer)>,
}

/// What an acquire came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The client holds it, under this token.
    Granted(u64),
    /// Neither held nor waiting.
    Refused,
}

/// A holder asks for a lease of another length.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Extension {
    pub(super) hold: usize,
    pub(super) ttl: Duration,
    pub(super) asked: Duration,
    /// `None`: nobody knows.
    pub(super) answered: Option<Duration>,
}

/// One guard's life, as its client saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) client: String,
    pub(super) lock: String,
    pub(super) token: u64,
    pub(super) asked: Duration,
    pub(super) granted: Duration,
    /// When the client stopped believing: release sent, or loss seen.
    pub(super) ended: Option<Duration>,
    /// The release was sent then.
    pub(super) gave_back: bool,
    /// When the cluster said that it is released.
    pub(super) released: Option<Duration>,
    /// A release may have been lost with its client.
    pub(super) surely_over: bool,
    /// Its lease does not end before that, as its client counts: from before it asked for its last renewal.
    pub(super) promised: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Write {
    pub(super) resource: String,
    pub(super) client: String,
    pub(super) token: u64,
    pub(super) accepted: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pause {
    pub(super) client: String,
    pub(super) from: Duration,
    pub(super) to: Option<Duration>,
}

impl State {
    pub(super) fn unknown(&self) -> usize {
        let acquires = self.acquires.iter().filter(|acquire| acquire.answer.is_none()).count();
        let releases = self.holds.iter().filter(|hold| hold.gave_back && hold.released.is_none()).count();
        let extensions = self.extensions.iter().filter(|extension| extension.answered.is_none()).count();
        acquires + releases + extensions
    }

    pub(super) fn into_lines(self) -> String {
        let State { holds, writes, pauses, reads, refusals, acquires, extensions } = self;
        let lines = holds.into_iter().map(Line::Hold).chain(writes.into_iter().map(Line::Write));
        let lines = lines.chain(pauses.into_iter().map(Line::Pause)).chain(reads.into_iter().map(Line::Read));
        let lines = lines.chain(refusals.into_iter().map(Line::Refusal));
        let lines = lines.chain(acquires.into_iter().map(Line::Acquire));
        let lines = lines.chain(extensions.into_iter().map(Line::Extension));
        lines.map(|line| serde_json::to_string(&line).expect("it is plain data") + "\n").collect()
    }

    pub(super) fn of_lines(lines: &str) -> anyhow::Result<State> {
        let mut state = State::default();
        for (at, line) in lines.lines().enumerate() {
            match serde_json::from_str(line).with_context(|| format!("line {}", at + 1))? {
                Line::Hold(hold) => state.holds.push(hold),
                Line::Write(write) => state.writes.push(write),
                Line::Pause(pause) => state.pauses.push(pause),
                Line::Read(read) => state.reads.push(read),
                Line::Refusal(refusal) => state.refusals.push(refusal),
                Line::Acquire(acquire) => state.acquires.push(acquire),
                Line::Extension(extension) => state.extensions.push(extension),
            }
        }
        let holds = state.holds.len();
        let known = state.extensions.iter().all(|extension| extension.hold < holds);
        anyhow::ensure!(known, "an extension of a hold that is not there");
        Ok(state)
    }
}
