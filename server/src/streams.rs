//! Who waits for what on the leader: session streams, parked unary calls, and the batches under way.
//!
//! The lock table alone decides; this is only where its words go. Nothing here is replicated: when the leader
//! changes, clients resume their sessions at the new one, and a lost push is repaired by that.
//!
//! Invariants:
//! - Who waits for a batch is registered under its stamp before the batch is proposed.
//! - [`Streams::deliver`] is called with the outputs of every batch, in log order, under the table's lock. So whoever
//!   reads the table has been told everything up to what it reads.
//! - A session is attached to one stream at most: the one with the highest attachment number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use lock_table::{EndCause, Event as TableEvent, Outcome, Output, RenewalNumber, SessionId};
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::{SessionLost, SessionsRenewed, session_lost};
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use crate::outbox::Outbox;
use crate::service::convert::{self, Resumed};

/// A client stream on this node, whether its connection ends here or at a follower that relays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

/// Who gets the outcome of a command.
#[derive(Debug)]
pub enum Origin {
    /// Nobody: the node's own commands.
    Node,
    /// A unary call.
    Call(Caller),
    /// An open on a stream, named by the client's key. The session it makes is attached to that stream.
    Open {
        /// The stream.
        stream: StreamId,
        /// The client's key for the answer.
        key: u64,
        /// The client's attachment number.
        attachment: u64,
    },
    /// An operation of a session; its outcome goes to wherever the session is attached.
    Session {
        /// Whose.
        session: SessionId,
        /// The ticket, for an answer that does not name it.
        ticket: u64,
    },
}

/// A unary call that waits for its outcome.
#[derive(Debug)]
pub struct Caller {
    /// Where the outcome goes.
    pub answer: oneshot::Sender<CallAnswer>,
    /// Whether it stays parked while its lock is queued.
    pub waits: bool,
}

/// What a unary call learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallAnswer {
    /// The table answered at once.
    Outcome(Outcome),
    /// The wait of a parked call is over.
    Parked(TableEvent),
    /// Not proposed. It may be tried again, here or elsewhere.
    NotProposed,
    /// Proposed, and nobody knows.
    Unknown,
}

/// Who waits on this node.
#[derive(Debug, Default)]
pub struct Streams(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next_stream: u64,
    streams: FxHashMap<StreamId, Stream>,
    attached: FxHashMap<SessionId, Attached>,
    parked: BTreeMap<SessionId, Vec<Caller>>,
    batches: BTreeMap<u64, Vec<Origin>>,
}

#[derive(Debug)]
struct Stream {
    outbox: Arc<Outbox>,
    sessions: std::collections::BTreeSet<SessionId>,
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    stream: StreamId,
    attachment: u64,
}

impl Streams {
    /// Takes a stream in.
    pub fn open(&self, outbox: Arc<Outbox>) -> StreamId {
        let mut state = self.lock();
        state.next_stream += 1;
        let id = StreamId(state.next_stream);
        state.streams.insert(id, Stream { outbox, sessions: Default::default() });
        id
    }

    /// Lets a stream go. Its sessions live on, attached to nothing.
    pub fn close(&self, stream: StreamId) {
        let mut state = self.lock();
        if let Some(gone) = state.streams.remove(&stream) {
            for session in gone.sessions {
                state.attached.remove(&session);
            }
        }
    }

    /// Attaches a session to a stream, unless a stream with a higher attachment number has it. The stream that had
    /// it before is told. Called under the table's lock, so that no event of the session falls in between.
    /// `key` names the request that asks, for an answer that refuses it.
    pub fn attach(&self, stream: StreamId, session: SessionId, attachment: u64, key: u64) -> bool {
        self.lock().attach(stream, session, attachment, key)
    }

    /// Whether the session is attached to this very stream.
    pub fn is_attached(&self, stream: StreamId, session: SessionId) -> bool {
        self.lock().attached.get(&session).is_some_and(|attached| attached.stream == stream)
    }

    /// Sends an event to a stream.
    pub fn push(&self, stream: StreamId, event: Event) {
        if let Some(stream) = self.lock().streams.get(&stream) {
            stream.outbox.push(event);
        }
    }

    /// Sends what a session has to the stream that it was attached to just now.
    pub fn push_resumed(&self, stream: StreamId, resumed: Resumed) {
        if let Some(stream) = self.lock().streams.get(&stream) {
            stream.outbox.push_resumed(resumed);
        }
    }

    /// Unary sessions that somebody on this node still waits for. Calls that were given up are forgotten here.
    pub fn parked_sessions(&self) -> Vec<SessionId> {
        let mut state = self.lock();
        state.parked.retain(|_, callers| {
            callers.retain(|caller| !caller.answer.is_closed());
            !callers.is_empty()
        });
        state.parked.keys().copied().collect()
    }

    /// Registers who waits for the commands of a batch, in their order.
    pub fn expect(&self, stamp: u64, origins: Vec<Origin>) {
        self.lock().batches.insert(stamp, origins);
    }

    /// Whether this node proposed a batch and still waits for its outcome.
    pub fn expects(&self, stamp: u64) -> bool {
        self.lock().batches.contains_key(&stamp)
    }

    /// Takes back who waits for a batch that was not proposed.
    pub fn take_back(&self, stamp: u64) -> Vec<Origin> {
        self.lock().batches.remove(&stamp).unwrap_or_default()
    }

    /// This node leads no more: nobody here will learn the outcome of what is under way. Session streams are told by
    /// their edge; unary calls are told here.
    pub fn leave_office(&self) {
        let mut state = self.lock();
        let callers =
            std::mem::take(&mut state.batches).into_values().flatten().filter_map(|origin| match origin {
                Origin::Call(caller) => Some(caller),
                _ => None,
            });
        let parked = std::mem::take(&mut state.parked).into_values().flatten();
        for caller in callers.chain(parked) {
            let _ = caller.answer.send(CallAnswer::Unknown);
        }
        state.attached.clear();
        for stream in state.streams.values_mut() {
            stream.sessions.clear();
        }
    }

    /// Hands on what a batch said. Called for every applied batch, in order, under the table's lock.
    pub fn deliver(&self, stamp: u64, outputs: Vec<Output>) {
        let mut state = self.lock();
        let mut origins: Vec<Option<Origin>> =
            state.batches.remove(&stamp).unwrap_or_default().into_iter().map(Some).collect();
        let mut renewed: BTreeMap<(StreamId, RenewalNumber), Vec<u64>> = BTreeMap::new();
        for output in outputs {
            match output {
                Output::Outcome { command, outcome } => {
                    if let Some(origin) = origins.get_mut(command).and_then(Option::take) {
                        state.outcome(origin, outcome);
                    }
                }
                Output::Event(TableEvent::Renewed { session, number }) => {
                    if let Some(attached) = state.attached.get(&session) {
                        renewed.entry((attached.stream, number)).or_default().push(session.get());
                    }
                }
                Output::Event(event) => state.event(event),
            }
        }
        for ((stream, number), sessions) in renewed {
            let number = number.get();
            state.push(stream, Event::Renewed(SessionsRenewed { number, sessions }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn attach(&mut self, stream: StreamId, session: SessionId, attachment: u64, key: u64) -> bool {
        if !self.streams.contains_key(&stream) {
            return false; // the client left while its request was under way
        }
        match self.attached.get(&session).copied() {
            Some(old) if old.stream == stream => {}
            Some(old) if old.attachment > attachment => {
                let reason = session_lost::Reason::Superseded.into();
                self.push(stream, Event::Lost(SessionLost { session: session.get(), key, reason }));
                return false;
            }
            Some(old) => {
                self.leave(session, old.stream);
                self.push(old.stream, lost(session, session_lost::Reason::Superseded));
            }
            None => {}
        }
        self.attached.insert(session, Attached { stream, attachment });
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.sessions.insert(session);
        }
        true
    }

    fn detach(&mut self, session: SessionId) -> Option<StreamId> {
        let attached = self.attached.remove(&session)?;
        self.leave(session, attached.stream);
        Some(attached.stream)
    }

    /// What was left to be said of a session that leaves a stream is of no use there any more. So there is at most
    /// one unsent answer to a resume for each session of the table.
    fn leave(&mut self, session: SessionId, stream: StreamId) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.sessions.remove(&session);
            stream.outbox.forget_resumed(session);
        }
    }

    fn push(&self, stream: StreamId, event: Event) {
        if let Some(stream) = self.streams.get(&stream) {
            stream.outbox.push(event);
        }
    }

    fn outcome(&mut self, origin: Origin, outcome: Outcome) {
        match origin {
            Origin::Node => {}
            Origin::Call(caller) => match outcome {
                Outcome::Queued { session, .. } if caller.waits => {
                    self.parked.entry(session).or_default().push(caller);
                }
                other => drop(caller.answer.send(CallAnswer::Outcome(other))),
            },
            Origin::Open { stream, key, attachment } => match outcome {
                Outcome::Opened { session, number } => {
                    if self.attach(stream, session, attachment, key) {
                        self.push(stream, convert::opened(key, session, number));
                    }
                }
                other => self.push(stream, convert::open_refused(key, &other)),
            },
            Origin::Session { session, ticket } => {
                let Some(attached) = self.attached.get(&session).copied() else { return };
                match outcome {
                    Outcome::Closed { session } => {
                        self.detach(session);
                        self.push(attached.stream, lost(session, session_lost::Reason::Closed));
                    }
                    Outcome::SessionUnknown { session } => {
                        self.detach(session);
                        self.push(attached.stream, lost(session, session_lost::Reason::Expired));
                    }
                    other => self.push(attached.stream, convert::ticket_outcome(session, ticket, other)),
                }
            }
        }
    }

    fn event(&mut self, event: TableEvent) {
        match &event {
            TableEvent::Granted { session, .. } | TableEvent::WaitEnded { session, .. } => {
                if let Some(attached) = self.attached.get(session) {
                    self.push(attached.stream, convert::ticket_event(&event));
                }
                self.answer_parked(*session, event);
            }
            TableEvent::SessionEnded { session, cause } => {
                let reason = match cause {
                    EndCause::Expired => session_lost::Reason::Expired,
                    EndCause::Closed => session_lost::Reason::Closed,
                };
                let session = *session;
                if let Some(stream) = self.detach(session) {
                    self.push(stream, lost(session, reason));
                }
                self.answer_parked(session, event);
            }
            TableEvent::RenewalUnknown { session } => {
                let session = *session;
                if let Some(stream) = self.detach(session) {
                    self.push(stream, lost(session, session_lost::Reason::Expired));
                }
            }
            TableEvent::RenewalRejected { session, rejection } => {
                if let Some(attached) = self.attached.get(session) {
                    self.push(attached.stream, convert::renewal_refused(*session, rejection));
                }
            }
            TableEvent::Renewed { .. } => {} // gathered by `deliver`
        }
    }

    fn answer_parked(&mut self, session: SessionId, event: TableEvent) {
        for caller in self.parked.remove(&session).unwrap_or_default() {
            let _ = caller.answer.send(CallAnswer::Parked(event.clone()));
        }
    }
}

fn lost(session: SessionId, reason: session_lost::Reason) -> Event {
    Event::Lost(SessionLost { session: session.get(), key: 0, reason: reason.into() })
}
