//! Nodes: processes of the release binary, each at its host.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use raftlock_proto::v1::admin_client::AdminClient;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_proto::v1::{GetLockRequest, StatusRequest, StatusResponse};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Endpoint;

use super::place::{CLIENT_PORT, Host, PEER_PORT};

/// Nodes that found the cluster.
pub(crate) const FOUNDERS: usize = 3;

/// The shortest election timeout, as shipped.
pub(crate) const ELECTION: Duration = Duration::from_millis(300);

/// How long anything may take when all is well. Far above what it takes: the machine is full of processes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a node may take to say how it is.
const ANSWER: Duration = Duration::from_secs(1);

/// The exit code of a node whose disk failed, or counts no more.
pub(crate) const DISK_FAILED: i32 = 74;

/// All nodes of one cluster, those that have not begun included.
pub(crate) struct Nodes {
    binary: PathBuf,
    folder: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    host: Host,
    data: PathBuf,
    /// Besides the harness's own.
    environment: Vec<(String, String)>,
    /// Bytes of its ballast file.
    ballast: &'static str,
    child: Option<Child>,
    starts: usize,
}

impl Nodes {
    /// None of them has begun.
    pub(crate) fn new(binary: &Path, folder: &Path) -> Nodes {
        let node = |host: Host| {
            let data = folder.join("data").join(host.name());
            Node { host, data, environment: Vec::new(), ballast: "0", child: None, starts: 0 }
        };
        Nodes {
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            nodes: Host::nodes().map(node).collect(),
        }
    }

    /// Every start from here on sees these variables.
    pub(crate) fn set_environment(&mut self, host: Host, environment: &[(&str, String)]) {
        let owned = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        self.nodes[host.at()].environment = owned.collect();
    }

    /// Every start from here on has a ballast file of this size.
    pub(crate) fn set_ballast(&mut self, host: Host, ballast: &'static str) {
        self.nodes[host.at()].ballast = ballast;
    }

    /// Where a node keeps its data.
    pub(crate) fn data(&self, host: Host) -> &Path {
        &self.nodes[host.at()].data
    }

    /// Starts a node that is down.
    pub(crate) fn start(&mut self, host: Host) -> anyhow::Result<()> {
        let founders: Vec<String> = founders().map(|host| format!("{}:{PEER_PORT}", host.shared())).collect();
        let node = &mut self.nodes[host.at()];
        ensure!(node.child.is_none(), "{} is up", host.name());
        std::fs::create_dir_all(&node.data)?;
        node.starts += 1;
        let log = File::create(log_file(&self.folder, host, node.starts))?;
        let mut command = host.command(self.binary.to_str().context("a path of plain letters")?);
        command
            .args(["serve", "--node-name", &host.name(), "--allow-volatile-data"])
            .arg("--data-dir")
            .arg(&node.data);
        command.args(["--listen", &format!("{}:{CLIENT_PORT}", host.inside())]);
        command.args(["--advertise", &format!("{}:{CLIENT_PORT}", host.shared())]);
        command.args(["--peer-listen", &format!("{}:{PEER_PORT}", host.inside())]);
        command.args(["--peer-advertise", &format!("{}:{PEER_PORT}", host.shared())]);
        command.args(["--seeds", &founders.join(","), "--ballast", node.ballast]);
        if host.at() < FOUNDERS {
            command.args(["--bootstrap-expect", &FOUNDERS.to_string()]);
        }
        command.envs(node.environment.iter().map(|(name, value)| (name, value)));
        let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("ip, of iproute2")?;
        node.child = Some(child);
        Ok(())
    }

    /// Starts the founders, and waits until they serve.
    pub(crate) async fn found(&mut self) -> anyhow::Result<()> {
        founders().try_for_each(|host| self.start(host))?;
        self.ready().await
    }

    /// Those that are up.
    pub(crate) fn up(&self) -> Vec<Host> {
        self.nodes.iter().filter(|node| node.child.is_some()).map(|node| node.host).collect()
    }

    pub(crate) fn pid(&self, host: Host) -> anyhow::Result<u32> {
        let child = self.nodes[host.at()].child.as_ref();
        Ok(child.with_context(|| format!("{} is down", host.name()))?.id())
    }

    /// Sends a signal to a node that is up.
    pub(crate) fn signal(&self, host: Host, signal: Signal) -> anyhow::Result<()> {
        signal_process(self.pid(host)?, signal)
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self, host: Host) -> anyhow::Result<()> {
        self.signal(host, Signal::KILL)?;
        let mut child = self.nodes[host.at()].child.take().expect("it had a process id");
        child.wait()?;
        Ok(())
    }

    /// Waits until a node has ended by itself, or because it was asked to: its exit code.
    pub(crate) async fn end_of(&mut self, host: Host, limit: Duration) -> anyhow::Result<Option<i32>> {
        let child = self.nodes[host.at()].child.as_mut().context("it is down")?;
        let ended = within(limit, async || child.try_wait().transpose()).await;
        let status = ended.with_context(|| format!("{} is still up after {limit:?}", host.name()))??;
        self.nodes[host.at()].child = None;
        Ok(status.code())
    }

    /// Whether it has ended by itself, and how; it is down then.
    pub(crate) fn has_ended(&mut self, host: Host) -> anyhow::Result<Option<Option<i32>>> {
        let node = &mut self.nodes[host.at()];
        let Some(child) = &mut node.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            node.child = None;
        }
        Ok(status.map(|status| status.code()))
    }

    /// Throws its data away. It is down.
    pub(crate) fn wipe(&self, host: Host) -> anyhow::Result<()> {
        let node = &self.nodes[host.at()];
        ensure!(node.child.is_none(), "{} is up", host.name());
        for entry in std::fs::read_dir(&node.data)? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    /// A node's own view, if it answers. It is asked beside all weather.
    pub(crate) async fn status(&self, host: Host) -> Option<StatusResponse> {
        let asked = async {
            let mut admin = AdminClient::new(endpoint(host).connect().await.ok()?);
            Some(admin.status(StatusRequest {}).await.ok()?.into_inner())
        };
        tokio::time::timeout(ANSWER, asked).await.ok()?
    }

    /// The token under which an exclusive lock is held, if it is.
    pub(crate) async fn holder(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let host = *self.up().first().context("a node is up")?;
        let mut node = RaftLockClient::new(endpoint(host).connect().await?);
        let answer = node.get_lock(GetLockRequest { resource_id: name.to_owned() }).await?.into_inner();
        Ok(answer.holders.first().map(|holder| holder.fencing_token))
    }

    /// Waits until every node that is up serves.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        for host in self.up() {
            let ready =
                within(PATIENCE, async || self.status(host).await.filter(|status| status.ready)).await;
            ready.with_context(|| format!("{} does not serve after {PATIENCE:?}", host.name()))?;
        }
        Ok(())
    }

    /// Which node leads and says so itself.
    pub(crate) async fn leader(&self) -> anyhow::Result<Host> {
        let found = within(PATIENCE, async || {
            for host in self.up() {
                let Some(status) = self.status(host).await else { continue };
                if status.ready && status.node.is_some_and(|node| node.role == "leader") {
                    return Some(host);
                }
            }
            None
        });
        found.await.with_context(|| format!("nobody leads after {PATIENCE:?}"))
    }

    /// A node that follows.
    pub(crate) async fn follower(&self) -> anyhow::Result<Host> {
        let leader = self.leader().await?;
        self.up().into_iter().find(|host| *host != leader).context("a follower")
    }

    /// Nobody holds or waits for anything, no session lives, and all nodes have applied the same.
    pub(crate) async fn is_quiet(&self) -> bool {
        let mut views = Vec::new();
        for host in self.up() {
            let Some(seen) = self.status(host).await else { return false };
            views.push((seen.applied_index, seen.last_token, seen.sessions, seen.locks, seen.waiters));
        }
        views.iter().all(|view| *view == (views[0].0, views[0].1, 0, 0, 0))
    }

    /// Runs a command of the command line against the cluster, and gives what it said.
    pub(crate) async fn order(&self, arguments: &[impl AsRef<str>]) -> anyhow::Result<String> {
        let endpoints: Vec<String> =
            self.up().iter().map(|host| format!("{}:{CLIENT_PORT}", host.inside())).collect();
        let mut command = tokio::process::Command::new(&self.binary);
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        command.args(&arguments).args(["--endpoints", &endpoints.join(",")]).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.stdin(Stdio::null()).output()).await??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{arguments:?} ended with {}: {said}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(said)
    }

    /// Waits until these nodes vote, as they are now and not as they were before they lost a disk, and nobody else does.
    pub(crate) async fn vote(&self, hosts: &[Host]) -> anyhow::Result<()> {
        let all_vote = within(PATIENCE, async || {
            let leader = self.leader().await.ok()?;
            let members = self.status(leader).await?.members;
            let voters: Vec<_> = members.iter().filter(|member| member.role == "voter").collect();
            for host in hosts {
                let id = self.status(*host).await.filter(|seen| seen.ready)?.node?.id;
                voters.iter().find(|member| member.id == id && (member.leader || member.state == "alive"))?;
            }
            (voters.len() == hosts.len()).then_some(())
        });
        if all_vote.await.is_none() {
            bail!("not the voters {hosts:?} after {PATIENCE:?}: {}", self.scene().await);
        }
        Ok(())
    }

    /// What every node says of itself, for people.
    pub(crate) async fn scene(&self) -> String {
        let mut scene = String::new();
        for node in &self.nodes {
            let host = node.host;
            let said = match (&node.child, self.status(host).await) {
                (None, _) => continue,
                (Some(_), None) => "does not answer".to_owned(),
                (Some(_), Some(seen)) => format!(
                    "{} ready {} term {} applied {}/{}, {} sessions, {} locks, {} waiters, members {:?}",
                    seen.node.map(|node| node.role).unwrap_or_default(),
                    seen.ready,
                    seen.term,
                    seen.applied_index,
                    seen.last_log_index,
                    seen.sessions,
                    seen.locks,
                    seen.waiters,
                    seen.members.iter().map(|m| (&*m.name, &*m.role, &*m.state)).collect::<Vec<_>>()
                ),
            };
            scene += &format!("{}: {said}; ", host.name());
        }
        scene
    }

    /// What a node has logged since its last start.
    pub(crate) fn log(&self, host: Host) -> String {
        std::fs::read_to_string(log_file(&self.folder, host, self.nodes[host.at()].starts))
            .unwrap_or_default()
    }

    /// No node has panicked in any of its lives.
    pub(crate) fn check_logs(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            for start in 1..=node.starts {
                let file = log_file(&self.folder, node.host, start);
                let log = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
                    bail!("{} panicked: {line}", node.host.name());
                }
            }
        }
        Ok(())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for host in self.up() {
            let _ = self.kill(host);
        }
    }
}

/// The hosts of those that found the cluster.
pub(crate) fn founders() -> impl Iterator<Item = Host> {
    Host::nodes().take(FOUNDERS)
}

fn log_file(folder: &Path, host: Host, start: usize) -> PathBuf {
    folder.join(format!("{}.{start}.log", host.name()))
}

fn endpoint(host: Host) -> Endpoint {
    let endpoint = Endpoint::from_shared(format!("http://{}:{CLIENT_PORT}", host.inside()));
    endpoint.expect("an address").connect_timeout(ANSWER).timeout(PATIENCE)
}

/// Sends a signal to a process that the harness started and has not waited for.
pub(crate) fn signal_process(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid as i32).context("a process id")?;
    kill_process(pid, signal).with_context(|| format!("signal {signal:?} to process {pid:?}"))
}

/// Looks again and again until there is something, or the time is over.
pub(crate) async fn within<T>(limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        if let Some(seen) = look().await {
            return Some(seen);
        }
        if tokio::time::Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
