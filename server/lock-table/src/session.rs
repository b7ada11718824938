//! Sessions, their requests, and what is remembered of requests that are over: the records a
//! snapshot is made of.
//!
//! Nothing here decides anything; `tickets.rs`, `unary.rs` and `grant.rs` do.

use std::num::NonZeroU64;

use crate::command::NameList;
use crate::limits::NAMES_PER_REQUEST_CEILING;
use crate::outcome::{How, Rejection};
use crate::text::{Name, Owner, RequestId};
use crate::types::{ClusterTime, Metadata, Mode, RenewalNumber, Secret, SessionId, Ticket, Token, Ttl, Wait};

/// One lease, and with it all the locks of its session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Session {
    pub(crate) kind: Kind,
    pub(crate) owner: Owner,
    pub(crate) ttl: Ttl,
    /// The lease has ended when this is not above cluster time.
    pub(crate) deadline: ClusterTime,
    /// Names its requests hold and wait for. Derived.
    pub(crate) lock_count: u64,
    pub(crate) highest: HighestTicket,
}

/// No ticket above this one is live or remembered, so nobody has to search for one. A shortcut
/// and no part of the state: a table that was loaded may have a lower one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HighestTicket(Ticket);

impl HighestTicket {
    pub(crate) fn raise(&mut self, ticket: Ticket) {
        self.0 = self.0.max(ticket);
    }

    pub(crate) fn is_below(self, ticket: Ticket) -> bool {
        self.0 < ticket
    }
}

impl PartialEq for HighestTicket {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Stream(Stream),
    /// One lock of a unary call: found by its key, with one request under [`UNARY_TICKET`].
    Unary {
        name: Name,
        request_id: Option<RequestId>,
    },
}

/// The ticket of a unary session's only request.
pub(crate) const UNARY_TICKET: Ticket = Ticket::new(1);

/// What only sessions of a stream have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stream {
    pub(crate) secret: Secret,
    /// The highest number of a renewal.
    pub(crate) number: RenewalNumber,
    /// The client has the answer to every ticket below that is not still queued.
    pub(crate) acked: Ticket,
}

/// What a client asks for, whichever way it came.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) names: Names,
    pub(crate) mode: Mode,
    pub(crate) metadata: Metadata,
}

/// A request that is queued or held.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) session: SessionId,
    pub(crate) ticket: Ticket,
    pub(crate) names: Names,
    pub(crate) mode: Mode,
    pub(crate) metadata: Metadata,
    pub(crate) arguments: Arguments,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Held { token: Token },
    Queued { since: ClusterTime, wait_end: Option<ClusterTime> },
}

impl Request {
    pub(crate) fn token(&self) -> Option<Token> {
        match self.state {
            State::Held { token } => Some(token),
            State::Queued { .. } => None,
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.token().is_none()
    }
}

/// What is remembered of a ticket at or above the acknowledged ones whose request is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Finished {
    pub(crate) how: How,
    /// Of the acquire; `None` if the ticket was cancelled before its acquire came.
    pub(crate) arguments: Option<Arguments>,
}

/// The names of a request: at least one, each once. Almost always there is one, which then lies
/// inline; a box of one word for more keeps that as small as the name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Names {
    One(Name),
    Many(Box<NameList>),
}

impl Names {
    /// Takes the names a client listed. Fails if there is none, if there are more than any cluster
    /// allows, or if one is there twice.
    pub(crate) fn new(mut names: NameList) -> Result<Self, Rejection> {
        if names.is_empty() {
            return Err(Rejection::invalid("names", "must not be empty"));
        }
        if names.len() == 1 {
            return Ok(Self::One(names.remove(0)));
        }
        if names.len() as u64 > NAMES_PER_REQUEST_CEILING {
            let problem = format!("are {}, at most {NAMES_PER_REQUEST_CEILING} are allowed", names.len());
            return Err(Rejection::invalid("names", problem));
        }
        let mut sorted: Vec<&Name> = names.iter().collect();
        sorted.sort();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Rejection::invalid("names", format!("{:?} is there twice", pair[0]))),
            None => Ok(Self::Many(Box::new(names))),
        }
    }

    pub(crate) fn as_slice(&self) -> &[Name] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [Name] {
        match self {
            Self::One(name) => std::slice::from_mut(name),
            Self::Many(names) => names,
        }
    }
}

/// A fingerprint of what a request asked for (FNV-1a, 64 bits), by which a repeat is told from
/// another request under the same ticket. Who makes two that are alike confuses only itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arguments(NonZeroU64);

impl Arguments {
    /// Of a ticket: everything but the acknowledgement that rode along.
    pub(crate) fn of_ticket(ask: &Ask, wait: Wait) -> Self {
        let mut hash = Fnv::of(ask);
        match wait {
            Wait::None | Wait::Ms(0) => hash.number(0),
            Wait::Ms(ms) => {
                hash.number(1);
                hash.number(ms);
            }
            Wait::Forever => hash.number(2),
        }
        hash.finish()
    }

    /// Of a unary call: a repeat may bring another lease and another wait.
    pub(crate) fn of_unary(ask: &Ask) -> Self {
        Fnv::of(ask).finish()
    }

    pub(crate) fn get(self) -> u64 {
        self.0.get()
    }

    /// From a snapshot; `None` for a number that is never written.
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}

struct Fnv(u64);

impl Fnv {
    fn of(ask: &Ask) -> Self {
        let mut hash = Self(0xCBF2_9CE4_8422_2325);
        hash.number(ask.names.as_slice().len() as u64);
        for name in ask.names.as_slice() {
            hash.text(name.as_bytes());
        }
        match ask.mode {
            Mode::Exclusive => hash.number(0),
            Mode::Shared => hash.number(1),
            Mode::Permits { permits, capacity } => {
                hash.number(2);
                hash.number(u64::from(permits));
                hash.number(u64::from(capacity));
            }
        }
        hash.number(ask.metadata.iter().count() as u64);
        for (key, value) in ask.metadata.iter() {
            hash.text(key.as_bytes());
            hash.text(value.as_bytes());
        }
        hash
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.bytes(text);
    }

    fn finish(self) -> Arguments {
        Arguments(NonZeroU64::new(self.0).unwrap_or(NonZeroU64::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Millions of these are in memory. Whoever makes one bigger should have meant it.
    #[test]
    fn records_stay_small() {
        assert!(size_of::<Request>() <= 96);
        assert!(size_of::<Session>() <= 112);
        assert!(size_of::<Finished>() <= 16);
        assert!(size_of::<crate::lock::Lock>() <= 16);
        assert!(size_of::<crate::lock::Crowd>() <= 56);
    }
}
