//! A second process that kills the command's group when the first cannot: because it was killed, is stopped, or hangs.
//!
//! It is forked before the command and shares nothing with it but a pipe, over which it is told the group and, after
//! each renewal, until when the group may live. The pipe's end without a farewell means that `run` is gone. It lives
//! in a session of its own, so that nothing meant for `run` or its terminal reaches it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use raftlock::seams::{Clock, Seams};

/// How often it looks at the clock. Its timer stands still while the machine is suspended, and the lease does not.
const LOOK: Duration = Duration::from_millis(250);

/// Two numbers. Below the size that a pipe takes as a whole, so messages are never mixed or torn.
const MESSAGE_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// The command leads this process group.
    Group(i32),
    /// The group must be dead at this time, in nanoseconds of the lease clock.
    KillAt(u64),
    /// The group is gone.
    Done,
}

impl Message {
    /// No allocation: a child between fork and exec writes one too.
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, value) = match self {
            Message::Group(id) => (1, u64::from(id.unsigned_abs())),
            Message::KillAt(nanos) => (2, nanos),
            Message::Done => (3, 0),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..8].copy_from_slice(&u64::to_le_bytes(kind));
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; MESSAGE_BYTES]) -> Option<Message> {
        let (kind, value) = bytes.split_at(8);
        let value = u64::from_le_bytes(value.try_into().ok()?);
        match u64::from_le_bytes(kind.try_into().ok()?) {
            1 => Some(Message::Group(i32::try_from(value).ok()?)),
            2 => Some(Message::KillAt(value)),
            3 => Some(Message::Done),
            _ => None,
        }
    }
}

/// The way to the watchdog.
pub struct Watchdog {
    pipe: PipeWriter,
    clock: Clock,
}

impl Watchdog {
    /// Forks. Only while this process has one thread.
    pub fn start() -> io::Result<Watchdog> {
        let clock = Seams::production().clock;
        let (messages, pipe) = io::pipe()?;
        never_wait_on(&pipe)?;
        // SAFETY: this process has one thread, so no lock is held by a thread that the child would not have, and the
        // child may do whatever its parent may. It never returns from `watch`.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(pipe);
                leave_the_family();
                watch(messages, &clock);
                // SAFETY: ends the process without the parent's exit handlers, which are not this process's to run.
                unsafe { libc::_exit(0) }
            }
            _ => Ok(Watchdog { pipe, clock }),
        }
    }

    /// The group is to be killed when `reserve` of the lease is left, of which there is `remaining` now.
    pub fn kill_at(&self, remaining: Duration, reserve: Duration) {
        let at = (self.clock)() + remaining.saturating_sub(reserve);
        self.tell(Message::KillAt(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)));
    }

    /// Nothing is left to be killed.
    pub fn done(self) {
        self.tell(Message::Done);
    }

    /// For the child of a fork, which reports itself as a group's leader with [`report_group`].
    pub fn raw(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// If the watchdog is gone, somebody killed it, and this process looks after the group alone.
    fn tell(&self, message: Message) {
        let _ = (&self.pipe).write_all(&message.encode());
    }
}

/// Tells the watchdog, from between fork and exec, that the caller leads a group.
pub fn report_group(pipe: RawFd, id: i32) -> io::Result<()> {
    let message = Message::Group(id).encode();
    // SAFETY: the pointer and the length describe `message`; write(2) is safe to call after a fork.
    match unsafe { libc::write(pipe, message.as_ptr().cast(), message.len()) } {
        written if written == MESSAGE_BYTES as isize => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A watchdog that somebody stopped must not stop its master: what does not fit into the pipe is dropped.
fn never_wait_on(pipe: &PipeWriter) -> io::Result<()> {
    // SAFETY: takes and returns numbers.
    match unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn leave_the_family() {
    const MEANT_FOR_OTHERS: [i32; 6] =
        [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
    // SAFETY: these calls take numbers and the address of a constant string, and touch no memory of ours.
    unsafe {
        libc::setsid();
        for signal in MEANT_FOR_OTHERS {
            libc::signal(signal, libc::SIG_IGN);
        }
        // Whoever reads what `run` writes must not wait for this process to close its end.
        let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for standard in 0..=2 {
            libc::dup2(nothing, standard);
        }
    }
}

/// Until the group is gone, or was killed here.
fn watch(mut messages: PipeReader, clock: &Clock) {
    let (mut group, mut kill_at) = (None, None);
    loop {
        let left = kill_at.map(|at: Duration| at.saturating_sub(clock()));
        match (group, left) {
            (Some(group), Some(Duration::ZERO)) => return kill(group),
            _ => wait_for_message(&messages, left.map_or(LOOK, |left| left.min(LOOK))),
        }
        if !has_message(&messages) {
            continue;
        }
        let mut bytes = [0; MESSAGE_BYTES];
        match messages.read_exact(&mut bytes).ok().and_then(|()| Message::decode(bytes)) {
            Some(Message::Group(id)) => group = Some(id),
            Some(Message::KillAt(nanos)) => kill_at = Some(Duration::from_nanos(nanos)),
            Some(Message::Done) => return,
            None => return group.into_iter().for_each(kill),
        }
    }
}

fn kill(group: i32) {
    // SAFETY: sends a signal, and touches no memory. The number is the group's while any of it lives or is not reaped,
    // and `Done` follows at once when none is.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

fn has_message(messages: &PipeReader) -> bool {
    poll(messages, 0)
}

fn wait_for_message(messages: &PipeReader, limit: Duration) {
    // Rounded up, else the last part of a millisecond would be spent in a busy loop.
    let limit = limit.as_nanos().div_ceil(1_000_000);
    poll(messages, i32::try_from(limit).unwrap_or(i32::MAX));
}

/// Whether there is a message, or the pipe's end.
fn poll(messages: &PipeReader, limit_ms: i32) -> bool {
    let mut asked = libc::pollfd { fd: messages.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer and the count describe `asked`, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut asked, 1, limit_ms) };
    ready > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe() {
        for message in [Message::Group(4711), Message::KillAt(u64::MAX), Message::Done] {
            assert_eq!(Message::decode(message.encode()), Some(message));
        }
        assert_eq!(Message::decode([0; MESSAGE_BYTES]), None);
    }
}
