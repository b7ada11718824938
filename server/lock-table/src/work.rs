//! What follows when something ends: requests are freed, and those they stood in the way of are
//! granted.
//!
//! Nobody searches for grants. Whenever a holder leaves a lock, or the head of its queue does, the
//! new head becomes a *candidate*, and candidates are looked at in the order of requests. All of
//! this is cut into units, so that the end of a session with a million locks is many short steps;
//! the units come in one fixed order, whatever the steps.

use std::collections::BTreeSet;

use crate::outcome::{EndCause, Event, Output};
use crate::session::{Kind, Request, State};
use crate::table::LockTable;
use crate::types::{Sequence, SessionId, Ticket, Token};

/// What the last thing in a batch set off and what is not done yet. Empty before the next thing
/// begins.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// A session that is gone and whose requests are being freed.
    pub(crate) ending: Option<(SessionId, EndCause)>,
    /// A session that was overdue and is not any more; its requests from this ticket on are to be
    /// looked at.
    pub(crate) reviving: Option<(SessionId, Ticket)>,
    /// A session whose finished tickets below the acknowledged ones are to be forgotten.
    pub(crate) forgetting: Option<SessionId>,
    /// Requests that may be grantable.
    pub(crate) candidates: BTreeSet<Sequence>,
}

impl Work {
    pub(crate) fn is_empty(&self) -> bool {
        self.ending.is_none()
            && self.reviving.is_none()
            && self.forgetting.is_none()
            && self.candidates.is_empty()
    }
}

impl LockTable {
    /// Does the next unit of work and says what it cost; `None` when there is none.
    ///
    /// All that ended is freed before anybody is granted anything, so that grants are in the order
    /// of requests.
    pub(crate) fn work_unit(&mut self, out: &mut Vec<Output>) -> Option<usize> {
        if let Some((session, cause)) = self.work.ending {
            return Some(self.free_next(session, cause, out));
        }
        if let Some((session, from)) = self.work.reviving {
            self.revive_next(session, from);
            return Some(1);
        }
        if let Some(session) = self.work.forgetting {
            self.forget_next(session);
            return Some(1);
        }
        let candidate = self.work.candidates.pop_first()?;
        Some(self.consider(candidate, out))
    }

    /// Frees one more request of a session that is gone, or says that all are free.
    fn free_next(&mut self, session: SessionId, cause: EndCause, out: &mut Vec<Output>) -> usize {
        let first = self.live.of(session).next();
        if let Some((_, sequence)) = first {
            return self.remove_request(sequence).names.as_slice().len();
        }
        let tickets = (session, Ticket::default())..=(session, Ticket::new(u64::MAX));
        match self.finished.first_in(tickets) {
            Some(key) => drop(self.finished.remove(key)),
            None => {
                self.work.ending = None;
                out.push(Output::Event(Event::SessionEnded { session, cause }));
            }
        }
        1
    }

    /// Makes one more request of a session that was overdue a candidate.
    fn revive_next(&mut self, session: SessionId, from: Ticket) {
        let next = self.live.from(session, from).next();
        self.work.reviving = next.and_then(|(ticket, _)| Some((session, ticket.next()?)));
        self.work.candidates.extend(next.map(|(_, sequence)| sequence));
    }

    /// Forgets one more finished ticket that the client has acknowledged.
    fn forget_next(&mut self, session: SessionId) {
        let acked = self.stream(session).map_or(Ticket::default(), |stream| stream.acked);
        match self.finished.first_in((session, Ticket::default())..(session, acked)) {
            Some(key) => drop(self.finished.remove(key)),
            None => self.work.forgetting = None,
        }
    }

    /// Grants a candidate if nothing is in its way any more.
    fn consider(&mut self, sequence: Sequence, out: &mut Vec<Output>) -> usize {
        let Some(request) = self.requests.get(sequence) else {
            return 1;
        };
        let names = request.names.as_slice();
        let cost = names.len();
        if request.is_queued()
            && !self.is_overdue(request.session)
            && self.obstacle(names, request.mode, Some(sequence)).is_none()
            // A counter that is used up grants nothing more; it takes a forged start to get there.
            && let Ok(token) = self.next_token()
        {
            self.grant(sequence, token, out);
        }
        cost
    }

    /// Turns a waiter into a holder.
    fn grant(&mut self, sequence: Sequence, token: Token, out: &mut Vec<Output>) {
        self.header.token_last = token;
        let request = self.requests.get_mut(sequence).expect("the caller found it");
        let State::Queued { wait_end, .. } = request.state else { unreachable!("the caller looked") };
        request.state = State::Held { token };
        let Request { session, ticket, mode, names, .. } = &**request;
        let (session, ticket, mode, names) = (*session, *ticket, *mode, names.clone());
        self.no_longer_waits(sequence, wait_end);
        for name in names.as_slice() {
            let lock = self.locks.get_mut(name).expect("a waiter is in the queue of every lock it names");
            lock.grow(|_| unreachable!("a lock with a waiter is a crowd")).grant(sequence, mode);
            self.work.candidates.extend(lock.queue().first());
            lock.shrink();
        }
        if let Kind::Unary { .. } = self.session(session).kind {
            self.unary_granted(session);
        }
        let remaining_ms = self.remaining_ms(session);
        out.push(Output::Event(Event::Granted { session, ticket, token, remaining_ms }));
    }
}
