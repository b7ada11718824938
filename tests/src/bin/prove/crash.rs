//! Crash points of the store, history after history.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::anyhow;

use super::Tally;

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
    let (next, images) = (AtomicU64::new(args.from), AtomicU64::new(0));
    let end = args.seeds.map_or(u64::MAX, |seeds| args.from.saturating_add(seeds));
    let enough = || args.seeds.is_none() && images.load(Ordering::Relaxed) >= args.images;
    let worker = || -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || enough() {
                return Ok(tally);
            }
            let one = catch_unwind(|| raftlock_tests::crash_points::run_seed(seed, IMAGES_OF_A_WALK));
            let one: Tally =
                one.map_err(|_| anyhow!("seed {seed}; again: prove crash --seeds 1 --from {seed}"))?;
            images.fetch_add(one.get("crash images"), Ordering::Relaxed);
            tally.merge(&one);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut all = Tally::default();
        for worker in workers {
            all.merge(&worker.join().expect("its panics are caught")?);
        }
        Ok(all)
    })
}
