//! What waits to be sent to one client stream.
//!
//! Whoever applies entries pushes and never waits; whoever owns the connection takes as many events at a time as fit
//! into one message. A client that does not read is cut off at a bound instead of holding up the lock table.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use prost::Message;
use raftlock_proto::SESSION_RESPONSE_BYTES_MAX;
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::{SessionEvent, SessionResponse};
use tokio::sync::Notify;

/// Bytes that may wait for one client: the answers to a full stream's worth of requests many times over. A client
/// that is this far behind has stopped reading.
pub const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;

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
    /// A relayed stream tells the relay that it has something, instead of waking a task of its own.
    relay: Option<(Arc<Dirty>, u64)>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<SessionEvent>,
    bytes: usize,
    ending: Option<Ending>,
}

impl Outbox {
    /// Of a stream whose connection ends at this node.
    pub fn local() -> Arc<Outbox> {
        Arc::new(Outbox { state: Mutex::default(), wake: Notify::new(), relay: None })
    }

    /// Of a stream that `dirty`'s relay carries to another node, as its stream `number`.
    pub fn relayed(dirty: Arc<Dirty>, number: u64) -> Arc<Outbox> {
        Arc::new(Outbox { state: Mutex::default(), wake: Notify::new(), relay: Some((dirty, number)) })
    }

    /// Adds an event. Never blocks; past the bound it ends the stream.
    pub fn push(&self, event: Event) {
        let event = SessionEvent { event: Some(event) };
        let bytes = event.encoded_len();
        {
            let mut state = self.lock();
            if state.ending.is_some() {
                return;
            }
            if state.bytes + bytes > OUTBOX_BYTES_MAX {
                state.events.clear();
                state.ending = Some(Ending::SlowConsumer);
            } else {
                state.bytes += bytes;
                state.events.push_back(event);
            }
        }
        self.notify();
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
        let mut events = Vec::new();
        let mut bytes = 0;
        while let Some(event) = state.events.front() {
            let len = event.encoded_len();
            // An event and the two or three bytes of its frame.
            if !events.is_empty() && bytes + len + FRAME_BYTES > SESSION_RESPONSE_BYTES_MAX {
                break;
            }
            bytes += len + FRAME_BYTES;
            state.bytes -= len;
            events.extend(state.events.pop_front());
        }
        match events.is_empty() {
            false => Some(Ok(SessionResponse { events })),
            true => state.ending.map(Err),
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
