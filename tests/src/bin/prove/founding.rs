//! The founding of clusters, schedule after schedule.

use raftlock_tests::founders;

use super::Tally;

#[derive(clap::Args)]
pub struct Args {
    /// The first schedule
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many
    #[arg(long, default_value_t = 200)]
    seeds: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Tally> {
    let mut all = Tally::default();
    for seed in args.from..args.from.saturating_add(args.seeds) {
        all.merge(&founders::run(seed).tally());
    }
    anyhow::ensure!(founders::has_bitten(&all), "the faults did not bite: {all}");
    Ok(all)
}
