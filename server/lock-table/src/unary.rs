//! Locks without a session, for scripts and other languages.
//!
//! Each is a session of its own kind with one request, found by owner, name and request id. It
//! competes with everybody and is touched by nobody but its owner's unary calls: a caller that
//! waits is kept alive by the node it waits at, a caller that was granted must renew for itself.

use std::collections::BTreeMap;

use crate::outcome::{Outcome, Rejection};
use crate::planted;
use crate::requests::Entered;
use crate::session::{Arguments, Ask, Kind, Request, State, UNARY_TICKET};
use crate::sessions::check_len;
use crate::table::LockTable;
use crate::text::{Name, Owner, RequestId};
use crate::types::{Sequence, SessionId, Token, Ttl};

/// The lease of a unary call that waits. Its node renews it; when the node dies, the call's place
/// is free again within this time. Longer than an election, so that a change of leaders does not
/// end it.
pub(crate) const UNARY_WAIT_LEASE_MS: u64 = 10_000;

/// What a unary lock is found by. Ordered by name and owner first, so that all that one owner holds
/// on a name lies together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnaryKey {
    pub(crate) name: Name,
    pub(crate) owner: Owner,
    pub(crate) request_id: Option<RequestId>,
}

/// All unary sessions by key. Those that wait are apart, so that what an owner holds is found
/// however many of its attempts wait.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct UnaryIndex {
    pub(crate) held: BTreeMap<UnaryKey, SessionId>,
    pub(crate) queued: BTreeMap<UnaryKey, SessionId>,
}

impl UnaryIndex {
    pub(crate) fn get(&self, key: &UnaryKey) -> Option<SessionId> {
        self.held.get(key).or_else(|| self.queued.get(key)).copied()
    }

    pub(crate) fn insert(&mut self, key: UnaryKey, session: SessionId, state: State) {
        match state {
            State::Held { .. } => self.held.insert(key, session),
            State::Queued { .. } => self.queued.insert(key, session),
        };
    }

    pub(crate) fn remove(&mut self, key: &UnaryKey) {
        self.held.remove(key);
        self.queued.remove(key);
    }
}

impl LockTable {
    pub(crate) fn unary_lock(
        &mut self,
        key: UnaryKey,
        ask: Ask,
        ttl: Ttl,
        wait_ms: u64,
    ) -> Result<Outcome, Rejection> {
        self.check_ttl(ttl)?;
        let wait_ms_max = self.limits().wait_ms_max;
        if wait_ms > wait_ms_max {
            let problem = format!("is {wait_ms}, at most {wait_ms_max} are allowed");
            return Err(Rejection::invalid("wait_ms", problem));
        }
        let arguments = Arguments::of_unary(&ask);
        let Some(session) = self.unary.get(&key) else {
            return self.unary_lock_new(key, ask, arguments, ttl, wait_ms);
        };
        let (sequence, request) = self.unary_request(session);
        if request.arguments != arguments {
            return Err(Rejection::RequestIdReused);
        }
        match request.state {
            State::Held { .. } => {
                self.unary_extend(session, ttl);
                Ok(self.standing(sequence))
            }
            State::Queued { .. } if wait_ms > 0 => {
                self.unary_wait_on(session, ttl, wait_ms);
                Ok(self.standing(sequence))
            }
            // A try beside an attempt under the same key that waits: it is not this call's to end.
            State::Queued { .. } => Ok(self.unary_refused(&ask)),
        }
    }

    fn unary_lock_new(
        &mut self,
        key: UnaryKey,
        ask: Ask,
        arguments: Arguments,
        ttl: Ttl,
        wait_ms: u64,
    ) -> Result<Outcome, Rejection> {
        self.check_owner(&key.owner)?;
        let request_id_len = key.request_id.as_ref().map_or(0, |id| id.as_bytes().len());
        check_len("request_id", request_id_len as u64, self.limits().request_id_bytes_max)?;
        self.check_ask(&ask)?;
        self.check_sequence()?;
        let names = ask.names.as_slice();
        let now = self.header.now;
        let (state, lease_ms) = match self.obstacle(names, ask.mode, None) {
            None => (State::Held { token: self.next_token()? }, ttl.get()),
            Some(_) if wait_ms == 0 => return Ok(self.unary_refused(&ask)),
            Some(_) => {
                self.check_queues(names)?;
                let wait_end = Some(now.after(wait_ms));
                (State::Queued { since: now, wait_end }, UNARY_WAIT_LEASE_MS)
            }
        };
        self.check_room(0, names)?;
        let kind = Kind::Unary { name: key.name.clone(), request_id: key.request_id.clone() };
        let session = self.create_session(kind, key.owner.clone(), ttl, now.after(lease_ms))?;
        self.unary.insert(key, session, state);
        let sequence = self.add_request((session, UNARY_TICKET), ask, arguments, state, Entered::NotYet);
        Ok(self.standing(sequence))
    }

    fn unary_refused(&self, ask: &Ask) -> Outcome {
        let obstacle = self.obstacle(ask.names.as_slice(), ask.mode, None);
        let obstacle = obstacle.expect("the caller was refused because of something");
        Outcome::UnaryRefused { contention: self.contention(&obstacle) }
    }

    pub(crate) fn unary_unlock(
        &mut self,
        owner: Owner,
        name: Name,
        request_id: Option<RequestId>,
        token: Option<Token>,
    ) -> Result<Outcome, Rejection> {
        let token = token.filter(|_| !planted::is("release-ignores-token"));
        let Some((session, token)) = self.unary_held(&owner, &name, request_id, token)? else {
            return Ok(Outcome::UnaryNotHolder { holder: self.holder_contention(&name) });
        };
        self.remove_unary(session);
        Ok(Outcome::Unlocked { token })
    }

    pub(crate) fn unary_renew(
        &mut self,
        owner: Owner,
        name: Name,
        token: Option<Token>,
        ttl: Ttl,
    ) -> Result<Outcome, Rejection> {
        self.check_ttl(ttl)?;
        let Some((session, token)) = self.unary_held(&owner, &name, None, token)? else {
            return Ok(Outcome::UnaryNotHolder { holder: self.holder_contention(&name) });
        };
        self.unary_extend(session, ttl);
        Ok(Outcome::Renewed { token, remaining_ms: ttl.get() })
    }

    /// What an owner holds on a name by unary calls. Fails if that is not one thing.
    fn unary_held(
        &self,
        owner: &Owner,
        name: &Name,
        request_id: Option<RequestId>,
        token: Option<Token>,
    ) -> Result<Option<(SessionId, Token)>, Rejection> {
        let with_token = |session| self.unary_request(session).1.token().map(|token| (session, token));
        if let Some(token) = token {
            return Ok(self.unary_holder(owner, name, request_id, token).and_then(with_token));
        }
        let from = UnaryKey { name: name.clone(), owner: owner.clone(), request_id };
        if from.request_id.is_some() {
            return Ok(self.unary.held.get(&from).copied().and_then(with_token));
        }
        // Without an id is before all ids.
        let all =
            self.unary.held.range(&from..).take_while(|(key, _)| key.name == *name && key.owner == *owner);
        let mut two = all.map(|(_, session)| *session).take(2);
        match (two.next(), two.next()) {
            (_, Some(_)) => Err(Rejection::TokenRequired),
            (one, None) => Ok(one.and_then(with_token)),
        }
    }

    /// The unary session that holds a name under a token, if it is this owner's.
    fn unary_holder(
        &self,
        owner: &Owner,
        name: &Name,
        request_id: Option<RequestId>,
        token: Token,
    ) -> Option<SessionId> {
        // Holders are in the order of their tokens.
        let lock = self.locks.get(name)?;
        let holder = lock.first_holder_not(|holder| self.request(holder).token() < Some(token))?;
        let request = self.request(holder);
        let session = self.session(request.session);
        let Kind::Unary { request_id: its_id, .. } = &session.kind else {
            return None;
        };
        let is_meant = request.token() == Some(token)
            && session.owner == *owner
            && (request_id.is_none() || request_id == *its_id);
        is_meant.then_some(request.session)
    }

    /// A new lease for a lock that is held.
    fn unary_extend(&mut self, session: SessionId, ttl: Ttl) {
        self.session_mut(session).ttl = ttl;
        self.extend(session, self.header.now.after(ttl.get()));
    }

    /// A repeat of a call that waits: the wait lasts as long as the call that waits longest.
    fn unary_wait_on(&mut self, session: SessionId, ttl: Ttl, wait_ms: u64) {
        let now = self.header.now;
        self.session_mut(session).ttl = ttl;
        self.extend(session, now.after(UNARY_WAIT_LEASE_MS));
        let sequence = self.unary_request(session).0;
        let request = self.requests.get_mut(sequence).expect("a ticket that lives has a request");
        if let State::Queued { wait_end: Some(at), .. } = &mut request.state {
            self.deadlines.waits.remove(&(*at, sequence));
            *at = now.after(wait_ms).max(*at);
            self.deadlines.waits.insert((*at, sequence));
        }
    }

    /// A waiting call was granted: from here on the lease is the caller's own.
    pub(crate) fn unary_granted(&mut self, session: SessionId) {
        let key = self.unary_key(session);
        self.unary.queued.remove(&key);
        self.unary.held.insert(key, session);
        let ttl = self.session(session).ttl;
        self.extend(session, self.header.now.after(ttl.get()));
    }

    /// Takes out a unary session with its request.
    pub(crate) fn remove_unary(&mut self, session: SessionId) {
        let sequence = self.unary_request(session).0;
        self.remove_request(sequence);
        self.remove_session(session);
    }

    /// The only request of a unary session.
    pub(crate) fn unary_request(&self, session: SessionId) -> (Sequence, &Request) {
        let sequence = self.live.get(session, UNARY_TICKET).expect("a unary session has its request");
        (sequence, self.request(sequence))
    }

    pub(crate) fn unary_key(&self, id: SessionId) -> UnaryKey {
        let session = self.session(id);
        let Kind::Unary { name, request_id } = &session.kind else {
            unreachable!("the caller has the id of a unary session")
        };
        UnaryKey { name: name.clone(), owner: session.owner.clone(), request_id: request_id.clone() }
    }
}
