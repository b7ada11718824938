//! A client: it counts its renewals, and believes by its own clock.

use crate::{Lease, RENEWALS, Rule, TTL};

/// One client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// When each of its renewals was sent, by number. The first one is from the beginning.
    sent: Vec<u8>,
    /// The highest number that was answered.
    covered: u8,
    /// Its lease, as it counts it, ends then.
    deadline: u8,
    /// It has a guard: the grant was answered while its lease lasted.
    guard: bool,
    /// It stands still.
    pub frozen: bool,
    /// An answer came after its deadline.
    pub was_late: bool,
}

impl Client {
    /// The one whose first renewal was sent and answered at the beginning.
    pub(crate) fn holder() -> Client {
        Client { sent: vec![0], covered: 0, deadline: TTL, guard: true, frozen: false, was_late: false }
    }

    /// The one that waits, on a lease that does not end.
    pub(crate) fn waiter() -> Client {
        Client { deadline: u8::MAX, guard: false, ..Client::holder() }
    }

    /// Whether it would act as the holder now. Its clock goes on while it is frozen.
    pub fn believes(&self, now: u8) -> bool {
        self.guard && now < self.deadline
    }

    /// One that lost its lease opens another session, which is not modelled.
    pub(crate) fn may_send(&self, now: u8) -> bool {
        !self.frozen && now < self.deadline && self.sent.len() <= usize::from(RENEWALS)
    }

    pub(crate) fn send(&mut self, now: u8) -> u8 {
        self.sent.push(now);
        self.sent.len() as u8 - 1
    }

    /// An answer says that the lease covers `number`, and whether the lock is this client's.
    pub(crate) fn answered(&mut self, rules: Lease, now: u8, number: u8, holds: bool) {
        if now >= self.deadline {
            self.was_late = true;
            return;
        }
        let covers = match rules.has(Rule::RenewalNumber) {
            true => number,
            false => self.sent.len() as u8 - 1,
        };
        let from = match rules.has(Rule::BeforeSend) {
            true => self.sent[usize::from(covers)],
            false => now,
        };
        if covers > self.covered {
            self.covered = covers;
            self.deadline = self.deadline.max(from + TTL);
        }
        self.guard |= holds && now < self.deadline;
    }
}
