//! What the log holds: batches of renewals and commands, and the time that passed before them.
//!
//! A batch is one entry of the log. It names the version of the rules it is applied under, so that
//! all nodes apply it alike or not at all. How it is written as bytes is in `wire.rs`.

use smallvec::SmallVec;

use crate::envelope::{self, BATCH_FORMAT, DecodeError};
use crate::limits::Settings;
use crate::text::{Name, Owner, RequestId};
use crate::types::{Metadata, Mode, RenewalNumber, Secret, SessionId, Ticket, Token, Ttl, Wait};
use crate::wire;

/// The names that a client listed. There is nearly always just one.
pub type NameList = SmallVec<[Name; 1]>;

/// The version of the rules that this code applies. Raised with every change of what a batch does
/// to a table.
pub const RULE_VERSION: u32 = 1;

/// Most bytes of an encoded batch. More would hold up the log of a slow follower for longer than a
/// heartbeat.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes that [`Batch::seal`] adds: format, checksum, and four numbers of at most ten bytes with their tags.
pub const SEAL_BYTES_MAX: usize = 64;

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
        let mut content = Vec::new();
        self.renewals.iter().for_each(|renewal| renewal.encode_into(&mut content));
        self.commands.iter().for_each(|command| command.encode_into(&mut content));
        Batch::seal_under(self.rule_version, self.stamp, self.dt_ms, self.renewals_complete, &content)
    }

    /// The bytes of a batch whose content was encoded before: renewals by [`Renewal::encode_into`], then commands by
    /// [`Command::encode_into`]. They are [`SEAL_BYTES_MAX`] longer than the content at most.
    pub fn seal(stamp: u64, dt_ms: u64, renewals_complete: bool, content: &[u8]) -> Vec<u8> {
        Batch::seal_under(RULE_VERSION, stamp, dt_ms, renewals_complete, content)
    }

    fn seal_under(rules: u32, stamp: u64, dt_ms: u64, renewals_complete: bool, content: &[u8]) -> Vec<u8> {
        envelope::seal_written(BATCH_FORMAT, SEAL_BYTES_MAX + content.len(), |out| {
            wire::write_head(out, rules, stamp, dt_ms, renewals_complete);
            out.extend_from_slice(content);
        })
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// Fails on any other bytes, never panics, and allocates in proportion to the bytes given.
    pub fn decode(bytes: &[u8]) -> Result<Batch, DecodeError> {
        wire::read_batch(envelope::open(BATCH_FORMAT, bytes)?)
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
    /// Appends it as [`Batch::seal`] takes it.
    pub fn encode_into(&self, content: &mut Vec<u8>) {
        wire::write_renewal(content, self);
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
        names: NameList,
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
    /// Appends it as [`Batch::seal`] takes it.
    pub fn encode_into(&self, content: &mut Vec<u8>) {
        wire::write_command(content, self);
    }
}
