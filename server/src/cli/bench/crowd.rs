//! Sessions by the thousand on few streams, spoken by hand: the SDK has a session for each lease length, and what is
//! measured here is the cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::ticket_outcome::Outcome;
use raftlock_proto::v1::{
    Acquire, OpenSession, RenewSessions, SessionEvent, SessionOp, SessionRequest, SessionResponse, acquire,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Bench;
use crate::cli::failure::{Failure, chain};

/// Sessions of one stream.
pub const STREAM_SESSIONS: usize = 1_000;

/// Connections that are opened at once: fewer than a listening socket keeps waiting.
const DIALLED_MAX: usize = 100;

/// Operations in a message: far below what one may have.
const MESSAGE_OPS: usize = 500;

/// Operations of a stream that may wait for their answers.
const UNANSWERED_MAX: usize = 4_000;

/// Operations of all streams of a crowd that may: half of what the leader lets wait to be proposed.
const CROWD_UNANSWERED_MAX: usize = 32_768;

/// How long an answer may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// All streams.
pub struct Crowd {
    pub streams: Vec<Stream>,
}

/// One stream and its sessions.
pub struct Stream {
    send: mpsc::Sender<SessionRequest>,
    receive: Streaming<SessionResponse>,
    pub sessions: Vec<u64>,
    /// Its share of what may wait for answers.
    unanswered_max: usize,
    number: u64,
    /// Tickets used in each session.
    ticket: u64,
}

impl Crowd {
    /// So many sessions, [`STREAM_SESSIONS`] on a stream, the streams spread over the nodes.
    pub async fn open(bench: &Bench, sessions: usize, ttl: Duration) -> Result<Crowd, Failure> {
        let streams = sessions.div_ceil(STREAM_SESSIONS);
        let opening = (0..streams).map(|at| {
            let address = &bench.addresses[at % bench.addresses.len()];
            Stream::open(address, STREAM_SESSIONS.min(sessions - at * STREAM_SESSIONS), streams, ttl)
        });
        Ok(Crowd { streams: try_join_all(opening).await? })
    }

    /// So many connections to one node, each with a stream and a session of its own.
    pub async fn connect(address: &str, connections: usize, ttl: Duration) -> Result<Crowd, Failure> {
        let mut streams = Vec::with_capacity(connections);
        while streams.len() < connections {
            let part = DIALLED_MAX.min(connections - streams.len());
            streams
                .extend(try_join_all((0..part).map(|_| Stream::open(address, 1, connections, ttl))).await?);
        }
        Ok(Crowd { streams })
    }
}

impl Stream {
    /// One of `streams`.
    async fn open(address: &str, sessions: usize, streams: usize, ttl: Duration) -> Result<Stream, Failure> {
        let (send, requests) = mpsc::channel(16);
        let client = RaftLockClient::connect(format!("http://{address}")).await;
        let mut client =
            client.map_err(|error| Failure::NoLeader(format!("{address}: {}", chain(&error))))?;
        let receive = client.session(ReceiverStream::new(requests)).await.map_err(|status| said(&status))?;
        let mut stream = Stream {
            send,
            receive: receive.into_inner(),
            sessions: Vec::new(),
            unanswered_max: (CROWD_UNANSWERED_MAX / streams).clamp(1, UNANSWERED_MAX),
            number: 1,
            ticket: 0,
        };
        let opens = (0..sessions as u64).map(|key| {
            Op::Open(OpenSession {
                key: key + 1,
                secret: rand::random::<[u8; 16]>().to_vec().into(),
                owner: "bench".to_owned(),
                ttl_ms: ttl.as_millis() as u64,
                number: 1,
                attachment: 1,
            })
        });
        let mut opened = Vec::new();
        let keep = |event| match event {
            Event::Opened(one) => {
                opened.push(one.session);
                true
            }
            _ => false,
        };
        stream.ask(opens.collect(), keep).await?;
        stream.sessions = opened;
        Ok(stream)
    }

    /// Sends operations, and hears until each has the answer that counts.
    async fn ask(&mut self, ops: Vec<Op>, mut counts: impl FnMut(Event) -> bool) -> Result<(), Failure> {
        let (mut ops, mut unanswered) = (ops.into_iter().peekable(), 0);
        while ops.peek().is_some() || unanswered > 0 {
            while unanswered < self.unanswered_max && ops.peek().is_some() {
                let room = MESSAGE_OPS.min(self.unanswered_max - unanswered);
                let part: Vec<SessionOp> =
                    ops.by_ref().take(room).map(|op| SessionOp { op: Some(op) }).collect();
                unanswered += part.len();
                self.say(part).await?;
            }
            for event in self.hear().await? {
                unanswered -= usize::from(counts(event));
            }
        }
        Ok(())
    }

    async fn say(&mut self, ops: Vec<SessionOp>) -> Result<(), Failure> {
        let sent = self.send.send(SessionRequest { ops }).await;
        sent.map_err(|_| Failure::Other("a session stream ended".to_owned()))
    }

    /// The next message. What refuses or ends something ends the run.
    async fn hear(&mut self) -> Result<Vec<Event>, Failure> {
        let heard = tokio::time::timeout(PATIENCE, self.receive.message()).await;
        let heard = heard.map_err(|_| Failure::Other("a session stream is silent".to_owned()))?;
        let message = heard.map_err(|status| said(&status))?;
        let message = message.ok_or_else(|| Failure::Other("a session stream ended".to_owned()))?;
        let events: Vec<Event> =
            message.events.into_iter().filter_map(|SessionEvent { event }| event).collect();
        match events.iter().find(|event| matches!(event, Event::Error(_) | Event::Lost(_) | Event::Moved(_)))
        {
            Some(wrong) => Err(Failure::Other(format!("a session stream says {wrong:?}"))),
            None => Ok(events),
        }
    }

    /// Renews all its sessions in one operation, and hears until all are.
    pub async fn renew(&mut self) -> Result<(), Failure> {
        self.number += 1;
        let (sessions, number) = (self.sessions.clone(), self.number);
        let mut missing: BTreeSet<u64> = sessions.iter().copied().collect();
        self.say(vec![SessionOp { op: Some(Op::Renew(RenewSessions { sessions, number, ttl_ms: 0 })) }])
            .await?;
        while !missing.is_empty() {
            for event in self.hear().await? {
                if let Event::Renewed(renewed) = event
                    && renewed.number >= number
                {
                    for session in &renewed.sessions {
                        missing.remove(session);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes locks, in turn for each of its sessions. `waits`: they are held by others, and it queues for them.
    pub async fn acquire(&mut self, names: Vec<String>, waits: bool) -> Result<(), Failure> {
        let mut ops = Vec::with_capacity(names.len());
        for (at, name) in names.into_iter().enumerate() {
            let turn = at % self.sessions.len();
            self.ticket += u64::from(turn == 0);
            ops.push(Op::Acquire(Acquire {
                session: self.sessions[turn],
                ticket: self.ticket,
                names: vec![name],
                wait: waits.then_some(acquire::Wait::WaitForever(true)),
                // All before it are answered, or will be in their order.
                acked: self.ticket.saturating_sub(UNANSWERED_MAX as u64).max(1),
                ..Acquire::default()
            }));
        }
        let mut refused = None;
        let taken = self.ask(ops, |event| {
            let Event::Outcome(outcome) = event else { return false };
            match outcome.outcome {
                Some(Outcome::Granted(_)) => {}
                Some(Outcome::Queued(_)) if waits => {}
                other => refused = refused.take().or(other),
            }
            true
        });
        taken.await?;
        match refused {
            Some(refused) => Err(Failure::Other(format!("a lock was not had: {refused:?}"))),
            None => Ok(()),
        }
    }
}

fn said(status: &tonic::Status) -> Failure {
    Failure::Other(status.message().to_owned())
}
