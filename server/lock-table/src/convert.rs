//! The small parts that batches and snapshots share: their encoded form, and what is checked of it.

use std::collections::BTreeMap;

use crate::envelope::DecodeError;
use crate::limits;
use crate::text;
use crate::types::{self, Metadata, Secret};

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

/// Bytes of a message as an element of a repeated field with a number below 16.
pub(crate) fn element_len(message: &impl prost::Message) -> usize {
    let len = message.encoded_len();
    1 + prost::length_delimiter_len(len) + len
}

pub(crate) fn invalid(field: &'static str) -> DecodeError {
    DecodeError::Field { field }
}

pub(crate) fn name(text: &str) -> Result<text::Name, DecodeError> {
    text::Name::new(text).map_err(|_| invalid("name"))
}

pub(crate) fn owner(text: &str) -> Result<text::Owner, DecodeError> {
    text::Owner::new(text).map_err(|_| invalid("owner"))
}

pub(crate) fn request_id(text: Option<&str>) -> Result<Option<text::RequestId>, DecodeError> {
    let checked = text.map(text::RequestId::new).transpose();
    checked.map_err(|_| invalid("request_id"))
}

pub(crate) fn secret(bytes: &[u8]) -> Result<Secret, DecodeError> {
    Ok(Secret::new(bytes.try_into().map_err(|_| invalid("secret"))?))
}

pub(crate) fn metadata_out(metadata: &Metadata) -> BTreeMap<String, String> {
    metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(crate) fn mode_out(mode: types::Mode) -> Option<Mode> {
    match mode {
        types::Mode::Exclusive => None,
        types::Mode::Shared => Some(Mode { shared: true, permits: None, capacity: 0 }),
        types::Mode::Permits { permits, capacity } => {
            Some(Mode { shared: false, permits: Some(permits), capacity })
        }
    }
}

pub(crate) fn mode_in(mode: Option<Mode>) -> Result<types::Mode, DecodeError> {
    match mode {
        None => Ok(types::Mode::Exclusive),
        Some(Mode { shared: true, permits: None, capacity: 0 }) => Ok(types::Mode::Shared),
        Some(Mode { shared: false, permits: Some(permits), capacity }) => {
            Ok(types::Mode::Permits { permits, capacity })
        }
        Some(_) => Err(invalid("mode")),
    }
}

impl From<&limits::Settings> for Settings {
    fn from(from: &limits::Settings) -> Self {
        let limits = &from.limits;
        Self {
            voters: from.voters,
            name_bytes_max: limits.name_bytes_max,
            owner_bytes_max: limits.owner_bytes_max,
            request_id_bytes_max: limits.request_id_bytes_max,
            metadata_bytes_max: limits.metadata_bytes_max,
            ttl_ms_min: limits.ttl_ms_min,
            ttl_ms_max: limits.ttl_ms_max,
            waiters_per_lock_max: limits.waiters_per_lock_max,
            locks_per_session_max: limits.locks_per_session_max,
            sessions_max: limits.sessions_max,
            locks_max: limits.locks_max,
            names_per_request_max: limits.names_per_request_max,
            ticket_window: limits.ticket_window,
            wait_ms_max: limits.wait_ms_max,
        }
    }
}

impl From<Settings> for limits::Settings {
    fn from(from: Settings) -> Self {
        Self {
            voters: from.voters,
            limits: limits::Limits {
                name_bytes_max: from.name_bytes_max,
                owner_bytes_max: from.owner_bytes_max,
                request_id_bytes_max: from.request_id_bytes_max,
                metadata_bytes_max: from.metadata_bytes_max,
                ttl_ms_min: from.ttl_ms_min,
                ttl_ms_max: from.ttl_ms_max,
                waiters_per_lock_max: from.waiters_per_lock_max,
                locks_per_session_max: from.locks_per_session_max,
                sessions_max: from.sessions_max,
                locks_max: from.locks_max,
                names_per_request_max: from.names_per_request_max,
                ticket_window: from.ticket_window,
                wait_ms_max: from.wait_ms_max,
            },
        }
    }
}
