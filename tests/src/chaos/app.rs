//! A client process: one application with the real SDK, which acquires, works under its token, writes to a resource that
//! checks it, and gives back. It tells the harness everything, and belongs to it: without one it ends.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock::{Client, Error, LockGuard, LostReason};
use tokio::sync::{mpsc, oneshot};

use super::said::{Said, Told, Voice, now};
use crate::world::lock;

/// How long a client may wait for one lock in the calm: the longest lease of a process that was killed, and all others
/// before it.
const CALM_WAIT: Duration = Duration::from_secs(30);

/// Between two looks at a guard, while it works.
const LOOK: Duration = Duration::from_millis(10);

/// What an application is like.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The owner of its locks
    #[arg(long)]
    name: String,
    /// The nodes
    #[arg(long)]
    endpoints: String,
    /// What it does follows from this
    #[arg(long)]
    seed: u64,
    /// How many locks there are
    #[arg(long)]
    locks: usize,
    /// The shortest lease that it asks for, in milliseconds; the longest is twice as long
    #[arg(long)]
    ttl_ms: u64,
    /// How long a write travels at most, in milliseconds
    #[arg(long)]
    write_ms: u64,
}

/// Lives the life of a client until it is told to close.
///
/// # Errors
/// It could not begin.
pub fn live(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let client = Client::builder().endpoints(args.endpoints.as_str()).owner(&args.name).lazy()?;
        let shared = Shared { args, client, voice: Arc::new(Voice::new()), writes: Arc::default() };
        let (orders, told) = mpsc::channel(64);
        let listener = shared.clone();
        std::thread::spawn(move || listen(&listener, &orders));
        App::new(shared).live(told).await;
        Ok(())
    })
}

/// What the application and its listener share.
#[derive(Clone)]
struct Shared {
    args: Args,
    client: Client,
    voice: Arc<Voice>,
    /// Writes under way, by number.
    writes: Arc<Mutex<BTreeMap<u64, oneshot::Sender<bool>>>>,
}

/// Hands on what the harness says.
fn listen(shared: &Shared, orders: &mpsc::Sender<Told>) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line).expect("the harness speaks as we do") {
            Told::Wrote { number, accepted } => {
                if let Some(write) = lock(&shared.writes).remove(&number) {
                    let _ = write.send(accepted);
                }
            }
            other => {
                if orders.blocking_send(other).is_err() {
                    return;
                }
            }
        }
    }
    // The harness is gone.
    std::process::exit(1);
}

/// A call that was begun: its number, and since when.
#[derive(Clone, Copy)]
struct Ask {
    call: u64,
    asked: u64,
}

struct App {
    shared: Shared,
    rng: fastrand::Rng,
    calls: u64,
    holds: u64,
    writes: u64,
    /// What it keeps until it closes.
    kept: Vec<(u64, LockGuard)>,
}

impl App {
    fn new(shared: Shared) -> App {
        let rng = fastrand::Rng::with_seed(shared.args.seed);
        App { shared, rng, calls: 0, holds: 0, writes: 0, kept: Vec::new() }
    }

    async fn live(mut self, mut told: mpsc::Receiver<Told>) {
        loop {
            match told.try_recv() {
                Ok(Told::Keep { name, ttl_ms }) => self.keep(name, Duration::from_millis(ttl_ms)).await,
                Ok(Told::Calm) => break,
                Ok(Told::Close) => return self.close().await,
                Ok(Told::Wrote { .. }) | Err(_) => self.something().await,
            }
        }
        self.calm().await;
        while let Some(order) = told.recv().await {
            match order {
                Told::Keep { name, ttl_ms } => self.keep(name, Duration::from_millis(ttl_ms)).await,
                Told::Close => return self.close().await,
                Told::Calm | Told::Wrote { .. } => {}
            }
        }
    }

    fn say(&self, what: Said) {
        self.shared.voice.say(what);
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(ms))).await;
    }

    fn some_lock(&mut self) -> String {
        format!("lock-{}", self.rng.usize(0..self.shared.args.locks))
    }

    fn some_ttl(&mut self) -> Duration {
        let shortest = self.shared.args.ttl_ms;
        Duration::from_millis(self.rng.u64(shortest..2 * shortest))
    }

    async fn something(&mut self) {
        match self.rng.u8(0..16) {
            0 => self.change_of_mind().await,
            1..=4 => self.look().await,
            5 | 6 => self.two_at_once().await,
            kind => self.one(kind).await,
        }
        self.pause(1..30).await;
    }

    /// An acquire that the application drops while it waits, or just when it is granted.
    async fn change_of_mind(&mut self) {
        let (name, ttl) = (self.some_lock(), self.some_ttl());
        let patience = Duration::from_millis(self.rng.u64(0..100));
        // Nobody looks at what it comes to: it stays open.
        self.asks(std::slice::from_ref(&name));
        let acquire = self.shared.client.lock(&name).ttl(ttl).into_future();
        let _ = tokio::time::timeout(patience, acquire).await;
    }

    async fn look(&mut self) {
        let (name, asked) = (self.some_lock(), now());
        match self.shared.client.get(&name).await {
            Ok(info) => {
                let token = info.holders.first().map(|holder| holder.token.get());
                self.say(Said::Read { name, token, asked });
            }
            Err(error) => self.failed("get", &error),
        }
    }

    fn failed(&self, what: &str, error: &Error) {
        self.say(Said::Failed { what: format!("{what}: {error}"), kind: format!("{:?}", error.kind()) });
    }

    async fn two_at_once(&mut self) {
        let locks = self.shared.args.locks;
        if locks < 2 {
            return;
        }
        let first = self.rng.usize(0..locks - 1);
        let names = vec![format!("lock-{first}"), format!("lock-{}", first + 1)];
        let (ask, ttl) = (self.asks(&names), self.some_ttl());
        let guard = self.shared.client.lock_all(names.clone()).ttl(ttl).wait(Duration::from_secs(3)).await;
        self.hold(names, guard.map(Some), ask).await;
    }

    async fn one(&mut self, kind: u8) {
        let (name, ttl) = (self.some_lock(), self.some_ttl());
        let ask = self.asks(std::slice::from_ref(&name));
        let builder = self.shared.client.lock(&name).ttl(ttl);
        let guard = match kind {
            7 => builder.try_acquire().await,
            _ => builder.wait(Duration::from_secs(self.rng.u64(1..12))).await.map(Some),
        };
        self.hold(vec![name], guard, ask).await;
    }

    /// Says that it is about to ask.
    fn asks(&mut self, names: &[String]) -> Ask {
        self.calls += 1;
        let ask = Ask { call: self.calls, asked: now() };
        self.say(Said::Asks { call: ask.call, names: names.to_vec() });
        ask
    }

    fn granted(&mut self, names: Vec<String>, guard: &LockGuard, ask: Ask) -> u64 {
        self.holds += 1;
        let Ask { call, asked } = ask;
        self.say(Said::Granted { call, hold: self.holds, names, token: guard.token().get(), asked });
        self.holds
    }

    /// Looks at a guard. The stamp is from before the look: at that time, at least, it was believed to be held.
    fn is_held(&self, hold: u64, guard: &LockGuard) -> bool {
        let at = now();
        let left = guard.remaining();
        if !left.is_zero() {
            self.shared.voice.say_of(at, Said::Held { hold, left: left.as_nanos() as u64 });
        }
        !left.is_zero()
    }

    /// Works under a guard, and gives it back in one way or another.
    async fn hold(&mut self, names: Vec<String>, guard: Result<Option<LockGuard>, Error>, ask: Ask) {
        let guard = match guard {
            Ok(Some(guard)) => guard,
            Ok(None) => return self.say(Said::Refused { call: ask.call, names, asked: ask.asked }),
            Err(error) => return self.failed("acquire", &error),
        };
        let name = names[0].clone();
        let hold = self.granted(names, &guard, ask);
        for _ in 0..self.rng.u8(0..3) {
            if !self.work(hold, &guard).await {
                let why = guard.lost().await;
                return self.say(Said::Lost { hold, why: format!("{why:?}") });
            }
            if self.rng.bool() {
                self.write(&name, guard.token().get()).await;
            }
        }
        if self.rng.u8(0..6) == 0 {
            let ttl = self.some_ttl();
            self.say(Said::Extending { hold, ttl: ttl.as_nanos() as u64 });
            if guard.extend(ttl).await.is_ok() {
                self.say(Said::Extended { hold });
            }
        }
        self.give_back(hold, guard).await;
    }

    async fn give_back(&mut self, hold: u64, guard: LockGuard) {
        if !self.is_held(hold, &guard) {
            let why = guard.lost().await;
            return self.say(Said::Lost { hold, why: format!("{why:?}") });
        }
        self.say(Said::Releasing { hold });
        match self.rng.u8(0..4) {
            0 => drop(guard),
            _ => match guard.release().await {
                Ok(()) => self.say(Said::Released { hold }),
                Err(error) => self.failed("release", &error),
            },
        }
    }

    /// Some time under a guard, looking at it. `false`: it was lost meanwhile.
    async fn work(&mut self, hold: u64, guard: &LockGuard) -> bool {
        for _ in 0..self.rng.u8(1..5) {
            if !self.is_held(hold, guard) {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.is_held(hold, guard)
    }

    /// A write that travels for a while: it was sent under a guard, and arrives whatever has become of that.
    async fn write(&mut self, name: &str, token: u64) {
        self.pause(0..self.shared.args.write_ms).await;
        self.writes += 1;
        let (number, (written, answer)) = (self.writes, oneshot::channel());
        lock(&self.shared.writes).insert(number, written);
        self.say(Said::Write { number, name: name.to_owned(), token });
        let _ = answer.await;
    }

    async fn keep(&mut self, name: String, ttl: Duration) {
        let ask = self.asks(std::slice::from_ref(&name));
        match self.shared.client.lock(&name).ttl(ttl).wait(CALM_WAIT).await {
            Ok(guard) => {
                let hold = self.granted(vec![name], &guard, ask);
                let (lost, voice) = (guard.lost(), self.shared.voice.clone());
                tokio::spawn(async move {
                    let why = lost.await;
                    if why != LostReason::Released {
                        voice.say(Said::Lost { hold, why: format!("{why:?}") });
                    }
                });
                self.kept.push((hold, guard));
            }
            Err(error) => self.failed("keep", &error),
        }
    }

    async fn calm(&mut self) {
        for at in 0..self.shared.args.locks {
            let (name, ttl) = (format!("lock-{at}"), self.some_ttl());
            let ask = self.asks(std::slice::from_ref(&name));
            let guard = self.shared.client.lock(&name).ttl(ttl).wait(CALM_WAIT).await;
            if guard.is_err() {
                self.say(Said::Unserved { name: name.clone() });
            }
            self.hold(vec![name], guard.map(Some), ask).await;
        }
        self.say(Said::Served);
    }

    async fn close(mut self) {
        for (hold, guard) in std::mem::take(&mut self.kept) {
            self.give_back(hold, guard).await;
        }
        self.shared.client.close().await;
        self.say(Said::Closed);
    }
}
