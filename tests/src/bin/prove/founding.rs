//! The founding of clusters, schedule after schedule.

use std::ops::Range;

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
    let seeds: Range<u64> = args.from..args.from.saturating_add(args.seeds);
    let mut tally = Tally::default();
    for outcome in seeds.map(raftlock_tests::founders::run) {
        tally.add("founding schedules", 1);
        tally.add("founding power cuts", outcome.crashes as u64);
        tally.add("founding disks wiped", outcome.wipes as u64);
        tally.add("founding links cut", outcome.cuts as u64);
        tally.add("founding deaths", outcome.death.into());
        tally.add("founding operators called", outcome.blocked.into());
    }
    Ok(tally)
}
