//! The encoded form of a snapshot's records, and the way to and from it.
//!
//! Numbers of fields are for ever: a field that goes leaves its number unused.

use std::collections::BTreeMap;

use prost::Message;

use crate::convert::{self, Mode, Settings, invalid};
use crate::envelope::DecodeError;
use crate::outcome::How;
use crate::session;
use crate::session::{Arguments, HighestTicket, Kind, Names, State, Stream};
use crate::table;
use crate::trail::Trail;
use crate::types::{ClusterTime, Metadata, RenewalNumber, Sequence, SessionId, Ticket, Token, Ttl};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Chunk {
    #[prost(uint32, tag = 1)]
    pub(crate) index: u32,
    #[prost(message, optional, tag = 2)]
    pub(crate) header: Option<Header>,
    #[prost(message, repeated, tag = 3)]
    pub(crate) sessions: Vec<Session>,
    #[prost(message, repeated, tag = 4)]
    pub(crate) requests: Vec<Request>,
    #[prost(message, repeated, tag = 5)]
    pub(crate) finished: Vec<Finished>,
    #[prost(bool, tag = 6)]
    pub(crate) is_last: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Header {
    #[prost(uint64, tag = 1)]
    now_ms: u64,
    #[prost(message, optional, tag = 2)]
    settings: Option<Settings>,
    #[prost(uint64, tag = 3)]
    token_last: u64,
    #[prost(uint64, tag = 4)]
    session_last: u64,
    #[prost(uint64, tag = 5)]
    sequence_last: u64,
    /// How many records follow.
    #[prost(uint64, tag = 6)]
    sessions: u64,
    #[prost(uint64, tag = 7)]
    requests: u64,
    #[prost(uint64, tag = 8)]
    finished: u64,
    #[prost(fixed64, tag = 9)]
    trail: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Session {
    #[prost(uint64, tag = 1)]
    id: u64,
    #[prost(string, tag = 2)]
    owner: String,
    #[prost(uint64, tag = 3)]
    ttl_ms: u64,
    #[prost(uint64, tag = 4)]
    deadline_ms: u64,
    #[prost(oneof = "SessionKind", tags = "5, 6")]
    kind: Option<SessionKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum SessionKind {
    #[prost(message, tag = 5)]
    Stream(StreamSession),
    #[prost(message, tag = 6)]
    Unary(UnarySession),
}

#[derive(Clone, PartialEq, Message)]
struct StreamSession {
    #[prost(bytes = "vec", tag = 1)]
    secret: Vec<u8>,
    #[prost(uint64, tag = 2)]
    number: u64,
    #[prost(uint64, tag = 3)]
    acked: u64,
}

#[derive(Clone, PartialEq, Message)]
struct UnarySession {
    #[prost(string, tag = 1)]
    name: String,
    #[prost(string, optional, tag = 2)]
    request_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(uint64, tag = 1)]
    sequence: u64,
    #[prost(uint64, tag = 2)]
    session: u64,
    #[prost(uint64, tag = 3)]
    ticket: u64,
    #[prost(string, repeated, tag = 4)]
    names: Vec<String>,
    #[prost(message, optional, tag = 5)]
    mode: Option<Mode>,
    #[prost(btree_map = "string, string", tag = 6)]
    metadata: BTreeMap<String, String>,
    #[prost(fixed64, tag = 7)]
    arguments: u64,
    /// Of the grant; absent while it waits.
    #[prost(uint64, optional, tag = 8)]
    token: Option<u64>,
    /// Of a waiter: since when.
    #[prost(uint64, tag = 9)]
    since_ms: u64,
    /// Of a waiter: absent if it waits for ever.
    #[prost(uint64, optional, tag = 10)]
    wait_end_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Finished {
    #[prost(uint64, tag = 1)]
    session: u64,
    #[prost(uint64, tag = 2)]
    ticket: u64,
    #[prost(uint32, tag = 3)]
    how: u32,
    #[prost(fixed64, optional, tag = 4)]
    arguments: Option<u64>,
}

impl Header {
    /// The header of a table with so many sessions, requests and finished tickets.
    pub(crate) fn new(from: &table::Header, counts: [usize; 3]) -> Self {
        let [sessions, requests, finished] = counts.map(|count| count as u64);
        Self {
            now_ms: from.now.get(),
            settings: from.settings.as_ref().map(Settings::from),
            token_last: from.token_last.get(),
            session_last: from.session_last.get(),
            sequence_last: from.sequence_last.get(),
            trail: from.trail.0,
            sessions,
            requests,
            finished,
        }
    }

    /// How many sessions, requests and finished tickets follow.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [self.sessions, self.requests, self.finished]
    }
}

impl From<Header> for table::Header {
    fn from(from: Header) -> Self {
        Self {
            now: ClusterTime::new(from.now_ms),
            settings: from.settings.map(Into::into),
            token_last: Token::new(from.token_last),
            session_last: SessionId::new(from.session_last),
            sequence_last: Sequence::new(from.sequence_last),
            trail: Trail(from.trail),
        }
    }
}

impl Session {
    pub(crate) fn new(id: SessionId, from: &session::Session) -> Self {
        let kind = match &from.kind {
            Kind::Stream(stream) => SessionKind::Stream(StreamSession {
                secret: stream.secret.as_bytes().to_vec(),
                number: stream.number.get(),
                acked: stream.acked.get(),
            }),
            Kind::Unary { name, request_id } => SessionKind::Unary(UnarySession {
                name: name.as_str().to_owned(),
                request_id: request_id.as_ref().map(|id| id.as_str().to_owned()),
            }),
        };
        Self {
            id: id.get(),
            owner: from.owner.as_str().to_owned(),
            ttl_ms: from.ttl.get(),
            deadline_ms: from.deadline.get(),
            kind: Some(kind),
        }
    }

    pub(crate) fn read(self) -> Result<(SessionId, session::Session), DecodeError> {
        let kind = match self.kind.ok_or(invalid("kind"))? {
            SessionKind::Stream(from) => Kind::Stream(Stream {
                secret: convert::secret(&from.secret)?,
                number: RenewalNumber::new(from.number),
                acked: Ticket::new(from.acked),
            }),
            SessionKind::Unary(from) => Kind::Unary {
                name: convert::name(&from.name)?,
                request_id: convert::request_id(from.request_id.as_deref())?,
            },
        };
        let session = session::Session {
            kind,
            owner: convert::owner(&self.owner)?,
            ttl: Ttl::new(self.ttl_ms),
            deadline: ClusterTime::new(self.deadline_ms),
            lock_count: 0,
            highest: HighestTicket::default(),
        };
        Ok((SessionId::new(self.id), session))
    }
}

impl Request {
    pub(crate) fn new(sequence: Sequence, from: &session::Request) -> Self {
        let (token, since_ms, wait_end_ms) = match from.state {
            State::Held { token } => (Some(token.get()), 0, None),
            State::Queued { since, wait_end } => (None, since.get(), wait_end.map(ClusterTime::get)),
        };
        Self {
            sequence: sequence.get(),
            session: from.session.get(),
            ticket: from.ticket.get(),
            names: from.names.as_slice().iter().map(|name| name.as_str().to_owned()).collect(),
            mode: convert::mode_out(from.mode),
            metadata: convert::metadata_out(&from.metadata),
            arguments: from.arguments.get(),
            token,
            since_ms,
            wait_end_ms,
        }
    }

    pub(crate) fn read(self) -> Result<(Sequence, session::Request), DecodeError> {
        let names = self.names.iter().map(|text| convert::name(text)).collect::<Result<_, _>>()?;
        let request = session::Request {
            session: SessionId::new(self.session),
            ticket: Ticket::new(self.ticket),
            names: Names::new(names).map_err(|_| invalid("names"))?,
            mode: convert::mode_in(self.mode)?,
            metadata: Metadata::new(self.metadata),
            arguments: Arguments::from_number(self.arguments).ok_or(invalid("arguments"))?,
            state: match self.token {
                Some(token) => State::Held { token: Token::new(token) },
                None => State::Queued {
                    since: ClusterTime::new(self.since_ms),
                    wait_end: self.wait_end_ms.map(ClusterTime::new),
                },
            },
        };
        Ok((Sequence::new(self.sequence), request))
    }
}

impl Finished {
    pub(crate) fn new((session, ticket): (SessionId, Ticket), from: session::Finished) -> Self {
        let how = match from.how {
            How::Released => 1,
            How::Cancelled => 2,
            How::WaitEnded => 3,
            How::Refused => 4,
            How::Forgotten => unreachable!("what is forgotten has no record"),
        };
        Self {
            session: session.get(),
            ticket: ticket.get(),
            how,
            arguments: from.arguments.map(Arguments::get),
        }
    }

    pub(crate) fn read(self) -> Result<((SessionId, Ticket), session::Finished), DecodeError> {
        let how = match self.how {
            1 => How::Released,
            2 => How::Cancelled,
            3 => How::WaitEnded,
            4 => How::Refused,
            _ => return Err(invalid("how")),
        };
        let arguments = match self.arguments {
            None => None,
            Some(number) => Some(Arguments::from_number(number).ok_or(invalid("arguments"))?),
        };
        let key = (SessionId::new(self.session), Ticket::new(self.ticket));
        Ok((key, session::Finished { how, arguments }))
    }
}
