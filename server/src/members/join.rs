//! How a new node gets into a running cluster: it asks a member, is sent to the leader, and asks again until it is in.
//!
//! It belongs to the cluster on its own disk before it asks (see `founding`), so whatever a membership lists is bound
//! to that cluster. Asking twice changes nothing, so a lost answer costs a repeat.

use std::time::Duration;

use raftlock_proto::peer::{self, JoinReply, JoinRequest};

use crate::founding::Founding;
use crate::links::{Lane, PeerLinks};
use crate::raft::{RaftHandle, codec};
use crate::store::{Store, StoreError};

/// How long one node may take to answer: the leader answers when its new membership is committed.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// Nodes asked in one round: a member, the leader that it names, and one more if that has changed meanwhile.
const HOPS_MAX: usize = 3;

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Rounds between two lines in the log about not being let in: five seconds and more.
const SAY_EVERY_ROUNDS: u32 = 20;

/// How long to wait for the leader's entries before it is asked again: a snapshot of a large table takes seconds.
const ENTRIES_WAIT: Duration = Duration::from_secs(2);

/// There once a committed membership has listed this node.
const MEMBER: &str = "member";

/// Whether a committed membership has ever listed the node of this data directory. Only such a node can have been
/// removed. What is not committed counts for nothing: the next leader may never have heard of it.
pub fn was_member(store: &Store) -> bool {
    store.value(MEMBER).is_some()
}

/// Asks the seeds until a committed membership lists this node, and writes that down. Who was a member before does not
/// ask: if it was removed meanwhile, it does not come back by itself.
pub async fn run(
    raft: &RaftHandle,
    links: &PeerLinks,
    founding: &Founding,
    store: &Store,
    seeds: &[String],
) -> Result<(), StoreError> {
    if was_member(store) {
        return Ok(());
    }
    let (id, member) = founding.me();
    let me = peer::Member { id: *id, node: Some(codec::member(member)) };
    let others: Vec<&String> = seeds.iter().filter(|seed| **seed != member.peer_address).collect();
    for round in 1_u32.. {
        if raft.machine().lists(*id) {
            return store.put_value(MEMBER, vec![1].into()).await;
        }
        let mut why = "no seed but this node itself".to_owned();
        let mut pause = ASK_EVERY;
        for seed in &others {
            match ask(links, founding.cluster_name(), me.clone(), seed).await {
                Joined::In => {
                    pause = ENTRIES_WAIT;
                    break;
                }
                Joined::NotYet(because) | Joined::Refused(because) => why = because,
            }
        }
        if round % SAY_EVERY_ROUNDS == 0 {
            tracing::warn!(
                why,
                "this node is not let into its cluster yet. If that is gone for good, stop this node and empty its data \
                 directory"
            );
        }
        let mut applied = raft.machine().applied();
        let listed = async { while !raft.machine().lists(*id) && applied.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(pause, listed).await;
    }
    Ok(())
}

/// What came of asking.
#[derive(Debug)]
enum Joined {
    /// The membership lists this node.
    In,
    /// Not now: no leader, or it cannot be reached. Ask again.
    NotYet(String),
    /// The cluster does not want it as it is; an operator has to change something.
    Refused(String),
}

/// Asks the member at `address`, and whoever it names as the leader.
async fn ask(links: &PeerLinks, cluster_name: &str, me: peer::Member, address: &str) -> Joined {
    let mut address = address.to_owned();
    for _ in 0..HOPS_MAX {
        let request = JoinRequest { cluster_name: cluster_name.to_owned(), member: Some(me.clone()) };
        let call = links
            .call(Lane::Control, &address, ANSWER_LIMIT, |mut peer| async move { peer.join(request).await });
        match call.await {
            Ok(JoinReply { cluster_id, .. }) if !cluster_id.is_empty() => {
                return Joined::In;
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
