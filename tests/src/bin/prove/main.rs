//! Runs the suites that prove the product, each as long as it is asked to: `prove SUITE --help`.
//!
//! A suite prints what it came to and ends 0, or says which check failed and with which command it fails again, and
//! ends 1. What runs in a tier, and in which order, is in `tiers`. `tests/prove` builds all it needs and runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use raftlock_tests::tally::Tally;

mod crash;
mod founding;
mod sim;
mod soak;
mod tiers;

#[derive(Parser)]
#[command(name = "prove", about = "Runs the suites that prove RaftLock", max_term_width = 100)]
struct Cli {
    /// The server's program, for suites that start processes
    #[arg(long, global = true, default_value = "target/release/raftlock")]
    server: PathBuf,
    /// A file for what the suite came to, as JSON
    #[arg(long, global = true)]
    tally: Option<PathBuf>,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Every crash point of the store
    Crash(crash::Args),
    /// A cluster and its clients in one thread, while everything goes wrong
    Sim(sim::Args),
    /// New nodes found a cluster while everything goes wrong
    Founding(founding::Args),
    /// A tier: all suites, one after another
    Tier {
        /// Which
        tier: tiers::Tier,
    },
    /// The suites of one seed after another, for as long as asked
    Soak(soak::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(tally) => {
            println!("{tally}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("prove: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Tally> {
    let tally = match cli.suite {
        Suite::Crash(args) => crash::run(&args),
        Suite::Sim(args) => sim::run(&args, &cli.server),
        Suite::Founding(args) => founding::run(&args),
        Suite::Tier { tier } => tiers::run(tier, &cli.server),
        Suite::Soak(args) => soak::run(&args, &cli.server),
    }?;
    if let Some(file) = &cli.tally {
        std::fs::write(file, serde_json::to_string(&tally)?).context("the file for the counts")?;
    }
    Ok(tally)
}
