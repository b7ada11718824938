//! The command line: what can be said, and which file does it. One file per command.
//!
//! The files without a command: `target` (which servers), `lease` (which lock, for how long), `values` (how durations
//! and sizes are written), `scratch` (folders and ports of nodes that a command starts itself), `calls` (unary calls, endpoint by endpoint), `print` (what goes to stdout), `logging`,
//! `failure` (exit codes), `compose_env` (two variables of `serve` that are not named RAFTLOCK_).

mod bench;
mod calls;
mod completions;
mod compose_env;
mod demo;
mod failure;
mod get;
mod health;
mod lease;
mod list;
mod lock;
mod logging;
mod members;
mod print;
mod renew;
mod run;
mod scratch;
mod serve;
mod status;
mod target;
mod transfer_leader;
mod unlock;
mod values;

use std::future::Future;
use std::process::ExitCode;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::runtime::Runtime;

use failure::Failure;
use logging::LogFormat;
use target::Target;

/// Distributed locks on a small Raft cluster: a server, and the commands to use it.
///
/// `raftlock serve` runs a node, `raftlock lock NAME` takes a lock, `raftlock run NAME -- COMMAND` holds one while a
/// command runs. Exit codes: 0 done, 2 usage, 69 no leader reachable, 74 the node's disk failed, 75 not acquired or
/// not held by you, 76 lost while running, 1 anything else.
#[derive(Debug, Parser)]
#[command(name = "raftlock", version, arg_required_else_help = true, args_override_self = true)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Demo(demo::Args),
    Bench(bench::Args),
    Lock(lock::Args),
    Unlock(unlock::Args),
    Renew(renew::Args),
    Run(run::Args),
    Get(get::Args),
    List(list::Args),
    Status(status::Args),
    Members(members::Args),
    TransferLeader(transfer_leader::Args),
    Health(health::Args),
    Completions(completions::Args),
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let matches = match with_environment(Cli::command()).try_get_matches() {
        Ok(matches) => matches,
        Err(shown) => return show(&shown),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(shown) => return show(&shown),
    };
    let target = cli.target.settled(&matches);
    match execute(cli.command, target) {
        Ok(code) => code,
        Err(failure) => {
            print::aside(format_args!("error: {failure}"));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Every flag can be set by the environment: `--peer-listen` by RAFTLOCK_PEER_LISTEN. Help shows the names only.
fn with_environment(command: clap::Command) -> clap::Command {
    command.mut_args(with_variable).mut_subcommands(with_environment)
}

fn with_variable(arg: clap::Arg) -> clap::Arg {
    let Some(long) = arg.get_long() else { return arg };
    let name = format!("RAFTLOCK_{}", long.to_uppercase().replace('-', "_"));
    let arg = match arg.get_action() {
        // So that `1` and `yes` are as good as `true`.
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    };
    // Composed environments set to nothing what they do not set.
    match std::env::var_os(&name) {
        Some(value) if value.is_empty() => arg,
        _ => arg.env(name).hide_env_values(true),
    }
}

/// Help, the version, or what is wrong with the command line.
fn show(shown: &clap::Error) -> ExitCode {
    // If even this cannot be written, nobody is there to read about it.
    let _ = shown.print();
    ExitCode::from(u8::try_from(shown.exit_code()).unwrap_or(failure::USAGE))
}

fn execute(command: Command, target: Result<Target, Failure>) -> Result<ExitCode, Failure> {
    match command {
        // These two need no server, so what the environment says about servers is not held against them.
        Command::Serve(args) => done(serve::execute(*args)),
        Command::Completions(args) => done(completions::execute(args)),
        Command::Demo(args) => done(demo::execute(args)),
        Command::Bench(args) => done(bench::execute(args, target)),
        // It has to fork before anything starts a thread.
        Command::Run(args) => run::execute(args, target?),
        command => {
            logging::start("warn", LogFormat::Text)?;
            let target = target?;
            let outcome = async {
                match command {
                    Command::Lock(args) => lock::execute(args, &target).await,
                    Command::Unlock(args) => unlock::execute(args, &target).await,
                    Command::Renew(args) => renew::execute(args, &target).await,
                    Command::Get(args) => get::execute(args, &target).await,
                    Command::List(args) => list::execute(args, &target).await,
                    Command::Status(args) => status::execute(args, &target).await,
                    Command::Members(args) => members::execute(args, &target).await,
                    Command::TransferLeader(args) => transfer_leader::execute(args, &target).await,
                    Command::Health(args) => health::execute(args, &target).await,
                    Command::Serve(_)
                    | Command::Completions(_)
                    | Command::Demo(_)
                    | Command::Bench(_)
                    | Command::Run(_) => {
                        unreachable!("they were taken out above")
                    }
                }
            };
            done(block_on(outcome))
        }
    }
}

fn done(outcome: Result<(), Failure>) -> Result<ExitCode, Failure> {
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Runs a command on this thread. What it left behind is not waited for.
fn block_on<T>(outcome: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(outcome);
    runtime.shutdown_background();
    outcome
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::Other(format!("the runtime could not be started: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_flag_has_a_variable() {
        let command = with_environment(Cli::command());
        for command in std::iter::once(&command).chain(command.get_subcommands()) {
            for flag in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let name = flag.get_env().and_then(|name| name.to_str());
                assert!(name.is_some_and(|name| name.starts_with("RAFTLOCK_")), "{flag:?}");
            }
        }
        command.debug_assert();
    }
}
