//! The binary as a user meets it: servers started and ended, commands run, output read.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::disallowed_methods, reason = "tests measure how long things take")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use raftlock_tests::wires::FreePorts;
use serde_json::Value;
use tempfile::TempDir;

/// For anything that should take far less.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The binary, with nothing in its environment that the machine's owner may have put there.
pub fn raftlock<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raftlock"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RAFTLOCK_") || text == "NODE_ID" || text == "CLUSTER_NODES" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    with_usual_signals(&mut command);
    command
}

/// A test run that is started by nohup, or by a shell in the background, ignores HUP and INT, and what it starts would
/// too; `run` honours that. Here every signal means what it means at a terminal.
pub fn with_usual_signals(command: &mut Command) {
    // SAFETY: between fork and exec the closure calls only signal(2), which is async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

/// What a finished command left.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Done {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Asserts that stderr names all of these.
    #[track_caller]
    pub fn complains(self, of: &[&str]) -> Done {
        for text in of {
            assert!(self.stderr.contains(text), "no {text:?}: {self:?}");
        }
        self
    }
}

pub fn finish(mut command: Command) -> Done {
    let output = command.output().expect("the binary starts");
    Done {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A port where nobody listens, as long as this process lives.
pub fn dead_endpoint() -> String {
    let port = FreePorts::take(1);
    let address = port.addresses[0].clone();
    std::mem::forget(port);
    address
}

/// Looks until it is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running `raftlock` that is killed with the test.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts it and reads its stderr, line by line.
    pub fn start(mut command: Command) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
        let lines = lines_of(child.stderr.take().expect("piped"));
        Running { child, lines }
    }

    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to a child that is not reaped yet, and touches no memory.
        assert_eq!(unsafe { libc::kill(self.id(), signal) }, 0);
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("it ended")
    }

    /// The next line of stderr that `pick` takes.
    #[track_caller]
    pub fn line<T>(&self, pick: impl Fn(&str) -> Option<T>) -> T {
        loop {
            let line = self.lines.recv_timeout(LIMIT).expect("the line comes");
            if let Some(picked) = pick(&line) {
                return picked;
            }
        }
    }

    /// All that is left on stderr, once it has ended.
    pub fn rest(&self) -> String {
        self.lines.iter().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stderr: ChildStderr) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// One node that serves.
pub struct Server {
    pub node: Running,
    pub address: String,
    pub data: TempDir,
}

impl Server {
    pub fn start() -> Server {
        Server::with(|_| {})
    }

    /// With other flags or another environment.
    pub fn with(change: impl FnOnce(&mut Command)) -> Server {
        let data = tempfile::tempdir().expect("a folder");
        let mut command = serve(data.path());
        change(&mut command);
        let node = Running::start(command);
        let address = node.line(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(line.get("listen")?.as_str()?.to_owned())
        });
        let server = Server { node, address, data };
        until("the node serves", || server.run(["health"]).code == Some(0));
        server
    }

    /// A command that is told this server.
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = raftlock(arguments);
        command.env("RAFTLOCK_ENDPOINTS", &self.address);
        command
    }

    /// Runs a command with this server to its end.
    pub fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Done {
        finish(self.command(arguments))
    }
}

/// A node on free ports.
pub fn serve(data: &Path) -> Command {
    let mut command = raftlock(["serve", "--listen=127.0.0.1:0", "--peer-listen=127.0.0.1:0"]);
    command.args(["--log-format=json", "--allow-volatile-data", "--ballast=0", "--data-dir"]).arg(data);
    command
}
