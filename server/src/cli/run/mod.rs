//! `raftlock run R -- CMD…`: holds a lock while a command runs, and sees to it that the command is dead before the
//! lock can be anybody else's.
//!
//! The command leads a process group of its own (`group.rs`). When renewals find no answer, the group gets TERM while
//! the lease still has time, and KILL before it has none (`plan.rs`). Should this process itself be killed, stopped or
//! stuck, a second one, which knows the group and the deadline, sends the KILL (`watchdog.rs`). A process that leaves
//! the group, as a daemon does, is out of reach of both.

mod group;
mod plan;
mod signals;
mod terminal;
mod watchdog;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use raftlock::{Client, DEFAULT_TTL, LockGuard};

pub use self::group::die_with;
use self::group::{Change, Group};
use self::plan::{Next, Plan};
use self::signals::{Asked, Signals};
use self::terminal::Terminal;
use self::watchdog::Watchdog;
use super::failure::Failure;
use super::lease::Lease;
use super::logging::{self, LogFormat};
use super::target::Target;
use super::{print, values};

/// How often the lease is looked at. Timers stand still while the machine is suspended, and leases do not.
const LOOK: Duration = Duration::from_millis(250);

/// The end of processes that are not our children is not told to us.
const LOOK_AT_GROUP: Duration = Duration::from_millis(10);

/// What was killed is gone within milliseconds. What is not by then hangs in the kernel, and waiting does not help.
const KILLED_LIMIT: Duration = Duration::from_secs(2);

/// The exit code of what KILL ended.
const KILLED: i32 = 128 + libc::SIGKILL;

/// To say goodbye to servers that did not answer before.
const CLOSE_LIMIT_LOST: Duration = Duration::from_secs(1);

/// Hold a lock while a command runs. The lock is renewed; if it is lost, the command is ended before it can be
/// another's.
///
/// CMD finds the fencing token in RAFTLOCK_FENCING_TOKEN and the lock's name in RAFTLOCK_NAME. Its exit code passes
/// through; 76: the lock was lost, 126 or 127: CMD could not be started, 128+n: signal n ended it. TERM, INT, HUP and
/// QUIT go to its process group. What it leaves running in that group is ended before the lock is released.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    lease: Lease,
    /// Wait for the lock at most so long. Default: until it is granted.
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    wait: Option<Duration>,
    /// From TERM to KILL when the lock is being lost; shortened to what the lease allows.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration)]
    kill_after: Duration,
    /// The command and its arguments. No shell is involved.
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

/// Waits for the lock, runs the command, and tells how it went.
pub fn execute(args: Args, target: Target) -> Result<ExitCode, Failure> {
    logging::start("warn", LogFormat::Text)?;
    // Before the runtime and the SDK start their threads: it forks.
    let watchdog = Watchdog::start().map_err(|error| Failure::Other(format!("the watchdog: {error}")))?;
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(run(args, &target, watchdog));
    runtime.shutdown_background();
    outcome
}

async fn run(args: Args, target: &Target, watchdog: Watchdog) -> Result<ExitCode, Failure> {
    let mut signals = Signals::listen()?;
    let ttl = if args.lease.ttl.is_zero() { DEFAULT_TTL } else { args.lease.ttl };
    let client = Client::builder().endpoints(target.addresses()).owner(&target.id).default_ttl(ttl).lazy();
    let client = client.map_err(|error| Failure::from_sdk(&error))?;
    let acquiring = client.lock(&args.lease.resource);
    let acquiring = match args.wait {
        Some(wait) => acquiring.wait(wait),
        None => acquiring,
    };
    // A signal drops the request, which takes it back.
    let acquired = tokio::select! {
        acquired = acquiring => acquired.map_err(|error| Failure::from_sdk(&error)),
        asked = signals.next() => {
            client.close().await;
            return Ok(exit_code(match asked {
                Asked::PassOn(signal) => 128 + signal,
                Asked::LookAtChild | Asked::Suspend => unreachable!("they are listened for once there is a command"),
            }));
        }
    };
    let guard = match acquired {
        Ok(guard) => guard,
        Err(failure) => {
            client.close().await;
            return Err(failure);
        }
    };
    let outcome = hold(&args, ttl, &guard, signals, watchdog).await;
    if guard.is_held() {
        // Closing says the same once more, and waits for it.
        drop(guard);
        client.close().await;
    } else {
        let _ = tokio::time::timeout(CLOSE_LIMIT_LOST, client.close()).await;
    }
    outcome
}

async fn hold(
    args: &Args,
    ttl: Duration,
    guard: &LockGuard,
    signals: Signals,
    mut watchdog: Watchdog,
) -> Result<ExitCode, Failure> {
    // Before the command can end, or the end would be missed.
    let signals = signals.with_command()?;
    let terminal = Terminal::of_stdin();
    let plan = Plan::new(ttl, args.kill_after);
    watchdog.kill_at(guard.remaining(), plan.watchdog_at());
    // Who was stopped between the grant and here may have come late.
    if !matches!(plan.next(guard.remaining()), Next::Run { .. }) {
        return Err(Failure::Lost(format!(
            "the lock {} was lost before the command could start",
            guard.name()
        )));
    }
    let environment =
        [("RAFTLOCK_FENCING_TOKEN", guard.token().to_string()), ("RAFTLOCK_NAME", guard.name().to_owned())];
    let group = match Group::spawn(&args.command, environment, terminal, &watchdog) {
        Ok(group) => group,
        Err(failure) => {
            watchdog.done();
            return Err(failure);
        }
    };
    let kill_after = args.kill_after;
    let supervisor = Supervisor { guard, plan, group, signals, terminal, watchdog, kill_after };
    supervisor.run().await
}

/// Looks after a running command. Its invariant: the group is killed while the lease lasts.
struct Supervisor<'a> {
    guard: &'a LockGuard,
    plan: Plan,
    group: Group,
    signals: Signals,
    terminal: Option<Terminal>,
    watchdog: Watchdog,
    kill_after: Duration,
}

impl Supervisor<'_> {
    async fn run(mut self) -> Result<ExitCode, Failure> {
        let ended = self.until_it_ends().await;
        // Whether the command ended inside the lease is decided here, before anything that takes time.
        let held = self.guard.is_held();
        match ended {
            Some(_) => self.say_what_is_left(),
            None => self.say_it_is_being_lost(),
        }
        self.end_group().await;
        if let Some(terminal) = self.terminal {
            terminal.take_back_from(self.group.id());
        }
        self.watchdog.done();
        match ended {
            Some(code) if held => Ok(exit_code(code)),
            _ => Err(Failure::Lost(format!("the lock {} was lost while the command ran", self.guard.name()))),
        }
    }

    /// The command's code, or `None` when it is time to end it.
    async fn until_it_ends(&mut self) -> Option<i32> {
        loop {
            let Next::Run { at_most } = self.plan.next(self.guard.remaining()) else { return None };
            self.watchdog.kill_at(self.guard.remaining(), self.plan.watchdog_at());
            let asked = tokio::select! {
                asked = self.signals.next() => asked,
                _ = self.guard.lost() => continue,
                () = tokio::time::sleep(at_most.min(LOOK)) => continue,
            };
            match asked {
                Asked::PassOn(signal) => self.group.signal(signal),
                Asked::Suspend => self.suspend(signals::stop_this_process),
                Asked::LookAtChild => match self.group.change() {
                    // While this process was stopped: that was not the command's own end.
                    Some(Change::Ended(KILLED)) if self.watchdog.has_killed() => return None,
                    Some(Change::Ended(code)) => return Some(code),
                    Some(Change::Stopped) => self.suspended_by_terminal(),
                    None => {}
                },
            }
        }
    }

    /// TERM, then KILL when it is time, until nobody is left. The signals of others still go through.
    async fn end_group(&mut self) {
        let (mut waited, mut killed) = (Duration::ZERO, false);
        let mut limit = self.kill_after;
        // A stopped group whose time is up must not run again, not even to hear TERM.
        if !self.group.is_gone() && self.plan.next(self.guard.remaining()) != Next::Kill {
            self.group.terminate();
        }
        while !self.group.is_gone() {
            self.watchdog.kill_at(self.guard.remaining(), self.plan.watchdog_at());
            let in_time = self.plan.next(self.guard.remaining()) != Next::Kill && waited < limit;
            if !killed && !in_time {
                self.group.signal(libc::SIGKILL);
                (waited, killed, limit) = (Duration::ZERO, true, KILLED_LIMIT);
            } else if killed && waited >= limit {
                print::aside(format_args!(
                    "raftlock: process group {} was killed and does not go away",
                    self.group.id()
                ));
                return;
            }
            tokio::select! {
                asked = self.signals.next() => if let Asked::PassOn(signal) = asked {
                    self.group.signal(signal);
                },
                () = tokio::time::sleep(LOOK_AT_GROUP) => waited += LOOK_AT_GROUP,
            }
        }
    }

    /// The terminal's suspend character went to the command, which has the terminal. The job is all of us.
    fn suspended_by_terminal(&mut self) {
        if self.terminal.is_some() {
            self.suspend(signals::suspend_job);
        }
    }

    /// The group stops first, so that it never runs while nobody looks at the lease. `stop` returns after SIGCONT; then
    /// the deadline comes first: a group whose time is up is not continued, and the loop ends it.
    fn suspend(&mut self, stop: fn()) {
        self.group.signal(libc::SIGSTOP);
        if let Some(terminal) = self.terminal {
            terminal.take_back_from(self.group.id());
        }
        stop();
        if !self.is_in_order() {
            return;
        }
        // In the foreground again, so the command may read again.
        if let Some(terminal) = self.terminal.filter(|terminal| terminal.is_ours()) {
            terminal.give_to(self.group.id());
        }
        self.group.signal(libc::SIGCONT);
    }

    fn is_in_order(&self) -> bool {
        matches!(self.plan.next(self.guard.remaining()), Next::Run { .. })
    }

    fn say_it_is_being_lost(&self) {
        let (name, left) = (self.guard.name(), print::brief(self.guard.remaining()));
        print::aside(format_args!(
            "raftlock: the lock {name} could not be renewed, {left} of its lease are left: ending the command"
        ));
    }

    fn say_what_is_left(&self) {
        if !self.group.is_gone() {
            print::aside(format_args!(
                "raftlock: the command left processes in its group {}: ending them",
                self.group.id()
            ));
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    // Exit statuses have eight bits, and 128 + the highest signal, 64, fits too.
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
