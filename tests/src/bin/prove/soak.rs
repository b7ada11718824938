//! Seed after seed, for as long as asked: a line for every hundred, and totals that add up over runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Tally, tiers};

/// The suites of which every seed is a run of its own. `crash` is measured in images, and has hundreds of seeds a minute.
const BY_SEED: &[&str] = &["sim", "schedules", "founding", "clock", "table", "fuzz"];

/// How many seeds stand in one line.
const CHUNK: u64 = 100;

#[derive(clap::Args)]
pub struct Args {
    /// The first seed
    #[arg(long)]
    from: u64,
    /// How many seeds; without it, until the minutes are over
    #[arg(long, required_unless_present = "minutes")]
    seeds: Option<u64>,
    /// Begins no further hundred after this time
    #[arg(long)]
    minutes: Option<u64>,
    /// Where the totals of all runs add up
    #[arg(long, default_value = "target/soak.json")]
    totals: PathBuf,
}

#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
pub fn run(args: &Args) -> anyhow::Result<Tally> {
    let began = Instant::now();
    let (mut from, mut here) = (args.from, Tally::default());
    let end = args.seeds.map_or(u64::MAX, |seeds| args.from.saturating_add(seeds));
    let limit = args.minutes.map_or(Duration::MAX, |minutes| Duration::from_secs(60 * minutes));
    while from < end && began.elapsed() < limit {
        let count = CHUNK.min(end - from);
        let chunk = seeds(from, count).with_context(|| format!("seeds {from} to {}", from + count - 1))?;
        println!("{from}..{}: {chunk}", from + count);
        here.merge(&chunk);
        let totals = add_up(&args.totals, &chunk)?;
        println!("    in all, over runs: {totals}");
        from += count;
    }
    super::sim::covered(&here, from - args.from)?;
    Ok(here)
}

fn seeds(from: u64, count: u64) -> anyhow::Result<Tally> {
    let mut all = Tally::default();
    for suite in BY_SEED {
        let (from, count) = (from.to_string(), count.to_string());
        all.merge(&tiers::one(&[suite, "--from", &from, "--seeds", &count])?);
    }
    Ok(all)
}

/// Written whole beside the old ones and renamed, so that a run that is killed loses no more than its last hundred.
fn add_up(file: &Path, chunk: &Tally) -> anyhow::Result<Tally> {
    let mut totals: Tally = match std::fs::read_to_string(file) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{} holds no counts", file.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Tally::default(),
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    totals.merge(chunk);
    let next = file.with_extension("next");
    std::fs::write(&next, serde_json::to_string_pretty(&totals)?)
        .with_context(|| next.display().to_string())?;
    std::fs::rename(&next, file).with_context(|| file.display().to_string())?;
    Ok(totals)
}
