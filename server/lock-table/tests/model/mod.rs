//! The lock table once more, as plainly as it can be said: lists, searched from one end to the
//! other.
//!
//! It is written from the contract, not from the table: it has no indexes, no candidates and no
//! steps. After each thing it looks at every request for one that can be granted.

mod commands;
mod picks;
mod unary;

use lock_table::*;

#[derive(Clone, Debug)]
struct Session {
    id: SessionId,
    kind: Kind,
    owner: Owner,
    ttl: u64,
    deadline: u64,
    number: RenewalNumber,
    acked: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Stream(Secret),
    Unary(Name, Option<RequestId>),
}

/// What makes a repeat a repeat. The wait of a unary call is left out.
type Arguments = (Vec<Name>, Mode, Metadata, Option<Wait>);

#[derive(Clone, Debug)]
struct Request {
    session: SessionId,
    ticket: u64,
    arguments: Option<Arguments>,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    Queued { since: u64, end: Option<u64> },
    Held(Token),
    Over(How),
}

impl Request {
    fn names(&self) -> &[Name] {
        self.arguments.as_ref().map_or(&[], |arguments| &arguments.0)
    }

    fn mode(&self) -> Mode {
        self.arguments.as_ref().expect("it is live").1
    }

    fn token(&self) -> Option<Token> {
        match self.status {
            Status::Held(token) => Some(token),
            _ => None,
        }
    }

    fn is_queued(&self) -> bool {
        matches!(self.status, Status::Queued { .. })
    }

    fn is_live(&self) -> bool {
        !matches!(self.status, Status::Over(_))
    }
}

/// The table as lists. Requests stay in theirs for ever, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Model {
    now: u64,
    limits: Option<Limits>,
    token: u64,
    session_last: u64,
    sessions: Vec<Session>,
    requests: Vec<Request>,
}

type Answer = Result<Outcome, Rejection>;

impl Model {
    pub fn apply(&mut self, batch: &Batch) -> Vec<Output> {
        let mut out = Vec::new();
        if batch.renewals_complete {
            self.now += batch.dt_ms;
        }
        for renewal in &batch.renewals {
            out.extend(self.renew(renewal).map(Output::Event));
            self.grant_all(&mut out);
        }
        while batch.renewals_complete && self.end_next(&mut out) {
            self.grant_all(&mut out);
        }
        for (command, content) in batch.commands.iter().enumerate() {
            let mut after = Vec::new();
            let outcome = self.execute(content, &mut after).unwrap_or_else(Outcome::Rejected);
            out.push(Output::Outcome { command, outcome });
            out.append(&mut after);
            self.grant_all(&mut out);
        }
        out
    }

    /// Owners, tokens and rests of leases of all holders, and owners of all waiters.
    pub fn view(&self, name: &Name) -> (Vec<(Owner, Token, u64)>, Vec<Owner>) {
        let holders = self.holders(name).into_iter().map(|request| {
            let session = self.session(request.session);
            (session.owner.clone(), request.token().expect("it holds"), session.deadline - self.now)
        });
        let waiters = self.queue(name).into_iter().map(|at| &self.requests[at]);
        let owners = waiters.map(|request| self.session(request.session).owner.clone());
        (holders.collect(), owners.collect())
    }

    /// Locks, held requests, sessions, waiters.
    pub fn counts(&self) -> [u64; 4] {
        let live = || self.requests.iter().filter(|request| request.is_live());
        let queued = live().filter(|request| request.is_queued()).count() as u64;
        let held = live().count() as u64 - queued;
        [self.lock_names().len() as u64, held, self.sessions.len() as u64, queued]
    }

    fn lock_names(&self) -> Vec<&Name> {
        let live = self.requests.iter().filter(|request| request.is_live());
        let mut names: Vec<_> = live.flat_map(Request::names).collect();
        names.sort();
        names.dedup();
        names
    }

    fn holders(&self, name: &Name) -> Vec<&Request> {
        let held = self.requests.iter().filter(|request| request.token().is_some());
        let mut holders: Vec<_> = held.filter(|request| request.names().contains(name)).collect();
        holders.sort_by_key(|request| request.token());
        holders
    }

    fn queue(&self, name: &Name) -> Vec<usize> {
        let all = 0..self.requests.len();
        all.filter(|at| self.requests[*at].is_queued() && self.requests[*at].names().contains(name)).collect()
    }

    fn session(&self, id: SessionId) -> &Session {
        self.sessions.iter().find(|session| session.id == id).expect("a session that lives")
    }

    fn session_mut(&mut self, id: SessionId) -> &mut Session {
        self.sessions.iter_mut().find(|session| session.id == id).expect("a session that lives")
    }

    fn stream(&self, id: SessionId) -> Option<&Session> {
        self.sessions.iter().find(|session| session.id == id && matches!(session.kind, Kind::Stream(_)))
    }

    fn is_alive(&self, id: SessionId) -> bool {
        self.sessions.iter().any(|session| session.id == id && session.deadline > self.now)
    }

    fn find(&self, session: SessionId, ticket: u64) -> Option<usize> {
        self.requests.iter().position(|request| request.session == session && request.ticket == ticket)
    }

    fn fits(&self, name: &Name, mode: Mode) -> bool {
        let holders = self.holders(name);
        match mode {
            Mode::Exclusive => holders.is_empty(),
            Mode::Shared => holders.iter().all(|holder| holder.mode() == Mode::Shared),
            Mode::Permits { permits, capacity } => {
                let mut sum = permits;
                for holder in holders {
                    match holder.mode() {
                        Mode::Permits { permits, capacity: same } if same == capacity => sum += permits,
                        _ => return false,
                    }
                }
                sum <= capacity
            }
        }
    }

    fn contention_by(&self, kind: ContentionKind, name: &Name, request: &Request) -> Contention {
        let session = self.session(request.session);
        Contention {
            kind,
            name: name.clone(),
            owner: session.owner.clone(),
            token: request.token(),
            remaining_ms: session.deadline.saturating_sub(self.now),
            holder_count: self.holders(name).len() as u32,
            queue_length: self.queue(name).len() as u32,
        }
    }

    fn holder(&self, name: &Name) -> Option<Contention> {
        let holders = self.holders(name);
        let mut latest = *holders.first()?;
        for holder in holders {
            if self.session(holder.session).deadline > self.session(latest.session).deadline {
                latest = holder;
            }
        }
        Some(self.contention_by(ContentionKind::Held, name, latest))
    }

    /// What is in the way of a request, which may be in the queues already.
    fn contention(&self, names: &[Name], mode: Mode, own: Option<usize>) -> Option<Contention> {
        for name in names {
            if !self.fits(name, mode) {
                return self.holder(name);
            }
            match self.queue(name).first() {
                Some(first) if Some(*first) != own => {
                    let kind = ContentionKind::QueuedBehind;
                    return Some(self.contention_by(kind, name, &self.requests[*first]));
                }
                _ => {}
            }
        }
        None
    }

    fn place(&self, at: usize) -> u32 {
        let ahead = |name| self.queue(name).iter().filter(|other| **other < at).count() as u32;
        self.requests[at].names().iter().map(ahead).max().unwrap_or(0) + 1
    }

    /// Grants, the oldest first, until nobody can be granted anything.
    fn grant_all(&mut self, out: &mut Vec<Output>) {
        let grantable = |model: &Self| {
            (0..model.requests.len()).find(|at| {
                let request = &model.requests[*at];
                request.is_queued()
                    && model.is_alive(request.session)
                    && model.contention(request.names(), request.mode(), Some(*at)).is_none()
            })
        };
        while let Some(at) = grantable(self) {
            self.token += 1;
            let token = Token::new(self.token);
            self.requests[at].status = Status::Held(token);
            let (session, ticket) = (self.requests[at].session, Ticket::new(self.requests[at].ticket));
            let now = self.now;
            let its = self.session_mut(session);
            if let Kind::Unary(..) = its.kind {
                its.deadline = now + its.ttl;
            }
            let remaining_ms = its.deadline - now;
            out.push(Output::Event(Event::Granted { session, ticket, token, remaining_ms }));
        }
    }

    fn renew(&mut self, renewal: &Renewal) -> Option<Event> {
        let Renewal { session, number, ttl } = *renewal;
        let now = self.now;
        let Some(found) = self.sessions.iter().find(|its| its.id == session) else {
            return Some(Event::RenewalUnknown { session });
        };
        if let Kind::Unary(..) = found.kind {
            let waits = self.requests.iter().any(|request| request.session == session && request.is_queued());
            return waits.then(|| {
                self.session_mut(session).deadline = now + 10_000;
                Event::Renewed { session, number }
            });
        }
        if let Err(rejection) = ttl.map_or(Ok(()), |ttl| self.check_ttl(ttl)) {
            return Some(Event::RenewalRejected { session, rejection });
        }
        let its = self.session_mut(session);
        if number >= its.number {
            its.ttl = ttl.map_or(its.ttl, Ttl::get);
            its.deadline = now + its.ttl;
        } else {
            its.deadline = its.deadline.max(now + its.ttl);
        }
        its.number = its.number.max(number);
        Some(Event::Renewed { session, number: its.number })
    }

    /// Ends the first thing that is due: by time, leases before waits, then in the order of their
    /// ids.
    fn end_next(&mut self, out: &mut Vec<Output>) -> bool {
        let lease = self.sessions.iter().map(|session| (session.deadline, 0, session.id.get()));
        let wait = self.requests.iter().enumerate().filter_map(|(at, request)| match request.status {
            Status::Queued { end: Some(end), .. } => Some((end, 1, at as u64)),
            _ => None,
        });
        let Some((time, what, id)) = lease.chain(wait).min() else {
            return false;
        };
        if time > self.now {
            return false;
        }
        if what == 0 {
            self.end_session(SessionId::new(id), EndCause::Expired, out);
            return true;
        }
        let at = id as usize;
        let request = &self.requests[at];
        let (session, ticket) = (request.session, Ticket::new(request.ticket));
        let mut contention = self.contention(request.names(), request.mode(), Some(at));
        if let Some(contention) = &mut contention {
            contention.queue_length -= 1; // it waits no more
        }
        let place = self.place(at);
        self.requests[at].status = Status::Over(How::WaitEnded);
        out.push(Output::Event(Event::WaitEnded { session, ticket, place, contention }));
        if self.stream(session).is_none() {
            self.sessions.retain(|its| its.id != session);
        }
        true
    }

    fn end_session(&mut self, session: SessionId, cause: EndCause, out: &mut Vec<Output>) {
        self.sessions.retain(|its| its.id != session);
        for request in self.requests.iter_mut().filter(|request| request.session == session) {
            request.status = Status::Over(How::Forgotten);
        }
        out.push(Output::Event(Event::SessionEnded { session, cause }));
    }

    fn limits(&self) -> &Limits {
        self.limits.as_ref().expect("configured")
    }

    fn check_ttl(&self, ttl: Ttl) -> Result<(), Rejection> {
        let Limits { ttl_ms_min: min, ttl_ms_max: max, .. } = self.limits();
        if ttl.get() < *min || ttl.get() > *max {
            let problem = format!("is {ttl} ms, must be {min} to {max} ms");
            return Err(Rejection::InvalidArgument { field: "ttl", problem });
        }
        Ok(())
    }

    fn new_session(&mut self, kind: Kind, owner: Owner, ttl: Ttl) -> Result<SessionId, Rejection> {
        let max = self.limits().sessions_max;
        if self.sessions.len() as u64 >= max {
            return Err(Rejection::LimitReached { what: "sessions", max });
        }
        self.session_last += 1;
        let id = SessionId::new(self.session_last);
        let (ttl, deadline) = (ttl.get(), self.now + ttl.get());
        let number = RenewalNumber::default();
        self.sessions.push(Session { id, kind, owner, ttl, deadline, number, acked: 0 });
        Ok(id)
    }
}
