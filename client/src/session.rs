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

/// An attachment, or a close, has so much time while no lock is at stake: enough for slow links and an election.
const ATTACH_LIMIT_MIN: Duration = Duration::from_secs(1);

/// And never more, however long the TTL: somebody waits for it, and another endpoint may answer.
const ATTACH_LIMIT_MAX: Duration = Duration::from_secs(2);

/// How long a leader may be busy before another way is tried: one that is cut off from the others, and does not know it
/// yet, is busy as well.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

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
    /// How many endpoints there are to ask before the lease is over.
    ways: u32,
    cell: Option<Arc<LeaseCell>>,
    /// The TTL was changed since the open, so renewals name it: one that was lost may have carried the change.
    names_ttl: bool,
    renew_at: Option<Instant>,
    /// A renewal is wanted for its own sake: at the grant of an own session, and by a caller.
    owes_renewal: bool,
    /// Callers that wait for a renewal, with its number once it is queued.
    extends: Vec<(RequestId, Option<Number>)>,
    answer_by: Option<Instant>,
    /// The leader has been too busy since then.
    busy_since: Option<Instant>,
    attach_at: Option<Instant>,
    attached_at: Option<Instant>,
    /// Until then the cluster may hold a session whose open was not answered.
    open_until: Option<Instant>,
    idle_since: Option<Instant>,
    closing: Closing,
    /// A close that was refused is said again then.
    close_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Closing {
    No,
    Wanted,
    Sent,
}

impl Session {
    /// `ways` is how many endpoints there are.
    pub(crate) fn new(
        kind: Kind,
        ttl: Duration,
        secret: [u8; 16],
        owner: Arc<str>,
        clock: Clock,
        ways: u32,
    ) -> Session {
        Session {
            kind,
            tickets: Tickets::new(),
            secret,
            owner,
            clock,
            id: None,
            stage: Stage::Detached,
            lease: Lease::new(ttl),
            ways,
            cell: None,
            names_ttl: false,
            renew_at: None,
            owes_renewal: false,
            extends: Vec::new(),
            answer_by: None,
            busy_since: None,
            attach_at: None,
            attached_at: None,
            open_until: None,
            idle_since: None,
            closing: Closing::No,
            close_at: None,
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

    // ------------------------------------------------------------------------------------------- patience

    fn answer_limit(&self, now: Now) -> Duration {
        answer_limit(self.lease.ttl(), self.remaining(now), self.ways)
    }

    /// How long an attachment may stay unanswered.
    pub(crate) fn attach_limit(&self, now: Now) -> Duration {
        if self.holds_locks() {
            self.answer_limit(now).min(ATTACH_LIMIT_MAX)
        } else {
            self.unhurried_limit(now)
        }
    }

    fn unhurried_limit(&self, now: Now) -> Duration {
        self.answer_limit(now).clamp(ATTACH_LIMIT_MIN, ATTACH_LIMIT_MAX)
    }

    /// Before an operation that was refused for now is sent again: as long as the server asks, but a lease must not end
    /// of it.
    fn pause(&self, now: Now, error: &OpError) -> Duration {
        let pause = error.retry_after.unwrap_or(RETRY_PAUSE);
        self.remaining(now).map_or(pause, |left| pause.min((left / 4).max(RETRY_PAUSE)))
    }

    /// An operation was refused for now. By a leader that is busy: that is an answer, and for a while no other way is
    /// better. By a node that leads nowhere: the time for an answer goes on.
    fn note_refusal(&mut self, now: Now, error: &OpError) {
        if !error.is_misplaced() {
            let since = *self.busy_since.get_or_insert(now.at);
            let share = self.remaining(now).map_or(BUSY_LIMIT, |left| left / (self.ways + 1));
            self.answer_by = Some(since + BUSY_LIMIT.min(share));
        }
    }

    /// Something is being sent. What was sent before is not given more time by that.
    fn expect_answer(&mut self, now: Now, limit: Duration) {
        let by = now.at + limit;
        self.answer_by = Some(self.answer_by.map_or(by, |before| before.min(by)));
    }

    /// Nothing is owed to it any more.
    fn note_answer(&mut self) {
        self.answer_by = None;
        self.busy_since = None;
    }

    // ------------------------------------------------------------------------------------------- attachment

    /// A stream is there: what to send first on it.
    pub(crate) fn attach(&mut self, now: Now, key: Key, number: Number, attachment: Attachment) -> Op {
        let limit = self.attach_limit(now);
        self.expect_answer(now, limit);
        self.attach_at = None;
        self.attached_at = Some(now.at);
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
                self.open_until = Some(now.at + self.lease.ttl());
                let (secret, owner, ttl) = (self.secret, self.owner.clone(), self.lease.ttl());
                Op::Open { key, secret, owner, ttl, number, attachment }
            }
        }
    }

    /// The stream is gone, or silent.
    pub(crate) fn detach(&mut self) {
        self.stage = Stage::Detached;
        self.note_answer();
        self.attach_at = None;
        if self.lease.is_unanswered() {
            self.set_at_risk(true);
        }
    }

    /// The attachment was refused for now.
    pub(crate) fn attach_later(&mut self, now: Now, error: &OpError) {
        self.stage = Stage::Detached;
        self.attach_at = Some(now.at + self.pause(now, error));
        self.note_refusal(now, error);
    }

    /// The cluster no longer knows the attachment: resume on the same stream. At once, unless that was just done.
    pub(crate) fn attach_again(&mut self, now: Now) {
        if self.stage == Stage::Attached {
            self.stage = Stage::Detached;
            let earliest = self.attached_at.map_or(now.at, |at| at + RETRY_PAUSE);
            self.attach_at = Some(earliest.max(now.at));
            self.answer_by = None;
        }
    }

    /// New, or refused before and due again.
    pub(crate) fn wants_attachment(&self, now: Now) -> bool {
        self.stage == Stage::Detached && self.attach_at.is_none_or(|at| at <= now.at)
    }

    pub(crate) fn opened(&mut self, now: Now, session: SessionId, number: Number) -> Result<(), Over> {
        self.id = Some(session);
        self.stage = Stage::Attached;
        self.note_answer();
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
        self.note_answer();
        if let Some(number) = whole.number {
            self.renewed(now, number, effects)?;
        }
        if self.lease.is_unanswered() {
            self.renew_at = Some(now.at);
        }
        let held = self.tickets.held();
        self.tickets.resumed(&whole, effects);
        self.note_grant(now, held);
        Ok(())
    }

    /// An own session is renewed by nobody but the caller once its lock is granted; that shall begin with the whole TTL.
    fn note_grant(&mut self, now: Now, held_before: usize) {
        if self.kind == Kind::Own && self.tickets.held() > held_before {
            self.renew_now(now);
        }
    }

    // ------------------------------------------------------------------------------------------- lease

    pub(crate) fn wants_renewal(&self, now: Now) -> bool {
        self.is_attached()
            && !self.is_closing()
            && self.is_renewed()
            && (self.renew_at.is_some_and(|at| at <= now.at) || self.has_overslept(now))
    }

    /// Timers stand while the machine is suspended, and the lease does not: a renewal is due though its timer says that
    /// there is time. At half of the TTL no other should be left without one under way.
    fn has_overslept(&self, now: Now) -> bool {
        let is_low = self.remaining(now).is_some_and(|left| left < self.lease.ttl() / 2);
        is_low && !self.lease.is_unanswered()
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
        let limit = self.answer_limit(now);
        self.expect_answer(now, limit);
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
            let limit = self.answer_limit(now);
            self.answer_by = self.answer_by.map(|_| now.at + limit);
        } else {
            self.note_answer();
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

    /// The renewal could not be taken. Returns the callers whose new TTL the cluster does not allow; the lease goes on
    /// with the last one that it took.
    pub(crate) fn renew_later(&mut self, now: Now, error: &OpError) -> Vec<RequestId> {
        if self.is_closing() {
            self.close_later(now, error);
            return Vec::new();
        }
        let is_final = !error.is_transient() && error.retry_after.is_none();
        if is_final && self.lease.forget_ttl() {
            self.renew_now(now);
            self.note_answer();
            return self.take_extends();
        }
        self.renew_at = Some(now.at + self.pause(now, error));
        self.owes_renewal = true;
        self.set_at_risk(true);
        self.note_refusal(now, error);
        Vec::new()
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
        if let Outcome::Error(error) = &outcome {
            if error.is_not_attached() {
                self.attach_again(now);
            } else if ticket == Ticket::NONE {
                self.close_later(now, error);
            }
        }
        let held = self.tickets.held();
        self.tickets.outcome(ticket, outcome, now.at, effects);
        self.note_grant(now, held);
    }

    /// The stream answers, but not this: the way behind it has swallowed something.
    pub(crate) fn misses_an_answer(&self, now: Now) -> bool {
        self.is_attached() && !self.is_closing() && self.tickets.answer_by().is_some_and(|by| by <= now.at)
    }

    /// What is to be sent now, beside renewals.
    pub(crate) fn take_ops(&mut self, now: Now, ops: &mut Vec<Op>) {
        let (Stage::Attached, Some(session)) = (&self.stage, self.id) else {
            return;
        };
        match self.closing {
            Closing::No => self.tickets.take_ops(session, now.at, ops),
            Closing::Wanted if self.close_at.is_some_and(|at| at > now.at) => {}
            Closing::Wanted => {
                // What was released before goes first; its answers may still come.
                self.tickets.take_ops(session, now.at, ops);
                ops.push(Op::Close { session });
                self.closing = Closing::Sent;
                self.close_at = None;
                let limit = self.unhurried_limit(now);
                self.expect_answer(now, limit);
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

    /// The close was refused.
    fn close_later(&mut self, now: Now, error: &OpError) {
        if self.closing == Closing::Sent {
            self.closing = Closing::Wanted;
            self.close_at = Some(now.at + self.pause(now, error));
            self.note_refusal(now, error);
        }
    }

    /// It was never asked for, or so long ago that the cluster has forgotten it: there is nothing to end. An open whose
    /// answer was lost may have made a session; it is asked for again, under the same secret, to be closed.
    pub(crate) fn is_unborn(&self, now: Now) -> bool {
        let is_asked_for = self.open_until.is_some_and(|until| until > now.at);
        self.id.is_none() && self.stage == Stage::Detached && !is_asked_for
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
        let close = self.close_at.filter(|_| self.is_attached());
        let unborn = self.open_until.filter(|_| self.id.is_none() && self.is_closing());
        let unborn = unborn.filter(|&until| until > now.at);
        let all = [deadline, rest, renewal, risk, retry, close, unborn, self.answer_by, self.attach_at];
        all.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
