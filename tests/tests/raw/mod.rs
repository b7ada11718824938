//! The wire spoken by hand: unary calls and session streams, without the SDK.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::VecDeque;

use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::ticket_outcome::Outcome;
use raftlock_proto::v1::*;
use raftlock_tests::cluster::{PATIENCE, TestCluster};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};
use tonic_types::StatusExt;

pub fn lock(name: &str, owner: &str) -> LockRequest {
    LockRequest { resource_id: name.into(), client_id: owner.into(), ttl_seconds: 60, ..Default::default() }
}

/// With a deadline that no test waits for, so that only the server can have ended the call.
pub fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE * 4);
    request
}

pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// A session stream on a node, spoken by hand.
pub struct Stream {
    send: mpsc::Sender<SessionRequest>,
    receive: tonic::Streaming<SessionResponse>,
    waiting: VecDeque<Event>,
}

impl Stream {
    pub async fn open(cluster: &TestCluster, at: usize) -> Stream {
        let (send, requests) = mpsc::channel(1_024);
        let receive =
            cluster.client(at).await.session(ReceiverStream::new(requests)).await.expect("a stream");
        Stream { send, receive: receive.into_inner(), waiting: VecDeque::new() }
    }

    pub async fn say(&self, ops: impl IntoIterator<Item = Op>) {
        let ops = ops.into_iter().map(|op| SessionOp { op: Some(op) }).collect();
        self.send.send(SessionRequest { ops }).await.expect("the stream is open");
    }

    pub async fn hear(&mut self) -> Event {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            let message = tokio::time::timeout(PATIENCE, self.receive.message()).await;
            let message = message.expect("a word in time").expect("the stream goes on").expect("no end");
            self.waiting.extend(message.events.into_iter().filter_map(|event| event.event));
        }
    }

    /// Hears on until `of` finds what it wants.
    pub async fn until<T>(&mut self, mut of: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = of(self.hear().await) {
                return found;
            }
        }
    }

    pub async fn session(&mut self) -> u64 {
        self.say([Op::Open(OpenSession {
            key: 1,
            secret: vec![7; 16].into(),
            owner: "session".into(),
            ttl_ms: 60_000,
            number: 1,
            attachment: 1,
        })])
        .await;
        self.until(|event| match event {
            Event::Opened(opened) => Some(opened.session),
            _ => None,
        })
        .await
    }

    pub async fn resume(&mut self, session: u64) -> Vec<HeldTicket> {
        let secret = vec![7; 16].into();
        self.say([Op::Resume(ResumeSession { key: 2, session, secret, attachment: 2 })]).await;
        let mut held = Vec::new();
        self.until(|event| match event {
            Event::Resumed(part) => {
                held.extend(part.held);
                (!part.more).then_some(())
            }
            Event::Error(error) => panic!("{error:?}"),
            _ => None,
        })
        .await;
        held
    }

    pub async fn granted(&mut self, ticket: u64) -> u64 {
        self.until(|event| match event {
            Event::Outcome(outcome) if outcome.ticket == ticket => match outcome.outcome {
                Some(Outcome::Granted(granted)) => Some(granted.token),
                other => panic!("{other:?}"),
            },
            _ => None,
        })
        .await
    }

    pub async fn hear_moved(&mut self) {
        self.until(|event| matches!(event, Event::Moved(_)).then_some(())).await;
    }

    pub async fn hear_draining(&mut self) {
        self.until(|event| matches!(event, Event::Draining(_)).then_some(())).await;
    }
}

pub fn acquire(session: u64, ticket: u64, name: String) -> Op {
    Op::Acquire(Acquire { session, ticket, names: vec![name], ..Default::default() })
}
