//! Asking for locks: a description, and what happens when it is awaited.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;
use tracing::field::Empty;

use crate::client::Handle;
use crate::error::{Error, WaitTimeout};
use crate::guard::LockGuard;
use crate::info::{Contention, Mode};
use crate::keeper::{Acquired, Command, Patience, RequestId, Wish};
use crate::limits;
use crate::session::Kind;
use crate::wire::Ask;

/// A longer wait is the same as one without end.
const WAIT_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// An acquire that is described but not begun. Await it, or call [`try_acquire`](LockBuilder::try_acquire).
///
/// Awaited without [`wait`](LockBuilder::wait), it waits until the lock is granted, as a mutex does, also through
/// outages; only a client that has never reached a server gives up, after its connect timeout. Waiters are served
/// first come, first served, and keep their place when a server fails.
///
/// # Errors
///
/// [`Error::WaitTimeout`] at the end of a wait, [`Error::Unavailable`] as above, [`Error::InvalidArgument`],
/// [`Error::CapacityMismatch`], [`Error::QueueFull`], [`Error::LimitReached`], [`Error::Closed`], and [`Error::Lost`] if
/// the lock was granted, but the future was polled again only after the lease had ended.
///
/// # Cancel safety
///
/// Dropping the future ends the request on the cluster: a queued one leaves the queue, and a grant that was under way
/// is released.
#[derive(Clone)]
#[must_use = "a lock is acquired when this is awaited"]
pub struct LockBuilder {
    handle: Handle,
    names: Vec<String>,
    ttl: Duration,
    wait: Option<Duration>,
    mode: Mode,
    metadata: BTreeMap<String, String>,
    auto_renew: bool,
}

impl LockBuilder {
    pub(crate) fn new(handle: Handle, names: Vec<String>) -> LockBuilder {
        let ttl = handle.default_ttl();
        LockBuilder {
            handle,
            names,
            ttl,
            wait: None,
            mode: Mode::Exclusive,
            metadata: BTreeMap::new(),
            auto_renew: true,
        }
    }

    /// How long the lock outlives a holder that is gone: 1 s to 24 h. Also how long an outage a holder rides out; see
    /// [`ClientBuilder::default_ttl`](crate::ClientBuilder::default_ttl). Default: the client's.
    pub fn ttl(mut self, ttl: Duration) -> LockBuilder {
        self.ttl = ttl;
        self
    }

    /// Wait in the queue at most so long. The wait ends by this client's own clock too, up to half a second later
    /// while a server answers, so that the error can name the holder. Zero: do not queue.
    pub fn wait(mut self, wait: Duration) -> LockBuilder {
        self.wait = Some(wait);
        self
    }

    /// Shown to whoever looks the lock up. At most 4 KiB, keys and values together.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> LockBuilder {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Together with other shared holders. A waiting exclusive request is served before later shared ones.
    pub fn shared(mut self) -> LockBuilder {
        self.mode = Mode::Shared;
        self
    }

    /// So many of the lock's permits. All who use the lock must name the same capacity.
    pub fn permits(mut self, permits: u32, capacity: u32) -> LockBuilder {
        self.mode = Mode::Permits { permits, capacity };
        self
    }

    /// With `false`, nobody renews the lock once it is granted but [`LockGuard::extend`]: it is lost when its TTL is
    /// over, however alive its holder. Default: `true`.
    pub fn auto_renew(mut self, auto_renew: bool) -> LockBuilder {
        self.auto_renew = auto_renew;
        self
    }

    /// Acquires the lock if it is free and nobody waits for it; `None` if not. Never queues.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] without an answer within the connect timeout; the request is then taken back. Else as
    /// awaiting, without [`Error::WaitTimeout`].
    pub async fn try_acquire(self) -> Result<Option<LockGuard>, Error> {
        match self.acquire(Patience::Try).await? {
            Ok(guard) => Ok(Some(guard)),
            Err(_) => Ok(None),
        }
    }

    async fn wait_and_acquire(self) -> Result<LockGuard, Error> {
        let patience = match self.wait {
            None => Patience::Forever,
            Some(Duration::ZERO) => Patience::Try,
            Some(wait) if wait > WAIT_MAX => Patience::Forever,
            Some(wait) => Patience::AtMost(wait),
        };
        // What is busy is told to a try only.
        let name = self.names.first().filter(|_| patience == Patience::Try).cloned();
        self.acquire(patience).await?.map_err(|contention| {
            let name = name.as_deref().unwrap_or_default();
            let timeout = WaitTimeout::new(name, Duration::ZERO, None, Some(&contention));
            Error::WaitTimeout(Box::new(timeout))
        })
    }

    async fn acquire(self, patience: Patience) -> Result<Result<LockGuard, Contention>, Error> {
        limits::names(&self.names)?;
        limits::ttl(self.ttl)?;
        limits::mode(self.mode)?;
        limits::metadata(&self.metadata)?;
        if self.auto_renew {
            self.handle.warn_of_short_ttl(self.ttl);
        }
        let name = self.names[0].as_str();
        let span =
            tracing::info_span!("lock.acquire", name, token = Empty, attempt = Empty, endpoint = Empty);
        let handle = self.handle;
        let wish = Wish {
            ask: Arc::new(Ask { names: self.names, mode: self.mode, metadata: self.metadata }),
            ttl: limits::whole_millis(self.ttl),
            kind: if self.auto_renew { Kind::Shared } else { Kind::Own },
            patience,
        };
        let acquiring = async move {
            let mut farewell = Farewell { request: handle.next_request(), handle, is_due: true };
            let request = farewell.request;
            let acquired = farewell.handle.ask(|reply| Command::Acquire { request, wish, reply }).await;
            // From here to the return nothing is awaited, so a grant ends in a guard or in the farewell.
            farewell.is_due = false;
            Ok(match acquired? {
                Acquired::Granted { cell, attempts, endpoint } => {
                    let span = tracing::Span::current();
                    span.record("token", cell.token().get())
                        .record("attempt", attempts)
                        .record("endpoint", &*endpoint);
                    let guard = LockGuard::new(cell.clone(), request, farewell.handle.clone());
                    // The caller may come for it late, from a blocked runtime or a suspended machine. Dropping the guard
                    // gives back whatever there is.
                    match cell.ended() {
                        None => Ok(guard),
                        Some(reason) => return Err(reason.into()),
                    }
                }
                Acquired::Busy(contention) => Err(contention),
            })
        };
        acquiring.instrument(span).await
    }
}

impl IntoFuture for LockBuilder {
    type Output = Result<LockGuard, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.wait_and_acquire())
    }
}

impl fmt::Debug for LockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockBuilder")
            .field("names", &self.names)
            .field("ttl", &self.ttl)
            .field("wait", &self.wait)
            .field("mode", &self.mode)
            .field("auto_renew", &self.auto_renew)
            .finish_non_exhaustive()
    }
}

/// Tells the keeper when an acquire is dropped before its end.
struct Farewell {
    handle: Handle,
    request: RequestId,
    is_due: bool,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if self.is_due {
            self.handle.send(Command::Abandon { request: self.request });
        }
    }
}
