//! `raftlock run` at a terminal: the command has it while it runs, and suspending is about the whole job.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "tests measure how long things take")]

mod cli_support;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex};

use cli_support::{Server, until, with_usual_signals};
use tempfile::TempDir;

/// A shell script at a terminal of its own, in a folder of its own.
struct Script {
    shell: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    folder: TempDir,
}

impl Script {
    /// Starts it; `$RAFTLOCK` is the binary, and knows the server.
    fn start(server: &Server, script: &str) -> Script {
        let folder = tempfile::tempdir().expect("a folder");
        let (master, slave) = pseudo_terminal();
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        command.env("RAFTLOCK", env!("CARGO_BIN_EXE_raftlock")).env("RAFTLOCK_ENDPOINTS", &server.address);
        let dup = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(dup()).stdout(dup()).stderr(dup());
        with_usual_signals(&mut command);
        // SAFETY: between fork and exec the closure makes system calls only, and allocates nothing.
        unsafe {
            command.pre_exec(|| match libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 {
                true => Ok(()),
                false => Err(io::Error::last_os_error()),
            });
        }
        let shell = command.spawn().expect("a shell");
        let (keyboard, screen) = (File::from(master), Arc::<Mutex<Vec<u8>>>::default());
        let (mut reader, shown) = (keyboard.try_clone().expect("a descriptor"), screen.clone());
        std::thread::spawn(move || {
            // The end of the last process at the terminal is an error of the read.
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                shown.lock().expect("no panic under it").extend_from_slice(&bytes[..count]);
            }
        });
        Script { shell, keyboard, screen, folder }
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal is there");
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        until(&format!("{text:?} is on the screen"), || {
            let shown = self.screen.lock().expect("no panic under it");
            String::from_utf8_lossy(&shown).contains(text)
        });
    }

    /// The process that wrote its id there.
    fn process(&self, name: &str) -> i32 {
        let path = self.folder.path().join(name);
        until("the command has started", || path.exists());
        fs::read_to_string(path).expect("readable").trim().parse().expect("a process id")
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let shown = self.screen.lock().expect("no panic under it");
            eprintln!("--- screen\n{}", String::from_utf8_lossy(&shown));
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn pseudo_terminal() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both numbers outlive the call, and the null pointers ask for what is usual.
    let made = unsafe { libc::openpty(&raw mut master, &raw mut slave, null_mut(), null(), null()) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just opened the two, and nobody else knows of them.
    unsafe {
        // Another test's processes must not keep this terminal open.
        libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(slave, libc::F_SETFD, libc::FD_CLOEXEC);
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

/// The process that started this one.
fn parent(process: i32) -> Option<i32> {
    field(process, 1)
}

/// The process group that has the terminal of this process.
fn in_the_foreground(process: i32) -> Option<i32> {
    field(process, 5)
}

/// What the kernel says of a process that is there, counted from its state letter.
fn field(process: i32, at: usize) -> Option<i32> {
    let stat = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
    let fields = stat.rsplit_once(')').expect("a name in brackets").1;
    fields.split_whitespace().nth(at)?.parse().ok()
}

#[test]
fn the_command_may_read_the_terminal_and_afterwards_the_script_may() {
    let server = Server::start();
    let mut script = Script::start(
        &server,
        r#""$RAFTLOCK" run k -- sh -c 'read x; echo "the command read $x"'; read y; echo "the script read $y""#,
    );
    script.types("one\ntwo\n");
    script.shows("the command read one");
    script.shows("the script read two");
}

#[test]
fn a_command_that_cannot_be_started_leaves_the_terminal_to_the_script() {
    let server = Server::start();
    let mut script = Script::start(
        &server,
        r#""$RAFTLOCK" run k -- /nonexistent; echo "code $?"; read y; echo "read <$y>""#,
    );
    script.types("one\n");
    script.shows("code 127");
    script.shows("read <one>");
}

#[test]
fn a_job_that_was_suspended_goes_on_and_its_command_may_read() {
    let server = Server::start();
    // With job control, as at a prompt: the shell goes on when the job is suspended, and `fg` brings it back.
    const JOB: &str = r#"
        set -m
        "$RAFTLOCK" run k -- sh -c 'echo $$ > child.new; mv child.new child; read x; echo "the command read <$x>"'
        echo "suspended"
        fg
        echo "the job ended"
    "#;
    for by_key in [true, false] {
        let mut script = Script::start(&server, JOB);
        let child = script.process("child");
        if by_key {
            script.types("\x1a");
        } else {
            // SAFETY: a signal to a process that waits for its child, which waits for us.
            assert_eq!(unsafe { libc::kill(parent(child).expect("it runs"), libc::SIGTSTP) }, 0);
        }
        script.shows("suspended");
        // What is typed before would be there when its read goes on, in the foreground or not.
        until("the command has the terminal again", || in_the_foreground(child) == Some(child));
        script.types("one\n");
        script.shows("the command read <one>");
        script.shows("the job ended");
    }
}
