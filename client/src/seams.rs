//! What the SDK takes from its surroundings: the boot-time clock, an executor, connections and randomness.
//!
//! Nothing else in the crate reads the lease clock, opens a socket, starts a thread or draws a random number.
//! Production uses [`Seams::production`]; a simulation hands in its own four, so that one seed gives one run.
//! Not part of the stable API.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::DropGuard;

/// Time since the machine started, the time it was suspended included. Read on every look at a lease.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Opens a byte stream to `host:port`.
pub type Dial = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Connection>> + Send + Sync>;

/// Where the keeper runs.
#[derive(Clone)]
pub enum Executor {
    /// A thread and a runtime of its own, so that a blocked application stops neither renewal nor release.
    OwnThread,
    /// Handed to this function, which must run it on a tokio runtime; for simulations.
    Given(Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>),
}

/// The four seams.
#[derive(Clone)]
pub struct Seams {
    /// Reads the clock that leases are counted on.
    pub clock: Clock,
    /// Runs the keeper.
    pub executor: Executor,
    /// Opens connections.
    pub dial: Dial,
    /// Makes every random choice, session secrets included, follow from this number. `None`: from the system.
    pub seed: Option<u64>,
}

impl Seams {
    /// CLOCK_BOOTTIME, a thread of its own, TCP without delay, the system's randomness.
    pub fn production() -> Seams {
        Seams {
            clock: Arc::new(boot_time),
            executor: Executor::OwnThread,
            dial: Arc::new(|address| Box::pin(dial_tcp(address))),
            seed: None,
        }
    }
}

impl fmt::Debug for Seams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seams").field("seed", &self.seed.is_some()).finish_non_exhaustive()
    }
}

trait ByteStream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ByteStream for T {}

/// A byte stream of any kind.
pub struct Connection {
    stream: Pin<Box<dyn ByteStream>>,
    /// Fires when the connection's owner drops it: that is its end.
    end: Option<DropGuard>,
}

impl Connection {
    /// Wraps a stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Connection {
        Connection { stream: Box::pin(stream), end: None }
    }

    /// The guard is dropped with the connection.
    pub(crate) fn noticed_by(self, end: DropGuard) -> Connection {
        Connection { end: Some(end), ..self }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("noticed", &self.end.is_some()).finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

async fn dial_tcp(address: String) -> io::Result<Connection> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Connection::new(stream))
}

/// CLOCK_BOOTTIME through libc, so that a preloaded test clock reaches it. `std::time::Instant` stops while the
/// machine is suspended, and the cluster's clock does not.
fn boot_time() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    // Elsewhere the monotonic clock is the one that counts suspended time, where any does.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;

    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call, which writes nothing else.
    let failed = unsafe { libc::clock_gettime(CLOCK, &mut now) };
    assert_eq!(failed, 0, "the boot-time clock cannot be read, so no lease can be trusted on this system");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Every random choice of a client.
#[derive(Debug)]
pub(crate) struct Random {
    choices: fastrand::Rng,
    seeded: bool,
}

impl Random {
    /// Fails where the system gives no randomness.
    pub(crate) fn new(seed: Option<u64>) -> io::Result<Random> {
        let first = match seed {
            Some(seed) => seed,
            None => u64::from_le_bytes(system_bytes()?),
        };
        Ok(Random { choices: fastrand::Rng::with_seed(first), seeded: seed.is_some() })
    }

    /// A session's secret. From the system unless seeded, because whoever guesses it owns the session's locks.
    pub(crate) fn secret(&mut self) -> [u8; 16] {
        if self.seeded {
            return self.choices.u128(..).to_le_bytes();
        }
        system_bytes().expect("the system gave randomness when this client was built")
    }

    /// `mean`, up to `share` shorter or longer.
    pub(crate) fn around(&mut self, mean: Duration, share: f64) -> Duration {
        mean.mul_f64(1.0 - share + 2.0 * share * self.choices.f64())
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.choices.usize(..limit)
    }
}

fn system_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
    let failed = unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), N) };
    if failed == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Runs the keeper where the executor says.
pub(crate) fn start(
    executor: &Executor,
    keeper: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    match executor {
        Executor::Given(run) => run(Box::pin(keeper)),
        Executor::OwnThread => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
            std::thread::Builder::new()
                .name("raftlock-keeper".into())
                .spawn(move || runtime.block_on(keeper))?;
        }
    }
    Ok(())
}
