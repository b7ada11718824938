//! `raftlock completions SHELL`: a script that a shell reads.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, print};

/// Print a completion script for a shell. For bash: `source <(raftlock completions bash)`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn execute(args: Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "raftlock", &mut script);
    print::line(String::from_utf8_lossy(&script).trim_end())
}
