//! Unary locks: sessions with one request, found by owner, name and request id.

use super::*;

impl Model {
    pub(super) fn unary_lock(
        &mut self,
        owner: Owner,
        name: Name,
        request_id: Option<RequestId>,
        ttl: Ttl,
        wait_ms: u64,
        (mode, metadata): (Mode, Metadata),
    ) -> Answer {
        self.check_ttl(ttl)?;
        let now = self.now;
        let arguments = (vec![name.clone()], mode, metadata, None);
        let kind = Kind::Unary(name.clone(), request_id);
        let known = self.sessions.iter().find(|its| its.kind == kind && its.owner == owner);
        let contention = self.contention(&arguments.0, mode, None);
        if let Some(session) = known.map(|known| known.id) {
            let at =
                self.requests.iter().position(|request| request.session == session).expect("its only one");
            if self.requests[at].arguments.as_ref() != Some(&arguments) {
                return Err(Rejection::RequestIdReused);
            }
            let queued = self.requests[at].is_queued();
            if queued && wait_ms == 0 {
                return Ok(Outcome::UnaryRefused { contention: contention.expect("it waits itself") });
            }
            let its = self.session_mut(session);
            its.ttl = ttl.get();
            its.deadline = now + if queued { 10_000 } else { ttl.get() };
            if let Status::Queued { end: Some(end), .. } = &mut self.requests[at].status {
                *end = (*end).max(now + wait_ms);
            }
            return Ok(self.standing(at));
        }
        self.check_permits(&arguments)?;
        let status = match contention {
            None => None,
            Some(contention) if wait_ms == 0 => return Ok(Outcome::UnaryRefused { contention }),
            Some(_) => Some(Status::Queued { since: now, end: Some(now + wait_ms) }),
        };
        self.check_room(SessionId::default(), &arguments.0, status.is_some())?;
        let session = self.new_session(kind, owner, ttl)?;
        if status.is_some() {
            self.session_mut(session).deadline = now + 10_000;
        }
        Ok(self.add(session, 1, arguments, status))
    }

    pub(super) fn unary_held(
        &self,
        owner: &Owner,
        name: &Name,
        request_id: &Option<RequestId>,
        token: Option<Token>,
    ) -> Result<Option<usize>, Rejection> {
        let held = (0..self.requests.len()).filter(|at| {
            let request = &self.requests[*at];
            if request.token().is_none() || token.is_some_and(|token| request.token() != Some(token)) {
                return false;
            }
            let session = self.session(request.session);
            match &session.kind {
                Kind::Unary(its, id) => {
                    its == name && session.owner == *owner && (request_id.is_none() || request_id == id)
                }
                Kind::Stream(_) => false,
            }
        });
        let held: Vec<_> = held.collect();
        match held[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(Rejection::TokenRequired),
        }
    }
}
