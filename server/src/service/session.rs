//! What comes in on a session stream, on the leader: check the shape, register who waits, hand on.
//!
//! Operations are taken in their order. A resume is a read: it waits for a ReadIndex, and attaches the session under
//! the table's lock, so that no push falls between what it answers and what follows.

use std::sync::Arc;

use lock_table::{Command, RenewalNumber, SessionId};
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::{self, OpError, SessionError, SessionLost, session_lost};

use super::convert::{self, Resumed};
use crate::proposer::{NotTaken, Proposer};
use crate::raft::RaftHandle;
use crate::streams::{Origin, StreamId, Streams};

/// The leader's side of all session streams.
#[derive(Clone)]
pub struct Sessions {
    /// Who is attached.
    pub streams: Arc<Streams>,
    /// The way into the log.
    pub proposer: Proposer,
    /// Reads.
    pub raft: RaftHandle,
}

impl Sessions {
    /// Takes messages that arrived together. Not cancel safe: the rest of them would be lost.
    pub async fn take(&self, messages: Vec<(StreamId, v1::SessionRequest)>) {
        // One read serves all resumes: after a fail-over a thousand streams resume at once.
        let mut ops = messages.iter().flat_map(|(_, message)| &message.ops);
        let resumes = ops.any(|op| matches!(op.op, Some(Op::Resume(_))));
        let readable = !resumes || self.raft.read_point().await.is_ok();
        for (stream, message) in messages {
            self.take_one(stream, message, readable).await;
        }
    }

    async fn take_one(&self, stream: StreamId, message: v1::SessionRequest, readable: bool) {
        for op in message.ops {
            match op.op {
                Some(Op::Open(open)) => self.open(stream, &open),
                Some(Op::Resume(resume)) => self.resume(stream, &resume, readable).await,
                Some(Op::Renew(renew)) => self.renew(stream, &renew),
                Some(Op::Acquire(acquire)) => {
                    let (session, ticket) = (acquire.session, acquire.ticket);
                    match convert::acquire_command(acquire) {
                        Ok(command) => self.submit(stream, session, ticket, command),
                        Err(rejection) => {
                            let error = convert::op_error(&rejection);
                            self.streams.push(stream, convert::ticket_error(session, ticket, error));
                        }
                    }
                }
                Some(Op::Cancel(cancel)) => {
                    self.submit(stream, cancel.session, cancel.ticket, convert::cancel_command(&cancel));
                }
                Some(Op::Release(release)) => {
                    self.submit(stream, release.session, release.ticket, convert::release_command(&release));
                }
                Some(Op::Close(close)) => {
                    let session = SessionId::new(close.session);
                    self.submit(stream, close.session, 0, Command::Close { session });
                }
                None => {} // an operation of a newer client; it is unanswered, as it would be by an older server
            }
        }
    }

    fn open(&self, stream: StreamId, open: &v1::OpenSession) {
        let refused = match convert::open_command(open) {
            Ok(command) => {
                let origin = Origin::Open { stream, key: open.key, attachment: open.attachment };
                match self.proposer.submit(command, origin) {
                    Ok(()) => return,
                    Err(not_taken) => not_taken_error(not_taken),
                }
            }
            Err(rejection) => convert::op_error(&rejection),
        };
        self.streams
            .push(stream, Event::Error(SessionError { key: open.key, session: 0, error: Some(refused) }));
    }

    async fn resume(&self, stream: StreamId, resume: &v1::ResumeSession, readable: bool) {
        let refuse = |error| {
            let error = SessionError { key: resume.key, session: resume.session, error: Some(error) };
            self.streams.push(stream, Event::Error(error));
        };
        let secret = match convert::secret(&resume.secret) {
            Ok(secret) => secret,
            Err(rejection) => return refuse(convert::op_error(&rejection)),
        };
        if !readable {
            return refuse(not_taken_error(NotTaken::NotLeader));
        }
        let session = SessionId::new(resume.session);
        self.raft
            .machine()
            .read(|table| match table.resume(session, &secret) {
                Some(view) => {
                    if self.streams.attach(stream, session, resume.attachment, resume.key) {
                        self.streams.push_resumed(stream, Resumed::new(resume.key, session, view));
                    }
                }
                None => {
                    let reason = session_lost::Reason::Expired.into();
                    let lost = SessionLost { session: resume.session, key: resume.key, reason };
                    self.streams.push(stream, Event::Lost(lost));
                }
            })
            .await;
    }

    fn renew(&self, stream: StreamId, renew: &v1::RenewSessions) {
        let ttl = match renew.ttl_ms {
            0 => None,
            ttl_ms => match convert::session_ttl(ttl_ms) {
                Ok(ttl) => Some(ttl),
                Err(rejection) => {
                    for session in &renew.sessions {
                        self.streams
                            .push(stream, convert::renewal_refused(SessionId::new(*session), &rejection));
                    }
                    return;
                }
            },
        };
        let attached = |session: &SessionId| self.streams.is_attached(stream, *session);
        let sessions = renew.sessions.iter().map(|session| SessionId::new(*session));
        let (ours, others): (Vec<SessionId>, Vec<SessionId>) = sessions.partition(attached);
        self.proposer.renew(ours, RenewalNumber::new(renew.number), ttl);
        for session in others {
            let error = SessionError { key: 0, session: session.get(), error: Some(not_attached()) };
            self.streams.push(stream, Event::Error(error));
        }
    }

    fn submit(&self, stream: StreamId, session: u64, ticket: u64, command: Command) {
        let id = SessionId::new(session);
        let refused = if self.streams.is_attached(stream, id) {
            match self.proposer.submit(command, Origin::Session { session: id, ticket }) {
                Ok(()) => return,
                Err(not_taken) => not_taken_error(not_taken),
            }
        } else {
            not_attached()
        };
        self.streams.push(stream, convert::ticket_error(session, ticket, refused));
    }
}

/// The session named is another stream's, or nobody's.
pub fn not_attached() -> OpError {
    OpError {
        reason: "NOT_ATTACHED".to_owned(),
        message: "the session is not attached to this stream: resume it first; nothing was executed"
            .to_owned(),
        retry_after_ms: 0,
    }
}

fn not_taken_error(not_taken: NotTaken) -> OpError {
    let (reason, message, retry_after_ms) = match not_taken {
        NotTaken::NotLeader => ("NOT_LEADER", "the leader changed; nothing was executed", 50),
        NotTaken::Full => ("QUEUE_BUSY", "the queue of proposals is full; nothing was executed", 100),
        // Waiting does not free a disk: the caller should hear of it.
        NotTaken::DiskLow => ("DISK_LOW", super::status::DISK_LOW, 0),
    };
    OpError { reason: reason.to_owned(), message: message.to_owned(), retry_after_ms }
}
