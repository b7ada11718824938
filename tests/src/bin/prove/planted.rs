//! Planted bugs: each is found by its suite, in a build that has them; the same seeds find nothing where none is chosen.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use raftlock_tests::planted::{PLANTED, Planted};

use super::Tally;

#[derive(clap::Args)]
pub struct Args {
    /// Only these, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Two of them, which ones follows from this number
    #[arg(long, conflicts_with = "only")]
    rotate: Option<usize>,
    /// This program with the bugs in it; `tests/prove` builds it
    #[arg(long, default_value = "target/sim/prove-planted")]
    program: PathBuf,
}

/// Seeds of the clean run, at most: the suites run as many elsewhere.
const CLEAN_SEEDS: u64 = 20;

pub fn run(args: &Args) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    let mut missed = Vec::new();
    for bug in chosen(args)? {
        let found = hunt(bug, &args.program)?;
        tally.add("planted bugs", 1);
        match found {
            Some((seed, took, check)) => {
                tally.add("planted bugs found", 1);
                println!(
                    "{:28} {:6} seed {seed:>3} {:>6.1} s  {check}",
                    bug.name,
                    bug.suite,
                    took.as_secs_f64()
                );
                clean(bug, seed, &args.program)?;
            }
            None => {
                println!("{:28} {:6} NOT FOUND in {} seeds: {}", bug.name, bug.suite, bug.seeds, bug.what);
                missed.push(bug.name);
            }
        }
    }
    if !missed.is_empty() {
        bail!("not found: {}", missed.join(", "));
    }
    Ok(tally)
}

fn chosen(args: &Args) -> anyhow::Result<Vec<&'static Planted>> {
    if let Some(number) = args.rotate {
        let first = (2 * number) % PLANTED.len();
        return Ok(vec![&PLANTED[first], &PLANTED[(first + 1) % PLANTED.len()]]);
    }
    if args.only.is_empty() {
        return Ok(PLANTED.iter().collect());
    }
    let by_name = |name: &String| PLANTED.iter().find(|bug| bug.name == name);
    args.only
        .iter()
        .map(|name| by_name(name).with_context(|| format!("no planted bug is named {name}")))
        .collect()
}

/// Runs seeds until one fails: which, after how long, and what it said.
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
fn hunt(bug: &Planted, program: &Path) -> anyhow::Result<Option<(u64, Duration, String)>> {
    let began = Instant::now();
    for seed in 1..=bug.seeds {
        let output = suite(bug, seed, program).env("RAFTLOCK_PLANTED", bug.name).output();
        let output = output.with_context(|| program.display().to_string())?;
        if !output.status.success() {
            return Ok(Some((seed, began.elapsed(), check(&String::from_utf8_lossy(&output.stderr)))));
        }
    }
    Ok(None)
}

/// The same seeds with no bug chosen find nothing.
fn clean(bug: &Planted, seed: u64, program: &Path) -> anyhow::Result<()> {
    for seed in (1..=seed).rev().take(CLEAN_SEEDS as usize) {
        let output = suite(bug, seed, program).env_remove("RAFTLOCK_PLANTED").output()?;
        if !output.status.success() {
            bail!(
                "{} fails with seed {seed} where no bug was chosen: {}",
                bug.suite,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(())
}

fn suite(bug: &Planted, seed: u64, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([bug.suite, "--seeds", "1", "--from", &seed.to_string()]);
    command
}

/// What fired, in one line.
fn check(stderr: &str) -> String {
    let panicked = stderr.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let said = stderr.lines().find(|line| line.starts_with("prove: "));
    let line = said.filter(|line| !line.contains("; again: tests/prove crash")).or(panicked).or(said);
    line.unwrap_or("it ended").trim_start_matches("prove: ").chars().take(110).collect()
}
