//! Every invariant of a table, checked one by one. Tests run all of it after each batch; a restore, at its end, what
//! is to be checked of the records.
//!
//! It trusts nothing: the table may come from a forged snapshot. It takes time in proportion to the
//! whole table.

use std::collections::BTreeSet;

use crate::limits::{NAMES_PER_REQUEST_CEILING, TICKET_WINDOW_CEILING};
use crate::lock::Lock;
use crate::session::{Kind, Request, Session, State, UNARY_TICKET};
use crate::table::LockTable;
use crate::text::Name;
use crate::types::{Mode, Sequence, SessionId};

/// Fails with the sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+));
        }
    };
}

impl LockTable {
    /// Whether every invariant holds, between batches. If not, the broken one in words.
    pub fn check(&self) -> Result<(), String> {
        self.check_records()?;
        self.check_derived()
    }

    /// What a table that was just built from records can still have wrong: the records themselves. What is derived
    /// from them is right by the way it is built, and most of what there is to look at.
    pub(crate) fn check_records(&self) -> Result<(), String> {
        ensure!(!self.in_batch(), "a batch is in progress");
        ensure!(self.work.is_empty(), "a batch left work behind");
        self.check_header()?;
        for (id, session) in self.sessions.iter() {
            self.check_session(id, session)?;
        }
        for (sequence, request) in self.requests.iter() {
            self.check_request(sequence, request)?;
        }
        for (name, lock) in self.locks.iter().filter(|(_, lock)| matches!(lock, Lock::Crowd(_))) {
            self.check_lock(name, lock).map_err(|problem| format!("lock {name:?}: {problem}"))?;
        }
        self.check_finished()?;
        self.check_tokens()
    }

    /// Whether what is derived from the records says the same as they.
    fn check_derived(&self) -> Result<(), String> {
        for (id, session) in self.sessions.iter() {
            self.check_session_derived(id, session)?;
        }
        for (sequence, request) in self.requests.iter() {
            self.check_request_derived(sequence, request)?;
        }
        for (name, lock) in self.locks.iter().filter(|(_, lock)| matches!(lock, Lock::Single(_))) {
            self.check_lock(name, lock).map_err(|problem| format!("lock {name:?}: {problem}"))?;
        }
        for ((id, ticket), _) in self.finished.iter() {
            let highest = self.session(id).highest;
            ensure!(!highest.is_below(ticket), "session {id}: finished ticket {ticket} is above the highest");
        }
        self.check_sizes()
    }

    fn check_header(&self) -> Result<(), String> {
        if let Some(settings) = &self.header.settings {
            settings.check().map_err(|rejection| format!("the settings are unsound: {rejection}"))?;
        } else {
            ensure!(self.sessions.len() == 0, "there are sessions before there are settings");
        }
        Ok(())
    }

    fn check_session(&self, id: SessionId, session: &Session) -> Result<(), String> {
        ensure!(id <= self.header.session_last, "session {id} was never given");
        let Kind::Unary { name, .. } = &session.kind else { return Ok(()) };
        let request = self.live.get(id, UNARY_TICKET).and_then(|sequence| self.requests.get(sequence));
        ensure!(
            request.is_some_and(|request| request.names.as_slice() == std::slice::from_ref(name)),
            "unary session {id}: it has no request for its name"
        );
        Ok(())
    }

    fn check_session_derived(&self, id: SessionId, session: &Session) -> Result<(), String> {
        ensure!(
            self.deadlines.sessions.contains(&(session.deadline, id)),
            "session {id}: its deadline is not in the index"
        );
        let requests = self.live.of(id).filter_map(|(_, sequence)| self.requests.get(sequence));
        let names: u64 = requests.map(|request| request.names.as_slice().len() as u64).sum();
        ensure!(
            session.lock_count == names,
            "session {id}: it has {names} names, counted {}",
            session.lock_count
        );
        match &session.kind {
            Kind::Stream(stream) => ensure!(
                self.secrets.get(&stream.secret) == Some(&id),
                "session {id}: its secret is not in the index"
            ),
            Kind::Unary { .. } => {
                let key = self.unary_key(id);
                let request =
                    self.live.get(id, UNARY_TICKET).and_then(|sequence| self.requests.get(sequence));
                let is_queued = request.is_some_and(|request| request.is_queued());
                let index = if is_queued { &self.unary.queued } else { &self.unary.held };
                ensure!(index.get(&key) == Some(&id), "unary session {id}: its key is not in the index");
            }
        }
        Ok(())
    }

    fn check_request(&self, sequence: Sequence, request: &Request) -> Result<(), String> {
        let names = request.names.as_slice();
        ensure!(sequence <= self.header.sequence_last, "request {sequence} was never numbered");
        ensure!(
            !names.is_empty() && names.len() as u64 <= NAMES_PER_REQUEST_CEILING,
            "request {sequence}: it names {} locks",
            names.len()
        );
        ensure!(
            names.len() == 1 || names.iter().collect::<BTreeSet<_>>().len() == names.len(),
            "request {sequence}: it names a lock twice"
        );
        let Some(session) = self.sessions.get(request.session) else {
            return Err(format!("request {sequence}: its session is gone"));
        };
        if let Kind::Stream(stream) = &session.kind {
            let ahead = request.ticket.get().saturating_sub(stream.acked.get());
            ensure!(ahead < TICKET_WINDOW_CEILING, "request {sequence}: its ticket is {ahead} ahead");
        } else {
            ensure!(request.ticket == UNARY_TICKET, "request {sequence}: a second one of a unary call");
        }
        Ok(())
    }

    fn check_request_derived(&self, sequence: Sequence, request: &Request) -> Result<(), String> {
        ensure!(
            self.live.get(request.session, request.ticket) == Some(sequence),
            "request {sequence}: its ticket is not in the index"
        );
        ensure!(
            !self.session(request.session).highest.is_below(request.ticket),
            "request {sequence}: its ticket is above its session's highest"
        );
        if let State::Queued { wait_end: Some(at), .. } = request.state {
            ensure!(
                self.deadlines.waits.contains(&(at, sequence)),
                "request {sequence}: nothing will end its wait"
            );
        }
        Ok(())
    }

    fn check_lock(&self, name: &Name, lock: &Lock) -> Result<(), String> {
        let mut others: Option<Mode> = None;
        let mut token = None;
        let (mut permits_held, mut permits_requests, mut capacity) = (0u64, 0u64, None);
        let mut last = None;
        let holders = lock.holders().map(|sequence| (sequence, true));
        let waiters = lock.queue().iter().map(|sequence| (sequence, false));
        ensure!(lock.holder_count() + lock.queue().len() > 0, "nobody holds it or waits for it");
        for (sequence, is_holder) in holders.chain(waiters) {
            let Some(request) = self.requests.get(sequence) else {
                return Err(format!("request {sequence} is gone"));
            };
            ensure!(request.names.as_slice().contains(name), "request {sequence} does not name it");
            ensure!(request.is_queued() != is_holder, "request {sequence} is in the wrong place");
            ensure!(last < Some(sequence), "request {sequence} was served before an earlier one");
            last = Some(sequence);
            if let Mode::Permits { permits, capacity: named } = request.mode {
                ensure!(
                    (1..=named).contains(&permits),
                    "request {sequence} has {permits} permits of {named}"
                );
                ensure!(
                    capacity.is_none_or(|capacity| capacity == named),
                    "requests name different capacities"
                );
                capacity = Some(named);
                permits_requests += 1;
                permits_held += if is_holder { u64::from(permits) } else { 0 };
            }
            if !is_holder {
                continue;
            }
            ensure!(token < request.token(), "request {sequence}: tokens do not rise");
            token = request.token();
            let fits = match (others, request.mode) {
                (None, _) | (Some(Mode::Shared), Mode::Shared) => true,
                (Some(Mode::Permits { .. }), Mode::Permits { .. }) => true,
                (Some(_), _) => false,
            };
            ensure!(fits, "request {sequence} holds it against others");
            others = Some(request.mode);
        }
        ensure!(permits_held <= u64::from(capacity.unwrap_or(0)), "more permits are held than there are");
        if let Some(crowd) = lock.crowd() {
            ensure!(
                (u64::from(crowd.permits_held()), crowd.permits_requests(), crowd.capacity())
                    == (permits_held, permits_requests, capacity),
                "permits are counted wrong"
            );
            ensure!(lock.holder_count() != 1 || !lock.queue().is_empty(), "it is not in its small form");
        }
        self.check_head(lock)
    }

    /// Nobody may wait for what it could have, unless its lease has ended.
    fn check_head(&self, lock: &Lock) -> Result<(), String> {
        let Some(head) = lock.queue().first() else {
            return Ok(());
        };
        let request = self.request(head);
        ensure!(
            self.is_overdue(request.session)
                || self.next_token().is_err()
                || self.obstacle(request.names.as_slice(), request.mode, Some(head)).is_some(),
            "request {head} waits for what it could have"
        );
        Ok(())
    }

    fn check_finished(&self) -> Result<(), String> {
        for ((id, ticket), _) in self.finished.iter() {
            let Some(stream) = self.stream(id) else {
                return Err(format!("session {id} is gone, but not its finished tickets"));
            };
            let ahead = ticket.get().checked_sub(stream.acked.get());
            ensure!(
                ahead.is_some_and(|ahead| ahead < TICKET_WINDOW_CEILING),
                "session {id}: finished ticket {ticket} is not in the window"
            );
            ensure!(self.live.get(id, ticket).is_none(), "session {id}: ticket {ticket} is over, and is not");
        }
        Ok(())
    }

    /// Every token was given, and once.
    fn check_tokens(&self) -> Result<(), String> {
        let mut tokens: Vec<_> = self.requests.iter().filter_map(|(_, request)| request.token()).collect();
        if let Some(token) = tokens.iter().find(|token| **token > self.header.token_last) {
            return Err(format!("token {token} was never given"));
        }
        tokens.sort_unstable();
        if let Some(pair) = tokens.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("token {} was given twice", pair[0]));
        }
        Ok(())
    }

    /// Every entry found above is right and there once, so equal sizes mean that none is missing.
    fn check_sizes(&self) -> Result<(), String> {
        let (mut held_names, mut waits, mut waiters, mut names) = (0, 0, 0, 0);
        for (_, request) in self.requests.iter() {
            let count = request.names.as_slice().len();
            names += count;
            match request.state {
                State::Held { .. } => held_names += count,
                State::Queued { wait_end, .. } => {
                    waiters += 1;
                    waits += usize::from(wait_end.is_some());
                }
            }
        }
        let unary =
            self.sessions.iter().filter(|(_, session)| matches!(session.kind, Kind::Unary { .. })).count();
        let sizes = [
            ("tickets", self.live.count(), self.requests.len()),
            ("leases", self.deadlines.sessions.len(), self.sessions.len()),
            ("waits", self.deadlines.waits.len(), waits),
            ("waiters", self.waiters as usize, waiters),
            ("unary keys", self.unary.held.len() + self.unary.queued.len(), unary),
            ("secrets", self.secrets.len(), self.sessions.len() - unary),
            ("holders", self.locks.values().map(Lock::holder_count).sum(), held_names),
            ("queued names", self.locks.values().map(|lock| lock.queue().len()).sum(), names - held_names),
        ];
        for (what, counted, is) in sizes {
            ensure!(counted == is, "{what}: the index has {counted}, there are {is}");
        }
        Ok(())
    }
}
