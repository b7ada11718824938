//! Runs an example as a user does, and reads its last line.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;
use std::process::Command;

/// How an example ended.
pub struct Ended {
    pub code: Option<i32>,
    pub output: String,
}

impl Ended {
    /// The number before `what` in the last line, as in `0 duplicates`.
    pub fn count(&self, what: &str) -> u64 {
        let last = self.output.lines().last().unwrap_or_default();
        let part = last.split(", ").find_map(|part| part.strip_suffix(what));
        let number = part.and_then(|part| part.trim().parse().ok());
        number.unwrap_or_else(|| panic!("no {what:?} in the last line of\n{}", self.output))
    }
}

/// Runs the example to its end. It has limits of its own.
pub fn example(name: &str, arguments: &[&str]) -> Ended {
    let path = built(name);
    let output = Command::new(&path).args(arguments).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo build -p raftlock-examples --examples` builds it", path.display())
    });
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), output: text(&output.stderr) + &text(&output.stdout) }
}

/// Cargo builds examples beside the folder of this test.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(|deps| deps.parent());
    profile.expect("it is in target/PROFILE/deps").join("examples").join(name)
}
