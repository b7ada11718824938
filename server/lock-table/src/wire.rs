//! The encoded form of a batch: messages that mirror `command.rs` field by field.
//!
//! Numbers of fields are for ever: a field that goes leaves its number unused. The way to and from
//! these messages is in `convert.rs`.

use std::collections::BTreeMap;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Batch {
    #[prost(uint32, tag = 1)]
    pub(crate) rule_version: u32,
    #[prost(uint64, tag = 2)]
    pub(crate) stamp: u64,
    #[prost(uint64, tag = 3)]
    pub(crate) dt_ms: u64,
    #[prost(bool, tag = 4)]
    pub(crate) renewals_complete: bool,
    #[prost(message, repeated, tag = 5)]
    pub(crate) renewals: Vec<Renewal>,
    #[prost(message, repeated, tag = 6)]
    pub(crate) commands: Vec<Command>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Renewal {
    #[prost(uint64, tag = 1)]
    pub(crate) session: u64,
    #[prost(uint64, tag = 2)]
    pub(crate) number: u64,
    #[prost(uint64, optional, tag = 3)]
    pub(crate) ttl_ms: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Command {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Kind {
    #[prost(message, tag = 1)]
    Configure(Configure),
    #[prost(message, tag = 2)]
    SetSettings(Settings),
    #[prost(message, tag = 3)]
    Open(Open),
    #[prost(uint64, tag = 4)]
    Close(u64),
    #[prost(message, tag = 5)]
    Acquire(Acquire),
    #[prost(message, tag = 6)]
    Cancel(Cancel),
    #[prost(message, tag = 7)]
    Release(Release),
    #[prost(message, tag = 8)]
    UnaryLock(UnaryLock),
    #[prost(message, tag = 9)]
    UnaryUnlock(UnaryUnlock),
    #[prost(message, tag = 10)]
    UnaryRenew(UnaryRenew),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Configure {
    #[prost(message, optional, tag = 1)]
    pub(crate) settings: Option<Settings>,
    #[prost(uint64, tag = 2)]
    pub(crate) token_start: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Settings {
    #[prost(uint32, tag = 1)]
    pub(crate) voters: u32,
    #[prost(uint64, tag = 2)]
    pub(crate) name_bytes_max: u64,
    #[prost(uint64, tag = 3)]
    pub(crate) owner_bytes_max: u64,
    #[prost(uint64, tag = 4)]
    pub(crate) request_id_bytes_max: u64,
    #[prost(uint64, tag = 5)]
    pub(crate) metadata_bytes_max: u64,
    #[prost(uint64, tag = 6)]
    pub(crate) ttl_ms_min: u64,
    #[prost(uint64, tag = 7)]
    pub(crate) ttl_ms_max: u64,
    #[prost(uint64, tag = 8)]
    pub(crate) waiters_per_lock_max: u64,
    #[prost(uint64, tag = 9)]
    pub(crate) locks_per_session_max: u64,
    #[prost(uint64, tag = 10)]
    pub(crate) sessions_max: u64,
    #[prost(uint64, tag = 11)]
    pub(crate) locks_max: u64,
    #[prost(uint64, tag = 12)]
    pub(crate) names_per_request_max: u64,
    #[prost(uint64, tag = 13)]
    pub(crate) ticket_window: u64,
    #[prost(uint64, tag = 14)]
    pub(crate) wait_ms_max: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Open {
    #[prost(bytes = "vec", tag = 1)]
    pub(crate) secret: Vec<u8>,
    #[prost(string, tag = 2)]
    pub(crate) owner: String,
    #[prost(uint64, tag = 3)]
    pub(crate) ttl_ms: u64,
    #[prost(uint64, tag = 4)]
    pub(crate) number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Acquire {
    #[prost(uint64, tag = 1)]
    pub(crate) session: u64,
    #[prost(uint64, tag = 2)]
    pub(crate) ticket: u64,
    #[prost(string, repeated, tag = 3)]
    pub(crate) names: Vec<String>,
    #[prost(message, optional, tag = 4)]
    pub(crate) mode: Option<Mode>,
    #[prost(oneof = "Wait", tags = "5, 6")]
    pub(crate) wait: Option<Wait>,
    #[prost(btree_map = "string, string", tag = 7)]
    pub(crate) metadata: BTreeMap<String, String>,
    #[prost(uint64, tag = 8)]
    pub(crate) acked: u64,
}

/// Absent: no wait.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Wait {
    #[prost(uint64, tag = 5)]
    Ms(u64),
    #[prost(bool, tag = 6)]
    Forever(bool),
}

/// Shared, or permits if `capacity` is not 0. Absent: exclusive.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Mode {
    #[prost(bool, tag = 1)]
    pub(crate) shared: bool,
    #[prost(uint32, optional, tag = 2)]
    pub(crate) permits: Option<u32>,
    #[prost(uint32, tag = 3)]
    pub(crate) capacity: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Cancel {
    #[prost(uint64, tag = 1)]
    pub(crate) session: u64,
    #[prost(uint64, tag = 2)]
    pub(crate) ticket: u64,
    #[prost(uint64, tag = 3)]
    pub(crate) acked: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Release {
    #[prost(uint64, tag = 1)]
    pub(crate) session: u64,
    #[prost(uint64, tag = 2)]
    pub(crate) ticket: u64,
    #[prost(uint64, tag = 3)]
    pub(crate) token: u64,
    #[prost(uint64, tag = 4)]
    pub(crate) acked: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnaryLock {
    #[prost(string, tag = 1)]
    pub(crate) owner: String,
    #[prost(string, tag = 2)]
    pub(crate) name: String,
    #[prost(string, optional, tag = 3)]
    pub(crate) request_id: Option<String>,
    #[prost(uint64, tag = 4)]
    pub(crate) ttl_ms: u64,
    #[prost(uint64, tag = 5)]
    pub(crate) wait_ms: u64,
    #[prost(message, optional, tag = 6)]
    pub(crate) mode: Option<Mode>,
    #[prost(btree_map = "string, string", tag = 7)]
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnaryUnlock {
    #[prost(string, tag = 1)]
    pub(crate) owner: String,
    #[prost(string, tag = 2)]
    pub(crate) name: String,
    #[prost(string, optional, tag = 3)]
    pub(crate) request_id: Option<String>,
    #[prost(uint64, optional, tag = 4)]
    pub(crate) token: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnaryRenew {
    #[prost(string, tag = 1)]
    pub(crate) owner: String,
    #[prost(string, tag = 2)]
    pub(crate) name: String,
    #[prost(uint64, optional, tag = 3)]
    pub(crate) token: Option<u64>,
    #[prost(uint64, tag = 4)]
    pub(crate) ttl_ms: u64,
}
