//! The command and its process group: started, signalled, watched, buried.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use super::terminal::Terminal;
use super::watchdog::{self, Watchdog};
use crate::cli::failure::Failure;

/// What became of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ended, with this code in a shell's terms: 128+n for signal n.
    Ended(i32),
    /// A signal stopped it.
    Stopped,
}

/// The process group that the command leads.
pub struct Group {
    id: i32,
}

impl Group {
    /// Starts the command as the leader of a new group, known to the watchdog before its first instruction.
    pub fn spawn(
        command: &[OsString],
        environment: [(&str, String); 2],
        terminal: Option<Terminal>,
        watchdog: &Watchdog,
    ) -> Result<Group, Failure> {
        let (program, arguments) = command.split_first().expect("the command line asks for at least one");
        let (pipe, parent) = (watchdog.raw(), std::process::id());
        // Started in the background, it stays there, and stops at its first read as any such command does.
        let terminal = terminal.filter(|terminal| terminal.is_ours());
        adopt_orphans();
        let mut starting = Command::new(program);
        starting.args(arguments).envs(environment);
        // SAFETY: the closure runs in the child between fork and exec, where only what is safe in a signal handler may
        // be called. It makes system calls and handles numbers; it neither allocates nor takes a lock. The pipe is
        // open there: it is closed by the exec.
        unsafe {
            starting.pre_exec(move || {
                die_with(parent)?;
                let id = libc::getpid();
                if libc::setpgid(0, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
                watchdog::report_group(pipe, id)?;
                if let Some(terminal) = terminal {
                    terminal.give_to(id);
                }
                Ok(())
            });
        }
        match starting.spawn() {
            // The standard library would neither tell of a stopped child nor of its group: only the id is kept.
            Ok(child) => Ok(Group {
                id: i32::try_from(child.id()).expect("process ids are positive and have 31 bits"),
            }),
            Err(error) => {
                // The child that had it is gone, and a shell script that started us is in our group.
                if let Some(terminal) = terminal {
                    terminal.take_back();
                }
                let text = format!("{} cannot be started: {error}", program.to_string_lossy());
                Err(match error.kind() {
                    io::ErrorKind::NotFound => Failure::CommandNotFound(text),
                    _ => Failure::CommandNotStarted(text),
                })
            }
        }
    }

    /// Its number, which is the command's process id.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// To all of the group.
    pub fn signal(&self, signal: i32) {
        // SAFETY: sends a signal, and touches no memory. The number is the group's for as long as one of it lives or
        // is not reaped, and afterwards nobody calls this.
        unsafe { libc::kill(-self.id, signal) };
    }

    /// Asks all of the group to end. Who is stopped is continued, to hear it.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
        self.signal(libc::SIGCONT);
    }

    /// What became of the command since this was last asked.
    pub fn change(&self) -> Option<Change> {
        let mut change = None;
        while let Some((process, status)) = reap() {
            if process == self.id {
                change = match (status.code(), status.signal()) {
                    (Some(code), _) => Some(Change::Ended(code)),
                    (None, Some(signal)) => Some(Change::Ended(128 + signal)),
                    (None, None) => status.stopped_signal().map(|_| Change::Stopped),
                };
            }
        }
        change
    }

    /// Whether all of the group are gone.
    pub fn is_gone(&self) -> bool {
        // One that is dead and not reaped would count as alive.
        while reap().is_some() {}
        // SAFETY: signal 0 asks only.
        let alive = unsafe { libc::kill(-self.id, 0) } == 0;
        !alive && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
    }
}

/// One of our children that ended or stopped: the command, the watchdog, or an orphan.
fn reap() -> Option<(i32, ExitStatus)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call. Nobody else waits for children: the standard library's handle of the command
    // is gone, and the runtime's process driver is not in use.
    let process = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
    (process > 0).then(|| (process, ExitStatus::from_raw(status)))
}

/// Orphans of the command become our children instead of init's, so that we see when they are gone, also where init
/// is slow or, as in a container, is us.
#[cfg(target_os = "linux")]
fn adopt_orphans() {
    // SAFETY: takes and returns numbers. A kernel too old for it leaves things as they are.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() {}

/// The kernel kills the caller when the thread that forked it ends, which is the main thread. The group's other
/// processes have the watchdog; this closes the moment before the watchdog knows the group.
#[cfg(target_os = "linux")]
pub fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: these calls take and return numbers, and are safe to make after a fork.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // It may have died before it could be watched.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

/// Elsewhere there is only the watchdog.
#[cfg(not(target_os = "linux"))]
pub fn die_with(_: u32) -> io::Result<()> {
    Ok(())
}
