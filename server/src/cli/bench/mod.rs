//! `raftlock bench`: what a cluster does under load, seen from its clients, with what that cost beside it.
//!
//! ```text
//! floor     what the disk can do, which no replicated write beats
//! local     a cluster of the bench's own: processes of this program, fresh data
//! load      closed and open loops
//! crowd     sessions by the thousand, spoken by hand
//! masses    what many of them cost: renewed, left to end, holding, waiting, restarted
//! pairs     acquire and release: each client a lock of its own, or all the same one
//! failover  the leader is killed, or asked to go, under load
//! cost      processor time, log bytes, batches, elections: read before and after
//! figures   a line of results
//! ```

mod cost;
mod crowd;
mod failover;
mod figures;
mod floor;
mod load;
mod local;
mod masses;
mod pairs;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use raftlock_server::clock::{Clock, SystemClock};

use self::cost::Reading;
use self::figures::Row;
use self::load::Measured;
use self::local::Local;
use super::failure::Failure;
use super::logging::{self, LogFormat};
use super::print;
use super::target::Target;

/// How long the disk is measured before each run: thousands of flushes on a fast disk, tens on a slow one.
const FLOOR_TIME: Duration = Duration::from_millis(500);

/// Tasks of one process that is to measure, not to be measured.
const AT_ONCE_MAX: u32 = 100_000;

/// Between two looks at the progress bar.
const PROGRESS: Duration = Duration::from_millis(200);

/// Measure a cluster: throughput, latency, and what they cost the servers. Starts three nodes of its own, or loads others.
///
/// Workloads: `floor` writes 4 KiB and flushes, alone and three at once. `pairs` acquires and releases, each client a lock
/// of its own. `hot` has all clients want one lock; its times are from a release to the next holder. `shared` has all
/// hold one lock together. `failover` kills the leader under load, `transfer` has it hand over; their times are the
/// longest without a grant. `steady` is `pairs` for minutes, in which elections are counted.
///
/// With `--clients` for how many: `renew` keeps sessions alive, 10 s each, a thousand on a stream, alone and beside 64
/// others. `expire` has them hold a lock each and end at once; its times are those of 64 others. `sessions`, `connections`,
/// `held` and `waiters` say what each costs in memory, and how 64 others fare. `restart` kills all nodes while locks are
/// held; its time is until the next grant. `snapshot` has 64 others work while snapshots of held locks are taken, and one
/// travels to a node that was away. `mixed` is 93 % renewals, 6 % reads and 1 % pairs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[arg(value_enum)]
    workload: Workload,
    /// How many at once, one run for each. Default: 1,64,256; 64 where a leader changes.
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    clients: Vec<u32>,
    /// How long each run is measured.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    secs: u64,
    /// How long `steady` is.
    #[arg(long, value_name = "MINUTES", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=1_440))]
    mins: u64,
    /// Start so many nodes here, with fresh data under this folder; they are gone afterwards. 0: load the servers of
    /// `--endpoints`.
    #[arg(long, value_name = "NODES", default_value = "3", value_parser = clap::value_parser!(u32).range(0..=7))]
    local: u32,
    /// Streams of a session, as the SDK has them, or a call for each operation.
    #[arg(long, value_enum, default_value = "session")]
    api: Api,
    /// So many operations a second, whether or not they are answered: times then count from when each was due. For
    /// `pairs`.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// How often the leader is killed, or hands over.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Print a JSON object for each run.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    Floor,
    Pairs,
    Hot,
    Shared,
    Mixed,
    Failover,
    Transfer,
    Steady,
    Renew,
    Expire,
    Sessions,
    Connections,
    Held,
    Waiters,
    Restart,
    Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Api {
    Session,
    Unary,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Workload::Floor => "floor",
            Workload::Pairs => "pairs",
            Workload::Hot => "hot",
            Workload::Shared => "shared",
            Workload::Mixed => "mixed",
            Workload::Failover => "failover",
            Workload::Transfer => "transfer",
            Workload::Steady => "steady",
            Workload::Renew => "renew",
            Workload::Expire => "expire",
            Workload::Sessions => "sessions",
            Workload::Connections => "connections",
            Workload::Held => "held",
            Workload::Waiters => "waiters",
            Workload::Restart => "restart",
            Workload::Snapshot => "snapshot",
        }
    }

    /// What the nodes are told beside the defaults.
    fn settings(self) -> &'static [&'static str] {
        match self {
            // So that one is due within seconds, and is nearly always under way.
            Workload::Snapshot => &["--snapshot-log-bytes=4MiB"],
            _ => &[],
        }
    }

    fn clients_by_default(self) -> &'static [u32] {
        match self {
            Workload::Floor => &[1, 3],
            Workload::Pairs | Workload::Hot | Workload::Shared | Workload::Mixed => &[1, 64, 256],
            Workload::Failover | Workload::Transfer => &[64],
            Workload::Steady => &[256],
            Workload::Renew | Workload::Expire | Workload::Sessions => &[10_000],
            Workload::Waiters => &[10_000],
            Workload::Connections => &[1_000],
            Workload::Held | Workload::Restart | Workload::Snapshot => &[100_000],
        }
    }
}

impl Api {
    fn name(self) -> &'static str {
        match self {
            Api::Session => "session",
            Api::Unary => "unary",
        }
    }
}

/// Runs the workload once for each number of clients, and prints.
pub fn execute(args: Args, target: Result<Target, Failure>) -> Result<(), Failure> {
    logging::start("error", LogFormat::Text)?;
    check(&args)?;
    let rows = super::block_on(async {
        tokio::select! {
            rows = measure(&args, target) => rows,
            _ = tokio::signal::ctrl_c() => Err(Failure::Other("interrupted".into())),
        }
    })?;
    if args.json { figures::print_json(&rows) } else { figures::print_table(&rows) }
}

fn check(args: &Args) -> Result<(), Failure> {
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
    let changes_leader = matches!(args.workload, Workload::Failover | Workload::Transfer);
    if args.rate.is_some() && args.workload != Workload::Pairs {
        return usage("--rate is for pairs");
    }
    if args.api == Api::Unary && !matches!(args.workload, Workload::Pairs | Workload::Steady) {
        return usage("--api unary is for pairs and steady");
    }
    if args.workload == Workload::Failover && args.local < 3 {
        return usage("failover kills nodes: with --local 3 or more, nodes of its own");
    }
    if args.workload == Workload::Restart && args.local == 0 {
        return usage("restart kills nodes: with --local, nodes of its own");
    }
    if args.workload == Workload::Snapshot && args.local < 3 {
        return usage("snapshot has a node away: with --local 3 or more, nodes of its own");
    }
    let is_crowded = matches!(
        args.workload,
        Workload::Pairs | Workload::Hot | Workload::Shared | Workload::Mixed | Workload::Steady
    );
    if (is_crowded || changes_leader) && args.clients.iter().any(|&clients| clients > AT_ONCE_MAX) {
        return usage("--clients: at most 100000 at once");
    }
    if changes_leader && args.local == 1 {
        return usage("transfer needs another node to lead: --local 3 or more");
    }
    if args.workload == Workload::Floor && args.local == 0 {
        return usage("floor measures the disk of this folder: without --local 0");
    }
    Ok(())
}

async fn measure(args: &Args, target: Result<Target, Failure>) -> Result<Vec<Row>, Failure> {
    let counts = match (args.clients.is_empty(), args.rate) {
        // At a rate, how many are at work follows from it.
        (true, Some(_)) => &[1],
        (true, None) => args.workload.clients_by_default(),
        (false, _) => &args.clients[..],
    };
    if args.workload == Workload::Floor {
        return floor_rows(args, counts);
    }
    let mut bench = match args.local {
        0 => Bench::of(target?.addresses().to_vec(), None),
        nodes => {
            let local = Local::start(nodes as usize, args.workload.settings()).await?;
            Bench::of(local.addresses(), Some(local))
        }
    };
    let mut rows = Vec::new();
    for &clients in counts {
        rows.push(bench.run(args, clients as usize).await?);
    }
    if let Some(local) = bench.local {
        local.stop().await?;
    }
    Ok(rows)
}

fn floor_rows(args: &Args, counts: &[u32]) -> Result<Vec<Row>, Failure> {
    let folder = super::scratch::Folder::within(Path::new("."), "floor")?;
    let time = Duration::from_secs(args.secs);
    let measured = counts.iter().map(|&writers| {
        let _bar = Progress::begin(&format!("floor, {writers} at once"), time);
        let times = flushes(folder.path(), writers as usize, time)?;
        let cost = cost::Cost::nothing();
        let ops = times.len();
        let measured = Measured::new(times, ops, time);
        Ok(row(args, writers as usize, 0, &measured, cost, [None, None]))
    });
    measured.collect()
}

fn flushes(folder: &Path, writers: usize, time: Duration) -> Result<hdrhistogram::Histogram<u64>, Failure> {
    let failed = |error| Failure::Other(format!("writing in {}: {error}", folder.display()));
    floor::flushes(folder, writers, time).map_err(failed)
}

/// The cluster under load.
struct Bench {
    addresses: Vec<String>,
    local: Option<Local>,
    clock: Arc<dyn Clock>,
}

impl Bench {
    fn of(addresses: Vec<String>, local: Option<Local>) -> Bench {
        Bench { addresses, local, clock: SystemClock::shared() }
    }

    async fn run(&mut self, args: &Args, clients: usize) -> Result<Row, Failure> {
        let flush = match &self.local {
            Some(local) => {
                let median = |writers| {
                    Ok::<_, Failure>(Some(
                        flushes(local.folder(), writers, FLOOR_TIME)?.value_at_quantile(0.5),
                    ))
                };
                [median(1)?, median(floor::WRITERS)?]
            }
            None => [None, None],
        };
        let time = match args.workload {
            Workload::Steady => Duration::from_secs(60 * args.mins),
            _ => Duration::from_secs(args.secs),
        };
        let title = format!("{}, {clients} at once", args.workload.name());
        let before = self.read().await;
        let measured = match args.workload {
            Workload::Failover | Workload::Transfer => {
                let _bar = Progress::endless(&title);
                failover::run(self, args, clients).await?
            }
            Workload::Renew
            | Workload::Expire
            | Workload::Sessions
            | Workload::Connections
            | Workload::Held
            | Workload::Waiters
            | Workload::Restart
            | Workload::Snapshot => {
                let _bar = Progress::endless(&title);
                masses::run(self, args, clients, time).await?
            }
            _ => {
                let _bar = Progress::begin(&title, time);
                pairs::run(self, args, clients, time).await?
            }
        };
        let cost = self.read().await.since(&before);
        Ok(row(args, clients, self.addresses.len(), &measured, cost, flush))
    }

    /// Of the node that has most in memory, where it is known.
    fn rss(&self) -> Option<u64> {
        let pids = self.local.as_ref()?.pids();
        pids.into_iter().filter_map(cost::resident_bytes).max()
    }

    async fn read(&self) -> Reading {
        let pids = self.local.as_ref().map(Local::pids).unwrap_or_default();
        Reading::take(&self.addresses, &pids).await
    }
}

fn row(
    args: &Args,
    clients: usize,
    nodes: usize,
    measured: &Measured,
    cost: cost::Cost,
    [flush_us, flush3_us]: [Option<u64>; 2],
) -> Row {
    let secs = measured.took.as_secs_f64();
    let row = Row {
        workload: args.workload.name(),
        clients,
        nodes,
        api: args.api.name(),
        secs,
        ops: measured.ops,
        per_s: measured.ops as f64 / secs,
        p50_us: 0,
        p99_us: 0,
        p999_us: 0,
        max_us: 0,
        flush_us,
        flush3_us,
        wal_bytes_per_op: cost.wal_bytes_per_op,
        ops_per_batch: cost.ops_per_batch,
        cpu_s_server: cost.cpu_s_server,
        cpu_s_client: cost.cpu_s_client,
        elections: cost.elections,
        more: measured.more.clone(),
    };
    row.timed(&measured.times)
}

/// A bar on stderr while something is measured, if that is a terminal. It moves by itself and ends when dropped.
struct Progress(ProgressBar);

impl Progress {
    fn begin(title: &str, time: Duration) -> Progress {
        let style = ProgressStyle::with_template("{msg} [{bar:40}] {elapsed}").expect("a sound template");
        let bar = Progress::new(title, ProgressBar::new(time.as_millis() as u64), style);
        let moved = bar.0.clone();
        // A thread, so that the loop under measurement is not woken for it.
        std::thread::spawn(move || {
            while !moved.is_finished() {
                moved.set_position(moved.elapsed().as_millis() as u64);
                std::thread::sleep(PROGRESS);
            }
        });
        bar
    }

    fn endless(title: &str) -> Progress {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a sound template");
        let bar = Progress::new(title, ProgressBar::new_spinner(), style);
        bar.0.enable_steady_tick(PROGRESS);
        bar
    }

    fn new(title: &str, bar: ProgressBar, style: ProgressStyle) -> Progress {
        let bar = if std::io::stderr().is_terminal() { bar } else { ProgressBar::hidden() };
        bar.set_style(style);
        bar.set_message(title.to_owned());
        Progress(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Says something while a bar may be there.
fn note(text: &str) {
    print::aside(text);
}
