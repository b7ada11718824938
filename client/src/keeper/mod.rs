//! The keeper: owns every session of a client, renews leases, fails over, and releases what nobody holds any more.
//!
//! It runs on a thread of its own, so a blocked application stops none of that. Callers post commands and await
//! answers; guards look at their lease without it. All that can happen to it is in one `select!` below. It decides
//! nothing about time by itself: leases (`lease.rs`), requests (`tickets.rs`), sessions (`session.rs`) and endpoints
//! (`endpoints.rs`) are handed the time and say what is due.

mod alarms;
mod calls;
mod command;
mod events;
mod links;
mod locks;
mod standby;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::endpoints::{Endpoints, Target};
use crate::error::{CallFailure, Failure};
use crate::guard::LostReason;
use crate::lease::{BootTime, Number};
use crate::seams::{Clock, Dial, Random};
use crate::session::{Now, Session};
use crate::transport::{Answer, Conn, Stream};
use crate::wire::{Attachment, Event, Key, Op, SessionId};
use alarms::Alarms;
use calls::Call;
pub(crate) use command::{Acquired, Command, Patience, Reply, RequestId, Wish};
use links::{Links, Need};

/// What the keeper's tasks tell it.
enum Happening {
    Connected { attempt: u64, result: Result<Box<(Conn, Stream)>, Failure> },
    Received { link: Attachment, result: Result<Vec<Event>, Failure> },
    StandbyReady { id: u64, target: Target, conn: Conn },
    StandbyGone { id: u64 },
    Answered { request: RequestId, result: Result<Answer, CallFailure> },
}

/// Between tasks and keeper: full only while the keeper is busy, and then the tasks wait.
const HAPPENINGS: usize = 64;

/// Commands taken together, so that a burst travels in few messages; after them the streams get their turn.
const BURST: usize = 1_024;

/// From so many answers at once on, their callers get a moment before what they post is sent. One alone would only lose
/// time.
const COMPANY: usize = 4;

/// How often the processor is offered to callers before nothing more is expected of them: some ten microseconds, if no
/// other thread wants it.
const PATIENCE: u32 = 16;

/// And no longer than this: where many threads want the processor, each offer costs a slice of time.
const MOMENT: Duration = Duration::from_micros(200);

/// So many commands need no more company: a message of more costs hardly less for each, and the leader has work.
const ENOUGH: usize = 128;

/// While there is a lease, the keeper looks at it at least so often: its timers stand while the machine is suspended,
/// and the lease clock does not.
const LOOK: Duration = Duration::from_secs(1);

/// How long closing may take.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Renewal every third of the TTL, so much earlier or later, that a thousand clients do not renew in step.
const RENEWAL_SPREAD: f64 = 0.1;

/// Sessions named in one renewal: far below the limit of a message.
const RENEWED_TOGETHER: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot(u64);

/// What a keeper needs to start.
pub(crate) struct Config {
    pub owner: Arc<str>,
    pub endpoints: Vec<String>,
    pub connect_timeout: Duration,
    pub clock: Clock,
    pub dial: Dial,
    pub random: Random,
}

pub(crate) struct Keeper {
    commands: mpsc::UnboundedReceiver<Command>,
    happenings: mpsc::Receiver<Happening>,
    sender: mpsc::Sender<Happening>,
    owner: Arc<str>,
    connect_timeout: Duration,
    /// How many endpoints there are.
    ways: u32,
    /// For one try of a read, so that every endpoint gets one.
    read_limit: Duration,
    clock: Clock,
    random: Random,
    links: Links,
    sessions: BTreeMap<Slot, Session>,
    /// The shared sessions that take new requests, by the TTL they were opened for.
    shared: BTreeMap<Duration, Slot>,
    by_id: BTreeMap<SessionId, Slot>,
    /// Opens and resumes that await their answer.
    by_key: BTreeMap<Key, Slot>,
    calls: FxHashMap<RequestId, Call>,
    /// Reads that are to be sent. Some may be over.
    unasked: BTreeSet<RequestId>,
    alarms: Alarms,
    last_slot: u64,
    last_key: u64,
    last_number: u64,
    closing: Option<Closing>,
    /// Client and guards are all gone: nothing will be posted any more.
    is_orphan: bool,
    /// Answers in the message that was heard last, until callers had their moment.
    fresh_answers: usize,
}

struct Closing {
    until: Instant,
    done: Vec<oneshot::Sender<()>>,
}

impl Keeper {
    pub(crate) fn new(mut config: Config, commands: mpsc::UnboundedReceiver<Command>) -> Keeper {
        let (sender, happenings) = mpsc::channel(HAPPENINGS);
        // Clients that share a list of endpoints shall not all begin with the same one.
        let start = config.random.below(config.endpoints.len());
        let ways = config.endpoints.len() as u32;
        let read_limit = config.connect_timeout / ways;
        let endpoints = Endpoints::new(config.endpoints, start);
        Keeper {
            commands,
            happenings,
            links: Links::new(config.dial, sender.clone(), config.connect_timeout, endpoints),
            sender,
            owner: config.owner,
            connect_timeout: config.connect_timeout,
            ways,
            read_limit,
            clock: config.clock,
            random: config.random,
            sessions: BTreeMap::new(),
            shared: BTreeMap::new(),
            by_id: BTreeMap::new(),
            by_key: BTreeMap::new(),
            calls: FxHashMap::default(),
            unasked: BTreeSet::new(),
            alarms: Alarms::default(),
            last_slot: 0,
            last_key: 0,
            last_number: 0,
            closing: None,
            is_orphan: false,
            fresh_answers: 0,
        }
    }

    /// Until the client is closed, or it and all guards are dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let wake = self.wakes_at();
            tokio::select! {
                biased;
                Some(happening) = self.happenings.recv() => self.on_happening(self.now(), happening),
                command = self.commands.recv(), if !self.is_orphan => match command {
                    Some(command) => self.on_command(self.now(), command),
                    None => {
                        self.is_orphan = true;
                        self.close(None);
                    }
                },
                () = self.links.writable() => {}
                // Last, because `tick` looks at what is due after every event anyway.
                () = sleep_until(wake) => {}
            }
            self.gather();
            self.tick();
            if self.is_closed() {
                return;
            }
        }
    }

    /// Takes what was posted. After answers their callers get a moment to ask for the next thing from their threads, so
    /// that it leaves in one message and not in several.
    fn gather(&mut self) {
        let now = self.now();
        let patience = if std::mem::take(&mut self.fresh_answers) < COMPANY { 0 } else { PATIENCE };
        let (mut taken, mut pauses) = (0, 0);
        while taken < BURST {
            match self.commands.try_recv() {
                Ok(command) => {
                    self.on_command(now, command);
                    (taken, pauses) = (taken + 1, 0);
                }
                Err(_) if pauses < patience && taken < ENOUGH && now.at.elapsed() < MOMENT => {
                    pauses += 1;
                    std::thread::yield_now();
                }
                Err(_) => return,
            }
        }
    }

    fn now(&self) -> Now {
        Now { boot: BootTime::read(&self.clock), at: Instant::now() }
    }

    fn wakes_at(&self) -> Instant {
        let now = self.now();
        let sessions = self.sessions.values().filter_map(|session| session.wakes_at(now));
        let look = self.sessions.values().any(|session| session.id().is_some()).then(|| now.at + LOOK);
        let alarm = self.alarms.first();
        let links = self.links.wakes_at(now.at, self.need(now));
        let closing = self.closing.as_ref().map(|closing| closing.until);
        let far = now.at + Duration::from_secs(60 * 60);
        sessions.chain(look).chain(alarm).chain(links).chain(closing).min().unwrap_or(far)
    }

    /// What the sessions and callers need of the streams.
    fn need(&self, now: Now) -> Need {
        let held = self.sessions.values().filter(|session| session.holds_locks());
        let held = held.filter_map(|session| Some((session.remaining(now)?, session.attach_limit(now))));
        Need {
            stream: !self.sessions.is_empty() || self.calls.values().any(Call::needs_stream),
            sessions: !self.sessions.is_empty(),
            held: held.min(),
            lease: self.sessions.values().filter_map(|session| session.remaining(now)).min(),
        }
    }

    /// Does what is due.
    fn tick(&mut self) {
        let now = self.now();
        self.end_overdue_leases();
        self.sound_alarms(now);
        self.leave_silent_stream(now);
        self.ask_for_missing_answers(now);
        self.close_spent_sessions(now);
        self.renew(now);
        self.send(now);
        self.ask_questions();
        let need = self.need(now);
        self.links.steer(now.at, need);
        self.links.flush();
    }

    /// The local deadline passed: no network is needed to know that.
    fn end_overdue_leases(&mut self) {
        let overdue = self.sessions.iter().filter(|(_, session)| session.is_over());
        let overdue: Vec<Slot> = overdue.map(|(&slot, _)| slot).collect();
        for slot in overdue {
            self.lose(slot, LostReason::Expired);
        }
    }

    /// A renewal or an attachment stays unanswered for too long: the next endpoint may do better.
    fn leave_silent_stream(&mut self, now: Now) {
        if self.sessions.values().any(|session| session.is_unanswered(now)) {
            self.leave_stream(now, Failure::new("the stream gave no answer in time"));
        }
    }

    /// The stream answers renewals, but not a request: what was sent may have got lost behind it, as after a change of
    /// its way that nobody told us of. The resume finds out, and what the cluster does not know is sent again.
    fn ask_for_missing_answers(&mut self, now: Now) {
        if let Some(link) = self.links.current().map(|link| link.id)
            && self.sessions.values().any(|session| session.misses_an_answer(now))
        {
            tracing::debug!(attachment = link.0, "requests are unanswered; resuming on the same stream");
            self.resume_all(link);
        }
    }

    /// Whatever is unanswered on this stream may be lost.
    fn resume_all(&mut self, link: Attachment) {
        self.links.clear_outbox();
        self.attach_all(link);
    }

    fn leave_stream(&mut self, now: Now, failure: Failure) {
        let need = self.need(now);
        self.links.give_up(failure, now.at, need, &mut self.random);
        self.detach();
    }

    fn detach(&mut self) {
        self.by_key.clear();
        self.sessions.values_mut().for_each(Session::detach);
        self.ask_again();
    }

    /// A stream is there, or means another way to the leader: every session announces itself, and has the whole time
    /// for an answer.
    fn attach_all(&mut self, attachment: Attachment) {
        self.by_key.clear();
        let slots: Vec<Slot> = self.sessions.keys().copied().collect();
        for slot in slots {
            if let Some(session) = self.sessions.get_mut(&slot) {
                session.detach();
            }
            self.attach(slot, attachment);
        }
    }

    fn attach(&mut self, slot: Slot, attachment: Attachment) {
        let now = self.now();
        let (key, number) = (self.next_key(), self.next_number());
        let session = self.sessions.get_mut(&slot).expect("callers name a live slot");
        self.by_key.insert(key, slot);
        self.links.push(session.attach(now, key, number, attachment));
    }

    fn next_key(&mut self) -> Key {
        self.last_key += 1;
        Key(self.last_key)
    }

    fn next_number(&mut self) -> Number {
        self.last_number += 1;
        Number(self.last_number)
    }

    fn close_spent_sessions(&mut self, now: Now) {
        for (slot, session) in &mut self.sessions {
            if !session.is_closing() && session.is_spent(now) {
                session.close();
                self.shared.retain(|_, shared| shared != slot);
            }
        }
        let shared = &mut self.shared;
        self.sessions.retain(|slot, session| {
            let is_void = session.is_closing() && session.is_unborn(now);
            if is_void {
                shared.retain(|_, shared| shared != slot);
            }
            !is_void
        });
    }

    /// One number for all sessions that are due, one operation for all that keep their TTL.
    fn renew(&mut self, now: Now) {
        if !self.sessions.values().any(|session| session.wants_renewal(now)) {
            return;
        }
        let number = self.next_number();
        // The clock is read again: nothing may lie between it and the queueing that it stands for.
        let now = self.now();
        let mut due: BTreeMap<Option<Duration>, Vec<SessionId>> = BTreeMap::new();
        for session in self.sessions.values_mut().filter(|session| session.wants_renewal(now)) {
            let Some(id) = session.id() else { continue };
            let pause = self.random.around(session.ttl() / 3, RENEWAL_SPREAD);
            due.entry(session.renew(now, number, pause)).or_default().push(id);
        }
        for (ttl, sessions) in due {
            for sessions in sessions.chunks(RENEWED_TOGETHER) {
                tracing::trace!(number = number.0, sessions = sessions.len(), "renewal queued");
                self.links.push(Op::Renew { sessions: sessions.to_vec(), number, ttl });
            }
        }
    }

    /// Attachments that were put off, and the operations of the attached.
    fn send(&mut self, now: Now) {
        let Some(attachment) = self.links.current().map(|link| link.id) else {
            self.sessions.values().for_each(|session| session.note_risk(now));
            return;
        };
        let unattached = self.sessions.iter().filter(|(_, session)| session.wants_attachment(now));
        let unattached: Vec<Slot> = unattached.map(|(&slot, _)| slot).collect();
        for slot in unattached {
            self.attach(slot, attachment);
        }
        let mut ops = Vec::new();
        for session in self.sessions.values_mut() {
            session.note_risk(now);
            session.take_ops(now, &mut ops);
        }
        for op in ops {
            self.links.push(op);
        }
        if self.sessions.values().all(Session::is_attached) {
            self.links.settled();
        }
    }

    // ------------------------------------------------------------------------------------------- end

    /// Frees everything and ends. Callers that still wait are told now; guards are lost before their locks are free.
    fn close(&mut self, done: Option<oneshot::Sender<()>>) {
        let until = self.now().at + CLOSE_LIMIT;
        let closing = self.closing.get_or_insert(Closing { until, done: Vec::new() });
        closing.done.extend(done);
        self.end_calls(LostReason::ClientClosed);
        self.shared.clear();
        self.sessions.values_mut().for_each(Session::close);
    }

    fn is_closed(&mut self) -> bool {
        let now = self.now();
        match &mut self.closing {
            Some(closing) if self.sessions.is_empty() || closing.until <= now.at => {
                for done in closing.done.drain(..) {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                true
            }
            _ => false,
        }
    }
}

impl Drop for Keeper {
    /// Also when the runtime it was given is gone: no guard may believe that somebody renews it.
    fn drop(&mut self) {
        for session in self.sessions.values() {
            if let Some(cell) = session.cell() {
                cell.end();
            }
        }
        self.end_calls(LostReason::ClientClosed);
    }
}
