//! The simulation, seed after seed. Each seed has a process of its own: a run that fails may end it, and what one run
//! leaves in the process must not change the next.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};

use super::{Tally, tiers};

/// Seeds that once found something. They run first.
const FIXTURES: &str = include_str!("../../../fixtures/seeds");

#[derive(clap::Args)]
pub struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// How many at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Everything that happens in the one seed, into this file
    #[arg(long)]
    trace: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<Tally> {
    if args.seeds == 1 {
        return one(args.from, args.trace.as_deref());
    }
    let fixtures = fixtures()?;
    let end = args.from.saturating_add(args.seeds);
    let seeds: Vec<u64> = fixtures.into_iter().chain(args.from..end).collect();
    let next = AtomicU64::new(0);
    let worker = || -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let arguments = ["sim", "--seeds", "1", "--from", &seed.to_string()];
            let done = tiers::one_quietly(&arguments);
            let done =
                done.with_context(|| format!("seed {seed}; again: tests/prove sim --seeds 1 --from {seed}"));
            tally.merge(&done?);
        }
        Ok(tally)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut all = Tally::default();
        for worker in workers {
            all.merge(&worker.join().expect("a worker does not panic")?);
        }
        Ok(all)
    })
}

fn one(seed: u64, trace: Option<&Path>) -> anyhow::Result<Tally> {
    let keep = |lines: &[String]| match trace {
        Some(file) => std::fs::write(file, lines.join("\n")).with_context(|| file.display().to_string()),
        None => Ok(()),
    };
    match raftlock_tests::world::run(seed) {
        Ok(outcome) => {
            keep(&outcome.trace)?;
            Ok(outcome.tally)
        }
        Err(failure) => {
            keep(&failure.trace)?;
            bail!(
                "{}; again, with all that happened: tests/prove sim --seeds 1 --from {seed} --trace FILE",
                failure.what
            )
        }
    }
}

fn fixtures() -> anyhow::Result<Vec<u64>> {
    let lines = FIXTURES.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let seed = |line: &str| line.split_whitespace().next().unwrap_or_default().parse();
    lines.map(|line| seed(line).with_context(|| format!("fixtures/seeds: {line:?}"))).collect()
}
