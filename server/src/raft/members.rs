//! Membership changes, in words that are not openraft's. Only the controller in `members/` calls this, on the leader.
//!
//! Each change names the office and the membership that it was decided on, and openraft refuses it when either has
//! changed meanwhile: so of two leaders, or of two decisions, only one comes through.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::Precondition;

use super::handle::{Office, RaftHandle};
use super::types::LogId;
use super::{Member, Types};

/// How long a change may take to be committed. It needs a quorum of both configurations; without one it hangs until
/// there is a new leader, and the caller is told that its outcome is unknown.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// Why a membership change has no known effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Not proposed, or not its second half: this node does not lead (any more), or the quorum is out of reach.
    #[error("not proposed: this node does not lead, or has lost touch with the quorum")]
    NotLeader,
    /// Not proposed: the membership changed meanwhile, or another change is under way. Look again.
    #[error("not proposed: another membership change is under way")]
    Busy,
    /// Proposed, and it may yet come.
    #[error("proposed, and the outcome is unknown")]
    Unknown,
}

/// The membership as of one log entry: what a change is decided on.
#[derive(Clone, Debug, Default)]
pub struct Roll {
    /// Present once there is a membership.
    pub(super) at: Option<LogId>,
    /// Whether the change before is committed, so that another may follow.
    pub settled: bool,
    /// Between two sets of voters.
    pub joint: bool,
    /// Who votes; in a joint membership, the set that is being moved to.
    pub voters: BTreeSet<u64>,
    /// Voters and learners.
    pub members: BTreeMap<u64, Member>,
}

impl RaftHandle {
    /// The membership that this node acts under.
    pub fn roll(&self) -> Roll {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let (now, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
        let configs = now.membership().get_joint_config();
        Roll {
            at: *now.log_id(),
            settled: now.log_id() == committed.log_id(),
            joint: configs.len() > 1,
            voters: configs.last().cloned().unwrap_or_default(),
            members: now.membership().nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }

    /// Takes a node in as a learner. Nothing changes if it is there.
    pub async fn add_learner(
        &self,
        office: Office,
        roll: &Roll,
        id: u64,
        member: Member,
    ) -> Result<(), ChangeError> {
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, member)]));
        self.change(office, roll.at, change, true).await
    }

    /// Finishes a change that a leader before this one began.
    pub async fn finish_joint(&self, office: Office, roll: &Roll) -> Result<(), ChangeError> {
        self.change(office, roll.at, ChangeMembers::AddVoterIds(BTreeSet::new()), true).await
    }

    /// Makes `voters` the voters, and lets those in `out` go altogether; who does neither stays as a learner.
    ///
    /// If the first half was done and the second is not, those in `out` are learners: ask again.
    pub async fn set_voters(
        &self,
        office: Office,
        roll: &Roll,
        voters: BTreeSet<u64>,
        out: BTreeSet<u64>,
    ) -> Result<(), ChangeError> {
        let stepping_down: BTreeSet<u64> = roll.voters.difference(&voters).copied().collect();
        // Who steps down leaves with the end of the joint configuration, if all of them do.
        let retain = stepping_down != out;
        if roll.voters != voters {
            self.change(office, roll.at, ChangeMembers::ReplaceAllVoters(voters), retain).await?;
        }
        if !out.is_empty() && (retain || stepping_down.is_empty()) {
            let now = self.roll();
            self.change(office, now.at, ChangeMembers::RemoveNodes(out), true).await?;
        }
        Ok(())
    }

    async fn change(
        &self,
        office: Office,
        decided_on: Option<LogId>,
        change: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<(), ChangeError> {
        let preconditions: [Precondition<Types>; 2] = [
            Precondition::CommittedLeaderId { committed_leader_id: office.leader_id() },
            Precondition::LastMembershipLogId { last_membership_log_id: decided_on },
        ];
        let changing = self.raft().change_membership_if(change, retain, preconditions);
        match tokio::time::timeout(CHANGE_LIMIT, changing).await {
            Ok(Ok(_)) => Ok(()),
            Err(_) => Err(ChangeError::Unknown),
            Ok(Err(error)) => Err(refused(&error)),
        }
    }
}

fn refused(error: &RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ChangeError::NotLeader,
        RaftError::APIError(
            ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_),
        ) => ChangeError::Busy,
        _ => ChangeError::Unknown,
    }
}
