//! How new nodes become one cluster, and never two.
//!
//! A node with an empty data directory asks its seeds who they are. If none belongs to a cluster and N pristine nodes
//! see each other, the smallest (name, storage id) of them makes a cluster id and asks all N for a promise. A pristine
//! node gives one promise, durable before it answers, and reports it to later askers. Only the holder of all N
//! initialises the cluster. Two proposers can each hold some promises: the one with the larger (name, storage id)
//! then durably forswears its cluster id, and only after that are its promises void.
//!
//! A node that gave a promise becomes a member when the first Raft message of that cluster reaches it.
//!
//! Invariant: a cluster id is initialised only while all its promises stand, and a promise is void only after its
//! maker can never initialise it. So any two initialised clusters have no member in common, and with N more than half
//! of the seeds there is only one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use raftlock_proto::peer::{self, HelloReply, HelloRequest, PromiseReply, PromiseRequest};
use tokio::sync::Notify;

use crate::links::{Lane, PeerLinks};
use crate::members::join::{self, Joined};
use crate::peers::ClusterId;
use crate::raft::{Member, codec, random_u64};
use crate::store::{Store, StoreError};

/// How often the seeds are asked.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How often a node that waits for a cluster says so.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How long a seed may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The most members of a promise, so that nobody's message fills a disk.
const PROMISE_MEMBERS_MAX: usize = 64;

/// Clusters whose forswearing is remembered. Each takes an election of proposers that this node lost, before it ever
/// belonged to a cluster.
const FORSWORN_MAX: usize = 1_024;

const PROMISE: &str = "promise";
const FORSWORN: &str = "forsworn";
const CLUSTER: &str = "cluster_id";

/// What a node that belongs to no cluster yet knows, and what it has promised.
#[derive(Debug)]
pub struct Founding {
    cluster_name: String,
    me: (u64, Member),
    store: Store,
    state: Mutex<State>,
    /// One promise at a time is given, and durable before the next is looked at.
    promising: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    promise: Option<PromiseRequest>,
    /// Clusters that this node proposed and will never initialise.
    forsworn: Vec<Bytes>,
    /// Set when this node has become a member, and then for good.
    cluster: Option<ClusterId>,
}

/// How a node comes to its cluster.
#[derive(Clone, Debug)]
pub struct FoundingPlan {
    /// Peer addresses to ask; this node's own may be among them.
    pub seeds: Vec<String>,
    /// How many nodes make a new cluster; `None` waits for one to join.
    pub expect: Option<usize>,
}

/// What a node is to do once it belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founded {
    /// The cluster.
    pub cluster: ClusterId,
    /// Present on the one node that initialises it, unless it has done so before: the members.
    pub initialise: Option<BTreeMap<u64, Member>>,
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
        let state = Mutex::new(State { promise, forsworn, cluster });
        let (promising, changed) = Default::default();
        Ok(Arc::new(Founding { cluster_name, me, store, state, promising, changed }))
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
        }
    }

    /// Gives the promise, if none stands against it. Durable before it is answered.
    pub async fn promise(&self, asked: PromiseRequest) -> Result<PromiseReply, StoreError> {
        let _one_at_a_time = self.promising.lock().await;
        let refused = {
            let state = self.lock();
            match (&state.cluster, &state.promise) {
                (Some(cluster), _) if asked.cluster_id != cluster.0[..] => {
                    Some(PromiseReply { granted: false, given: None, cluster_id: cluster.to_bytes() })
                }
                (None, Some(given)) if given.cluster_id != asked.cluster_id => Some(PromiseReply {
                    granted: false,
                    given: Some(given.clone()),
                    cluster_id: Default::default(),
                }),
                _ => None,
            }
        };
        let well_formed = asked.cluster_name == self.cluster_name
            && ClusterId::from_slice(&asked.cluster_id).is_some()
            && asked.members.len() <= PROMISE_MEMBERS_MAX
            && asked.members.iter().any(|member| member.id == self.me.0);
        if let Some(refused) = refused {
            return Ok(refused);
        }
        if !well_formed {
            return Ok(PromiseReply::default());
        }
        if self.lock().promise.as_ref() != Some(&asked) {
            self.store.put_value(PROMISE, asked.encode_to_vec().into()).await?;
            self.lock().promise = Some(asked);
        }
        Ok(PromiseReply { granted: true, ..Default::default() })
    }

    /// A proposer will never initialise this cluster: if our promise was for it, it is void.
    pub async fn forsworn_by_proposer(&self, cluster_id: &[u8], proposer: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.promising.lock().await;
        let ours = {
            let state = self.lock();
            let promise = state.promise.as_ref();
            state.cluster.is_none()
                && promise.is_some_and(|p| p.cluster_id == cluster_id && p.proposer == proposer)
        };
        if ours {
            self.store.put_value(PROMISE, Default::default()).await?;
            self.lock().promise = None;
        }
        Ok(())
    }

    /// A Raft message of `cluster` reached this node: if that is what it promised, the cluster exists.
    pub fn contacted(&self, cluster: ClusterId) {
        let promised =
            self.lock().promise.as_ref().is_some_and(|promise| promise.cluster_id == cluster.0[..]);
        if promised {
            self.changed.notify_one();
            self.lock().cluster.get_or_insert(cluster);
        }
    }

    /// Finds or founds this node's cluster. Cancel safe: what was promised is on disk.
    pub async fn find(&self, plan: &FoundingPlan, links: &PeerLinks) -> Result<Founded, StoreError> {
        let mut say = tokio::time::interval(SAY_EVERY);
        say.reset();
        loop {
            if let Some(cluster) = self.cluster() {
                self.store.put_value(CLUSTER, cluster.to_bytes()).await?;
                return Ok(Founded { cluster, initialise: self.initialises(cluster) });
            }
            let mut seen = self.ask_seeds(plan, links).await;
            if let Some(cluster) = self.join(&mut seen, links).await? {
                return Ok(Founded { cluster, initialise: None });
            }
            if let Some(founded) = self.propose(plan, links, &seen).await? {
                return Ok(founded);
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(ASK_EVERY) => {}
                _ = say.tick() => self.say_what_is_missing(plan, &seen),
            }
        }
    }

    async fn ask_seeds(&self, plan: &FoundingPlan, links: &PeerLinks) -> Seen {
        let asked =
            HelloRequest { cluster_name: self.cluster_name.clone(), from: Some(wire_member(&self.me)) };
        let answers = plan.seeds.iter().map(|seed| {
            let asked = asked.clone();
            links.call(Lane::Control, seed, ANSWER_LIMIT, |mut peer| async move { peer.hello(asked).await })
        });
        let answers = futures_util::future::join_all(answers).await;
        let mut seen = Seen::default();
        seen.pristine.insert((self.me.1.name.clone(), self.me.0), self.me.1.clone());
        for (seed, answer) in plan.seeds.iter().zip(answers) {
            match answer {
                Err(error) => seen.silent.push(format!("{seed}: {error}")),
                Ok(hello) if hello.cluster_name != self.cluster_name => {
                    seen.silent.push(format!("{seed} belongs to the cluster named {:?}", hello.cluster_name));
                }
                Ok(HelloReply { me: Some(member), cluster_id, .. }) => {
                    let node = member.node.as_ref().map(codec::member_back).unwrap_or_default();
                    if cluster_id.is_empty() {
                        seen.pristine.insert((node.name.clone(), member.id), node);
                    } else if member.id != self.me.0 {
                        seen.members.push(node);
                    }
                }
                Ok(_) => seen.silent.push(format!("{seed} does not say who it is")),
            }
        }
        seen
    }

    /// Asks to be let into the cluster that the seeds belong to, unless this node has promised itself to another.
    async fn join(&self, seen: &mut Seen, links: &PeerLinks) -> Result<Option<ClusterId>, StoreError> {
        for member in &seen.members {
            if self.lock().promise.is_some() {
                break;
            }
            let me = wire_member(&self.me);
            match join::ask(links, &self.cluster_name, me, &member.peer_address).await {
                Joined::In(cluster) if self.adopt(cluster).await? => return Ok(Some(cluster)),
                Joined::In(_) => break, // a promise was given meanwhile
                Joined::NotYet(why) | Joined::Refused(why) => seen.not_let_in = Some(why),
            }
        }
        Ok(None)
    }

    /// Becomes a member of `cluster`, for good. `false`: a promise stands against it.
    async fn adopt(&self, cluster: ClusterId) -> Result<bool, StoreError> {
        let _one_at_a_time = self.promising.lock().await;
        if self.lock().promise.is_some() {
            return Ok(false);
        }
        self.store.put_value(CLUSTER, cluster.to_bytes()).await?;
        self.lock().cluster = Some(cluster);
        Ok(true)
    }

    /// If it is this node's turn, asks for the promises; initialises once it holds them all.
    async fn propose(
        &self,
        plan: &FoundingPlan,
        links: &PeerLinks,
        seen: &Seen,
    ) -> Result<Option<Founded>, StoreError> {
        let standing = self.lock().promise.clone();
        let proposal = match standing {
            Some(mine) if mine.proposer == self.me.0 => mine,
            Some(theirs) => {
                self.ask_whether_void(&theirs, links).await?;
                return Ok(None);
            }
            None => {
                let Some(expect) = plan.expect else { return Ok(None) };
                let smallest_is_me = seen.pristine.keys().next().is_some_and(|(_, id)| *id == self.me.0);
                if !smallest_is_me || seen.pristine.len() < expect || !seen.members.is_empty() {
                    return Ok(None);
                }
                let members = seen.pristine.iter().take(expect);
                let proposal = PromiseRequest {
                    cluster_name: self.cluster_name.clone(),
                    cluster_id: new_cluster_id().to_bytes(),
                    proposer: self.me.0,
                    members: members.map(|((_, id), node)| wire_member(&(*id, node.clone()))).collect(),
                };
                if !self.promise(proposal.clone()).await?.granted {
                    return Ok(None);
                }
                proposal
            }
        };
        let others = proposal.members.iter().filter(|member| member.id != self.me.0);
        let asked = others.clone().map(|member| {
            let address = member.node.as_ref().map(|node| node.peer_address.clone()).unwrap_or_default();
            let proposal = proposal.clone();
            async move {
                links
                    .call(Lane::Control, &address, ANSWER_LIMIT, |mut peer| async move {
                        peer.promise(proposal).await
                    })
                    .await
            }
        });
        let mut all = true;
        for reply in futures_util::future::join_all(asked).await {
            match reply {
                Ok(reply) if reply.granted => {}
                Ok(PromiseReply { given: Some(given), .. }) if self.yields_to(&given, &proposal) => {
                    self.forswear(&proposal, links).await?;
                    return Ok(None);
                }
                _ => all = false,
            }
        }
        if !all {
            return Ok(None);
        }
        let cluster = ClusterId::from_slice(&proposal.cluster_id).expect("this node made it");
        self.store.put_value(CLUSTER, cluster.to_bytes()).await?;
        self.lock().cluster = Some(cluster);
        Ok(Some(Founded { cluster, initialise: self.initialises(cluster) }))
    }

    /// The members of the cluster, if it is this node that initialises it. Also after a crash: it may have come just
    /// before the first entry.
    fn initialises(&self, cluster: ClusterId) -> Option<BTreeMap<u64, Member>> {
        let promise = self.lock().promise.clone();
        let mine =
            promise.filter(|given| given.proposer == self.me.0 && given.cluster_id == cluster.0[..])?;
        let members = mine
            .members
            .iter()
            .map(|member| (member.id, member.node.as_ref().map(codec::member_back).unwrap_or_default()));
        Some(members.collect())
    }

    /// Asks the maker of the promise that binds us whether it gave its cluster up; its message may have been lost.
    async fn ask_whether_void(&self, given: &PromiseRequest, links: &PeerLinks) -> Result<(), StoreError> {
        let maker = given.members.iter().find(|member| member.id == given.proposer);
        let Some(node) = maker.and_then(|member| member.node.as_ref()) else { return Ok(()) };
        let asked =
            HelloRequest { cluster_name: self.cluster_name.clone(), from: Some(wire_member(&self.me)) };
        let call = links.call(Lane::Control, &node.peer_address, ANSWER_LIMIT, |mut peer| async move {
            peer.hello(asked).await
        });
        match call.await {
            Ok(hello) if hello.forsworn.contains(&given.cluster_id) => {
                self.forsworn_by_proposer(&given.cluster_id, given.proposer).await
            }
            _ => Ok(()),
        }
    }

    /// Whether ours is the larger of two proposers.
    fn yields_to(&self, theirs: &PromiseRequest, ours: &PromiseRequest) -> bool {
        let key = |proposal: &PromiseRequest| {
            let proposer = proposal.members.iter().find(|member| member.id == proposal.proposer);
            (
                proposer.and_then(|member| member.node.as_ref()).map(|node| node.name.clone()),
                proposal.proposer,
            )
        };
        key(ours) > key(theirs)
    }

    async fn forswear(&self, proposal: &PromiseRequest, links: &PeerLinks) -> Result<(), StoreError> {
        // First for good, on disk; then, and only then, to the others.
        let forsworn = {
            let state = self.lock();
            let older = &state.forsworn[state.forsworn.len().saturating_sub(FORSWORN_MAX - 1)..];
            [older, std::slice::from_ref(&proposal.cluster_id)].concat()
        };
        self.store.put_value(FORSWORN, forsworn.concat().into()).await?;
        self.lock().forsworn = forsworn;
        self.forsworn_by_proposer(&proposal.cluster_id, self.me.0).await?;
        tracing::info!("another node proposes the cluster; this node gave its own proposal up");
        let told = proposal.members.iter().filter(|member| member.id != self.me.0).map(|member| {
            let address = member.node.as_ref().map(|node| node.peer_address.clone()).unwrap_or_default();
            let forswear =
                peer::ForswearRequest { cluster_id: proposal.cluster_id.clone(), proposer: self.me.0 };
            async move {
                links
                    .call(Lane::Control, &address, ANSWER_LIMIT, |mut peer| async move {
                        peer.forswear(forswear).await
                    })
                    .await
            }
        });
        futures_util::future::join_all(told).await;
        Ok(())
    }

    fn say_what_is_missing(&self, plan: &FoundingPlan, seen: &Seen) {
        let promise = self.lock().promise.clone();
        if let Some(promise) = promise.filter(|promise| promise.proposer != self.me.0) {
            let maker = promise.members.iter().find(|member| member.id == promise.proposer);
            let maker = maker.and_then(|member| member.node.as_ref()).map_or("?", |node| node.name.as_str());
            tracing::info!(
                maker,
                "this node promised to join the cluster that {maker} founds, and waits for it. If {maker} is gone for \
                 good, stop this node and empty its data directory"
            );
        } else if !seen.members.is_empty() {
            let names: Vec<&str> = seen.members.iter().map(|node| node.name.as_str()).collect();
            let why = seen.not_let_in.as_deref().unwrap_or("no answer yet");
            tracing::warn!(members = ?names, why, "a cluster is running; this node waits to be let in");
        } else {
            let expect = plan
                .expect
                .map_or("none: give --bootstrap-expect on new nodes".to_owned(), |n| n.to_string());
            tracing::info!(seen = seen.pristine.len(), expect, silent = ?seen.silent, "waiting for the nodes of a new cluster");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What one round of hellos found.
#[derive(Debug, Default)]
struct Seen {
    pristine: BTreeMap<(String, u64), Member>,
    members: Vec<Member>,
    silent: Vec<String>,
    /// What the cluster answered when this node asked to be let in.
    not_let_in: Option<String>,
}

fn wire_member((id, node): &(u64, Member)) -> peer::Member {
    peer::Member { id: *id, node: Some(codec::member(node)) }
}

fn new_cluster_id() -> ClusterId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random_u64().to_be_bytes());
    id[8..].copy_from_slice(&random_u64().to_be_bytes());
    ClusterId(id)
}
