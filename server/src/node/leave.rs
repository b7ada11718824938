//! How a node leaves its cluster for good: the membership lets it go first, then it stops.

use std::time::Duration;

use prost::Message;
use raftlock_proto::peer::forward_request::Method;
use raftlock_proto::v1::ChangeMembersRequest;
use raftlock_proto::v1::change_members_request::Change;

use super::disk::REMOVED;
use super::{Node, NodeError};

/// How long a node that leaves waits for the cluster to let it go: a hand-over and a change of the membership.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(15);

/// How long one request to be removed may take, and when it is made again.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Node {
    /// Leaves the cluster for good, then stops: the others go on as if it had never been there. Its data directory
    /// refuses to start after that. The only member of a cluster has nobody to leave to: it only stops.
    ///
    /// # Errors
    /// The cluster did not let it go within 15 s: it may still be a member, and has stopped like one.
    pub async fn leave(self) -> Result<(), NodeError> {
        // Its own locks pass on first, while it can still say so.
        self.inside.close().await;
        let left = tokio::time::timeout(LEAVE_LIMIT, self.be_removed()).await;
        self.shutdown().await;
        left.unwrap_or(Err(NodeError::NotRemoved))
    }

    async fn be_removed(&self) -> Result<(), NodeError> {
        let me = self.admin.founding.me().0;
        let request = ChangeMembersRequest { change: Some(Change::Remove(me.to_string())) };
        loop {
            let alone = self.raft.get().is_none_or(|raft| raft.roll().members.len() <= 1);
            if alone || matches!(*self.failed.borrow(), Some(NodeError::Removed)) {
                return Ok(());
            }
            let asked =
                self.edge.execute(Method::ChangeMembers, request.encode_to_vec().into(), Some(ASK_LIMIT));
            match asked.await {
                Ok(_) => {
                    self.store.put_value(REMOVED, vec![1].into()).await?;
                    return Ok(());
                }
                // The leader changes, if it was this node; or there is none at the moment.
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }
}
