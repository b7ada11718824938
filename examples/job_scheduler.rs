//! Several schedulers follow the same cron table, and every firing is run to its end once.
//!
//! ```sh
//! cargo run --example job_scheduler                     # one scheduler is killed in the middle of a job
//! cargo run --example job_scheduler -- --kill=false --workers=5
//! ```
//!
//! Each scheduler is a process with a client of its own. `schedule`, `follow` and `fire` are the part to copy. Below
//! them are the book of firings and the parent, which starts the schedulers, kills one, and counts at the end.
//!
//! *When* a firing is due is a matter of wall clocks: that is what cron is. *Who* runs it is not. A clock that is
//! wrong brings a scheduler early or late to the lock, and whoever holds the lock looks into the book.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, value_parser};
use croner::{Cron, Direction};
use raftlock::{Client, FencingToken};
use raftlock_examples::cluster;
use raftlock_examples::crew::{self, Crew, Event, Parent};
use raftlock_examples::fenced::{FencedDb, Stale};
use tokio::task::JoinSet;

/// What is to be done, and when. Of six fields the first is seconds.
const JOBS: [(&str, &str); 2] = [("report", "*/2 * * * * *"), ("cleanup", "*/3 * * * * *")];

/// How long a job takes.
const WORK: Duration = Duration::from_millis(300);

/// So long after a scheduler died, another takes over what it ran. Short, because nobody wants to watch for long; below
/// 4 s a change of leader may cost a lock, and a job is then begun anew.
const TTL: Duration = Duration::from_secs(2);

/// One job at one planned instant.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Firing {
    job: &'static str,
    at: DateTime<Utc>,
}

/// Follows the cron table, each job in a task of its own.
async fn schedule(worker: Worker) -> Result<()> {
    let client = Client::builder()
        .endpoints(worker.endpoints.as_str())
        .owner(format!("scheduler {}", worker.number))
        .default_ttl(TTL)
        .connect()
        .await?;
    let parent = Arc::new(Parent::listen());
    let mut jobs = JoinSet::new();
    for (job, cron) in JOBS {
        let book = Book {
            ledger: FencedDb::open(&worker.ledger)?,
            scheduler: worker.number,
            parent: parent.clone(),
            stop_in: worker.stop_in,
        };
        let firings = firings(job, cron, worker.from, worker.until)?;
        jobs.spawn(follow(client.clone(), firings, book));
    }
    while let Some(followed) = jobs.join_next().await {
        followed??;
    }
    // A process that just ends may lose its last release, and that lock then stays taken until its TTL is over.
    // `close` waits until the cluster has freed all that this client holds.
    client.close().await;
    Ok(())
}

/// Waits for each firing, and leaves it when somebody has run it to its end. None is left out for being late.
async fn follow(client: Client, firings: Vec<Firing>, mut book: Book) -> Result<()> {
    for firing in firings {
        let ahead = (firing.at - Utc::now()).to_std();
        tokio::time::sleep(ahead.unwrap_or_default()).await;
        while !book.is_finished(firing)? {
            fire(&client, firing, &mut book).await?;
        }
    }
    Ok(())
}

/// Runs one firing, unless another scheduler did. It comes back without having run it when it lost the lock.
async fn fire(client: &Client, firing: Firing, book: &mut Book) -> Result<()> {
    let guard = client.lock(format!("job:{}", firing.job)).await?;
    let token = guard.token();
    // Whoever held the lock before may have run it, so this look counts, and no earlier one.
    if book.is_finished(firing)? {
        return Ok(()); // dropping the guard releases the lock
    }
    match book.begin(firing, token)? {
        Ok(None) => println!("runs {firing}, token {token}"),
        Ok(Some(earlier)) => println!("takes over {firing}, token {token}, begun under {earlier}"),
        Err(stale) => {
            println!("was refused {firing}: {stale}");
            return Ok(());
        }
    }
    tokio::select! {
        () = run(firing) => {}
        reason = guard.lost() => {
            println!("lost the lock of {firing}: {reason}");
            return Ok(());
        }
    }
    if let Err(stale) = book.finish(firing, token)? {
        println!("was refused {firing}: {stale}");
    }
    Ok(())
}

async fn run(_: Firing) {
    tokio::time::sleep(WORK).await;
}

/// What was begun and what was finished, as one scheduler sees it. All of them write into one.
struct Book {
    ledger: FencedDb,
    scheduler: u32,
    parent: Arc<Parent>,
    /// Which firing of the first job its first runner shall not survive, in Unix seconds.
    stop_in: Option<i64>,
}

/// Without a unique key: a firing that is finished twice shall show.
const TABLES: &str = "
    CREATE TABLE runs (job TEXT, at INTEGER, scheduler INTEGER, token INTEGER, finished INTEGER)";

impl Book {
    fn is_finished(&mut self, firing: Firing) -> Result<bool> {
        let query = "SELECT count(*) FROM runs WHERE job = ?1 AND at = ?2 AND finished";
        let finished: i64 = self.ledger.unfenced().query_row(query, firing.key(), |row| row.get(0))?;
        Ok(finished > 0)
    }

    /// Notes that it runs. Answers with the token of whoever began it before and did not finish.
    fn begin(&mut self, firing: Firing, token: FencingToken) -> Result<Result<Option<i64>, Stale>> {
        let (job, at) = firing.key();
        let run = (job, at, self.scheduler, token.get().cast_signed());
        let write = self.ledger.write(&firing.resource(), token, |ledger| {
            let earlier = "SELECT max(token) FROM runs WHERE job = ?1 AND at = ?2";
            let earlier = ledger.query_row(earlier, (job, at), |row| row.get(0))?;
            ledger.execute("INSERT INTO runs VALUES (?1, ?2, ?3, ?4, false)", run)?;
            Ok(earlier)
        });
        let begun = write?;
        if begun == Ok(None) && job == JOBS[0].0 && self.stop_in == Some(at) {
            println!("runs {firing}, token {token}");
            self.parent.wait_for_go();
        }
        Ok(begun)
    }

    fn finish(&mut self, firing: Firing, token: FencingToken) -> Result<Result<(), Stale>> {
        let (job, at) = firing.key();
        let run = (job, at, token.get().cast_signed());
        let write = self.ledger.write(&firing.resource(), token, |ledger| {
            let finish = "UPDATE runs SET finished = true WHERE job = ?1 AND at = ?2 AND token = ?3";
            ledger.execute(finish, run)
        });
        Ok(write?.map(drop))
    }
}

impl Firing {
    fn key(self) -> (&'static str, i64) {
        (self.job, self.at.timestamp())
    }

    /// What the fence is about: the job, as the lock is.
    fn resource(self) -> String {
        format!("job:{}", self.job)
    }
}

impl fmt::Display for Firing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.job, self.at.format("%H:%M:%S"))
    }
}

/// All firings of a job from one instant on and before another, in Unix seconds.
fn firings(job: &'static str, cron: &str, from: i64, until: i64) -> Result<Vec<Firing>> {
    let first = DateTime::from_timestamp(from, 0).context("no such instant")?;
    let cron = Cron::from_str(cron)?;
    let planned = cron.iter_from(first, Direction::Forward).take_while(|at| at.timestamp() < until);
    Ok(planned.map(|at| Firing { job, at }).collect())
}

/// Several schedulers follow the same cron table; RaftLock sees to it that each firing is run once.
#[derive(Parser)]
#[command(name = "job_scheduler")]
struct Args {
    /// How many schedulers, each a process of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=64))]
    workers: u32,
    /// How many seconds of the schedule
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = value_parser!(u32).range(4..=3600))]
    seconds: u32,
    /// Kill a scheduler (-9) in the middle of a job. Another one takes the job over when the lease is over
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    kill: bool,
    /// Nodes of your cluster, as host:port. Without it, a private cluster of three nodes is started
    #[arg(long, value_name = "A,B,C")]
    endpoints: Option<String>,
}

/// What a scheduler is told.
#[derive(Parser)]
struct Worker {
    #[arg(long)]
    number: u32,
    #[arg(long)]
    ledger: PathBuf,
    #[arg(long)]
    endpoints: String,
    #[arg(long)]
    from: i64,
    #[arg(long)]
    until: i64,
    #[arg(long)]
    stop_in: Option<i64>,
}

/// What runs so much longer than its schedule hangs.
const RUN_LIMIT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    crew::main(schedule, oversee).await
}

/// The parent: runs the schedulers to their end, then looks into the ledger.
async fn oversee(args: Args) -> Result<ExitCode> {
    if args.workers < 2 && args.kill {
        let problem = "--kill needs at least two --workers; for one, say --kill=false";
        Args::command().error(ErrorKind::ValueValidation, problem).exit();
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("ledger.db");
    let mut ledger = FencedDb::create(&path, TABLES)?;
    let given = args.endpoints.as_deref();
    let (endpoints, cluster) = cluster::given_or_private(given, dir.path()).await?;
    let plan = Plan::from_now(&args)?;
    let limit = RUN_LIMIT + Duration::from_secs(args.seconds.into());
    let ran = run_schedulers(args.workers, &endpoints, &path, &plan);
    let ended = tokio::time::timeout(limit, ran).await;
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    ended.context("the schedulers hang")??;
    count(&mut ledger, &plan)
}

/// What shall happen in this run.
struct Plan {
    from: i64,
    until: i64,
    firings: Vec<Firing>,
    /// Which firing of the first job kills its first runner.
    stop_in: Option<i64>,
}

impl Plan {
    fn from_now(args: &Args) -> Result<Plan> {
        let from = Utc::now().timestamp() + 1;
        let until = from + i64::from(args.seconds);
        let mut all = Vec::new();
        for (job, cron) in JOBS {
            all.push(firings(job, cron, from, until)?);
        }
        let middle = all[0].get(all[0].len() / 2).context("nothing is due")?;
        let stop_in = args.kill.then_some(middle.at.timestamp());
        Ok(Plan { from, until, firings: all.concat(), stop_in })
    }
}

async fn run_schedulers(workers: u32, endpoints: &str, ledger: &Path, plan: &Plan) -> Result<()> {
    let mut crew = Crew::new();
    for number in 1..=workers {
        let mut arguments = vec![
            format!("--number={number}"),
            format!("--ledger={}", ledger.display()),
            format!("--endpoints={endpoints}"),
            format!("--from={}", plan.from),
            format!("--until={}", plan.until),
        ];
        arguments.extend(plan.stop_in.map(|at| format!("--stop-in={at}")));
        crew.start(number, &arguments)?;
    }
    let mut killed = None;
    while let Some((number, event)) = crew.next().await? {
        match event {
            Event::Says(line) => println!("scheduler {number} {line}"),
            Event::Waits => {
                crew.kill(number)?;
                killed = Some(number);
                println!("scheduler {number} is killed in the middle of it");
            }
            Event::Ended(status) => {
                ensure!(status.success() || killed == Some(number), "scheduler {number} failed: {status}")
            }
        }
    }
    Ok(())
}

fn count(ledger: &mut FencedDb, plan: &Plan) -> Result<ExitCode> {
    let runs = ledger.count("SELECT count(*) FROM runs")?;
    let finished = ledger.count("SELECT count(*) FROM (SELECT DISTINCT job, at FROM runs WHERE finished)")?;
    let of_firings = |condition: &str| {
        format!("SELECT count(*) FROM (SELECT 1 FROM runs GROUP BY job, at HAVING {condition})")
    };
    let duplicates = ledger.count(&of_firings("sum(finished) > 1"))?;
    let taken_over = ledger.count(&of_firings("count(*) > 1"))?;
    let firings = plan.firings.len() as u64;
    println!("{firings} firings, {runs} runs, {duplicates} duplicates, {taken_over} taken over");
    if finished < firings {
        println!("{} were not run to their end", firings - finished);
    }
    let is_right = duplicates == 0 && finished == firings;
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
