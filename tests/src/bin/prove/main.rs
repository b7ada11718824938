//! Runs the suites that prove the product, each as long as it is asked to: `prove SUITE --help`.
//!
//! A suite prints what it came to and ends 0, or says which check failed and with which command it fails again, and
//! ends 1. What runs in a tier, and in which order, is in `tiers`. `tests/prove` builds all it needs and runs it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use raftlock_tests::history::History;
use raftlock_tests::tally::Tally;
use raftlock_tests::{clock_schedules, fuzz, schedules, table_rules};

mod chaos;
mod crash;
mod founding;
mod jobs;
mod planted;
mod quick;
mod sim;
mod soak;
mod tiers;

#[derive(Parser)]
#[command(name = "prove", about = "Runs the suites that prove RaftLock", max_term_width = 100)]
struct Cli {
    /// A file for what the suite came to, as JSON
    #[arg(long, global = true)]
    tally: Option<PathBuf>,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Processes of the release binary while everything goes wrong
    Chaos(chaos::Args),
    /// One client process of that suite
    #[command(hide = true)]
    Client(raftlock_tests::chaos::app::Args),
    /// Every crash point of the store
    Crash(crash::Args),
    /// A cluster and its clients in one thread, while everything goes wrong
    Sim(sim::Args),
    /// New nodes found a cluster while everything goes wrong
    Founding(founding::Args),
    /// The SDK alone, over lines that fail
    Schedules(quick::Args),
    /// The leader's clock under stalls and changes of leader
    Clock(quick::Args),
    /// Old tokens and dead sessions at the lock table
    Table(quick::Args),
    /// Every check that takes no log, over a history that was kept
    History {
        /// Lines of JSON
        file: PathBuf,
    },
    /// Bytes that nobody wrote, at every decoder
    Fuzz(quick::Args),
    /// Bugs that a suite must find
    Planted(planted::Args),
    /// A tier: all suites, one after another
    Tier {
        /// Which
        tier: tiers::Tier,
    },
    /// The suites of one seed after another, for as long as asked
    Soak(soak::Args),
}

fn main() -> ExitCode {
    show_log();
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

/// With `RUST_LOG` set, whoever looks at a seed sees what the product says in it.
fn show_log() {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false);
        log.with_writer(std::io::stderr).init();
    }
}

fn run(cli: Cli) -> anyhow::Result<Tally> {
    let tally = match cli.suite {
        Suite::Chaos(args) => chaos::run(&args),
        Suite::Client(args) => raftlock_tests::chaos::app::live(args).map(|()| std::process::exit(0)),
        Suite::Crash(args) => crash::run(&args),
        Suite::Sim(args) => sim::run(&args),
        Suite::Founding(args) => founding::run(&args),
        Suite::Clock(args) => quick::run(&args, "clock", clock_schedules::run),
        Suite::Table(args) => quick::run(&args, "table", table_rules::run),
        Suite::History { file } => history(&file),
        Suite::Fuzz(args) => quick::run(&args, "fuzz", fuzz::run),
        Suite::Schedules(args) => quick::run(&args, "schedules", schedules::run),
        Suite::Planted(args) => planted::run(&args),
        Suite::Tier { tier } => tiers::run(tier),
        Suite::Soak(args) => soak::run(&args),
    }?;
    if let Some(file) = &cli.tally {
        std::fs::write(file, serde_json::to_string(&tally)?).context("the file for the counts")?;
    }
    Ok(tally)
}

fn history(file: &Path) -> anyhow::Result<Tally> {
    let lines = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let summary = History::of_lines(&lines)?.check().map_err(|violation| anyhow!("{violation}"))?;
    let mut tally = Tally::default();
    tally.add("grants", summary.grants as u64);
    tally.add("writes accepted", summary.writes as u64);
    tally.add("stale writes refused", summary.stale_writes_refused as u64);
    tally.add("unknown operations", summary.unknown as u64);
    Ok(tally)
}
