//! Suites that need no cluster: seed after seed in this process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Tally;

#[derive(clap::Args)]
pub struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
}

pub fn run(args: &Args, name: &str, suite: impl Fn(u64) -> Result<Tally, String>) -> anyhow::Result<Tally> {
    let mut all = Tally::default();
    for seed in args.from..args.from.saturating_add(args.seeds) {
        let again = |wrong| anyhow::anyhow!("{wrong}; again: tests/prove {name} --seeds 1 --from {seed}");
        let one = catch_unwind(AssertUnwindSafe(|| suite(seed)));
        all.merge(&one.unwrap_or_else(|_| Err("a panic".to_owned())).map_err(again)?);
    }
    Ok(all)
}
