//! New nodes found one cluster and never two, whatever goes wrong meanwhile: 200 random schedules, each from its seed.
//!
//! `FOUNDING_SEED=7` runs one schedule, and with `FOUNDING_SCHEDULES=1000` that many from there on. With
//! `RUSTFLAGS="--cfg tokio_unstable"` the same seed gives the same run.

use raftlock_tests::founders::{has_bitten, run};
use raftlock_tests::tally::Tally;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
fn never_two_clusters_and_one_in_the_end() {
    let first = number("FOUNDING_SEED");
    // An unoptimised build is several times slower: it takes a part, and `.ci/run prove` all of them.
    let all_of_them = if cfg!(debug_assertions) { 20 } else { 200 };
    let count = number("FOUNDING_SCHEDULES").unwrap_or(if first.is_some() { 1 } else { all_of_them });
    let seeds = first.unwrap_or(1)..first.unwrap_or(1) + count;
    let began = std::time::Instant::now();
    let mut all = Tally::default();
    seeds.for_each(|seed| all.merge(&run(seed).tally()));
    println!("{:?}: {all}", began.elapsed());
    assert!(has_bitten(&all), "the faults did not bite");
}
