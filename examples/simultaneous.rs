//! Three processes that are a cluster themselves, without any server beside them: all want one lock at the same time.
//!
//! In three terminals, with a time that is a little ahead:
//!
//! ```sh
//! cargo run --release --example simultaneous -- 127.0.0.1:7946 127.0.0.1:7946 12:00
//! cargo run --release --example simultaneous -- 127.0.0.1:7947 127.0.0.1:7946 12:00
//! cargo run --release --example simultaneous -- 127.0.0.1:7948 127.0.0.1:7946 12:00
//! ```
//!
//! The arguments are where this node binds, its seeds with commas between, and the start. The first node's only seed is
//! itself; the order in which they start does not matter. One wins and holds `example-key` for 120 s; it renews once,
//! after 45 s. Ctrl+C leaves in order, and the lock passes on at once; after `kill -9` it passes on when its TTL is
//! over. All of them say every 10 s who holds the lock and who waits.
//!
//! A node's data is in a temporary folder and goes with it: each run begins anew. So never start the first node again
//! while the others run, with itself as its only seed: it would be another cluster. With `--data-dir` a node comes back
//! as itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, value_parser};
use raftlock_examples::local_time::TimeOfDay;
use raftlock_server::{Coordinator, CoordinatorError, Node};

const KEY: &str = "example-key";

/// Wants the lock, holds it until its TTL is over, and wants it again.
async fn contend(me: &Me, coordinator: &Coordinator) -> Result<()> {
    loop {
        me.says(format_args!("wants {KEY}"));
        let token = coordinator.lock(KEY, me.ttl).await?;
        let ttl = me.ttl.as_secs();
        me.says(format_args!("holds {KEY} under token {token} for {ttl} s"));
        let lost = coordinator.lost(KEY)?;
        tokio::pin!(lost);
        // Here would be the work, with the token given to whatever the lock protects.
        let renewal = tokio::select! {
            why = &mut lost => {
                me.says(format_args!("lost {KEY}: {why}"));
                continue;
            }
            () = tokio::time::sleep(me.renew_after) => coordinator.renew(KEY, me.ttl).await,
        };
        match renewal {
            Ok(()) => me.says(format_args!("renewed {KEY}: {ttl} s from now")),
            // Lost meanwhile, or without an answer: the lease tells.
            Err(error @ (CoordinatorError::NotHeld { .. } | CoordinatorError::Client(_))) => {
                me.says(format_args!("did not renew {KEY}: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        let why = lost.await;
        me.says(format_args!("lost {KEY}: {why}"));
    }
}

/// Says again and again who holds the lock, under which token, how long still, and who waits.
async fn watch(me: &Me, coordinator: &Coordinator) -> Result<()> {
    let client = coordinator.client()?;
    loop {
        match client.get(KEY).await {
            Ok(info) => {
                let holder = match info.holders.first() {
                    Some(holder) => format!(
                        "held by {}, token {}, {} s left",
                        holder.owner,
                        holder.token,
                        holder.remaining.as_secs()
                    ),
                    None => "free".to_owned(),
                };
                let waiters: Vec<&str> = info.waiters.iter().map(|waiter| waiter.owner.as_str()).collect();
                let waiters = if waiters.is_empty() { "nobody".to_owned() } else { waiters.join(", ") };
                me.says(format_args!("sees {KEY}: {holder}; waiting: {waiters}"));
            }
            Err(error) => me.says(format_args!("sees nothing: {error}")),
        }
        tokio::time::sleep(me.every).await;
    }
}

/// Joins the cluster, waits for the time, and contends, for as long as nobody ends it.
async fn take_part(me: &Me, coordinator: &Coordinator) -> Result<()> {
    me.says("looks for its cluster");
    coordinator.connect().await?;
    let wait = me.start.wait()?;
    me.says(format_args!("is in its cluster, and waits {} s, until {}", wait.as_secs(), me.start));
    tokio::time::sleep(wait).await;
    // Who is there shows a moment after this node is in, so not before the wait.
    let members: Vec<String> = coordinator.members().into_iter().map(|member| member.name).collect();
    me.says(format_args!("begins, beside {}", members.join(", ")));
    tokio::select! {
        ended = contend(me, coordinator) => ended,
        ended = watch(me, coordinator) => ended,
        error = coordinator.failed() => Err(error.into()),
    }
}

/// What the terminal shows.
struct Me {
    name: String,
    start: TimeOfDay,
    ttl: Duration,
    renew_after: Duration,
    every: Duration,
}

impl Me {
    fn says(&self, what: impl std::fmt::Display) {
        println!("{} {what}", self.name);
    }
}

/// Nodes inside their own applications, all of which want one lock at the same time.
#[derive(Debug, Parser)]
struct Args {
    /// Where this node binds, HOST:PORT.
    bind: String,
    /// Members of the cluster, with commas between: for the first node, itself.
    seeds: String,
    /// When to begin, HH:MM or HH:MM:SS, local time. A time that is long over means tomorrow.
    start: TimeOfDay,
    /// Seconds that the lock is held for.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = value_parser!(u64).range(2..=86_400))]
    ttl: u64,
    /// Seconds after which a holder renews, once.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    renew_after: u64,
    /// Seconds between two lines about who holds the lock.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
    every: u64,
    /// Keep the node's data here, so that it comes back as itself.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Found the cluster together with so many new nodes, all of which name all as seeds, instead of joining the first.
    #[arg(long, value_name = "NODES")]
    bootstrap_expect: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let temporary = tempfile::tempdir().context("a temporary folder")?;
    let data = args.data_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut node = Node::builder().name(&args.bind).data_dir(data).allow_volatile_data(true).ballast_bytes(0);
    if let Some(nodes) = args.bootstrap_expect {
        node = node.bootstrap_expect(nodes);
    }
    let seeds = args.seeds.split(',').map(str::trim).filter(|seed| !seed.is_empty());
    let coordinator = Coordinator::new(&args.bind, seeds, node);
    let seconds = Duration::from_secs;
    let me = Me {
        name: args.bind.clone(),
        start: args.start,
        ttl: seconds(args.ttl),
        renew_after: seconds(args.renew_after),
        every: seconds(args.every),
    };
    let ended = tokio::select! {
        ended = take_part(&me, &coordinator) => ended,
        pressed = tokio::signal::ctrl_c() => pressed.context("Ctrl+C cannot be heard"),
    };
    if let Err(error) = &ended
        && let Some(CoordinatorError::Node(raftlock_server::NodeError::Config(wrong))) = error.downcast_ref()
    {
        drop(temporary);
        Args::command().error(ErrorKind::ValueValidation, wrong).exit();
    }
    me.says("leaves");
    // The lock passes on now, and the others keep a leader. A node whose data goes with it leaves for good, so that the
    // others, down to the last, do not count it among those that are missing.
    match args.data_dir {
        Some(_) => coordinator.shutdown().await,
        None => coordinator.leave().await?,
    }
    ended
}
