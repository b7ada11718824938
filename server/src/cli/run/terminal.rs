//! The terminal, which belongs to one process group at a time: whoever has it may read it and gets its signals.
//!
//! A command in a group of its own would be stopped at its first read. So it is given the terminal, if `run` had it,
//! as shells do; and its suspend character then reaches the command and not us.

/// What stdin is, if it is a terminal.
const STDIN: i32 = libc::STDIN_FILENO;

/// The terminal of this session, on stdin.
#[derive(Clone, Copy, Debug)]
pub struct Terminal(());

impl Terminal {
    /// If stdin is one.
    pub fn of_stdin() -> Option<Terminal> {
        // SAFETY: takes and returns numbers. Of what is no terminal of this session, the answer is -1.
        let owner = unsafe { libc::tcgetpgrp(STDIN) };
        (owner != -1).then_some(Terminal(()))
    }

    /// Whether this process's group has it now.
    pub fn is_ours(self) -> bool {
        // SAFETY: these calls take and return numbers.
        unsafe { libc::tcgetpgrp(STDIN) == libc::getpgrp() }
    }

    /// Gives it to another group. Also for a child between fork and exec: nothing here allocates or locks.
    pub fn give_to(self, group: i32) {
        // SAFETY: the set is initialised by the first call before the others read it, and outlives them. Whoever
        // gives the terminal away without having it would be stopped by SIGTTOU, so that is blocked meanwhile. All of
        // these are safe to call after a fork.
        unsafe {
            let mut writing: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut writing);
            libc::sigaddset(&raw mut writing, libc::SIGTTOU);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const writing, &raw mut before);
            libc::tcsetpgrp(STDIN, group);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        }
    }

    /// Takes it back from the command's group, and from nobody else: in the background it is the shell's.
    pub fn take_back_from(self, group: i32) {
        // SAFETY: takes and returns numbers.
        if unsafe { libc::tcgetpgrp(STDIN) } == group {
            self.take_back();
        }
    }

    /// Takes it back from whoever has it.
    pub fn take_back(self) {
        // SAFETY: returns a number.
        self.give_to(unsafe { libc::getpgrp() });
    }
}
