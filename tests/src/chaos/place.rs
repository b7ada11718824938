//! Hosts: a network namespace each, connected to the harness's own namespace and to nothing else.
//!
//! Host `h` has the address `10.77.h.2`; the harness is at `10.77.h.1`. A node is known to others by a shared address,
//! `10.77.0.h`, which is the harness's: whatever one host says to another goes through the harness's proxies, which know
//! by the sender's address who speaks.
//!
//! The harness itself runs in namespaces of its own for network, mounts and processes: the machine sees nothing of it,
//! and whatever is left of a run that is killed goes with it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

pub(crate) const CLIENT_PORT: u16 = 50051;
pub(crate) const PEER_PORT: u16 = 50052;

/// Nodes and clients that a run may have, at most.
pub(crate) const NODES: usize = 5;
pub(crate) const CLIENTS: usize = 6;

/// Clients are hosts from here on.
const FIRST_CLIENT: u8 = 100;

/// One host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Host(u8);

impl Host {
    /// The node at a place, from zero.
    pub(crate) fn node(at: usize) -> Host {
        Host(at as u8 + 1)
    }

    /// The client at a place, from zero.
    pub(crate) fn client(at: usize) -> Host {
        Host(FIRST_CLIENT + at as u8)
    }

    /// All nodes.
    pub(crate) fn nodes() -> impl Iterator<Item = Host> {
        (0..NODES).map(Host::node)
    }

    /// All clients.
    pub(crate) fn clients() -> impl Iterator<Item = Host> {
        (0..CLIENTS).map(Host::client)
    }

    pub(crate) fn is_node(self) -> bool {
        self.0 < FIRST_CLIENT
    }

    /// Its place among the nodes, or among the clients.
    pub(crate) fn at(self) -> usize {
        usize::from(if self.is_node() { self.0 - 1 } else { self.0 - FIRST_CLIENT })
    }

    /// As in `n1` and `c1`; the namespace has this name too.
    pub(crate) fn name(self) -> String {
        format!("{}{}", if self.is_node() { 'n' } else { 'c' }, self.at() + 1)
    }

    /// Where it is.
    pub(crate) fn inside(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.0, 2)
    }

    /// Where others reach it.
    pub(crate) fn shared(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.0)
    }

    /// Whose address it is.
    pub(crate) fn at_address(address: Ipv4Addr) -> Option<Host> {
        match address.octets() {
            [10, 77, host, 2] if host > 0 => Some(Host(host)),
            _ => None,
        }
    }

    /// A program that runs there, with nothing to read.
    pub(crate) fn command(self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(), program]).stdin(Stdio::null());
        command
    }
}

/// Set for a harness that runs in namespaces of its own.
const INSIDE: &str = "RAFTLOCK_CHAOS_INSIDE";

/// Begins this program again in namespaces of its own, unless it is there already, and makes the hosts.
///
/// # Errors
/// What is missing on this machine.
pub(crate) fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return make_hosts();
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "chaos takes root: it makes network namespaces and mounts of its own"
    );
    let mut again = Command::new("unshare");
    again.args([
        "--net",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    again.arg(std::env::current_exe().context("the path of this program")?).args(std::env::args_os().skip(1));
    // Its own process is replaced: whoever ends it ends all.
    Err(again.env(INSIDE, "1").exec()).context("unshare, of util-linux")
}

fn make_hosts() -> anyhow::Result<()> {
    std::fs::create_dir_all("/run/netns").context("/run/netns")?;
    run(Command::new("mount").args(["-t", "tmpfs", "none", "/run/netns"]))?;
    let mut hub = String::from("link set lo up\n");
    for host in Host::nodes() {
        hub += &format!("addr add {}/32 dev lo\n", host.shared());
    }
    for host in Host::nodes().chain(Host::clients()) {
        let (name, number, inside) = (host.name(), host.0, host.inside());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        hub += &format!("link add h{number} type veth peer name eth netns {name}\n");
        hub += &format!("addr add 10.77.{number}.1/24 dev h{number}\nlink set h{number} up\n");
        batch(&[], &hub)?;
        hub.clear();
        let own = format!(
            "link set lo up\naddr add {inside}/24 dev eth\nlink set eth up\nroute add default via 10.77.{number}.1\n"
        );
        batch(&["-n", &name], &own)?;
    }
    Ok(())
}

fn batch(options: &[&str], lines: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip");
    let mut ip =
        ip.args(options).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip, of iproute2")?;
    ip.stdin.take().expect("it is piped").write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip refused:\n{lines}");
    Ok(())
}

/// Runs a command to its end, which must be good.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
