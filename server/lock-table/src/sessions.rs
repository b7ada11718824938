//! The life of a session: settings that bound it, how it is opened and renewed, and how it ends.
//!
//! A session whose deadline has passed is *overdue* until a batch gets to remove it. Until then a
//! renewal still saves it; what it can't do meanwhile is to get a lock.

use crate::command::Renewal;
use crate::deadlines::Due;
use crate::limits::{Limits, Settings};
use crate::outcome::{EndCause, Event, Outcome, Output, Rejection};
use crate::session::{HighestTicket, Kind, Session, Stream};
use crate::table::LockTable;
use crate::text::Owner;
use crate::types::{ClusterTime, RenewalNumber, Secret, SessionId, Ticket, Token, Ttl};
use crate::unary::{UNARY_WAIT_LEASE_MS, UnaryKey};

impl LockTable {
    pub(crate) fn configure(&mut self, settings: Settings, token_start: Token) -> Result<Outcome, Rejection> {
        if self.header.settings.is_some() {
            return Ok(Outcome::AlreadyConfigured);
        }
        settings.check()?;
        self.header.settings = Some(settings);
        self.header.token_last = token_start;
        Ok(Outcome::Configured)
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) -> Result<Outcome, Rejection> {
        settings.check()?;
        self.header.settings = Some(settings);
        Ok(Outcome::Configured)
    }

    pub(crate) fn open(
        &mut self,
        secret: Secret,
        owner: Owner,
        ttl: Ttl,
        number: RenewalNumber,
    ) -> Result<Outcome, Rejection> {
        self.check_ttl(ttl)?;
        let session = match self.secrets.get(&secret) {
            Some(session) if self.session(*session).owner != owner => {
                return Err(Rejection::RequestIdReused);
            }
            Some(session) => *session,
            None => {
                self.check_owner(&owner)?;
                let kind = Kind::Stream(Stream { secret, number, acked: Ticket::default() });
                self.create_session(kind, owner, ttl, self.header.now.after(ttl.get()))?
            }
        };
        let number = self.renew_stream(session, number, Some(ttl));
        Ok(Outcome::Opened { session, number })
    }

    pub(crate) fn close(&mut self, session: SessionId) -> Outcome {
        if self.stream(session).is_none() {
            return Outcome::SessionUnknown { session };
        }
        self.end_session(session, EndCause::Closed);
        Outcome::Closed { session }
    }

    pub(crate) fn renew(&mut self, renewal: Renewal, out: &mut Vec<Output>) {
        let Renewal { session, number, ttl } = renewal;
        let event = match self.sessions.get(session).map(|session| &session.kind) {
            None => Event::RenewalUnknown { session },
            Some(Kind::Stream(_)) => match ttl.map_or(Ok(()), |ttl| self.check_ttl(ttl)) {
                Ok(()) => Event::Renewed { session, number: self.renew_stream(session, number, ttl) },
                Err(rejection) => Event::RenewalRejected { session, rejection },
            },
            // A parked call: the node that has it renews it until it is granted, and not
            // afterwards, when the lease is the caller's own.
            Some(Kind::Unary { .. }) if self.unary_request(session).1.is_queued() => {
                self.extend(session, self.header.now.after(UNARY_WAIT_LEASE_MS));
                Event::Renewed { session, number }
            }
            Some(Kind::Unary { .. }) => return,
        };
        out.push(Output::Event(event));
    }

    /// Ends what is due.
    pub(crate) fn end_due(&mut self, due: Due, out: &mut Vec<Output>) {
        match due {
            Due::Session(session) => self.end_session(session, EndCause::Expired),
            Due::Wait(sequence) => self.end_wait(sequence, out),
        }
    }

    /// Adds a session; the caller has checked its owner and its lease.
    pub(crate) fn create_session(
        &mut self,
        kind: Kind,
        owner: Owner,
        ttl: Ttl,
        deadline: ClusterTime,
    ) -> Result<SessionId, Rejection> {
        let max = self.limits().sessions_max;
        if self.sessions.len() as u64 >= max {
            return Err(Rejection::LimitReached { what: "sessions", max });
        }
        let id = self.header.session_last.get().checked_add(1).map(SessionId::new);
        let id = id.ok_or(Rejection::LimitReached { what: "session ids", max: u64::MAX })?;
        self.header.session_last = id;
        let session =
            Session { kind, owner, ttl, deadline, lock_count: 0, highest: HighestTicket::default() };
        self.insert_session(id, session);
        Ok(id)
    }

    /// Adds a session and what is derived from it.
    pub(crate) fn insert_session(&mut self, id: SessionId, session: Session) {
        match &session.kind {
            Kind::Stream(stream) => {
                self.secrets.insert(stream.secret, id);
            }
            Kind::Unary { .. } => {} // found by its key, which is entered with its request
        }
        self.deadlines.sessions.insert((session.deadline, id));
        self.sessions.insert(id, Box::new(session));
    }

    /// Takes the session out at once and leaves its requests to be freed, a bounded number at a
    /// time.
    fn end_session(&mut self, session: SessionId, cause: EndCause) {
        self.remove_session(session);
        self.work.ending = Some((session, cause));
    }

    /// Takes out a session and what is derived from it, but for its requests.
    pub(crate) fn remove_session(&mut self, id: SessionId) {
        let session = self.sessions.remove(id).expect("the caller found it");
        self.deadlines.sessions.remove(&(session.deadline, id));
        match session.kind {
            Kind::Stream(stream) => {
                self.secrets.remove(&stream.secret);
            }
            Kind::Unary { name, request_id } => {
                self.unary.remove(&UnaryKey { name, owner: session.owner, request_id });
            }
        }
    }

    /// Moves a deadline. A session that was overdue is back: what it waits for may be grantable,
    /// and is looked at again.
    pub(crate) fn extend(&mut self, id: SessionId, deadline: ClusterTime) {
        let now = self.header.now;
        let session = self.session_mut(id);
        let before = std::mem::replace(&mut session.deadline, deadline);
        if before != deadline {
            self.deadlines.sessions.remove(&(before, id));
            self.deadlines.sessions.insert((deadline, id));
        }
        if before <= now {
            self.work.reviving = Some((id, Ticket::default()));
        }
    }

    /// The newest renewal says how long the lease is. One that comes late, after a newer one was
    /// answered, counts as a sign of life and takes nothing away: its client counts on the newer.
    fn renew_stream(&mut self, id: SessionId, number: RenewalNumber, ttl: Option<Ttl>) -> RenewalNumber {
        let now = self.header.now;
        let session = self.session_mut(id);
        let Kind::Stream(stream) = &mut session.kind else { unreachable!("the caller looked") };
        let is_newest = number >= stream.number;
        stream.number = stream.number.max(number);
        let number = stream.number;
        if is_newest {
            session.ttl = ttl.unwrap_or(session.ttl);
        }
        let deadline = now.after(session.ttl.get());
        let deadline = if is_newest { deadline } else { deadline.max(session.deadline) };
        self.extend(id, deadline);
        number
    }

    pub(crate) fn session(&self, id: SessionId) -> &Session {
        self.sessions.get(id).expect("whoever has an id from the table has the session's")
    }

    pub(crate) fn session_mut(&mut self, id: SessionId) -> &mut Session {
        self.sessions.get_mut(id).expect("whoever has an id from the table has the session's")
    }

    /// The session, if it is one of a stream. Commands of a stream never reach a unary lock.
    pub(crate) fn stream(&self, id: SessionId) -> Option<&Stream> {
        match &self.sessions.get(id)?.kind {
            Kind::Stream(stream) => Some(stream),
            Kind::Unary { .. } => None,
        }
    }

    /// Whether the session's lease has ended.
    pub(crate) fn is_overdue(&self, id: SessionId) -> bool {
        self.sessions.get(id).is_none_or(|session| session.deadline <= self.header.now)
    }

    /// What is left of a session's lease.
    pub(crate) fn remaining_ms(&self, id: SessionId) -> u64 {
        self.sessions.get(id).map_or(0, |session| session.deadline.since(self.header.now))
    }

    pub(crate) fn limits(&self) -> &Limits {
        let settings = self.header.settings.as_ref();
        &settings.expect("nothing but Configure is executed before there are settings").limits
    }

    pub(crate) fn check_owner(&self, owner: &Owner) -> Result<(), Rejection> {
        check_len("owner", owner.as_bytes().len() as u64, self.limits().owner_bytes_max)
    }

    pub(crate) fn check_ttl(&self, ttl: Ttl) -> Result<(), Rejection> {
        let Limits { ttl_ms_min, ttl_ms_max, .. } = self.limits();
        if (*ttl_ms_min..=*ttl_ms_max).contains(&ttl.get()) {
            return Ok(());
        }
        let problem = format!("is {ttl} ms, must be {ttl_ms_min} to {ttl_ms_max} ms");
        Err(Rejection::invalid("ttl", problem))
    }
}

pub(crate) fn check_len(field: &'static str, len: u64, max: u64) -> Result<(), Rejection> {
    if len <= max {
        return Ok(());
    }
    Err(Rejection::invalid(field, format!("is {len} bytes long, at most {max} are allowed")))
}
