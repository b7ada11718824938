//! Who may name what. These rules are architecture: each foreign crate has one folder that names it, the lock table
//! names nothing of the outside world, and clocks are read in two files.

use std::fs;
use std::path::{Path, PathBuf};

/// Files of product code, by their path from the workspace's root.
fn sources() -> Vec<(String, String)> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace").to_owned();
    let mut found = Vec::new();
    for folder in ["server/src", "server/lock-table/src", "client/src"] {
        collect(&root, &root.join(folder), &mut found);
    }
    assert!(found.len() > 50, "the sources moved: tell this test where");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("a source folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            found.push((name, fs::read_to_string(&path).expect("source text")));
        }
    }
}

/// The code of a line: no comment, and nothing of a file after its unit tests begin.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    lines.map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
}

/// Fails when `word` stands as a path (`word::`, `use word`) outside of `allowed`.
fn only_in(word: &str, allowed: &[&str]) {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        if allowed.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        for (line, code) in code_lines(&text) {
            if names(code, word) {
                wrong.push(format!("{name}:{line}: {}", code.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "`{word}` may be named only in {allowed:?}:\n{}", wrong.join("\n"));
}

fn names(code: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + word.len()..];
        !before.is_some_and(is_word) && (after.starts_with("::") || after.starts_with(';'))
    })
}

#[test]
fn openraft_is_named_only_in_raft() {
    only_in("openraft", &["server/src/raft/"]);
    only_in("openraft_rt_tokio", &["server/src/raft/"]);
}

#[test]
fn rusqlite_is_named_only_in_store() {
    only_in("rusqlite", &["server/src/store/"]);
}

#[test]
fn tonic_is_named_only_at_the_edges() {
    let edges = [
        "server/src/service/",
        "server/src/cli/",
        "server/src/edge.rs",
        "server/src/links.rs",
        "server/src/net.rs",
        "server/src/node/ports.rs",
        "server/src/relay.rs",
        "server/src/raft/network.rs",
        "server/src/raft/snapshot.rs",
        "client/src/transport.rs",
        "client/src/error.rs",
    ];
    for word in ["tonic", "tonic_types", "tonic_health", "tonic_reflection"] {
        only_in(word, &edges);
    }
}

#[test]
fn the_table_names_nothing_of_the_outside_world() {
    let outside =
        ["tokio", "tracing", "std::time", "std::fs", "std::net", "std::thread", "rand", "HashMap", "HashSet"];
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        if !name.starts_with("server/lock-table/") {
            continue;
        }
        for (line, code) in code_lines(&text) {
            for word in outside {
                if code.contains(word) {
                    wrong.push(format!("{name}:{line}: {}", code.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "the lock table is pure:\n{}", wrong.join("\n"));
}

#[test]
fn clocks_are_read_in_the_clock_files_only() {
    let clock_files = ["server/src/clock.rs", "client/src/seams.rs"];
    let reads =
        ["std::time::Instant::now", "SystemTime::now", "clock_gettime", "CLOCK_BOOTTIME", "UNIX_EPOCH"];
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        // The command line talks to people: it may say what time it is.
        if clock_files.contains(&name.as_str()) || name.starts_with("server/src/cli/") {
            continue;
        }
        let std_instant = text.contains("use std::time::{") && text.contains("Instant");
        for (line, code) in code_lines(&text) {
            let from_std =
                std_instant && code.contains(" Instant::now") && !text.contains("tokio::time::{Instant");
            if reads.iter().any(|read| code.contains(read))
                || from_std && !text.contains("tokio::time::Instant")
            {
                wrong.push(format!("{name}:{line}: {}", code.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "hand the time in instead:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_itself_sees_a_breach() {
    assert!(names("use openraft::Raft;", "openraft"));
    assert!(names("    let r: openraft::Raft = x;", "openraft"));
    assert!(!names("use not_openraft::Raft;", "openraft"));
    assert!(!names("let openraft_like = 1;", "openraft"));
}
