//! `raftlock serve`: runs a node until it is told to stop or cannot go on.
//!
//! A setting comes from the defaults, below the file of `--config`, below the environment, below the flags. What is
//! left is checked once, by the library, and an error names the flag. The two variables of `compose_env` lie between the
//! file and the environment.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use raftlock_server::config::Config;
use raftlock_server::host::{host_name, raise_descriptors_max};
use raftlock_server::node::{Node, NodeError, Seams};
use raftlock_server::store::StoreError;
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::compose_env::{self, ComposeEnv};
use super::failure::{Failure, chain};
use super::logging::{self, LogFormat};
use super::print::brief;
use super::values::{Bytes, Span};

/// A node that cannot go on has nothing to bring in order: others take over the sooner it is gone.
const FAILED_LIMIT: Duration = Duration::from_secs(1);

/// After this a node that is still stopping is left where it is; whatever restarts it repairs the rest.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Run a node. Without flags: a single node on 127.0.0.1:50051, with its data in ./raftlock-data.
///
/// Two more variables are understood, and what is said by a flag or a RAFTLOCK_ variable wins over them: NODE_ID=1
/// names the node node1; CLUSTER_NODES=node1:50051,node2:50051,node3:50051 gives the hosts to found a cluster of three
/// with, each at peer port 50052. A node named like one of them, and listening on 0.0.0.0, advertises that host.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read settings from this TOML file; its keys are the flags' names. The environment and flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// One layer of settings. What is absent is left to the layer below.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// Name for people, in logs and `members`. Default: the host name.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Where the node keeps its data: a local disk, used by nobody else. Default: ./raftlock-data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for clients. There is no authentication: bind what only your services reach. Default:
    /// 127.0.0.1:50051.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// How clients reach this node. Default: as it listens; the host name if that is 0.0.0.0.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Address for the other nodes. Whoever reaches it owns the cluster: keep it private. Default: 127.0.0.1:50052.
    #[arg(long, value_name = "HOST:PORT")]
    peer_listen: Option<String>,
    /// How the other nodes reach this one. Default: as it listens; the host name if that is 0.0.0.0.
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// Nodes of another cluster name are never talked to. Default: raftlock.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// Peer addresses to found or find a cluster with, port 50052 if absent; this node's own may be among them.
    #[arg(long, value_name = "A,B,C")]
    seeds: Option<Seeds>,
    /// Found a cluster together with the seeds, once so many new nodes are there. Default: 1 without other seeds,
    /// else none: the node waits for a cluster to join.
    #[arg(long, value_name = "N")]
    bootstrap_expect: Option<usize>,
    /// How many members vote in a cluster that this node founds: odd; 3 survives one failure, 5 two. Default: 3.
    #[arg(long, value_name = "N")]
    voters: Option<u32>,
    /// Lease of a lock whose request names none. Default: 30s.
    #[arg(long, value_name = "TIME")]
    default_ttl: Option<Span>,
    /// The first fencing token of a new cluster is above this.
    #[arg(long, value_name = "TOKEN")]
    token_floor: Option<u64>,
    /// Log bytes after which a snapshot is due. Default: 64MiB.
    #[arg(long, value_name = "BYTES")]
    snapshot_log_bytes: Option<Bytes>,
    /// How often the leader is heard of: above the slowest flush of the disks. Default: 60ms.
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<Span>,
    /// Shortest election timeout: at least five heartbeats. Default: 300ms.
    #[arg(long, value_name = "TIME")]
    election_min: Option<Span>,
    /// Longest election timeout. Default: 600ms.
    #[arg(long, value_name = "TIME")]
    election_max: Option<Span>,
    /// Size of a file that may be deleted when the disk is full; 0 for none. Default: 64MiB.
    #[arg(long, value_name = "BYTES")]
    ballast: Option<Bytes>,
    /// Remove a member that has been dead for so long; a learner takes the place of a voter. Default: never.
    #[arg(long, value_name = "TIME")]
    remove_dead_after: Option<Span>,
    /// Accept a data folder that forgets at a reboot, such as tmpfs. For tests and demos.
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = BoolishValueParser::new())]
    allow_volatile_data: Option<bool>,
    /// Serve gRPC reflection to clients, for grpcurl.
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = BoolishValueParser::new())]
    reflection: Option<bool>,
    /// How log lines are written; the filter is in RAFTLOCK_LOG. Default: text.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// `A,B,C` in a flag; in a file also a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "TextOrList")]
struct Seeds(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrList {
    Text(String),
    List(Vec<String>),
}

impl From<&str> for Seeds {
    fn from(list: &str) -> Seeds {
        let seeds = list.split(',').map(str::trim).filter(|seed| !seed.is_empty());
        Seeds(seeds.map(str::to_owned).collect())
    }
}

impl From<TextOrList> for Seeds {
    fn from(given: TextOrList) -> Seeds {
        match given {
            TextOrList::Text(list) => Seeds::from(list.as_str()),
            TextOrList::List(list) => Seeds(list),
        }
    }
}

impl Settings {
    /// Lays this layer over `config`.
    fn lay_over(self, config: &mut Config) {
        fn set<T>(field: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *field = value;
            }
        }
        set(&mut config.node_name, self.node_name);
        set(&mut config.data_dir, self.data_dir);
        set(&mut config.listen, self.listen);
        set(&mut config.advertise, self.advertise.map(Some));
        set(&mut config.peer_listen, self.peer_listen);
        set(&mut config.peer_advertise, self.peer_advertise.map(Some));
        set(&mut config.cluster_name, self.cluster_name);
        set(&mut config.seeds, self.seeds.map(|seeds| seeds.0));
        set(&mut config.bootstrap_expect, self.bootstrap_expect.map(Some));
        set(&mut config.voters, self.voters);
        set(&mut config.default_ttl, self.default_ttl.map(|span| span.0));
        set(&mut config.token_floor, self.token_floor);
        set(&mut config.snapshot_log_bytes, self.snapshot_log_bytes.map(|bytes| bytes.0));
        set(&mut config.heartbeat, self.heartbeat.map(|span| span.0));
        set(&mut config.election_min, self.election_min.map(|span| span.0));
        set(&mut config.election_max, self.election_max.map(|span| span.0));
        set(&mut config.ballast_bytes, self.ballast.map(|bytes| bytes.0));
        set(&mut config.remove_dead_after, self.remove_dead_after.map(|span| Some(span.0)));
        set(&mut config.allow_volatile_data, self.allow_volatile_data);
        set(&mut config.reflection, self.reflection);
    }
}

/// Runs a node.
pub fn execute(args: Args) -> Result<(), Failure> {
    let file = match &args.config {
        Some(path) => read(path)?,
        None => Settings::default(),
    };
    let log_format = args.settings.log_format.or(file.log_format).unwrap_or(LogFormat::Text);
    let config = layered(file, &ComposeEnv::read()?, args.settings, &host_name())?;
    config.validate().map_err(|error| Failure::Usage(format!("--{error}")))?;
    logging::start(logging::SERVER_FILTER, log_format)?;
    if let Err(error) = raise_descriptors_max() {
        tracing::warn!(%error, "the limit of open files stays as low as it is");
    }
    super::block_on(serve(config))
}

fn read(path: &Path) -> Result<Settings, Failure> {
    let wrong = |error: String| Failure::Usage(format!("--config {}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(&text).map_err(|error| wrong(error.to_string()))
}

fn layered(file: Settings, compose: &ComposeEnv, flags: Settings, host: &str) -> Result<Config, Failure> {
    let mut config = Config::new(host, "raftlock-data");
    file.lay_over(&mut config);
    let name = if flags.node_name.is_none() { compose.node_name()? } else { None };
    let hosts = if flags.seeds.is_none() { compose.hosts()? } else { None };
    let hosts = hosts.unwrap_or_default();
    from_compose(name, &hosts).lay_over(&mut config);
    flags.lay_over(&mut config);
    // A container's host name may be a number that nobody else knows, and another one tomorrow.
    let host = hosts.iter().find(|known| **known == config.node_name).map_or(host, String::as_str);
    config.advertise = config.advertise.or_else(|| behind_wildcard(&config.listen, host));
    config.peer_advertise = config.peer_advertise.or_else(|| behind_wildcard(&config.peer_listen, host));
    Ok(config)
}

fn from_compose(node_name: Option<String>, hosts: &[String]) -> Settings {
    let seeds = hosts.iter().map(|host| compose_env::peer_address(host)).collect();
    let given = !hosts.is_empty();
    Settings {
        node_name,
        seeds: given.then_some(Seeds(seeds)),
        bootstrap_expect: given.then_some(hosts.len()),
        ..Settings::default()
    }
}

/// What to tell others when the address listened on is no address: the host's name. A port that is chosen at the
/// start is not known here, and the library then puts the node's name before it.
fn behind_wildcard(listen: &str, host: &str) -> Option<String> {
    let (address, port) = listen.rsplit_once(':')?;
    let wildcard = matches!(address, "0.0.0.0" | "[::]");
    (wildcard && port != "0").then(|| format!("{host}:{port}"))
}

async fn serve(config: Config) -> Result<(), Failure> {
    // Before anything else, so that a signal during a long start is not lost.
    let mut stops = Stops::listen()?;
    let node = tokio::select! {
        started = Node::start(config, Seams::default()) => started.map_err(|error| cannot_go_on(&error))?,
        () = stops.next() => return Ok(()),
    };
    tokio::select! {
        () = stops.next() => {
            tracing::info!("asked to stop");
            within_limit(node.shutdown(), STOP_LIMIT, &mut stops).await
        }
        error = node.failed() => {
            if matches!(error, NodeError::Removed) {
                // As somebody wanted; it has said so in the log, and says so again when it is started again.
                return within_limit(node.shutdown(), STOP_LIMIT, &mut stops).await;
            }
            let failure = cannot_go_on(&error);
            // Whether or not the rest stops in order: why it stopped is what counts.
            let _ = within_limit(node.shutdown(), FAILED_LIMIT, &mut stops).await;
            Err(failure)
        }
    }
}

async fn within_limit(
    stop: impl Future<Output = ()>,
    limit: Duration,
    stops: &mut Stops,
) -> Result<(), Failure> {
    tokio::select! {
        () = stop => Ok(()),
        () = stops.next() => Err(Failure::Other("stopped at once by a second signal".into())),
        () = tokio::time::sleep(limit) => {
            Err(Failure::Other(format!("the node did not stop within {} and was left", brief(limit))))
        }
    }
}

/// TERM and INT.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn listen() -> Result<Stops, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::Other(format!("signals: {error}")));
        Ok(Stops { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Exit code 74 tells whoever restarts nodes to keep off: the disk does not hold what it was given.
fn cannot_go_on(error: &NodeError) -> Failure {
    let text = chain(error);
    match error {
        NodeError::Store(cause) if is_disk(cause) => Failure::Disk(text),
        // What it holds may be wrong: it must not lead, and a restart would let it.
        NodeError::Identity { .. } | NodeError::Diverged { .. } | NodeError::StaleStorage(_) => {
            Failure::Disk(text)
        }
        NodeError::Config(_) => Failure::Usage(format!("--{text}")),
        NodeError::Store(_)
        | NodeError::Listen { .. }
        | NodeError::Raft(_)
        | NodeError::NotRemoved
        | NodeError::Removed
        | NodeError::System(_)
        | NodeError::Panicked(_) => Failure::Other(text),
    }
}

/// The disk itself, not its path or rights, where it is, who uses it, or which server wrote it.
fn is_disk(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } | StoreError::DiskFull { .. } | StoreError::Io { .. } => true,
        StoreError::Poisoned(first) => is_disk(first),
        StoreError::Access { .. }
        | StoreError::Unfit { .. }
        | StoreError::Newer { .. }
        | StoreError::Foreign { .. }
        | StoreError::InUse { .. }
        | StoreError::Volatile { .. }
        | StoreError::Remote { .. }
        | StoreError::Closed
        | StoreError::Missing { .. }
        | StoreError::Misuse(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn file(text: &str) -> Settings {
        toml::from_str(text).expect("the file is well-formed")
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let given = file(
            "node-name = 'from-file'\nheartbeat = '20ms'\nvoters = 5\nseeds = ['a', 'b:1']\ndefault-ttl = 12",
        );
        let flags = Settings { node_name: Some("from-flag".into()), ..Settings::default() };
        let config = layered(given, &ComposeEnv::default(), flags, "host").expect("sound");
        assert_eq!(config.node_name, "from-flag");
        assert_eq!(config.heartbeat, Duration::from_millis(20));
        assert_eq!((config.voters, config.seeds), (5, vec!["a".to_owned(), "b:1".to_owned()]));
        assert_eq!(config.default_ttl, Duration::from_secs(12));
        assert_eq!(config.listen, "127.0.0.1:50051");
    }

    #[test]
    fn a_wildcard_is_advertised_as_the_host() {
        let advertised = |text: &str| {
            layered(file(text), &ComposeEnv::default(), Settings::default(), "h1").expect("sound").advertise
        };
        assert_eq!(advertised("listen = '0.0.0.0:7000'\nnode-name = 'n1'").as_deref(), Some("h1:7000"));
        assert_eq!(advertised("listen = '0.0.0.0:7000'\nadvertise = 'x:1'").as_deref(), Some("x:1"));
        assert_eq!(advertised("listen = '10.0.0.1:7000'"), None);
    }

    fn compose(node_id: &str, cluster_nodes: &str) -> ComposeEnv {
        ComposeEnv { node_id: Some(node_id.into()), cluster_nodes: Some(cluster_nodes.into()) }
    }

    #[test]
    fn node_id_and_cluster_nodes_name_the_node_and_its_cluster() {
        let compose = compose("2", "node1:50051,node2:50051,node3:50051");
        let given = file(
            "node-name = 'file'\nseeds = ['file']\nlisten = '0.0.0.0:50051'\npeer-listen = '0.0.0.0:50052'",
        );
        let config = layered(given, &compose, Settings::default(), "4f1b").expect("sound");
        assert_eq!(config.node_name, "node2");
        assert_eq!(config.seeds, ["node1:50052", "node2:50052", "node3:50052"]);
        assert_eq!(config.bootstrap_expect, Some(3));
        assert_eq!(config.advertise.as_deref(), Some("node2:50051"));
        assert_eq!(config.peer_advertise.as_deref(), Some("node2:50052"));
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn our_own_settings_win_over_both_and_over_what_is_wrong_in_them() {
        let flags = || Settings {
            node_name: Some("ours".into()),
            seeds: Some(Seeds(vec!["a".into()])),
            listen: Some("0.0.0.0:50051".into()),
            ..Settings::default()
        };
        let config = layered(file(""), &compose("x", "x"), flags(), "4f1b").expect("neither is read");
        assert_eq!((config.node_name.as_str(), config.bootstrap_expect), ("ours", None));
        assert_eq!((config.seeds, config.advertise.as_deref()), (vec!["a".into()], Some("4f1b:50051")));
        let expect = Settings { bootstrap_expect: Some(2), ..Settings::default() };
        let config = layered(file(""), &compose("1", "a:1,b:1,c:1"), expect, "host").expect("sound");
        assert_eq!(config.bootstrap_expect, Some(2));
        assert!(layered(file(""), &compose("x", "a:1"), Settings::default(), "host").is_err());
        assert!(layered(file(""), &compose("1", "a"), Settings::default(), "host").is_err());
    }

    #[test]
    fn a_wrong_key_in_the_file_is_named() {
        let error = toml::from_str::<Settings>("data_dir = 'x'").expect_err("the key has a dash");
        assert!(error.to_string().contains("data_dir"), "{error}");
    }

    #[test]
    fn only_the_disk_itself_is_74() {
        let source = || Arc::new(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        let code = |error| cannot_go_on(&NodeError::Store(error)).exit_code();
        assert_eq!(code(StoreError::Io { file: "raft.db", doing: "commit", source: source() }), 74);
        assert_eq!(code(StoreError::Access { what: "/x".into(), doing: "making it", source: source() }), 1);
        assert_eq!(code(StoreError::InUse { file: "raft.db" }), 1);
        assert_eq!(cannot_go_on(&NodeError::Raft("stopped".into())).exit_code(), 1);
        assert_eq!(cannot_go_on(&NodeError::Identity { what: "boot" }).exit_code(), 74);
        assert_eq!(cannot_go_on(&NodeError::StaleStorage("rolled back".into())).exit_code(), 74);
    }
}
