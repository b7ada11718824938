//! How a command can fail, and the exit code that says so to scripts.

use std::error::Error;
use std::fmt;

use super::print::brief;

/// The exit code for a wrong command line, as clap has it too.
pub const USAGE: u8 = 2;

/// Named by what the caller can do about it. The text is for people and complete.
#[derive(Debug)]
pub enum Failure {
    /// Say it differently.
    Usage(String),
    /// Nothing was done. Try again later, or name other servers.
    NoLeader(String),
    /// Do not restart this node: replace it.
    Disk(String),
    /// Another holds the lock, or you do not.
    NotAcquired(String),
    /// The lock was lost while the command ran, and the command was ended.
    Lost(String),
    /// The command of `run` was not found.
    CommandNotFound(String),
    /// The command of `run` was found and could not be started.
    CommandNotStarted(String),
    /// Anything else.
    Other(String),
}

impl Failure {
    /// As `raftlock --help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::NoLeader(_) => 69,
            Failure::Disk(_) => 74,
            Failure::NotAcquired(_) => 75,
            Failure::Lost(_) => 76,
            Failure::CommandNotStarted(_) => 126,
            Failure::CommandNotFound(_) => 127,
            Failure::Other(_) => 1,
        }
    }

    /// From the SDK, which tells what went wrong but not how a process ends.
    pub fn from_sdk(error: &raftlock::Error) -> Failure {
        use raftlock::ErrorKind;
        let text = match error {
            raftlock::Error::WaitTimeout(timeout) => not_granted(timeout),
            raftlock::Error::Unavailable(reason) => {
                let endpoints = reason.endpoints.iter().map(|failure| format!("\n  {failure}"));
                let (waited, endpoints) = (brief(reason.waited), endpoints.collect::<String>());
                format!("no server reached a leader within {waited}{endpoints}")
            }
            other => chain(other),
        };
        match error.kind() {
            ErrorKind::InvalidArgument => Failure::Usage(text),
            ErrorKind::Unavailable => Failure::NoLeader(text),
            ErrorKind::WaitTimeout | ErrorKind::QueueFull => Failure::NotAcquired(text),
            ErrorKind::Lost => Failure::Lost(text),
            _ => Failure::Other(text),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Usage(text)
        | Failure::NoLeader(text)
        | Failure::Disk(text)
        | Failure::NotAcquired(text)
        | Failure::Lost(text)
        | Failure::CommandNotFound(text)
        | Failure::CommandNotStarted(text)
        | Failure::Other(text)) = self;
        f.write_str(text)
    }
}

fn not_granted(timeout: &raftlock::WaitTimeout) -> String {
    let mut text = format!("Lock not acquired: {}", timeout.name);
    match (&timeout.holder, timeout.remaining) {
        (Some(holder), Some(left)) => text += &format!(" is held by {holder} for {} more", brief(left)),
        (Some(holder), None) => text += &format!(" is free, but {holder} waits for it and is served first"),
        (None, _) => text += &format!(" was not granted within {}", brief(timeout.waited)),
    }
    if let Some(place) = timeout.place {
        text += &format!("; its place in the queue was {place}");
    }
    for failure in &timeout.unreachable {
        text += &format!("\n  {failure}");
    }
    text
}

/// An error and its causes in one line. A cause that its effect already quotes is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}
