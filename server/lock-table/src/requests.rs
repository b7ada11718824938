//! Requests enter the table and leave it, and with them all that is derived from them.
//!
//! These are the only functions that change both, so they are the place to look when the two
//! disagree.

use std::collections::btree_map::Entry;

use crate::lock::Lock;
use crate::outcome::Rejection;
use crate::session::{Arguments, Ask, Names, Request, State};
use crate::table::LockTable;
use crate::text::Name;
use crate::types::{ClusterTime, Mode, Sequence, SessionId, Ticket};

/// Whether a request that is added is in its lock.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Entered {
    /// By [`LockTable::take_free`].
    Already,
    NotYet,
}

impl LockTable {
    /// Adds a new request in the given state. The caller has checked all that is to be checked.
    pub(crate) fn add_request(
        &mut self,
        (session, ticket): (SessionId, Ticket),
        ask: Ask,
        arguments: Arguments,
        state: State,
        entered: Entered,
    ) -> Sequence {
        let sequence = self.next_sequence();
        self.header.sequence_last = sequence;
        if let State::Held { token } = state {
            self.header.token_last = token;
        }
        let Ask { names, mode, metadata } = ask;
        let request = Request { session, ticket, names, mode, metadata, arguments, state };
        self.insert_request(sequence, request, entered);
        sequence
    }

    /// The number of the next new request.
    pub(crate) fn next_sequence(&self) -> Sequence {
        Sequence::new(self.header.sequence_last.get() + 1)
    }

    /// Enters a request that is about to hold the only lock it names, if nobody has that or waits for it.
    pub(crate) fn take_free(&mut self, sequence: Sequence, names: &Names) -> Entered {
        if let Names::One(name) = names
            && let Entry::Vacant(entry) = self.locks.entry(name.clone())
        {
            entry.insert(Lock::Single(sequence));
            return Entered::Already;
        }
        Entered::NotYet
    }

    /// Checks that requests can still be numbered.
    pub(crate) fn check_sequence(&self) -> Result<(), Rejection> {
        match self.header.sequence_last.get() < u64::MAX {
            true => Ok(()),
            false => Err(Rejection::LimitReached { what: "requests", max: u64::MAX }),
        }
    }

    /// Adds a request, later than all others, and what is derived from it.
    pub(crate) fn insert_request(&mut self, sequence: Sequence, mut request: Request, entered: Entered) {
        let (mode, state) = (request.mode, request.state);
        if entered == Entered::NotYet {
            for name in request.names.as_mut_slice() {
                self.enter_lock(name, sequence, mode, state);
            }
        }
        if let State::Queued { wait_end, .. } = state {
            self.waiters += 1;
            self.deadlines.waits.extend(wait_end.map(|at| (at, sequence)));
        }
        self.live.insert(request.session, request.ticket, sequence);
        let session = self.session_mut(request.session);
        session.lock_count += request.names.as_slice().len() as u64;
        session.highest.raise(request.ticket);
        self.requests.insert(sequence, Box::new(request));
    }

    /// Takes out a request and what is derived from it. Those it stood in the way of become
    /// candidates.
    pub(crate) fn remove_request(&mut self, sequence: Sequence) -> Box<Request> {
        let request = self.requests.remove(sequence).expect("the caller found it");
        self.live.remove(request.session, request.ticket);
        if let State::Queued { wait_end, .. } = request.state {
            self.no_longer_waits(sequence, wait_end);
        }
        for name in request.names.as_slice() {
            self.leave_lock(name, sequence, &request);
        }
        // The record of a session that has ended is gone before its requests.
        if let Some(session) = self.sessions.get_mut(request.session) {
            session.lock_count -= request.names.as_slice().len() as u64;
        }
        request
    }

    /// Takes out what is derived from a request that waits.
    pub(crate) fn no_longer_waits(&mut self, sequence: Sequence, wait_end: Option<ClusterTime>) {
        self.waiters -= 1;
        if let Some(at) = wait_end {
            self.deadlines.waits.remove(&(at, sequence));
        }
    }

    /// Enters a request into one of its locks. The name becomes the one the lock has, so that it is
    /// in memory once, however many ask for it.
    fn enter_lock(&mut self, name: &mut Name, sequence: Sequence, mode: Mode, state: State) {
        let requests = &self.requests;
        match (self.locks.entry(name.clone()), state) {
            (Entry::Vacant(entry), State::Held { .. }) => {
                entry.insert(Lock::Single(sequence));
            }
            (Entry::Vacant(entry), State::Queued { .. }) => {
                entry.insert(Lock::of_waiter(sequence, mode));
            }
            (Entry::Occupied(mut entry), state) => {
                *name = entry.key().clone();
                let mode_of = |holder| requests.get(holder).expect("a holder is a request").mode;
                let crowd = entry.get_mut().grow(mode_of);
                match state {
                    State::Held { .. } => crowd.hold(sequence, mode),
                    State::Queued { .. } => crowd.enqueue(sequence, mode),
                }
            }
        }
    }

    fn leave_lock(&mut self, name: &Name, sequence: Sequence, request: &Request) {
        let Entry::Occupied(mut entry) = self.locks.entry(name.clone()) else {
            unreachable!("a request is in every lock it names")
        };
        let lock = entry.get_mut();
        let somebody_left = match lock {
            Lock::Single(_) => false,
            Lock::Crowd(crowd) => {
                let makes_way = match request.state {
                    State::Held { .. } => crowd.leave_holders(sequence, request.mode),
                    State::Queued { .. } => crowd.leave_queue(sequence, request.mode),
                };
                if makes_way {
                    self.work.candidates.extend(lock.queue().first());
                }
                lock.shrink()
            }
        };
        if !somebody_left {
            entry.remove();
        }
    }
}
