//! The simulation repeats: three nodes, the SDK and a power cut of the leader, in one thread, twice the same.
//!
//! It needs `RUSTFLAGS="--cfg tokio_unstable"`, without which tokio's own choices are not seeded, and a target folder
//! of its own: `.ci/run sim`. Without the flag nothing is here to run, and `.ci/run` checks that something ran.
#![cfg(tokio_unstable)]

use std::time::Duration;

use raftlock_tests::world::{Plan, run};

#[test]
fn the_same_seed_gives_the_same_run() {
    let seed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let plan = Plan {
        seed,
        length: Duration::from_secs(60),
        crash_at: Duration::from_secs(20),
        down_for: Duration::from_secs(5),
        clients: 3,
    };
    let first = run(plan);
    println!("{}: {} lines, fingerprint {:016x}", first.summary, first.trace.len(), first.fingerprint());
    assert!(first.summary.grants > 100, "{}", first.summary);
    let second = run(plan);
    for (at, (one, two)) in first.trace.iter().zip(&second.trace).enumerate() {
        assert_eq!(one, two, "seed {seed}: the runs part at line {at}");
    }
    assert_eq!(first, second, "seed {seed}");
    let other = run(Plan { seed: seed + 1, ..plan });
    assert_ne!(first.fingerprint(), other.fingerprint(), "another seed gives another run");
}
