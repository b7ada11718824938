//! Nodes of the bench's own: processes of this program, with fresh data under the current folder.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use raftlock_proto::v1::StatusResponse;
use raftlock_server::testing::wires::FreePorts;
use tokio::process::{Child, Command};

use crate::cli::calls;
use crate::cli::failure::Failure;
use crate::cli::run::die_with;
use crate::cli::scratch::{Folder, free_ports};

/// For an election among nodes that have just started, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(20);

/// How long a node may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A cluster on this machine. Dropped, its nodes are killed and its data is gone.
#[derive(Debug)]
pub struct Local {
    nodes: Vec<Node>,
    // After the nodes: they write into it.
    folder: Folder,
    /// Kept so that a node that is down finds its addresses free again.
    _ports: FreePorts,
}

#[derive(Debug)]
struct Node {
    name: String,
    address: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Local {
    /// Starts so many nodes with `settings` and else the defaults, and waits until they serve.
    pub async fn start(count: usize, settings: &[&str]) -> Result<Local, Failure> {
        let here = std::env::current_dir().map_err(|error| Failure::Other(format!("here: {error}")))?;
        let folder = Folder::within(&here, "bench")?;
        let ports = free_ports(2 * count)?;
        let (clients, peers) = ports.addresses.split_at(count);
        let nodes = (0..count).map(|at| {
            let name = format!("bench-{}", at + 1);
            let address = clients[at].clone();
            let data = folder.path().join(&name).display().to_string();
            let mut arguments = vec![
                "serve".to_owned(),
                format!("--node-name={name}"),
                format!("--data-dir={data}"),
                format!("--listen={address}"),
                format!("--peer-listen={}", peers[at]),
                format!("--seeds={}", peers.join(",")),
                format!("--bootstrap-expect={count}"),
                format!("--cluster-name=bench-{}", std::process::id()),
                "--ballast=0".to_owned(),
            ];
            arguments.extend(settings.iter().map(ToString::to_string));
            let log = folder.path().join(format!("{name}.log"));
            Node { name, address, arguments, log, child: None }
        });
        let mut local = Local { nodes: nodes.collect(), folder, _ports: ports };
        for at in 0..count {
            local.begin(at)?;
        }
        local.ready().await?;
        Ok(local)
    }

    /// Starts a node that is down.
    pub fn begin(&mut self, at: usize) -> Result<(), Failure> {
        let node = &mut self.nodes[at];
        let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", node.name));
        let program = std::env::current_exe().map_err(failed)?;
        let log = std::fs::File::options().create(true).append(true).open(&node.log).map_err(failed)?;
        let mut command = Command::new(program);
        command.args(&node.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // What is set for the bench is not meant for its nodes.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("RAFTLOCK_") || ["NODE_ID", "CLUSTER_NODES"].contains(&name.as_str()) {
                command.env_remove(name);
            }
        }
        // However the bench ends, its nodes do not outlive it.
        let parent = std::process::id();
        // SAFETY: `die_with` makes system calls that are safe after a fork, and allocates nothing.
        unsafe { command.pre_exec(move || die_with(parent)) };
        node.child = Some(command.kill_on_drop(true).spawn().map_err(failed)?);
        Ok(())
    }

    /// Waits until every node that is up serves.
    pub async fn ready(&mut self) -> Result<(), Failure> {
        for at in 0..self.nodes.len() {
            let waiting = async {
                loop {
                    let node = &mut self.nodes[at];
                    let Some(child) = &mut node.child else { return Ok(()) };
                    if let Ok(Some(status)) = child.try_wait() {
                        let said = std::fs::read_to_string(&node.log).unwrap_or_default();
                        return Err(Failure::Other(format!("{} ended with {status}:\n{said}", node.name)));
                    }
                    if calls::status(&node.address).await.is_ok_and(|status| status.ready) {
                        return Ok(());
                    }
                    tokio::time::sleep(LOOK).await;
                }
            };
            let waited = tokio::time::timeout(READY_LIMIT, waiting).await;
            waited.unwrap_or_else(|_| Err(Failure::NoLeader("the nodes found no leader".to_owned())))?;
        }
        Ok(())
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The folder with the data.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The processes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.child.as_ref()?.id()).collect()
    }

    /// The process of one, if it is up.
    pub fn pid(&self, at: usize) -> Option<u32> {
        self.nodes[at].child.as_ref()?.id()
    }

    /// Which node leads, as soon as one says so of itself.
    pub async fn leader(&self) -> Result<usize, Failure> {
        let looking = async {
            loop {
                for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.child.is_some()) {
                    if calls::status(&node.address).await.is_ok_and(|status| leads(&status)) {
                        return at;
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let found = tokio::time::timeout(READY_LIMIT, looking).await;
        found.map_err(|_| Failure::NoLeader("the nodes found no leader".to_owned()))
    }

    /// `kill -9`.
    pub async fn kill(&mut self, at: usize) -> Result<(), Failure> {
        let node = &mut self.nodes[at];
        let Some(mut child) = node.child.take() else { return Ok(()) };
        child.kill().await.map_err(|error| Failure::Other(format!("{}: {error}", node.name)))
    }

    /// Ends all nodes as an operator does.
    pub async fn stop(mut self) -> Result<(), Failure> {
        for node in &mut self.nodes {
            let Some(mut child) = node.child.take() else { continue };
            let ended = |error: &dyn std::fmt::Display| Failure::Other(format!("{}: {error}", node.name));
            if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                    .map_err(|error| ended(&error))?;
            }
            let status = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
            let status = status.map_err(|late| ended(&late))?.map_err(|error| ended(&error))?;
            if !status.success() {
                return Err(ended(&status));
            }
        }
        Ok(())
    }
}

/// A node that says of itself that it leads.
pub fn leads(status: &StatusResponse) -> bool {
    status.node.as_ref().is_some_and(|node| node.role == "leader")
}
