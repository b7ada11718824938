//! What people and resuming clients may see of a table. Nothing here changes it.
//!
//! Each answer takes time in proportion to its own size, except where it says otherwise.

use std::ops::Bound;

use crate::grant::saturated;
use crate::lock::Lock;
use crate::session::{Request, State};
use crate::table::LockTable;
use crate::text::{Name, Owner};
use crate::types::{Metadata, Mode, RenewalNumber, Secret, Sequence, SessionId, Ticket, Token};

/// Who holds a lock and who waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockView {
    /// In the order of their tokens.
    pub holders: Vec<HolderView>,
    /// How many there are in all.
    pub holder_count: u32,
    /// In the order in which they will be served.
    pub waiters: Vec<WaiterView>,
    /// How many there are in all.
    pub queue_length: u32,
}

/// One that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields named after their types")]
pub struct HolderView {
    pub owner: Owner,
    pub token: Token,
    /// For people, never for a deadline.
    pub remaining_ms: u64,
    pub mode: Mode,
    pub metadata: Metadata,
}

/// One that waits for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields named after their types")]
pub struct WaiterView {
    pub owner: Owner,
    /// 1 is the next to be served.
    pub place: u32,
    /// In cluster time.
    pub waiting_ms: u64,
    pub mode: Mode,
}

/// A line of a list of locks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields named after their types")]
pub struct LockSummary {
    pub name: Name,
    /// The holder whose lease ends last among the newest 64; `None` if the lock is only waited for.
    pub holder: Option<HolderView>,
    /// The holders', or the oldest waiter's.
    pub mode: Mode,
    pub holder_count: u32,
    pub queue_length: u32,
}

/// What a session finds when it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// What it holds, by ticket.
    pub held: Vec<(Ticket, Token)>,
    /// What it waits for, by ticket, and at which place.
    pub queued: Vec<(Ticket, u32)>,
    /// What is over, at or above `acked`.
    pub finished: Vec<Ticket>,
    /// The client has the answer to every ticket below that is not still queued.
    pub acked: Ticket,
    /// The highest number of a renewal that counted.
    pub number: RenewalNumber,
}

impl LockTable {
    /// A lock, with at most `max` holders and `max` waiters. A free lock has none.
    pub fn get(&self, name: &str, max: usize) -> LockView {
        let Some(lock) = self.locks.get(name) else {
            return LockView::default();
        };
        let holders = lock.holders().take(max).filter_map(|holder| self.holder_view(holder));
        let queue = lock.queue().iter().take(max).enumerate();
        let waiters = queue.filter_map(|(ahead, waiter)| self.waiter_view(waiter, ahead));
        LockView {
            holders: holders.collect(),
            holder_count: saturated(lock.holder_count()),
            waiters: waiters.collect(),
            queue_length: saturated(lock.queue().len()),
        }
    }

    /// At most `max` locks whose names begin with `prefix`, in the order of their names, from the
    /// first after `after`.
    pub fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Vec<LockSummary> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let locks = self.locks.range::<str, _>((from, Bound::Unbounded));
        let with_prefix = locks.take_while(|(name, _)| name.as_str().starts_with(prefix));
        with_prefix.take(max).filter_map(|(name, lock)| self.summary(name, lock)).collect()
    }

    /// What a session holds and waits for, if it exists and this is its secret. Takes time in
    /// proportion to all it has; a place in a queue of 100,000 costs some 1,600 additions more.
    pub fn resume(&self, session: SessionId, secret: &Secret) -> Option<SessionView> {
        let stream = self.stream(session).filter(|stream| stream.secret.matches(secret))?;
        let tickets = (session, Ticket::default())..=(session, Ticket::new(u64::MAX));
        let mut view = SessionView {
            held: Vec::new(),
            queued: Vec::new(),
            finished: Vec::new(),
            acked: stream.acked,
            number: stream.number,
        };
        for (ticket, sequence) in self.live.of(session) {
            match self.request(sequence).state {
                State::Held { token } => view.held.push((ticket, token)),
                State::Queued { .. } => view.queued.push((ticket, self.place(sequence))),
            }
        }
        let finished = self.finished.range(tickets).map(|((_, ticket), _)| ticket);
        view.finished.extend(finished.filter(|ticket| *ticket >= stream.acked));
        Some(view)
    }

    fn summary(&self, name: &Name, lock: &Lock) -> Option<LockSummary> {
        let first = lock.first_holder().or_else(|| lock.queue().first())?;
        Some(LockSummary {
            name: name.clone(),
            holder: self.holder_latest(lock).and_then(|holder| self.holder_view(holder)),
            mode: self.request(first).mode,
            holder_count: saturated(lock.holder_count()),
            queue_length: saturated(lock.queue().len()),
        })
    }

    fn holder_view(&self, sequence: Sequence) -> Option<HolderView> {
        let request = self.request(sequence);
        Some(HolderView {
            owner: self.owner(request)?,
            token: request.token()?,
            remaining_ms: self.remaining_ms(request.session),
            mode: request.mode,
            metadata: request.metadata.clone(),
        })
    }

    fn waiter_view(&self, sequence: Sequence, ahead: usize) -> Option<WaiterView> {
        let request = self.request(sequence);
        let State::Queued { since, .. } = request.state else {
            return None;
        };
        Some(WaiterView {
            owner: self.owner(request)?,
            place: saturated(ahead + 1),
            waiting_ms: self.now().since(since),
            mode: request.mode,
        })
    }

    /// `None` only between the steps of a batch that ends the session.
    fn owner(&self, request: &Request) -> Option<Owner> {
        Some(self.sessions.get(request.session)?.owner.clone())
    }
}
