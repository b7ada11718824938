//! One session, as a state machine: attached to a stream or not, its lease, its tickets.
//!
//! Pure: the keeper hands in the time, the numbers and the answers, and carries the operations away. Nothing here
//! knows which stream it is on.
//!
//! - A session that is over, by the cluster's word or by its own deadline, is dropped and never resumed.
//! - Operations other than the attachment leave only while it is attached; what an outage swallowed is rebuilt from
//!   the answer to the resume.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::keeper::RequestId;
use crate::lease::{Answer, BootTime, Lease, LeaseCell, Number, answer_limit};
use crate::seams::Clock;
use crate::tickets::{Effect, RETRY_PAUSE, Tickets};
use crate::wire::{Ask, Attachment, Key, Op, OpError, Outcome, Resumed, SessionId, Ticket, Wait};

/// How long an attachment may stay unanswered while no lock is at stake: long enough for slow links and an election.
const ATTACH_LIMIT: Duration = Duration::from_secs(1);

/// The same moment on the lease clock and on the keeper's timers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub boot: BootTime,
    pub at: Instant,
}

/// The session is over: its guards are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Over;

#[derive(Debug, PartialEq)]
enum Stage {
    Detached,
    Opening(Key),
    Resuming(Key, Resumed),
    Attached,
}

/// Whose lease a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of all locks with this TTL; renewed as long as it is used.
    Shared,
    /// Of one lock that its caller renews. It is renewed while that lock is waited for, once at the grant, and when
    /// the caller says so.
    Own,
}

pub(crate) struct Session {
    pub kind: Kind,
    pub tickets: Tickets,
    secret: [u8; 16],
    owner: Arc<str>,
    clock: Clock,
    id: Option<SessionId>,
    stage: Stage,
    lease: Lease,
    cell: Option<Arc<LeaseCell>>,
    /// The TTL was changed since the open, so renewals name it: one that was lost may have carried the change.
    names_ttl: bool,
    renew_at: Option<Instant>,
    /// A renewal is wanted for its own sake: at the grant of an own session, and by a caller.
    owes_renewal: bool,
    /// Callers that wait for a renewal, with its number once it is queued.
    extends: Vec<(RequestId, Option<Number>)>,
    answer_by: Option<Instant>,
    attach_at: Option<Instant>,
    idle_since: Option<Instant>,
    closing: Closing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Closing {
    No,
    Wanted,
    Sent,
}

impl Session {
    pub(crate) fn new(kind: Kind, ttl: Duration, secret: [u8; 16], owner: Arc<str>, clock: Clock) -> Session {
        Session {
            kind,
            tickets: Tickets::new(),
            secret,
            owner,
            clock,
            id: None,
            stage: Stage::Detached,
            lease: Lease::new(ttl),
            cell: None,
            names_ttl: false,
            renew_at: None,
            owes_renewal: false,
            extends: Vec::new(),
            answer_by: None,
            attach_at: None,
            idle_since: None,
            closing: Closing::No,
        }
    }

    pub(crate) fn id(&self) -> Option<SessionId> {
        self.id
    }

    pub(crate) fn cell(&self) -> Option<&Arc<LeaseCell>> {
        self.cell.as_ref()
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.stage == Stage::Attached
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing != Closing::No
    }

    pub(crate) fn holds_locks(&self) -> bool {
        self.tickets.held() > 0
    }

    /// What is left of the lease.
    pub(crate) fn remaining(&self, now: Now) -> Option<Duration> {
        self.lease.deadline().map(|deadline| now.boot.until(deadline))
    }

    // ------------------------------------------------------------------------------------------- attachment

    /// A stream is there: what to send first on it.
    pub(crate) fn attach(&mut self, now: Now, key: Key, number: Number, attachment: Attachment) -> Op {
        let limit = answer_limit(self.lease.ttl());
        let limit = if self.holds_locks() { limit } else { limit.max(ATTACH_LIMIT) };
        self.answer_by.get_or_insert(now.at + limit);
        self.attach_at = None;
        if self.closing == Closing::Sent {
            self.closing = Closing::Wanted;
        }
        match self.id {
            Some(session) => {
                self.stage = Stage::Resuming(key, Resumed::default());
                self.tickets.resuming();
                Op::Resume { key, session, secret: self.secret, attachment }
            }
            None => {
                self.stage = Stage::Opening(key);
                self.lease.queue(number, now.boot);
                self.renew_at = Some(now.at + self.lease.ttl() / 3);
                let (secret, owner, ttl) = (self.secret, self.owner.clone(), self.lease.ttl());
                Op::Open { key, secret, owner, ttl, number, attachment }
            }
        }
    }

    /// The stream is gone, or silent.
    pub(crate) fn detach(&mut self) {
        self.stage = Stage::Detached;
        self.answer_by = None;
        self.attach_at = None;
        if self.lease.is_unanswered() {
            self.set_at_risk(true);
        }
    }

    /// The attachment was refused for now. By a leader that is busy: that is an answer, and no other way is better.
    /// By a node that leads nowhere: the time for an answer goes on.
    pub(crate) fn attach_later(&mut self, now: Now, error: &OpError) {
        self.stage = Stage::Detached;
        self.attach_at = Some(now.at + error.retry_after.unwrap_or(RETRY_PAUSE));
        if !error.is_misplaced() {
            self.answer_by = None;
        }
    }

    /// The cluster no longer knows the attachment: resume on the same stream.
    pub(crate) fn attach_again(&mut self, now: Now) {
        if self.stage == Stage::Attached {
            self.stage = Stage::Detached;
            self.attach_at = Some(now.at);
        }
    }

    /// New, or refused before and due again.
    pub(crate) fn wants_attachment(&self, now: Now) -> bool {
        self.stage == Stage::Detached && self.attach_at.is_none_or(|at| at <= now.at)
    }

    pub(crate) fn opened(&mut self, now: Now, session: SessionId, number: Number) -> Result<(), Over> {
        self.id = Some(session);
        self.stage = Stage::Attached;
        self.answer_by = None;
        match self.lease.answered(number, now.boot) {
            Answer::Until(deadline) => {
                self.cell = Some(Arc::new(LeaseCell::new(self.clock.clone(), deadline)));
                Ok(())
            }
            // Too late, or it names no number of ours: there is no lease to count.
            Answer::Late | Answer::Known => Err(Over),
        }
    }

    /// One part of the answer to a resume; the effects come with the last.
    pub(crate) fn resumed(
        &mut self,
        now: Now,
        part: Resumed,
        more: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Over> {
        let Stage::Resuming(_, whole) = &mut self.stage else {
            return Ok(());
        };
        whole.held.extend(part.held);
        whole.queued.extend(part.queued);
        whole.finished.extend(part.finished);
        whole.acked = part.acked;
        whole.number = part.number;
        if more {
            return Ok(());
        }
        let whole = std::mem::take(whole);
        self.stage = Stage::Attached;
        self.answer_by = None;
        if let Some(number) = whole.number {
            self.renewed(now, number, effects)?;
        }
        if self.lease.is_unanswered() {
            self.renew_at = Some(now.at);
        }
        self.tickets.resumed(&whole, effects);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------- lease

    pub(crate) fn wants_renewal(&self, now: Now) -> bool {
        self.is_attached()
            && !self.is_closing()
            && self.is_renewed()
            && self.renew_at.is_some_and(|at| at <= now.at)
    }

    fn is_renewed(&self) -> bool {
        self.kind == Kind::Shared || self.owes_renewal || self.tickets.is_asking() || !self.extends.is_empty()
    }

    /// Renew as soon as possible.
    pub(crate) fn renew_now(&mut self, now: Now) {
        self.renew_at = Some(now.at);
        self.owes_renewal = true;
    }

    /// A caller wants a new TTL; on a shared lease it is only raised.
    pub(crate) fn extend(&mut self, now: Now, request: RequestId, ttl: Duration) {
        let ttl = if self.kind == Kind::Shared { ttl.max(self.lease.ttl()) } else { ttl };
        self.names_ttl |= ttl != self.lease.ttl();
        self.lease.set_ttl(ttl);
        self.extends.push((request, None));
        self.renew_now(now);
    }

    pub(crate) fn forget_extend(&mut self, request: RequestId) {
        self.extends.retain(|&(extend, _)| extend != request);
    }

    pub(crate) fn take_extends(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.extends).into_iter().map(|(request, _)| request).collect()
    }

    /// A renewal under `number` is queued now, the next is due `pause` later. Returns what it says about the TTL.
    pub(crate) fn renew(&mut self, now: Now, number: Number, pause: Duration) -> Option<Duration> {
        if let (Some(deadline), Some(cell)) = (self.lease.queue(number, now.boot), &self.cell) {
            cell.set(deadline);
        }
        for (_, queued) in &mut self.extends {
            queued.get_or_insert(number);
        }
        self.renew_at = Some(now.at + pause);
        self.answer_by.get_or_insert(now.at + answer_limit(self.lease.ttl()));
        self.names_ttl.then_some(self.lease.ttl())
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.lease.ttl()
    }

    /// The cluster's answer to renewals up to `number`, on whatever stream it comes.
    pub(crate) fn renewed(
        &mut self,
        now: Now,
        number: Number,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Over> {
        match self.lease.answered(number, now.boot) {
            Answer::Late => return Err(Over),
            Answer::Known => return Ok(()),
            Answer::Until(deadline) => {
                let cell = self.cell.as_ref().expect("a session that renews was opened");
                // Closed by a guard that saw the old deadline pass: lost, whatever this answer allows.
                if !cell.set(deadline) {
                    return Err(Over);
                }
            }
        }
        if self.lease.is_unanswered() {
            self.answer_by = self.answer_by.map(|_| now.at + answer_limit(self.lease.ttl()));
        } else {
            self.answer_by = None;
            self.owes_renewal = false;
            self.set_at_risk(false);
        }
        let done = |queued: Option<Number>| queued.is_some_and(|queued| queued <= number);
        effects.extend(
            self.extends
                .iter()
                .filter(|(_, queued)| done(*queued))
                .map(|&(request, _)| Effect::Extended { request }),
        );
        self.extends.retain(|&(_, queued)| !done(queued));
        Ok(())
    }

    /// The renewal could not be taken. As with [`attach_later`](Session::attach_later), a busy leader is an answer.
    pub(crate) fn renew_later(&mut self, now: Now, error: &OpError) {
        self.renew_at = Some(now.at + error.retry_after.unwrap_or(RETRY_PAUSE));
        self.owes_renewal = true;
        self.set_at_risk(true);
        if !error.is_misplaced() {
            self.answer_by = None;
        }
    }

    fn set_at_risk(&self, at_risk: bool) {
        if let Some(cell) = &self.cell {
            cell.set_at_risk(at_risk);
        }
    }

    /// Its own deadline has passed. Looks at the cell, which closes by that: from here on no answer helps.
    pub(crate) fn is_over(&self) -> bool {
        self.cell.as_ref().is_some_and(|cell| cell.remaining().is_none())
    }

    /// The stream has left something unanswered for too long.
    pub(crate) fn is_unanswered(&self, now: Now) -> bool {
        self.answer_by.is_some_and(|by| by <= now.at)
    }

    /// A renewal is due, and there is no stream to send it on.
    pub(crate) fn note_risk(&self, now: Now) {
        if !self.is_attached() && self.is_renewed() && self.renew_at.is_some_and(|at| at <= now.at) {
            self.set_at_risk(true);
        }
    }

    // ------------------------------------------------------------------------------------------- requests

    pub(crate) fn acquire(&mut self, request: RequestId, ask: Arc<Ask>, wait: Wait) {
        self.idle_since = None;
        self.tickets.acquire(request, ask, wait);
    }

    pub(crate) fn outcome(&mut self, now: Now, ticket: Ticket, outcome: Outcome, effects: &mut Vec<Effect>) {
        let is_granted = matches!(outcome, Outcome::Granted(_));
        if matches!(&outcome, Outcome::Error(error) if error.is_not_attached()) {
            self.attach_again(now);
        }
        let held = self.tickets.held();
        self.tickets.outcome(ticket, outcome, now.at, effects);
        if is_granted && self.kind == Kind::Own && self.tickets.held() > held {
            // From here on nobody renews it but the caller, who shall have the whole TTL.
            self.renew_now(now);
        }
    }

    /// What is to be sent now, beside renewals.
    pub(crate) fn take_ops(&mut self, now: Now, ops: &mut Vec<Op>) {
        let (Stage::Attached, Some(session)) = (&self.stage, self.id) else {
            return;
        };
        match self.closing {
            Closing::No => self.tickets.take_ops(session, now.at, ops),
            Closing::Wanted => {
                // What was released before goes first; its answers may still come.
                self.tickets.take_ops(session, now.at, ops);
                ops.push(Op::Close { session });
                self.closing = Closing::Sent;
                self.answer_by.get_or_insert(now.at + answer_limit(self.lease.ttl()).max(ATTACH_LIMIT));
            }
            Closing::Sent => {}
        }
    }

    // ------------------------------------------------------------------------------------------- end

    /// The cluster shall end it.
    pub(crate) fn close(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Wanted;
        }
    }

    /// It has no id and awaits none: the cluster holds nothing in it, so there is nothing to end.
    pub(crate) fn is_unborn(&self) -> bool {
        self.id.is_none() && self.stage == Stage::Detached
    }

    /// Nobody uses it: an own session after its lock, a shared one after a TTL of rest. So a client that locks with
    /// ever new TTLs does not collect sessions.
    pub(crate) fn is_spent(&mut self, now: Now) -> bool {
        if !self.tickets.is_empty() || !self.extends.is_empty() {
            return false;
        }
        let idle_since = *self.idle_since.get_or_insert(now.at);
        self.kind == Kind::Own || now.at >= idle_since + self.lease.ttl()
    }

    /// When something here becomes due.
    pub(crate) fn wakes_at(&self, now: Now) -> Option<Instant> {
        let deadline = self.remaining(now).map(|remaining| now.at + remaining);
        let rest = self.idle_since.filter(|_| !self.is_closing()).map(|since| since + self.lease.ttl());
        let attached = self.is_attached() && !self.is_closing();
        let renewal = self.renew_at.filter(|_| attached && self.is_renewed());
        // While detached the same moment puts the lease at risk; past that, there is nothing to wake for.
        let risk = self.renew_at.filter(|&at| !self.is_attached() && self.is_renewed() && at > now.at);
        let retry = self.tickets.wakes_at().filter(|_| attached);
        [deadline, rest, renewal, risk, retry, self.answer_by, self.attach_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
