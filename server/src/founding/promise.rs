//! The desk where a node's one promise lies. Everything here is durable before it is said, and nothing here asks
//! anybody: see the invariants in the module above.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use prost::Message;
use raftlock_proto::peer::{self, HelloReply, PromiseReply, PromiseRequest};
use tokio::sync::Notify;

use super::{member_back, wire_member};
use crate::peers::ClusterId;
use crate::raft::Member;
use crate::store::{Store, StoreError};

/// The most members of a promise, so that nobody's message fills a disk.
const PROMISE_MEMBERS_MAX: usize = 64;

/// Clusters whose forswearing is remembered. Each takes a proposal of this node that failed, before it ever belonged
/// to a cluster; one that fails for want of answers takes ten seconds.
const FORSWORN_MAX: usize = 1_024;

const PROMISE: &str = "promise";
const FORSWORN: &str = "forsworn";
const CLUSTER: &str = "cluster_id";

/// What a node that belongs to no cluster yet knows, and what it has promised.
///
/// - One promise stands at a time, and none but it while it stands.
/// - A cluster once belonged to is never left.
#[derive(Debug)]
pub struct Founding {
    cluster_name: String,
    me: (u64, Member),
    store: Store,
    state: Mutex<State>,
    /// What is written here is written one after the other, each durable before the next is looked at.
    writing: tokio::sync::Mutex<()>,
    /// Woken when this node has come to belong to a cluster.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    promise: Option<PromiseRequest>,
    /// Clusters that this node proposed and will never initialise.
    forsworn: Vec<Bytes>,
    /// Set when this node has become a member, and then for good.
    cluster: Option<ClusterId>,
    /// All seeds were asked once since the start, and answered or were silent.
    asked: bool,
    /// A running cluster of which a member answered this node. Kept until the node is started again: while that
    /// cluster cannot be reached, it may well be serving.
    running: Option<ClusterId>,
}

impl Founding {
    /// Reads what the data directory says.
    pub fn open(
        cluster_name: String,
        me: (u64, Member),
        store: Store,
    ) -> Result<Arc<Founding>, prost::DecodeError> {
        let promise =
            store.value(PROMISE).filter(|bytes| !bytes.is_empty()).map(PromiseRequest::decode).transpose()?;
        let cluster = store.value(CLUSTER).and_then(|bytes| ClusterId::from_slice(&bytes));
        let forsworn = store.value(FORSWORN).unwrap_or_default();
        let forsworn: Vec<Bytes> = forsworn.chunks_exact(16).map(Bytes::copy_from_slice).collect();
        // A crash between forswearing and letting go of one's own promise.
        let promise = promise.filter(|given: &PromiseRequest| !forsworn.contains(&given.cluster_id));
        let state = Mutex::new(State { promise, forsworn, cluster, ..State::default() });
        let (writing, changed) = Default::default();
        Ok(Arc::new(Founding { cluster_name, me, store, state, writing, changed }))
    }

    /// The cluster that this node is a member of.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.lock().cluster
    }

    /// Who this node is.
    pub fn me(&self) -> &(u64, Member) {
        &self.me
    }

    /// The cluster's name, which every member was given.
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// The promise that binds this node, its own proposal's among them.
    pub fn standing_promise(&self) -> Option<PromiseRequest> {
        self.lock().promise.clone()
    }

    /// Answers a hello. `members` are those of a running Raft.
    pub fn hello(&self, members: Vec<peer::Member>) -> HelloReply {
        let state = self.lock();
        HelloReply {
            cluster_name: self.cluster_name.clone(),
            me: Some(wire_member(&self.me)),
            cluster_id: state.cluster.map(ClusterId::to_bytes).unwrap_or_default(),
            members,
            promise: state.promise.clone().filter(|_| state.cluster.is_none()),
            forsworn: state.forsworn.clone(),
            known_cluster: state.running.map(ClusterId::to_bytes).unwrap_or_default(),
        }
    }

    /// Gives the promise, if none stands against it. Durable before it is answered; asked again, it is given again.
    pub async fn promise(&self, asked: PromiseRequest) -> Result<PromiseReply, StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        let refused = PromiseReply { me: self.me.0, ..Default::default() };
        let granted = PromiseReply { granted: true, ..refused.clone() };
        if !self.is_well_formed(&asked) {
            return Ok(refused);
        }
        {
            let state = self.lock();
            if let Some(cluster) = state.cluster.filter(|cluster| asked.cluster_id != cluster.0[..]) {
                return Ok(PromiseReply { cluster_id: cluster.to_bytes(), ..refused });
            }
            match &state.promise {
                Some(given) if *given == asked => return Ok(granted),
                Some(given) => return Ok(PromiseReply { given: Some(given.clone()), ..refused }),
                None if state.cluster.is_some() || !state.asked => return Ok(refused),
                None => {}
            }
            if let Some(running) = state.running {
                return Ok(PromiseReply { cluster_id: running.to_bytes(), ..refused });
            }
        }
        self.store.put_value(PROMISE, asked.encode_to_vec().into()).await?;
        self.lock().promise = Some(asked);
        Ok(granted)
    }

    fn is_well_formed(&self, asked: &PromiseRequest) -> bool {
        let ids: BTreeSet<u64> = asked.members.iter().map(|member| member.id).collect();
        asked.cluster_name == self.cluster_name
            && ClusterId::from_slice(&asked.cluster_id).is_some()
            && asked.members.len() <= PROMISE_MEMBERS_MAX
            && ids.len() == asked.members.len()
            && ids.contains(&self.me.0)
            && ids.contains(&asked.proposer)
    }

    /// Another node says that it will never initialise a cluster of its making.
    pub async fn forsworn_by(&self, cluster_id: &[u8], proposer: u64) -> Result<(), StoreError> {
        // Our own proposals we forswear ourselves, and nobody does it for us.
        if proposer == self.me.0 {
            return Ok(());
        }
        self.let_go(|promise| promise.cluster_id == cluster_id && promise.proposer == proposer).await
    }

    /// Our promise is moot: a member of it belongs to another cluster (3 in the module's doc).
    pub(super) async fn moot(&self, cluster_id: &[u8]) -> Result<(), StoreError> {
        self.let_go(|promise| promise.cluster_id == cluster_id && promise.proposer != self.me.0).await
    }

    async fn let_go(&self, which: impl Fn(&PromiseRequest) -> bool) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        let ours = {
            let state = self.lock();
            state.cluster.is_none() && state.promise.as_ref().is_some_and(which)
        };
        if ours {
            self.store.put_value(PROMISE, Default::default()).await?;
            self.lock().promise = None;
        }
        Ok(())
    }

    /// Gives up our own proposal, for good. Only after this may anybody be told.
    pub(super) async fn forswear(&self, proposal: &PromiseRequest) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        let forsworn = {
            let state = self.lock();
            let older = &state.forsworn[state.forsworn.len().saturating_sub(FORSWORN_MAX - 1)..];
            [older, std::slice::from_ref(&proposal.cluster_id)].concat()
        };
        self.store.put_value(FORSWORN, forsworn.concat().into()).await?;
        {
            let mut state = self.lock();
            state.forsworn = forsworn;
            state.promise = None;
        }
        // A crash before this is repaired by `open`.
        self.store.put_value(PROMISE, Default::default()).await
    }

    /// All promises of our own proposal were given, in one round: from here on the cluster exists.
    pub(super) async fn found(&self, cluster: ClusterId) -> Result<(), StoreError> {
        self.belong_to(cluster).await
    }

    /// A membership lists this node. It belongs to that cluster, whatever it promised before: a founder's promise for
    /// it stands, and one that was let in had belonged to it before it asked. Either way no other promise can stand.
    pub(super) async fn listed_in(&self, cluster: ClusterId) -> Result<(), StoreError> {
        self.belong_to(cluster).await
    }

    /// Belongs to a cluster that is running, before it asks to be let in. Nothing happens while a promise stands.
    pub(super) async fn adopt(&self, cluster: ClusterId) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        if self.lock().promise.is_some() {
            return Ok(());
        }
        self.write_cluster(cluster).await
    }

    async fn belong_to(&self, cluster: ClusterId) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        self.write_cluster(cluster).await
    }

    /// While `writing` is held.
    async fn write_cluster(&self, cluster: ClusterId) -> Result<(), StoreError> {
        if self.lock().cluster.is_none() {
            self.store.put_value(CLUSTER, cluster.to_bytes()).await?;
            self.lock().cluster.get_or_insert(cluster);
        }
        Ok(())
    }

    /// A Raft message of `cluster` reached this node: if that is what it promised to another, the cluster exists.
    pub fn contacted(&self, cluster: ClusterId) {
        let mut state = self.lock();
        let promised = state
            .promise
            .as_ref()
            .is_some_and(|promise| promise.cluster_id == cluster.0[..] && promise.proposer != self.me.0);
        if promised {
            // The promise is on disk, and says the same; `settle` adds the cluster id before Raft starts. Set before
            // the waiter is woken, who looks at once.
            state.cluster.get_or_insert(cluster);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The cluster that this node belongs to, if any, on disk.
    pub(super) async fn settle(&self) -> Result<Option<ClusterId>, StoreError> {
        let Some(cluster) = self.cluster() else { return Ok(None) };
        if self.store.value(CLUSTER).as_deref() != Some(&cluster.0[..]) {
            self.store.put_value(CLUSTER, cluster.to_bytes()).await?;
        }
        Ok(Some(cluster))
    }

    /// Every seed was asked, and this is the running cluster that was seen, if any.
    pub(super) fn asked_around(&self, running: Option<ClusterId>) {
        let mut state = self.lock();
        state.asked = true;
        if state.running.is_none() {
            state.running = running;
        }
    }

    /// A running cluster of which a member has answered this node since its start.
    pub(super) fn running(&self) -> Option<ClusterId> {
        self.lock().running
    }

    /// The members of the cluster, if it is this node that initialises it. Also after a crash: it may have come just
    /// before the first entry.
    pub(super) fn initialises(&self, cluster: ClusterId) -> Option<BTreeMap<u64, Member>> {
        let promise = self.standing_promise();
        let mine =
            promise.filter(|given| given.proposer == self.me.0 && given.cluster_id == cluster.0[..])?;
        Some(mine.members.iter().map(|member| (member.id, member_back(member))).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StoreOptions, Writer};

    fn store(dir: &tempfile::TempDir) -> Store {
        let options = StoreOptions {
            writer: Writer::Inline,
            allow_volatile: true,
            ballast_bytes: 0,
            ..StoreOptions::new(dir.path().to_owned())
        };
        Store::open(options).expect("a store")
    }

    fn member(id: u64) -> (u64, Member) {
        let (name, peer_address) = (format!("n{id}"), format!("n{id}:1"));
        (id, Member { name, peer_address, client_address: String::new() })
    }

    /// Node 1, as its disk has it.
    fn desk(dir: &tempfile::TempDir) -> Arc<Founding> {
        let desk = Founding::open("c".into(), member(1), store(dir)).expect("it can be read");
        desk.asked_around(None);
        desk
    }

    /// As a power cut does it, right after the last answer.
    fn crash(desk: Arc<Founding>, dir: &tempfile::TempDir) -> Arc<Founding> {
        desk.store.abandon();
        drop(desk);
        self::desk(dir)
    }

    fn proposal(cluster: u8, proposer: u64) -> PromiseRequest {
        PromiseRequest {
            cluster_name: "c".into(),
            cluster_id: vec![cluster; 16].into(),
            proposer,
            members: [1, 2, 3].iter().map(|id| wire_member(&member(*id))).collect(),
        }
    }

    async fn granted(desk: &Founding, asked: PromiseRequest) -> bool {
        desk.promise(asked).await.expect("the disk is well").granted
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[tokio::test]
    async fn one_promise_stands_and_is_given_again_after_a_crash() {
        let dir = folder();
        let desk = desk(&dir);
        assert!(granted(&desk, proposal(1, 2)).await);
        let desk = crash(desk, &dir);
        let refused = desk.promise(proposal(2, 3)).await.expect("the disk is well");
        assert_eq!(refused.given, Some(proposal(1, 2)), "it says to whom");
        assert!(granted(&desk, proposal(1, 2)).await, "its answer was lost: asked again, it is given again");
        let more = PromiseRequest { members: proposal(1, 2).members[..2].to_vec(), ..proposal(1, 2) };
        assert!(!granted(&desk, more).await, "other members are another promise");
        // Void, and that too is for good.
        desk.forsworn_by(&[1; 16], 3).await.expect("the disk is well");
        assert!(!granted(&desk, proposal(2, 3)).await, "only its maker can forswear it");
        desk.forsworn_by(&[1; 16], 2).await.expect("the disk is well");
        let desk = crash(desk, &dir);
        assert!(granted(&desk, proposal(2, 3)).await);
    }

    #[tokio::test]
    async fn nothing_is_promised_before_the_seeds_were_asked_or_beside_a_running_cluster() {
        let dir = folder();
        let desk = Founding::open("c".into(), member(1), store(&dir)).expect("it can be read");
        assert!(!granted(&desk, proposal(1, 2)).await);
        desk.asked_around(Some(ClusterId([9; 16])));
        // It goes silent, and may be serving behind a partition.
        desk.asked_around(None);
        let refused = desk.promise(proposal(1, 2)).await.expect("the disk is well");
        assert_eq!((refused.granted, &refused.cluster_id[..]), (false, &[9; 16][..]));
        assert_eq!(&desk.hello(Vec::new()).known_cluster[..], [9; 16]);
    }

    #[tokio::test]
    async fn what_is_forsworn_stays_forsworn() {
        let dir = folder();
        let desk = desk(&dir);
        assert!(granted(&desk, proposal(1, 1)).await);
        desk.forsworn_by(&[1; 16], 1).await.expect("the disk is well");
        assert_eq!(desk.standing_promise(), Some(proposal(1, 1)), "nobody forswears our proposal but we");
        desk.forswear(&proposal(1, 1)).await.expect("the disk is well");
        let desk = crash(desk, &dir);
        assert_eq!(desk.standing_promise(), None);
        assert_eq!(desk.hello(Vec::new()).forsworn, [vec![1u8; 16]]);
        // As a crash between the two writes leaves it.
        desk.store.put_value(PROMISE, proposal(1, 1).encode_to_vec().into()).await.expect("written");
        let desk = crash(desk, &dir);
        assert_eq!(desk.standing_promise(), None);
    }

    #[tokio::test]
    async fn a_cluster_is_joined_by_its_first_message_only_if_it_was_promised_to_another() {
        let dir = folder();
        let desk = desk(&dir);
        desk.contacted(ClusterId([1; 16]));
        assert!(granted(&desk, proposal(1, 2)).await);
        desk.contacted(ClusterId([2; 16]));
        assert_eq!(desk.cluster(), None);
        desk.contacted(ClusterId([1; 16]));
        // Whoever is woken finds it there.
        desk.changed.notified().await;
        assert_eq!(desk.cluster(), Some(ClusterId([1; 16])));
        assert_eq!(desk.settle().await.expect("the disk is well"), Some(ClusterId([1; 16])));
        let desk = crash(desk, &dir);
        assert_eq!(desk.cluster(), Some(ClusterId([1; 16])));
        let refused = desk.promise(proposal(2, 3)).await.expect("the disk is well");
        assert_eq!((refused.granted, &refused.cluster_id[..]), (false, &[1; 16][..]));
        assert!(granted(&desk, proposal(1, 2)).await, "the maker asks again after a crash");
        desk.forsworn_by(&[1; 16], 2).await.expect("the disk is well");
        assert!(desk.standing_promise().is_some(), "a member's promise stands for ever");

        let dir = folder();
        let maker = self::desk(&dir);
        assert!(granted(&maker, proposal(1, 1)).await);
        maker.contacted(ClusterId([1; 16]));
        assert_eq!(maker.cluster(), None, "a maker founds its cluster when it holds every promise");
    }

    #[tokio::test]
    async fn a_maker_that_crashes_right_after_founding_still_initialises() {
        let dir = folder();
        let maker = desk(&dir);
        assert!(granted(&maker, proposal(1, 1)).await);
        maker.found(ClusterId([1; 16])).await.expect("the disk is well");
        let maker = crash(maker, &dir);
        let cluster = maker.cluster().expect("it is on disk");
        let members = maker.initialises(cluster).expect("it may have come just before the first entry");
        assert_eq!(members.into_keys().collect::<Vec<_>>(), [1, 2, 3]);
    }
}
