//! Locks by name on a node inside the application: the calls of Cachalot, and what they lack.
//!
//! It keeps one guard for each name, in a session of its own that nobody renews in the background. Leases, tokens and
//! the queue are the SDK's and the cluster's; nothing here measures time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use raftlock::{Client, FencingToken, LockGuard, LostReason};
use tokio::sync::watch;

use crate::builder::NodeBuilder;
use crate::members::MemberView;
use crate::node::{Node, NodeError};

/// Why a call of a [`Coordinator`] had no effect.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorError {
    /// [`Coordinator::connect`] was not called, or [`Coordinator::shutdown`] was.
    #[error("the coordinator is not connected")]
    NotConnected,
    /// This coordinator holds the lock already, or waits for it.
    #[error("this coordinator holds {name:?} already, or waits for it")]
    InUse {
        /// The lock.
        name: String,
    },
    /// This coordinator does not hold the lock.
    #[error("{name:?} is not held by this coordinator{}", .why.map(|why| format!(" any more: {why}")).unwrap_or_default())]
    NotHeld {
        /// The lock.
        name: String,
        /// Why not any more, if it was held.
        why: Option<LostReason>,
    },
    /// The node did not start, or cannot go on.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// What the client said.
    #[error(transparent)]
    Client(#[from] raftlock::Error),
}

/// A lock that a [`Coordinator`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorLock {
    /// Its name.
    pub name: String,
    /// The fencing token of this grant.
    pub token: FencingToken,
    /// How long it stays held if nobody renews it. Local, without I/O.
    pub remaining: Duration,
}

/// A node inside this process, and locks on its cluster by name, as Cachalot has them.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example() -> Result<(), raftlock_server::CoordinatorError> {
/// use raftlock_server::{Coordinator, Node};
///
/// let config = Node::builder().data_dir("/var/lib/billing/raftlock");
/// let coordinator = Coordinator::new("10.0.0.1:7946", ["10.0.0.1:7946"], config);
/// coordinator.connect().await?;
/// let token = coordinator.lock("payment:42", Duration::from_secs(60)).await?; // give it to the resource
/// coordinator.renew("payment:42", Duration::from_secs(30)).await?; // 30 s from now
/// coordinator.release("payment:42").await?;
/// coordinator.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// # What differs from Cachalot
///
/// - Every grant has a fencing token, which `lock` returns: a process that is frozen past its lease does not know that
///   the lock is lost, and the token is the defence.
/// - [`lost`](Coordinator::lost) tells when a lock is lost, before the cluster can grant it to another.
/// - Waiters are served in the order in which they came, and keep their place when the leader changes.
/// - A node remembers: it needs a data folder, and comes back from a crash as itself.
/// - `renew` and `release` of a lock that is not held any more are errors, and change nothing.
///
/// # What differs from `Node::client`
///
/// Locks here are *not* renewed in the background. Each ends when its TTL is over, counted from the grant or from the
/// last [`renew`](Coordinator::renew), however alive its holder is. And a name is used by one task at a time: a second
/// `lock` of it through the same coordinator fails with [`CoordinatorError::InUse`] instead of waiting for itself. When
/// a lock has ended, another task may take the name: `renew` and `release` then speak of the lock of that task. For
/// tasks that contend with each other, [`client`](Coordinator::client) has guards, which cannot be confused.
///
/// All calls may come from any task and any runtime.
pub struct Coordinator {
    plan: NodeBuilder,
    /// Held while the node starts or stops.
    node: tokio::sync::Mutex<Option<Node>>,
    reach: Mutex<Option<Reach>>,
    locks: Arc<Mutex<BTreeMap<String, Slot>>>,
}

/// How calls reach the running node.
#[derive(Clone)]
struct Reach {
    client: Client,
    members: watch::Receiver<Vec<MemberView>>,
    failed: watch::Receiver<Option<NodeError>>,
}

/// What is known of a name.
enum Slot {
    /// Somebody waits for it, under this number.
    Asked(Arc<()>),
    /// It was granted. Whether it is still held, the guard knows.
    Granted(Held),
}

struct Held {
    guard: Arc<LockGuard>,
    /// Whoever takes a clone of the guard has this for as long: so a release finds it nowhere else.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Held {
    fn token_and_turn(&self) -> (FencingToken, Arc<tokio::sync::Mutex<()>>) {
        (self.guard.token(), self.turn.clone())
    }
}

impl Coordinator {
    /// Describes a node that binds `bind`, with these seeds: the first node's only seed is itself. The rest is in
    /// `config`, which needs a data folder. Nothing is started before [`connect`](Coordinator::connect).
    pub fn new<S: Into<String>>(
        bind: impl Into<String>,
        seeds: impl IntoIterator<Item = S>,
        config: NodeBuilder,
    ) -> Coordinator {
        Coordinator {
            plan: config.bind(bind).seeds(seeds),
            node: tokio::sync::Mutex::new(None),
            reach: Mutex::new(None),
            locks: Arc::default(),
        }
    }

    /// Starts the node and waits until it has found its cluster and a leader, however long that takes: the other nodes
    /// may be started later. Connected already, it returns at once.
    ///
    /// # Errors
    /// [`CoordinatorError::Node`]: why the node did not start, or cannot go on. [`CoordinatorError::NotConnected`] if it
    /// is shut down meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future stops waiting. A node that has started goes on, and the next call waits for it.
    pub async fn connect(&self) -> Result<(), CoordinatorError> {
        let (ready, mut failed) = {
            let mut slot = self.node.lock().await;
            let node = match slot.take() {
                Some(node) => node,
                None => self.start().await?,
            };
            let watched = (node.until_ready(), node.watch_failed());
            *slot = Some(node);
            watched
        };
        // Not under the lock: it may take long, and a shutdown must not wait for it.
        tokio::select! {
            biased;
            failed = failed.wait_for(Option::is_some) => match failed {
                Ok(failure) => Err(failure.clone().map_or(CoordinatorError::NotConnected, Into::into)),
                // It was shut down meanwhile.
                Err(_) => Err(CoordinatorError::NotConnected),
            },
            () = ready => Ok(()),
        }
    }

    async fn start(&self) -> Result<Node, CoordinatorError> {
        let node = self.plan.clone().start().await?;
        *lock(&self.reach) =
            Some(Reach { client: node.client(), members: node.watch_members(), failed: node.watch_failed() });
        Ok(node)
    }

    /// Waits until the lock is granted, through outages too, and returns its token. It ends after `ttl`, unless it is
    /// renewed or released.
    ///
    /// # Errors
    /// [`CoordinatorError::InUse`], [`CoordinatorError::Node`] if the node fails meanwhile,
    /// [`CoordinatorError::NotConnected`] if it is shut down, and the client's for a wrong name or TTL.
    ///
    /// # Cancel safety
    /// Dropping the future ends the request: it leaves the queue, and a grant that was under way is released.
    pub async fn lock(&self, name: &str, ttl: Duration) -> Result<FencingToken, CoordinatorError> {
        let (reach, asked) = (self.reach()?, self.ask(name)?);
        let granted = reach.client.lock(name).ttl(ttl).auto_renew(false).await;
        granted.map(|guard| asked.granted(guard)).map_err(|error| self.explain(name, error))
    }

    /// Takes the lock if it is free and nobody waits for it; `None` if not. Never queues.
    ///
    /// # Errors
    /// As [`lock`](Coordinator::lock), and the client's if no answer comes within 5 s; the request is then taken back.
    ///
    /// # Cancel safety
    /// As [`lock`](Coordinator::lock).
    pub async fn try_lock(
        &self,
        name: &str,
        ttl: Duration,
    ) -> Result<Option<FencingToken>, CoordinatorError> {
        let (reach, asked) = (self.reach()?, self.ask(name)?);
        let tried = reach.client.lock(name).ttl(ttl).auto_renew(false).try_acquire().await;
        tried.map(|guard| guard.map(|guard| asked.granted(guard))).map_err(|error| self.explain(name, error))
    }

    /// Lets the lock end `ttl` from now, be that later or sooner than before.
    ///
    /// # Errors
    /// [`CoordinatorError::NotHeld`] if it is not held, or not any more. The client's for a wrong TTL, or if no answer
    /// comes within 5 s: then the lock may be renewed all the same.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the renewal back.
    pub async fn renew(&self, name: &str, ttl: Duration) -> Result<(), CoordinatorError> {
        self.reach()?;
        let (token, turn) = self.look(name, Held::token_and_turn)?;
        let _turn = turn.lock().await;
        // It may have been released while this waited for its turn.
        let guard = self.look(name, |held| (held.guard.token() == token).then(|| held.guard.clone()))?;
        let guard = guard.ok_or_else(|| not_held(name, Some(LostReason::Released)))?;
        guard.extend(ttl).await.map_err(|error| self.explain(name, error))
    }

    /// Releases the lock and waits until the cluster has said so.
    ///
    /// # Errors
    /// [`CoordinatorError::NotHeld`] if it is not held, or not any more. The client's if no answer comes within 5 s:
    /// the release is then still being repeated, until it is answered or the TTL is over.
    ///
    /// # Cancel safety
    /// Once a renewal that is under way is done, the release is on its way, whether or not anybody waits for it.
    pub async fn release(&self, name: &str) -> Result<(), CoordinatorError> {
        self.reach()?;
        let (token, turn) = self.look(name, Held::token_and_turn)?;
        let _turn = turn.lock().await;
        let guard = self.take(name, token).ok_or_else(|| not_held(name, Some(LostReason::Released)))?;
        guard.release().await.map_err(|error| self.explain(name, error))
    }

    /// The fencing token under which this coordinator holds the lock; `None` if it does not.
    pub fn token(&self, name: &str) -> Option<FencingToken> {
        self.look(name, |held| held.guard.is_held().then(|| held.guard.token())).ok()?
    }

    /// The locks that this coordinator holds, by name. What others hold is seen through
    /// [`client`](Coordinator::client).
    pub fn locks(&self) -> Vec<CoordinatorLock> {
        let locks = lock(&self.locks);
        let held = locks.iter().filter_map(|(name, slot)| match slot {
            Slot::Granted(held) => Some((name, &held.guard)).filter(|(_, guard)| guard.is_held()),
            Slot::Asked(_) => None,
        });
        let view = |(name, guard): (&String, &Arc<LockGuard>)| CoordinatorLock {
            name: name.clone(),
            token: guard.token(),
            remaining: guard.remaining(),
        };
        held.map(view).collect()
    }

    /// A future that resolves when the lock, as it is held now, is lost: before the cluster can grant it to another.
    /// At the end of its TTL, for example. If it is released first, it resolves to [`LostReason::Released`].
    ///
    /// # Errors
    /// [`CoordinatorError::NotHeld`] if there is no such lock.
    pub fn lost(
        &self,
        name: &str,
    ) -> Result<impl Future<Output = LostReason> + Send + Sync + use<>, CoordinatorError> {
        self.look(name, |held| held.guard.lost())
    }

    /// The node's client: for locks that are renewed in the background, and to see what others hold.
    ///
    /// # Errors
    /// [`CoordinatorError::NotConnected`].
    pub fn client(&self) -> Result<Client, CoordinatorError> {
        Ok(self.reach()?.client)
    }

    /// The members of the cluster, as the node sees them; none before it is connected.
    pub fn members(&self) -> Vec<MemberView> {
        self.reach().map(|reach| reach.members.borrow().clone()).unwrap_or_default()
    }

    /// Resolves with the reason when the node cannot go on. Its locks are lost then. Pending before
    /// [`connect`](Coordinator::connect) and after [`shutdown`](Coordinator::shutdown). Cancel safe.
    pub async fn failed(&self) -> NodeError {
        match self.reach() {
            Ok(mut reach) => crate::node::first_some(&mut reach.failed).await,
            Err(_) => std::future::pending().await,
        }
    }

    /// Frees all locks, which pass on at once, and stops the node in order; see [`Node::shutdown`] for how long that
    /// may take. Whoever still waits for a lock gets [`CoordinatorError::NotConnected`]. It may be connected again.
    ///
    /// # Cancel safety
    /// Dropping the future ends the node as a crash would.
    pub async fn shutdown(&self) {
        let mut slot = self.node.lock().await;
        *lock(&self.reach) = None;
        if let Some(node) = slot.take() {
            node.shutdown().await;
        }
        // After the end of their session, so that the guards' own releases say nothing new.
        lock(&self.locks).clear();
    }

    /// Frees all locks, takes the node out of its cluster for good, and stops it; see [`Node::leave`]. For a node whose
    /// data folder goes with it: the others need not count it among those that are missing. Its data folder refuses to
    /// start after that.
    ///
    /// # Errors
    /// The cluster did not let it go in time. It has stopped all the same.
    ///
    /// # Cancel safety
    /// Dropping the future ends the node as a crash would.
    pub async fn leave(&self) -> Result<(), CoordinatorError> {
        let mut slot = self.node.lock().await;
        *lock(&self.reach) = None;
        let left = match slot.take() {
            Some(node) => node.leave().await,
            None => Ok(()),
        };
        lock(&self.locks).clear();
        Ok(left?)
    }

    fn reach(&self) -> Result<Reach, CoordinatorError> {
        lock(&self.reach).clone().ok_or(CoordinatorError::NotConnected)
    }

    /// Takes the name for one request, unless it is in use. Locks that have ended are forgotten on the way, so the map
    /// does not grow with names that are used once.
    fn ask(&self, name: &str) -> Result<Asked, CoordinatorError> {
        let mut locks = lock(&self.locks);
        locks.retain(|_, slot| match slot {
            Slot::Granted(held) => held.guard.is_held(),
            Slot::Asked(_) => true,
        });
        match locks.entry(name.to_owned()) {
            Entry::Occupied(_) => Err(CoordinatorError::InUse { name: name.to_owned() }),
            Entry::Vacant(free) => {
                let number = Arc::new(());
                free.insert(Slot::Asked(number.clone()));
                Ok(Asked { locks: self.locks.clone(), name: name.to_owned(), number })
            }
        }
    }

    fn look<T>(&self, name: &str, at: impl FnOnce(&Held) -> T) -> Result<T, CoordinatorError> {
        match lock(&self.locks).get(name) {
            Some(Slot::Granted(held)) => Ok(at(held)),
            Some(Slot::Asked(_)) | None => Err(not_held(name, None)),
        }
    }

    /// Takes the guard out, if it is still that of `token`. The caller has its turn, so nobody else has it in hand.
    fn take(&self, name: &str, token: FencingToken) -> Option<LockGuard> {
        let mut locks = lock(&self.locks);
        match locks.get(name) {
            Some(Slot::Granted(held)) if held.guard.token() == token => {}
            _ => return None,
        }
        match locks.remove(name) {
            Some(Slot::Granted(held)) => Arc::into_inner(held.guard),
            _ => None,
        }
    }

    fn explain(&self, name: &str, error: raftlock::Error) -> CoordinatorError {
        match (error, self.reach()) {
            (_, Err(_)) => CoordinatorError::NotConnected,
            (raftlock::Error::Lost(why), _) => not_held(name, Some(why)),
            (raftlock::Error::Closed, Ok(reach)) => match reach.failed.borrow().clone() {
                Some(failure) => failure.into(),
                None => raftlock::Error::Closed.into(),
            },
            (error, _) => error.into(),
        }
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("locks", &self.locks()).finish_non_exhaustive()
    }
}

/// A name that is asked for; dropped, it is free again.
struct Asked {
    locks: Arc<Mutex<BTreeMap<String, Slot>>>,
    name: String,
    number: Arc<()>,
}

impl Asked {
    fn granted(self, guard: LockGuard) -> FencingToken {
        let token = guard.token();
        let held = Held { guard: Arc::new(guard), turn: Arc::default() };
        let mut locks = lock(&self.locks);
        // A shutdown has emptied the map: then the guard is lost already.
        if locks.get(&self.name).is_some_and(|slot| self.is_ours(slot)) {
            locks.insert(self.name.clone(), Slot::Granted(held));
        }
        token
    }

    fn is_ours(&self, slot: &Slot) -> bool {
        matches!(slot, Slot::Asked(number) if Arc::ptr_eq(number, &self.number))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut locks = lock(&self.locks);
        if locks.get(&self.name).is_some_and(|slot| self.is_ours(slot)) {
            locks.remove(&self.name);
        }
    }
}

fn not_held(name: &str, why: Option<LostReason>) -> CoordinatorError {
    CoordinatorError::NotHeld { name: name.to_owned(), why }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
