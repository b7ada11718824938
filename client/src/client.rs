//! The client: what callers clone, and how it reaches its keeper.
//!
//! It holds no connection and no lease. Every call posts a command to the keeper and awaits the answer, on any
//! executor.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::config::{ClientBuilder, Config, ENDPOINTS_ENV, Endpoints};
use crate::error::Error;
use crate::guard::LockGuard;
use crate::info::{LockInfo, LockPage, LockSummary};
use crate::keeper::{self, Command, Keeper, Reply, RequestId};
use crate::limits;
use crate::lock::LockBuilder;
use crate::process::Process;
use crate::seams::{self, Random};
use crate::transport::{Answer, Question};

/// Below this a change of leader with default timers may cost a lock: TTL > 1.5·(gap + 0.5 s).
const TTL_SAFE: Duration = Duration::from_secs(4);

/// Asked for at once by [`Client::list`].
const PAGE_SIZE: u32 = 1_000;

/// A connection to a RaftLock cluster. Cheap to clone; all clones share one.
///
/// A client that is dropped, together with its clones and guards, releases what it holds and ends its sessions in
/// the background. A process that is about to end should call [`close`](Client::close) and wait for it.
#[derive(Clone)]
pub struct Client {
    handle: Handle,
}

impl Client {
    /// Connects to a cluster with default settings. One string with commas, a slice or a `Vec` of `host:port` or
    /// `http://host:port`.
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::connect`].
    pub async fn connect(endpoints: impl Into<Endpoints>) -> Result<Client, Error> {
        Client::builder().endpoints(endpoints).connect().await
    }

    /// For other settings.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Connects to the endpoints that the environment variable `RAFTLOCK_ENDPOINTS` lists.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the variable is not set, else as [`ClientBuilder::connect`].
    pub async fn from_env() -> Result<Client, Error> {
        let missing =
            |error| Error::InvalidArgument(format!("environment variable {ENDPOINTS_ENV}: {error}"));
        Client::connect(std::env::var(ENDPOINTS_ENV).map_err(missing)?).await
    }

    pub(crate) fn start(config: Config) -> Result<Client, Error> {
        let system = |error| Error::System(Arc::new(error));
        let (commands, inbox) = mpsc::unbounded_channel();
        let keeper = Keeper::new(
            keeper::Config {
                owner: config.owner.into(),
                endpoints: config.endpoints,
                connect_timeout: config.connect_timeout,
                clock: config.seams.clock,
                dial: config.seams.dial,
                random: Random::new(config.seams.seed).map_err(system)?,
            },
            inbox,
        );
        seams::start(&config.seams.executor, keeper.run()).map_err(system)?;
        let shared = Shared {
            default_ttl: config.default_ttl,
            last_request: AtomicU64::new(0),
            warned_of_ttl: AtomicBool::new(false),
            process: Process::current(),
        };
        Ok(Client { handle: Handle { commands, shared: Arc::new(shared) } })
    }

    pub(crate) async fn wait_for_server(&self) -> Result<(), Error> {
        let request = self.handle.next_request();
        self.handle.ask(|reply| Command::Connect { request, reply }).await
    }

    /// Describes an acquire of one lock. Awaited, it waits until the lock is granted, as a mutex does.
    ///
    /// Names are compared byte by byte: 1 to 512 bytes of UTF-8 without control characters.
    pub fn lock(&self, name: impl Into<String>) -> LockBuilder {
        LockBuilder::new(self.handle.clone(), vec![name.into()])
    }

    /// Describes an acquire of up to 64 locks at once: all or nothing, one token, one guard. Clients that name the
    /// same locks in different orders cannot block each other.
    pub fn lock_all<S: Into<String>>(&self, names: impl IntoIterator<Item = S>) -> LockBuilder {
        LockBuilder::new(self.handle.clone(), names.into_iter().map(Into::into).collect())
    }

    /// Waits for the lock, runs `work` while it is held, and releases it, also when `work` panics.
    ///
    /// The future can be spawned if what `work` makes can be sent between threads; the compiler looks into the closure
    /// for that:
    ///
    /// ```no_run
    /// # fn example(client: raftlock::Client) {
    /// tokio::spawn(async move {
    ///     client.with_lock("nightly", async |guard| println!("token {}", guard.token())).await
    /// });
    /// # }
    /// ```
    ///
    /// A function that is generic over such closures cannot demand that, because stable Rust has no words for it yet; let
    /// it take a [`LockGuard`] instead.
    ///
    /// # Errors
    ///
    /// What acquiring fails with, and [`Error::Lost`] if the lock is lost before `work` is done; `work` is then
    /// dropped where it stands. That the release found no answer is no error: it is repeated in the background.
    ///
    /// # Cancel safety
    ///
    /// Dropping this drops `work` and releases the lock.
    pub async fn with_lock<T>(
        &self,
        name: impl Into<String>,
        work: impl AsyncFnOnce(&LockGuard) -> T,
    ) -> Result<T, Error> {
        let guard = self.lock(name).await?;
        let output = guard.run(work(&guard)).await?;
        match guard.release().await {
            Ok(()) | Err(Error::Unavailable(_)) => Ok(output),
            Err(error) => Err(error),
        }
    }

    /// Who holds a lock and who waits for it. Linearizable.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a name outside its bounds, [`Error::Unavailable`] without an answer within the
    /// connect timeout.
    pub async fn get(&self, name: impl Into<String>) -> Result<LockInfo, Error> {
        let name = name.into();
        limits::names(std::slice::from_ref(&name))?;
        match self.read(Question::Lock { name }).await? {
            Answer::Lock(info) => Ok(info),
            Answer::Page(_) => unreachable!("a question about a lock is answered by a lock"),
        }
    }

    /// All locks that are held or waited for and whose names begin with `prefix`, by name. Linearizable page by page;
    /// all of it is kept in memory, so prefer [`list_page`](Client::list_page) for more than some thousands.
    ///
    /// # Errors
    ///
    /// As [`get`](Client::get).
    pub async fn list(&self, prefix: impl Into<String>) -> Result<Vec<LockSummary>, Error> {
        let prefix = prefix.into();
        let mut locks = Vec::new();
        let mut from = None;
        loop {
            let page = self.list_page(prefix.as_str(), from.as_deref(), PAGE_SIZE).await?;
            locks.extend(page.locks);
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(locks),
            }
        }
    }

    /// One page of [`list`](Client::list): at most `size` locks (1 to 1,000; 0 is the server's choice), from where
    /// the page before ended.
    ///
    /// # Errors
    ///
    /// As [`get`](Client::get).
    pub async fn list_page(
        &self,
        prefix: impl Into<String>,
        from: Option<&str>,
        size: u32,
    ) -> Result<LockPage, Error> {
        let from = from.unwrap_or_default().to_owned();
        match self.read(Question::Page { prefix: prefix.into(), size, from }).await? {
            Answer::Page(page) => Ok(page),
            Answer::Lock(_) => unreachable!("a question about a page is answered by a page"),
        }
    }

    async fn read(&self, question: Question) -> Result<Answer, Error> {
        let request = self.handle.next_request();
        self.handle.ask(|reply| Command::Read { request, question, reply }).await
    }

    /// Ends the sessions of this client and all its clones, and so frees every lock they hold. Waits until the cluster
    /// has said so, at most 5 s; what it could not reach is free when the TTL is over. Guards that are still alive are
    /// lost before their locks are free. Every later call fails with [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Closing begins when this is first polled, and goes on if the future is dropped.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.handle.check_process().is_ok() {
            self.handle.send(Command::Close { done });
            // An error means that the keeper is gone already, and everything with it.
            let _ = closed.await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("closed", &self.handle.commands.is_closed()).finish_non_exhaustive()
    }
}

/// The way to the keeper. Client, guards and acquires in progress hold one; when the last is gone, the keeper ends.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    default_ttl: Duration,
    last_request: AtomicU64,
    warned_of_ttl: AtomicBool,
    process: Process,
}

impl Handle {
    pub(crate) fn default_ttl(&self) -> Duration {
        self.shared.default_ttl
    }

    pub(crate) fn next_request(&self) -> RequestId {
        RequestId(self.shared.last_request.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Needs no answer. To a keeper that is gone there is nothing left to say.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Posts at once; the answer is awaited by whoever holds the receiver.
    pub(crate) fn post<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<oneshot::Receiver<Result<T, Error>>, Error> {
        self.check_process()?;
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Error::Closed)?;
        Ok(answer)
    }

    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        self.post(command)?.await.unwrap_or(Err(Error::Closed))
    }

    /// A forked child has no keeper thread, and must not use its parent's sessions.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if Process::current() == self.shared.process { Ok(()) } else { Err(Error::Forked) }
    }

    pub(crate) fn warn_of_short_ttl(&self, ttl: Duration) {
        if ttl < TTL_SAFE && !self.shared.warned_of_ttl.swap(true, Ordering::Relaxed) {
            warn!(?ttl, "a TTL below 4 s may not outlast a change of leader; held locks may then be lost");
        }
    }
}
