//! The lock table behind session streams, without a log: what a client sees of a leader, on nobody's clock and in nobody's
//! threads. For suites that try the client in thousands of schedules.

use std::sync::Arc;

use lock_table::{
    Batch, Command, Limits, LockTable, Output, Renewal, RenewalNumber, SessionId, Settings, Token, Ttl,
};
use raftlock_proto::v1::{OpError, SessionRequest, SessionResponse};

use crate::outbox::Outbox;
use crate::service::session::{self, Leader};
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
            if let Some((resume, secret)) = session::take_op(self, stream.id, op) {
                session::answer_resume(&self.table, &self.streams, stream.id, &resume, &secret);
            }
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

impl Leader for Desk {
    fn streams(&self) -> &Streams {
        &self.streams
    }

    fn submit(&mut self, command: Command, origin: Origin) -> Result<(), OpError> {
        self.commit(command, origin);
        Ok(())
    }

    fn renew(&mut self, sessions: Vec<SessionId>, number: RenewalNumber, ttl: Option<Ttl>) {
        let renewals = sessions.into_iter().map(|session| Renewal { session, number, ttl }).collect();
        self.apply(Batch { renewals, ..Batch::new(0) }, Vec::new());
    }
}
