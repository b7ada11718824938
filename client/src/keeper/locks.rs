//! The life of a lock as the keeper sees it: asked for, granted, given back, or lost with its session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::alarms::Alarm;
use super::calls::{Call, What};
use super::{Acquired, Keeper, Patience, Reply, RequestId, Slot, Wish};
use crate::error::{Error, WaitTimeout};
use crate::guard::{GuardCell, LostReason};
use crate::info::{Contention, FencingToken};
use crate::session::{Kind, Now, Session};
use crate::tickets::Effect;
use crate::wire::{OpError, Wait};

impl Keeper {
    pub(super) fn acquire(&mut self, now: Now, request: RequestId, wish: Wish, reply: Reply<Acquired>) {
        let patience = wish.patience;
        let (kind, ttl) = (wish.kind, wish.ttl);
        let slot = self.slot_for(kind, ttl);
        self.begin(now, request, What::Acquiring { slot, wish, place: None, reply }, &[]);
        match patience {
            Patience::Try => self.set_alarm(request, now.at + self.connect_timeout, Alarm::Limit),
            Patience::AtMost(wait) => self.set_alarm(request, now.at + wait, Alarm::WaitEnd),
            Patience::Forever => {}
        }
        if !self.links.reached_any() {
            self.set_alarm(request, now.at + self.connect_timeout, Alarm::Contact);
        }
        self.submit_to(now, request, slot);
    }

    /// Once more, in a session that takes new requests: the one before was lost under it.
    fn submit(&mut self, now: Now, request: RequestId) {
        if let Some(What::Acquiring { wish, .. }) = self.calls.get(&request).map(|call| &call.what) {
            let (kind, ttl) = (wish.kind, wish.ttl);
            let slot = self.slot_for(kind, ttl);
            self.submit_to(now, request, slot);
        }
    }

    fn submit_to(&mut self, now: Now, request: RequestId, chosen: Slot) {
        let Some(Call { started, what: What::Acquiring { wish, slot, .. }, .. }) =
            self.calls.get_mut(&request)
        else {
            return;
        };
        let wait = match wish.patience {
            Patience::Try => Wait::AtMost(Duration::ZERO),
            Patience::AtMost(wait) => Wait::AtMost(wait.saturating_sub(now.at - *started)),
            Patience::Forever => Wait::Forever,
        };
        *slot = chosen;
        let ask = wish.ask.clone();
        self.sessions.get_mut(&chosen).expect("just chosen").acquire(request, ask, wait);
    }

    fn slot_for(&mut self, kind: Kind, ttl: Duration) -> Slot {
        if let Some(&slot) = self.shared.get(&ttl).filter(|_| kind == Kind::Shared) {
            return slot;
        }
        self.last_slot += 1;
        let slot = Slot(self.last_slot);
        let (secret, owner, clock) = (self.random.secret(), self.owner.clone(), self.clock.clone());
        let session = Session::new(kind, ttl, secret, owner, clock, self.ways);
        self.sessions.insert(slot, session);
        if kind == Kind::Shared {
            self.shared.insert(ttl, slot);
        }
        slot
    }

    pub(super) fn abandon(&mut self, request: RequestId) {
        let Some(Call { what, .. }) = self.calls.get(&request) else {
            return;
        };
        match *what {
            What::Acquiring { slot, .. } => {
                self.finish(request);
                self.give_back(slot, request);
            }
            What::Holding { slot, .. } => {
                self.set_what(request, What::Releasing { reply: None });
                self.give_back(slot, request);
            }
            _ => {}
        }
    }

    pub(super) fn release(&mut self, now: Now, request: RequestId, reply: Option<Reply<()>>) {
        match self.calls.get(&request).map(|call| &call.what) {
            Some(&What::Holding { slot, .. }) => {
                if reply.is_some() {
                    self.set_alarm(request, now.at + self.connect_timeout, Alarm::Limit);
                }
                self.set_what(request, What::Releasing { reply });
                self.give_back(slot, request);
            }
            // It was lost before its release came.
            Some(_) => {}
            None => drop(reply.map(|reply| reply.send(Err(LostReason::Expired.into())))),
        }
    }

    fn set_what(&mut self, request: RequestId, what: What) {
        if let Some(call) = self.calls.get_mut(&request) {
            call.what = what;
        }
    }

    pub(super) fn give_back(&mut self, slot: Slot, request: RequestId) {
        if let Some(session) = self.sessions.get_mut(&slot) {
            session.tickets.abandon(request);
        }
    }

    pub(super) fn extend(
        &mut self,
        now: Now,
        request: RequestId,
        guard: RequestId,
        ttl: Duration,
        reply: Reply<()>,
    ) {
        let Some(&What::Holding { slot, .. }) = self.calls.get(&guard).map(|call| &call.what) else {
            let _ = reply.send(Err(LostReason::Expired.into()));
            return;
        };
        let session = self.sessions.get_mut(&slot).expect("a guard's session lives as long as the guard");
        session.extend(now, request, ttl);
        self.begin(now, request, What::Extending { slot, reply }, &[(self.connect_timeout, Alarm::Limit)]);
    }

    // ------------------------------------------------------------------------------------------- effects

    /// Tells the callers, and leaves `effects` empty.
    pub(super) fn tell(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Granted { request, token, attempts } => self.granted(slot, request, token, attempts),
                Effect::Queued { request, place } => {
                    if let Some(What::Acquiring { place: known, .. }) =
                        self.calls.get_mut(&request).map(|c| &mut c.what)
                    {
                        *known = Some(place);
                    }
                }
                Effect::Refused { request, contention } | Effect::WaitEnded { request, contention } => {
                    self.not_acquired(request, Some(contention));
                }
                Effect::Over { request } => self.over(request),
                Effect::Failed { request, error } => self.failed(request, &error),
                Effect::Released { request, held } => self.released(request, held),
                Effect::NotHeld { request } => self.not_held(request),
                Effect::Extended { request } => {
                    if let Some(What::Extending { reply, .. }) = self.finish(request) {
                        let _ = reply.send(Ok(()));
                    }
                }
            }
        }
    }

    /// The lease is looked at once more: of a session that just ended nothing is handed out. Such a request stays,
    /// and the end of the session moves it to the next.
    fn granted(&mut self, slot: Slot, request: RequestId, token: FencingToken, attempts: u32) {
        let Some(lease) = self.sessions.get(&slot).and_then(|session| session.cell()).cloned() else {
            return;
        };
        if lease.remaining().is_none() {
            return;
        }
        self.clear_alarms(request);
        let endpoint = self.links.endpoint_in_use().cloned().unwrap_or_default();
        let Some(call) = self.calls.get_mut(&request) else {
            return;
        };
        let What::Acquiring { wish, .. } = &call.what else {
            return;
        };
        let cell = Arc::new(GuardCell::new(wish.ask.clone(), token, lease));
        let holding = What::Holding { slot, cell: cell.clone() };
        if let What::Acquiring { reply, .. } = std::mem::replace(&mut call.what, holding) {
            // A caller that is gone has posted its farewell, and that releases the lock.
            let _ = reply.send(Ok(Acquired::Granted { cell, attempts, endpoint }));
        }
    }

    pub(super) fn not_acquired(&mut self, request: RequestId, contention: Option<Contention>) {
        let now = self.now();
        let started = self.calls.get(&request).map(|call| call.started);
        let Some(What::Acquiring { wish, place, reply, slot }) = self.finish(request) else {
            return;
        };
        let _ = reply.send(match wish.patience {
            Patience::Try => Ok(Acquired::Busy(contention.unwrap_or_default())),
            Patience::AtMost(_) | Patience::Forever => {
                let waited = now.at - started.unwrap_or(now.at);
                let mut timeout = WaitTimeout::new(&wish.ask.names[0], waited, place, contention.as_ref());
                let is_attached = self.sessions.get(&slot).is_some_and(|session| session.is_attached());
                if contention.is_none() && !is_attached {
                    timeout.unreachable = self.links.report();
                }
                Err(Error::WaitTimeout(Box::new(timeout)))
            }
        });
    }

    /// The answer that ended it was lost. A bounded wait has ended; an unbounded one begins anew.
    fn over(&mut self, request: RequestId) {
        match self.calls.get(&request).map(|call| &call.what) {
            Some(What::Acquiring { wish, .. }) if wish.patience == Patience::Forever => {
                self.submit(self.now(), request)
            }
            _ => self.not_acquired(request, None),
        }
    }

    fn failed(&mut self, request: RequestId, error: &OpError) {
        if let Some(What::Acquiring { reply, .. }) = self.finish(request) {
            let _ = reply.send(Err(Error::from_reason(&error.reason, &error.message)));
        }
    }

    /// The cluster does not allow the new TTL. The lock is held on, under the one before.
    pub(super) fn refuse_extend(&mut self, request: RequestId, error: &OpError) {
        if let Some(What::Extending { reply, .. }) = self.finish(request) {
            let _ = reply.send(Err(Error::from_reason(&error.reason, &error.message)));
        }
    }

    fn released(&mut self, request: RequestId, held: bool) {
        if let Some(What::Releasing { reply: Some(reply) }) = self.finish(request) {
            let _ = reply.send(if held { Ok(()) } else { Err(LostReason::NotHolder.into()) });
        }
    }

    fn not_held(&mut self, request: RequestId) {
        if let Some(What::Holding { cell, .. }) = self.finish(request) {
            cell.end(LostReason::NotHolder);
            warn!(name = cell.name(), token = cell.token().get(), reason = %LostReason::NotHolder, "lock lost");
        }
    }

    /// The session is over. Guards are lost, waiting requests go on in a new one.
    pub(super) fn lose(&mut self, slot: Slot, reason: LostReason) {
        let Some(mut session) = self.forget(slot) else {
            return;
        };
        if let Some(cell) = session.cell() {
            cell.end();
        }
        let mut lost: BTreeMap<FencingToken, Arc<GuardCell>> = BTreeMap::new();
        for request in session.tickets.requests() {
            match self.calls.get(&request).map(|call| &call.what) {
                Some(What::Acquiring { .. }) => self.submit(self.now(), request),
                Some(What::Holding { .. }) => {
                    if let Some(What::Holding { cell, .. }) = self.finish(request) {
                        cell.end(reason);
                        lost.insert(cell.token(), cell);
                    }
                }
                Some(What::Releasing { .. }) => {
                    if let Some(What::Releasing { reply: Some(reply) }) = self.finish(request) {
                        let _ = reply.send(Err(reason.into()));
                    }
                }
                _ => {}
            }
        }
        self.end_extends(&mut session, reason);
        if let Some((token, first)) = lost.first_key_value() {
            warn!(name = first.name(), token = token.get(), locks = lost.len(), %reason, "lease lost");
        }
    }

    /// A session that we closed is gone; with it what was still to be released.
    pub(super) fn closed(&mut self, slot: Slot) {
        let Some(session) = self.forget(slot) else {
            return;
        };
        for request in session.tickets.requests() {
            if let Some(What::Releasing { reply: Some(reply) }) = self.finish(request) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// The cluster takes no such session. Nothing was ever granted in it.
    pub(super) fn fail_session(&mut self, slot: Slot, error: &OpError) {
        let Some(session) = self.forget(slot) else {
            return;
        };
        for request in session.tickets.requests() {
            self.failed(request, error);
        }
    }

    fn forget(&mut self, slot: Slot) -> Option<Session> {
        let session = self.sessions.remove(&slot)?;
        self.shared.retain(|_, shared| *shared != slot);
        self.by_key.retain(|_, of_key| *of_key != slot);
        if let Some(id) = session.id() {
            self.by_id.remove(&id);
        }
        Some(session)
    }

    fn end_extends(&mut self, session: &mut Session, reason: LostReason) {
        for request in session.take_extends() {
            if let Some(What::Extending { reply, .. }) = self.finish(request) {
                let _ = reply.send(Err(reason.into()));
            }
        }
    }
}
