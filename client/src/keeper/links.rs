//! The keeper's streams: the one in use, the one being opened, and the one just left.
//!
//! It decides when to connect and to whom; what goes over the streams is the keeper's. Each task here is owned by
//! the field that holds its handle, and ends with it.
//!
//! A client's first stream may end at a follower, which says where the leader is. If that is one of the endpoints, it is
//! tried once, while the first stream serves: each operation is then spared a relay. Later the client stays where it is; all
//! clients of a cluster moving after each election would cost more than the relay.

use std::sync::Arc;
use std::time::Duration;

use raftlock_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Happening;
use super::standby::Standby;
use crate::endpoints::{Endpoints, Reached, Target};
use crate::error::{EndpointFailure, Failure};
use crate::outbox::Outbox;
use crate::retry::Retry;
use crate::seams::{Dial, Random};
use crate::transport::{self, Conn, Stream};
use crate::wire::{Attachment, Op};

/// No attempt to connect gets less.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// A stream that served so long was worth having: when it ends, the next is asked at once. One that served for less
/// counts as a failed attempt, or endpoints that accept, answer and end would be asked in a spin.
const STEADY: Duration = Duration::from_secs(1);

/// What the sessions need of the streams.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// Somebody waits for a stream.
    pub stream: bool,
    /// There are sessions, so a second connection is worth having.
    pub sessions: bool,
    /// A lock is held: what is left of the lease that ends first, and how long an attempt for it may last.
    pub held: Option<(Duration, Duration)>,
    /// What is left of the lease that ends first, whether or not it holds a lock.
    pub lease: Option<Duration>,
}

/// A task that ends with its owner.
pub(super) struct Task(pub JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) struct Link {
    pub id: Attachment,
    pub conn: Conn,
    target: Target,
    /// Its address, as every grant names it.
    endpoint: Arc<str>,
    outbound: mpsc::Sender<v1::SessionRequest>,
    since: Instant,
    draining: bool,
    /// The leader, if this is the first stream and does not end there. It is tried once.
    better: Option<Target>,
    /// A session was attached here: the endpoint serves.
    served: bool,
    _reader: Task,
}

impl Link {
    fn is_steady(&self, now: Instant) -> bool {
        self.served && now >= self.since + STEADY
    }
}

struct Attempt {
    id: u64,
    target: Target,
    /// The stream in use is good enough, should it fail.
    is_optional: bool,
    _task: Task,
}

pub(super) struct Links {
    dial: Dial,
    happenings: mpsc::Sender<Happening>,
    connect_timeout: Duration,
    endpoints: Endpoints,
    retry: Retry,
    current: Option<Link>,
    /// Its late answers still count; nothing is sent on it any more.
    retired: Option<Link>,
    attempt: Option<Attempt>,
    next_try: Option<Instant>,
    round_since: Option<Instant>,
    pub standby: Standby,
    outbox: Outbox,
    /// Counts streams and tasks.
    last_id: u64,
    reached_any: bool,
}

impl Links {
    pub(super) fn new(
        dial: Dial,
        happenings: mpsc::Sender<Happening>,
        connect_timeout: Duration,
        endpoints: Endpoints,
    ) -> Links {
        Links {
            dial,
            happenings,
            connect_timeout,
            endpoints,
            retry: Retry::new(),
            current: None,
            retired: None,
            attempt: None,
            next_try: None,
            round_since: None,
            standby: Standby::new(),
            outbox: Outbox::default(),
            last_id: 0,
            reached_any: false,
        }
    }

    /// The stream in use.
    pub(super) fn current(&self) -> Option<&Link> {
        self.current.as_ref()
    }

    pub(super) fn is_current(&self, id: Attachment) -> bool {
        self.current.as_ref().is_some_and(|link| link.id == id)
    }

    /// Some endpoint of the cluster has accepted a stream since the client was made.
    pub(super) fn reached_any(&self) -> bool {
        self.reached_any
    }

    pub(super) fn cluster(&self) -> Option<&str> {
        self.endpoints.cluster()
    }

    pub(super) fn endpoint_in_use(&self) -> Option<&Arc<str>> {
        self.current.as_ref().map(|link| &link.endpoint)
    }

    /// Why there is no answer, endpoint by endpoint.
    pub(super) fn report(&self) -> Vec<EndpointFailure> {
        self.endpoints.report(self.endpoint_in_use().map(|endpoint| &**endpoint))
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    // ------------------------------------------------------------------------------------------- connecting

    /// Starts what is needed now.
    pub(super) fn steer(&mut self, now: Instant, need: Need) {
        if self.wants_attempt(need) && self.next_try.is_none_or(|at| at <= now) {
            self.start_attempt(need);
        }
        let is_due = self.standby.wakes_at(now).is_some_and(|at| at <= now);
        if is_due && self.wants_standby(need) {
            self.start_standby();
        }
    }

    /// When `steer` has something to do, if nothing happens before.
    pub(super) fn wakes_at(&self, now: Instant, need: Need) -> Option<Instant> {
        let attempt = self.wants_attempt(need).then(|| self.next_try.unwrap_or(now));
        let standby = self.standby.wakes_at(now).filter(|_| self.wants_standby(need));
        attempt.into_iter().chain(standby).min()
    }

    fn wants_attempt(&self, need: Need) -> bool {
        let leaves = match &self.current {
            None => true,
            Some(link) => {
                link.better.is_some() || link.draining && self.endpoints.has_other(&link.target.address)
            }
        };
        need.stream && leaves && self.attempt.is_none()
    }

    fn wants_standby(&self, need: Need) -> bool {
        need.sessions && self.endpoints.len() > 1 && self.current.as_ref().is_some_and(|link| link.served)
    }

    fn start_attempt(&mut self, need: Need) {
        let better = self.current.as_mut().and_then(|link| link.better.take());
        let is_optional = better.is_some();
        let avoid = self.current.as_ref().map(|link| link.target.address.clone());
        let chosen = better.or_else(|| self.endpoints.choose(avoid.as_deref(), self.standby.address()));
        let Some(target) = chosen else {
            return;
        };
        let conn = self.standby.take(&target);
        let limit = self.attempt_limit(need);
        let id = self.next_id();
        let (dial, happenings, address) =
            (self.dial.clone(), self.happenings.clone(), target.address.clone());
        let task = tokio::spawn(async move {
            let work = async {
                let conn = match conn {
                    Some(conn) => conn,
                    None => transport::connect(dial, &address).await?,
                };
                let stream = transport::open(&conn).await?;
                Ok((conn, stream))
            };
            let silence = || Err(Failure::silence(limit));
            let result = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| silence());
            // Nobody listens any more: then nobody needs the stream either.
            let _ = happenings.send(Happening::Connected { attempt: id, result: result.map(Box::new) }).await;
        });
        self.attempt = Some(Attempt { id, target, is_optional, _task: Task(task) });
    }

    fn start_standby(&mut self) {
        let in_use = self.endpoint_in_use().cloned().unwrap_or_default();
        if let Some(target) = self.endpoints.choose_standby(&in_use) {
            let (dial, happenings) = (self.dial.clone(), self.happenings.clone());
            self.standby.dial(dial, target, self.connect_timeout, happenings);
        }
    }

    /// So that every endpoint is tried before the lease is over, or before the caller's patience is.
    fn attempt_limit(&self, need: Need) -> Duration {
        let limit = match need.held {
            Some((remaining, answer)) => answer.min(remaining / (self.endpoints.untried() as u32 + 1)),
            None => self.connect_timeout / self.endpoints.len() as u32,
        };
        limit.min(self.connect_timeout).max(ATTEMPT_MIN)
    }

    /// An attempt ended. The attachment number of the new stream, if there is one and it is one of ours.
    pub(super) fn connected(
        &mut self,
        attempt: u64,
        result: Result<Box<(Conn, Stream)>, Failure>,
        now: Instant,
        need: Need,
        random: &mut Random,
    ) -> Option<Attachment> {
        let Attempt { target, is_optional, .. } = self.attempt.take_if(|current| current.id == attempt)?;
        let checked =
            result.and_then(|opened| match self.endpoints.reached(&target, opened.1.cluster.as_deref()) {
                Reached::Ours => Ok(opened),
                Reached::Foreign { reason, is_news } => {
                    if is_news {
                        warn!(endpoint = target.address, reason, "endpoint skipped");
                    }
                    Err(Failure::new(reason))
                }
            });
        match checked {
            Ok(opened) => Some(self.take_up(target, *opened, now)),
            Err(failure) => {
                debug!(endpoint = target.address, reason = failure.reason, "endpoint failed");
                if !is_optional || self.current.is_none() {
                    self.try_next(&target, &failure, now, need, random);
                }
                None
            }
        }
    }

    /// This one did not do: the next at once, or after a pause if each had its chance.
    fn try_next(
        &mut self,
        failed: &Target,
        failure: &Failure,
        now: Instant,
        need: Need,
        random: &mut Random,
    ) {
        let avoid = self.endpoint_in_use().cloned();
        let round_is_over = self.endpoints.failed(failed, failure, avoid.as_deref());
        self.next_try = round_is_over.then(|| now + self.pause(failure.retry_after, need, random));
    }

    /// A lock that is held is in a hurry, unless a stream that is to be left still carries it.
    fn pause(&mut self, asked: Option<Duration>, need: Need, random: &mut Random) -> Duration {
        match need.held {
            Some(_) if self.current.is_none() => self.retry.pause_held(random),
            _ => self.retry.pause(random, asked, need.lease),
        }
    }

    fn take_up(&mut self, target: Target, (conn, stream): (Conn, Stream), now: Instant) -> Attachment {
        let id = Attachment(self.next_id());
        debug!(endpoint = target.address, attachment = id.0, "stream opened");
        let (happenings, mut inbound) = (self.happenings.clone(), stream.inbound);
        let reader = tokio::spawn(async move {
            loop {
                let result = inbound.next().await;
                let is_end = result.is_err();
                if happenings.send(Happening::Received { link: id, result }).await.is_err() || is_end {
                    return;
                }
            }
        });
        let _reader = Task(reader);
        let outbound = stream.outbound;
        let leader = stream.leader.filter(|_| !self.reached_any);
        let better = leader.and_then(|leader| self.endpoints.known(&leader, &target));
        let endpoint = target.address.as_str().into();
        let (draining, served) = (false, false);
        let link =
            Link { id, conn, target, endpoint, outbound, since: now, draining, better, served, _reader };
        self.outbox.clear();
        if let Some(old) = self.current.replace(link) {
            self.retired = Some(old);
        }
        self.next_try = None;
        self.reached_any = true;
        id
    }

    // ------------------------------------------------------------------------------------------- in use

    /// A session was attached on the stream in use: should it be lost, the others get their chance at once. Not more
    /// often than each [`STEADY`], or serving for a moment would keep a round from ever being over.
    pub(super) fn served(&mut self, now: Instant) {
        if let Some(link) = self.current.as_mut().filter(|link| !link.served) {
            link.served = true;
            self.endpoints.serves(&link.target);
            if self.round_since.is_none_or(|since| now >= since + STEADY) {
                self.begin_round(now);
            }
        }
    }

    /// Every session is attached on the stream in use: what the old one may still say is known.
    pub(super) fn settled(&mut self) {
        self.retired = None;
    }

    /// The node asked to be left. It may do so at once, and so may the next: then it is one attempt that failed.
    pub(super) fn drain(&mut self, now: Instant, need: Need, random: &mut Random) {
        let Some(link) = self.current.as_mut().filter(|link| !link.draining) else {
            return;
        };
        link.draining = true;
        if link.is_steady(now) {
            self.begin_round(now);
            self.retry.reset();
            self.next_try = None;
        } else {
            let target = link.target.clone();
            self.try_next(&target, &Failure::new("asks to be left"), now, need, random);
        }
    }

    fn begin_round(&mut self, now: Instant) {
        self.endpoints.begin_round();
        self.round_since = Some(now);
    }

    /// The stream in use leaves something unanswered. It is left, but listened to until another has taken over.
    pub(super) fn give_up(&mut self, failure: Failure, now: Instant, need: Need, random: &mut Random) {
        if let Some(link) = self.current.take() {
            self.left(&link, failure, now, need, random);
            self.retired = Some(link);
        }
    }

    /// A stream ended. True if it was the one in use.
    pub(super) fn ended(
        &mut self,
        id: Attachment,
        failure: Failure,
        now: Instant,
        need: Need,
        random: &mut Random,
    ) -> bool {
        self.retired.take_if(|link| link.id == id);
        let Some(link) = self.current.take_if(|link| link.id == id) else {
            return false;
        };
        self.left(&link, failure, now, need, random);
        true
    }

    fn left(&mut self, link: &Link, failure: Failure, now: Instant, need: Need, random: &mut Random) {
        debug!(endpoint = link.target.address, reason = failure.reason, "stream lost");
        self.outbox.clear();
        if link.is_steady(now) {
            self.begin_round(now);
            self.retry.reset();
            self.endpoints.lost(&link.target, &failure);
            // While a lock is held the next is asked at once; else a crowd would move in step.
            self.next_try = match need.held {
                Some(_) => None,
                None => Some(now + self.pause(None, need, random)),
            };
        } else {
            // Accepted, but of no use, or not for long.
            self.try_next(&link.target, &failure, now, need, random);
        }
    }

    /// For the stream in use; without one it goes nowhere, and the resume on the next one makes up for it.
    pub(super) fn push(&mut self, op: Op) {
        if self.current.is_some() {
            self.outbox.push(op);
        }
    }

    /// What was pushed is void: the way to the leader changed.
    pub(super) fn clear_outbox(&mut self) {
        self.outbox.clear();
    }

    /// Sends what the stream takes now.
    pub(super) fn flush(&mut self) {
        let Some(link) = &self.current else { return };
        while !self.outbox.is_empty() {
            // A closed stream's end comes as a happening of its own.
            let Ok(place) = link.outbound.try_reserve() else {
                return;
            };
            let Some(message) = self.outbox.message() else {
                return;
            };
            place.send(message);
        }
    }

    /// Resolves when the stream takes more of what is waiting; never, if nothing is.
    pub(super) fn writable(&self) -> impl Future<Output = ()> + use<> {
        let outbound =
            (!self.outbox.is_empty()).then(|| self.current.as_ref().map(|link| link.outbound.clone()));
        async move {
            match outbound.flatten() {
                Some(outbound) => match outbound.reserve().await {
                    Ok(_) => (),
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        }
    }
}
