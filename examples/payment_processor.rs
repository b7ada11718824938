//! Several payment processors get the same payments, and every payment is charged once.
//!
//! ```sh
//! cargo run --example payment_processor
//! cargo run --example payment_processor -- --freeze     # a holder is stopped past its lease; its late charge is refused
//! cargo run --example payment_processor -- --no-lock    # what happens without a lock; exits 1
//! ```
//!
//! Each processor is a process with a client of its own. `process` and `settle` are the part to copy. Below them are
//! the bank, which refuses stale tokens, and the parent, which starts the processors and counts at the end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, value_parser};
use raftlock::{Client, Error, FencingToken};
use raftlock_examples::cluster;
use raftlock_examples::crew::{self, Crew, Event, Parent};
use raftlock_examples::fenced::{FencedDb, Stale};

/// How long the way to the bank takes, and a receipt to the customer.
const NETWORK: Duration = Duration::from_millis(20);

/// Settles every payment. The other processors do the same with the same payments, at the same time.
async fn process(worker: &Worker, bank: &mut Bank) -> Result<()> {
    let client = Client::builder()
        .endpoints(worker.endpoints.as_str())
        .owner(format!("processor {}", worker.number))
        .default_ttl(Duration::from_secs(worker.ttl))
        .connect()
        .await?;
    for payment in 1..=worker.payments {
        while !bank.is_charged(payment)? {
            settle(&client, bank, payment).await?;
        }
    }
    // A process that just ends may lose its last release, and that lock then stays taken until its TTL is over.
    // `close` waits until the cluster has freed all that this client holds.
    client.close().await;
    Ok(())
}

/// Charges a payment, unless another processor did.
async fn settle(client: &Client, bank: &mut Bank, payment: u32) -> Result<()> {
    let settled = client.with_lock(format!("payment:{payment}"), async |guard| {
        // Whoever held the lock before may have charged it, so this look counts, and no earlier one.
        if bank.is_charged(payment)? {
            return Ok(false);
        }
        let token = guard.token();
        let charge = bank.charge(payment, token).await?;
        match charge {
            Ok(()) => println!("charged payment {payment}, token {token}"),
            Err(stale) => println!("was refused payment {payment}: {stale}"),
        }
        anyhow::Ok(charge.is_ok())
    });
    let charged = match settled.await {
        Ok(charged) => charged?,
        // How far did we get? The ledger knows: the caller looks, and comes back under a new token if need be.
        Err(Error::Lost(reason)) => {
            println!("lost the lock of payment {payment}: {reason}");
            false
        }
        Err(error) => return Err(error.into()),
    };
    // Not under the lock: the next payment is another processor's meanwhile.
    if charged {
        send_receipt().await;
    }
    Ok(())
}

async fn send_receipt() {
    tokio::time::sleep(NETWORK).await;
}

/// The same without a lock: look, then charge. All have looked before the first one charges, as it happens sooner or
/// later in production.
fn process_without_lock(worker: &Worker, bank: &mut Bank) -> Result<()> {
    for payment in 1..=worker.payments {
        let charged = bank.is_charged(payment)?;
        bank.parent.wait_for_go();
        if !charged {
            bank.charge_unfenced(payment)?;
        }
    }
    Ok(())
}

/// The bank, as one processor sees it. All of them write into one ledger.
struct Bank {
    ledger: FencedDb,
    processor: u32,
    parent: Parent,
    /// Where to wait for the parent with a charge on its way; once.
    stop_at: Option<u32>,
}

/// Without a unique key: a payment that is charged twice shall show.
const TABLES: &str = "CREATE TABLE charges (payment INTEGER, processor INTEGER, token INTEGER)";

const CHARGE: &str = "INSERT INTO charges VALUES (?1, ?2, ?3)";

impl Bank {
    fn is_charged(&mut self, payment: u32) -> Result<bool> {
        is_charged(&mut self.ledger, payment)
    }

    /// Books the charge, unless a higher token was seen for this payment.
    async fn charge(&mut self, payment: u32, token: FencingToken) -> Result<Result<(), Stale>> {
        tokio::time::sleep(NETWORK).await;
        if self.stop_at.take_if(|at| *at == payment).is_some() {
            println!("holds payment {payment}, token {token}, and is about to charge it");
            self.parent.wait_for_go();
        }
        let charge = (payment, self.processor, token.get().cast_signed());
        let resource = format!("payment:{payment}");
        let write = self.ledger.write(&resource, token, |ledger| ledger.execute(CHARGE, charge));
        Ok(write?.map(drop))
    }

    fn charge_unfenced(&mut self, payment: u32) -> Result<()> {
        let charge = (payment, self.processor, None::<i64>);
        self.ledger.unfenced().execute(CHARGE, charge)?;
        Ok(())
    }
}

fn is_charged(ledger: &mut FencedDb, payment: u32) -> Result<bool> {
    let query = format!("SELECT count(*) FROM charges WHERE payment = {payment}");
    Ok(ledger.count(&query)? > 0)
}

/// Several payment processors get the same payments; RaftLock sees to it that each is charged once.
#[derive(Parser)]
#[command(name = "payment_processor")]
struct Args {
    /// How many processors, each a process of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=64))]
    workers: u32,
    /// How many payments
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = value_parser!(u32).range(1..=100_000))]
    payments: u32,
    /// Stop a processor (SIGSTOP) while it holds a lock, until another one has charged the payment. Its own charge
    /// comes too late and is refused, because its token is stale
    #[arg(long)]
    freeze: bool,
    /// Do without locks: payments are charged more than once, and the exit code is 1
    #[arg(long, conflicts_with = "freeze")]
    no_lock: bool,
    /// Nodes of your cluster, as host:port. Without it, a private cluster of three nodes is started
    #[arg(long, value_name = "A,B,C")]
    endpoints: Option<String>,
}

/// What a processor is told.
#[derive(Parser)]
struct Worker {
    #[arg(long)]
    number: u32,
    #[arg(long)]
    payments: u32,
    #[arg(long)]
    ledger: PathBuf,
    #[arg(long)]
    endpoints: String,
    /// In seconds.
    #[arg(long)]
    ttl: u64,
    #[arg(long)]
    no_lock: bool,
    #[arg(long)]
    stop_at: Option<u32>,
}

/// What runs longer than this, and a second more for each payment, hangs.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// The payment whose charge is frozen on its way.
const FROZEN: u32 = 1;

#[tokio::main]
async fn main() -> ExitCode {
    crew::main(work, oversee).await
}

async fn work(worker: Worker) -> Result<()> {
    let mut bank = Bank {
        ledger: FencedDb::open(&worker.ledger)?,
        processor: worker.number,
        parent: Parent::listen(),
        stop_at: worker.stop_at,
    };
    if worker.no_lock { process_without_lock(&worker, &mut bank) } else { process(&worker, &mut bank).await }
}

/// The parent: runs the processors to their end, then looks into the ledger.
async fn oversee(args: Args) -> Result<ExitCode> {
    if args.workers < 2 && (args.freeze || args.no_lock) {
        let problem = "--freeze and --no-lock need at least two --workers";
        Args::command().error(ErrorKind::ValueValidation, problem).exit();
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("ledger.db");
    let mut ledger = FencedDb::create(&path, TABLES)?;
    let (endpoints, cluster) = if args.no_lock {
        (String::new(), None)
    } else {
        cluster::given_or_private(args.endpoints.as_deref(), dir.path()).await?
    };
    let payments = args.payments;
    let mut run = Run { args, endpoints, path, crew: Crew::new(), waiting: BTreeSet::new() };
    let limit = RUN_LIMIT + Duration::from_secs(payments.into());
    let ended = tokio::time::timeout(limit, run.until_all_ended(&mut ledger)).await;
    drop(run); // and with it what is left of the processors
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    ended.context("the processors hang")??;
    count(&mut ledger, payments)
}

/// The processors while they run.
struct Run {
    args: Args,
    endpoints: String,
    path: PathBuf,
    crew: Crew,
    /// Who waits for our word.
    waiting: BTreeSet<u32>,
}

impl Run {
    async fn until_all_ended(&mut self, ledger: &mut FencedDb) -> Result<()> {
        if self.args.freeze {
            return self.freeze(ledger).await;
        }
        self.start(1..=self.args.workers)?;
        while self.hear().await? {
            // Without locks all wait at each payment, until the last has looked it up.
            if self.waiting.len() == self.args.workers as usize {
                for number in std::mem::take(&mut self.waiting) {
                    self.crew.go(number).await?;
                }
            }
        }
        Ok(())
    }

    /// Stops processor 1 on its way to the bank, and lets it go on when its payment was charged by another.
    async fn freeze(&mut self, ledger: &mut FencedDb) -> Result<()> {
        self.start(1..=1)?;
        while !self.waiting.contains(&1) {
            ensure!(self.hear().await?, "processor 1 never came to a charge");
        }
        self.crew.freeze(1)?;
        println!("processor 1 is stopped: it renews no lease, and does not notice");
        self.start(2..=self.args.workers)?;
        while !is_charged(ledger, FROZEN)? {
            self.hear().await?;
        }
        println!("processor 1 goes on where it stood");
        self.crew.thaw(1)?;
        self.crew.go(1).await?;
        while self.hear().await? {}
        Ok(())
    }

    fn start(&mut self, numbers: std::ops::RangeInclusive<u32>) -> Result<()> {
        // A short lease, so that the next holder need not wait long for the end of a frozen one's. Below 4 s a change
        // of leader may cost a lock, so ask for more where nobody watches.
        let ttl = if self.args.freeze { 2 } else { 10 };
        for number in numbers {
            let mut arguments = vec![
                format!("--number={number}"),
                format!("--payments={}", self.args.payments),
                format!("--ledger={}", self.path.display()),
                format!("--endpoints={}", self.endpoints),
                format!("--ttl={ttl}"),
            ];
            if self.args.no_lock {
                arguments.push("--no-lock".to_owned());
            }
            if self.args.freeze && number == 1 {
                arguments.push(format!("--stop-at={FROZEN}"));
            }
            self.crew.start(number, &arguments)?;
        }
        Ok(())
    }

    /// Shows what happens next; false when all processors are gone.
    async fn hear(&mut self) -> Result<bool> {
        match self.crew.next().await? {
            None => return Ok(false),
            Some((number, Event::Says(line))) => println!("processor {number} {line}"),
            Some((number, Event::Waits)) => drop(self.waiting.insert(number)),
            Some((number, Event::Ended(status))) => {
                ensure!(status.success(), "processor {number} failed: {status}");
            }
        }
        Ok(true)
    }
}

/// How many payments charged more than once are named.
const NAMED_MAX: usize = 5;

fn count(ledger: &mut FencedDb, payments: u32) -> Result<ExitCode> {
    let charges = ledger.count("SELECT count(*) FROM charges")?;
    let charged = ledger.count("SELECT count(DISTINCT payment) FROM charges")?;
    let refused = ledger.refused()?;
    let twice: Vec<(u32, String)> = ledger
        .unfenced()
        .prepare(
            "SELECT payment, group_concat(processor, ', ') FROM charges
             GROUP BY payment HAVING count(*) > 1 ORDER BY payment",
        )?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (payment, processors) in twice.iter().take(NAMED_MAX) {
        println!("payment {payment} was charged more than once, by processors {processors}");
    }
    if twice.len() > NAMED_MAX {
        println!("and {} more", twice.len() - NAMED_MAX);
    }
    println!("{payments} payments, {charges} charges, {refused} refused stale writes");
    let is_right = twice.is_empty() && charged == u64::from(payments);
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
