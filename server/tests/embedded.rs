//! Nodes inside an application: the client on each, what happens to its guards, and how a node ends.

use std::sync::Arc;
use std::time::Duration;

use raftlock::{Client, LostReason};
use raftlock_server::members::MemberEvent;
use raftlock_server::node::{Node, NodeError, Seams};
use raftlock_server::store::simdisk::{self, Disk};
use raftlock_server::testing::wires::{FreePorts, Switchboard, WiredNet};
use raftlock_server::{NodeBuilder, testing::PATIENCE};
use raftlock_tests::cluster::eventually;

/// Three nodes that found a cluster together.
struct Trio {
    nodes: Vec<Option<Node>>,
    peers: Vec<String>,
    switchboard: Arc<Switchboard>,
    _ports: FreePorts,
    _dir: tempfile::TempDir,
}

impl Trio {
    async fn start() -> Trio {
        let dir = tempfile::tempdir().expect("a folder");
        let ports = FreePorts::take(3);
        let peers = ports.addresses.clone();
        let switchboard = Arc::new(Switchboard::default());
        let mut nodes = Vec::new();
        for bind in &peers {
            let net = WiredNet { me: bind.clone(), switchboard: switchboard.clone() };
            let node =
                embedded(&dir.path().join(bind)).bind(bind).seeds(&peers).bootstrap_expect(3).name(bind);
            let node = node.seams(Seams { net: Arc::new(net), ..Seams::default() });
            nodes.push(Some(node.start().await.expect("it starts")));
        }
        let trio = Trio { nodes, peers, switchboard, _ports: ports, _dir: dir };
        for at in 0..3 {
            in_time(trio.node(at).ready()).await;
        }
        trio
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("it is up")
    }

    async fn leader(&self) -> usize {
        let leads = |node: &Node| node.status().node.is_some_and(|node| node.role == "leader");
        eventually("somebody leads", async || {
            self.nodes.iter().position(|node| node.as_ref().is_some_and(leads))
        })
        .await
    }

    async fn end(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await;
        }
    }
}

fn embedded(dir: &std::path::Path) -> NodeBuilder {
    Node::builder().data_dir(dir).allow_volatile_data(true).ballast_bytes(0)
}

/// A cluster of one.
async fn alone(dir: &std::path::Path) -> Node {
    let node = embedded(dir).bind("127.0.0.1:0").start().await.expect("it starts");
    in_time(node.ready()).await;
    node
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn guards_outlive_the_leaders_node_and_those_of_its_own_client_are_lost_in_time() {
    let mut trio = Trio::start().await;
    let clients: Vec<Client> = (0..3).map(|at| trio.node(at).client()).collect();
    let leader = trio.leader().await;
    let mut guards = Vec::new();
    for (at, client) in clients.iter().enumerate() {
        let ttl = if at == leader { Duration::from_secs(3) } else { LONG };
        guards.push(in_time(client.lock(format!("of-{at}")).ttl(ttl).into_future()).await.expect("granted"));
    }
    trio.nodes[leader].take().expect("it is up").abandon().await;

    let orphan = guards.remove(leader);
    let survivor = (leader + 1) % 3;
    let next = in_time(clients[survivor].lock(orphan.name()).ttl(LONG).into_future()).await.expect("granted");
    assert!(!orphan.is_held(), "its holder knew before another was granted it");
    assert!(next.token() > orphan.token());
    for guard in &guards {
        in_time(guard.extend(LONG)).await.expect("the new leader renews it");
        assert!(guard.is_held());
    }
    let held = clients[survivor].list("of-").await.expect("an answer");
    assert_eq!(held.len(), 3, "{held:?}");
    drop(guards);
    trio.end().await;
}

#[tokio::test]
async fn a_node_that_shuts_down_hands_its_locks_on() {
    let mut trio = Trio::start().await;
    let leaving = trio.leader().await;
    let staying = (leaving + 1) % 3;
    let guard = trio.node(leaving).client().lock("k").ttl(LONG).await.expect("granted");
    let waiter = trio.node(staying).client();
    let waiting = tokio::spawn(async move { waiter.lock("k").ttl(LONG).await });
    let watcher = trio.node(staying).client();
    eventually("somebody waits", async || (watcher.get("k").await.ok()?.queue_length == 1).then_some(()))
        .await;

    let node = trio.nodes[leaving].take().expect("it is up");
    in_time(tokio::spawn(node.shutdown())).await.expect("no panic");
    assert_eq!(guard.lost().await, LostReason::ClientClosed);
    let next = in_time(waiting).await.expect("no panic").expect("long before the TTL is over");
    assert!(next.token() > guard.token());
    trio.end().await;
}

#[tokio::test]
async fn a_node_that_is_cut_off_loses_its_guards_before_another_is_granted_them() {
    let trio = Trio::start().await;
    let cut_off = trio.leader().await;
    let guard = trio.node(cut_off).client().lock("k").ttl(Duration::from_secs(2)).await.expect("granted");
    trio.switchboard.isolate(&trio.peers[cut_off], &trio.peers);
    let other = trio.node((cut_off + 1) % 3).client();
    let next = in_time(other.lock("k").ttl(LONG).into_future()).await.expect("granted");
    assert!(!guard.is_held());
    assert_eq!(guard.lost().await, LostReason::Expired);
    assert!(next.token() > guard.token());
    trio.switchboard.heal();
    // The client is not lost with its guard.
    let late = in_time(trio.node(cut_off).client().lock("late").into_future()).await.expect("granted");
    drop((late, next));
    trio.end().await;
}

#[tokio::test]
async fn a_failed_node_says_why_and_its_guards_are_lost() {
    let disk = simdisk::mount("embedded-fails", Disk::new());
    let seams = Seams { vfs: Some(simdisk::VFS.to_owned()), ..Seams::default() };
    let node = embedded("embedded-fails".as_ref()).bind("127.0.0.1:0").seams(seams);
    let node = node.start().await.expect("it starts");
    let client = node.client();
    let guard = in_time(client.lock("k").ttl(LONG).into_future()).await.expect("granted");
    let waiter = client.clone();
    let waiting = tokio::spawn(async move { waiter.lock("k").ttl(LONG).await });
    assert!(
        tokio::time::timeout(Duration::from_millis(50), node.failed()).await.is_err(),
        "nothing is wrong yet"
    );

    // The next tick finds it.
    disk.lock().expect("nobody panicked").kill();
    let why = in_time(node.failed()).await;
    assert!(matches!(why, NodeError::Store(_)), "{why}");
    assert_eq!(in_time(guard.lost()).await, LostReason::ClientClosed);
    assert!(in_time(waiting).await.expect("no panic").is_err());
    assert!(in_time(client.lock("other").into_future()).await.is_err());
    in_time(node.shutdown()).await;
    simdisk::unmount("embedded-fails");
}

/// On one thread: with the node on the same, nothing would renew the lease meanwhile.
#[tokio::test(flavor = "current_thread")]
async fn an_application_that_blocks_its_thread_keeps_its_lock() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = alone(dir.path()).await;
    let guard = node.client().lock("k").ttl(Duration::from_secs(2)).await.expect("granted");
    std::thread::sleep(Duration::from_secs(5));
    assert!(guard.is_held(), "{:?}", guard.state());
    guard.release().await.expect("released");
    node.shutdown().await;
}

#[tokio::test]
async fn there_is_a_port_for_other_processes_only_if_one_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = alone(&dir.path().join("closed")).await;
    assert_eq!(node.client_address(), "");
    node.shutdown().await;

    let node = embedded(&dir.path().join("open")).bind("127.0.0.1:0").listen("127.0.0.1:0").name("open");
    let node = node.start().await.expect("it starts");
    let outside = in_time(Client::connect(node.client_address())).await.expect("it answers");
    let guard = in_time(node.client().lock("k").into_future()).await.expect("granted");
    let info = outside.get("k").await.expect("an answer");
    assert_eq!((info.holders[0].owner.as_str(), info.holders[0].token), ("open", guard.token()));
    outside.close().await;
    node.shutdown().await;
}

#[tokio::test]
async fn members_and_their_changes_are_told() {
    let mut trio = Trio::start().await;
    let leader = trio.leader().await;
    let other = (leader + 1) % 3;
    let mut events = trio.node(other).member_events();
    let mut joined = Vec::new();
    while joined.len() < 3 {
        if let MemberEvent::Joined(member) = in_time(events.next()).await.expect("the node is up") {
            joined.push(member.name);
        }
    }
    joined.sort();
    let mut names = trio.peers.clone();
    names.sort();
    assert_eq!(joined, names);
    eventually("one leads, and all vote", async || {
        let members = trio.node(other).members();
        let leaders: Vec<&str> =
            members.iter().filter(|member| member.leader).map(|m| m.name.as_str()).collect();
        (leaders == [&trio.peers[leader]] && members.iter().all(|member| member.voter)).then_some(())
    })
    .await;

    trio.nodes[leader].take().expect("it is up").abandon().await;
    let successor = async {
        loop {
            match events.next().await.expect("the node is up") {
                MemberEvent::LeaderChanged(Some(member)) if member.name != trio.peers[leader] => {
                    return member.name;
                }
                _ => {}
            }
        }
    };
    let successor = in_time(successor).await;
    assert!(trio.peers.contains(&successor));
    trio.nodes[other].take().expect("it is up").shutdown().await;
    in_time(async { while events.next().await.is_some() {} }).await;
    trio.end().await;
}

#[tokio::test]
async fn a_dropped_node_leaves_nothing_running() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = alone(dir.path()).await;
    let guard = node.client().lock("k").ttl(LONG).await.expect("granted");
    let token = guard.token();
    drop(node);
    // Its data can be used again: nobody holds it any more.
    let again = eventually("the folder is free", async || {
        embedded(dir.path()).bind("127.0.0.1:0").start().await.ok()
    });
    let again = again.await;
    in_time(again.ready()).await;
    let info = in_time(again.client().get("k")).await.expect("an answer");
    assert_eq!(info.holders[0].token, token, "what was granted is still there");
    again.shutdown().await;
}
