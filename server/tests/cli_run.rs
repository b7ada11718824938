//! `raftlock run`: exit codes, signals, and that the command is dead before the lock can be another's.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "tests measure how long things take")]

mod cli_support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cli_support::{Running, Server, dead_endpoint, finish, raftlock, until};
use tempfile::TempDir;

/// A command that ignores TERM, and so does its child. Both write their process ids into files.
const STUBBORN: &str = r#"
    trap "" TERM
    sh -c 'trap "" TERM; echo $$ > grandchild.new; mv grandchild.new grandchild; while :; do sleep 0.05; done' &
    echo $$ > child.new; mv child.new child
    wait
"#;

/// A command that runs until TERM ends it.
const PATIENT: &str = "echo $$ > child.new; mv child.new child; while :; do sleep 0.05; done";

fn run_shell(server: &Server, flags: &[&str], script: &str) -> Command {
    let mut command = server.command(["run"]);
    command.args(flags).args(["k", "--", "sh", "-c", script]);
    command
}

/// `raftlock run` with a script in a folder of its own.
struct Held {
    run: Running,
    folder: TempDir,
}

impl Held {
    fn start(server: &Server, flags: &[&str], script: &str) -> Held {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = run_shell(server, flags, script);
        command.current_dir(folder.path());
        Held { run: Running::start(command), folder }
    }

    /// The process that wrote its id there.
    fn process(&self, name: &str) -> i32 {
        let path = self.folder.path().join(name);
        until("the command has started", || path.exists());
        fs::read_to_string(path).expect("readable").trim().parse().expect("a process id")
    }
}

/// The state letter of a process that is there.
fn state(process: i32) -> Option<char> {
    let stat = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn is_dead(process: i32) -> bool {
    matches!(state(process), None | Some('Z' | 'X'))
}

#[test]
fn the_exit_code_passes_through_and_the_lock_is_free_afterwards() {
    let server = Server::start();
    finish(run_shell(&server, &[], "exit 0")).exits(0);
    finish(run_shell(&server, &[], "exit 7")).exits(7);
    finish(run_shell(&server, &[], "kill -9 $$")).exits(137);
    assert_eq!(server.run(["get", "k"]).exits(0).stdout, "k is free\n");
}

#[test]
fn what_cannot_be_started_is_126_or_127() {
    let server = Server::start();
    server.run(["run", "k", "--", "/nonexistent/command"]).exits(127).complains(&["/nonexistent/command"]);
    server.run(["run", "k", "--", "/dev/null"]).exits(126).complains(&["/dev/null"]);
    assert_eq!(server.run(["get", "k"]).exits(0).stdout, "k is free\n");
}

#[test]
fn the_command_finds_token_and_name_and_holds_the_lock() {
    let server = Server::start();
    let script = r#"echo "$RAFTLOCK_FENCING_TOKEN $RAFTLOCK_NAME"; "$0" get k --json"#;
    let mut command = server.command(["run", "--id", "me", "k", "--", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_raftlock"));
    let done = finish(command).exits(0);
    let (first, rest) = done.stdout.split_once('\n').expect("two parts");
    let seen: serde_json::Value = serde_json::from_str(rest).expect("JSON");
    assert_eq!(seen["holders"][0]["owner"], "me");
    assert_eq!(first, format!("{} k", seen["holders"][0]["fencing_token"]));
}

#[test]
fn a_lock_that_is_held_is_75() {
    let server = Server::start();
    server.run(["lock", "k", "--id", "other"]).exits(0);
    let done = finish(run_shell(&server, &["--wait", "200ms"], "echo ran")).exits(75);
    assert_eq!(done.stdout, "");
    done.complains(&["held by other"]);
    finish(run_shell(&server, &["--wait", "0"], "echo ran")).exits(75);
}

#[test]
fn without_a_server_it_is_69_and_nothing_runs() {
    let arguments = ["run", "k", "--endpoints", &dead_endpoint(), "--", "echo", "ran"];
    assert_eq!(finish(raftlock(arguments)).exits(69).stdout, "");
}

#[test]
fn signals_reach_the_command() {
    let server = Server::start();
    for (name, number) in [("TERM", libc::SIGTERM), ("INT", libc::SIGINT), ("HUP", libc::SIGHUP)] {
        let script = format!("trap 'exit 9' {name}; {PATIENT}");
        let mut held = Held::start(&server, &[], &script);
        held.process("child");
        held.run.signal(number);
        assert_eq!(held.run.wait().code(), Some(9), "{name}");
    }
    let mut held = Held::start(&server, &[], PATIENT);
    held.process("child");
    held.run.signal(libc::SIGTERM);
    assert_eq!(held.run.wait().code(), Some(143));
}

#[test]
fn a_signal_while_waiting_takes_the_request_back() {
    let server = Server::start();
    server.run(["lock", "k", "--id", "other"]).exits(0);
    let mut held = Held::start(&server, &[], "echo ran");
    let queue = || server.run(["get", "k", "--json"]).exits(0).json()["queue_length"].as_u64();
    until("it waits", || queue() == Some(1));
    held.run.signal(libc::SIGTERM);
    assert_eq!(held.run.wait().code(), Some(143));
    assert_eq!(queue(), Some(0));
}

#[test]
fn what_the_command_leaves_behind_is_ended_before_the_release() {
    let server = Server::start();
    let script = "sh -c 'echo $$ > left.new; mv left.new left; while :; do sleep 0.05; done' & \
                  while ! [ -e left ]; do sleep 0.01; done; exit 4";
    let mut held = Held::start(&server, &[], script);
    assert_eq!(held.run.wait().code(), Some(4));
    assert!(is_dead(held.process("left")));
    assert_eq!(server.run(["get", "k"]).exits(0).stdout, "k is free\n");
}

#[test]
fn killing_run_kills_the_command_and_its_children() {
    let server = Server::start();
    let mut held = Held::start(&server, &[], STUBBORN);
    let (child, grandchild) = (held.process("child"), held.process("grandchild"));
    held.run.signal(libc::SIGKILL);
    held.run.wait();
    until("both are dead", || is_dead(child) && is_dead(grandchild));
}

#[test]
fn all_are_dead_before_a_lost_lease_is_over() {
    const TTL: Duration = Duration::from_secs(3);
    let server = Server::start();
    let mut held = Held::start(&server, &["--ttl", "3s"], STUBBORN);
    let (child, grandchild) = (held.process("child"), held.process("grandchild"));
    // The last renewal that can be applied was sent before now.
    let frozen = Instant::now();
    server.node.signal(libc::SIGSTOP);
    until("both are dead", || is_dead(child) && is_dead(grandchild));
    let lived = frozen.elapsed();
    assert!(lived < TTL, "{lived:?}");
    assert_eq!(held.run.wait().code(), Some(76));
    let said = held.run.rest();
    assert!(said.contains("could not be renewed") && said.contains("the lock k was lost"), "{said}");
}

#[test]
fn all_are_dead_before_the_lease_is_over_though_run_is_frozen() {
    const TTL: Duration = Duration::from_secs(2);
    let server = Server::start();
    let mut held = Held::start(&server, &["--ttl", "2s"], STUBBORN);
    let (child, grandchild) = (held.process("child"), held.process("grandchild"));
    let frozen = Instant::now();
    held.run.signal(libc::SIGSTOP);
    until("both are dead", || is_dead(child) && is_dead(grandchild));
    let lived = frozen.elapsed();
    assert!(lived < TTL, "{lived:?}");
    held.run.signal(libc::SIGCONT);
    assert_eq!(held.run.wait().code(), Some(76));
}

#[test]
fn a_suspended_run_suspends_its_command_and_both_go_on() {
    let server = Server::start();
    // One process: a shell that waits for one it has just forked, and that is stopped too, does not show as stopped.
    let mut held =
        Held::start(&server, &["--ttl", "30s"], "echo $$ > child.new; mv child.new child; exec sleep 600");
    let (run, child) = (held.run.id(), held.process("child"));
    held.run.signal(libc::SIGTSTP);
    until("both are stopped", || state(run) == Some('T') && state(child) == Some('T'));
    held.run.signal(libc::SIGCONT);
    until("both run", || state(run) != Some('T') && state(child) != Some('T'));
    held.run.signal(libc::SIGTERM);
    assert_eq!(held.run.wait().code(), Some(143));
}

#[test]
fn a_command_whose_lease_ended_while_suspended_is_not_continued() {
    let server = Server::start();
    let mut held = Held::start(
        &server,
        &["--ttl", "1s"],
        "echo $$ > child.new; mv child.new child; \
        while :; do date +%s%N > beat; sleep 0.01; done",
    );
    let (run, child) = (held.run.id(), held.process("child"));
    held.run.signal(libc::SIGTSTP);
    until("both are stopped", || state(run) == Some('T') && (state(child) == Some('T') || is_dead(child)));
    let beat = fs::read(held.folder.path().join("beat")).unwrap_or_default();
    until("the lock is free again", || server.run(["get", "k", "--json"]).exits(0).json()["free"] == true);
    held.run.signal(libc::SIGCONT);
    assert_eq!(held.run.wait().code(), Some(76));
    assert_eq!(fs::read(held.folder.path().join("beat")).unwrap_or_default(), beat);
}
