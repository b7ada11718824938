//! The requests of one session: which operation each still needs, and what each answer means.
//!
//! Pure: operations and effects come out, instants go in. It knows no stream; `session.rs` says when one is there.
//!
//! - A ticket is unanswered from its first sending until an answer for it arrives; `acked` is the lowest unanswered
//!   one. A queued request has its answer, and does not hold `acked` back.
//! - A request keeps its ticket and its arguments over all repeats, so a repeat finds its own outcome.
//! - What nobody here wants any more is cancelled or released, and that is repeated until it is answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use crate::info::{Contention, FencingToken};
use crate::keeper::RequestId;
use crate::wire::{Ask, Op, OpError, Outcome, Resumed, SessionId, Ticket, Wait};

/// How far the newest ticket may be ahead of `acked`; the cluster refuses more.
pub(crate) const WINDOW: u64 = 65_536;

/// Before an operation that could not be taken is sent again, if the answer names no time.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long an operation may stay unanswered before the session is resumed. Its answer is due after one commit. Two
/// seconds leave a caller whose patience is five the time for a resume and one more endpoint.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// With each repeat the limit grows, up to so many times: a cluster that is slow under load must not be asked ever more.
const ANSWER_LIMIT_GROWTH: u32 = 4;

/// How long an operation may be refused for now before the session is resumed, which a leader that is cut off from the
/// others cannot answer.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// What a caller is to be told.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    Granted {
        request: RequestId,
        token: FencingToken,
        attempts: u32,
    },
    Queued {
        request: RequestId,
        place: u32,
    },
    /// Not acquired and not queued.
    Refused {
        request: RequestId,
        contention: Contention,
    },
    /// The cluster ended the wait.
    WaitEnded {
        request: RequestId,
        contention: Contention,
    },
    /// It is over, but the answer that said how was lost.
    Over {
        request: RequestId,
    },
    Failed {
        request: RequestId,
        error: OpError,
    },
    /// The release is done; false if the cluster says that the token did not hold the lock.
    Released {
        request: RequestId,
        held: bool,
    },
    /// A lock that a guard claims is not held.
    NotHeld {
        request: RequestId,
    },
    /// The renewal that the caller asked for is answered.
    Extended {
        request: RequestId,
    },
}

#[derive(Debug)]
struct Entry {
    /// `None` for what a resume brought to light and nobody claims.
    request: Option<RequestId>,
    phase: Phase,
    ask: Arc<Ask>,
    wait: Wait,
    sent: u32,
    /// Since its last answer.
    unheard: u32,
    /// Counted in `awaited` under this.
    answer_by: Option<Instant>,
    /// When it was first refused for now, since the last resume.
    refused_since: Option<Instant>,
    /// Granted before the current resume was sent, so its answer must list it. What is granted while the answer is
    /// under way need not be in it.
    settled: bool,
}

impl Entry {
    fn new(request: Option<RequestId>, phase: Phase, ask: Arc<Ask>, wait: Wait) -> Entry {
        Entry {
            request,
            phase,
            ask,
            wait,
            sent: 0,
            unheard: 0,
            answer_by: None,
            refused_since: None,
            settled: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Asking,
    Queued,
    Held(FencingToken),
    Cancelling,
    Releasing(FencingToken),
}

/// Tickets that enter in their order and leave in any. All that is asked is for the lowest.
#[derive(Debug, Default)]
struct Unanswered {
    lowest: u64,
    /// From the lowest on: whether it is still in. The first is, or there is none. One byte for each ticket up to the
    /// newest, and those are as many as callers, or [`WINDOW`] behind one that is late.
    are_in: VecDeque<bool>,
}

impl Unanswered {
    fn first(&self) -> Option<Ticket> {
        (!self.are_in.is_empty()).then_some(Ticket(self.lowest))
    }

    /// Adds the ticket after the one that was added last.
    fn push(&mut self, ticket: Ticket) {
        if self.are_in.is_empty() {
            self.lowest = ticket.0;
        }
        debug_assert_eq!(ticket.0, self.lowest + self.are_in.len() as u64);
        self.are_in.push_back(true);
    }

    fn remove(&mut self, ticket: Ticket) {
        let place = ticket.0.checked_sub(self.lowest).and_then(|place| usize::try_from(place).ok());
        if let Some(is_in) = place.and_then(|place| self.are_in.get_mut(place)) {
            *is_in = false;
        }
        while self.are_in.front() == Some(&false) {
            self.are_in.pop_front();
            self.lowest += 1;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Tickets {
    entries: FxHashMap<Ticket, Entry>,
    by_request: FxHashMap<RequestId, Ticket>,
    /// Whose operation is to be sent.
    unsent: BTreeSet<Ticket>,
    /// Whose operation is to be sent again then.
    later: BTreeSet<(Instant, Ticket)>,
    /// How many answers are due by when. What is sent together is due together, so these are few.
    awaited: BTreeMap<Instant, usize>,
    unanswered: Unanswered,
    next: Ticket,
    held: usize,
}

impl Tickets {
    pub(crate) fn new() -> Tickets {
        Tickets {
            entries: FxHashMap::default(),
            by_request: FxHashMap::default(),
            unsent: BTreeSet::new(),
            later: BTreeSet::new(),
            awaited: BTreeMap::new(),
            unanswered: Unanswered::default(),
            next: Ticket(1),
            held: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Locks that a guard holds.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Some request still waits for a grant.
    pub(crate) fn is_asking(&self) -> bool {
        self.entries.values().any(|entry| matches!(entry.phase, Phase::Asking | Phase::Queued))
    }

    /// Every caller with something in this session, in the order in which they came.
    pub(crate) fn requests(&self) -> Vec<RequestId> {
        let mut requests: Vec<RequestId> = self.by_request.keys().copied().collect();
        requests.sort_unstable();
        requests
    }

    fn acked(&self) -> Ticket {
        self.unanswered.first().unwrap_or(self.next)
    }

    pub(crate) fn acquire(&mut self, request: RequestId, ask: Arc<Ask>, wait: Wait) {
        let ticket = self.next;
        self.next = Ticket(ticket.0 + 1);
        let entry = Entry::new(Some(request), Phase::Asking, ask, wait);
        self.entries.insert(ticket, entry);
        self.by_request.insert(request, ticket);
        self.unsent.insert(ticket);
        self.unanswered.push(ticket);
    }

    /// Nobody wants this request any more: it is cancelled, or released if it was granted.
    pub(crate) fn abandon(&mut self, request: RequestId) {
        let Some(&ticket) = self.by_request.get(&request) else {
            return;
        };
        let entry = &self.entries[&ticket];
        match entry.phase {
            Phase::Asking if entry.sent == 0 => self.remove(ticket),
            Phase::Asking | Phase::Queued => self.enter(ticket, Phase::Cancelling),
            Phase::Held(token) => self.enter(ticket, Phase::Releasing(token)),
            Phase::Cancelling | Phase::Releasing(_) => {}
        }
    }

    /// The operations that are due, in order of their tickets.
    pub(crate) fn take_ops(&mut self, session: SessionId, now: Instant, ops: &mut Vec<Op>) {
        while let Some(&(at, ticket)) = self.later.first().filter(|(at, _)| *at <= now) {
            self.later.remove(&(at, ticket));
            if self.entries.contains_key(&ticket) {
                self.unsent.insert(ticket);
            }
        }
        let acked = self.acked();
        while let Some(&ticket) = self.unsent.first().filter(|ticket| ticket.0 < acked.0 + WINDOW) {
            self.unsent.remove(&ticket);
            let entry = self.entries.get_mut(&ticket).expect("what is unsent has an entry");
            entry.sent += 1;
            entry.unheard += 1;
            ops.push(match entry.phase {
                Phase::Asking => {
                    Op::Acquire { session, ticket, ask: entry.ask.clone(), wait: entry.wait, acked }
                }
                Phase::Cancelling => Op::Cancel { session, ticket, acked },
                Phase::Releasing(token) => Op::Release { session, ticket, token, acked },
                Phase::Queued | Phase::Held(_) => continue,
            });
            let limit = now + ANSWER_LIMIT * entry.unheard.min(ANSWER_LIMIT_GROWTH);
            let by = entry.refused_since.map_or(limit, |since| limit.min(since + BUSY_LIMIT));
            self.await_answer(ticket, Some(by));
        }
    }

    /// When something here becomes due: an operation to be sent again, or an answer.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at).into_iter().chain(self.answer_by()).min()
    }

    /// When the first answer is overdue.
    pub(crate) fn answer_by(&self) -> Option<Instant> {
        self.awaited.first_key_value().map(|(by, _)| *by)
    }

    fn await_answer(&mut self, ticket: Ticket, by: Option<Instant>) {
        let entry = self.entries.get_mut(&ticket).expect("the caller looked it up");
        if let Some(before) = std::mem::replace(&mut entry.answer_by, by) {
            self.await_one_less(before);
        }
        if let Some(by) = by {
            *self.awaited.entry(by).or_default() += 1;
        }
    }

    fn await_one_less(&mut self, by: Instant) {
        if let btree_map::Entry::Occupied(mut due) = self.awaited.entry(by) {
            *due.get_mut() -= 1;
            if *due.get() == 0 {
                due.remove();
            }
        }
    }

    /// A resume is about to be sent: its answer must list every lock that is held by now.
    pub(crate) fn resuming(&mut self) {
        for entry in self.entries.values_mut() {
            entry.settled = matches!(entry.phase, Phase::Held(_) | Phase::Releasing(_));
            entry.answer_by = None;
            entry.refused_since = None;
        }
        // The answer decides anew what is to be sent, and it has a limit of its own.
        self.later.clear();
        self.awaited.clear();
    }

    /// One answer or push.
    pub(crate) fn outcome(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(&ticket) else {
            // Nobody here knows of it any more, so nobody else will give it back.
            match outcome {
                Outcome::Granted(token) if ticket < self.next => {
                    self.give_back(ticket, Phase::Releasing(token));
                }
                Outcome::Queued { .. } if ticket < self.next => self.give_back(ticket, Phase::Cancelling),
                _ => {}
            }
            return;
        };
        let request = entry.request;
        let effect = match (entry.phase, outcome) {
            (_, Outcome::Error(error)) if error.is_transient() => {
                let since = *entry.refused_since.get_or_insert(now);
                entry.unheard = 0;
                self.later.insert((now + error.retry_after.unwrap_or(RETRY_PAUSE), ticket));
                self.await_answer(ticket, Some(since + BUSY_LIMIT));
                return;
            }
            // The resume that follows sends it again.
            (_, Outcome::Error(error)) if error.is_not_attached() => return,

            (Phase::Asking | Phase::Queued, Outcome::Granted(token)) => {
                self.granted(ticket, token, effects);
                return;
            }
            (Phase::Asking | Phase::Queued, Outcome::Queued { place }) => {
                self.queued(ticket, place, effects);
                return;
            }
            (Phase::Asking | Phase::Queued, Outcome::Refused(contention)) => {
                request.map(|request| Effect::Refused { request, contention })
            }
            (Phase::Asking | Phase::Queued, Outcome::WaitEnded(contention)) => {
                request.map(|request| Effect::WaitEnded { request, contention })
            }
            (Phase::Asking | Phase::Queued, Outcome::Finished | Outcome::NotHolder) => {
                request.map(|request| Effect::Over { request })
            }
            (Phase::Asking | Phase::Queued, Outcome::Error(error)) => {
                request.map(|request| Effect::Failed { request, error })
            }

            (Phase::Held(_), Outcome::Finished | Outcome::NotHolder) => {
                request.map(|request| Effect::NotHeld { request })
            }
            // A repeat of what is known.
            (Phase::Held(_), _) => return,

            // The answer to the acquire came in between; the cancel undoes it, and its own answer follows.
            (Phase::Cancelling, Outcome::Granted(_) | Outcome::Queued { .. }) => return,
            (Phase::Cancelling, _) => None,

            (Phase::Releasing(_), Outcome::Finished) => {
                request.map(|request| Effect::Released { request, held: true })
            }
            (Phase::Releasing(_), Outcome::NotHolder | Outcome::Error(_)) => {
                request.map(|request| Effect::Released { request, held: false })
            }
            (Phase::Releasing(_), _) => return,
        };
        self.remove(ticket);
        effects.extend(effect);
    }

    /// The whole answer to a resume. What the cluster has and nobody here claims is given back; what it lacks is
    /// sent again.
    pub(crate) fn resumed(&mut self, answer: &Resumed, effects: &mut Vec<Effect>) {
        let held: BTreeMap<Ticket, FencingToken> = answer.held.iter().copied().collect();
        let queued: BTreeMap<Ticket, u32> = answer.queued.iter().copied().collect();
        let finished: BTreeSet<Ticket> = answer.finished.iter().copied().collect();
        let is_over =
            |ticket: Ticket| finished.contains(&ticket) || answer.acked.is_some_and(|acked| ticket < acked);

        self.unsent.clear();
        let mut tickets: Vec<Ticket> = self.entries.keys().copied().collect();
        tickets.sort_unstable();
        for ticket in tickets {
            let entry = &self.entries[&ticket];
            let (request, token, place) = (entry.request, held.get(&ticket), queued.get(&ticket));
            match entry.phase {
                Phase::Asking | Phase::Queued if token.is_some() => {
                    self.granted(ticket, *token.expect("just looked at"), effects);
                }
                Phase::Asking | Phase::Queued if place.is_some() => {
                    self.queued(ticket, *place.expect("just looked at"), effects);
                }
                Phase::Asking if !is_over(ticket) => {
                    self.unsent.insert(ticket);
                }
                // A queued request was known to the cluster, so one that is unknown now has ended.
                Phase::Asking | Phase::Queued => {
                    self.remove(ticket);
                    effects.extend(request.map(|request| Effect::Over { request }));
                }
                Phase::Held(_) if entry.settled && token.is_none() => {
                    self.remove(ticket);
                    effects.extend(request.map(|request| Effect::NotHeld { request }));
                }
                Phase::Held(_) => {}
                Phase::Releasing(_) if entry.settled && token.is_none() => {
                    self.remove(ticket);
                    effects.extend(request.map(|request| Effect::Released { request, held: true }));
                }
                Phase::Cancelling if is_over(ticket) && token.is_none() && place.is_none() => {
                    self.remove(ticket)
                }
                Phase::Releasing(_) | Phase::Cancelling => {
                    self.unsent.insert(ticket);
                }
            }
        }
        for (&ticket, &token) in &held {
            self.give_back(ticket, Phase::Releasing(token));
        }
        for &ticket in queued.keys() {
            self.give_back(ticket, Phase::Cancelling);
        }
    }

    fn give_back(&mut self, ticket: Ticket, phase: Phase) {
        if self.entries.contains_key(&ticket) {
            return;
        }
        let entry = Entry::new(None, phase, Arc::default(), Wait::AtMost(Duration::ZERO));
        self.entries.insert(ticket, Entry { settled: true, ..entry });
        self.unsent.insert(ticket);
    }

    fn granted(&mut self, ticket: Ticket, token: FencingToken, effects: &mut Vec<Effect>) {
        self.answered(ticket);
        let entry = self.entries.get_mut(&ticket).expect("the caller looked it up");
        entry.phase = Phase::Held(token);
        self.held += 1;
        let attempts = entry.sent;
        effects.extend(entry.request.map(|request| Effect::Granted { request, token, attempts }));
    }

    fn queued(&mut self, ticket: Ticket, place: u32, effects: &mut Vec<Effect>) {
        self.answered(ticket);
        let entry = self.entries.get_mut(&ticket).expect("the caller looked it up");
        entry.phase = Phase::Queued;
        effects.extend(entry.request.map(|request| Effect::Queued { request, place }));
    }

    /// The acquire has its answer.
    fn answered(&mut self, ticket: Ticket) {
        self.unanswered.remove(ticket);
        self.await_answer(ticket, None);
    }

    /// Into a phase that needs an operation sent.
    fn enter(&mut self, ticket: Ticket, phase: Phase) {
        self.await_answer(ticket, None);
        let entry = self.entries.get_mut(&ticket).expect("the caller looked it up");
        if matches!(entry.phase, Phase::Held(_)) {
            self.held -= 1;
        }
        entry.phase = phase;
        entry.unheard = 0;
        entry.refused_since = None;
        self.unsent.insert(ticket);
    }

    fn remove(&mut self, ticket: Ticket) {
        self.unsent.remove(&ticket);
        self.unanswered.remove(ticket);
        if let Some(entry) = self.entries.remove(&ticket) {
            if let Some(by) = entry.answer_by {
                self.await_one_less(by);
            }
            if matches!(entry.phase, Phase::Held(_)) {
                self.held -= 1;
            }
            if let Some(request) = entry.request {
                self.by_request.remove(&request);
            }
        }
    }
}

#[cfg(test)]
mod tests;
