//! The signals that `run` acts on, and how it stops itself.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::failure::Failure;

/// Passed on to the command: each of them would end `run`, and leave the lock to its lease.
const PASSED_ON: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Something about a child changed.
    LookAtChild,
    /// To be passed on.
    PassOn(i32),
    /// To stop until SIGCONT.
    Suspend,
}

/// Signals of this process. Those that it was started to ignore, as `nohup` does, stay ignored, here and in the
/// command.
pub struct Signals {
    streams: Vec<(Asked, Signal)>,
}

impl Signals {
    /// Listens for what is passed on.
    pub fn listen() -> Result<Signals, Failure> {
        let mut signals = Signals { streams: Vec::new() };
        for number in PASSED_ON {
            signals.add(number, Asked::PassOn(number))?;
        }
        Ok(signals)
    }

    /// From here on there is a command to look after.
    pub fn with_command(mut self) -> Result<Signals, Failure> {
        self.add(libc::SIGCHLD, Asked::LookAtChild)?;
        self.add(libc::SIGTSTP, Asked::Suspend)?;
        Ok(self)
    }

    fn add(&mut self, number: i32, asked: Asked) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Other(format!("signals: {error}"));
        if !is_ignored(number).map_err(failed)? {
            let stream = signal(SignalKind::from_raw(number)).map_err(failed)?;
            self.streams.push((asked, stream));
        }
        Ok(())
    }

    /// The next of them. Cancel safe.
    pub async fn next(&mut self) -> Asked {
        poll_fn(|cx| {
            for (asked, stream) in &mut self.streams {
                if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return Poll::Ready(*asked);
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn is_ignored(number: i32) -> io::Result<bool> {
    // SIGCHLD that is ignored would leave no exit status behind; nobody starts us so on purpose.
    if number == libc::SIGCHLD {
        return Ok(false);
    }
    // SAFETY: all zeros is a valid `sigaction`, a struct of integers and an optional function pointer.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only, because the second argument is null; `action` outlives the call.
    match unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) } {
        0 => Ok(action.sa_sigaction == libc::SIG_IGN),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stops this process, the SDK's thread included. Returns after SIGCONT.
pub fn stop_this_process() {
    // SAFETY: sends a signal to the calling thread, which takes it before the call returns; with it all threads stop.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Stops the whole job that this process is part of, as the terminal would have. Returns after SIGCONT, or at once
/// where nobody could send one: the kernel does not stop a job without a shell.
pub fn suspend_job() {
    // SAFETY: as in `is_ignored`.
    let (mut default, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    default.sa_sigaction = libc::SIG_DFL;
    // SAFETY: both structs outlive the calls. In between, SIGTSTP has its default action, which is what is wanted of
    // it; then the handler is what it was.
    unsafe {
        libc::sigaction(libc::SIGTSTP, &raw const default, &raw mut before);
        libc::kill(0, libc::SIGTSTP);
        // Another thread of this process may take the signal first, and this one stops some microseconds later.
        std::thread::sleep(Duration::from_millis(10));
        libc::sigaction(libc::SIGTSTP, &raw const before, std::ptr::null_mut());
    }
}
