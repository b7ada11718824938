//! The life of a cluster: nodes join, leave, die, come back empty, and take over from one another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use raftlock::{Client, LockGuard};
use raftlock_proto::peer::{self, peer_client::PeerClient};
use raftlock_proto::v1::admin_client::AdminClient;
use raftlock_proto::v1::change_members_request::Change;
use raftlock_proto::v1::{ChangeMembersRequest, ReplaceMember};
use raftlock_server::config::Config;
use raftlock_server::members::{Liveness, MemberView};
use raftlock_server::node::{Node, NodeError, Seams};
use raftlock_tests::cluster::{PATIENCE, copy_folder, eventually};
use raftlock_tests::history::History;
use raftlock_tests::wires::FreePorts;

/// Nodes that come and go. Each finds the others through the first.
struct Life {
    configs: Vec<Config>,
    nodes: Vec<Option<Node>>,
    dir: tempfile::TempDir,
    /// Kept so that a node that is down finds its address free again.
    _ports: FreePorts,
}

impl Life {
    /// The first node is a cluster of its own: its only seed is itself.
    async fn begin(voters: u32, count_max: usize) -> Life {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ports = FreePorts::take(2 * count_max);
        let configs = (0..count_max).map(|at| {
            let mut config = Config::new(format!("n{}", at + 1), dir.path().join(format!("n{}", at + 1)));
            (config.peer_listen, config.listen) =
                (ports.addresses[at].clone(), ports.addresses[count_max + at].clone());
            config.seeds = vec![ports.addresses[0].clone()];
            (config.voters, config.allow_volatile_data, config.ballast_bytes) = (voters, true, 0);
            config
        });
        let configs = configs.collect();
        let nodes = (0..count_max).map(|_| None).collect();
        let mut life = Life { configs, nodes, dir, _ports: ports };
        life.start(0).await;
        life.nodes[0].as_ref().expect("just started").ready().await;
        life
    }

    async fn start(&mut self, at: usize) {
        let node = Node::start(self.configs[at].clone(), Seams::default()).await;
        self.nodes[at] = Some(node.expect("the node starts"));
    }

    fn wipe(&self, at: usize) {
        std::fs::remove_dir_all(&self.configs[at].data_dir).expect("the folder is there");
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("the node is up")
    }

    fn take(&mut self, at: usize) -> Node {
        self.nodes[at].take().expect("the node is up")
    }

    /// Names of voters and of learners, as a node sees them.
    fn roles(&self, at: usize) -> (BTreeSet<String>, BTreeSet<String>) {
        let of = |role: &str| {
            let members = self.node(at).status().members.into_iter();
            members.filter(|member| member.role == role).map(|member| member.name).collect()
        };
        (of("voter"), of("learner"))
    }

    /// Waits until every node that is up sees these voters and learners.
    async fn settled(&self, voters: &[usize], learners: &[usize]) {
        let names =
            |of: &[usize]| -> BTreeSet<String> { of.iter().map(|at| format!("n{}", at + 1)).collect() };
        let wanted = (names(voters), names(learners));
        eventually(&format!("voters and learners {wanted:?}"), async || {
            let up = (0..self.nodes.len()).filter(|at| self.nodes[*at].is_some());
            up.map(|at| self.roles(at)).all(|roles| roles == wanted).then_some(())
        })
        .await;
    }

    async fn leader(&self) -> usize {
        eventually("a leader", async || {
            (0..self.nodes.len()).find(|at| {
                let status = self.nodes[*at].as_ref().map(Node::status);
                status.is_some_and(|status| status.ready && status.node.is_some_and(|n| n.role == "leader"))
            })
        })
        .await
    }

    fn endpoints(&self) -> String {
        let listens = self.configs.iter().map(|config| format!("http://{}", config.listen));
        listens.collect::<Vec<_>>().join(",")
    }

    async fn client(&self, owner: &str) -> Client {
        let client = Client::builder().endpoints(self.endpoints()).owner(owner).connect().await;
        client.expect("a server answers")
    }

    /// Asks a node for a change, as often as there is no leader to make it.
    async fn change(&self, at: usize, change: Change) -> Result<String, tonic::Status> {
        let address = format!("http://{}", self.configs[at].listen);
        eventually("the change is answered", async || {
            let mut admin = AdminClient::connect(address.clone()).await.ok()?;
            match admin.change_members(ChangeMembersRequest { change: Some(change.clone()) }).await {
                Ok(answer) => Some(Ok(answer.into_inner().message)),
                Err(status) if status.code() == tonic::Code::Unavailable => None,
                Err(status) => Some(Err(status)),
            }
        })
        .await
    }

    async fn end(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await;
        }
        self.dir.close().expect("the folder can be removed");
    }
}

/// Clients that lock and release all the time. No call of theirs may fail.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    history: History,
    clients: Vec<Client>,
    tasks: Vec<tokio::task::JoinHandle<Vec<LockGuard>>>,
}

const HOT_LOCKS: usize = 3;

impl Load {
    async fn start(life: &Life, clients: usize) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut load = Load { stop, done, history: History::new(), clients: Vec::new(), tasks: Vec::new() };
        for at in 0..clients {
            let (client, history) = (life.client(&format!("c{at}")).await, load.history.clone());
            let (stop, done) = (load.stop.clone(), load.done.clone());
            load.clients.push(client.clone());
            load.tasks.push(tokio::spawn(async move {
                let mut kept = Vec::new();
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let keep = turn % 10 == 0;
                    let name = match keep {
                        true => format!("kept-{at}-{turn}"),
                        false => format!("hot-{}", (at + turn) % HOT_LOCKS),
                    };
                    let asked = history.now();
                    let guard = client.lock(&name).ttl(Duration::from_secs(20)).await;
                    let guard = guard.expect("no call fails");
                    let hold = history.granted(&format!("c{at}"), &name, guard.token().get(), asked);
                    if keep {
                        kept.push(guard);
                    } else {
                        history.releasing(hold);
                        guard.release().await.expect("no call fails");
                        history.released(hold);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                kept
            }));
        }
        load
    }

    /// Waits until so many more calls were answered.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("the load goes on", async || {
            (self.done.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
    }

    /// Stops it, and checks what the clients saw against each other and against the replicated state.
    async fn end(self, life: &Life) {
        self.stop.store(true, Ordering::Relaxed);
        let mut kept = Vec::new();
        for task in self.tasks {
            kept.extend(task.await.expect("no call fails"));
        }
        println!("{}", self.history.check().expect("H1 to H3"));
        let reader = life.client("reader").await;
        let mut held = BTreeSet::new();
        for lock in reader.list("").await.expect("a list") {
            let info = reader.get(&lock.name).await.expect("a lock");
            held.extend(info.holders.iter().map(|holder| (lock.name.clone(), holder.token.get())));
        }
        let standing = self.history.check_durable(&held).expect("H10");
        assert_eq!(standing, kept.len(), "every lock that was kept is still there");
        drop(kept);
        for client in self.clients.into_iter().chain([reader]) {
            client.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_under_load() {
    let mut life = Life::begin(3, 5).await;
    let load = Load::start(&life, 3).await;
    life.start(1).await;
    life.settled(&[0], &[1]).await;
    life.start(2).await;
    life.settled(&[0, 1, 2], &[]).await;
    load.goes_on().await;
    life.start(3).await;
    life.start(4).await;
    life.settled(&[0, 1, 2], &[3, 4]).await;
    life.change(4, Change::Voters(5)).await.expect("done");
    life.settled(&[0, 1, 2, 3, 4], &[]).await;
    load.goes_on().await;
    // Two leave: the leader, and one that is asked to.
    let leader = life.leader().await;
    let (follower, asked) = ((leader + 1) % 5, (leader + 2) % 5);
    life.take(leader).leave().await.expect("it is let go");
    load.goes_on().await;
    life.change(asked, Change::Remove(format!("n{}", follower + 1))).await.expect("done");
    let why = life.node(follower).failed().await;
    assert!(matches!(why, NodeError::Removed), "{why}");
    life.take(follower).shutdown().await;
    let left: Vec<usize> = (0..5).filter(|at| *at != leader && *at != follower).collect();
    life.settled(&left, &[]).await;
    load.goes_on().await;
    load.end(&life).await;

    // Who left does not come back by itself, and says what to do.
    let refused = Node::start(life.configs[follower].clone(), Seams::default()).await;
    let text = refused.err().expect("it refuses to start").to_string();
    assert!(text.contains("empty its data directory") && text.contains("--seeds"), "{text}");
    let refused = Node::start(life.configs[leader].clone(), Seams::default()).await;
    assert!(matches!(refused, Err(NodeError::Removed)));
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_was_wiped_is_back_as_a_voter_by_itself() {
    let mut life = Life::begin(3, 3).await;
    life.start(1).await;
    life.start(2).await;
    life.settled(&[0, 1, 2], &[]).await;
    // Its seed must be another node than itself, as it would be for any real one.
    life.configs[0].seeds = vec![life.configs[1].peer_listen.clone()];
    let load = Load::start(&life, 3).await;
    for at in [life.leader().await, life.leader().await.wrapping_add(1) % 3] {
        load.goes_on().await;
        let before = life.node(at).status().node.expect("it says who it is").id;
        life.take(at).abandon().await;
        life.wipe(at);
        life.start(at).await;
        let after = life.node(at).status().node.expect("it says who it is").id;
        assert_ne!(before, after, "a new disk is a new node");
        let ids = |life: &Life| -> BTreeSet<u64> {
            let members = life.node(at).status().members.into_iter();
            members.filter(|member| member.role == "voter").map(|member| member.id).collect()
        };
        eventually("it votes again, and its old self does not", async || {
            let ids = ids(&life);
            (ids.len() == 3 && ids.contains(&after) && !ids.contains(&before)).then_some(())
        })
        .await;
        life.settled(&[0, 1, 2], &[]).await;
        load.goes_on().await;
    }
    load.end(&life).await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_restored_from_an_old_copy_is_refused_and_back_once_it_is_emptied() {
    let mut life = Life::begin(3, 3).await;
    life.start(1).await;
    life.start(2).await;
    life.settled(&[0, 1, 2], &[]).await;
    let load = Load::start(&life, 3).await;
    let (at, data, copy) = (2, life.configs[2].data_dir.clone(), life.dir.path().join("copy"));
    life.take(at).shutdown().await;
    copy_folder(&data, &copy);
    life.start(at).await;
    life.settled(&[0, 1, 2], &[]).await;
    load.goes_on().await;
    life.take(at).abandon().await;
    life.wipe(at);
    copy_folder(&copy, &data);

    life.start(at).await;
    let why = life.node(at).failed().await;
    assert!(matches!(why, NodeError::StaleStorage(_)), "{why}");
    assert!(why.to_string().to_lowercase().contains("empty"), "{why}");
    life.take(at).shutdown().await;
    let again = Node::start(life.configs[at].clone(), Seams::default()).await;
    assert!(matches!(again, Err(NodeError::StaleStorage(_))), "one start more would not help");
    load.goes_on().await;

    life.wipe(at);
    life.start(at).await;
    let new = life.node(at).status().node.expect("it says who it is").id;
    eventually("it votes again", async || {
        let members = life.node(0).status().members;
        let voters: Vec<u64> = members.iter().filter(|m| m.role == "voter").map(|m| m.id).collect();
        (voters.len() == 3 && voters.contains(&new)).then_some(())
    })
    .await;
    load.goes_on().await;
    load.end(&life).await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
async fn a_dead_member_shows_on_every_other_and_can_be_replaced() {
    let mut life = Life::begin(3, 4).await;
    for at in 1..4 {
        life.start(at).await;
    }
    eventually("three vote and one learns", async || (life.roles(0).0.len() == 3).then_some(())).await;
    eventually("four members", async || (life.node(0).status().members.len() == 4).then_some(())).await;
    let (_, learners) = life.roles(0);
    let learner: usize = learners.iter().next().expect("one learns")[1..].parse::<usize>().expect("n4") - 1;
    let leader = life.leader().await;
    let dead = (0..4).find(|at| *at != leader && *at != learner).expect("another voter");
    let name = format!("n{}", dead + 1);
    let begun = Instant::now();
    life.take(dead).abandon().await;
    for at in (0..4).filter(|at| *at != dead) {
        let is_dead = |member: &MemberView| member.name == name && member.liveness == Liveness::Dead;
        eventually("it is seen dead", async || life.node(at).members().iter().any(is_dead).then_some(()))
            .await;
        println!("n{} saw it dead after {:?}", at + 1, begun.elapsed());
    }
    let took = begun.elapsed();
    let (new, old) = (format!("n{}", learner + 1), name.clone());
    life.change(learner, Change::Replace(ReplaceMember { old, new })).await.expect("done");
    let voters: Vec<usize> = (0..4).filter(|at| *at != dead).collect();
    life.settled(&voters, &[]).await;
    // On a machine that is busy with other tests the pings themselves are late.
    assert!(took < Duration::from_secs(4), "{took:?}");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_replaced_while_it_was_away_is_told_also_if_it_does_not_know_the_leader() {
    let mut life = Life::begin(3, 4).await;
    for at in 1..3 {
        life.start(at).await;
    }
    life.settled(&[0, 1, 2], &[]).await;
    life.take(2).abandon().await;
    life.start(3).await;
    life.settled(&[0, 1, 2], &[3]).await;
    let (old, new) = ("n3".to_owned(), "n4".to_owned());
    life.change(0, Change::Replace(ReplaceMember { old, new: new.clone() })).await.expect("done");
    life.settled(&[0, 1, 3], &[]).await;
    life.change(0, Change::TransferLeader(new)).await.expect("done");
    assert_eq!(life.leader().await, 3, "it leads whom the one that was away has never heard of");
    life.start(2).await;
    let ended = tokio::time::timeout(PATIENCE, life.node(2).failed()).await.expect("it is told");
    assert!(matches!(ended, NodeError::Removed), "{ended}");
    life.take(2).abandon().await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_moves_to_whom_the_operator_names() {
    let mut life = Life::begin(3, 4).await;
    for at in 1..4 {
        life.start(at).await;
    }
    eventually("three vote and one learns", async || (life.roles(0).0.len() == 3).then_some(())).await;
    let (voters, learners) = life.roles(0);
    let load = Load::start(&life, 2).await;
    let leader = format!("n{}", life.leader().await + 1);
    let to = voters.iter().find(|name| **name != leader).expect("another voter").clone();
    let said = life.change(0, Change::TransferLeader(to.clone())).await.expect("done");
    assert!(said.contains(&to), "{said}");
    assert_eq!(format!("n{}", life.leader().await + 1), to);
    load.goes_on().await;
    let said = life.change(1, Change::TransferLeader(String::new())).await.expect("done");
    assert!(!said.contains(&to), "{said}");
    load.goes_on().await;

    let refused = |status: Result<String, tonic::Status>| status.expect_err("refused").message().to_owned();
    let learner = learners.iter().next().expect("one learns").clone();
    let text = refused(life.change(0, Change::TransferLeader(learner)).await);
    assert!(text.contains("learner"), "{text}");
    let text = refused(life.change(0, Change::Remove("n9".to_owned())).await);
    assert!(text.contains("n9") && text.contains("n1, n2, n3"), "{text}");
    let text = refused(life.change(2, Change::Voters(4)).await);
    assert!(text.contains("must be odd"), "{text}");
    load.goes_on().await;
    load.end(&life).await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_voter_leaves_to_a_learner_and_the_last_member_just_stops() {
    let mut life = Life::begin(3, 2).await;
    life.start(1).await;
    life.settled(&[0], &[1]).await;
    let client = life.client("c").await;
    let guard = client.lock("k").ttl(Duration::from_secs(20)).await.expect("granted");
    life.take(0).leave().await.expect("it is let go");
    life.settled(&[1], &[]).await;
    assert!(guard.is_held());
    let next = client.lock("another").await.expect("the learner took over");
    assert!(next.token() > guard.token());
    life.take(1).leave().await.expect("nobody is left to ask");
    // It left nobody, so it is no deserter.
    life.start(1).await;
    life.node(1).ready().await;
    assert_eq!(client.get("k").await.expect("a lock").holders[0].token, guard.token());
    client.close().await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_stays_dead_gives_its_place_to_a_learner_if_the_operator_said_so() {
    let mut life = Life::begin(3, 4).await;
    life.take(0).shutdown().await;
    for at in 0..4 {
        life.configs[at].remove_dead_after = Some(Duration::from_secs(10));
        life.start(at).await;
    }
    eventually("three vote and one learns", async || (life.roles(0).0.len() == 3).then_some(())).await;
    let (voters, learners) = life.roles(0);
    let leader = format!("n{}", life.leader().await + 1);
    let number = |name: &str| name[1..].parse::<usize>().expect("a number") - 1;
    let dead = number(voters.iter().find(|name| **name != leader).expect("another voter"));
    life.take(dead).abandon().await;
    let left: Vec<usize> = (0..4).filter(|at| *at != dead).collect();
    life.settled(&left, &[]).await;
    assert_eq!(learners.len(), 1);
    // Back again it learns that its place is gone.
    life.start(dead).await;
    let why = life.node(dead).failed().await;
    assert!(matches!(why, NodeError::Removed), "{why}");
    life.take(dead).shutdown().await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_cannot_be_let_in_is_told_why() {
    let life = Life::begin(3, 2).await;
    let first = life.node(0).status().node.expect("it says who it is");
    let address = format!("http://{}", life.configs[0].peer_listen);
    let ask = async |cluster_name: &str, id: u64, name: &str, peer_address: &str| {
        let node = peer::Node {
            name: name.to_owned(),
            peer_address: peer_address.to_owned(),
            client_address: "elsewhere:1".to_owned(),
        };
        let member = Some(peer::Member { id, node: Some(node) });
        let request = peer::JoinRequest { cluster_name: cluster_name.to_owned(), member };
        let mut first = PeerClient::connect(address.clone()).await.expect("the node listens");
        // A leader that has just come into office names nobody yet.
        eventually("the cluster can take members in", async || {
            let answer = first.join(request.clone()).await.map(tonic::Response::into_inner);
            let is_nobody = |reply: &peer::JoinReply| reply.cluster_id.is_empty() && reply.leader.is_none();
            if answer.as_ref().is_ok_and(is_nobody) { None } else { Some(answer) }
        })
        .await
    };
    let refused = |answer: Result<peer::JoinReply, tonic::Status>, code, what: &str| {
        let status = answer.expect_err("it is refused");
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(what), "{status}");
    };
    use tonic::Code;
    refused(ask("another", 7, "n7", "elsewhere:2").await, Code::PermissionDenied, "named \"raftlock\"");
    refused(ask("raftlock", 7, "n1", "elsewhere:2").await, Code::FailedPrecondition, "--node-name");
    refused(ask("raftlock", first.id, "n1", "elsewhere:2").await, Code::FailedPrecondition, "Empty it");
    refused(ask("raftlock", 7, "", "elsewhere:2").await, Code::InvalidArgument, "node-name");
    refused(ask("raftlock", 7, "n\n7", "elsewhere:2").await, Code::InvalidArgument, "node-name");
    assert_eq!(life.node(0).status().members.len(), 1, "nobody was let in");
    // Asked twice, as after a lost answer, it changes nothing the second time.
    for _ in 0..2 {
        let joined = ask("raftlock", 7, "n7", "127.0.0.1:1").await.expect("it is let in");
        assert_eq!(joined.cluster_id.len(), 16);
        assert_eq!(life.roles(0).1, BTreeSet::from(["n7".to_owned()]));
    }
    life.end().await;
}
