//! Where clients' connections end, and the way from there to the leader.
//!
//! A client's stream stays where it is. Underneath, its [`Route`] changes: to this node's own table while it leads, to
//! the relay of another node's while that one does, to nowhere during an election. After each change the client is
//! told `Moved`, and resumes its sessions over the same stream: whatever was under way may be lost, and only the
//! replicated state decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use raftlock_proto::peer::forward_request::Method;
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::{Draining, SessionRequest, SessionResponse};
use tokio::sync::watch;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Status, Streaming};

use crate::members::controller::Controller;
use crate::outbox::{Ending, Outbox};
use crate::peers::ClusterId;
use crate::relay::RelayLink;
use crate::service::admin;
use crate::service::lock::Calls;
use crate::service::session::Sessions;
use crate::service::status;
use crate::streams::StreamId;

/// How long there may be no way to a leader before clients are told to look for one elsewhere: above what an election
/// takes with default timers, or every election would set all clients of all nodes moving.
const LOST_PATIENCE: Duration = Duration::from_secs(1);

/// Where calls and streams go at the moment.
#[derive(Clone)]
pub enum Route {
    /// This node leads.
    Here(Arc<Local>),
    /// Another node leads, and there is a relay to it.
    There(Arc<RelayLink>),
    /// Nobody can be asked.
    Nowhere(Why),
}

/// The leader's side, on this node.
pub struct Local {
    /// Session streams.
    pub sessions: Sessions,
    /// Unary calls.
    pub calls: Calls,
    /// Changes of the membership.
    pub members: Controller,
}

impl Local {
    /// Executes an encoded call that a follower forwarded.
    pub async fn execute(
        &self,
        method: Method,
        message: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<u8>, Status> {
        match method {
            Method::ChangeMembers => admin::change_members(&self.members, message, limit).await,
            other => self.calls.execute(other, message, limit).await,
        }
    }
}

/// Why nobody can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The node has just started, and belongs to no cluster yet.
    Starting,
    /// No leader is known, or it cannot be reached.
    NoLeader,
    /// The node is about to stop.
    Stopping,
}

impl Why {
    /// As a caller learns it.
    pub fn status(self) -> Status {
        match self {
            Why::Starting => status::not_serving("starting"),
            Why::NoLeader => status::no_leader(),
            Why::Stopping => status::not_serving("stopping"),
        }
    }
}

/// All connections of clients to this node.
pub struct Edge {
    cluster: OnceLock<AsciiMetadataValue>,
    route: watch::Sender<Route>,
    outboxes: Mutex<Outboxes>,
}

/// Session streams on one node. One that says nothing costs about ten kilobytes, so as many cost less than a gigabyte;
/// and one stream carries a whole client process.
const STREAMS_MAX: usize = 65_536;

#[derive(Default)]
struct Outboxes {
    next: u64,
    open: BTreeMap<u64, Arc<Outbox>>,
}

impl Outboxes {
    /// Takes one in under a number of its own; `None` if there are `most`.
    fn admit(&mut self, outbox: &Arc<Outbox>, most: usize) -> Option<u64> {
        if self.open.len() >= most {
            return None;
        }
        self.next += 1;
        self.open.insert(self.next, outbox.clone());
        Some(self.next)
    }
}

impl Edge {
    /// Leads nowhere until it is told.
    pub fn new() -> Arc<Edge> {
        let (route, _) = watch::channel(Route::Nowhere(Why::Starting));
        Arc::new(Edge { cluster: OnceLock::new(), route, outboxes: Mutex::default() })
    }

    /// The cluster that this node belongs to, once it does, as it is put on every answer.
    pub fn cluster(&self) -> Option<&AsciiMetadataValue> {
        self.cluster.get()
    }

    /// This node belongs to `cluster`, from here on and for good.
    pub fn joined(&self, cluster: ClusterId) {
        let _ = self.cluster.set(cluster.to_string().parse().expect("hexadecimal digits are a valid header"));
    }

    /// Where to go now.
    pub fn route(&self) -> Route {
        self.route.borrow().clone()
    }

    /// Has an encoded call executed by the leader, wherever it is.
    pub async fn execute(
        &self,
        method: Method,
        message: Bytes,
        limit: Option<Duration>,
    ) -> Result<Bytes, Status> {
        match self.route() {
            Route::Here(local) => local.execute(method, &message, limit).await.map(Bytes::from),
            // It may wait: for a learner to catch up, or for its turn.
            Route::There(relay) => relay.forward(method, message, true, limit).await,
            Route::Nowhere(why) => Err(why.status()),
        }
    }

    /// Changes the way under all streams, unless the node is stopping.
    pub fn set_route(&self, route: Route) {
        self.route.send_if_modified(|now| {
            let stopping = matches!(now, Route::Nowhere(Why::Stopping));
            let same = match (&*now, &route) {
                (Route::Nowhere(old), Route::Nowhere(new)) => old == new,
                _ => false,
            };
            if !stopping && !same {
                *now = route;
            }
            !stopping && !same
        });
    }

    /// Whether calls get anywhere.
    pub fn is_ready(&self) -> bool {
        !matches!(*self.route.borrow(), Route::Nowhere(_))
    }

    /// Changes of the way.
    pub fn watch_route(&self) -> watch::Receiver<Route> {
        self.route.subscribe()
    }

    /// Tells the clients of this node to go elsewhere. Their streams go on meanwhile.
    pub fn drain(&self) {
        for outbox in self.lock().open.values() {
            outbox.push(Event::Draining(Draining {}));
        }
    }

    /// Tells the clients to go elsewhere, once an outage, when there has been no way for longer than an election
    /// takes: another node may have one. A client that finds none keeps its stream, and is told `Moved` on it when the
    /// way is back. Runs for as long as it is polled.
    pub async fn watch_over(&self) {
        let mut route = self.watch_route();
        let is_lost = |route: &Route| matches!(route, Route::Nowhere(Why::NoLeader));
        // The sender lives as long as `self`.
        while route.wait_for(is_lost).await.is_ok() {
            let back = tokio::time::timeout(LOST_PATIENCE, route.wait_for(|route| !is_lost(route)));
            let still_lost = back.await.is_err();
            if still_lost {
                tracing::info!(
                    streams = self.stream_count(),
                    "no way to a leader: clients are told to look elsewhere"
                );
                self.drain();
                let _ = route.wait_for(|route| !is_lost(route)).await;
            }
        }
    }

    /// How many streams of clients are open.
    pub fn stream_count(&self) -> usize {
        self.lock().open.len()
    }

    /// Ends all streams, and refuses new calls.
    pub fn stop(&self) {
        self.set_route(Route::Nowhere(Why::Stopping));
        for outbox in self.lock().open.values() {
            outbox.end(Ending::Stopping);
        }
    }

    /// Carries one client's stream for as long as it lasts; the answer is what goes back to the client.
    ///
    /// # Errors
    /// There are [`STREAMS_MAX`] of them.
    pub fn stream(
        self: Arc<Self>,
        incoming: Streaming<SessionRequest>,
    ) -> Result<impl Stream<Item = Result<SessionResponse, Status>> + Send + use<>, Status> {
        let outbox = Outbox::local();
        let admitted = self.lock().admit(&outbox, STREAMS_MAX);
        let number = admitted.ok_or_else(|| status::too_many_streams(STREAMS_MAX))?;
        let back = stream::unfold(Some(outbox.clone()), |outbox| async move {
            let outbox = outbox?;
            match outbox.next().await {
                Ok(message) => Some((Ok(message), Some(outbox))),
                Err(ending) => status::stream_end(ending).map(|status| (Err(status), None)),
            }
        });
        tokio::spawn(async move {
            self.carry(incoming, &outbox).await;
            self.lock().open.remove(&number);
        });
        Ok(back)
    }

    async fn carry(&self, mut incoming: Streaming<SessionRequest>, outbox: &Arc<Outbox>) {
        let mut route = self.route.subscribe();
        let mut way = Way::of(&route.borrow_and_update(), outbox);
        loop {
            tokio::select! {
                biased;
                changed = route.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    way.leave();
                    way = Way::of(&route.borrow_and_update(), outbox);
                    if !matches!(way, Way::Nowhere) {
                        outbox.moved();
                    }
                }
                parts = outbox.parts_left() => way.parts_taken(parts).await,
                message = incoming.message() => match message {
                    Ok(Some(message)) => way.send(message).await,
                    Ok(None) => {
                        outbox.end(Ending::Done);
                        break;
                    }
                    Err(status) => {
                        outbox.end(ending_of(&status));
                        break;
                    }
                }
            }
        }
        way.leave();
    }

    fn lock(&self) -> MutexGuard<'_, Outboxes> {
        self.outboxes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What ended the incoming half: the client's bad message, or its connection.
fn ending_of(status: &Status) -> Ending {
    match status.code() {
        tonic::Code::OutOfRange => Ending::TooLarge,
        tonic::Code::Internal => Ending::Malformed("the message is not a SessionRequest"),
        _ => Ending::Done,
    }
}

/// The way of one stream, as it was last set.
enum Way {
    Here { local: Arc<Local>, stream: StreamId },
    There { relay: Arc<RelayLink>, number: u64 },
    Nowhere,
}

impl Way {
    fn of(route: &Route, outbox: &Arc<Outbox>) -> Way {
        match route {
            Route::Here(local) => {
                let stream = local.sessions.streams.open(outbox.clone());
                Way::Here { local: local.clone(), stream }
            }
            Route::There(relay) => Way::There { number: relay.open(outbox.clone()), relay: relay.clone() },
            Route::Nowhere(_) => Way::Nowhere,
        }
    }

    async fn send(&self, message: SessionRequest) {
        match self {
            Way::Here { local, stream } => local.sessions.take(vec![(*stream, message)]).await,
            Way::There { relay, number } => relay.send(*number, &message).await,
            // It needs no answer: `Moved` follows when there is a way again, and the client resumes and repeats.
            // If none comes, the client is told to look elsewhere (`Edge::watch_over`).
            Way::Nowhere => {}
        }
    }

    async fn parts_taken(&self, parts: u32) {
        match self {
            Way::There { relay, number } => relay.parts_taken(*number, parts).await,
            Way::Here { .. } | Way::Nowhere => {}
        }
    }

    fn leave(&self) {
        match self {
            Way::Here { local, stream } => local.sessions.streams.close(*stream),
            Way::There { relay, number } => relay.close(*number),
            Way::Nowhere => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_bounded_and_a_place_that_is_left_is_free_again() {
        let (mut outboxes, outbox) = (Outboxes::default(), Outbox::local());
        let first = outboxes.admit(&outbox, 2).expect("room");
        assert!(outboxes.admit(&outbox, 2).is_some());
        assert_eq!(outboxes.admit(&outbox, 2), None);
        outboxes.open.remove(&first);
        assert!(outboxes.admit(&outbox, 2).is_some_and(|number| number != first));
    }
}
