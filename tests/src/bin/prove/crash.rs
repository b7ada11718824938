//! Crash points of the store, history after history.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::anyhow;

use super::Tally;
use super::jobs::share_out;

/// The most images that one walk takes. A history of checkpoints and large snapshots has more events than that.
const IMAGES_OF_A_WALK: u64 = 4_000;

#[derive(clap::Args)]
pub struct Args {
    /// The first history
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many histories
    #[arg(long, conflicts_with = "images")]
    seeds: Option<u64>,
    /// As many histories as give this many crash images
    #[arg(long, default_value_t = 10_000)]
    images: u64,
    /// How many at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Tally> {
    let images = AtomicU64::new(0);
    let end = args.seeds.map_or(u64::MAX, |seeds| args.from.saturating_add(seeds));
    let is_enough = || args.seeds.is_none() && images.load(Ordering::Relaxed) >= args.images;
    let seeds = (args.from..end).take_while(|_| !is_enough());
    share_out(args.jobs, seeds, |seed| {
        let one = catch_unwind(|| raftlock_tests::crash_points::run_seed(seed, IMAGES_OF_A_WALK));
        let again = |_| anyhow!("seed {seed}; again: tests/prove crash --seeds 1 --from {seed}");
        let one = one.map_err(again)?;
        images.fetch_add(one.get("crash images"), Ordering::Relaxed);
        Ok(one)
    })
}
