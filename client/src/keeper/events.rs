//! What the keeper's tasks tell it: streams that open and end, and what the cluster says on them.

use super::{Happening, Keeper, Slot};
use crate::error::Failure;
use crate::guard::LostReason;
use crate::session::{Now, Over};
use crate::tickets::Effect;
use crate::wire::{Attachment, EndReason, Event, Key, OpError, SessionId};

impl Keeper {
    pub(super) fn on_happening(&mut self, now: Now, happening: Happening) {
        match happening {
            Happening::Connected { attempt, result } => {
                let need = self.need(now);
                if let Some(id) = self.links.connected(attempt, result, now.at, need, &mut self.random) {
                    self.attach_all(id);
                    self.connected();
                }
            }
            Happening::Received { link, result: Ok(events) } => {
                self.fresh_answers = events.len();
                let mut effects = Vec::new();
                for event in events {
                    self.on_event(now, link, event, &mut effects);
                }
            }
            Happening::Received { link, result: Err(failure) } => {
                let need = self.need(now);
                if self.links.ended(link, failure, now.at, need, &mut self.random) {
                    self.detach();
                }
            }
            Happening::StandbyReady { id, target, conn } => self.links.standby.ready(id, target, conn),
            Happening::StandbyGone { id } => self.links.standby.gone(id, now.at, &mut self.random),
            Happening::Answered { request, result } => self.answered(now, request, result),
        }
    }

    /// Renewals and ends are facts, whatever stream tells them. The rest counts from the stream in use only: what an
    /// older one says about its own way is no news, and what it says about requests, the resume has settled.
    /// `effects` is empty before and after: one buffer serves a whole message.
    fn on_event(&mut self, now: Now, link: Attachment, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Renewed { sessions, number } => {
                for slot in self.slots(&sessions) {
                    let renewed = self.session(slot, |session| session.renewed(now, number, effects));
                    self.tell(slot, effects);
                    self.unless_over(slot, renewed);
                }
            }
            Event::Lost { session, key, reason } => self.session_lost(session, key, reason),
            _ if !self.links.is_current(link) => {}

            Event::Opened { key, session, number } => {
                let Some(slot) = self.by_key.remove(&key) else {
                    return;
                };
                self.by_id.insert(session, slot);
                self.links.served(now.at);
                let opened = self.session(slot, |s| s.opened(now, session, number));
                self.unless_over(slot, opened);
            }
            Event::Resumed { key, part, more } => {
                let Some(&slot) = self.by_key.get(&key) else {
                    return;
                };
                if !more {
                    self.by_key.remove(&key);
                    self.links.served(now.at);
                }
                let resumed = self.session(slot, |session| session.resumed(now, part, more, effects));
                self.tell(slot, effects);
                self.unless_over(slot, resumed);
            }
            Event::Outcome { session, ticket, outcome } => {
                let Some(&slot) = self.by_id.get(&session) else {
                    return;
                };
                self.session(slot, |session| session.outcome(now, ticket, outcome, effects));
                self.tell(slot, effects);
            }
            Event::Superseded { key } => {
                if self.by_key.contains_key(&key) {
                    self.leave_stream(
                        now,
                        Failure::new("a stream with a higher attachment number has the session"),
                    );
                }
            }
            Event::Failed { key, session, error } => self.not_taken(now, key, session, &error),
            Event::Draining => {
                let need = self.need(now);
                self.links.drain(now.at, need, &mut self.random);
            }
            Event::Moved => self.resume_all(link),
        }
    }

    fn slots(&self, sessions: &[SessionId]) -> Vec<Slot> {
        sessions.iter().filter_map(|session| self.by_id.get(session).copied()).collect()
    }

    fn session<T>(&mut self, slot: Slot, act: impl FnOnce(&mut crate::session::Session) -> T) -> T {
        act(self.sessions.get_mut(&slot).expect("every index names a live slot"))
    }

    fn unless_over(&mut self, slot: Slot, result: Result<(), Over>) {
        if result == Err(Over) {
            self.lose(slot, LostReason::Expired);
        }
    }

    fn session_lost(&mut self, session: SessionId, key: Key, reason: EndReason) {
        let Some(&slot) = self.by_id.get(&session).or(self.by_key.get(&key)) else {
            return;
        };
        let is_closing = self.session(slot, |session| session.is_closing());
        match reason {
            EndReason::Closed | EndReason::Expired if is_closing => self.closed(slot),
            EndReason::Closed | EndReason::Expired => self.lose(slot, LostReason::SessionEnded),
        }
    }

    /// An open, a resume or a renewal. The stream is fine; the cluster has no time, or no room.
    fn not_taken(&mut self, now: Now, key: Key, session: SessionId, error: &OpError) {
        if let Some(slot) = self.by_key.remove(&key) {
            let is_open = self.session(slot, |session| session.id().is_none());
            let is_final = is_open && !error.is_transient() && error.retry_after.is_none();
            if is_final {
                self.fail_session(slot, error);
            } else {
                self.session(slot, |session| session.attach_later(now, error));
            }
        } else if let Some(&slot) = self.by_id.get(&session) {
            if error.is_not_attached() {
                self.session(slot, |session| session.attach_again(now));
            } else {
                for request in self.session(slot, |session| session.renew_later(now, error)) {
                    self.refuse_extend(request, error);
                }
            }
        }
    }
}
