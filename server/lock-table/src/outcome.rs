//! What comes out of a batch: one outcome for each command, and events for those who did not ask
//! just now.
//!
//! "Held by another" is an outcome like any other; applying has no errors to return. A
//! [`Rejection`] says that a command was not executed at all, and why.

use crate::text::{Name, Owner};
use crate::types::{RenewalNumber, SessionId, Ticket, Token};

/// One thing that a step says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The answer to a command of the batch; each command gets exactly one.
    Outcome {
        /// Index in [`Batch::commands`](crate::Batch::commands).
        command: usize,
        /// The answer.
        outcome: Outcome,
    },
    /// For whoever has the session, on whatever node that is.
    Event(Event),
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields named after their types")]
pub enum Outcome {
    /// The settings hold from here on.
    Configured,
    /// Somebody configured the cluster before; nothing changed.
    AlreadyConfigured,
    /// The session exists and its lease counts from here.
    Opened {
        session: SessionId,
        /// The highest renewal number that the lease covers.
        number: RenewalNumber,
    },
    /// The session is over; its locks are free.
    Closed { session: SessionId },
    /// Held. A repeat finds the same grant and token.
    Granted { session: SessionId, ticket: Ticket, token: Token, remaining_ms: u64 },
    /// Waiting.
    Queued {
        session: SessionId,
        ticket: Ticket,
        /// 1 is the next to be served; of several names, the worst place.
        place: u32,
    },
    /// Neither held nor waiting, because it did not want to wait.
    Refused { session: SessionId, ticket: Ticket, contention: Contention },
    /// The ticket is over.
    Finished { session: SessionId, ticket: Ticket, how: How },
    /// The token named is not current; no effect.
    NotHolder {
        session: SessionId,
        ticket: Ticket,
        /// Who holds the first of the ticket's names now; `None` also when the ticket is not known.
        holder: Option<(Owner, Token)>,
    },
    /// A unary lock that did not want to wait; nothing was kept.
    UnaryRefused { contention: Contention },
    /// A unary lock is free again.
    Unlocked { token: Token },
    /// A unary lock has a new lease.
    Renewed { token: Token, remaining_ms: u64 },
    /// The unary caller does not hold this lock (under that token); no effect.
    UnaryNotHolder {
        /// Who has it, if anybody.
        holder: Option<Contention>,
    },
    /// Nothing was executed, and why.
    Rejected(Rejection),
    /// No such session, or its lease has ended.
    SessionUnknown { session: SessionId },
}

/// Why a lock could not be had at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contention {
    /// What is in the way.
    pub kind: ContentionKind,
    /// Which of the names asked for.
    pub name: Name,
    /// The holder whose lease ends last among the newest 64, or the oldest waiter.
    pub owner: Owner,
    /// The holder's; a waiter has none.
    pub token: Option<Token>,
    /// What is left of that session's lease. For people, never for a deadline.
    pub remaining_ms: u64,
    /// How many hold the lock.
    pub holder_count: u32,
    /// How many wait for it.
    pub queue_length: u32,
}

/// What is in the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentionKind {
    /// Holders.
    Held,
    /// Not the holders, if there are any, but an older waiter, who is served first.
    QueuedBehind,
}

/// How a ticket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was held and given back.
    Released,
    /// It was cancelled before it held anything; if not yet seen, it will never be executed.
    Cancelled,
    /// Its wait ended without a grant.
    WaitEnded,
    /// It did not want to wait.
    Refused,
    /// It lies below the acknowledged tickets and neither waits nor holds.
    Forgotten,
}

/// Why a command was not executed. The message names the field and the bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Rejection {
    #[error("{field}: {problem}")]
    InvalidArgument { field: &'static str, problem: String },
    #[error("the same id was used before with other arguments")]
    RequestIdReused,
    #[error("ticket: lies {window} or more above the acknowledged tickets")]
    TicketGap { window: u64 },
    #[error("capacity: those who hold or wait use {have}")]
    CapacityMismatch { have: u32 },
    #[error("the queue of the lock is full ({max} waiters)")]
    QueueFull { max: u64 },
    #[error("{what}: the limit of {max} is reached")]
    LimitReached { what: &'static str, max: u64 },
    #[error("token: needed, because the owner holds this lock more than once")]
    TokenRequired,
    #[error("the cluster is not configured yet")]
    NotConfigured,
}

impl Rejection {
    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::InvalidArgument { field, problem: problem.into() }
    }
}

/// What happened to a session without a command of its own in this batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields named after their types")]
pub enum Event {
    /// A renewal counted.
    Renewed {
        session: SessionId,
        /// The highest renewal number that the lease covers.
        number: RenewalNumber,
    },
    /// A renewal came for a session that does not exist.
    RenewalUnknown { session: SessionId },
    /// A renewal asked for a lease outside the limits. The lease was not renewed.
    RenewalRejected { session: SessionId, rejection: Rejection },
    /// A waiter was served.
    Granted { session: SessionId, ticket: Ticket, token: Token, remaining_ms: u64 },
    /// A wait ended without a grant. A unary session ends with its wait.
    WaitEnded {
        session: SessionId,
        ticket: Ticket,
        /// The place it had.
        place: u32,
        /// What was in the way; `None` if only the end of its own lease was.
        contention: Option<Contention>,
    },
    /// The session is over: its locks are free, its waits removed.
    SessionEnded { session: SessionId, cause: EndCause },
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// Its lease ran out.
    Expired,
    /// Its client closed it.
    Closed,
}
