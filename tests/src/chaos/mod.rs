//! Processes of the release binary on a real network and disk, while everything goes wrong: scenarios P1 to P17.
//!
//! Every node and every client is a process in a network namespace of its own; what they say to each other goes through
//! proxies of the harness, which can hold it up, delay it and cut it off, one direction at a time. Clients tell the
//! harness what they see, with stamps of a clock that nobody sets; the harness is the resource that they write to, and
//! keeps the history. After each scenario come calm, in which everybody gets every lock; the death of all nodes, which
//! loses nothing; and quiet, in which nothing is left.
//!
//! ```text
//! place      hosts: network namespaces, and addresses that lead through the harness
//! links      the proxies, and their weather
//! nodes      processes of the server
//! app        a client process: an application with the real SDK
//! said       what it tells the harness
//! crowd      the harness's side of it: the resource and the history
//! tools      strace and libfaketime: disks that fail and clocks that lie
//! stage      a scenario from its beginning to the verdict
//! scenarios  what goes wrong
//! ```
//!
//! It takes root, `ip`, `unshare`, `strace` and libfaketime (`tests/chaos-tools` installs them), and fails without.

pub mod app;
mod crowd;
mod links;
mod nodes;
mod place;
mod said;
mod scenarios;
mod stage;
mod tools;

use std::path::Path;

use anyhow::{Context, ensure};

use crate::tally::Tally;
use links::Links;

/// Names and meanings of the scenarios.
pub fn scenarios() -> impl Iterator<Item = (&'static str, &'static str)> {
    scenarios::ALL.iter().map(|scenario| (scenario.name, scenario.what))
}

/// Plays the scenarios of these names, or all; each for `scale` of its full length. Says how each ended.
///
/// # Errors
/// The names of those that failed, when all are through.
pub fn run(binary: &Path, only: &[String], seed: u64, scale: f64) -> anyhow::Result<Tally> {
    let known = |name: &String| scenarios().any(|(known, _)| known == name);
    ensure!(only.iter().all(known), "there is no such scenario among {only:?}");
    let binary =
        binary.canonicalize().with_context(|| format!("{}: the server's binary", binary.display()))?;
    tools::probe()?;
    place::enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let links = Links::open(seed).await?;
        let (mut all, mut failed) = (Tally::default(), Vec::new());
        for scenario in &scenarios::ALL {
            if !only.is_empty() && !only.iter().any(|name| name == scenario.name) {
                continue;
            }
            let began = tokio::time::Instant::now();
            let played = scenario.play(&binary, &links, seed, scale).await;
            let took = began.elapsed().as_secs();
            match played {
                Ok(tally) => {
                    println!("{:4} {took:>4} s: {}: {tally}", scenario.name, scenario.what);
                    all.merge(&tally);
                    all.add("chaos scenarios", 1);
                    all.add("chaos seconds", took);
                }
                Err(error) => {
                    println!("{:4} {took:>4} s: FAILED: {}: {error:#}", scenario.name, scenario.what);
                    failed.push(scenario.name);
                }
            }
        }
        ensure!(
            failed.is_empty(),
            "failed: {}; again: tests/prove chaos --seed {seed} --only {}",
            failed.join(", "),
            failed.join(",")
        );
        Ok(all)
    })
}
