//! Applications of the simulated world: each a process with one SDK client, which acquires, works under its token, and
//! gives back in every way there is. In the chaos they do what their seed says; in the calm after it each of them takes
//! every lock once, which nobody can do who was left waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock::{Client, Error, LockGuard};

use super::freeze::Ice;
use super::hosts::CLIENT_PORT;
use super::lock;
use super::plan::Plan;
use super::run::Trace;
use crate::history::{AcquireId, Answer, History, HoldId};
use crate::tally::Tally;

/// How long a client may wait for one lock in the calm. The longest lease of a process that died is 10 s, one that a
/// replaced node took with it may wait for a new leader, and seven others take their turn.
pub(crate) const CALM_WAIT: Duration = Duration::from_secs(40);

/// The highest token that each resource has seen.
type Resources = Arc<Mutex<BTreeMap<String, u64>>>;

/// What all clients share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) plan: Arc<Plan>,
    pub(crate) history: History,
    pub(crate) trace: Trace,
    pub(crate) tally: Arc<Mutex<Tally>>,
    resources: Resources,
    /// The first client that was not served in the calm, as it says.
    pub(crate) unserved: Arc<Mutex<Option<String>>>,
    /// Who is through with the calm.
    pub(crate) done: Arc<Mutex<Vec<&'static str>>>,
}

impl Shared {
    pub(crate) fn new(plan: Arc<Plan>, trace: Trace) -> Shared {
        let history = History::with_clock(|| turmoil::sim_elapsed().unwrap_or_default());
        Shared {
            plan,
            history,
            trace,
            tally: Arc::default(),
            resources: Arc::default(),
            unserved: Arc::default(),
            done: Arc::default(),
        }
    }

    pub(crate) fn count(&self, what: &str) {
        lock(&self.tally).add(what, 1);
    }
}

/// One process. A restarted one is another, under another name.
struct Process {
    shared: Shared,
    name: String,
    rng: fastrand::Rng,
    client: Client,
    /// How fast its clock goes.
    rate: f64,
}

/// Runs the application of one host in its `life`-th life.
pub(crate) async fn work(host: &'static str, life: u64, shared: Shared, ice: Ice) -> turmoil::Result {
    let mut process = Process::start(host, life, shared.clone(), ice.clone())?;
    ice.around(async move {
        while process.now() < process.shared.plan.chaos {
            process.something().await;
        }
        process.calm().await;
        process.client.close().await;
    })
    .await;
    lock(&shared.done).push(host);
    Ok(())
}

impl Process {
    fn start(host: &'static str, life: u64, shared: Shared, ice: Ice) -> Result<Process, Error> {
        let plan = shared.plan.clone();
        let at =
            plan.client_hosts().iter().position(|name| *name == host).expect("a host of the plan") as u64;
        let name = format!("{host}.{life}");
        let rng = fastrand::Rng::with_seed(plan.seed.wrapping_mul(31) ^ (at << 32) ^ life);
        let rate = plan.rates[1][at as usize];
        let endpoints = plan.hosts().iter().map(|node| format!("http://{node}:{CLIENT_PORT}"));
        let seams = raftlock::seams::Seams {
            clock: Arc::new(move || turmoil::sim_elapsed().unwrap_or_default().mul_f64(rate)),
            executor: raftlock::seams::Executor::Given(Arc::new(move |keeper| {
                drop(tokio::spawn(ice.around(keeper)));
            })),
            dial: Arc::new(|address| {
                Box::pin(async move {
                    let stream = turmoil::net::TcpStream::connect(address).await?;
                    Ok(raftlock::seams::Connection::new(stream))
                })
            }),
            seed: Some(plan.seed ^ (at + 1) ^ (life << 40)),
        };
        let client =
            Client::builder().endpoints(endpoints.collect::<Vec<_>>()).owner(&name).seams(seams).lazy()?;
        Ok(Process { shared, name, rng, client, rate })
    }

    fn now(&self) -> Duration {
        self.shared.history.now()
    }

    fn say(&self, what: &str) {
        self.shared.trace.line(self.now(), &format!("{} {what}", self.name));
    }

    fn some_lock(&mut self) -> String {
        format!("lock-{}", self.rng.usize(0..self.shared.plan.locks))
    }

    fn some_ttl(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(self.shared.plan.ttl_ms.clone()))
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(ms))).await;
    }

    async fn something(&mut self) {
        match self.rng.u8(0..20) {
            0 | 1 => self.change_of_mind().await,
            2 => self.share().await,
            3 | 6 | 7 => self.look().await,
            4 | 5 => self.two_at_once().await,
            kind => self.one(kind).await,
        }
        self.pause(1..80).await;
    }

    /// An acquire that the application drops while it waits, or just when it is granted.
    async fn change_of_mind(&mut self) {
        let (lock, ttl) = (self.some_lock(), self.some_ttl());
        let patience = Duration::from_millis(self.rng.u64(0..200));
        // Nobody looks at what it comes to: it stays open.
        self.shared.history.asks(&self.name, std::slice::from_ref(&lock));
        let acquire = self.client.lock(&lock).ttl(ttl).into_future();
        if tokio::time::timeout(patience, acquire).await.is_err() {
            self.shared.count("acquires dropped");
            self.say(&format!("drops its acquire of {lock}"));
        }
    }

    /// Shared locks and permits: they are granted to several at once, so what the history says of holders is not for them.
    async fn share(&mut self) {
        let ttl = self.some_ttl();
        let builder = match self.rng.bool() {
            true => self.client.lock("shared").shared(),
            false => self.client.lock("permits").permits(self.rng.u32(1..=2), 3),
        };
        if let Ok(guard) = builder.ttl(ttl).wait(Duration::from_secs(2)).await {
            self.shared.count("shared grants");
            self.pause(1..300).await;
            drop(guard);
        }
    }

    async fn look(&mut self) {
        let (lock, asked) = (self.some_lock(), self.now());
        if let Ok(info) = self.client.get(&lock).await {
            let token = info.holders.first().map(|holder| holder.token.get());
            self.shared.history.read(&self.name, &lock, token, asked);
            self.shared.count("reads");
        }
    }

    async fn two_at_once(&mut self) {
        if self.shared.plan.locks < 2 {
            return;
        }
        let first = self.rng.usize(0..self.shared.plan.locks - 1);
        let names = [format!("lock-{first}"), format!("lock-{}", first + 1)];
        let (asked, ttl) = (self.now(), self.some_ttl());
        let acquire = self.shared.history.asks(&self.name, &names);
        let guard = self.client.lock_all(names.clone()).ttl(ttl).wait(Duration::from_secs(3)).await;
        self.hold(&names, guard.map(Some), asked, acquire).await;
    }

    async fn one(&mut self, kind: u8) {
        let (name, ttl, asked) = (self.some_lock(), self.some_ttl(), self.now());
        let acquire = self.shared.history.asks(&self.name, std::slice::from_ref(&name));
        let builder = self.client.lock(&name).ttl(ttl).auto_renew(kind != 8);
        let guard = match kind {
            9 | 10 => builder.try_acquire().await,
            _ => builder.wait(Duration::from_secs(self.rng.u64(1..12))).await.map(Some),
        };
        self.hold(&[name], guard, asked, acquire).await;
    }

    /// Works under a guard, and gives it back in one way or another.
    async fn hold(
        &mut self,
        names: &[String],
        guard: Result<Option<LockGuard>, Error>,
        asked: Duration,
        acquire: AcquireId,
    ) {
        let guard = match guard {
            Ok(Some(guard)) => guard,
            Ok(None) => {
                self.shared.history.answered(acquire, Answer::Refused);
                names.iter().for_each(|name| self.shared.history.refused(&self.name, name, None, asked));
                return self.say("finds it held");
            }
            Err(error) => {
                if let Error::WaitTimeout(timeout) = &error {
                    self.shared.history.answered(acquire, Answer::Refused);
                    if let Some(token) = timeout.token {
                        self.shared.history.refused(&self.name, &timeout.name, Some(token.get()), asked);
                    }
                }
                self.shared.count("acquires without a grant");
                self.say(&format!("did not get {names:?}: {:?}", error.kind()));
                return self.pause(50..200).await;
            }
        };
        let token = guard.token().get();
        let history = self.shared.history.clone();
        history.answered(acquire, Answer::Granted(token));
        let held: Vec<HoldId> =
            names.iter().map(|name| history.granted(&self.name, name, token, asked)).collect();
        self.shared.count("grants");
        self.note_promise(&guard, &held);
        self.say(&format!("holds {names:?} under {token}"));
        let long = self.rng.u8(0..20) == 0 && self.now() < self.shared.plan.chaos;
        let (pieces, piece) = if long { (4, 100..1_500) } else { (2, 1..200) };
        for _ in 0..self.rng.u8(0..=pieces) {
            let rest = Duration::from_millis(self.rng.u64(piece.clone()));
            tokio::select! {
                biased;
                why = guard.lost() => {
                    held.iter().for_each(|hold| history.lost(*hold));
                    self.shared.count("guards lost");
                    return self.say(&format!("lost {names:?}: {why}"));
                }
                () = tokio::time::sleep(rest) => {}
            }
            self.note_promise(&guard, &held);
            if guard.is_held() {
                // It looked, and then the write is under way: whatever happens now, it will arrive.
                let write = self.write(&names[0], token);
                noting_the_loss(&guard, &held, &history, write).await;
            }
        }
        if self.rng.u8(0..6) == 0 {
            let ttl = self.some_ttl();
            let extensions: Vec<_> = held.iter().map(|hold| history.extending(*hold, ttl)).collect();
            if noting_the_loss(&guard, &held, &history, guard.extend(ttl)).await.is_ok() {
                extensions.iter().for_each(|extension| history.extended(*extension));
                self.note_promise(&guard, &held);
            }
        }
        held.iter().for_each(|hold| history.releasing(*hold));
        match self.rng.u8(0..4) {
            0 => drop(guard),
            _ => {
                if guard.release().await.is_ok() {
                    held.iter().for_each(|hold| history.released(*hold));
                }
            }
        }
        self.say(&format!("is through with {names:?}"));
    }

    /// For how long, at least, the client counts on its lease.
    fn note_promise(&self, guard: &LockGuard, held: &[HoldId]) {
        let remaining = guard.remaining().div_f64(self.rate);
        held.iter().for_each(|hold| self.shared.history.promised(*hold, remaining));
    }

    /// A write that travels for a while. The resource takes it unless it has seen a newer token.
    async fn write(&mut self, name: &str, token: u64) {
        self.pause(0..200).await;
        let accepted = {
            let mut resources = lock(&self.shared.resources);
            let highest = resources.entry(name.to_owned()).or_default();
            *highest = token.max(*highest);
            *highest == token
        };
        self.shared.history.wrote(name, &self.name, token, accepted);
        self.shared.count(if accepted { "writes accepted" } else { "stale writes refused" });
    }

    async fn calm(&mut self) {
        for at in 0..self.shared.plan.locks {
            let (name, ttl) = (format!("lock-{at}"), self.some_ttl());
            let began = self.now();
            loop {
                let asked = self.now();
                let acquire = self.shared.history.asks(&self.name, std::slice::from_ref(&name));
                let guard = self.client.lock(&name).ttl(ttl).wait(CALM_WAIT).await;
                if guard.is_ok() {
                    self.hold(&[name], guard.map(Some), asked, acquire).await;
                    break;
                }
                // What began in the chaos may end in the calm; what begins in it does not.
                let late = self.now() - began;
                if late >= CALM_WAIT {
                    let what = format!("{} did not get {name} within {late:?} of calm", self.name);
                    lock(&self.shared.unserved).get_or_insert(what);
                    return;
                }
                self.pause(50..200).await;
            }
        }
    }
}

/// Does what the application is busy with; a loss meanwhile is noted when it is seen, as a guard's other users see it.
async fn noting_the_loss<T>(
    guard: &LockGuard,
    held: &[HoldId],
    history: &History,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        _ = guard.lost() => {
            held.iter().for_each(|hold| history.lost(*hold));
            work.await
        }
        done = &mut work => done,
    }
}
