//! From many commands to few log entries: everything that is queued becomes one batch, with its time.
//!
//! A node proposes only while it is in office (see [`Office`]). A batch is made for one office and never proposed
//! under another. While a batch is on its way to the quorum's disks the next one gathers; there is no timer to wait
//! for, except that renewals alone may wait a little for company.
//!
//! Invariants:
//! - All renewals that had arrived when a batch was closed are in it, or the batch says that they are not. `dt` is
//!   read after the batch was closed, here, by the task that takes renewals off the queue. So time never moves while
//!   a renewal lies unread.
//! - Whoever waits is registered before the batch is proposed, and learns exactly one of: its outcome, *not
//!   proposed*, *unknown*.
//! - *Not proposed* is said only of what openraft refused before appending it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lock_table::{BATCH_BYTES_MAX, Batch, Command, Renewal, RenewalNumber, SessionId, Settings, Token, Ttl};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, LeaderClock, TICK};
use crate::raft::{Office, ProposeError, RaftHandle, random_u64};
use crate::streams::{CallAnswer, Origin, Streams};

/// Commands that may wait to be proposed: some seconds of full load. Beyond it a caller is better told to wait.
pub const QUEUE_COMMANDS_MAX: usize = 65_536;

/// Bytes of commands that may wait.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Batches on their way at once: one on the disks, one on the way there. Deeper pipelines make smaller batches.
const BATCHES_IN_FLIGHT_MAX: usize = 2;

/// How long renewals wait for company: under half of the 100 ms after which a client with the shortest lease begins
/// to doubt the server, and long enough to carry thousands of sessions in one entry.
const RENEWAL_LINGER: Duration = Duration::from_millis(40);

/// After this long without a quorum, what waits to be proposed again is given up: its callers have other nodes to
/// try.
const PAUSE_PATIENCE: Duration = Duration::from_secs(5);

/// How often the node renews the unary waiters that somebody here still waits for: a third of their lease of 10 s.
const PARKED_RENEWAL: Duration = Duration::from_secs(3);

/// Bytes of a batch that are not commands or renewals: format, checksum, stamp, `dt`.
const BATCH_OVERHEAD_BYTES: usize = 64;

/// Why a command was not taken. It was not proposed and never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// This node does not lead.
    NotLeader,
    /// Too much is queued.
    Full,
}

/// The way into the log.
#[derive(Clone, Debug)]
pub struct Proposer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
    stalls: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    open: bool,
    paused: bool,
    commands: VecDeque<Queued>,
    bytes: usize,
    /// At most one a session: the newest covers the older ones.
    renewals: BTreeMap<SessionId, (RenewalNumber, Option<Ttl>)>,
}

#[derive(Debug)]
struct Queued {
    command: Command,
    len: usize,
    origin: Origin,
}

/// What the first leader of a cluster proposes before anything else.
#[derive(Clone, Debug)]
pub struct FirstEntry {
    /// Limits and the number of voters.
    pub settings: Settings,
    /// The operator's lower bound for the first fencing token.
    pub token_floor: u64,
}

impl Proposer {
    /// A proposer that takes nothing until its node is in office.
    pub fn new() -> Self {
        Proposer(Arc::new(Shared { queue: Mutex::default(), wake: Notify::new(), stalls: AtomicU64::new(0) }))
    }

    /// Queues a command. `origin` learns what becomes of it, unless it is not taken. A unary call that is given up
    /// before its command went into a batch is dropped, not proposed.
    pub fn submit(&self, command: Command, origin: Origin) -> Result<(), NotTaken> {
        let len = command.encoded_len();
        let mut queue = self.0.lock();
        if !queue.open {
            return Err(NotTaken::NotLeader);
        }
        if queue.commands.len() >= QUEUE_COMMANDS_MAX || queue.bytes + len > QUEUE_BYTES_MAX {
            return Err(NotTaken::Full);
        }
        queue.bytes += len;
        queue.commands.push_back(Queued { command, len, origin });
        drop(queue);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Queues renewals. They need no bound of their own: there is at most one a session, and sessions are bounded by
    /// the cluster's limits.
    pub fn renew(
        &self,
        sessions: impl IntoIterator<Item = SessionId>,
        number: RenewalNumber,
        ttl: Option<Ttl>,
    ) {
        let mut queue = self.0.lock();
        if !queue.open {
            return;
        }
        for session in sessions {
            let newest = queue.renewals.entry(session).or_insert((number, ttl));
            newest.0 = newest.0.max(number);
            newest.1 = ttl.or(newest.1);
        }
        drop(queue);
        self.0.wake.notify_one();
    }

    /// Stops proposing, for good: the node is about to hand its office over. What is queued waits for the end of the
    /// office.
    pub fn pause(&self) {
        self.0.lock().paused = true;
    }

    /// Proposes again, after a hand-over that was not followed by a stop.
    pub fn resume(&self) {
        self.0.lock().paused = false;
        self.0.wake.notify_one();
    }

    /// How often this node, as the leader, came more than three ticks late.
    pub fn stalls(&self) -> u64 {
        self.0.stalls.load(Ordering::Relaxed)
    }

    /// Proposes while this node is in office. Runs until `stop`, or until Raft stops.
    pub async fn run(
        self,
        raft: RaftHandle,
        streams: Arc<Streams>,
        clock: Arc<dyn Clock>,
        first: FirstEntry,
        stop: CancellationToken,
    ) {
        let mut standing = raft.standing();
        loop {
            let next = standing.wait_for(|now| now.office.is_some());
            let office = tokio::select! {
                () = stop.cancelled() => return,
                now = next => match now { Ok(now) => now.office.expect("waited for it"), Err(_) => return },
            };
            tracing::info!(term = office.term(), "this node leads the cluster");
            self.0.lock().open = true;
            let term = Term {
                shared: &self.0,
                raft: &raft,
                streams: &streams,
                office,
                clock: LeaderClock::new(clock.clone()),
                ticking: false,
                stalls_before: self.stalls(),
            };
            term.serve(&clock, &first, &stop).await;
            self.0.close(&streams);
            tracing::info!(term = office.term(), "this node leads no more");
            // openraft may refuse a proposal a moment before it says why.
            let left = standing.wait_for(|now| now.office != Some(office));
            let _ = tokio::time::timeout(TICK, left).await;
        }
    }
}

impl Default for Proposer {
    fn default() -> Self {
        Proposer::new()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Refuses what is queued, and all that comes.
    fn close(&self, streams: &Streams) {
        let queue = {
            let mut queue = self.lock();
            let paused = queue.paused;
            std::mem::replace(&mut *queue, Queue { paused, ..Queue::default() })
        };
        for queued in queue.commands {
            not_proposed(queued.origin);
        }
        streams.leave_office();
    }

    /// What goes into the next batch, in order. `complete` says whether all renewals fit.
    fn take(&self) -> Taken {
        let mut taken =
            Taken { renewals: Vec::new(), complete: true, commands: Vec::new(), origins: Vec::new() };
        let mut room = BATCH_BYTES_MAX - BATCH_OVERHEAD_BYTES;
        let mut queue = self.lock();
        while let Some(entry) = queue.renewals.first_entry() {
            let (number, ttl) = *entry.get();
            let renewal = Renewal { session: *entry.key(), number, ttl };
            let len = renewal.encoded_len();
            if len > room {
                taken.complete = false;
                return taken;
            }
            room -= len;
            entry.remove();
            taken.renewals.push(renewal);
        }
        while let Some(queued) = queue.commands.pop_front() {
            if queued.len > room {
                queue.commands.push_front(queued);
                break;
            }
            queue.bytes -= queued.len;
            if matches!(&queued.origin, Origin::Call(caller) if caller.answer.is_closed()) {
                continue; // its deadline passed, or its client left: not proposed
            }
            room -= queued.len;
            taken.commands.push(queued.command);
            taken.origins.push(queued.origin);
        }
        taken
    }

    /// Puts back, in front, what was refused before it was proposed.
    fn put_back(&self, batch: Batch, origins: Vec<Origin>) {
        let mut queue = self.lock();
        for renewal in batch.renewals {
            let newest = queue.renewals.entry(renewal.session).or_insert((renewal.number, renewal.ttl));
            newest.1 = newest.1.or(renewal.ttl);
        }
        for (command, origin) in batch.commands.into_iter().zip(origins).rev() {
            let len = command.encoded_len();
            queue.bytes += len;
            queue.commands.push_front(Queued { command, len, origin });
        }
    }

    /// What waits to be proposed; `None` while nothing may be.
    fn waiting(&self) -> Option<Waiting> {
        let queue = self.lock();
        let waiting = Waiting { commands: !queue.commands.is_empty(), renewals: !queue.renewals.is_empty() };
        (!queue.paused).then_some(waiting)
    }
}

struct Taken {
    renewals: Vec<Renewal>,
    complete: bool,
    commands: Vec<Command>,
    origins: Vec<Origin>,
}

struct Waiting {
    commands: bool,
    renewals: bool,
}

fn not_proposed(origin: Origin) {
    if let Origin::Call(caller) = origin {
        let _ = caller.answer.send(CallAnswer::NotProposed);
    }
    // A session's stream is told that its way moved, and its client resumes and repeats.
}

/// One office: from the node's own first entry to the loss of leadership.
struct Term<'a> {
    shared: &'a Shared,
    raft: &'a RaftHandle,
    streams: &'a Streams,
    office: Office,
    clock: LeaderClock,
    /// Whether any session lived when the last batch was closed, so that ticks were due since.
    ticking: bool,
    stalls_before: u64,
}

/// What a batch on its way came to.
struct Proposed {
    stamp: u64,
    bytes: Bytes,
    result: Result<(), ProposeError>,
}

impl Term<'_> {
    async fn serve(mut self, clock: &Arc<dyn Clock>, first: &FirstEntry, stop: &CancellationToken) {
        let mut standing = self.raft.standing();
        let mut in_flight = FuturesUnordered::new();
        let mut tick = ticker(TICK);
        let mut parked = ticker(PARKED_RENEWAL);
        let mut paused_at: Option<Instant> = None;
        let mut linger: Option<Instant> = None;
        let mut next_stamp = random_u64();
        let mut parked_number = 0;

        if self.raft.machine().glance(|table| table.settings().is_none()) {
            let start = first.token_floor.max(clock.unix_seconds() << 20);
            let settings = first.settings.clone();
            let command = Command::Configure { settings, token_start: Token::new(start) };
            // A batch of its own, before any other, so that no command finds a table without limits.
            self.shared.lock().commands.push_front(Queued { len: 0, command, origin: Origin::Node });
        }

        loop {
            let mut tick_due = false;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = standing.changed() => {
                    let office = standing.borrow_and_update().office;
                    if changed.is_err() || office != Some(self.office) {
                        return;
                    }
                }
                Some(proposed) = in_flight.next() => {
                    if self.settle(proposed, &mut paused_at) == Settled::OutOfOffice {
                        return;
                    }
                }
                _ = tick.tick() => tick_due = true,
                _ = parked.tick() => {
                    parked_number += 1;
                    self.renew_parked(RenewalNumber::new(parked_number));
                }
                () = sleep_until(linger), if paused_at.is_none() && in_flight.len() < BATCHES_IN_FLIGHT_MAX => {}
                () = self.shared.wake.notified() => {}
            }
            if in_flight.len() >= BATCHES_IN_FLIGHT_MAX {
                continue;
            }
            let now = Instant::now();
            if paused_at.is_some_and(|since| now.duration_since(since) > PAUSE_PATIENCE) {
                self.give_up();
                paused_at = None;
            }
            if paused_at.is_some() && !tick_due {
                continue; // tried again at each tick
            }
            let Some(waiting) = self.shared.waiting() else {
                linger = None; // or its end would come again and again
                continue;
            };
            let (time_matters, more_due) = self.raft.machine().glance(|t| (t.has_sessions(), t.more_due()));
            let linger_over = match (waiting.renewals, linger) {
                (false, _) => false,
                (true, None) => {
                    linger = Some(now + RENEWAL_LINGER);
                    false
                }
                (true, Some(until)) => until <= now,
            };
            let due = waiting.commands
                || linger_over
                || (more_due && in_flight.is_empty())
                || (tick_due && time_matters);
            if due {
                linger = None;
                tick.reset();
                next_stamp = next_stamp.wrapping_add(1);
                let batch = self.close_batch(next_stamp, time_matters);
                in_flight.push(self.propose(batch));
                let stalls = self.stalls_before + self.clock.stalls();
                self.shared.stalls.store(stalls, Ordering::Relaxed);
            }
        }
    }

    /// Closes a batch, reads the clock, and registers who waits.
    fn close_batch(&mut self, stamp: u64, time_matters: bool) -> (u64, Bytes) {
        let taken = self.shared.take();
        let ticking = std::mem::replace(&mut self.ticking, time_matters);
        let dt_ms = self.clock.close_batch(ticking);
        let batch = Batch {
            stamp,
            renewals_complete: taken.complete,
            renewals: taken.renewals,
            commands: taken.commands,
            ..Batch::new(if taken.complete { dt_ms } else { 0 })
        };
        self.streams.expect(stamp, taken.origins);
        (stamp, batch.encode().into())
    }

    fn propose(&self, (stamp, bytes): (u64, Bytes)) -> impl Future<Output = Proposed> + use<> {
        let (raft, office) = (self.raft.clone(), self.office);
        async move {
            let result = raft.propose(office, bytes.clone()).await;
            Proposed { stamp, bytes, result }
        }
    }

    fn settle(&self, proposed: Proposed, paused_at: &mut Option<Instant>) -> Settled {
        match proposed.result {
            Ok(()) => *paused_at = None,
            Err(ProposeError::Paused) => {
                paused_at.get_or_insert_with(Instant::now);
                let batch = Batch::decode(&proposed.bytes).expect("this node encoded it just now");
                self.shared.put_back(batch, self.streams.take_back(proposed.stamp));
            }
            Err(ProposeError::NotLeader) => {
                self.streams.take_back(proposed.stamp).into_iter().for_each(not_proposed);
                return Settled::OutOfOffice;
            }
            // The entry may yet be applied here, and then its outcomes are delivered; if not, leaving office says so.
            Err(ProposeError::Unknown | ProposeError::Stopped(_)) => return Settled::OutOfOffice,
        }
        Settled::InOffice
    }

    /// Answers everybody who waited too long for the quorum: the office may well go on, so nobody else tells them.
    /// The node's own commands stay.
    fn give_up(&self) {
        let given_up: VecDeque<Queued> = {
            let queue = &mut *self.shared.lock();
            let (keep, given_up) =
                queue.commands.drain(..).partition(|queued| matches!(queued.origin, Origin::Node));
            queue.commands = keep;
            queue.bytes = queue.commands.iter().map(|queued| queued.len).sum();
            given_up
        };
        for queued in given_up {
            self.streams.refuse(queued.origin);
        }
    }

    fn renew_parked(&self, number: RenewalNumber) {
        let parked = self.streams.parked_sessions();
        let mut queue = self.shared.lock();
        for session in parked {
            queue.renewals.insert(session, (number, None));
        }
    }
}

#[derive(PartialEq, Eq)]
enum Settled {
    InOffice,
    OutOfOffice,
}

fn ticker(every: Duration) -> Interval {
    let mut ticker = tokio::time::interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
