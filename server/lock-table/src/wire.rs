//! The encoded form of a batch: protobuf, written from `command.rs` and read back into it, field by field.
//!
//! Numbers of fields are for ever: a field that goes leaves its number unused. What only a broken proposer could have
//! written is a [`DecodeError`]; bounds that the cluster may change are checked when the batch is applied.
//!
//! | message | fields |
//! |---|---|
//! | batch | 1 rule version, 2 stamp, 3 `dt_ms`, 4 renewals complete, 5 renewal (repeated), 6 command (repeated) |
//! | renewal | 1 session, 2 number, 3 `ttl_ms` (present if it changes) |
//! | command | one of [`kind`] |

use std::collections::BTreeMap;

use prost::Message;

use crate::command::{Batch, Command, NameList, RULE_VERSION, Renewal};
use crate::convert::{self, Mode, Settings, invalid};
use crate::envelope::DecodeError;
use crate::fields::{Fields, Value, bytes, message, number, present};
use crate::types::{self, Metadata, RenewalNumber, SessionId, Ticket, Token, Ttl, Wait};

/// The field of a command that says which it is.
mod kind {
    pub(super) const CONFIGURE: u32 = 1;
    pub(super) const SET_SETTINGS: u32 = 2;
    pub(super) const OPEN: u32 = 3;
    pub(super) const CLOSE: u32 = 4;
    pub(super) const ACQUIRE: u32 = 5;
    pub(super) const CANCEL: u32 = 6;
    pub(super) const RELEASE: u32 = 7;
    pub(super) const UNARY_LOCK: u32 = 8;
    pub(super) const UNARY_UNLOCK: u32 = 9;
    pub(super) const UNARY_RENEW: u32 = 10;
}

const RENEWAL: u32 = 5;
const COMMAND: u32 = 6;

/// Commands for which room is made before they are read: as many as a large batch has, and no more on the word of bytes
/// that may be bad.
const RESERVED_MAX: usize = 4_096;

// ------------------------------------------------------------------------------------------------ writing

/// What comes before the renewals and commands of a batch.
pub(crate) fn write_head(out: &mut Vec<u8>, rules: u32, stamp: u64, dt_ms: u64, renewals_complete: bool) {
    number(out, 1, rules.into());
    number(out, 2, stamp);
    number(out, 3, dt_ms);
    number(out, 4, renewals_complete.into());
}

pub(crate) fn write_renewal(out: &mut Vec<u8>, renewal: &Renewal) {
    message(out, RENEWAL, |out| {
        number(out, 1, renewal.session.get());
        number(out, 2, renewal.number.get());
        present(out, 3, renewal.ttl.map(Ttl::get));
    });
}

pub(crate) fn write_command(out: &mut Vec<u8>, command: &Command) {
    message(out, COMMAND, |out| write_kind(out, command));
}

fn write_kind(out: &mut Vec<u8>, command: &Command) {
    match command {
        Command::Configure { settings, token_start } => message(out, kind::CONFIGURE, |out| {
            write_settings(out, 1, settings);
            number(out, 2, token_start.get());
        }),
        Command::SetSettings { settings } => write_settings(out, kind::SET_SETTINGS, settings),
        Command::Open { secret, owner, ttl, number: renewal } => message(out, kind::OPEN, |out| {
            bytes(out, 1, secret.as_bytes());
            bytes(out, 2, owner.as_str().as_bytes());
            number(out, 3, ttl.get());
            number(out, 4, renewal.get());
        }),
        Command::Close { session } => present(out, kind::CLOSE, Some(session.get())),
        Command::Acquire { session, ticket, names, mode, wait, metadata, acked } => {
            message(out, kind::ACQUIRE, |out| {
                number(out, 1, session.get());
                number(out, 2, ticket.get());
                names.iter().for_each(|name| bytes(out, 3, name.as_str().as_bytes()));
                write_mode(out, 4, *mode);
                match wait {
                    Wait::None => {}
                    Wait::Ms(ms) => present(out, 5, Some(*ms)),
                    Wait::Forever => present(out, 6, Some(1)),
                }
                write_metadata(out, 7, metadata);
                number(out, 8, acked.get());
            });
        }
        Command::Cancel { session, ticket, acked } => message(out, kind::CANCEL, |out| {
            number(out, 1, session.get());
            number(out, 2, ticket.get());
            number(out, 3, acked.get());
        }),
        Command::Release { session, ticket, token, acked } => message(out, kind::RELEASE, |out| {
            number(out, 1, session.get());
            number(out, 2, ticket.get());
            number(out, 3, token.get());
            number(out, 4, acked.get());
        }),
        Command::UnaryLock { owner, name, request_id, ttl, wait_ms, mode, metadata } => {
            message(out, kind::UNARY_LOCK, |out| {
                bytes(out, 1, owner.as_str().as_bytes());
                bytes(out, 2, name.as_str().as_bytes());
                // Never empty, so plain is as good as present.
                request_id.iter().for_each(|id| bytes(out, 3, id.as_str().as_bytes()));
                number(out, 4, ttl.get());
                number(out, 5, *wait_ms);
                write_mode(out, 6, *mode);
                write_metadata(out, 7, metadata);
            });
        }
        Command::UnaryUnlock { owner, name, request_id, token } => message(out, kind::UNARY_UNLOCK, |out| {
            bytes(out, 1, owner.as_str().as_bytes());
            bytes(out, 2, name.as_str().as_bytes());
            request_id.iter().for_each(|id| bytes(out, 3, id.as_str().as_bytes()));
            present(out, 4, token.map(Token::get));
        }),
        Command::UnaryRenew { owner, name, token, ttl } => message(out, kind::UNARY_RENEW, |out| {
            bytes(out, 1, owner.as_str().as_bytes());
            bytes(out, 2, name.as_str().as_bytes());
            present(out, 3, token.map(Token::get));
            number(out, 4, ttl.get());
        }),
    }
}

fn write_settings(out: &mut Vec<u8>, tag: u32, settings: &crate::limits::Settings) {
    prost::encoding::message::encode(tag, &Settings::from(settings), out);
}

fn write_mode(out: &mut Vec<u8>, tag: u32, mode: types::Mode) {
    if let Some(mode) = convert::mode_out(mode) {
        prost::encoding::message::encode(tag, &mode, out);
    }
}

fn write_metadata(out: &mut Vec<u8>, tag: u32, metadata: &Metadata) {
    for (key, value) in metadata.iter() {
        message(out, tag, |out| {
            bytes(out, 1, key.as_bytes());
            bytes(out, 2, value.as_bytes());
        });
    }
}

// ------------------------------------------------------------------------------------------------ reading

pub(crate) fn read_batch(body: &[u8]) -> Result<Batch, DecodeError> {
    let mut batch = Batch { rule_version: 0, renewals_complete: false, ..Batch::new(0) };
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => {
                let found = value.number("rule_version")?;
                batch.rule_version = found.try_into().map_err(|_| invalid("rule_version"))?;
            }
            2 => batch.stamp = value.number("stamp")?,
            3 => batch.dt_ms = value.number("dt_ms")?,
            4 => batch.renewals_complete = value.number("renewals_complete")? != 0,
            // Written first. Behind it may be commands that are not known here.
            _ if batch.rule_version != RULE_VERSION => break,
            RENEWAL => batch.renewals.push(read_renewal(value.bytes("renewal")?)?),
            COMMAND => {
                if batch.commands.is_empty() {
                    batch.commands.reserve_exact(1 + count(fields.0, COMMAND)?.min(RESERVED_MAX));
                }
                batch.commands.push(read_command(value.bytes("command")?)?);
            }
            _ => {}
        }
    }
    match batch.rule_version {
        RULE_VERSION => Ok(batch),
        found => Err(DecodeError::UnknownRuleVersion { found }),
    }
}

/// How many fields have this number.
fn count(body: &[u8], wanted: u32) -> Result<usize, DecodeError> {
    let (mut count, mut fields) = (0, Fields(body));
    while let Some((tag, _)) = fields.next()? {
        count += usize::from(tag == wanted);
    }
    Ok(count)
}

fn read_renewal(body: &[u8]) -> Result<Renewal, DecodeError> {
    let (mut session, mut renewal, mut ttl) = (0, 0, None);
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => session = value.number("session")?,
            2 => renewal = value.number("number")?,
            3 => ttl = Some(Ttl::new(value.number("ttl_ms")?)),
            _ => {}
        }
    }
    Ok(Renewal { session: SessionId::new(session), number: RenewalNumber::new(renewal), ttl })
}

fn read_command(body: &[u8]) -> Result<Command, DecodeError> {
    let mut command = None;
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        command = Some(match tag {
            kind::CONFIGURE => read_configure(value.bytes("configure")?)?,
            kind::SET_SETTINGS => Command::SetSettings { settings: read_settings(value)? },
            kind::OPEN => read_open(value.bytes("open")?)?,
            kind::CLOSE => Command::Close { session: SessionId::new(value.number("close")?) },
            kind::ACQUIRE => read_acquire(value.bytes("acquire")?)?,
            kind::CANCEL => {
                let [session, ticket, acked] = read_numbers(value.bytes("cancel")?)?;
                let (session, ticket) = (SessionId::new(session), Ticket::new(ticket));
                Command::Cancel { session, ticket, acked: Ticket::new(acked) }
            }
            kind::RELEASE => {
                let [session, ticket, token, acked] = read_numbers(value.bytes("release")?)?;
                let (session, ticket) = (SessionId::new(session), Ticket::new(ticket));
                Command::Release { session, ticket, token: Token::new(token), acked: Ticket::new(acked) }
            }
            kind::UNARY_LOCK => read_unary_lock(value.bytes("unary_lock")?)?,
            kind::UNARY_UNLOCK => read_unary_unlock(value.bytes("unary_unlock")?)?,
            kind::UNARY_RENEW => read_unary_renew(value.bytes("unary_renew")?)?,
            _ => continue,
        });
    }
    command.ok_or(invalid("command"))
}

/// A message whose fields are plain numbers, counted from 1.
fn read_numbers<const N: usize>(body: &[u8]) -> Result<[u64; N], DecodeError> {
    let mut numbers = [0; N];
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        if let Some(place) = numbers.get_mut(tag as usize - 1) {
            *place = value.number("number")?;
        }
    }
    Ok(numbers)
}

fn read_configure(body: &[u8]) -> Result<Command, DecodeError> {
    let (mut settings, mut token_start) = (None, 0);
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => settings = Some(read_settings(value)?),
            2 => token_start = value.number("token_start")?,
            _ => {}
        }
    }
    let settings = settings.ok_or(invalid("settings"))?;
    Ok(Command::Configure { settings, token_start: Token::new(token_start) })
}

fn read_settings(value: Value<'_>) -> Result<crate::limits::Settings, DecodeError> {
    Ok(Settings::decode(value.bytes("settings")?)?.into())
}

fn read_mode(value: Value<'_>) -> Result<types::Mode, DecodeError> {
    convert::mode_in(Some(Mode::decode(value.bytes("mode")?)?))
}

fn read_entry(value: Value<'_>, into: &mut BTreeMap<String, String>) -> Result<(), DecodeError> {
    let (mut key, mut content) = ("", "");
    let mut fields = Fields(value.bytes("metadata")?);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => key = value.text("metadata")?,
            2 => content = value.text("metadata")?,
            _ => {}
        }
    }
    into.insert(key.to_owned(), content.to_owned());
    Ok(())
}

fn read_open(body: &[u8]) -> Result<Command, DecodeError> {
    let (mut secret, mut owner, mut ttl, mut renewal): (&[u8], _, _, _) = (&[], "", 0, 0);
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => secret = value.bytes("secret")?,
            2 => owner = value.text("owner")?,
            3 => ttl = value.number("ttl_ms")?,
            4 => renewal = value.number("number")?,
            _ => {}
        }
    }
    let (secret, owner) = (convert::secret(secret)?, convert::owner(owner)?);
    Ok(Command::Open { secret, owner, ttl: Ttl::new(ttl), number: RenewalNumber::new(renewal) })
}

fn read_acquire(body: &[u8]) -> Result<Command, DecodeError> {
    let (mut session, mut ticket, mut acked) = (0, 0, 0);
    let (mut names, mut metadata) = (NameList::new(), BTreeMap::new());
    let (mut mode, mut wait) = (types::Mode::Exclusive, Wait::None);
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => session = value.number("session")?,
            2 => ticket = value.number("ticket")?,
            3 => names.push(convert::name(value.text("name")?)?),
            4 => mode = read_mode(value)?,
            5 => wait = Wait::Ms(value.number("wait")?),
            6 => match value.number("wait")? {
                0 => return Err(invalid("wait")),
                _ => wait = Wait::Forever,
            },
            7 => read_entry(value, &mut metadata)?,
            8 => acked = value.number("acked")?,
            _ => {}
        }
    }
    Ok(Command::Acquire {
        session: SessionId::new(session),
        ticket: Ticket::new(ticket),
        names,
        mode,
        wait,
        metadata: Metadata::new(metadata),
        acked: Ticket::new(acked),
    })
}

fn read_unary_lock(body: &[u8]) -> Result<Command, DecodeError> {
    let (mut owner, mut name, mut request_id) = ("", "", None);
    let (mut ttl, mut wait_ms) = (0, 0);
    let (mut mode, mut metadata) = (types::Mode::Exclusive, BTreeMap::new());
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => owner = value.text("owner")?,
            2 => name = value.text("name")?,
            3 => request_id = Some(value.text("request_id")?),
            4 => ttl = value.number("ttl_ms")?,
            5 => wait_ms = value.number("wait_ms")?,
            6 => mode = read_mode(value)?,
            7 => read_entry(value, &mut metadata)?,
            _ => {}
        }
    }
    Ok(Command::UnaryLock {
        owner: convert::owner(owner)?,
        name: convert::name(name)?,
        request_id: convert::request_id(request_id)?,
        ttl: Ttl::new(ttl),
        wait_ms,
        mode,
        metadata: Metadata::new(metadata),
    })
}

fn read_unary_unlock(body: &[u8]) -> Result<Command, DecodeError> {
    let (mut owner, mut name, mut request_id, mut token) = ("", "", None, None);
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => owner = value.text("owner")?,
            2 => name = value.text("name")?,
            3 => request_id = Some(value.text("request_id")?),
            4 => token = Some(Token::new(value.number("token")?)),
            _ => {}
        }
    }
    let (owner, name) = (convert::owner(owner)?, convert::name(name)?);
    Ok(Command::UnaryUnlock { owner, name, request_id: convert::request_id(request_id)?, token })
}

fn read_unary_renew(body: &[u8]) -> Result<Command, DecodeError> {
    let (mut owner, mut name, mut token, mut ttl) = ("", "", None, 0);
    let mut fields = Fields(body);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => owner = value.text("owner")?,
            2 => name = value.text("name")?,
            3 => token = Some(Token::new(value.number("token")?)),
            4 => ttl = value.number("ttl_ms")?,
            _ => {}
        }
    }
    let (owner, name) = (convert::owner(owner)?, convert::name(name)?);
    Ok(Command::UnaryRenew { owner, name, token, ttl: Ttl::new(ttl) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::text::{Name, Owner, RequestId};
    use crate::types::Secret;

    /// Every command, every field.
    fn batch() -> Batch {
        let name = |text: &str| Name::new(text).expect("a good name");
        let owner = || Owner::new("ann").expect("a good owner");
        let (session, ticket, acked) = (SessionId::new(300), Ticket::new(7), Ticket::new(6));
        let metadata = |pairs: &[(&str, &str)]| {
            Metadata::new(pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
        };
        let settings = || crate::limits::Settings { limits: Limits::standard(), voters: 3 };
        let request_id = RequestId::new("r").ok();
        let token = Token::new(1 << 40);
        let acquire = |names: &[&str], mode, wait, metadata| Command::Acquire {
            session,
            ticket,
            names: names.iter().map(|text| name(text)).collect(),
            mode,
            wait,
            metadata,
            acked,
        };
        let long = "x".repeat(200);
        let exclusive = types::Mode::Exclusive;
        Batch {
            stamp: u64::MAX,
            renewals: vec![
                Renewal { session, number: RenewalNumber::new(0), ttl: None },
                Renewal { session, number: RenewalNumber::new(9), ttl: Some(Ttl::new(0)) },
            ],
            commands: vec![
                Command::Configure { settings: settings(), token_start: token },
                Command::SetSettings { settings: settings() },
                Command::Open {
                    secret: Secret::new([5; 16]),
                    owner: owner(),
                    ttl: Ttl::new(30_000),
                    number: RenewalNumber::new(1),
                },
                Command::Close { session: SessionId::new(0) },
                acquire(&["a", &long], exclusive, Wait::None, metadata(&[])),
                acquire(&["a"], types::Mode::Shared, Wait::Ms(0), metadata(&[("", ""), ("k", &long)])),
                acquire(
                    &["a"],
                    types::Mode::Permits { permits: 2, capacity: 300 },
                    Wait::Forever,
                    metadata(&[]),
                ),
                Command::Cancel { session, ticket, acked },
                Command::Release { session, ticket, token, acked },
                Command::UnaryLock {
                    owner: owner(),
                    name: name("a"),
                    request_id: request_id.clone(),
                    ttl: Ttl::new(1_000),
                    wait_ms: 5,
                    mode: types::Mode::Shared,
                    metadata: metadata(&[("k", "v")]),
                },
                Command::UnaryLock {
                    owner: owner(),
                    name: name("a"),
                    request_id: None,
                    ttl: Ttl::new(1_000),
                    wait_ms: 0,
                    mode: exclusive,
                    metadata: metadata(&[]),
                },
                Command::UnaryUnlock { owner: owner(), name: name("a"), request_id, token: Some(token) },
                Command::UnaryUnlock { owner: owner(), name: name("a"), request_id: None, token: None },
                Command::UnaryRenew { owner: owner(), name: name("a"), token: None, ttl: Ttl::new(1_000) },
                Command::UnaryRenew {
                    owner: owner(),
                    name: name("a"),
                    token: Some(Token::new(0)),
                    ttl: Ttl::new(1_000),
                },
            ],
            ..Batch::new(150)
        }
    }

    /// A log that was written by an earlier version must be read by all later ones: these bytes never change.
    #[test]
    fn bytes_are_for_ever() {
        let bytes = batch().encode();
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (806, 0x4382_2140));
        assert_eq!(Batch::decode(&bytes), Ok(batch()));
    }

    #[test]
    fn what_no_proposer_writes_is_refused_by_name() {
        let refused = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut body = Vec::new();
            write_head(&mut body, RULE_VERSION, 1, 0, true);
            write(&mut body);
            read_batch(&body).expect_err("refused").to_string()
        };
        let acquire = |out: &mut Vec<u8>, write: &dyn Fn(&mut Vec<u8>)| {
            message(out, COMMAND, |out| message(out, kind::ACQUIRE, |out| write(out)));
        };
        for (text, write) in [
            ("command", &(|out: &mut Vec<u8>| message(out, COMMAND, |_| {})) as &dyn Fn(&mut Vec<u8>)),
            ("name", &|out| acquire(out, &|out| bytes(out, 3, b"\xff"))),
            ("name", &|out| acquire(out, &|out| bytes(out, 3, b"\n"))),
            ("session", &|out| acquire(out, &|out| bytes(out, 1, b"text"))),
            ("wait", &|out| acquire(out, &|out| present(out, 6, Some(0)))),
            ("mode", &|out| acquire(out, &|out| message(out, 4, |_| {}))),
            ("secret", &|out| {
                message(out, COMMAND, |out| message(out, kind::OPEN, |out| bytes(out, 1, b"short")))
            }),
        ] {
            assert!(refused(write).starts_with(text), "{text}: {}", refused(write));
        }
    }
}
