//! Batches to and from the messages of `wire.rs`, and the small parts that snapshots share with
//! them.
//!
//! What only a broken proposer could have written is a [`DecodeError`]; bounds that the cluster may
//! change are checked when the batch is applied.

use std::collections::BTreeMap;

use crate::command::{self, RULE_VERSION};
use crate::envelope::DecodeError;
use crate::limits;
use crate::text;
use crate::types::{self, Metadata, RenewalNumber, Secret, SessionId, Ticket, Token, Ttl};
use crate::wire::{
    Acquire, Batch, Cancel, Command, Configure, Kind, Mode, Open, Release, Renewal, Settings, UnaryLock,
    UnaryRenew, UnaryUnlock, Wait,
};

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

pub(crate) fn request_id(text: &Option<String>) -> Result<Option<text::RequestId>, DecodeError> {
    let checked = text.as_deref().map(text::RequestId::new).transpose();
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

impl From<&command::Batch> for Batch {
    fn from(from: &command::Batch) -> Self {
        Self {
            rule_version: from.rule_version,
            stamp: from.stamp,
            dt_ms: from.dt_ms,
            renewals_complete: from.renewals_complete,
            renewals: from.renewals.iter().map(Renewal::from).collect(),
            commands: from.commands.iter().map(Command::from).collect(),
        }
    }
}

impl TryFrom<Batch> for command::Batch {
    type Error = DecodeError;

    fn try_from(from: Batch) -> Result<Self, DecodeError> {
        // Before its content, which may hold commands that are not known here.
        if from.rule_version != RULE_VERSION {
            return Err(DecodeError::UnknownRuleVersion { found: from.rule_version });
        }
        Ok(Self {
            rule_version: from.rule_version,
            stamp: from.stamp,
            dt_ms: from.dt_ms,
            renewals_complete: from.renewals_complete,
            renewals: from.renewals.into_iter().map(command::Renewal::from).collect(),
            commands: from.commands.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&command::Renewal> for Renewal {
    fn from(from: &command::Renewal) -> Self {
        Self { session: from.session.get(), number: from.number.get(), ttl_ms: from.ttl.map(Ttl::get) }
    }
}

impl From<Renewal> for command::Renewal {
    fn from(from: Renewal) -> Self {
        Self {
            session: SessionId::new(from.session),
            number: RenewalNumber::new(from.number),
            ttl: from.ttl_ms.map(Ttl::new),
        }
    }
}

impl From<&command::Command> for Command {
    fn from(from: &command::Command) -> Self {
        use command::Command as C;
        let kind = match from {
            C::Configure { settings, token_start } => {
                Kind::Configure(Configure { settings: Some(settings.into()), token_start: token_start.get() })
            }
            C::SetSettings { settings } => Kind::SetSettings(settings.into()),
            C::Open { secret, owner, ttl, number } => Kind::Open(Open {
                secret: secret.as_bytes().to_vec(),
                owner: owner.to_string(),
                ttl_ms: ttl.get(),
                number: number.get(),
            }),
            C::Close { session } => Kind::Close(session.get()),
            C::Acquire { session, ticket, names, mode, wait, metadata, acked } => Kind::Acquire(Acquire {
                session: session.get(),
                ticket: ticket.get(),
                names: names.iter().map(ToString::to_string).collect(),
                mode: mode_out(*mode),
                wait: match wait {
                    types::Wait::None => None,
                    types::Wait::Ms(ms) => Some(Wait::Ms(*ms)),
                    types::Wait::Forever => Some(Wait::Forever(true)),
                },
                metadata: metadata_out(metadata),
                acked: acked.get(),
            }),
            C::Cancel { session, ticket, acked } => {
                Kind::Cancel(Cancel { session: session.get(), ticket: ticket.get(), acked: acked.get() })
            }
            C::Release { session, ticket, token, acked } => Kind::Release(Release {
                session: session.get(),
                ticket: ticket.get(),
                token: token.get(),
                acked: acked.get(),
            }),
            C::UnaryLock { owner, name, request_id, ttl, wait_ms, mode, metadata } => {
                Kind::UnaryLock(UnaryLock {
                    owner: owner.to_string(),
                    name: name.to_string(),
                    request_id: request_id.as_ref().map(ToString::to_string),
                    ttl_ms: ttl.get(),
                    wait_ms: *wait_ms,
                    mode: mode_out(*mode),
                    metadata: metadata_out(metadata),
                })
            }
            C::UnaryUnlock { owner, name, request_id, token } => Kind::UnaryUnlock(UnaryUnlock {
                owner: owner.to_string(),
                name: name.to_string(),
                request_id: request_id.as_ref().map(ToString::to_string),
                token: token.map(Token::get),
            }),
            C::UnaryRenew { owner, name, token, ttl } => Kind::UnaryRenew(UnaryRenew {
                owner: owner.to_string(),
                name: name.to_string(),
                token: token.map(Token::get),
                ttl_ms: ttl.get(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<Command> for command::Command {
    type Error = DecodeError;

    fn try_from(from: Command) -> Result<Self, DecodeError> {
        Ok(match from.kind.ok_or(invalid("command"))? {
            Kind::Configure(from) => Self::Configure {
                settings: from.settings.ok_or(invalid("settings"))?.into(),
                token_start: Token::new(from.token_start),
            },
            Kind::SetSettings(settings) => Self::SetSettings { settings: settings.into() },
            Kind::Open(from) => Self::Open {
                secret: secret(&from.secret)?,
                owner: owner(&from.owner)?,
                ttl: Ttl::new(from.ttl_ms),
                number: RenewalNumber::new(from.number),
            },
            Kind::Close(session) => Self::Close { session: SessionId::new(session) },
            Kind::Acquire(from) => Self::Acquire {
                session: SessionId::new(from.session),
                ticket: Ticket::new(from.ticket),
                names: from.names.iter().map(|text| name(text)).collect::<Result<_, _>>()?,
                mode: mode_in(from.mode)?,
                wait: match from.wait {
                    None => types::Wait::None,
                    Some(Wait::Ms(ms)) => types::Wait::Ms(ms),
                    Some(Wait::Forever(true)) => types::Wait::Forever,
                    Some(Wait::Forever(false)) => return Err(invalid("wait")),
                },
                metadata: Metadata::new(from.metadata),
                acked: Ticket::new(from.acked),
            },
            Kind::Cancel(from) => Self::Cancel {
                session: SessionId::new(from.session),
                ticket: Ticket::new(from.ticket),
                acked: Ticket::new(from.acked),
            },
            Kind::Release(from) => Self::Release {
                session: SessionId::new(from.session),
                ticket: Ticket::new(from.ticket),
                token: Token::new(from.token),
                acked: Ticket::new(from.acked),
            },
            Kind::UnaryLock(from) => Self::UnaryLock {
                owner: owner(&from.owner)?,
                name: name(&from.name)?,
                request_id: request_id(&from.request_id)?,
                ttl: Ttl::new(from.ttl_ms),
                wait_ms: from.wait_ms,
                mode: mode_in(from.mode)?,
                metadata: Metadata::new(from.metadata),
            },
            Kind::UnaryUnlock(from) => Self::UnaryUnlock {
                owner: owner(&from.owner)?,
                name: name(&from.name)?,
                request_id: request_id(&from.request_id)?,
                token: from.token.map(Token::new),
            },
            Kind::UnaryRenew(from) => Self::UnaryRenew {
                owner: owner(&from.owner)?,
                name: name(&from.name)?,
                token: from.token.map(Token::new),
                ttl: Ttl::new(from.ttl_ms),
            },
        })
    }
}
