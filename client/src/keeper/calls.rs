//! The keeper's callers: what each waits for, when its patience ends, and what it is told.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::alarms::Alarm;
use super::links::Task;
use super::{Acquired, Command, Happening, Keeper, Reply, RequestId, Slot, Wish};
use crate::error::{CallFailure, Error, Unavailable};
use crate::guard::{GuardCell, LostReason};
use crate::session::Now;
use crate::transport::{self, Answer, Question};

/// After its own end, a wait in the queue lasts this much longer: two ticks of the cluster and a round trip, so that
/// the cluster's own end of the wait arrives, which names the holder. Without a stream it ends on time.
const WAIT_GRACE: Duration = Duration::from_millis(500);

/// Before a read that found no answer is sent again.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// One call in progress, or one guard.
pub(super) struct Call {
    pub started: Instant,
    pub what: What,
    /// Nearly always one, or none.
    alarms: SmallVec<[(Instant, Alarm); 1]>,
}

pub(super) enum What {
    Connecting { reply: Reply<()> },
    Acquiring { slot: Slot, wish: Wish, place: Option<u32>, reply: Reply<Acquired> },
    Holding { slot: Slot, cell: Arc<GuardCell> },
    Releasing { reply: Option<Reply<()>> },
    Extending { slot: Slot, reply: Reply<()> },
    Reading { question: Question, stage: ReadStage, reply: Reply<Answer> },
}

pub(super) enum ReadStage {
    Ready,
    Pausing,
    Asked { _task: Task },
}

impl Call {
    fn new(started: Instant, what: What) -> Call {
        Call { started, alarms: SmallVec::new(), what }
    }

    /// Sessions say for themselves what they need.
    pub(super) fn needs_stream(&self) -> bool {
        matches!(self.what, What::Connecting { .. } | What::Reading { .. })
    }
}

impl Keeper {
    pub(super) fn on_command(&mut self, now: Now, command: Command) {
        if self.closing.is_some() {
            return self.refuse(command);
        }
        match command {
            Command::Connect { request, reply } => self.connect(now, request, reply),
            Command::Acquire { request, wish, reply } => self.acquire(now, request, wish, reply),
            Command::Abandon { request } => self.abandon(request),
            Command::Release { request, reply } => self.release(now, request, reply),
            Command::Extend { request, guard, ttl, reply } => self.extend(now, request, guard, ttl, reply),
            Command::Read { request, question, reply } => {
                let stage = ReadStage::Ready;
                self.begin(
                    now,
                    request,
                    What::Reading { question, stage, reply },
                    &[(self.connect_timeout, Alarm::Limit)],
                );
                self.unasked.insert(request);
            }
            Command::Close { done } => self.close(Some(done)),
        }
    }

    /// The client is being closed. An answer to nobody is no error: callers may have gone.
    fn refuse(&mut self, command: Command) {
        match command {
            Command::Connect { reply, .. } | Command::Extend { reply, .. } => {
                drop(reply.send(Err(Error::Closed)))
            }
            Command::Acquire { reply, .. } => drop(reply.send(Err(Error::Closed))),
            Command::Read { reply, .. } => drop(reply.send(Err(Error::Closed))),
            Command::Release { reply, .. } => drop(reply.map(|reply| reply.send(Err(Error::Closed)))),
            Command::Abandon { .. } => {}
            Command::Close { done } => self.close(Some(done)),
        }
    }

    pub(super) fn begin(&mut self, now: Now, request: RequestId, what: What, alarms: &[(Duration, Alarm)]) {
        self.calls.insert(request, Call::new(now.at, what));
        for &(after, alarm) in alarms {
            self.set_alarm(request, now.at + after, alarm);
        }
    }

    pub(super) fn set_alarm(&mut self, request: RequestId, at: Instant, alarm: Alarm) {
        if let Some(call) = self.calls.get_mut(&request) {
            call.alarms.push((at, alarm));
            self.alarms.set(at, request, alarm);
        }
    }

    pub(super) fn clear_alarms(&mut self, request: RequestId) {
        let Some(call) = self.calls.get_mut(&request) else {
            return;
        };
        for (at, alarm) in call.alarms.drain(..) {
            self.alarms.clear(at, request, alarm);
        }
    }

    pub(super) fn finish(&mut self, request: RequestId) -> Option<What> {
        self.clear_alarms(request);
        self.calls.remove(&request).map(|call| call.what)
    }

    fn connect(&mut self, now: Now, request: RequestId, reply: Reply<()>) {
        if self.links.current().is_some() {
            let _ = reply.send(Ok(()));
            return;
        }
        self.begin(now, request, What::Connecting { reply }, &[(self.connect_timeout, Alarm::Limit)]);
    }

    /// A stream of the cluster is there.
    pub(super) fn connected(&mut self) {
        let connecting = self.calls.iter().filter(|(_, call)| matches!(call.what, What::Connecting { .. }));
        let mut connecting: Vec<RequestId> = connecting.map(|(&request, _)| request).collect();
        connecting.sort_unstable();
        for request in connecting {
            if let Some(What::Connecting { reply }) = self.finish(request) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// Everybody is told that it is over. Releases stay: closing the sessions will answer them.
    pub(super) fn end_calls(&mut self, reason: LostReason) {
        let mut requests: Vec<RequestId> = self.calls.keys().copied().collect();
        requests.sort_unstable();
        for request in requests {
            if matches!(self.calls[&request].what, What::Releasing { .. }) {
                continue;
            }
            match self.finish(request) {
                Some(What::Connecting { reply } | What::Extending { reply, .. }) => {
                    drop(reply.send(Err(Error::Closed)))
                }
                Some(What::Acquiring { reply, slot, .. }) => {
                    let _ = reply.send(Err(Error::Closed));
                    self.give_back(slot, request);
                }
                Some(What::Reading { reply, .. }) => drop(reply.send(Err(Error::Closed))),
                Some(What::Holding { cell, .. }) => drop(cell.end(reason)),
                Some(What::Releasing { .. }) | None => {}
            }
        }
    }

    // ------------------------------------------------------------------------------------------- patience

    pub(super) fn sound_alarms(&mut self, now: Now) {
        while let Some((at, due)) = self.alarms.take_due(now.at) {
            for (request, alarm) in due {
                let set = self.calls.get_mut(&request).map(|call| &mut call.alarms);
                let place = set.as_ref().and_then(|set| set.iter().position(|set| *set == (at, alarm)));
                if let Some((set, place)) = set.zip(place) {
                    set.swap_remove(place);
                    self.sound(now, request, alarm);
                }
            }
        }
    }

    fn sound(&mut self, now: Now, request: RequestId, alarm: Alarm) {
        let Some(call) = self.calls.get_mut(&request) else {
            return;
        };
        match (alarm, &mut call.what) {
            (Alarm::Contact, _) if self.links.reached_any() => {}
            (Alarm::Contact | Alarm::Limit, _) => self.unavailable(now, request),
            (Alarm::WaitEnd, What::Acquiring { slot, .. }) => {
                if self.sessions.get(slot).is_some_and(|session| session.is_attached()) {
                    self.set_alarm(request, now.at + WAIT_GRACE, Alarm::WaitGrace);
                } else {
                    self.stop_waiting(request);
                }
            }
            (Alarm::WaitGrace, What::Acquiring { .. }) => self.stop_waiting(request),
            (Alarm::ReadAgain, What::Reading { stage, .. }) => {
                *stage = ReadStage::Ready;
                self.unasked.insert(request);
            }
            (Alarm::WaitEnd | Alarm::WaitGrace | Alarm::ReadAgain, _) => {}
        }
    }

    /// The caller's own clock ended the wait. The cluster is told until it has answered.
    fn stop_waiting(&mut self, request: RequestId) {
        if let Some(&What::Acquiring { slot, .. }) = self.calls.get(&request).map(|call| &call.what) {
            self.not_acquired(request, None);
            self.give_back(slot, request);
        }
    }

    /// The caller gets no answer in time. What it asked for is taken back, or goes on without it.
    fn unavailable(&mut self, now: Now, request: RequestId) {
        let Some(call) = self.calls.get_mut(&request) else {
            return;
        };
        let waited = now.at - call.started;
        let error = Error::Unavailable(Box::new(Unavailable { waited, endpoints: self.links.report() }));
        if let What::Releasing { reply, .. } = &mut call.what {
            drop(reply.take().map(|reply| reply.send(Err(error))));
            return;
        }
        match self.finish(request) {
            Some(What::Connecting { reply }) => drop(reply.send(Err(error))),
            Some(What::Reading { reply, .. }) => drop(reply.send(Err(error))),
            Some(What::Acquiring { reply, slot, .. }) => {
                let _ = reply.send(Err(error));
                self.give_back(slot, request);
            }
            Some(What::Extending { reply, slot }) => {
                let _ = reply.send(Err(error));
                if let Some(session) = self.sessions.get_mut(&slot) {
                    session.forget_extend(request);
                }
            }
            Some(What::Holding { .. } | What::Releasing { .. }) | None => {}
        }
    }

    // ------------------------------------------------------------------------------------------- reads

    /// Reads go over the connection in use, whose endpoint has named its cluster.
    pub(super) fn ask_questions(&mut self) {
        let (Some(link), Some(cluster)) = (self.links.current(), self.links.cluster()) else {
            return;
        };
        for request in std::mem::take(&mut self.unasked) {
            let call = self.calls.get_mut(&request).map(|call| &mut call.what);
            let Some(What::Reading { question, stage: stage @ ReadStage::Ready, .. }) = call else {
                continue;
            };
            let asked = transport::ask(link.conn.clone(), cluster.to_owned(), question.clone());
            let (limit, happenings) = (self.read_limit, self.sender.clone());
            let task = tokio::spawn(async move {
                let result = tokio::time::timeout(limit, asked)
                    .await
                    .unwrap_or_else(|_| Err(CallFailure::silence(limit)));
                let _ = happenings.send(Happening::Answered { request, result }).await;
            });
            *stage = ReadStage::Asked { _task: Task(task) };
        }
    }

    /// The stream is lost: what was asked on its connection is asked again on the next.
    pub(super) fn ask_again(&mut self) {
        for (&request, call) in &mut self.calls {
            if let What::Reading { stage, .. } = &mut call.what {
                *stage = ReadStage::Ready;
                self.unasked.insert(request);
            }
        }
    }

    pub(super) fn answered(&mut self, now: Now, request: RequestId, result: Result<Answer, CallFailure>) {
        let Some(What::Reading { stage, .. }) = self.calls.get_mut(&request).map(|call| &mut call.what)
        else {
            return;
        };
        match result {
            Err(CallFailure::Again(failure)) => {
                *stage = ReadStage::Pausing;
                self.set_alarm(request, now.at + READ_PAUSE, Alarm::ReadAgain);
                // With sessions on it the stream tells by itself whether it is any good.
                if self.sessions.is_empty() {
                    self.leave_stream(now, failure);
                }
            }
            Ok(answer) => self.reply_read(now, request, Ok(answer)),
            Err(CallFailure::Final(error)) => self.reply_read(now, request, Err(error)),
        }
    }

    fn reply_read(&mut self, now: Now, request: RequestId, answer: Result<Answer, Error>) {
        self.links.served(now.at);
        if let Some(What::Reading { reply, .. }) = self.finish(request) {
            let _ = reply.send(answer);
        }
    }
}
