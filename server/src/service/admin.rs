//! What an operator asks: one node's own view, without a quorum, so that it answers when nothing else does; and
//! changes of the membership, which any node takes and the leader makes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prost::Message;
use raftlock_proto::peer::forward_request::Method;
use raftlock_proto::v1::admin_server::Admin;
use raftlock_proto::v1::{
    ChangeMembersRequest, ChangeMembersResponse, MemberStatus, NodeStatus, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use super::lock::{deadline, named};
use super::status;
use crate::edge::Edge;
use crate::founding::Founding;
use crate::members::Liveness;
use crate::members::controller::{Controller, Wish};
use crate::members::roster::Roster;
use crate::pace::PaceReport;
use crate::proposer::Proposer;
use crate::raft::RaftHandle;
use crate::room::DiskRoom;

/// The admin service of a node.
#[derive(Clone)]
pub struct AdminService {
    /// Who we are.
    pub founding: Arc<Founding>,
    /// Whether calls get anywhere.
    pub edge: Arc<Edge>,
    /// For its counters.
    pub proposer: Proposer,
    /// Who is there.
    pub roster: Roster,
    /// How much room the disk has.
    pub room: Arc<DiskRoom>,
    /// How cluster time moves.
    pub pace: Arc<PaceReport>,
    /// Set once the node is a member.
    pub raft: Arc<OnceLock<RaftHandle>>,
}

impl AdminService {
    /// The status as this node sees it.
    pub fn status_now(&self) -> StatusResponse {
        let (id, member) = self.founding.me();
        let mut status = StatusResponse {
            cluster_name: self.founding.cluster_name().to_owned(),
            cluster_id: self.founding.cluster().map(|id| id.to_string()).unwrap_or_default(),
            node: Some(NodeStatus {
                name: member.name.clone(),
                id: *id,
                role: "starting".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                address: member.client_address.clone(),
                peer_address: member.peer_address.clone(),
            }),
            tick_stalls: self.proposer.stalls(),
            disk_low: self.room.is_low(),
            disk_free_bytes: self.room.free_bytes(),
            cluster_clock: self.pace.word().to_owned(),
            ..Default::default()
        };
        let counters = status.counters.get_or_insert_default();
        self.proposer.count(counters);
        let Some(raft) = self.raft.get() else { return status };
        raft.machine().count(counters);
        let standing = raft.standing().borrow().clone();
        let positions = raft.positions();
        let leader_id = standing.leader.as_ref().map_or(0, |(id, _)| *id);
        if let Some(node) = &mut status.node {
            node.role = standing.role.to_owned();
        }
        if let Some((id, leader)) = standing.leader {
            status.leader_id = id;
            status.leader_name = leader.name;
            status.leader_address = leader.client_address;
        }
        status.term = standing.term;
        status.last_log_index = positions.last_log;
        status.commit_index = positions.committed;
        status.applied_index = positions.applied;
        status.snapshot_index = positions.snapshot;
        status.purged_index = positions.purged;
        raft.machine().glance(|table| {
            let counts = table.counts();
            status.locks = counts.locks;
            status.sessions = counts.sessions;
            status.waiters = counts.waiters;
            status.cluster_time_ms = table.now().get();
            status.last_token = table.last_token().get();
        });
        let views = self.roster.views();
        let views = views.borrow();
        let members = positions.members.into_iter().map(|at| {
            // A member that has come in since the last look is not in the views yet.
            let view = views.iter().find(|view| view.id == at.id);
            MemberStatus {
                name: at.node.name,
                id: at.id,
                role: if at.voter { "voter" } else { "learner" }.to_owned(),
                address: at.node.client_address,
                peer_address: at.node.peer_address,
                leader: at.id == leader_id,
                matched_index: at.matched,
                state: view.map_or(Liveness::Alive, |view| view.liveness).as_str().to_owned(),
                last_contact_ms: view.and_then(|view| view.last_contact).map(|ago| ago.as_millis() as u64),
                lag: view.and_then(|view| view.lag),
            }
        });
        status.members = members.collect();
        status.ready = self.edge.is_ready();
        status
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.status_now()))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersResponse>, Status> {
        let limit = deadline(request.metadata());
        let message = request.into_inner().encode_to_vec();
        let answer = self.edge.execute(Method::ChangeMembers, message.into(), limit).await;
        let answer = answer.and_then(|bytes| {
            let answer = ChangeMembersResponse::decode(&bytes[..]);
            Ok(Response::new(answer.map_err(|error| Status::internal(error.to_string()))?))
        });
        named(self.edge.cluster(), answer)
    }
}

/// Makes an encoded change, on the leader.
pub async fn change_members(
    members: &Controller,
    message: &[u8],
    limit: Option<Duration>,
) -> Result<Vec<u8>, Status> {
    use raftlock_proto::v1::change_members_request::Change;
    let request =
        ChangeMembersRequest::decode(message).map_err(|error| status::invalid(error.to_string()))?;
    let wish = match request.change {
        Some(Change::Remove(who)) => Wish::Remove(who),
        Some(Change::Replace(replace)) => Wish::Replace { old: replace.old, new: replace.new },
        Some(Change::Voters(count)) => Wish::Voters(count),
        Some(Change::TransferLeader(to)) => Wish::Transfer(Some(to).filter(|to| !to.is_empty())),
        None => return Err(status::invalid("change: must say what to change")),
    };
    let granted = members.grant(wish, limit).await;
    let message = granted.map_err(|refused| status::membership(&refused))?;
    Ok(ChangeMembersResponse { message }.encode_to_vec())
}
