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
///
/// - Once a deadline that it was told has come, it has killed the group, or is about to, and is gone.
pub struct Watchdog {
    pipe: PipeWriter,
    clock: Clock,
    /// The last deadline it was told before one of them came.
    deadline: Option<Duration>,
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
            _ => Ok(Watchdog { pipe, clock, deadline: None }),
        }
    }

    /// The group is to be killed when `reserve` of the lease is left, of which there is `remaining` now.
    pub fn kill_at(&mut self, remaining: Duration, reserve: Duration) {
        if !self.has_killed() {
            let at = (self.clock)() + remaining.saturating_sub(reserve);
            self.deadline = Some(at);
            self.tell(Message::KillAt(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)));
        }
    }

    /// Whether a deadline has come. A renewal after it changes nothing.
    pub fn has_killed(&self) -> bool {
        self.deadline.is_some_and(|at| at <= (self.clock)())
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

/// A process of its own in every respect. Its name too: `killall -9 raftlock` means `run`, and this is for that case.
fn leave_the_family() {
    #[cfg(target_os = "linux")]
    // SAFETY: the kernel copies the constant string, which ends with a zero and is shorter than its limit of 16 bytes.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"rl-watchdog".as_ptr());
    }
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
        // All that was said before the clock is looked at: who was stopped or slow must not act on an old deadline.
        while has_message(&messages) {
            let mut bytes = [0; MESSAGE_BYTES];
            match messages.read_exact(&mut bytes).ok().and_then(|()| Message::decode(bytes)) {
                Some(Message::Group(id)) => group = Some(id),
                Some(Message::KillAt(nanos)) => kill_at = Some(Duration::from_nanos(nanos)),
                Some(Message::Done) => return,
                None => return group.into_iter().for_each(kill),
            }
        }
        let left = kill_at.map(|at: Duration| at.saturating_sub(clock()));
        match (group, left) {
            (Some(group), Some(Duration::ZERO)) => return kill(group),
            (Some(_), Some(left)) => wait_for_message(&messages, left.min(LOOK)),
            _ => wait_for_message(&messages, LOOK),
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
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, ExitStatus};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// How a group ends that the watchdog is told of, and then this, at the time zero of its clock. If the watchdog
    /// leaves it alone, TERM ends it.
    fn told(messages: &[Message]) -> ExitStatus {
        let mut leader: Child = Command::new("sleep").arg("30").process_group(0).spawn().expect("a process");
        let group = Message::Group(i32::try_from(leader.id()).expect("a process id"));
        let (reader, mut writer) = io::pipe().expect("a pipe");
        for message in [group].iter().chain(messages) {
            writer.write_all(&message.encode()).expect("it is read below");
        }
        let clock: Clock = Arc::new(|| Duration::ZERO);
        watch(reader, &clock);
        // SAFETY: a signal to a child that is not reaped yet. If it was killed before, this changes nothing.
        unsafe { libc::kill(leader.id() as i32, libc::SIGTERM) };
        leader.wait().expect("our child")
    }

    #[test]
    fn an_old_deadline_does_not_count_once_a_new_one_was_said() {
        let renewed = told(&[Message::KillAt(0), Message::KillAt(u64::MAX), Message::Done]);
        assert_eq!(renewed.signal(), Some(libc::SIGTERM));
        assert_eq!(told(&[Message::KillAt(0)]).signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_deadline_that_came_is_not_moved() {
        let (mut reader, pipe) = io::pipe().expect("a pipe");
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = seconds.clone();
        let clock: Clock = Arc::new(move || Duration::from_secs(clock.load(Ordering::Relaxed)));
        let mut watchdog = Watchdog { pipe, clock, deadline: None };
        watchdog.kill_at(Duration::from_secs(30), Duration::from_secs(1));
        seconds.store(28, Ordering::Relaxed);
        assert!(!watchdog.has_killed());
        seconds.store(29, Ordering::Relaxed);
        assert!(watchdog.has_killed());
        watchdog.kill_at(Duration::from_secs(30), Duration::from_secs(1));
        assert!(watchdog.has_killed(), "though the lease was renewed since");
        drop(watchdog);
        let mut said = Vec::new();
        reader.read_to_end(&mut said).expect("a pipe");
        assert_eq!(said, Message::KillAt(29_000_000_000).encode());
    }

    #[test]
    fn messages_survive_the_pipe() {
        for message in [Message::Group(4711), Message::KillAt(u64::MAX), Message::Done] {
            assert_eq!(Message::decode(message.encode()), Some(message));
        }
        assert_eq!(Message::decode([0; MESSAGE_BYTES]), None);
    }
}
