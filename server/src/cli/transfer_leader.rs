//! `raftlock transfer-leader`: has another node lead, before this one is taken down.

use raftlock_proto::v1::change_members_request::Change;

use super::failure::Failure;
use super::members;
use super::target::Target;

/// Hand the leadership to another voter.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// To whom: name or id. Default: the most up-to-date voter.
    member: Option<String>,
}

/// Asks, and prints who leads.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    members::change(Change::TransferLeader(args.member.unwrap_or_default()), target).await
}
