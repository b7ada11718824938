//! Runs the suites that prove the product, each as long as it is asked to: `prove SUITE --help`.
//!
//! A suite prints what it came to and ends 0, or says which check failed and with which command it fails again, and
//! ends 1. What runs in a tier, and in which order, is in `tiers`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use raftlock_tests::tally::Tally;

mod founding;

#[derive(Parser)]
#[command(name = "prove", about = "Runs the suites that prove RaftLock", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// New nodes found a cluster while everything goes wrong
    Founding(founding::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().suite {
        Suite::Founding(args) => founding::run(&args),
    };
    match done {
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
