//! Log lines go to stderr: stdout belongs to what a command answers.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use super::failure::Failure;

/// Environment variable with a filter such as `debug` or `raftlock_server=debug,openraft=info`.
pub const FILTER_ENV: &str = "RAFTLOCK_LOG";

/// State changes of ours; of the crates below only what is wrong. openraft warns of every heartbeat that a dead peer does
/// not answer; that the peer is gone is a line of ours.
pub const SERVER_FILTER: &str = "warn,openraft=error,raftlock_server=info,raftlock=info";

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging, with `filter` where the environment says nothing.
pub fn start(filter: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = match std::env::var(FILTER_ENV) {
        Ok(given) if !given.is_empty() => {
            EnvFilter::try_new(given).map_err(|error| Failure::Usage(format!("{FILTER_ENV}: {error}")))?
        }
        _ => EnvFilter::new(filter),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
