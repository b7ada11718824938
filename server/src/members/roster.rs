//! What this node knows of all members, kept up to date by asking each of them a few times a second.
//!
//! Every node asks for itself, the followers too: a partition looks different from each side, and a node whose
//! leader died should know who else is there. The answers also tell a node that it is no member any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use raftlock_proto::peer;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::contacts::{ANSWER_LIMIT, Contacted, Contacts, PING_EVERY};
use super::{Liveness, MemberView};
use crate::clock::Clock;
use crate::links::{ClusterLinks, Lane};
use crate::raft::RaftHandle;

/// All members, and who of them is there.
#[derive(Clone, Debug)]
pub struct Roster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    contacts: Mutex<Contacts>,
    views: watch::Sender<Vec<MemberView>>,
}

impl Roster {
    /// Knows nobody until [`Roster::run`].
    pub fn new() -> Roster {
        let (views, _) = watch::channel(Vec::new());
        Roster(Arc::new(Shared { contacts: Mutex::default(), views }))
    }

    /// All members as of the last look, this node among them; in order of id.
    pub fn views(&self) -> watch::Receiver<Vec<MemberView>> {
        self.0.views.subscribe()
    }

    /// What is known of another member.
    pub(crate) fn contact(&self, id: u64) -> Option<Contacted> {
        self.lock().of(id)
    }

    /// Asks every member every [`PING_EVERY`] until `stop`. Returns early, with `true`, once the leader says that
    /// this node is no member any more; that is believed only by one that knows that it was. A member that does not
    /// list this node names its leader, which is then asked too: after a long absence it may be none that this node
    /// knows.
    pub async fn run(
        &self,
        raft: &RaftHandle,
        links: &ClusterLinks,
        clock: &Arc<dyn Clock>,
        was_member: impl Fn() -> bool,
        stop: &CancellationToken,
    ) -> bool {
        let me = links.identity().me;
        let mut tick = tokio::time::interval(PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = BTreeSet::new();
        let mut answers = FuturesUnordered::new();
        let mut stranger = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                Some((id, answer)) = answers.next() => {
                    asked.remove(&id);
                    let Some(peer::PingReply { last_log_index, removed, leader, .. }) = answer else { continue };
                    if removed && was_member() {
                        return true;
                    }
                    stranger = leader.and_then(|leader| Some((leader.id, leader.node?.peer_address))).or(stranger);
                    self.lock().answered(id, last_log_index);
                }
                _ = tick.tick() => {
                    self.publish(raft, clock, me);
                    let members = self.0.views.borrow().clone();
                    let members = members.into_iter().map(|view| (view.id, view.peer_address));
                    for (id, address) in members.chain(stranger.take()) {
                        if id != me && asked.insert(id) {
                            answers.push(ping(links.clone(), id, address));
                        }
                    }
                }
            }
        }
    }

    fn publish(&self, raft: &RaftHandle, clock: &Arc<dyn Clock>, me: u64) {
        let positions = raft.positions();
        let leader = raft.standing().borrow().leader.as_ref().map(|(id, _)| *id);
        let views: Vec<MemberView> = {
            let mut contacts = self.lock();
            let others = positions.members.iter().map(|at| at.id).filter(|id| *id != me);
            contacts.look(clock.monotonic(), others);
            let newest = positions.members.iter().filter_map(|at| contacts.of(at.id)?.last_log);
            let newest = newest.chain([positions.last_log]).max().unwrap_or(0);
            let view = |at: crate::raft::handle::MemberPosition| {
                let contact = contacts.of(at.id);
                let last_log = match at.id == me {
                    true => Some(positions.last_log),
                    false => at.matched.max(contact.and_then(|contact| contact.last_log)),
                };
                MemberView {
                    id: at.id,
                    name: at.node.name,
                    peer_address: at.node.peer_address,
                    client_address: at.node.client_address,
                    voter: at.voter,
                    leader: leader == Some(at.id),
                    liveness: contact.map_or(Liveness::Alive, |contact| contact.liveness),
                    last_contact: contact.filter(|known| known.answered).map(|known| known.silent_for),
                    matched: at.matched,
                    lag: last_log.map(|last| newest.saturating_sub(last)),
                }
            };
            positions.members.into_iter().map(view).collect()
        };
        let before = self.0.views.send_replace(views.clone());
        for (view, was) in changed(&before, &views) {
            let (member, silent) = (&view.name, view.last_contact.unwrap_or_default());
            match view.liveness {
                Liveness::Alive if was.is_some() => {
                    tracing::info!(member, id = view.id, "member is alive again")
                }
                Liveness::Alive => {}
                Liveness::Suspect => {
                    tracing::info!(member, id = view.id, "member is suspect: it answers no ping")
                }
                Liveness::Dead => tracing::warn!(member, id = view.id, ?silent, "member is dead"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contacts> {
        self.0.contacts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Default for Roster {
    fn default() -> Self {
        Roster::new()
    }
}

/// Members whose liveness is not what it was, with what it was.
fn changed<'a>(
    before: &[MemberView],
    after: &'a [MemberView],
) -> impl Iterator<Item = (&'a MemberView, Option<Liveness>)> {
    let was = |id: u64| before.iter().find(|view| view.id == id).map(|view| view.liveness);
    let pairs: Vec<_> = after.iter().map(|view| (view, was(view.id))).collect();
    pairs.into_iter().filter(|(view, was)| *was != Some(view.liveness))
}

async fn ping(links: ClusterLinks, id: u64, address: String) -> (u64, Option<peer::PingReply>) {
    let request = peer::PingRequest { envelope: links.identity().envelope(id) };
    let call = links
        .links
        .call(Lane::Ping, &address, ANSWER_LIMIT, |mut peer| async move { peer.ping(request).await });
    match call.await {
        Ok(reply) if links.check(&address, id, reply.envelope.as_ref()).await.is_ok() => (id, Some(reply)),
        Ok(_) => (id, None),
        Err(error) => {
            links.heed(id, &error).await;
            (id, None)
        }
    }
}
