//! What an operator asks one node: its own view, without a quorum, so that it answers when nothing else does.

use std::sync::{Arc, OnceLock};

use raftlock_proto::v1::admin_server::Admin;
use raftlock_proto::v1::{MemberStatus, NodeStatus, StatusRequest, StatusResponse};
use tonic::{Request, Response, Status};

use crate::edge::Edge;
use crate::founding::Founding;
use crate::proposer::Proposer;
use crate::raft::RaftHandle;

/// The admin service of a node.
#[derive(Clone)]
pub struct AdminService {
    /// Who we are.
    pub founding: Arc<Founding>,
    /// Whether calls get anywhere.
    pub edge: Arc<Edge>,
    /// For its stall counter.
    pub proposer: Proposer,
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
            ..Default::default()
        };
        let Some(raft) = self.raft.get() else { return status };
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
        let members = positions.members.into_iter().map(|at| MemberStatus {
            name: at.node.name,
            id: at.id,
            role: if at.voter { "voter" } else { "learner" }.to_owned(),
            address: at.node.client_address,
            peer_address: at.node.peer_address,
            leader: at.id == leader_id,
            matched_index: at.matched,
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
}
