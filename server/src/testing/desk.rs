//! The lock table behind session streams, without a log: what a client sees of a leader, on nobody's clock and in nobody's
//! threads. For suites that try the client in thousands of schedules.

use std::sync::Arc;

use lock_table::{
    Batch, Command, Limits, LockTable, Output, Renewal, RenewalNumber, SessionId, Settings, Token,
};
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::{self, SessionError, SessionLost, SessionRequest, SessionResponse, session_lost};

use crate::outbox::Outbox;
use crate::service::convert::{self, Resumed};
use crate::service::session::not_attached;
use crate::streams::{Origin, StreamId, Streams};

/// A leader that commits at once. What a client says is one batch for each operation.
#[derive(Debug)]
pub struct Desk {
    table: LockTable,
    streams: Streams,
    stamp: u64,
}

/// One client's stream.
#[derive(Clone, Debug)]
pub struct DeskStream {
    id: StreamId,
    outbox: Arc<Outbox>,
}

impl DeskStream {
    /// The next message to the client; `None` at the end of the stream. Waits for either. Cancel safe.
    pub async fn next(&self) -> Option<SessionResponse> {
        self.outbox.next().await.ok()
    }
}

impl Default for Desk {
    fn default() -> Desk {
        let mut desk = Desk { table: LockTable::new(), streams: Streams::default(), stamp: 0 };
        let settings = Settings { limits: Limits::standard(), voters: 1 };
        desk.commit(Command::Configure { settings, token_start: Token::new(0) }, Origin::Node);
        desk
    }
}

impl Desk {
    /// The table, as it is now.
    pub fn table(&self) -> &LockTable {
        &self.table
    }

    /// Takes a stream in.
    pub fn open(&mut self) -> DeskStream {
        let outbox = Outbox::local();
        DeskStream { id: self.streams.open(outbox.clone()), outbox }
    }

    /// Lets a stream go. Its sessions live on.
    pub fn close(&mut self, stream: &DeskStream) {
        self.streams.close(stream.id);
    }

    /// Lets cluster time pass, at most two ticks at a time.
    pub fn pass(&mut self, dt_ms: u64) {
        self.apply(Batch::new(dt_ms), Vec::new());
    }

    /// Takes what a client says, in its order.
    pub fn take(&mut self, stream: &DeskStream, message: SessionRequest) {
        for op in message.ops.into_iter().filter_map(|op| op.op) {
            self.take_one(stream.id, op);
        }
    }

    fn take_one(&mut self, stream: StreamId, op: Op) {
        match op {
            Op::Open(open) => match convert::open_command(&open) {
                Ok(command) => {
                    let origin = Origin::Open { stream, key: open.key, attachment: open.attachment };
                    self.commit(command, origin);
                }
                Err(rejection) => {
                    self.streams.push(stream, convert::open_error(open.key, convert::op_error(&rejection)));
                }
            },
            Op::Resume(resume) => self.resume(stream, &resume),
            Op::Renew(renew) => self.renew(stream, &renew),
            Op::Acquire(acquire) => {
                let (session, ticket) = (acquire.session, acquire.ticket);
                match convert::acquire_command(acquire) {
                    Ok(command) => self.submit(stream, session, ticket, command),
                    Err(rejection) => {
                        let error = convert::op_error(&rejection);
                        self.streams.push(stream, convert::ticket_error(session, ticket, error));
                    }
                }
            }
            Op::Cancel(cancel) => {
                self.submit(stream, cancel.session, cancel.ticket, convert::cancel_command(&cancel));
            }
            Op::Release(release) => {
                self.submit(stream, release.session, release.ticket, convert::release_command(&release));
            }
            Op::Close(close) => {
                let session = SessionId::new(close.session);
                self.submit(stream, close.session, 0, Command::Close { session });
            }
        }
    }

    fn submit(&mut self, stream: StreamId, session: u64, ticket: u64, command: Command) {
        let id = SessionId::new(session);
        if self.streams.is_attached(stream, id) {
            self.commit(command, Origin::Session { session: id, ticket });
        } else {
            self.streams.push(stream, convert::ticket_error(session, ticket, not_attached()));
        }
    }

    fn resume(&mut self, stream: StreamId, resume: &v1::ResumeSession) {
        let session = SessionId::new(resume.session);
        let view =
            convert::secret(&resume.secret).ok().and_then(|secret| self.table.resume(session, &secret));
        match view {
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
        }
    }

    fn renew(&mut self, stream: StreamId, renew: &v1::RenewSessions) {
        let ttl = (renew.ttl_ms > 0).then(|| convert::session_ttl(renew.ttl_ms)).transpose();
        let sessions = renew.sessions.iter().map(|session| SessionId::new(*session));
        let (ours, others): (Vec<SessionId>, Vec<SessionId>) =
            sessions.partition(|session| self.streams.is_attached(stream, *session));
        match ttl {
            Ok(ttl) => {
                let number = RenewalNumber::new(renew.number);
                let renewals = ours.into_iter().map(|session| Renewal { session, number, ttl }).collect();
                self.apply(Batch { renewals, ..Batch::new(0) }, Vec::new());
            }
            Err(rejection) => ours
                .into_iter()
                .for_each(|session| self.streams.push(stream, convert::renewal_refused(session, &rejection))),
        }
        for session in others {
            let error = SessionError { key: 0, session: session.get(), error: Some(not_attached()) };
            self.streams.push(stream, Event::Error(error));
        }
    }

    fn commit(&mut self, command: Command, origin: Origin) {
        self.apply(Batch { commands: vec![command], ..Batch::new(0) }, vec![origin]);
    }

    fn apply(&mut self, batch: Batch, origins: Vec<Origin>) {
        self.stamp += 1;
        self.streams.expect(self.stamp, origins);
        let mut outputs: Vec<Output> = Vec::new();
        self.table.begin(batch).expect("rules that it knows");
        while !self.table.step(usize::MAX, &mut outputs) {}
        self.streams.deliver(self.stamp, outputs);
    }
}
