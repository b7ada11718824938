//! What a caller has in its hand while it holds a lock.
//!
//! A guard looks at its own deadline, on the lease clock, and needs no keeper for that. Everything else it asks the
//! keeper by message. Nothing here blocks or needs a runtime.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::client::Handle;
use crate::error::Error;
use crate::info::FencingToken;
use crate::keeper::{Command, RequestId};
use crate::lease::LeaseCell;
use crate::limits;
use crate::wire::Ask;

/// Why a lock is not held any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// No renewal was answered in time. Another may hold the lock from now on.
    #[error("its lease was not renewed in time")]
    Expired,
    /// The cluster says that the session of this lock is over.
    #[error("the cluster ended its session")]
    SessionEnded,
    /// The cluster says that this guard's token does not hold the lock.
    #[error("the cluster says that it is not held")]
    NotHolder,
    /// The client was closed while the guard was held.
    #[error("its client was closed")]
    ClientClosed,
    /// It was not lost: the guard was released or dropped while somebody still awaited its loss.
    #[error("it was released")]
    Released,
}

/// How it stands with a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuardState {
    /// The lock is held and its lease is being renewed.
    Held,
    /// The lock is held, but renewals find no answer. It becomes `Held` again, or `Lost` at the deadline.
    AtRisk,
    /// The lock is lost, for good.
    Lost(LostReason),
    /// The guard was released.
    Released,
}

/// What guard, keeper and watchers share about one grant.
#[derive(Debug)]
pub(crate) struct GuardCell {
    ask: Arc<Ask>,
    token: FencingToken,
    lease: Arc<LeaseCell>,
    end: OnceLock<LostReason>,
    /// Made for the first who waits for the end: most guards are given back before anybody does.
    over: OnceLock<CancellationToken>,
}

impl GuardCell {
    pub(crate) fn new(ask: Arc<Ask>, token: FencingToken, lease: Arc<LeaseCell>) -> GuardCell {
        GuardCell { ask, token, lease, end: OnceLock::new(), over: OnceLock::new() }
    }

    pub(crate) fn token(&self) -> FencingToken {
        self.token
    }

    pub(crate) fn name(&self) -> &str {
        &self.ask.names[0]
    }

    /// The first end counts; it wakes all who wait for it.
    pub(crate) fn end(&self, reason: LostReason) -> LostReason {
        let first = *self.end.get_or_init(|| reason);
        // Pairs with the one in `over`: either this finds the token, or that finds the end.
        fence(Ordering::SeqCst);
        if let Some(over) = self.over.get() {
            over.cancel();
        }
        first
    }

    /// Is cancelled at the end.
    fn over(&self) -> &CancellationToken {
        let over = self.over.get_or_init(CancellationToken::new);
        fence(Ordering::SeqCst);
        if self.end.get().is_some() {
            over.cancel();
        }
        over
    }

    fn remaining(&self) -> Option<Duration> {
        if self.end.get().is_some() {
            return None;
        }
        let remaining = self.lease.remaining();
        if remaining.is_none() {
            self.end(LostReason::Expired);
        }
        remaining
    }

    pub(crate) fn ended(&self) -> Option<LostReason> {
        match self.remaining() {
            Some(_) => None,
            None => Some(self.end(LostReason::Expired)),
        }
    }
}

/// A held lock. It renews itself, says when it is lost, and releases on drop.
///
/// Not `Clone`, and locks are not re-entrant: asking again for a lock that you hold waits for yourself. To share a
/// guard, share a reference, or hand out [`token`](LockGuard::token) and
/// [`cancellation_token`](LockGuard::cancellation_token).
///
/// # Dropping
///
/// Dropping releases the lock, from any thread, with or without a runtime, also in a panic: one message goes to the
/// client's own thread, which repeats the release until it is answered or the lease is over. A process that ends
/// without [`Client::close`](crate::Client::close) may lose its last releases; those locks are free when their TTL
/// is over.
#[must_use = "a guard that is dropped at once releases the lock at once"]
pub struct LockGuard {
    cell: Arc<GuardCell>,
    request: RequestId,
    handle: Handle,
    /// The keeper has been told to release it.
    is_given_back: bool,
}

impl LockGuard {
    pub(crate) fn new(cell: Arc<GuardCell>, request: RequestId, handle: Handle) -> LockGuard {
        LockGuard { cell, request, handle, is_given_back: false }
    }

    /// The lock's name; of several, the first.
    pub fn name(&self) -> &str {
        self.cell.name()
    }

    /// All names that this guard holds, in the order in which they were asked for.
    pub fn names(&self) -> &[String] {
        &self.cell.ask.names
    }

    /// The fencing token of this grant. Give it to the resource that the lock protects.
    pub fn token(&self) -> FencingToken {
        self.cell.token
    }

    /// Whether the lock is held, by this machine's own clock and without asking anybody. Once false, false for good.
    ///
    /// True means that the lease had not ended when this looked. A process that is frozen right after it cannot know
    /// more; the token is the defence.
    pub fn is_held(&self) -> bool {
        self.cell.remaining().is_some()
    }

    /// How long the lock stays held if no further renewal is answered; zero once it is lost. Local, like
    /// [`is_held`](LockGuard::is_held).
    pub fn remaining(&self) -> Duration {
        self.cell.remaining().unwrap_or_default()
    }

    /// How it stands now.
    pub fn state(&self) -> GuardState {
        match self.cell.ended() {
            Some(LostReason::Released) => GuardState::Released,
            Some(reason) => GuardState::Lost(reason),
            None if self.cell.lease.is_at_risk() => GuardState::AtRisk,
            None => GuardState::Held,
        }
    }

    /// Resolves when the lock is lost, before the cluster can grant it to another, network or not. Resolves at once
    /// if it is lost already. Any number of futures may wait, they may outlive the guard, and dropping one changes
    /// nothing. If the guard is released first, they resolve to [`LostReason::Released`].
    pub fn lost(&self) -> impl Future<Output = LostReason> + Send + Sync + 'static + use<> {
        let cell = self.cell.clone();
        async move {
            if let Some(reason) = cell.ended() {
                return reason;
            }
            cell.over().cancelled().await;
            cell.end(LostReason::Expired)
        }
    }

    /// A token that is cancelled when the lock is lost or released: hand it to workers. Cancelling it yourself
    /// changes nothing about the lock.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.cell.over().child_token()
    }

    /// Runs `work` for as long as the lock is held.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] as soon as the lock is lost; `work` is then dropped where it stands. Also when `work` ended,
    /// but not before the lease did.
    ///
    /// # Cancel safety
    ///
    /// Dropping this drops `work`. The guard stays held.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Error> {
        tokio::select! {
            biased;
            reason = self.lost() => Err(reason.into()),
            output = work => match self.cell.ended() {
                None => Ok(output),
                Some(reason) => Err(reason.into()),
            },
        }
    }

    /// Renews the lease now, with a new TTL, and waits for the answer.
    ///
    /// A lock that renews itself shares its lease with the client's other locks of the same TTL; there the TTL is
    /// only ever raised. With `auto_renew(false)` it becomes what you say, and [`remaining`](LockGuard::remaining)
    /// of a shorter one falls at once.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the lock is lost, [`Error::InvalidArgument`] for a TTL outside 1 s – 24 h,
    /// [`Error::Unavailable`] if no server answers within the connect timeout. The lock may be renewed all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping this does not take the renewal back.
    pub async fn extend(&self, ttl: Duration) -> Result<(), Error> {
        limits::ttl(ttl)?;
        self.check_held()?;
        let request = self.handle.next_request();
        let guard = self.request;
        let ttl = limits::whole_millis(ttl);
        self.handle.ask(|reply| Command::Extend { request, guard, ttl, reply }).await?;
        self.check_held()
    }

    /// Releases the lock and waits until the cluster has said so.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the lock was lost before the release was applied, [`Error::Unavailable`] if no server
    /// answered within the connect timeout. The release is then still being repeated, until it is answered or the
    /// lease is over.
    ///
    /// # Cancel safety
    ///
    /// The release is on its way as soon as this is called; dropping the future only stops waiting for the answer.
    pub fn release(mut self) -> impl Future<Output = Result<(), Error>> + Send {
        let span = tracing::info_span!("lock.release", name = self.name(), token = self.token().get());
        let asked = self.check_held().and_then(|()| {
            self.cell.end(LostReason::Released);
            self.handle.post(|reply| Command::Release { request: self.request, reply: Some(reply) })
        });
        self.is_given_back = asked.is_ok();
        drop(self);
        async move { asked?.await.unwrap_or(Err(Error::Closed)) }.instrument(span)
    }

    fn check_held(&self) -> Result<(), Error> {
        self.handle.check_process()?;
        match self.cell.ended() {
            None => Ok(()),
            Some(reason) => Err(reason.into()),
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        // A forked child has only copies, and its parent's keeper may have held a lock in them for good.
        if self.is_given_back || self.handle.check_process().is_err() {
            return;
        }
        self.cell.end(LostReason::Released);
        self.handle.send(Command::Release { request: self.request, reply: None });
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("names", &self.cell.ask.names)
            .field("token", &self.cell.token)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
