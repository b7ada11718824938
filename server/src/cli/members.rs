//! `raftlock members`: the nodes of the cluster, as its leader sees them.

use raftlock_proto::v1::{MemberStatus, StatusResponse};
use serde_json::{Value, json};

use super::failure::Failure;
use super::target::Target;
use super::{calls, print, status};

/// Show the members of the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// Asks, and prints.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let mut view = best_view(target).await?;
    view.members.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    if args.json {
        return print::json(&Value::Array(view.members.iter().map(as_json).collect()));
    }
    if view.members.is_empty() {
        return print::line("No members: the server belongs to no cluster yet");
    }
    print::table(
        ["NAME", "ID", "ROLE", "LEADER", "ADDRESS", "PEER ADDRESS", "MATCHED"],
        view.members.iter().map(row),
    )
}

/// The leader's view, if it can be had: only the leader knows how far each log goes. Else the newest.
async fn best_view(target: &Target) -> Result<StatusResponse, Failure> {
    let asked = status::ask_all(target).await;
    let views = asked.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    let Some(newest) = views.max_by_key(|view| (view.term, is_leaders(view))) else {
        return Err(status::nobody(&asked));
    };
    if !is_leaders(newest)
        && !newest.leader_address.is_empty()
        && let Ok(leaders) = calls::status(&newest.leader_address).await
        && leaders.cluster_id == newest.cluster_id
    {
        return Ok(leaders);
    }
    Ok(newest.clone())
}

fn is_leaders(view: &StatusResponse) -> bool {
    view.node.as_ref().is_some_and(|node| node.id == view.leader_id)
}

fn row(member: &MemberStatus) -> [String; 7] {
    [
        member.name.clone(),
        member.id.to_string(),
        member.role.clone(),
        if member.leader { "yes" } else { "" }.to_owned(),
        member.address.clone(),
        member.peer_address.clone(),
        member.matched_index.map(|index| index.to_string()).unwrap_or_default(),
    ]
}

/// See `status` for why the id is a text.
pub fn as_json(member: &MemberStatus) -> Value {
    json!({
        "name": member.name,
        "id": member.id.to_string(),
        "role": member.role,
        "leader": member.leader,
        "address": member.address,
        "peer_address": member.peer_address,
        "matched_index": member.matched_index,
    })
}
