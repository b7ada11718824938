//! Processes of the release binary while everything goes wrong.

use std::path::PathBuf;

use raftlock_tests::chaos;

use super::Tally;

#[derive(clap::Args)]
#[command(after_help = scenarios())]
pub struct Args {
    /// Only these, as in P1,P5
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How long each lasts, as a part of its full length
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// What happens when follows from it, as far as real processes follow
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server; `tests/prove` builds it
    #[arg(long, default_value = "target/release/raftlock")]
    binary: PathBuf,
}

fn scenarios() -> String {
    let lines = chaos::scenarios().map(|(name, what)| format!("  {name:4} {what}\n"));
    format!("Scenarios:\n{}", lines.collect::<String>())
}

pub fn run(args: &Args) -> anyhow::Result<Tally> {
    chaos::run(&args.binary, &args.only, args.seed, args.scale)
}
