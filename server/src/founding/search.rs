//! Looking for a cluster, and founding one if there is none: asks, and lets the desk in `promise` write down what
//! follows. A round asks everybody once; nothing is carried over from round to round but what is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raftlock_proto::peer::{self, HelloReply, HelloRequest, PromiseReply, PromiseRequest};

use super::{Founded, Founding, FoundingPlan, maker, member_back, new_cluster_id, wire_member};
use crate::links::{Lane, PeerCallError, PeerLinks};
use crate::peers::ClusterId;
use crate::raft::{Member, RaftHandle};
use crate::store::StoreError;

/// How often the seeds are asked.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How often a node that waits for a cluster says so.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How long a node may take to answer. It is also how long ago the first promise of a round can have been given when
/// the last one comes.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Rounds after which a proposal is given up: ten seconds at least, so that a node that died for good with its promise
/// asked for does not hold up the others.
const ROUNDS_MAX: u32 = 40;

impl Founding {
    /// Finds or founds this node's cluster. Cancel safe: what was promised is on disk.
    pub async fn find(&self, plan: &FoundingPlan, links: &PeerLinks) -> Result<Founded, StoreError> {
        let mut say = tokio::time::interval(SAY_EVERY);
        say.reset();
        let mut rounds = 0;
        loop {
            if let Some(cluster) = self.settle().await? {
                return Ok(Founded { cluster, initialise: self.initialises(cluster) });
            }
            let seen = self.ask(plan, links).await;
            self.asked_around(seen.members.first().map(|member| member.cluster));
            self.learn(&seen).await?;
            if self.cluster().is_none() {
                self.propose(plan, links, &seen, &mut rounds).await?;
            }
            if self.cluster().is_some() {
                continue;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(ASK_EVERY) => {}
                _ = say.tick() => self.say_what_is_missing(plan, &seen),
            }
        }
    }

    /// Asks the seeds who they are, and the members of the promise that binds us, who know best what became of it.
    async fn ask(&self, plan: &FoundingPlan, links: &PeerLinks) -> Seen {
        let promise = self.standing_promise();
        let founders = promise.iter().flat_map(|promise| &promise.members);
        let founders = founders.filter(|member| member.id != self.me().0);
        let founders: BTreeSet<String> = founders.map(|member| member_back(member).peer_address).collect();
        let others = founders.into_iter().filter(|address| !plan.seeds.contains(address));
        let addresses: Vec<String> = plan.seeds.iter().cloned().chain(others).collect();
        let asked =
            HelloRequest { cluster_name: self.cluster_name().to_owned(), from: Some(wire_member(self.me())) };
        let answers = addresses.iter().map(|address| {
            let asked = asked.clone();
            links.call(
                Lane::Control,
                address,
                ANSWER_LIMIT,
                |mut peer| async move { peer.hello(asked).await },
            )
        });
        let answers = futures_util::future::join_all(answers).await;
        let mut seen = Seen { promise, ..Seen::default() };
        for (at, (address, answer)) in addresses.iter().zip(answers).enumerate() {
            self.note(&mut seen, at < plan.seeds.len(), address, answer);
        }
        seen
    }

    fn note(&self, seen: &mut Seen, is_seed: bool, address: &str, answer: Result<HelloReply, PeerCallError>) {
        let hello = match answer {
            Ok(hello) if hello.cluster_name == self.cluster_name() => hello,
            Ok(hello) => {
                let theirs = hello.cluster_name;
                seen.silent.push(format!("{address} belongs to the cluster named {theirs:?}"));
                return;
            }
            Err(error) => {
                seen.silent.push(format!("{address}: {error}"));
                return;
            }
        };
        let Some(me) = &hello.me else {
            seen.silent.push(format!("{address} does not say who it is"));
            return;
        };
        let (id, node) = (me.id, member_back(me));
        if id == self.me().0 {
            seen.among_seeds |= is_seed;
            return;
        }
        seen.forsworn.extend(hello.forsworn.into_iter().map(|cluster| (id, cluster.to_vec())));
        if let Some((maker, at)) = seen.promise.as_ref().and_then(maker) {
            seen.maker_is_gone |= at.peer_address == address && maker != id;
        }
        if let Some(cluster) = ClusterId::from_slice(&hello.cluster_id) {
            let mut ids: BTreeSet<u64> = hello.members.iter().map(|member| member.id).collect();
            ids.insert(id);
            seen.members.push(MemberSeen { name: node.name, cluster, ids });
            return;
        }
        if !hello.known_cluster.is_empty() {
            seen.knowing.push(node.name.clone());
        }
        if is_seed {
            let ours = seen.promise.as_ref().map(|promise| &promise.cluster_id);
            match hello.promise {
                // Bound, and not to us: no use to ask it.
                Some(given) if Some(&given.cluster_id) != ours => {
                    let maker = maker(&given).map_or("?".to_owned(), |(_, node)| node.name);
                    seen.bound.push(format!("{} (to {maker})", node.name));
                }
                _ => drop(seen.pristine.insert((node.name.clone(), id), node)),
            }
        }
    }

    /// What this round says of the cluster that this node belongs to, and of the promise that binds it.
    async fn learn(&self, seen: &Seen) -> Result<(), StoreError> {
        let me = self.me().0;
        if let Some(member) = seen.members.iter().find(|member| member.ids.contains(&me)) {
            return self.listed_in(member.cluster).await;
        }
        let Some(promise) = &seen.promise else {
            // A cluster is running, and this node is free: it is the one to join.
            return match seen.members.first() {
                Some(member) => self.adopt(member.cluster).await,
                None => Ok(()),
            };
        };
        if promise.proposer == me {
            return Ok(());
        }
        if seen.forsworn.iter().any(|(by, id)| *by == promise.proposer && promise.cluster_id == id[..]) {
            return self.forsworn_by(&promise.cluster_id, promise.proposer).await;
        }
        for member in &seen.members {
            if promise.cluster_id == member.cluster.0[..] {
                // It was initialised: somebody belongs to it.
                self.contacted(member.cluster);
            } else if promise.members.iter().any(|founder| member.ids.contains(&founder.id)) {
                tracing::info!(
                    member = member.name, cluster = %member.cluster,
                    "a founder of the cluster that this node promised to join belongs to another one: the promise is void"
                );
                return self.moot(&promise.cluster_id).await;
            }
        }
        Ok(())
    }

    /// If it is this node's turn, asks for the promises; founds the cluster once it holds them all.
    async fn propose(
        &self,
        plan: &FoundingPlan,
        links: &PeerLinks,
        seen: &Seen,
        rounds: &mut u32,
    ) -> Result<(), StoreError> {
        let proposal = match self.standing_promise() {
            Some(mine) if mine.proposer == self.me().0 => mine,
            Some(_) => return Ok(()),
            None => {
                let Some(proposal) = self.proposal(plan, seen) else { return Ok(()) };
                *rounds = 0;
                if !self.promise(proposal.clone()).await?.granted {
                    return Ok(());
                }
                proposal
            }
        };
        *rounds += 1;
        let hopeless = match seen.members.first() {
            Some(member) => Some(format!("{} belongs to a cluster", member.name)),
            None => match self.ask_for_promises(&proposal, links).await {
                Round::All => {
                    let cluster = ClusterId::from_slice(&proposal.cluster_id).expect("this node made it");
                    return self.found(cluster).await;
                }
                Round::Hopeless(why) => Some(why),
                Round::NotYet => (*rounds >= ROUNDS_MAX).then(|| "the others did not promise in time".into()),
            },
        };
        match hopeless {
            Some(why) => self.give_up(&proposal, &why, links).await,
            None => Ok(()),
        }
    }

    /// A new proposal, if none of the seeds belongs to a cluster or knows of one, enough pristine nodes are there, and
    /// this node is the smallest of them.
    fn proposal(&self, plan: &FoundingPlan, seen: &Seen) -> Option<PromiseRequest> {
        let expect = plan.expect?;
        let (me, node) = self.me();
        let mut pristine = seen.pristine.clone();
        pristine.insert((node.name.clone(), *me), node.clone());
        let smallest_is_me = pristine.keys().next().is_some_and(|(_, id)| id == me);
        let knows = !seen.members.is_empty() || !seen.knowing.is_empty() || self.running().is_some();
        if knows || !smallest_is_me || pristine.len() < expect || !is_majority(expect, plan, seen) {
            return None;
        }
        let members = pristine.into_iter().take(expect);
        Some(PromiseRequest {
            cluster_name: self.cluster_name().to_owned(),
            cluster_id: new_cluster_id().to_bytes(),
            proposer: *me,
            members: members.map(|((_, id), node)| wire_member(&(id, node))).collect(),
        })
    }

    /// One round: all are asked anew, those that promised before among them.
    async fn ask_for_promises(&self, proposal: &PromiseRequest, links: &PeerLinks) -> Round {
        let others: Vec<&peer::Member> =
            proposal.members.iter().filter(|member| member.id != self.me().0).collect();
        let asked = others.iter().map(|member| {
            let (address, proposal) = (member_back(member).peer_address, proposal.clone());
            async move {
                links
                    .call(Lane::Control, &address, ANSWER_LIMIT, |mut peer| async move {
                        peer.promise(proposal).await
                    })
                    .await
            }
        });
        let replies = futures_util::future::join_all(asked).await;
        let mut all = true;
        for (member, reply) in others.into_iter().zip(replies) {
            let name = member_back(member).name;
            match reply {
                Ok(reply) if reply.me != member.id => {
                    return Round::Hopeless(format!("{name} has lost its data directory"));
                }
                Ok(reply) if reply.granted => {}
                Ok(PromiseReply { cluster_id, .. }) if !cluster_id.is_empty() => {
                    return Round::Hopeless(format!("{name} belongs to a cluster, or knows of one"));
                }
                Ok(PromiseReply { given: Some(given), .. }) if yields_to(&given, proposal) => {
                    return Round::Hopeless(format!("{name} promised another node"));
                }
                _ => all = false,
            }
        }
        if all { Round::All } else { Round::NotYet }
    }

    async fn give_up(
        &self,
        proposal: &PromiseRequest,
        why: &str,
        links: &PeerLinks,
    ) -> Result<(), StoreError> {
        // First for good, on disk; then, and only then, to the others.
        self.forswear(proposal).await?;
        tracing::info!(why, "this node gave up the cluster that it proposed");
        let others = proposal.members.iter().filter(|member| member.id != self.me().0);
        let told = others.map(|member| {
            let address = member_back(member).peer_address;
            let forswear =
                peer::ForswearRequest { cluster_id: proposal.cluster_id.clone(), proposer: self.me().0 };
            async move {
                links
                    .call(Lane::Control, &address, ANSWER_LIMIT, |mut peer| async move {
                        peer.forswear(forswear).await
                    })
                    .await
            }
        });
        // Lost, it is repaired: who promised asks.
        futures_util::future::join_all(told).await;
        Ok(())
    }

    /// Says what to do while this founder has heard nothing of its cluster but that it was founded. A maker that dies for
    /// good in that moment has told its membership to nobody, and then nobody can lead. Whoever was told leads without
    /// it, and is heard; so where nobody is, nothing was ever acknowledged.
    pub async fn report_unheard(&self, raft: &RaftHandle) {
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            if !raft.positions().members.is_empty() {
                return;
            }
            let promise = self.standing_promise();
            let maker = promise.as_ref().and_then(maker).filter(|(id, _)| *id != self.me().0);
            let Some((_, Member { name: maker, .. })) = maker else { return };
            tracing::warn!(
                maker,
                "{maker} founded the cluster of this node, which has heard nothing of it since. If {maker} is gone for \
                 good and this stays so with all other nodes running, stop this node and empty its data directory"
            );
        }
    }

    fn say_what_is_missing(&self, plan: &FoundingPlan, seen: &Seen) {
        let promise = self.standing_promise();
        if let Some(promise) = &promise
            && let Some((_, maker)) = maker(promise).filter(|(id, _)| *id != self.me().0)
        {
            let maker = maker.name;
            if seen.maker_is_gone {
                tracing::warn!(
                    maker,
                    "this node promised to join the cluster that {maker} was founding, and {maker} has lost its data \
                     directory: stop this node and empty its data directory"
                );
            } else {
                tracing::info!(
                    maker,
                    "this node promised to join the cluster that {maker} founds, and waits for it. If {maker} is gone \
                     for good, stop this node and empty its data directory"
                );
            }
        } else if let Some(member) = seen.members.first() {
            tracing::info!(
                member = member.name, cluster = %member.cluster,
                "a cluster is running; this node waits to be let in"
            );
        } else if !seen.knowing.is_empty() || self.running().is_some() {
            tracing::info!(
                known_to = ?seen.knowing,
                "a cluster was running and cannot be reached; this node waits for it. If it is gone for good, start \
                 again the nodes that knew it"
            );
        } else if plan.expect.is_some_and(|expect| !is_majority(expect, plan, seen)) {
            tracing::warn!(
                "this node founds no cluster: --bootstrap-expect must be more than half of its seeds and itself"
            );
        } else {
            let expect = plan
                .expect
                .map_or("none: give --bootstrap-expect on new nodes".to_owned(), |n| n.to_string());
            let proposes = promise.is_some();
            let pristine = seen.pristine.len() + 1;
            tracing::info!(
                pristine, expect, proposes, bound = ?seen.bound, silent = ?seen.silent,
                "waiting for the nodes of a new cluster"
            );
        }
    }
}

/// What one round of hellos found.
#[derive(Debug, Default)]
struct Seen {
    /// The promise that bound this node when it asked.
    promise: Option<PromiseRequest>,
    /// Seeds without a cluster that are free, or bound to us.
    pristine: BTreeMap<(String, u64), Member>,
    /// Seeds bound to others.
    bound: Vec<String>,
    /// Whoever belongs to a cluster.
    members: Vec<MemberSeen>,
    /// Whoever has seen a running cluster.
    knowing: Vec<String>,
    /// Clusters that were forsworn, and by whom.
    forsworn: Vec<(u64, Vec<u8>)>,
    /// One of the seeds is this node.
    among_seeds: bool,
    /// At the address of the one whom we promised, somebody else answers.
    maker_is_gone: bool,
    silent: Vec<String>,
}

#[derive(Debug)]
struct MemberSeen {
    name: String,
    cluster: ClusterId,
    /// Of the members of its cluster, itself among them.
    ids: BTreeSet<u64>,
}

/// What one round of promises came to.
enum Round {
    All,
    NotYet,
    /// The proposal will never have them all.
    Hopeless(String),
}

/// Whether any two sets of so many founders have a node in common. Each is a part of the seeds, and of the proposer
/// itself, which need not be one of them.
fn is_majority(expect: usize, plan: &FoundingPlan, seen: &Seen) -> bool {
    expect * 2 > plan.seeds.len() + usize::from(!seen.among_seeds)
}

/// Whether `ours` is the larger of two proposals.
fn yields_to(theirs: &PromiseRequest, ours: &PromiseRequest) -> bool {
    let key = |proposal: &PromiseRequest| (maker(proposal).map(|(_, node)| node.name), proposal.proposer);
    key(ours) > key(theirs)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raftlock_proto::peer::peer_server::PeerServer;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::links::LinkTimes;
    use crate::net::{Net, TcpNet};
    use crate::service::peer::PeerService;
    use crate::service::serve;
    use crate::store::{Store, StoreOptions, Writer};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A node that only founds: its desk, its peer port, and no Raft.
    struct Founder {
        desk: Arc<Founding>,
        _dir: tempfile::TempDir,
        port: JoinSet<()>,
    }

    impl Founder {
        async fn start(name: &str, id: u64, address: &str) -> Founder {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let options = StoreOptions {
                writer: Writer::Inline,
                allow_volatile: true,
                ballast_bytes: 0,
                ..StoreOptions::new(dir.path().to_owned())
            };
            let store = Store::open(options).expect("a store");
            let listener = TcpNet.listen(address).await.expect("a port");
            let peer_address = listener.address();
            let member = Member { name: name.into(), peer_address, client_address: String::new() };
            let desk = Founding::open("c".into(), (id, member), store.clone()).expect("an empty store");
            let router = serve::builder().add_service(PeerServer::new(PeerService::new(desk.clone(), store)));
            let mut port = JoinSet::new();
            let gate = crate::service::gate::Gate::peers();
            port.spawn(
                async move { drop(serve::run(router, listener, gate, CancellationToken::new()).await) },
            );
            Founder { desk, _dir: dir, port }
        }

        fn address(&self) -> String {
            self.desk.me().1.peer_address.clone()
        }

        /// Its port is free after this.
        async fn end(mut self) {
            self.port.shutdown().await;
        }

        /// As if its own seeds were asked, and nothing runs.
        fn asked(self) -> Founder {
            self.desk.asked_around(None);
            self
        }

        fn proposal(&self, cluster: u8, with: &[&Founder]) -> PromiseRequest {
            let others = with.iter().map(|other| wire_member(other.desk.me()));
            PromiseRequest {
                cluster_name: "c".into(),
                cluster_id: vec![cluster; 16].into(),
                proposer: self.desk.me().0,
                members: others.chain([wire_member(self.desk.me())]).collect(),
            }
        }

        async fn promises(&self, proposal: &PromiseRequest) {
            assert!(self.desk.promise(proposal.clone()).await.expect("the disk is well").granted);
        }

        /// Searches until `done`.
        async fn search(&self, seeds: &[&Founder], expect: usize, done: impl Fn(&Founding) -> bool) {
            let seeds = seeds.iter().map(|seed| seed.address()).collect();
            let plan = FoundingPlan { seeds, expect: Some(expect) };
            let links = links();
            let search = async {
                // It goes on beside what it is watched for.
                let found = self.desk.find(&plan, &links);
                tokio::select! {
                    _ = found => {}
                    () = async { while !done(&self.desk) { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
                }
            };
            tokio::time::timeout(PATIENCE, search).await.expect("in time");
            assert!(done(&self.desk), "it found {:?}", self.desk.cluster());
        }
    }

    fn links() -> PeerLinks {
        let times = LinkTimes { connect: Duration::from_secs(1), ping: Duration::from_secs(1) };
        PeerLinks::new(TcpNet::shared(), times)
    }

    fn cluster(byte: u8) -> ClusterId {
        ClusterId([byte; 16])
    }

    #[tokio::test]
    async fn a_maker_gives_up_when_one_that_it_asked_belongs_to_another_cluster() {
        let maker = Founder::start("a", 1, "127.0.0.1:0").await.asked();
        let member = Founder::start("b", 2, "127.0.0.1:0").await;
        let free = Founder::start("c", 3, "127.0.0.1:0").await.asked();
        let proposal = maker.proposal(1, &[&member, &free]);
        maker.promises(&proposal).await;
        free.promises(&proposal).await;
        member.desk.listed_in(cluster(9)).await.expect("the disk is well");
        // Both its answer to the promise and its hello tell.
        let round = maker.desk.ask_for_promises(&proposal, &links()).await;
        assert!(matches!(round, Round::Hopeless(_)));
        maker.search(&[&maker, &free], 3, |desk| !desk.hello(Vec::new()).forsworn.is_empty()).await;
        free.search(&[], 3, |desk| desk.standing_promise().is_none()).await;
    }

    #[tokio::test]
    async fn a_maker_gives_up_when_one_that_it_asked_has_lost_its_disk() {
        let maker = Founder::start("a", 1, "127.0.0.1:0").await.asked();
        let before = Founder::start("b", 2, "127.0.0.1:0").await.asked();
        let proposal = maker.proposal(1, &[&before]);
        maker.promises(&proposal).await;
        before.promises(&proposal).await;
        let address = before.address();
        before.end().await;
        let wiped = Founder::start("b", 22, &address).await.asked();
        // At once, not when the proposal is given up for its age.
        let round = maker.desk.ask_for_promises(&proposal, &links()).await;
        assert!(matches!(round, Round::Hopeless(_)));
        maker.search(&[&maker, &wiped], 2, |desk| desk.cluster().is_some()).await;
        assert_eq!(maker.desk.hello(Vec::new()).forsworn, [proposal.cluster_id]);
        let cluster = maker.desk.cluster().expect("founded");
        let members = maker.desk.initialises(cluster).expect("it is the maker");
        assert_eq!(members.into_keys().collect::<Vec<_>>(), [1, 22]);
    }

    #[tokio::test]
    async fn a_promise_is_moot_once_a_founder_belongs_to_another_cluster() {
        let maker = Founder::start("a", 1, "127.0.0.1:0").await.asked();
        let (one, other) = (
            Founder::start("b", 2, "127.0.0.1:0").await.asked(),
            Founder::start("c", 3, "127.0.0.1:0").await.asked(),
        );
        let proposal = maker.proposal(1, &[&one, &other]);
        one.promises(&proposal).await;
        other.desk.listed_in(cluster(9)).await.expect("the disk is well");
        maker.end().await; // for good, so nobody forswears
        one.search(&[], 3, |desk| desk.standing_promise().is_none()).await;
        one.search(&[&other], 3, |desk| desk.cluster() == Some(cluster(9))).await;
    }

    #[tokio::test]
    async fn a_node_that_is_listed_belongs_to_that_cluster() {
        let one = Founder::start("b", 2, "127.0.0.1:0").await.asked();
        let listed = BTreeSet::from([2, 5]);
        let member = MemberSeen { name: "a".into(), cluster: cluster(9), ids: listed };
        let seen = Seen { members: vec![member], ..Seen::default() };
        one.desk.learn(&seen).await.expect("the disk is well");
        assert_eq!(one.desk.cluster(), Some(cluster(9)));
        assert_eq!(one.desk.settle().await.expect("the disk is well"), Some(cluster(9)));
    }

    #[tokio::test]
    async fn a_promise_is_kept_when_its_founder_exists() {
        let maker = Founder::start("a", 1, "127.0.0.1:0").await.asked();
        let one = Founder::start("b", 2, "127.0.0.1:0").await.asked();
        let proposal = maker.proposal(1, &[&one]);
        maker.promises(&proposal).await;
        one.promises(&proposal).await;
        maker.desk.found(cluster(1)).await.expect("the disk is well");
        // No Raft message came yet, and the maker is not even a seed.
        one.search(&[], 2, |desk| desk.cluster() == Some(cluster(1))).await;
    }

    #[tokio::test]
    async fn nobody_proposes_with_less_than_a_majority_or_beside_a_cluster() {
        let me = Founder::start("a", 1, "127.0.0.1:0").await.asked();
        let plan = |seeds: usize, expect| FoundingPlan {
            seeds: (0..seeds).map(|at| format!("n{at}:1")).collect(),
            expect: Some(expect),
        };
        let pristine = |names: &[&str]| {
            let at = |(at, name): (usize, &&str)| (((*name).to_owned(), at as u64 + 2), Member::default());
            Seen {
                pristine: names.iter().enumerate().map(at).collect(),
                among_seeds: true,
                ..Seen::default()
            }
        };
        let proposes = |plan: FoundingPlan, seen: Seen| me.desk.proposal(&plan, &seen).is_some();
        assert!(proposes(plan(3, 2), pristine(&["b", "c"])));
        assert!(proposes(plan(5, 3), pristine(&["b", "c"])), "silent seeds are no obstacle");
        assert!(!proposes(plan(3, 3), pristine(&["b"])), "too few");
        assert!(!proposes(plan(3, 2), pristine(&["A"])), "another is smaller");
        // Beside the seeds, with one of them: others could do the same.
        let outside = Seen { among_seeds: false, ..pristine(&["b"]) };
        assert!(!proposes(plan(3, 2), outside));
        assert!(!proposes(plan(4, 2), pristine(&["b"])));
        assert!(!proposes(plan(3, 2), Seen { knowing: vec!["b".into()], ..pristine(&["b"]) }));
        me.desk.asked_around(Some(cluster(9)));
        assert!(!proposes(plan(3, 2), pristine(&["b"])), "a cluster was running");
    }
}
