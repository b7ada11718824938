//! The harness's side of the client processes: starts them, hears what they say, is the resource that they write to, and
//! keeps the history.
//!
//! When a client stopped believing is taken from its last look at the guard, so a process that was stopped, or killed, or
//! did not run for a while is not held to have believed meanwhile: it needs no excuse, and gets none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::nodes::{founders, signal_process, within};
use super::place::{CLIENT_PORT, Host};
use super::said::{Line, Said, Told, now};
use crate::history::{AcquireId, Answer, ExtensionId, History, HoldId};
use crate::tally::Tally;
use crate::world::lock;

/// Locks that all clients share.
pub(crate) const LOCKS: usize = 4;

/// How long the calm may take: everybody waits for everybody, for every lock.
const CALM_LIMIT: Duration = Duration::from_secs(60);

/// What is left of a lease by a clock that is off by less than a percent, at least.
const CLOCK_OFF: f64 = 0.99;

/// Between two looks, 10 ms apart, a clock that is off by half a percent makes a difference of 50 us. What makes more is a
/// renewal, however soon after another, or a wait for a core between two readings, which the next pair undoes.
const MOVED: i64 = 2_000_000;

/// How long a client may take to give everything back and end.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// All clients of a run.
pub(crate) struct Crowd {
    seed: u64,
    ttl: Duration,
    /// How long a write travels at most.
    pub(crate) write_time: Duration,
    folder: PathBuf,
    clients: Vec<Process>,
    seen: Arc<Seen>,
    /// In place of the defaults, by host.
    environment: BTreeMap<Host, Vec<(String, String)>>,
}

/// One process. A client that is started again is another one, under another name.
struct Process {
    host: Host,
    name: String,
    child: Child,
    input: Arc<Mutex<ChildStdin>>,
    listener: JoinHandle<()>,
}

/// What all clients said.
struct Seen {
    history: History,
    /// What the history takes for now: when the line at hand was said.
    clock: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    /// By client and number.
    calls: BTreeMap<(String, u64), AcquireId>,
    /// By client and number.
    holds: BTreeMap<(String, u64), Held>,
    resources: BTreeMap<String, u64>,
    kept: BTreeMap<String, u64>,
    served: BTreeSet<String>,
    unserved: Vec<String>,
    closed: BTreeSet<String>,
    paces: BTreeMap<String, Pace>,
    losses: Vec<String>,
    failures: Vec<String>,
}

struct Held {
    ids: Vec<HoldId>,
    /// Extensions that are not answered.
    extensions: Vec<ExtensionId>,
    /// When it was last looked at, and held.
    believed: u64,
    /// How many nanoseconds were left then, if that was said.
    left: Option<u64>,
    open: bool,
}

/// How fast a client's leases run out, by its own clock and by the true one, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Pace {
    own: i64,
    real: i64,
}

impl Pace {
    /// Between two looks at one guard. Where the end was moved in between, the difference says nothing.
    fn add(&mut self, real: u64, left_before: u64, left: u64) {
        let (real, own) = (real as i64, left_before as i64 - left as i64);
        if (real - own).abs() < MOVED {
            self.real += real;
            self.own += own;
        }
    }
}

impl Crowd {
    /// Nobody yet.
    pub(crate) fn new(seed: u64, ttl: Duration, folder: &Path) -> Crowd {
        let clock = Arc::new(AtomicU64::new(0));
        let read = clock.clone();
        let history = History::with_clock(move || Duration::from_nanos(read.load(Ordering::Relaxed)));
        let seen = Arc::new(Seen { history, clock, state: Mutex::default() });
        Crowd {
            seed,
            ttl,
            write_time: Duration::from_millis(150),
            folder: folder.to_owned(),
            clients: Vec::new(),
            seen,
            environment: BTreeMap::new(),
        }
    }

    /// A client at every host, all at work.
    pub(crate) fn begin(&mut self) -> anyhow::Result<()> {
        Host::clients().try_for_each(|host| self.add(host))
    }

    /// Every start at this host from here on sees these variables.
    pub(crate) fn set_environment(&mut self, host: Host, environment: &[(&str, String)]) {
        let owned = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        self.environment.insert(host, owned.collect());
    }

    /// One more process at a host.
    pub(crate) fn add(&mut self, host: Host) -> anyhow::Result<()> {
        let number = self.clients.len();
        let name = format!("{}.{number}", host.name());
        let endpoints: Vec<String> =
            founders().map(|node| format!("{}:{CLIENT_PORT}", node.shared())).collect();
        let program = std::env::current_exe().context("the path of this program")?;
        let mut command = host.command(program.to_str().context("a path of plain letters")?);
        command.args(["client", "--name", &name, "--endpoints", &endpoints.join(",")]);
        command.args(["--seed", &(self.seed ^ ((number as u64 + 1) << 32)).to_string()]);
        command.args(["--locks", &LOCKS.to_string(), "--ttl-ms", &self.ttl.as_millis().to_string()]);
        command.args(["--write-ms", &self.write_time.as_millis().to_string()]);
        command.envs(self.environment.get(&host).into_iter().flatten().map(|(name, value)| (name, value)));
        let errors = std::fs::File::create(self.folder.join(format!("{name}.log")))?;
        // Its input is a plain pipe: what it is told is short, and said from anywhere.
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn().context("ip, of iproute2")?;
        let input = child.stdin.take().expect("it is piped").into_owned_fd()?;
        let input = Arc::new(Mutex::new(ChildStdin::from(input)));
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (seen, client, answers) = (self.seen.clone(), name.clone(), input.clone());
        let listener = tokio::spawn(async move {
            let mut lines = output.lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let line = serde_json::from_str(&line).expect("a client speaks as we do");
                seen.hear(&client, line, &answers);
            }
        });
        self.clients.push(Process { host, name, child, input, listener });
        Ok(())
    }

    /// The hosts whose clients are up.
    pub(crate) fn up(&self) -> Vec<Host> {
        self.clients.iter().map(|client| client.host).collect()
    }

    /// The process at a host.
    pub(crate) fn pid(&self, host: Host) -> anyhow::Result<u32> {
        self.client(host)?.child.id().context("it is up")
    }

    /// Stops a client for a while, as under SIGSTOP.
    pub(crate) async fn freeze(&self, host: Host, time: Duration) -> anyhow::Result<()> {
        let pid = self.pid(host)?;
        signal_process(pid, Signal::STOP)?;
        self.seen.count("clients frozen");
        tokio::time::sleep(time).await;
        signal_process(pid, Signal::CONT)
    }

    /// `kill -9`; another begins in its place.
    pub(crate) async fn kill(&mut self, host: Host) -> anyhow::Result<()> {
        let at = self.clients.iter().position(|client| client.host == host).context("no client is there")?;
        let mut client = self.clients.remove(at);
        client.child.kill().await?;
        client.listener.await?;
        self.seen.died(&client.name);
        self.seen.count("clients killed");
        self.add(host)
    }

    fn client(&self, host: Host) -> anyhow::Result<&Process> {
        self.clients.iter().find(|client| client.host == host).context("no client is there")
    }

    /// Has a client take a lock of its own besides its work, and keep it: waits until it has it.
    pub(crate) async fn keep(&self, host: Host, name: &str, ttl: Duration) -> anyhow::Result<()> {
        let client = self.client(host)?;
        client.tell(&Told::Keep { name: name.to_owned(), ttl_ms: ttl.as_millis() as u64 })?;
        let kept = within(CALM_LIMIT, async || lock(&self.seen.state).kept.contains_key(name).then_some(()));
        kept.await.with_context(|| format!("{} did not get {name} to keep", client.name))
    }

    /// What is kept: the names and the tokens.
    pub(crate) fn kept(&self) -> BTreeMap<String, u64> {
        lock(&self.seen.state).kept.clone()
    }

    /// Every client takes every lock once, now that all is well.
    pub(crate) async fn calm(&mut self) -> anyhow::Result<()> {
        self.clients.iter().try_for_each(|client| client.tell(&Told::Calm))?;
        let all_served = within(CALM_LIMIT, async || {
            let state = lock(&self.seen.state);
            if !state.unserved.is_empty() {
                return Some(Err(anyhow!("liveness: {}", state.unserved.join("; "))));
            }
            self.clients.iter().all(|client| state.served.contains(&client.name)).then_some(Ok(()))
        });
        all_served.await.unwrap_or_else(|| {
            let state = lock(&self.seen.state);
            let missing = self.clients.iter().filter(|client| !state.served.contains(&client.name));
            let names: Vec<&str> = missing.map(|client| client.name.as_str()).collect();
            Err(anyhow!("liveness: not through after {CALM_LIMIT:?} of calm: {names:?}"))
        })
    }

    /// Every client gives back what it keeps, closes, and ends.
    pub(crate) async fn close(&mut self) -> anyhow::Result<()> {
        self.clients.iter().try_for_each(|client| client.tell(&Told::Close))?;
        for mut client in std::mem::take(&mut self.clients) {
            let ended = tokio::time::timeout(CLOSE_LIMIT, client.child.wait()).await;
            let status = ended.with_context(|| format!("{} does not end", client.name))??;
            client.listener.await?;
            ensure!(status.success(), "{} ended with {status}", client.name);
            ensure!(lock(&self.seen.state).closed.contains(&client.name), "{} did not close", client.name);
        }
        Ok(())
    }

    /// Runs every check that looks at what clients saw.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.seen.history.check().map_err(|violation| anyhow!("{violation}"))?;
        Ok(())
    }

    /// What clients saw, to be looked at again with `prove history`.
    pub(crate) fn history(&self) -> String {
        self.seen.history.lines()
    }

    /// H10: everything that is held by what clients saw is held by the cluster, under its token; and nothing that is over.
    pub(crate) fn check_durable(&self, holders: &BTreeSet<(String, u64)>) -> anyhow::Result<()> {
        self.seen.history.check_durable(holders).map_err(|violation| anyhow!("{violation}"))?;
        Ok(())
    }

    /// A client that ended although nobody asked it to has found a fault of its own.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            if let Some(status) = client.child.try_wait()? {
                bail!("{} ended by itself: {status}", client.name);
            }
        }
        Ok(())
    }

    /// Guards that were lost so far, as their clients say.
    pub(crate) fn losses(&self) -> Vec<String> {
        lock(&self.seen.state).losses.clone()
    }

    /// Calls that failed so far, but for waits that were over.
    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.seen.state).failures.clone()
    }

    /// By how much the leases of the client at a host run out faster than real time: 0.005 is half a percent.
    pub(crate) fn pace(&self, host: Host) -> anyhow::Result<f64> {
        let name = &self.client(host)?.name;
        let state = lock(&self.seen.state);
        let pace = state.paces.get(name).with_context(|| format!("{name} held nothing"))?;
        Ok(pace.own as f64 / pace.real as f64 - 1.0)
    }

    /// In counts.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = lock(&self.seen.state).tally.clone();
        tally.add("unknown operations", self.seen.history.unknown() as u64);
        tally
    }
}

impl Process {
    fn tell(&self, what: &Told) -> anyhow::Result<()> {
        tell(&self.input, what).with_context(|| format!("{} is gone", self.name))
    }
}

fn tell(input: &Mutex<ChildStdin>, what: &Told) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(lock(input).write_all(&line)?)
}

impl Seen {
    fn count(&self, what: &str) {
        lock(&self.state).tally.add(what, 1);
    }

    fn hear(&self, client: &str, line: Line, answers: &Mutex<ChildStdin>) {
        let mut state = lock(&self.state);
        self.clock.store(line.at, Ordering::Relaxed);
        let key = |hold| (client.to_owned(), hold);
        match line.what {
            Said::Asks { call, names } => {
                state.calls.insert(key(call), self.history.asks(client, &names));
            }
            Said::Refused { call, names, asked } => {
                state.tally.add("refusals", 1);
                self.history.answered(state.calls[&key(call)], Answer::Refused);
                let asked = Duration::from_nanos(asked);
                names.iter().for_each(|name| self.history.refused(client, name, None, asked));
            }
            Said::Granted { call, hold, names, token, asked } => {
                state.tally.add("grants", 1);
                self.history.answered(state.calls[&key(call)], Answer::Granted(token));
                let asked = Duration::from_nanos(asked);
                let grant = |name: &String| self.history.granted(client, name, token, asked);
                let ids = names.iter().map(grant).collect();
                state.holds.insert(
                    key(hold),
                    Held { ids, extensions: Vec::new(), believed: line.at, left: None, open: true },
                );
                if names[0].starts_with("kept-") {
                    state.kept.insert(names[0].clone(), token);
                }
            }
            Said::Held { hold, left } => {
                let held = state.hold(key(hold));
                let since = line.at.saturating_sub(std::mem::replace(&mut held.believed, line.at));
                let before = held.left.replace(left);
                // The client's clock may be wrong by a part of that.
                let sure = Duration::from_nanos(left).mul_f64(CLOCK_OFF);
                held.ids.iter().for_each(|id| self.history.promised(*id, sure));
                if let Some(before) = before {
                    state.paces.entry(client.to_owned()).or_default().add(since, before, left);
                }
            }
            Said::Extending { hold, ttl } => {
                let held = state.hold(key(hold));
                let extending = |id: &HoldId| self.history.extending(*id, Duration::from_nanos(ttl));
                held.extensions.extend(held.ids.iter().map(extending));
            }
            Said::Extended { hold } => {
                let extensions = std::mem::take(&mut state.hold(key(hold)).extensions);
                extensions.into_iter().for_each(|extension| self.history.extended(extension));
            }
            Said::Releasing { hold } => self.end(state.hold(key(hold)), History::releasing),
            Said::Released { hold } => {
                state.tally.add("releases answered", 1);
                let held = state.hold(key(hold));
                held.ids.iter().for_each(|id| self.history.released(*id));
            }
            Said::Lost { hold, why } => {
                state.tally.add("guards lost", 1);
                state.losses.push(format!("{client} {hold}: {why}"));
                self.end(state.hold(key(hold)), History::lost);
            }
            Said::Failed { what, kind } => {
                state.tally.add(&format!("calls that ended with {kind}"), 1);
                if kind != "WaitTimeout" {
                    state.failures.push(format!("{client}: {what}"));
                }
            }
            Said::Read { name, token, asked } => {
                state.tally.add("reads", 1);
                self.history.read(client, &name, token, Duration::from_nanos(asked));
            }
            Said::Write { number, name, token } => {
                let highest = state.resources.entry(name.clone()).or_default();
                let accepted = token >= *highest;
                *highest = token.max(*highest);
                state.tally.add(if accepted { "writes accepted" } else { "stale writes refused" }, 1);
                self.history.wrote(&name, client, token, accepted);
                drop(state);
                // A client that was killed meanwhile does not read it.
                let _ = tell(answers, &Told::Wrote { number, accepted });
            }
            Said::Served => drop(state.served.insert(client.to_owned())),
            Said::Unserved { name } => state.unserved.push(format!("{client} did not get {name}")),
            Said::Closed => drop(state.closed.insert(client.to_owned())),
        }
    }

    /// A hold ended: it was believed in until it was last looked at.
    fn end(&self, held: &mut Held, how: fn(&History, HoldId)) {
        if std::mem::take(&mut held.open) {
            self.clock.store(held.believed, Ordering::Relaxed);
            held.ids.iter().for_each(|id| how(&self.history, *id));
        }
    }

    /// A process was killed: it believes nothing any more, and what it held ends with its lease.
    fn died(&self, client: &str) {
        let mut state = lock(&self.state);
        let theirs = state.holds.iter_mut().filter(|((owner, _), _)| owner == client);
        theirs.for_each(|(_, held)| self.end(held, History::releasing));
        self.clock.store(now(), Ordering::Relaxed);
    }
}

impl State {
    fn hold(&mut self, key: (String, u64)) -> &mut Held {
        self.holds.get_mut(&key).expect("a hold begins with its grant")
    }
}
