//! Suites that need no cluster: seed after seed, in threads of this process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Tally;
use super::jobs::share_out;

#[derive(clap::Args)]
pub struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// How many at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
}

pub fn run(
    args: &Args,
    name: &str,
    suite: impl Fn(u64) -> Result<Tally, String> + Sync,
) -> anyhow::Result<Tally> {
    share_out(args.jobs, args.from..args.from.saturating_add(args.seeds), |seed| {
        let again = |wrong| anyhow::anyhow!("{wrong}; again: tests/prove {name} --seeds 1 --from {seed}");
        let one = catch_unwind(AssertUnwindSafe(|| suite(seed)));
        one.unwrap_or_else(|_| Err("a panic".to_owned())).map_err(again)
    })
}
