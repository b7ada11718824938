//! Runs the stories in `tests/scripts`: what happens to a table, line by line, and what comes out.
//!
//! A file has blocks: comments and commands, a line `---`, and the outputs, up to an empty line.
//! The commands are in `story/mod.rs`. After each batch every invariant is checked; at the end all
//! batches go through bytes and back into a second table, in the smallest steps, which must answer
//! alike and end up equal.
//!
//! `UPDATE_SCRIPTS=1 cargo test -p lock-table --test scripts` writes the outputs into the files.
//! Read the diff: it is the review.

mod story;
mod support;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use story::Story;

#[test]
fn every_story_ends_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("the folder is there").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no script in {}", folder.display());
    let mut failed = Vec::new();
    for path in paths {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let written = fs::read_to_string(&path).expect("a readable file");
        match catch_unwind(AssertUnwindSafe(|| run(&written))) {
            Ok(told) if told == written => {}
            Ok(told) if std::env::var_os("UPDATE_SCRIPTS").is_some() => {
                fs::write(&path, told).expect("a writable file");
            }
            Ok(told) => {
                println!("==== {name}\n{}", difference(&written, &told));
                failed.push(name);
            }
            Err(_) => failed.push(format!("{name} (stopped, see above)")),
        }
    }
    assert!(failed.is_empty(), "{} scripts differ: {failed:#?}", failed.len());
}

/// Runs a script and gives it back with the outputs that came.
fn run(script: &str) -> String {
    let mut story = Story::new();
    let blocks = script.trim_end().split("\n\n").map(|block| {
        let commands = block.split_once("\n---").map_or(block, |(commands, _)| commands);
        let lines: Vec<&str> = commands.lines().collect();
        let told: String = story.tell(&lines).iter().map(|line| format!("\n{line}")).collect();
        format!("{commands}\n---{told}")
    });
    let told = blocks.collect::<Vec<_>>().join("\n\n") + "\n";
    story.replay();
    told
}

fn difference(written: &str, told: &str) -> String {
    let (written, told): (Vec<_>, Vec<_>) = (written.lines().collect(), told.lines().collect());
    let same = written.iter().zip(&told).take_while(|(a, b)| a == b).count();
    let from = |lines: &[&str]| {
        lines.iter().skip(same).take(12).map(|line| format!("  {line}\n")).collect::<String>()
    };
    format!("from line {}, written:\n{}but came:\n{}", same + 1, from(&written), from(&told))
}
