//! The session stream in the client's own words, and the way to and from protobuf.
//!
//! Proto types stop here and in `transport.rs`. Nothing here decides anything: a message that makes no sense is
//! dropped, because the resume that follows a lost message repairs it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raftlock_proto::v1;

use crate::info::{Contention, FencingToken, Mode};
use crate::lease::Number;

/// The table's id of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(pub u64);

/// Tells the answer to an open or a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub u64);

/// Counts a client's streams; the highest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attachment(pub u64);

/// Counts the requests of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub u64);

impl Ticket {
    /// Stands in the answer to a close, which has no ticket. Tickets begin with 1.
    pub(crate) const NONE: Ticket = Ticket(0);
}

/// What one acquire asks for, whatever session it is asked in.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    pub names: Vec<String>,
    pub mode: Mode,
    pub metadata: BTreeMap<String, String>,
}

/// How long the cluster shall let a request wait. Part of the request: a repeat says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Zero: do not queue.
    AtMost(Duration),
    Forever,
}

/// What the client sends.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Open {
        key: Key,
        secret: [u8; 16],
        owner: Arc<str>,
        ttl: Duration,
        number: Number,
        attachment: Attachment,
    },
    Resume {
        key: Key,
        session: SessionId,
        secret: [u8; 16],
        attachment: Attachment,
    },
    Renew {
        sessions: Vec<SessionId>,
        number: Number,
        ttl: Option<Duration>,
    },
    Acquire {
        session: SessionId,
        ticket: Ticket,
        ask: Arc<Ask>,
        wait: Wait,
        acked: Ticket,
    },
    Cancel {
        session: SessionId,
        ticket: Ticket,
        acked: Ticket,
    },
    Release {
        session: SessionId,
        ticket: Ticket,
        token: FencingToken,
        acked: Ticket,
    },
    Close {
        session: SessionId,
    },
}

/// What the cluster says.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Opened {
        key: Key,
        session: SessionId,
        number: Number,
    },
    Resumed {
        key: Key,
        part: Resumed,
        more: bool,
    },
    Renewed {
        sessions: Vec<SessionId>,
        number: Number,
    },
    Outcome {
        session: SessionId,
        ticket: Ticket,
        outcome: Outcome,
    },
    Lost {
        session: SessionId,
        key: Key,
        reason: EndReason,
    },
    /// Of the resume under this key: another stream has a higher attachment number.
    Superseded {
        key: Key,
    },
    /// An open or resume (by key), or a renewal (by session), could not be taken.
    Failed {
        key: Key,
        session: SessionId,
        error: OpError,
    },
    Draining,
    Moved,
}

/// Why the cluster ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    Expired,
    Closed,
}

/// What a session has, as a resume tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resumed {
    pub held: Vec<(Ticket, FencingToken)>,
    pub queued: Vec<(Ticket, u32)>,
    pub finished: Vec<Ticket>,
    pub acked: Option<Ticket>,
    pub number: Option<Number>,
}

/// The answer to a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(FencingToken),
    Queued { place: u32 },
    Refused(Contention),
    WaitEnded(Contention),
    Finished,
    NotHolder,
    Error(OpError),
}

/// No server may put an operation off for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// Why an operation could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpError {
    pub reason: String,
    pub message: String,
    pub retry_after: Option<Duration>,
}

impl OpError {
    /// Nothing was executed, or nobody knows; the same operation shall be sent again after a pause.
    pub(crate) fn is_transient(&self) -> bool {
        self.is_misplaced()
            || matches!(self.reason.as_str(), "QUEUE_BUSY" | "OUTCOME_UNKNOWN" | "NOT_CONFIGURED")
    }

    /// This way leads to no leader. Another may, so it does not count as an answer.
    pub(crate) fn is_misplaced(&self) -> bool {
        matches!(self.reason.as_str(), "NOT_LEADER" | "NO_LEADER" | "NOT_SERVING")
    }

    pub(crate) fn is_not_attached(&self) -> bool {
        self.reason == "NOT_ATTACHED"
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<Op> for v1::SessionOp {
    fn from(op: Op) -> v1::SessionOp {
        use v1::session_op::Op as Wire;
        let op = match op {
            Op::Open { key, secret, owner, ttl, number, attachment } => Wire::Open(v1::OpenSession {
                key: key.0,
                secret: secret.to_vec().into(),
                owner: owner.to_string(),
                ttl_ms: millis(ttl),
                number: number.0,
                attachment: attachment.0,
            }),
            Op::Resume { key, session, secret, attachment } => Wire::Resume(v1::ResumeSession {
                key: key.0,
                session: session.0,
                secret: secret.to_vec().into(),
                attachment: attachment.0,
            }),
            Op::Renew { sessions, number, ttl } => Wire::Renew(v1::RenewSessions {
                sessions: sessions.into_iter().map(|session| session.0).collect(),
                number: number.0,
                ttl_ms: ttl.map_or(0, millis),
            }),
            Op::Acquire { session, ticket, ask, wait, acked } => {
                Wire::Acquire(acquire(session, ticket, &ask, wait, acked))
            }
            Op::Cancel { session, ticket, acked } => {
                Wire::Cancel(v1::Cancel { session: session.0, ticket: ticket.0, acked: acked.0 })
            }
            Op::Release { session, ticket, token, acked } => Wire::Release(v1::Release {
                session: session.0,
                ticket: ticket.0,
                token: token.get(),
                acked: acked.0,
            }),
            Op::Close { session } => Wire::Close(v1::CloseSession { session: session.0 }),
        };
        v1::SessionOp { op: Some(op) }
    }
}

fn acquire(session: SessionId, ticket: Ticket, ask: &Ask, wait: Wait, acked: Ticket) -> v1::Acquire {
    let (mode, permits, capacity) = match ask.mode {
        Mode::Exclusive => (v1::Mode::Exclusive, 0, 0),
        Mode::Shared => (v1::Mode::Shared, 0, 0),
        Mode::Permits { permits, capacity } => (v1::Mode::Permits, permits, capacity),
    };
    v1::Acquire {
        session: session.0,
        ticket: ticket.0,
        names: ask.names.clone(),
        mode: mode.into(),
        permits,
        capacity,
        metadata: ask.metadata.clone(),
        acked: acked.0,
        wait: Some(match wait {
            Wait::AtMost(wait) => v1::acquire::Wait::WaitMs(millis(wait)),
            Wait::Forever => v1::acquire::Wait::WaitForever(true),
        }),
    }
}

/// `None` for what this version does not know.
pub(crate) fn event(event: v1::SessionEvent) -> Option<Event> {
    use v1::session_event::Event as Wire;
    Some(match event.event? {
        Wire::Opened(m) => {
            Event::Opened { key: Key(m.key), session: SessionId(m.session), number: Number(m.number) }
        }
        Wire::Resumed(m) => Event::Resumed {
            key: Key(m.key),
            more: m.more,
            part: Resumed {
                held: m.held.iter().map(|h| (Ticket(h.ticket), FencingToken::from(h.token))).collect(),
                queued: m.queued.iter().map(|q| (Ticket(q.ticket), q.place)).collect(),
                finished: m.finished.into_iter().map(Ticket).collect(),
                acked: Some(Ticket(m.acked)),
                number: Some(Number(m.number)),
            },
        },
        Wire::Renewed(m) => Event::Renewed {
            sessions: m.sessions.into_iter().map(SessionId).collect(),
            number: Number(m.number),
        },
        Wire::Outcome(m) => Event::Outcome {
            session: SessionId(m.session),
            ticket: Ticket(m.ticket),
            outcome: outcome(m.outcome?),
        },
        Wire::Lost(m) => match m.reason() {
            v1::session_lost::Reason::Expired => {
                Event::Lost { session: SessionId(m.session), key: Key(m.key), reason: EndReason::Expired }
            }
            v1::session_lost::Reason::Closed => {
                Event::Lost { session: SessionId(m.session), key: Key(m.key), reason: EndReason::Closed }
            }
            // Without a key it is the older stream's notice that a newer one of ours took over.
            v1::session_lost::Reason::Superseded if m.key != 0 => Event::Superseded { key: Key(m.key) },
            v1::session_lost::Reason::Superseded | v1::session_lost::Reason::Unspecified => {
                return None;
            }
        },
        Wire::Error(m) => {
            Event::Failed { key: Key(m.key), session: SessionId(m.session), error: op_error(m.error?) }
        }
        Wire::Draining(_) => Event::Draining,
        Wire::Moved(_) => Event::Moved,
    })
}

fn outcome(outcome: v1::ticket_outcome::Outcome) -> Outcome {
    use v1::ticket_outcome::Outcome as Wire;
    match outcome {
        Wire::Granted(m) => Outcome::Granted(FencingToken::from(m.token)),
        Wire::Queued(m) => Outcome::Queued { place: m.place },
        Wire::Refused(m) => Outcome::Refused(contention(m)),
        Wire::WaitEnded(m) => Outcome::WaitEnded(contention(m)),
        Wire::Finished(_) => Outcome::Finished,
        Wire::NotHolder(_) => Outcome::NotHolder,
        Wire::Error(m) => Outcome::Error(op_error(m)),
    }
}

fn contention(m: v1::Contention) -> Contention {
    Contention {
        behind_waiter: m.kind() == v1::contention::Kind::QueuedBehind,
        name: m.name,
        owner: m.owner,
        token: (m.token != 0).then(|| FencingToken::from(m.token)),
        remaining: Duration::from_millis(m.remaining_ms),
        holder_count: m.holder_count,
        queue_length: m.queue_length,
        place: (m.place != 0).then_some(m.place),
    }
}

fn op_error(m: v1::OpError) -> OpError {
    OpError {
        reason: m.reason,
        message: m.message,
        retry_after: (m.retry_after_ms != 0)
            .then(|| Duration::from_millis(m.retry_after_ms).min(RETRY_AFTER_MAX)),
    }
}
