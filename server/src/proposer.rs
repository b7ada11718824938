//! From many commands to few log entries: everything that is queued becomes one batch, with its time.
//!
//! A node proposes only while it is in office (see [`Office`]). A batch is made for one office and never proposed
//! under another, nor twice: what openraft refused before it appended it goes back into the queue, and into a batch
//! that is closed anew, with a time of its own. While a batch is on its way to the quorum's disks the next one gathers; there is no timer to wait
//! for, except that renewals alone may wait a little for company.
//!
//! Invariants:
//! - All renewals that had arrived when a batch was closed are in it, or the batch says that they are not. `dt` is
//!   read after the batch was closed, here, by the task that takes renewals off the queue. So time never moves while
//!   a renewal lies unread.
//! - Whoever waits is registered before the batch is proposed, and learns exactly one of: its outcome, *not
//!   proposed*, *unknown*.
//! - *Not proposed* is said only of what openraft refused before appending it.
//! - Commands of one caller stay in their order, also when batches were refused.
//!
//! Nothing here waits for a quorum without end: a leader that hears from none leaves its office (see `raft/touch`),
//! and then everybody is answered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lock_table::{
    BATCH_BYTES_MAX, Batch, Command, Renewal, RenewalNumber, SEAL_BYTES_MAX, SessionId, Settings, Token, Ttl,
};
use raftlock_proto::v1;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, LeaderClock, TICK};
use crate::raft::{Office, ProposeError, RaftHandle, random_u64};
use crate::room::DiskRoom;
use crate::streams::{CallAnswer, Origin, Streams};

/// Commands that may wait to be proposed: some seconds of full load. Beyond it a caller is better told to wait.
pub const QUEUE_COMMANDS_MAX: usize = 65_536;

/// Bytes of commands that may wait, and the one that goes beyond it.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Batches on their way at once: one on the disks, one on the way there. Deeper pipelines make smaller batches.
const BATCHES_IN_FLIGHT_MAX: usize = 2;

/// How long renewals wait for company: under half of the 100 ms after which a client with the shortest lease begins
/// to doubt the server, and long enough to carry thousands of sessions in one entry.
const RENEWAL_LINGER: Duration = Duration::from_millis(40);

/// How often the node renews the unary waiters that somebody here still waits for: a third of their lease of 10 s.
const PARKED_RENEWAL: Duration = Duration::from_secs(3);

/// Why a command was not taken. It was not proposed and never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// This node does not lead.
    NotLeader,
    /// Too much is queued.
    Full,
    /// This node's disk is low, and the command would need more of it.
    DiskLow,
}

/// The way into the log.
#[derive(Clone, Debug)]
pub struct Proposer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
    /// Batches closed and not settled. Raised under the queue's lock only, so that none is after [`Proposer::pause`].
    on_their_way: watch::Sender<usize>,
    stalls: AtomicU64,
    counters: Counters,
    room: Arc<DiskRoom>,
}

/// What was proposed since the node's start. Times are sums, in microseconds.
#[derive(Debug, Default)]
struct Counters {
    batches: AtomicU64,
    commands: AtomicU64,
    queued_us: AtomicU64,
    renewals: AtomicU64,
    settled: AtomicU64,
    settled_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    open: bool,
    paused: bool,
    commands: VecDeque<Queued>,
    /// The commands as a batch has them, in the same order, behind so many bytes that are taken already.
    encoded: Vec<u8>,
    taken_bytes: usize,
    /// At most one a session: the newest covers the older ones.
    renewals: BTreeMap<SessionId, (RenewalNumber, Option<Ttl>)>,
}

#[derive(Debug)]
struct Queued {
    /// Bytes of its encoded command.
    len: usize,
    origin: Origin,
    since: Instant,
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
    /// A proposer that takes nothing until its node is in office, and nothing new while `room` is low.
    pub fn new(room: Arc<DiskRoom>) -> Self {
        Proposer(Arc::new(Shared {
            queue: Mutex::default(),
            wake: Notify::new(),
            on_their_way: watch::Sender::new(0),
            stalls: AtomicU64::new(0),
            counters: Counters::default(),
            room,
        }))
    }

    /// Queues a command. `origin` learns what becomes of it, unless it is not taken. A unary call that is given up
    /// before its command went into a batch is dropped, not proposed.
    pub fn submit(&self, command: Command, origin: Origin) -> Result<(), NotTaken> {
        let since = Instant::now();
        let mut queue = self.0.lock();
        if !queue.open {
            return Err(NotTaken::NotLeader);
        }
        if self.0.room.is_low() && takes_room(&command) {
            return Err(NotTaken::DiskLow);
        }
        if queue.commands.len() >= QUEUE_COMMANDS_MAX
            || queue.encoded.len() - queue.taken_bytes >= QUEUE_BYTES_MAX
        {
            return Err(NotTaken::Full);
        }
        let before = queue.encoded.len();
        command.encode_into(&mut queue.encoded);
        let len = queue.encoded.len() - before;
        queue.commands.push_back(Queued { len, origin, since });
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

    /// Stops proposing: the node is about to hand its office over. What is queued waits for the end of the office, or
    /// for [`Proposer::resume`]. Resolves when nothing is on its way any more; without a quorum that lasts as long as the office.
    ///
    /// Cancel safe: it stays paused.
    pub async fn pause(&self) {
        self.0.lock().paused = true;
        let mut on_their_way = self.0.on_their_way.subscribe();
        let _ = on_their_way.wait_for(|count| *count == 0).await;
    }

    /// Hands the leadership to another voter, to `to` if it is named, and goes on if it came to nothing. What is on its
    /// way is settled first; each step takes at most `limit`.
    pub async fn hand_over(&self, raft: &RaftHandle, to: Option<u64>, limit: Duration) {
        // Without a quorum it is not settled, and the office ends anyway.
        let _ = tokio::time::timeout(limit, self.pause()).await;
        raft.hand_over(to, limit).await;
        self.resume();
    }

    /// Proposes again, after a hand-over that was not followed by a stop.
    fn resume(&self) {
        self.0.lock().paused = false;
        self.0.wake.notify_one();
    }

    /// Adds what was proposed since the node's start.
    pub fn count(&self, into: &mut v1::Counters) {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        into.batches = read(&counters.batches);
        into.commands = read(&counters.commands);
        into.queued_us = read(&counters.queued_us);
        into.renewals = read(&counters.renewals);
        into.batches_on_their_way = *self.0.on_their_way.borrow() as u64;
        into.settled_batches = read(&counters.settled);
        into.settled_us = read(&counters.settled_us);
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

/// Whether a command may leave more to keep than there was. What renews, ends or gives back is served on a low disk
/// too.
fn takes_room(command: &Command) -> bool {
    match command {
        Command::Open { .. } | Command::Acquire { .. } | Command::UnaryLock { .. } => true,
        Command::Configure { .. }
        | Command::SetSettings { .. }
        | Command::Close { .. }
        | Command::Cancel { .. }
        | Command::Release { .. }
        | Command::UnaryUnlock { .. }
        | Command::UnaryRenew { .. } => false,
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
        self.on_their_way.send_replace(0);
        for queued in queue.commands {
            not_proposed(queued.origin);
        }
        streams.leave_office();
    }

    /// What goes into the next batch, in order; `None` while nothing may be proposed. `complete` says whether all
    /// renewals fit.
    fn take(&self) -> Option<Taken> {
        const ROOM: usize = BATCH_BYTES_MAX - SEAL_BYTES_MAX;
        let mut taken = Taken { complete: true, ..Taken::default() };
        let now = Instant::now();
        let mut queue = self.lock();
        if queue.paused {
            return None;
        }
        self.on_their_way.send_modify(|count| *count += 1);
        while let Some(entry) = queue.renewals.first_entry() {
            let (number, ttl) = *entry.get();
            let before = taken.content.len();
            Renewal { session: *entry.key(), number, ttl }.encode_into(&mut taken.content);
            if taken.content.len() > ROOM {
                taken.content.truncate(before);
                taken.complete = false;
                self.counters.note(&taken);
                return Some(taken);
            }
            entry.remove();
            taken.renewals += 1;
        }
        let mut passed = queue.taken_bytes;
        while let Some(queued) = queue.commands.pop_front() {
            let end = passed + queued.len;
            if taken.content.len() + queued.len > ROOM {
                queue.commands.push_front(queued);
                break;
            }
            let command = passed..end;
            passed = end;
            if matches!(&queued.origin, Origin::Call(caller) if caller.answer.is_closed()) {
                continue; // its deadline passed, or its client left: not proposed
            }
            taken.content.extend_from_slice(&queue.encoded[command]);
            taken.waited += now - queued.since;
            taken.origins.push(queued.origin);
        }
        queue.taken_bytes = passed;
        // Not each time, or a long queue would be moved for every batch.
        if passed >= queue.encoded.len() / 2 {
            queue.encoded.drain(..passed);
            queue.taken_bytes = 0;
        }
        drop(queue);
        self.counters.note(&taken);
        Some(taken)
    }

    /// Puts in front what was refused before it was proposed, or comes before all others. Of several batches the newest
    /// comes first.
    fn put_back(&self, batch: Batch, origins: Vec<Origin>) {
        let mut queue = self.lock();
        for Renewal { session, number, ttl } in batch.renewals {
            // What is queued came later than what goes back.
            let newest = queue.renewals.entry(session).or_insert((number, ttl));
            newest.1 = newest.1.or(ttl);
        }
        let since = Instant::now();
        let (mut encoded, mut queued) = (Vec::new(), Vec::new());
        for (command, origin) in batch.commands.iter().zip(origins) {
            let before = encoded.len();
            command.encode_into(&mut encoded);
            queued.push(Queued { len: encoded.len() - before, origin, since });
        }
        let taken_bytes = std::mem::take(&mut queue.taken_bytes);
        queue.encoded.splice(..taken_bytes, encoded);
        queued.into_iter().rev().for_each(|queued| queue.commands.push_front(queued));
    }

    /// What waits to be proposed; `None` while nothing may be.
    fn waiting(&self) -> Option<Waiting> {
        let queue = self.lock();
        let waiting = Waiting { commands: !queue.commands.is_empty(), renewals: !queue.renewals.is_empty() };
        (!queue.paused).then_some(waiting)
    }
}

impl Counters {
    fn note(&self, taken: &Taken) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.commands.fetch_add(taken.origins.len() as u64, Ordering::Relaxed);
        self.queued_us.fetch_add(taken.waited.as_micros() as u64, Ordering::Relaxed);
        self.renewals.fetch_add(taken.renewals, Ordering::Relaxed);
    }

    fn settled(&self, took: Duration) {
        self.settled.fetch_add(1, Ordering::Relaxed);
        self.settled_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

/// What a batch is made of.
#[derive(Default)]
struct Taken {
    /// Renewals, then commands, as [`Batch::seal`] takes them.
    content: Vec<u8>,
    renewals: u64,
    /// Whether all renewals are in it.
    complete: bool,
    /// Of the commands, in their order.
    origins: Vec<Origin>,
    /// How long all commands together lay in the queue.
    waited: Duration,
}

struct Waiting {
    commands: bool,
    renewals: bool,
}

/// What was only queued when the office ended. A session's stream is told that its way moved, and its client resumes
/// and repeats.
fn not_proposed(origin: Origin) {
    if let Origin::Call(caller) = origin {
        let _ = caller.answer.send(CallAnswer::NotProposed);
    }
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
    /// Counted up over the batches of this office.
    order: u64,
    stamp: u64,
    bytes: Bytes,
    result: Result<(), ProposeError>,
    took: Duration,
}

/// Batches that openraft refused for want of a quorum. They go back into the queue together, once nothing else is on
/// its way: one by one they would change places. Until then no batch is closed, so none overtakes them.
#[derive(Default)]
struct Refused {
    /// Nothing was taken lately; tried again at each tick.
    lately: bool,
    batches: BTreeMap<u64, (Batch, Vec<Origin>)>,
}

impl Refused {
    fn put_back(&mut self, shared: &Shared) {
        for (batch, origins) in std::mem::take(&mut self.batches).into_values().rev() {
            shared.put_back(batch, origins);
        }
    }
}

impl Term<'_> {
    async fn serve(mut self, clock: &Arc<dyn Clock>, first: &FirstEntry, stop: &CancellationToken) {
        if self.raft.machine().glance(|table| table.settings().is_none()) {
            let start = first.token_floor.max(clock.unix_seconds() << 20);
            let settings = first.settings.clone();
            let command = Command::Configure { settings, token_start: Token::new(start) };
            // Before any other, so that no command finds a table without limits.
            self.shared.put_back(Batch { commands: vec![command], ..Batch::new(0) }, vec![Origin::Node]);
        }
        let mut refused = Refused::default();
        self.propose_all(&mut refused, stop).await;
        // So that it is told: not proposed.
        refused.put_back(self.shared);
    }

    /// Until the office ends.
    async fn propose_all(&mut self, refused: &mut Refused, stop: &CancellationToken) {
        let mut standing = self.raft.standing();
        let mut in_flight = FuturesUnordered::new();
        let mut tick = ticker(TICK);
        let mut parked = ticker(PARKED_RENEWAL);
        let mut linger: Option<Instant> = None;
        let mut next_stamp = random_u64();
        let mut order = 0;
        let mut parked_number = 0;
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
                    self.shared.on_their_way.send_modify(|count| *count -= 1);
                    if self.settle(proposed, refused) == Settled::OutOfOffice {
                        return;
                    }
                    if in_flight.is_empty() {
                        refused.put_back(self.shared);
                    }
                }
                _ = tick.tick() => tick_due = true,
                _ = parked.tick() => {
                    parked_number += 1;
                    self.renew_parked(RenewalNumber::new(parked_number));
                }
                () = sleep_until(linger), if !refused.lately && in_flight.len() < BATCHES_IN_FLIGHT_MAX => {}
                () = self.shared.wake.notified() => {}
            }
            if in_flight.len() >= BATCHES_IN_FLIGHT_MAX || !refused.batches.is_empty() {
                continue;
            }
            if refused.lately && !tick_due {
                continue;
            }
            let Some(waiting) = self.shared.waiting() else {
                linger = None; // or its end would come again and again
                continue;
            };
            let (time_matters, more_due) = self.raft.machine().glance(|t| (t.has_sessions(), t.more_due()));
            let linger_over = match (waiting.renewals, linger) {
                (false, _) => false,
                (true, None) => {
                    linger = Some(Instant::now() + RENEWAL_LINGER);
                    false
                }
                (true, Some(until)) => until <= Instant::now(),
            };
            let due = waiting.commands
                || linger_over
                || (more_due && in_flight.is_empty())
                || (tick_due && time_matters);
            if due {
                linger = None;
                tick.reset();
                next_stamp = next_stamp.wrapping_add(1);
                order += 1;
                let Some(batch) = self.close_batch(next_stamp, time_matters) else { continue };
                in_flight.push(self.propose(order, next_stamp, batch));
                let stalls = self.stalls_before + self.clock.stalls();
                self.shared.stalls.store(stalls, Ordering::Relaxed);
            }
        }
    }

    /// Closes a batch, reads the clock, and registers who waits.
    fn close_batch(&mut self, stamp: u64, time_matters: bool) -> Option<Bytes> {
        let taken = self.shared.take()?;
        let ticking = std::mem::replace(&mut self.ticking, time_matters);
        let dt_ms = self.clock.close_batch(ticking);
        self.streams.expect(stamp, taken.origins);
        let dt_ms = if taken.complete { dt_ms } else { 0 };
        Some(Batch::seal(stamp, dt_ms, taken.complete, &taken.content).into())
    }

    fn propose(&self, order: u64, stamp: u64, bytes: Bytes) -> impl Future<Output = Proposed> + use<> {
        let (raft, office, began) = (self.raft.clone(), self.office, Instant::now());
        async move {
            let result = raft.propose(office, bytes.clone()).await;
            Proposed { order, stamp, bytes, result, took: began.elapsed() }
        }
    }

    fn settle(&self, proposed: Proposed, refused: &mut Refused) -> Settled {
        match proposed.result {
            Ok(()) => {
                self.shared.counters.settled(proposed.took);
                refused.lately = false;
            }
            Err(ProposeError::Paused) => {
                refused.lately = true;
                let batch = Batch::decode(&proposed.bytes).expect("this node encoded it just now");
                let origins = self.streams.take_back(proposed.stamp);
                refused.batches.insert(proposed.order, (batch, origins));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn close(session: u64) -> Command {
        Command::Close { session: SessionId::new(session) }
    }

    fn sessions(commands: &[Command]) -> Vec<u64> {
        let of = |command: &Command| match command {
            Command::Close { session } => session.get(),
            other => panic!("{other:?}"),
        };
        commands.iter().map(of).collect()
    }

    /// A proposer in office.
    fn in_office() -> Proposer {
        let proposer = Proposer::new(Arc::default());
        proposer.0.lock().open = true;
        proposer
    }

    fn submit(proposer: &Proposer, session: u64) {
        proposer.submit(close(session), Origin::Node).expect("taken");
    }

    fn renew(proposer: &Proposer, number: u64, ttl: Option<u64>) {
        proposer.renew([SessionId::new(1)], RenewalNumber::new(number), ttl.map(Ttl::new));
    }

    fn batch(proposer: &Proposer) -> (Batch, Vec<Origin>) {
        let taken = proposer.0.take().expect("it is not paused");
        let sealed = Batch::seal(0, 150, taken.complete, &taken.content);
        (Batch::decode(&sealed).expect("sealed just now"), taken.origins)
    }

    #[test]
    fn batches_that_were_refused_go_back_in_their_order() {
        let proposer = in_office();
        submit(&proposer, 1);
        submit(&proposer, 2);
        renew(&proposer, 1, Some(5_000));
        let first = batch(&proposer);
        submit(&proposer, 3);
        renew(&proposer, 2, Some(9_000));
        let second = batch(&proposer);
        submit(&proposer, 4);
        let mut refused = Refused::default();
        // However their refusals came in.
        refused.batches.insert(2, second);
        refused.batches.insert(1, first);
        refused.put_back(&proposer.0);
        assert!(refused.batches.is_empty());
        let (again, origins) = batch(&proposer);
        assert_eq!(sessions(&again.commands), [1, 2, 3, 4]);
        assert_eq!(origins.len(), 4);
        let newest =
            Renewal { session: SessionId::new(1), number: RenewalNumber::new(2), ttl: Some(Ttl::new(9_000)) };
        assert_eq!(again.renewals, [newest], "the newest covers the older ones");
        assert!(proposer.0.lock().encoded.is_empty());
    }

    #[test]
    fn a_ttl_that_was_asked_for_is_not_lost_behind_a_plain_renewal() {
        let proposer = in_office();
        renew(&proposer, 1, Some(5_000));
        let (first, origins) = batch(&proposer);
        renew(&proposer, 2, None);
        proposer.0.put_back(first, origins);
        let (again, _) = batch(&proposer);
        assert_eq!((again.renewals[0].number.get(), again.renewals[0].ttl), (2, Some(Ttl::new(5_000))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_over_when_nothing_is_on_its_way() {
        let proposer = in_office();
        submit(&proposer, 1);
        let _batch = batch(&proposer);
        let paused = tokio::time::timeout(Duration::from_secs(1), proposer.pause()).await;
        assert!(paused.is_err(), "a batch is on its way");
        submit(&proposer, 2);
        assert!(proposer.0.take().is_none(), "no batch is closed any more");
        proposer.0.on_their_way.send_modify(|count| *count -= 1);
        proposer.pause().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_office_ends_a_pause_and_answers_what_was_queued() {
        let proposer = in_office();
        submit(&proposer, 1);
        let _batch = batch(&proposer);
        let (answer, outcome) = tokio::sync::oneshot::channel();
        let caller = crate::streams::Caller { answer, waits: false };
        proposer.submit(close(2), Origin::Call(caller)).expect("taken");
        let streams = Streams::default();
        let (_, ()) = tokio::join!(proposer.pause(), async { proposer.0.close(&streams) });
        assert_eq!(outcome.await, Ok(CallAnswer::NotProposed));
    }
}
