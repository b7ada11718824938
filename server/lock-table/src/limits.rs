//! The bounds that apply checks, replicated like everything else.
//!
//! They are set by the first command of a cluster and changed by commands only. The code that
//! applies has no defaults for them: [`Limits::standard`] is what a leader proposes for a new
//! cluster.

use crate::outcome::Rejection;
use crate::text::{NAME_BYTES_CEILING, OWNER_BYTES_CEILING, REQUEST_ID_BYTES_CEILING};

/// Most names in one request, whatever the limits say: it bounds the work of one command and a
/// record of a snapshot.
pub const NAMES_PER_REQUEST_CEILING: u64 = 64;
/// Most bytes of metadata, whatever the limits say: it bounds a record of a snapshot.
pub const METADATA_BYTES_CEILING: u64 = 65_536;
/// Widest ticket window, whatever the limits say: it bounds what a session can make the cluster
/// remember.
pub const TICKET_WINDOW_CEILING: u64 = 65_536;

/// What every command is checked against when it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it; units and qualifiers come last")]
pub struct Limits {
    pub name_bytes_max: u64,
    pub owner_bytes_max: u64,
    pub request_id_bytes_max: u64,
    /// Keys and values together.
    pub metadata_bytes_max: u64,
    pub ttl_ms_min: u64,
    pub ttl_ms_max: u64,
    pub waiters_per_lock_max: u64,
    /// Names a session holds and waits for, together.
    pub locks_per_session_max: u64,
    /// Unary calls count: each held or waiting one is a session of its own kind.
    pub sessions_max: u64,
    /// Names that are held or waited for.
    pub locks_max: u64,
    pub names_per_request_max: u64,
    /// How many tickets may lie between the acknowledged and the newest.
    pub ticket_window: u64,
    /// Of unary calls. A session may wait for ever.
    pub wait_ms_max: u64,
}

impl Limits {
    /// What a new cluster starts with.
    pub fn standard() -> Self {
        Self {
            name_bytes_max: 512,
            owner_bytes_max: 256,
            request_id_bytes_max: 256,
            metadata_bytes_max: 4096,
            ttl_ms_min: 1000,
            ttl_ms_max: 24 * 3600 * 1000,
            waiters_per_lock_max: 100_000,
            locks_per_session_max: 1_000_000,
            sessions_max: 1_000_000,
            locks_max: 20_000_000,
            names_per_request_max: 64,
            ticket_window: 65_536,
            wait_ms_max: 600_000,
        }
    }
}

/// What the cluster agreed on besides its locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bounds of every command.
    pub limits: Limits,
    /// How many voters the membership controller aims for; odd.
    pub voters: u32,
}

impl Settings {
    /// Refuses settings under which the table could not keep its promises, naming the field and the
    /// bound.
    pub(crate) fn check(&self) -> Result<(), Rejection> {
        let limits = &self.limits;
        let bounds = [
            ("name_bytes_max", limits.name_bytes_max, 1, NAME_BYTES_CEILING as u64),
            ("owner_bytes_max", limits.owner_bytes_max, 1, OWNER_BYTES_CEILING as u64),
            ("request_id_bytes_max", limits.request_id_bytes_max, 1, REQUEST_ID_BYTES_CEILING as u64),
            ("metadata_bytes_max", limits.metadata_bytes_max, 0, METADATA_BYTES_CEILING),
            ("ttl_ms_min", limits.ttl_ms_min, 1, limits.ttl_ms_max),
            ("names_per_request_max", limits.names_per_request_max, 1, NAMES_PER_REQUEST_CEILING),
            ("ticket_window", limits.ticket_window, 1, TICKET_WINDOW_CEILING),
        ];
        for (field, value, min, max) in bounds {
            if !(min..=max).contains(&value) {
                return Err(Rejection::invalid(field, format!("is {value}, must be {min} to {max}")));
            }
        }
        if self.voters.is_multiple_of(2) {
            return Err(Rejection::invalid("voters", format!("is {}, must be odd", self.voters)));
        }
        Ok(())
    }
}
