//! What waits to be sent to one client stream.
//!
//! Whoever applies entries pushes and never waits; whoever owns the connection takes as many events at a time as fit
//! into one message. A client that does not read is cut off at a bound instead of holding up the lock table.
//!
//! The answer to a resume may be longer than that bound. It waits as a view of what the session has, and its parts are
//! made one at a time when those before have left: over a connection that ends here, as fast as the client reads;
//! over a relay, a few parts ahead of what the follower says has left for the client ([`PARTS_AHEAD`]).

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use lock_table::SessionId;
use prost::Message;
use raftlock_proto::SESSION_RESPONSE_BYTES_MAX;
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::{Moved, SessionEvent, SessionResponse};
use tokio::sync::Notify;

use crate::service::convert::Resumed;

/// Bytes that may wait for one client: the answers to a full stream's worth of requests many times over. A client
/// that is this far behind has stopped reading.
pub const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Parts of resume answers, of at most 25 KB each, that are sent to a follower before it says that earlier ones have left
/// for the client. Twice as many may come after the way has changed, and that is still well under
/// [`OUTBOX_BYTES_MAX`]; it is enough to keep a client busy for the round trip.
const PARTS_AHEAD: usize = 8;

/// Why a stream ends, from the server's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client left, or said goodbye.
    Done,
    /// Its outbox is full.
    SlowConsumer,
    /// It sent what no client sends.
    Malformed(&'static str),
    /// It sent a message above the bound.
    TooLarge,
    /// The node stops.
    Stopping,
}

/// The events that wait for one stream.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    wake: Notify,
    part_left: Notify,
    /// A relayed stream tells the relay that it has something, instead of waking a task of its own.
    relay: Option<(Arc<Dirty>, u64)>,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Of the events that wait; a resume's answer counts only with the part that is due.
    bytes: usize,
    ending: Option<Ending>,
    /// Parts of resume answers that may be made now.
    parts_allowed: usize,
    /// Parts that have left since somebody asked.
    parts_left: u32,
}

#[derive(Debug)]
enum Waiting {
    Event { event: SessionEvent, len: usize },
    Resumed(Resumed),
}

fn sized(event: Event) -> (SessionEvent, usize) {
    let event = SessionEvent { event: Some(event) };
    let len = event.encoded_len();
    (event, len)
}

impl Outbox {
    /// Of a stream whose connection ends at this node.
    pub fn local() -> Arc<Outbox> {
        Outbox::new(None, usize::MAX)
    }

    /// Of a stream that `dirty`'s relay carries to another node, as its stream `number`.
    pub fn relayed(dirty: Arc<Dirty>, number: u64) -> Arc<Outbox> {
        Outbox::new(Some((dirty, number)), PARTS_AHEAD)
    }

    fn new(relay: Option<(Arc<Dirty>, u64)>, parts_allowed: usize) -> Arc<Outbox> {
        let state = State { waiting: VecDeque::new(), bytes: 0, ending: None, parts_allowed, parts_left: 0 };
        Arc::new(Outbox { state: Mutex::new(state), wake: Notify::new(), part_left: Notify::new(), relay })
    }

    /// Adds an event. Never blocks; past the bound it ends the stream.
    pub fn push(&self, event: Event) {
        let (event, len) = sized(event);
        {
            let mut state = self.lock();
            if state.ending.is_some() {
                return;
            }
            if state.bytes + len > OUTBOX_BYTES_MAX {
                state.waiting.clear();
                state.ending = Some(Ending::SlowConsumer);
            } else {
                state.bytes += len;
                state.waiting.push_back(Waiting::Event { event, len });
            }
        }
        self.notify();
    }

    /// Adds the answer to a resume. It replaces one for the same session that has not left.
    pub fn push_resumed(&self, resumed: Resumed) {
        {
            let mut state = self.lock();
            if state.ending.is_some() {
                return;
            }
            state.forget_resumed(|session| session == resumed.session());
            state.waiting.push_back(Waiting::Resumed(resumed));
        }
        self.notify();
    }

    /// What has not left of the answer to a resume is void: the session is elsewhere, or over.
    pub fn forget_resumed(&self, session: SessionId) {
        self.lock().forget_resumed(|other| other == session);
        self.notify(); // what waited behind it
    }

    /// The way to the leader has changed. Answers that have not left are void: the client resumes anew.
    pub fn moved(&self) {
        self.lock().forget_resumed(|_| true);
        self.push(Event::Moved(Moved {}));
    }

    /// So many parts of resume answers have reached the client: as many more may be made.
    pub fn allow_parts(&self, taken: u32) {
        {
            let mut state = self.lock();
            state.parts_allowed = state.parts_allowed.saturating_add(taken as usize).min(PARTS_AHEAD);
        }
        self.notify();
    }

    /// Waits until parts of resume answers have left, and answers with how many. Cancel safe.
    pub async fn parts_left(&self) -> u32 {
        loop {
            let woken = self.part_left.notified();
            let left = std::mem::take(&mut self.lock().parts_left);
            if left > 0 {
                return left;
            }
            woken.await;
        }
    }

    /// Ends the stream after what already waits. The first ending stays.
    pub fn end(&self, ending: Ending) {
        self.lock().ending.get_or_insert(ending);
        self.notify();
    }

    /// The next message, or the stream's end. Waits for either. Cancel safe.
    pub async fn next(&self) -> Result<SessionResponse, Ending> {
        loop {
            let woken = self.wake.notified();
            if let Some(next) = self.try_next() {
                return next;
            }
            woken.await;
        }
    }

    /// The next message or the end, if there is one now.
    pub fn try_next(&self) -> Option<Result<SessionResponse, Ending>> {
        let mut state = self.lock();
        let mut events = Vec::with_capacity(state.waiting.len().min(EVENTS_RESERVED_MAX));
        let mut bytes = 0;
        while let Some(len) = state.front_len() {
            // An event and the two or three bytes of its frame.
            if !events.is_empty() && bytes + len + FRAME_BYTES > SESSION_RESPONSE_BYTES_MAX {
                break;
            }
            bytes += len + FRAME_BYTES;
            state.bytes -= len;
            let Some(Waiting::Event { event, .. }) = state.waiting.pop_front() else { break };
            if matches!(event.event, Some(Event::Resumed(_))) {
                state.parts_left = state.parts_left.saturating_add(1);
                self.part_left.notify_one();
            }
            events.push(event);
        }
        match events.is_empty() {
            false => Some(Ok(SessionResponse { events })),
            true if state.waiting.is_empty() => state.ending.map(Err),
            true => None,
        }
    }

    fn notify(&self) {
        match &self.relay {
            None => self.wake.notify_one(),
            Some((dirty, number)) => dirty.mark(*number),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// The size of the event that is due. Of a resume's answer the next part is made here, if it may be.
    fn front_len(&mut self) -> Option<usize> {
        loop {
            let part = match self.waiting.front_mut()? {
                Waiting::Event { len, .. } => return Some(*len),
                Waiting::Resumed(_) if self.parts_allowed == 0 => return None,
                Waiting::Resumed(resumed) => resumed.next(),
            };
            match part.map(sized) {
                Some((event, len)) => {
                    self.bytes += len;
                    self.parts_allowed -= 1;
                    self.waiting.push_front(Waiting::Event { event, len });
                }
                None => drop(self.waiting.pop_front()),
            }
        }
    }

    fn forget_resumed(&mut self, which: impl Fn(SessionId) -> bool) {
        self.waiting
            .retain(|waiting| !matches!(waiting, Waiting::Resumed(resumed) if which(resumed.session())));
    }
}

/// Room that is made for the events of a message before it is known how many fit: as many as a large batch answers.
const EVENTS_RESERVED_MAX: usize = 4_096;

/// Tag and length of an event inside its message.
const FRAME_BYTES: usize = 4;

/// Which streams of a relay have something to send.
#[derive(Debug, Default)]
pub struct Dirty {
    streams: Mutex<BTreeSet<u64>>,
    wake: Notify,
}

impl Dirty {
    fn mark(&self, number: u64) {
        self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(number);
        self.wake.notify_one();
    }

    /// Waits until some stream has something, and answers with all that have. Cancel safe.
    pub async fn take(&self) -> BTreeSet<u64> {
        loop {
            let woken = self.wake.notified();
            let taken =
                std::mem::take(&mut *self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            if !taken.is_empty() {
                return taken;
            }
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use lock_table::{RenewalNumber, SessionView, Ticket, Token};
    use raftlock_proto::v1::{Draining, SessionError};

    use super::*;

    fn fat() -> Event {
        Event::Error(SessionError {
            key: 1,
            session: 1,
            error: Some(raftlock_proto::v1::OpError { message: "x".repeat(100_000), ..Default::default() }),
        })
    }

    #[test]
    fn messages_stay_within_their_bound_and_keep_the_order() {
        let outbox = Outbox::local();
        for _ in 0..5 {
            outbox.push(fat());
        }
        outbox.push(Event::Draining(Draining {}));
        let mut seen = 0;
        while let Some(message) = outbox.try_next() {
            let message = message.expect("the stream has not ended");
            assert!(message.encoded_len() <= SESSION_RESPONSE_BYTES_MAX);
            seen += message.events.len();
        }
        assert_eq!(seen, 6);
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off() {
        let outbox = Outbox::local();
        for _ in 0..100 {
            outbox.push(fat());
        }
        assert_eq!(outbox.try_next(), Some(Err(Ending::SlowConsumer)));
    }

    const PART: usize = 1_024;

    fn resumed(session: u64, locks: usize) -> Resumed {
        let held = (0..locks as u64).map(|at| (Ticket::new(at), Token::new(u64::MAX - at))).collect();
        let view = SessionView {
            held,
            queued: Vec::new(),
            finished: Vec::new(),
            acked: Ticket::new(0),
            number: RenewalNumber::new(1),
        };
        Resumed::new(1, SessionId::new(session), view)
    }

    fn held(message: &SessionResponse) -> usize {
        let events = message.events.iter().filter_map(|event| event.event.as_ref());
        events.map(|event| if let Event::Resumed(part) = event { part.held.len() } else { 0 }).sum()
    }

    #[test]
    fn a_session_with_300_000_locks_resumes_within_the_bound() {
        const LOCKS: usize = 300_000;
        let outbox = Outbox::local();
        outbox.push_resumed(resumed(1, LOCKS));
        outbox.push(Event::Draining(Draining {}));
        let mut told = 0;
        let mut last = None;
        while let Some(next) = outbox.try_next() {
            let message = next.expect("the client reads, so it is not cut off");
            assert!(message.encoded_len() <= SESSION_RESPONSE_BYTES_MAX);
            assert!(outbox.lock().bytes <= SESSION_RESPONSE_BYTES_MAX, "made only when it is due");
            told += held(&message);
            last = message.events.into_iter().next_back();
        }
        assert_eq!(told, LOCKS);
        let last = last.and_then(|event| event.event);
        assert_eq!(last, Some(Event::Draining(Draining {})), "what came after it is sent after it");
        assert_eq!(outbox.lock().bytes, 0);
    }

    #[tokio::test]
    async fn over_a_relay_parts_come_as_the_client_takes_them() {
        let leader = Outbox::relayed(Arc::default(), 1);
        leader.push_resumed(resumed(1, 100 * PART));
        leader.push(Event::Draining(Draining {}));
        let follower = Outbox::local();
        let carry = || {
            let mut parts = 0;
            while let Some(message) = leader.try_next() {
                let events = message.expect("no end").events.into_iter().filter_map(|event| event.event);
                events.for_each(|event| {
                    parts += usize::from(matches!(event, Event::Resumed(_)));
                    follower.push(event);
                });
            }
            parts
        };
        assert_eq!(carry(), PARTS_AHEAD);
        assert_eq!(carry(), 0, "nothing more before the client has read");
        let (mut told, mut done) = (0, false);
        while !done {
            let message = follower.try_next().expect("the relay goes on").expect("not cut off");
            told += held(&message);
            done = message.events.iter().any(|event| matches!(event.event, Some(Event::Draining(_))));
            if told > 0 && !done {
                leader.allow_parts(follower.parts_left().await);
                carry();
            }
        }
        assert_eq!(told, 100 * PART);
    }

    #[test]
    fn an_answer_that_is_void_is_not_sent() {
        let outbox = Outbox::local();
        outbox.push_resumed(resumed(1, 10 * PART));
        outbox.push_resumed(resumed(2, 10 * PART));
        outbox.push_resumed(resumed(1, PART));
        outbox.forget_resumed(SessionId::new(2));
        let message = outbox.try_next().expect("the newer answer").expect("no end");
        assert_eq!(held(&message), PART);
        assert_eq!(outbox.try_next(), None);
        outbox.push_resumed(resumed(1, 10 * PART));
        outbox.moved();
        let message = outbox.try_next().expect("told").expect("no end");
        assert!(matches!(message.events[..], [SessionEvent { event: Some(Event::Moved(_)) }]), "{message:?}");
    }

    #[test]
    fn what_was_pushed_before_the_end_is_still_sent() {
        let outbox = Outbox::local();
        outbox.push(Event::Draining(Draining {}));
        outbox.end(Ending::Stopping);
        outbox.push(fat());
        assert_eq!(outbox.try_next().expect("an event").expect("no end yet").events.len(), 1);
        assert_eq!(outbox.try_next(), Some(Err(Ending::Stopping)));
    }
}
