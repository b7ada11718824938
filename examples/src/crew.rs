//! Worker processes: this executable again, once for each worker, so that one can be frozen or killed alone.
//!
//! [`main`] tells worker and parent apart. A worker prints what it does; the parent hears it line by line. At a point
//! where the parent wants to act, a worker [waits for its word](Parent::wait_for_go), so nothing depends on who is
//! faster.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc as std_mpsc};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

/// The line by which a worker says that it waits for the parent's word.
const WAITS: &str = "(waits)";

/// The first argument of a worker.
const WORKER: &str = "worker";

/// How many lines may lie unread; then the workers wait for the parent.
const LINES_MAX: usize = 256;

/// An example's `main`: `work` with the arguments that [`Crew::start`] gave, or else `oversee` with the user's.
pub async fn main<W: Parser, A: Parser>(
    work: impl AsyncFnOnce(W) -> Result<()>,
    oversee: impl AsyncFnOnce(A) -> Result<ExitCode>,
) -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let ended = if arguments.peek().is_some_and(|first| first == WORKER) {
        // What is skipped is in the place of a program's name.
        work(W::parse_from(arguments)).await.map(|()| ExitCode::SUCCESS)
    } else {
        oversee(A::parse()).await
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// What a worker did.
#[derive(Debug)]
pub enum Event {
    /// It printed a line.
    Says(String),
    /// It is where it was told to wait, and does nothing before [`Crew::go`].
    Waits,
    /// It is gone.
    Ended(ExitStatus),
}

/// All workers, as the parent sees them. Dropping it kills those that are left.
pub struct Crew {
    running: BTreeMap<u32, Worker>,
    lines: mpsc::Receiver<(u32, Option<String>)>,
    hear: mpsc::Sender<(u32, Option<String>)>,
}

/// Its process is reaped in [`Crew::next`] only, so a signal never meets another process under the same id.
struct Worker {
    process: Child,
    stdin: ChildStdin,
}

impl Crew {
    /// Nobody yet.
    pub fn new() -> Crew {
        let (hear, lines) = mpsc::channel(LINES_MAX);
        Crew { running: BTreeMap::new(), lines, hear }
    }

    /// Starts this executable as worker `number`, with these arguments.
    ///
    /// # Errors
    ///
    /// If the operating system starts no process.
    pub fn start(&mut self, number: u32, arguments: &[String]) -> Result<()> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(WORKER)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting worker {number}"))?;
        let stdin = process.stdin.take().expect("it is piped");
        let stdout = process.stdout.take().expect("it is piped");
        self.running.insert(number, Worker { process, stdin });
        let hear = self.hear.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if hear.send((number, Some(line))).await.is_err() {
                    return;
                }
            }
            let _ = hear.send((number, None)).await;
        });
        Ok(())
    }

    /// What happens next, and to whom; `None` when all are gone.
    ///
    /// # Errors
    ///
    /// If the operating system does not say how a worker ended.
    pub async fn next(&mut self) -> Result<Option<(u32, Event)>> {
        if self.running.is_empty() {
            return Ok(None);
        }
        let (number, line) = self.lines.recv().await.expect("a sender is kept");
        let event = match line {
            Some(line) if line == WAITS => Event::Waits,
            Some(line) => Event::Says(line),
            None => {
                let mut worker = self.running.remove(&number).expect("it ends once");
                Event::Ended(worker.process.wait().await?)
            }
        };
        Ok(Some((number, event)))
    }

    /// Lets a worker that waits go on.
    ///
    /// # Errors
    ///
    /// If the worker is gone.
    pub async fn go(&mut self, number: u32) -> Result<()> {
        let worker = self.running.get_mut(&number).context("it is gone")?;
        worker.stdin.write_all(b"go\n").await?;
        Ok(())
    }

    /// Freezes a worker where it stands: it cannot notice.
    ///
    /// # Errors
    ///
    /// If the worker is gone.
    pub fn freeze(&self, number: u32) -> Result<()> {
        self.signal(number, libc::SIGSTOP)
    }

    /// The end of [`freeze`](Crew::freeze).
    ///
    /// # Errors
    ///
    /// If the worker is gone.
    pub fn thaw(&self, number: u32) -> Result<()> {
        self.signal(number, libc::SIGCONT)
    }

    /// `kill -9`: no destructor runs, nobody is told.
    ///
    /// # Errors
    ///
    /// If the worker is gone.
    pub fn kill(&self, number: u32) -> Result<()> {
        self.signal(number, libc::SIGKILL)
    }

    fn signal(&self, number: u32, signal: i32) -> Result<()> {
        let id = self.running.get(&number).and_then(|worker| worker.process.id());
        let id = i32::try_from(id.context("it is gone")?)?;
        // SAFETY: it takes two numbers and touches no memory of ours.
        let answer = unsafe { libc::kill(id, signal) };
        if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
    }
}

impl Default for Crew {
    fn default() -> Crew {
        Crew::new()
    }
}

/// The parent, as a worker sees it.
pub struct Parent {
    words: Mutex<std_mpsc::Receiver<()>>,
}

impl Parent {
    /// Listens to the parent on a thread of its own, and ends this process when the parent is gone: nobody else would.
    pub fn listen() -> Parent {
        let (heard, words) = std_mpsc::channel();
        std::thread::spawn(move || {
            for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
                let _ = heard.send(());
            }
            std::process::exit(1);
        });
        Parent { words: Mutex::new(words) }
    }

    /// Tells the parent, and waits for its word. It blocks the thread, as a frozen process would.
    pub fn wait_for_go(&self) {
        println!("{WAITS}");
        let words = self.words.lock().expect("nothing panics under it");
        words.recv().expect("the process ends before the thread does");
    }
}
