//! What a client process tells the harness and is told by it: a line of JSON each, over its output and its input.
//!
//! Stamps are of the machine's boot-time clock, which goes on during sleep and which nobody sets, in nanoseconds; they are
//! read by a system call of our own, so that a library that fakes clocks for the process does not fake them.

use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One line from a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When it happened.
    pub(crate) at: u64,
    pub(crate) what: Said,
}

/// What happened in a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// It is about to ask for locks.
    Asks { call: u64, names: Vec<String> },
    /// It does not get them: they are held, or waited for.
    Refused { call: u64, names: Vec<String>, asked: u64 },
    /// It gets them, and has a guard, which it had asked for at `asked`.
    Granted { call: u64, hold: u64, names: Vec<String>, token: u64, asked: u64 },
    /// It looked, and the guard was held, with so many nanoseconds left.
    Held { hold: u64, left: u64 },
    /// It is about to ask for a lease of another length, in nanoseconds.
    Extending { hold: u64, ttl: u64 },
    /// It has it.
    Extended { hold: u64 },
    /// It is about to send its release.
    Releasing { hold: u64 },
    /// The release was answered.
    Released { hold: u64 },
    /// It was told that the guard is lost.
    Lost { hold: u64, why: String },
    /// A call ended without a grant.
    Failed { what: String, kind: String },
    /// It was told who holds a lock.
    Read { name: String, token: Option<u64>, asked: u64 },
    /// A write arrives at the resource.
    Write { number: u64, name: String, token: u64 },
    /// In the calm it got every lock.
    Served,
    /// In the calm it did not get this lock.
    Unserved { name: String },
    /// It is closed.
    Closed,
}

/// What a client is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// The resource took the write, or refused it.
    Wrote { number: u64, accepted: bool },
    /// Take this lock besides, and keep it.
    Keep { name: String, ttl_ms: u64 },
    /// Nothing goes wrong any more: take every lock once.
    Calm,
    /// Give back what is kept, and end.
    Close,
}

/// Now, as everybody in the harness stamps it.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The output of a client. A line is whole or not there.
pub(crate) struct Voice(Mutex<std::io::Stdout>);

impl Voice {
    pub(crate) fn new() -> Voice {
        Voice(Mutex::new(std::io::stdout()))
    }

    /// Says what happened just now.
    pub(crate) fn say(&self, what: Said) {
        self.say_of(now(), what);
    }

    /// Says what happened at a time. Without anybody who listens the process has no purpose, and ends.
    pub(crate) fn say_of(&self, at: u64, what: Said) {
        let mut line = serde_json::to_vec(&Line { at, what }).expect("it is plain data");
        line.push(b'\n');
        let mut out: MutexGuard<'_, _> = crate::world::lock(&self.0);
        if out.write_all(&line).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }
}
