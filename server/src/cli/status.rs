//! `raftlock status`: what each server says of itself and the cluster, side by side.

use futures_util::future::join_all;
use raftlock_proto::v1::{Counters, StatusResponse};
use serde_json::{Value, json};

use super::failure::Failure;
use super::target::Target;
use super::{calls, print};

/// Show what each server says of itself and its cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON array, one object for each server.
    #[arg(long)]
    json: bool,
}

/// What one server answered, or why it did not.
pub type Asked = (String, Result<StatusResponse, String>);

/// Asks all servers, and prints.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let asked = ask_all(target).await;
    if args.json {
        print::json(&Value::Array(asked.iter().map(as_json).collect()))?;
    }
    let answers: Vec<&StatusResponse> = asked.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
    if answers.is_empty() {
        return Err(nobody(&asked));
    }
    if !args.json {
        print::facts(facts(&answers))?;
        for (address, why) in
            asked.iter().filter_map(|(address, answer)| Some((address, answer.as_ref().err()?)))
        {
            print::line(format_args!("{address}: no answer: {why}"))?;
        }
    }
    Ok(())
}

/// Asks all servers at once, each for itself.
pub async fn ask_all(target: &Target) -> Vec<Asked> {
    let asked =
        target.addresses().iter().map(|address| async { (address.clone(), calls::status(address).await) });
    join_all(asked).await
}

/// Not one of them answered.
pub fn nobody(asked: &[Asked]) -> Failure {
    let reasons = asked
        .iter()
        .filter_map(|(address, answer)| Some(format!("\n  {address}: {}", answer.as_ref().err()?)));
    Failure::NoLeader(format!("no server answered{}", reasons.collect::<String>()))
}

/// One row for each fact, one column for each server.
fn facts(answers: &[&StatusResponse]) -> Vec<Vec<String>> {
    let fact = |what: &str, of: &dyn Fn(&StatusResponse) -> String| {
        let cells = answers.iter().map(|answer| of(answer));
        std::iter::once(what.to_owned()).chain(cells).collect()
    };
    let node = |answer: &StatusResponse| answer.node.clone().unwrap_or_default();
    vec![
        fact("node", &|s| node(s).name),
        fact("id", &|s| node(s).id.to_string()),
        fact("role", &|s| node(s).role),
        fact("ready", &|s| if s.ready { "yes" } else { "no" }.to_owned()),
        fact("leader", &|s| or_dash(&s.leader_name)),
        fact("term", &|s| s.term.to_string()),
        fact("cluster", &|s| format!("{} {}", s.cluster_name, s.cluster_id)),
        fact("members", &members),
        fact("address", &|s| node(s).address),
        fact("peer address", &|s| node(s).peer_address),
        fact("log, last", &|s| s.last_log_index.to_string()),
        fact("log, committed", &|s| s.commit_index.to_string()),
        fact("log, applied", &|s| s.applied_index.to_string()),
        fact("snapshot", &|s| s.snapshot_index.to_string()),
        fact("locks", &|s| s.locks.to_string()),
        fact("sessions", &|s| s.sessions.to_string()),
        fact("waiting", &|s| s.waiters.to_string()),
        fact("last token", &|s| s.last_token.to_string()),
        fact("tick stalls", &|s| s.tick_stalls.to_string()),
        fact("cluster clock", &|s| or_dash(&s.cluster_clock)),
        fact("commands a batch", &|s| ratio(work(s).commands, work(s).batches)),
        fact("queued", &|s| micros(work(s).queued_us, work(s).commands)),
        fact("batch, to applied", &|s| micros(work(s).settled_us, work(s).settled_batches)),
        fact("commit and flush", &|s| micros(work(s).flushed_us, work(s).flushes)),
        fact("apply", &|s| micros(work(s).applied_us, work(s).applied_batches)),
        fact("disk", &disk),
        fact("version", &|s| node(s).version),
    ]
}

fn members(status: &StatusResponse) -> String {
    let voters = status.members.iter().filter(|member| member.role == "voter").count();
    match status.members.len() - voters {
        0 => format!("{voters} voting"),
        learners => format!("{voters} voting, {learners} not"),
    }
}

fn disk(status: &StatusResponse) -> String {
    let mib = status.disk_free_bytes >> 20;
    if status.disk_low { format!("LOW, {mib} MiB free") } else { format!("{mib} MiB free") }
}

fn work(status: &StatusResponse) -> Counters {
    status.counters.unwrap_or_default()
}

fn ratio(sum: u64, count: u64) -> String {
    if count == 0 { "-".to_owned() } else { format!("{:.1}", sum as f64 / count as f64) }
}

fn micros(sum: u64, count: u64) -> String {
    sum.checked_div(count).map_or("-".to_owned(), |mean| format!("{mean} us"))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn counters(work: &Counters) -> Value {
    json!({
        "batches": work.batches,
        "commands": work.commands,
        "queued_us": work.queued_us,
        "renewals": work.renewals,
        "batches_on_their_way": work.batches_on_their_way,
        "settled_batches": work.settled_batches,
        "settled_us": work.settled_us,
        "applied_batches": work.applied_batches,
        "applied_us": work.applied_us,
        "flushes": work.flushes,
        "flushed_us": work.flushed_us,
        "wal_bytes": work.wal_bytes,
    })
}

/// Ids of nodes are random and use all 64 bits, which JSON's numbers do not hold everywhere: they are texts.
fn as_json((address, answer): &Asked) -> Value {
    let s = match answer {
        Ok(status) => status,
        Err(why) => return json!({ "endpoint": address, "error": why }),
    };
    let node = s.node.clone().unwrap_or_default();
    json!({
        "endpoint": address,
        "ready": s.ready,
        "cluster_name": s.cluster_name,
        "cluster_id": s.cluster_id,
        "node": {
            "name": node.name,
            "id": node.id.to_string(),
            "role": node.role,
            "version": node.version,
            "address": node.address,
            "peer_address": node.peer_address,
        },
        "leader_name": s.leader_name,
        "leader_address": s.leader_address,
        "leader_id": s.leader_id.to_string(),
        "term": s.term,
        "last_log_index": s.last_log_index,
        "commit_index": s.commit_index,
        "applied_index": s.applied_index,
        "snapshot_index": s.snapshot_index,
        "locks": s.locks,
        "sessions": s.sessions,
        "waiters": s.waiters,
        "cluster_time_ms": s.cluster_time_ms,
        "last_token": s.last_token,
        "tick_stalls": s.tick_stalls,
        "cluster_clock": s.cluster_clock,
        "disk_low": s.disk_low,
        "disk_free_bytes": s.disk_free_bytes,
        "counters": counters(&work(s)),
        "members": s.members.iter().map(super::members::as_json).collect::<Vec<_>>(),
    })
}
