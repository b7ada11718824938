//! How a new node gets into a running cluster: it asks a member, is sent to the leader, and asks again until it is in.
//!
//! Asking twice changes nothing, so a lost answer costs a repeat. The node belongs to the cluster from the moment at
//! which the leader says that the membership lists it; only then does it write the cluster's id to its own disk.

use std::time::Duration;

use raftlock_proto::peer::{self, JoinReply, JoinRequest};

use crate::links::{Lane, PeerLinks};
use crate::peers::ClusterId;

/// How long one node may take to answer: the leader answers when its new membership is committed.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// Nodes asked in one round: a member, the leader that it names, and one more if that has changed meanwhile.
const HOPS_MAX: usize = 3;

/// What came of asking.
#[derive(Debug)]
pub enum Joined {
    /// The membership lists this node.
    In(ClusterId),
    /// Not now: no leader, or it cannot be reached. Ask again.
    NotYet(String),
    /// The cluster does not want it as it is; an operator has to change something.
    Refused(String),
}

/// Asks the member at `address`, and whoever it names as the leader.
pub async fn ask(links: &PeerLinks, cluster_name: &str, me: peer::Member, address: &str) -> Joined {
    let mut address = address.to_owned();
    for _ in 0..HOPS_MAX {
        let request = JoinRequest { cluster_name: cluster_name.to_owned(), member: Some(me.clone()) };
        let call = links
            .call(Lane::Control, &address, ANSWER_LIMIT, |mut peer| async move { peer.join(request).await });
        match call.await {
            Ok(JoinReply { cluster_id, .. }) if !cluster_id.is_empty() => {
                return match ClusterId::from_slice(&cluster_id) {
                    Some(cluster) => Joined::In(cluster),
                    None => Joined::NotYet(format!("{address} answered with a cluster id that is none")),
                };
            }
            Ok(JoinReply { leader: Some(peer::Member { node: Some(leader), .. }), .. }) => {
                address = leader.peer_address;
            }
            Ok(_) => return Joined::NotYet(format!("{address} knows no leader")),
            Err(error) => {
                return match error.final_refusal() {
                    Some(why) => Joined::Refused(why.to_owned()),
                    None => Joined::NotYet(error.to_string()),
                };
            }
        }
    }
    Joined::NotYet("the leader changes".to_owned())
}
