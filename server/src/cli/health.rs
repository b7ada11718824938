//! `raftlock health`: for health checks of containers and load balancers.

use raftlock_proto::v1::StatusResponse;
use serde_json::{Value, json};

use super::failure::Failure;
use super::print;
use super::status::{self, Asked};
use super::target::Target;

/// Exit with 0 if the server serves and knows a leader; of several, if all do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON array, one object for each server.
    #[arg(long)]
    json: bool,
}

/// Asks each server once, and says how it is.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let asked = status::ask_all(target).await;
    if args.json {
        print::json(&Value::Array(asked.iter().map(as_json).collect()))?;
    }
    for healthy in asked.iter().filter(|asked| is_healthy(asked)) {
        if !args.json {
            print::line(in_words(healthy))?;
        }
    }
    let sick: Vec<String> = asked.iter().filter(|asked| !is_healthy(asked)).map(in_words).collect();
    if sick.is_empty() { Ok(()) } else { Err(Failure::NoLeader(sick.join("\n  "))) }
}

fn is_healthy((_, answer): &Asked) -> bool {
    matches!(answer, Ok(StatusResponse { ready: true, .. }))
}

fn in_words((address, answer): &Asked) -> String {
    match answer {
        Ok(status) if status.ready => format!("{address} serves; the leader is {}", status.leader_name),
        Ok(status) => {
            let role = status.node.as_ref().map_or("starting", |node| node.role.as_str());
            format!("{address} does not serve: it knows no leader ({role})")
        }
        Err(why) => format!("{address} does not answer: {why}"),
    }
}

fn as_json(asked: &Asked) -> Value {
    let (address, answer) = asked;
    let leader = answer.as_ref().map(|status| status.leader_name.clone()).unwrap_or_default();
    json!({ "endpoint": address, "healthy": is_healthy(asked), "leader_name": leader, "error": answer.as_ref().err() })
}
