//! Seeds shared out among threads, and their counts added up.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Tally;

/// Runs every seed, so many at a time, and adds up. The first failure is the answer; others end their seed first.
pub fn share_out(
    jobs: u64,
    seeds: impl Iterator<Item = u64> + Send,
    run: impl Fn(u64) -> anyhow::Result<Tally> + Sync,
) -> anyhow::Result<Tally> {
    let (seeds, all) = (Mutex::new(seeds.fuse()), Mutex::new(Tally::default()));
    let failed = AtomicBool::new(false);
    let next = || seeds.lock().expect("taking a seed does not panic").next();
    let worker = || -> anyhow::Result<()> {
        while let Some(seed) = next().filter(|_| !failed.load(Ordering::Relaxed)) {
            let one = run(seed).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            all.lock().expect("adding does not panic").merge(&one);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a suite's panics are caught"))
    })?;
    Ok(all.into_inner().expect("adding does not panic"))
}
