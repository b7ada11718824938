//! What comes in on a session stream, on the leader: check the shape, register who waits, hand on.
//!
//! Operations are taken in their order. A resume is a read: it waits for a ReadIndex, and attaches the session under
//! the table's lock, so that no push falls between what it answers and what follows.

use std::sync::Arc;

use lock_table::{Command, LockTable, RenewalNumber, Secret, SessionId, Ttl};
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
        for op in message.ops.into_iter().filter_map(|op| op.op) {
            if let Some((resume, secret)) = take_op(&mut &*self, stream, op) {
                self.resume(stream, &resume, &secret, readable).await;
            }
        }
    }

    async fn resume(&self, stream: StreamId, resume: &v1::ResumeSession, secret: &Secret, readable: bool) {
        if readable {
            let answer = |table: &LockTable| answer_resume(table, &self.streams, stream, resume, secret);
            self.raft.machine().read(answer).await;
        } else {
            refuse_resume(&self.streams, stream, resume, not_taken_error(NotTaken::NotLeader));
        }
    }
}

/// What stands behind the streams of a leader: the log; in tests of the client the table itself.
pub trait Leader {
    /// Who is attached.
    fn streams(&self) -> &Streams;

    /// Takes a command whose outcome `origin` learns, or says why not.
    fn submit(&mut self, command: Command, origin: Origin) -> Result<(), OpError>;

    /// Takes renewals of sessions that are attached.
    fn renew(&mut self, sessions: Vec<SessionId>, number: RenewalNumber, ttl: Option<Ttl>);
}

impl Leader for &Sessions {
    fn streams(&self) -> &Streams {
        &self.streams
    }

    fn submit(&mut self, command: Command, origin: Origin) -> Result<(), OpError> {
        self.proposer.submit(command, origin).map_err(not_taken_error)
    }

    fn renew(&mut self, sessions: Vec<SessionId>, number: RenewalNumber, ttl: Option<Ttl>) {
        self.proposer.renew(sessions, number, ttl);
    }
}

/// Takes one operation of a stream. A resume is given back with its secret: it is a read, and may have to wait for its turn.
pub fn take_op(leader: &mut impl Leader, stream: StreamId, op: Op) -> Option<(v1::ResumeSession, Secret)> {
    match op {
        Op::Open(open) => take_open(leader, stream, &open),
        Op::Resume(resume) => match convert::secret(&resume.secret) {
            Ok(secret) => return Some((resume, secret)),
            Err(rejection) => {
                refuse_resume(leader.streams(), stream, &resume, convert::op_error(&rejection));
            }
        },
        Op::Renew(renew) => take_renewal(leader, stream, &renew),
        Op::Acquire(acquire) => {
            let (session, ticket) = (acquire.session, acquire.ticket);
            match convert::acquire_command(acquire) {
                Ok(command) => submit(leader, stream, session, ticket, command),
                Err(rejection) => {
                    let error = convert::op_error(&rejection);
                    leader.streams().push(stream, convert::ticket_error(session, ticket, error));
                }
            }
        }
        Op::Cancel(cancel) => {
            submit(leader, stream, cancel.session, cancel.ticket, convert::cancel_command(&cancel));
        }
        Op::Release(release) => {
            submit(leader, stream, release.session, release.ticket, convert::release_command(&release));
        }
        Op::Close(close) => {
            let session = SessionId::new(close.session);
            submit(leader, stream, close.session, 0, Command::Close { session });
        }
    }
    None
}

fn take_open(leader: &mut impl Leader, stream: StreamId, open: &v1::OpenSession) {
    let origin = Origin::Open { stream, key: open.key, attachment: open.attachment };
    let taken = convert::open_command(open)
        .map_err(|rejection| convert::op_error(&rejection))
        .and_then(|command| leader.submit(command, origin));
    if let Err(refused) = taken {
        leader.streams().push(stream, convert::open_error(open.key, refused));
    }
}

fn take_renewal(leader: &mut impl Leader, stream: StreamId, renew: &v1::RenewSessions) {
    let sessions = renew.sessions.iter().map(|session| SessionId::new(*session));
    let ttl = match (renew.ttl_ms > 0).then(|| convert::session_ttl(renew.ttl_ms)).transpose() {
        Ok(ttl) => ttl,
        Err(rejection) => {
            sessions.for_each(|session| {
                leader.streams().push(stream, convert::renewal_refused(session, &rejection));
            });
            return;
        }
    };
    let attached = |session: &SessionId| leader.streams().is_attached(stream, *session);
    let (ours, others): (Vec<SessionId>, Vec<SessionId>) = sessions.partition(attached);
    leader.renew(ours, RenewalNumber::new(renew.number), ttl);
    for session in others {
        let error = SessionError { key: 0, session: session.get(), error: Some(not_attached()) };
        leader.streams().push(stream, Event::Error(error));
    }
}

fn submit(leader: &mut impl Leader, stream: StreamId, session: u64, ticket: u64, command: Command) {
    let id = SessionId::new(session);
    let taken = if leader.streams().is_attached(stream, id) {
        leader.submit(command, Origin::Session { session: id, ticket })
    } else {
        Err(not_attached())
    };
    if let Err(refused) = taken {
        leader.streams().push(stream, convert::ticket_error(session, ticket, refused));
    }
}

/// Answers a resume from the table, whose lock the caller holds: no event of the session falls in between.
pub fn answer_resume(
    table: &LockTable,
    streams: &Streams,
    stream: StreamId,
    resume: &v1::ResumeSession,
    secret: &Secret,
) {
    let session = SessionId::new(resume.session);
    match table.resume(session, secret) {
        Some(view) => {
            if streams.attach(stream, session, resume.attachment, resume.key) {
                streams.push_resumed(stream, Resumed::new(resume.key, session, view));
            }
        }
        None => {
            let reason = session_lost::Reason::Expired.into();
            let lost = SessionLost { session: resume.session, key: resume.key, reason };
            streams.push(stream, Event::Lost(lost));
        }
    }
}

fn refuse_resume(streams: &Streams, stream: StreamId, resume: &v1::ResumeSession, error: OpError) {
    let error = SessionError { key: resume.key, session: resume.session, error: Some(error) };
    streams.push(stream, Event::Error(error));
}

/// The session named is another stream's, or nobody's.
fn not_attached() -> OpError {
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
