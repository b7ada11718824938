//! `raftlock members`: the nodes of the cluster, as its leader sees them, and changes of who belongs to it.

use std::time::Duration;

use raftlock_proto::v1::change_members_request::Change;
use raftlock_proto::v1::{ChangeMembersRequest, MemberStatus, ReplaceMember, StatusResponse};
use serde_json::{Value, json};

use super::failure::Failure;
use super::print::brief;
use super::target::Target;
use super::{calls, print, status};

/// How long a change may take: a learner may have to catch up first.
const CHANGE_WAIT: Duration = Duration::from_secs(60);

/// Show the members of the cluster, or change who belongs to it.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    change: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Take a member out of the cluster, for good. Its data directory refuses to start after that.
    Remove {
        /// Its name or id.
        member: String,
    },
    /// Put a learner in the place of another member, in one change. It waits until the learner is caught up.
    Replace {
        /// Who goes: name or id. A node that came back with an empty disk keeps its name: `replace n3 n3`.
        old: String,
        /// Who takes its place: name or id.
        new: String,
    },
    /// Say how many members vote: odd, at most 9. The rest are learners.
    Voters {
        /// How many.
        count: u32,
    },
}

/// Asks, and prints.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    match args.change {
        None => show(&args, target).await,
        Some(Verb::Remove { member }) => change(Change::Remove(member), target).await,
        Some(Verb::Replace { old, new }) => change(Change::Replace(ReplaceMember { old, new }), target).await,
        Some(Verb::Voters { count }) => change(Change::Voters(count), target).await,
    }
}

/// Has the leader make a change, through whichever server answers. Each may be asked again: what is done stays done.
pub async fn change(change: Change, target: &Target) -> Result<(), Failure> {
    let request = ChangeMembersRequest { change: Some(change) };
    let answer = calls::repeatable(target, CHANGE_WAIT, async |mut attempt| {
        let request = attempt.request(request.clone());
        attempt.admin.change_members(request).await
    });
    let answer = answer.await.map_err(|why| why.into_failure("look at `raftlock members`"))?;
    print::line(&answer.message)
}

async fn show(args: &Args, target: &Target) -> Result<(), Failure> {
    let mut view = best_view(target).await?;
    view.members.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    if args.json {
        return print::json(&Value::Array(view.members.iter().map(as_json).collect()));
    }
    if view.members.is_empty() {
        return print::line("No members: the server belongs to no cluster yet");
    }
    print::table(
        ["NAME", "ID", "ROLE", "STATE", "ADDRESS", "PEER ADDRESS", "LAG", "LAST CONTACT"],
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

fn row(member: &MemberStatus) -> [String; 8] {
    let contact = member.last_contact_ms.map(|ms| format!("{} ago", brief(Duration::from_millis(ms))));
    [
        member.name.clone(),
        member.id.to_string(),
        if member.leader { "leader".to_owned() } else { member.role.clone() },
        member.state.clone(),
        member.address.clone(),
        member.peer_address.clone(),
        member.lag.map(|entries| entries.to_string()).unwrap_or_default(),
        contact.unwrap_or_default(),
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
        "state": member.state,
        "last_contact_ms": member.last_contact_ms,
        "lag": member.lag,
    })
}
