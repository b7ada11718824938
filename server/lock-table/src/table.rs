//! The lock table: what is replicated, and how a batch goes through it.
//!
//! [`LockTable::begin`] takes a batch, [`LockTable::step`] does a bounded part of it. This file has
//! the order inside a batch; what each command does is in `sessions.rs`, `tickets.rs` and
//! `unary.rs`, who gets a lock in `grant.rs`.

use std::collections::BTreeMap;
use std::iter::Enumerate;
use std::vec;

use crate::command::{Batch, Command, RULE_VERSION, Renewal};
use crate::cow::CowMap;
use crate::deadlines::Deadlines;
use crate::limits::Settings;
use crate::live::Live;
use crate::lock::Lock;
use crate::outcome::{Outcome, Output, Rejection};
use crate::planted;
use crate::session::{Ask, Finished, Names, Request, Session};
use crate::snapshot::Snapshot;
use crate::text::Name;
use crate::trail::Trail;
use crate::types::{ClusterTime, Secret, Sequence, SessionId, Ticket, Token};
use crate::unary::{UnaryIndex, UnaryKey};
use crate::work::Work;

/// Most sessions and waits that end in one batch. The rest are due in the next, so that renewals on
/// their way get in between.
const DUE_PER_BATCH: usize = 4096;

/// All locks of a cluster, who holds them and who waits.
///
/// - A batch is begun, then stepped until it is done. Between steps nothing should be read: the
///   outcome of half a batch is nobody's state. A snapshot may be taken further at any point.
/// - The same batches, in whatever steps, give equal tables and equal outputs on every machine.
/// - The header, the sessions, the requests and the finished tickets are the state. Everything else
///   is derived from them and rebuilt when a snapshot is loaded.
#[derive(Debug, Default)]
pub struct LockTable {
    pub(crate) header: Header,
    pub(crate) sessions: CowMap<SessionId, Box<Session>>,
    pub(crate) requests: CowMap<Sequence, Box<Request>>,
    pub(crate) finished: CowMap<(SessionId, Ticket), Finished>,

    // Derived.
    pub(crate) locks: BTreeMap<Name, Lock>,
    pub(crate) live: Live,
    pub(crate) secrets: BTreeMap<Secret, SessionId>,
    pub(crate) unary: UnaryIndex,
    pub(crate) deadlines: Deadlines,
    pub(crate) waiters: u64,

    // Of the batch in progress.
    running: Option<Running>,
    pub(crate) work: Work,

    // Of the snapshot in progress; no part of the state.
    pub(crate) snapshot: Option<Snapshot>,
}

/// The numbers of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Header {
    pub(crate) now: ClusterTime,
    /// `None` until the first command of the cluster.
    pub(crate) settings: Option<Settings>,
    pub(crate) token_last: Token,
    pub(crate) session_last: SessionId,
    pub(crate) sequence_last: Sequence,
    pub(crate) trail: Trail,
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Names that are held or waited for.
    pub locks: u64,
    /// Requests that hold something.
    pub held: u64,
    /// Sessions, unary ones included.
    pub sessions: u64,
    /// Requests that wait.
    pub waiters: u64,
}

/// Why a batch was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// The batch was made under rules that this code does not know: stop the node and install the
    /// newer version.
    #[error("the batch needs rule version {found}, this is {RULE_VERSION}: install a newer version")]
    UnknownRuleVersion {
        /// The version of the batch.
        found: u32,
    },
    /// The batch before is not finished.
    #[error(transparent)]
    InProgress(#[from] BatchInProgress),
}

/// The last batch was begun and not stepped to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a batch is still in progress: step it to its end first")]
pub struct BatchInProgress;

/// What is left of a batch.
#[derive(Debug)]
struct Running {
    renewals: vec::IntoIter<Renewal>,
    due_left: usize,
    commands: Enumerate<vec::IntoIter<Command>>,
}

impl LockTable {
    /// A table without settings: it refuses every command but [`Command::Configure`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a batch and lets its time pass. [`step`](Self::step) does the rest.
    ///
    /// Fails, without effect, if this code does not know the rules the batch was made for or the
    /// batch before is not finished.
    pub fn begin(&mut self, batch: Batch) -> Result<(), BeginError> {
        if batch.rule_version != RULE_VERSION {
            return Err(BeginError::UnknownRuleVersion { found: batch.rule_version });
        }
        if self.in_batch() {
            return Err(BatchInProgress.into());
        }
        // With renewals left outside, time must not move past the leases they are for, and nobody
        // may be removed.
        let (dt_ms, due_left) = if batch.renewals_complete { (batch.dt_ms, DUE_PER_BATCH) } else { (0, 0) };
        self.header.now = match planted::is("time-restarts") && dt_ms == 0 {
            true => ClusterTime::default(),
            false => self.header.now.after(dt_ms),
        };
        self.running = Some(Running {
            renewals: batch.renewals.into_iter(),
            due_left,
            commands: batch.commands.into_iter().enumerate(),
        });
        Ok(())
    }

    /// Does a part of the batch: at least one unit of work, and no more after `budget` of them. A
    /// unit is about one look at one lock. Returns `true` when the batch is done.
    ///
    /// The outputs are in a fixed order: that in which things happened.
    pub fn step(&mut self, budget: usize, out: &mut Vec<Output>) -> bool {
        let (ran, before) = (self.in_batch(), out.len());
        let mut spent = 0;
        while let Some(cost) = self.unit(out) {
            spent += cost;
            if spent >= budget {
                break;
            }
        }
        let is_done = !self.in_batch();
        self.lengthen_trail(&out[before..], ran && is_done);
        is_done
    }

    /// Whether a batch is begun and not done.
    pub fn in_batch(&self) -> bool {
        self.running.is_some()
    }

    /// Whether more sessions and waits are due than one batch may end: another batch should follow
    /// at once.
    pub fn more_due(&self) -> bool {
        self.deadlines.first_due(self.header.now).is_some()
    }

    /// Cluster time.
    pub fn now(&self) -> ClusterTime {
        self.header.now
    }

    /// What the cluster agreed on; `None` before the first command of the cluster.
    pub fn settings(&self) -> Option<&Settings> {
        self.header.settings.as_ref()
    }

    /// Whether any session lives, and so whether time has to pass.
    pub fn has_sessions(&self) -> bool {
        self.sessions.len() > 0
    }

    /// The token of the newest grant.
    pub fn last_token(&self) -> Token {
        self.header.token_last
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            locks: self.locks.len() as u64,
            held: self.requests.len() as u64 - self.waiters,
            sessions: self.sessions.len() as u64,
            waiters: self.waiters,
        }
    }

    /// Does the next thing of the batch and says what it cost. Whatever a thing sets off comes
    /// before the next one.
    fn unit(&mut self, out: &mut Vec<Output>) -> Option<usize> {
        if let Some(cost) = self.work_unit(out) {
            return Some(cost);
        }
        let running = self.running.as_mut()?;
        if let Some(renewal) = running.renewals.next() {
            self.renew(renewal, out);
            return Some(1);
        }
        if running.due_left > 0 {
            if let Some(due) = self.deadlines.first_due(self.header.now) {
                running.due_left -= 1;
                self.end_due(due, out);
                return Some(1);
            }
            running.due_left = 0;
        }
        if let Some((command, content)) = running.commands.next() {
            let cost = cost(&content);
            let outcome = self.execute(content).unwrap_or_else(Outcome::Rejected);
            out.push(Output::Outcome { command, outcome });
            return Some(cost);
        }
        self.running = None;
        None
    }

    fn execute(&mut self, command: Command) -> Result<Outcome, Rejection> {
        if self.header.settings.is_none() && !matches!(command, Command::Configure { .. }) {
            return Err(Rejection::NotConfigured);
        }
        match command {
            Command::Configure { settings, token_start } => self.configure(settings, token_start),
            Command::SetSettings { settings } => self.set_settings(settings),
            Command::Open { secret, owner, ttl, number } => self.open(secret, owner, ttl, number),
            Command::Close { session } => Ok(self.close(session)),
            Command::Acquire { session, ticket, names, mode, wait, metadata, acked } => {
                let ask = Ask { names: Names::new(names)?, mode, metadata };
                self.acquire(session, ticket, acked, ask, wait)
            }
            Command::Cancel { session, ticket, acked } => self.cancel(session, ticket, acked),
            Command::Release { session, ticket, token, acked } => {
                Ok(self.release(session, ticket, token, acked))
            }
            Command::UnaryLock { owner, name, request_id, ttl, wait_ms, mode, metadata } => {
                let ask = Ask { names: Names::One(name.clone()), mode, metadata };
                self.unary_lock(UnaryKey { name, owner, request_id }, ask, ttl, wait_ms)
            }
            Command::UnaryUnlock { owner, name, request_id, token } => {
                self.unary_unlock(owner, name, request_id, token)
            }
            Command::UnaryRenew { owner, name, token, ttl } => self.unary_renew(owner, name, token, ttl),
        }
    }
}

/// In units of [`LockTable::step`].
fn cost(command: &Command) -> usize {
    match command {
        Command::Acquire { names, .. } => names.len().max(1),
        _ => 1,
    }
}

/// Two tables are equal if they answer everything alike; a snapshot in progress does not count.
impl PartialEq for LockTable {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header
            && self.sessions == other.sessions
            && self.requests == other.requests
            && self.finished == other.finished
            && self.locks == other.locks
            && self.live == other.live
            && self.secrets == other.secrets
            && self.unary == other.unary
            && self.deadlines == other.deadlines
            && self.waiters == other.waiters
            && self.in_batch() == other.in_batch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Metadata, Mode, RenewalNumber, Secret, Ttl, Wait};
    use crate::{EndCause, Event, Limits, Owner};

    fn configured() -> LockTable {
        let settings = Settings { limits: Limits::standard(), voters: 3 };
        let mut table = LockTable::new();
        run(&mut table, vec![Command::Configure { settings, token_start: Token::new(0) }]);
        table
    }

    fn run(table: &mut LockTable, commands: Vec<Command>) {
        table.begin(Batch { commands, ..Batch::new(0) }).expect("known rules");
        while !table.step(usize::MAX, &mut Vec::new()) {}
    }

    #[test]
    fn a_batch_of_unknown_rules_has_no_effect() {
        let mut table = configured();
        let batch = Batch { rule_version: RULE_VERSION + 1, ..Batch::new(5) };
        assert!(crate::Batch::decode(&batch.encode()).is_err());
        let refused = table.begin(batch);
        assert_eq!(refused, Err(BeginError::UnknownRuleVersion { found: RULE_VERSION + 1 }));
        assert!(table == configured());
    }

    #[test]
    fn a_batch_waits_for_the_one_before() {
        let mut table = configured();
        table.begin(Batch::new(5)).expect("known rules");
        assert_eq!(table.begin(Batch::new(5)), Err(BatchInProgress.into()));
        assert!(table.step(1, &mut Vec::new()));
        assert_eq!(table.now(), ClusterTime::new(5));
    }

    #[test]
    fn the_end_of_a_big_session_is_many_short_steps() {
        const LOCKS: u64 = 5000;
        let mut table = configured();
        let mut commands = vec![Command::Open {
            secret: Secret::new([1; 16]),
            owner: Owner::new("ann").expect("a good owner"),
            ttl: Ttl::new(1000),
            number: RenewalNumber::new(1),
        }];
        commands.extend((1..=LOCKS).map(|number| Command::Acquire {
            session: SessionId::new(1),
            ticket: Ticket::new(number),
            names: [Name::new(&format!("k{number}")).expect("a good name")].into(),
            mode: Mode::Exclusive,
            wait: Wait::None,
            metadata: Metadata::default(),
            acked: Ticket::new(number),
        }));
        run(&mut table, commands);
        assert_eq!(table.counts().held, LOCKS);
        table.begin(Batch::new(1000)).expect("known rules");
        let (mut out, mut steps) = (Vec::new(), 0);
        while !table.step(100, &mut out) {
            steps += 1;
        }
        assert!(steps >= LOCKS / 100, "only {steps} steps");
        let ended = Event::SessionEnded { session: SessionId::new(1), cause: EndCause::Expired };
        assert_eq!(out, [Output::Event(ended)]);
        assert_eq!(table.counts().locks, 0);
    }
}
