//! `raftlock serve` as real processes: started, killed with -9, frozen, continued, stopped in order.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use raftlock_proto::v1::admin_client::AdminClient;
use raftlock_proto::v1::{MemberStatus, StatusRequest, StatusResponse};
use raftlock_tests::cluster::eventually;
use raftlock_tests::wires::FreePorts;

/// A cluster of processes. What is still running when it is dropped is killed, by id.
pub struct Processes {
    pub nodes: Vec<NodeProcess>,
    dir: tempfile::TempDir,
    /// Kept so that a node that is down finds its addresses free again.
    ports: Vec<FreePorts>,
}

pub struct NodeProcess {
    pub name: String,
    pub listen: String,
    pub peer: String,
    pub data: PathBuf,
    args: Vec<String>,
    /// Files and connections that it may have open, if not as many as the test itself.
    pub descriptors_max: Option<u32>,
    child: Option<Child>,
    starts: usize,
}

impl Processes {
    /// Starts `count` nodes that found one cluster, with more flags if wanted, and waits until all serve.
    pub async fn start(count: usize, flags: &[&str]) -> Processes {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ports = FreePorts::take(count * 2);
        let (peers, listens) = ports.addresses.split_at(count);
        let expect = count.to_string();
        let founders = ["--seeds", &peers.join(","), "--bootstrap-expect", &expect];
        let flags = [&founders, flags].concat();
        let nodes = (0..count).map(|at| {
            let name = format!("n{}", at + 1);
            NodeProcess::new(name, &listens[at], &peers[at], dir.path(), &flags)
        });
        let nodes = nodes.collect();
        let mut processes = Processes { nodes, dir, ports: vec![ports] };
        for at in 0..count {
            processes.spawn(at);
        }
        processes.ready().await;
        processes
    }

    /// Starts one more node, which is to join through the one at `seed`.
    pub fn add(&mut self, seed: usize) -> usize {
        let ports = FreePorts::take(2);
        let at = self.nodes.len();
        let flags = ["--seeds", &self.nodes[seed].peer.clone()];
        let (peer, listen) = (&ports.addresses[0], &ports.addresses[1]);
        let node = NodeProcess::new(format!("n{}", at + 1), listen, peer, self.dir.path(), &flags);
        self.nodes.push(node);
        self.ports.push(ports);
        self.spawn(at);
        at
    }

    /// Starts a node that is down.
    pub fn spawn(&mut self, at: usize) {
        let dir = self.dir.path().to_owned();
        let node = &mut self.nodes[at];
        assert!(node.child.is_none(), "{} is up", node.name);
        node.starts += 1;
        let log = File::create(dir.join(format!("{}.{}.log", node.name, node.starts))).expect("a log file");
        let binary = env!("CARGO_BIN_EXE_raftlock");
        let mut command = match node.descriptors_max {
            None => Command::new(binary),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &most.to_string(), binary]);
                shell
            }
        };
        let child = command
            .args(&node.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("raftlock starts");
        node.child = Some(child);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self, at: usize) {
        let mut child = self.nodes[at].child.take().expect("it is up");
        child.kill().expect("ours");
        child.wait().expect("ours");
    }

    /// Sends a signal by number.
    pub fn signal(&self, at: usize, signal: i32) {
        signal_process(self.pid(at), signal);
    }

    /// SIGTERM, and its exit code.
    pub async fn terminate(&mut self, at: usize) -> Option<i32> {
        self.signal(at, libc::SIGTERM);
        let mut child = self.nodes[at].child.take().expect("it is up");
        eventually("the node ends", async || child.try_wait().expect("ours")).await.code()
    }

    /// The exit code of a node that ended by itself, once it has; the inner `None` is a signal.
    pub fn ended(&mut self, at: usize) -> Option<Option<i32>> {
        let child = self.nodes[at].child.as_mut().expect("it was started");
        child.try_wait().expect("ours").map(|status| status.code())
    }

    pub fn pid(&self, at: usize) -> u32 {
        self.nodes[at].child.as_ref().expect("it is up").id()
    }

    /// Waits until every node that is up serves.
    pub async fn ready(&self) {
        for (at, _) in self.nodes.iter().enumerate().filter(|(_, node)| node.child.is_some()) {
            let ready =
                eventually("the node serves", async || self.status(at).await.filter(|status| status.ready));
            ready.await;
        }
    }

    /// A node's own view, if it answers.
    pub async fn status(&self, at: usize) -> Option<StatusResponse> {
        let asked = async {
            let mut admin = AdminClient::connect(format!("http://{}", self.nodes[at].listen)).await.ok()?;
            Some(admin.status(StatusRequest {}).await.ok()?.into_inner())
        };
        tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?
    }

    /// Which node leads and says so itself.
    pub async fn leader(&self) -> usize {
        eventually("somebody leads", async || {
            for at in 0..self.nodes.len() {
                if self.nodes[at].child.is_none() {
                    continue;
                }
                let Some(status) = self.status(at).await else { continue };
                if status.ready && status.node.is_some_and(|node| node.role == "leader") {
                    return Some(at);
                }
            }
            None
        })
        .await
    }

    pub fn endpoints(&self) -> String {
        let endpoints: Vec<String> =
            self.nodes.iter().map(|node| format!("http://{}", node.listen)).collect();
        endpoints.join(",")
    }

    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until the node at `seen_by` sees so many voters, the one named among them.
    pub async fn votes(&self, seen_by: usize, name: &str, voters: usize) {
        eventually(&format!("{name} votes, one of {voters}"), async || {
            let members = self.status(seen_by).await?.members;
            let votes = |member: &&MemberStatus| member.role == "voter";
            let is_there = members.iter().filter(votes).any(|m| m.name == name && m.state == "alive");
            (is_there && members.iter().filter(votes).count() == voters).then_some(())
        })
        .await;
    }

    /// What a node has logged since its last start.
    pub fn log(&self, at: usize) -> String {
        let node = &self.nodes[at];
        let path = self.dir.path().join(format!("{}.{}.log", node.name, node.starts));
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

impl NodeProcess {
    fn new(name: String, listen: &str, peer: &str, folder: &Path, flags: &[&str]) -> NodeProcess {
        let data = folder.join(&name);
        let own = [
            ("--node-name", name.as_str()),
            ("--listen", listen),
            ("--peer-listen", peer),
            ("--data-dir", data.to_str().expect("a path of ASCII letters")),
            ("--ballast", "0"),
        ];
        let own = own.into_iter().flat_map(|(flag, value)| [flag, value]);
        let all = ["serve", "--allow-volatile-data"].into_iter().chain(own).chain(flags.iter().copied());
        let args = all.map(str::to_owned).collect();
        let (listen, peer) = (listen.to_owned(), peer.to_owned());
        NodeProcess { name, listen, peer, data, args, descriptors_max: None, child: None, starts: 0 }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for at in 0..self.nodes.len() {
            if std::thread::panicking() {
                eprintln!("--- log of {}\n{}", self.nodes[at].name, self.log(at));
            }
            if let Some(mut child) = self.nodes[at].child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Sends a signal to a process that the test started.
pub fn signal_process(pid: u32, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory of ours; the pid is that of a child not yet waited for.
    let sent = unsafe { libc::kill(pid as libc::pid_t, signal) };
    assert_eq!(sent, 0, "signal {signal} to process {pid}");
}

/// Processor time that a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    ticks as f64 / 100.0
}
