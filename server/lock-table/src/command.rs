//! What the log holds: batches of renewals and commands, and the time that passed before them.
//!
//! A batch is one entry of the log. It names the version of the rules it is applied under, so that
//! all nodes apply it alike or not at all. How it is written as bytes is in `wire.rs`.

use prost::Message;

use crate::convert;
use crate::envelope::{self, BATCH_FORMAT, DecodeError, ENVELOPE_BYTES};
use crate::limits::Settings;
use crate::text::{Name, Owner, RequestId};
use crate::types::{Metadata, Mode, RenewalNumber, Secret, SessionId, Ticket, Token, Ttl, Wait};
use crate::wire;

/// The version of the rules that this code applies. Raised with every change of what a batch does
/// to a table.
pub const RULE_VERSION: u32 = 1;

/// Most bytes of an encoded batch. More would hold up the log of a slow follower for longer than a
/// heartbeat.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The rules it was made for; see [`RULE_VERSION`].
    pub rule_version: u32,
    /// The proposer's own number for it. The table does not look at it.
    pub stamp: u64,
    /// Cluster time that passed since the batch before, as its proposer measured and bounded it.
    pub dt_ms: u64,
    /// Whether every renewal that had arrived is in here. If not, no time passes and nothing due is
    /// removed.
    pub renewals_complete: bool,
    /// Leases that count from this batch on.
    pub renewals: Vec<Renewal>,
    /// In the order in which they are executed.
    pub commands: Vec<Command>,
}

impl Batch {
    /// A batch without content, under the rules of this code.
    pub fn new(dt_ms: u64) -> Self {
        Self {
            rule_version: RULE_VERSION,
            stamp: 0,
            dt_ms,
            renewals_complete: true,
            renewals: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// The batch as bytes with a format and a checksum.
    pub fn encode(&self) -> Vec<u8> {
        envelope::seal(BATCH_FORMAT, &wire::Batch::from(self))
    }

    /// How long [`encode`](Self::encode) would be. Builds the encoded form; to fill a batch, add up
    /// [`Command::encoded_len`] and [`Renewal::encoded_len`] on top of an empty one's instead.
    pub fn encoded_len(&self) -> usize {
        ENVELOPE_BYTES + wire::Batch::from(self).encoded_len()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// Fails on any other bytes, never panics, and allocates in proportion to the bytes given.
    pub fn decode(bytes: &[u8]) -> Result<Batch, DecodeError> {
        let body = envelope::open(BATCH_FORMAT, bytes)?;
        wire::Batch::decode(body)?.try_into()
    }
}

/// A lease that counts from this batch on. A unary lock that is held is left as it is: its lease is
/// its caller's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Whose.
    pub session: SessionId,
    /// The client's number for it. It renews whatever the number; the session remembers the
    /// highest.
    pub number: RenewalNumber,
    /// A new length for this and all later renewals. The deadline is then now + the new length,
    /// even if that is earlier than before: it is what the caller asked for.
    pub ttl: Option<Ttl>,
}

impl Renewal {
    /// How many bytes it adds to a batch.
    pub fn encoded_len(&self) -> usize {
        convert::element_len(&wire::Renewal::from(self))
    }
}

/// What can be asked of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields named after their types")]
pub enum Command {
    /// The first command of a cluster. Until it was applied every other one is refused.
    Configure {
        settings: Settings,
        /// The first grant gets the token after this one.
        token_start: Token,
    },
    /// Replaces the settings.
    SetSettings { settings: Settings },
    /// Creates a session, or finds and renews the one that this secret created.
    Open { secret: Secret, owner: Owner, ttl: Ttl, number: RenewalNumber },
    /// Ends a session.
    Close { session: SessionId },
    /// Asks for locks, all or nothing, under one token.
    Acquire {
        session: SessionId,
        ticket: Ticket,
        names: Vec<Name>,
        mode: Mode,
        wait: Wait,
        metadata: Metadata,
        /// The client has the answer to every ticket below this one that is not still queued. Only
        /// rises.
        acked: Ticket,
    },
    /// Ends a ticket in whatever state it is: queued, held, or not seen yet.
    Cancel { session: SessionId, ticket: Ticket, acked: Ticket },
    /// Gives back what the ticket was granted under the token.
    Release { session: SessionId, ticket: Ticket, token: Token, acked: Ticket },
    /// Asks for a lock without a session; the lock is a session of its own kind.
    UnaryLock {
        owner: Owner,
        name: Name,
        request_id: Option<RequestId>,
        ttl: Ttl,
        /// 0: do not wait.
        wait_ms: u64,
        mode: Mode,
        metadata: Metadata,
    },
    /// Gives back a unary lock.
    UnaryUnlock {
        owner: Owner,
        name: Name,
        /// Narrows what is meant, if given.
        request_id: Option<RequestId>,
        /// Must be current, if given.
        token: Option<Token>,
    },
    /// Gives a unary lock a new lease from now on.
    UnaryRenew {
        owner: Owner,
        name: Name,
        /// Must be current, if given.
        token: Option<Token>,
        ttl: Ttl,
    },
}

impl Command {
    /// How many bytes it adds to a batch.
    pub fn encoded_len(&self) -> usize {
        convert::element_len(&wire::Command::from(self))
    }
}
