//! The simulation repeats: a cluster, its clients and everything that goes wrong, in one thread, twice the same.
//!
//! It needs `RUSTFLAGS="--cfg tokio_unstable"`, without which tokio's own choices are not seeded, and a target folder
//! of its own: `.ci/run sim`. Without the flag nothing is here to run, and `.ci/run` checks that something ran.
//! `prove sim` runs as many seeds as one likes.
#![cfg(tokio_unstable)]

use raftlock_tests::tally::Tally;
use raftlock_tests::world::{Outcome, run};

fn of(seed: u64) -> Outcome {
    run(seed).unwrap_or_else(|failure| {
        panic!("{}\nseed {seed}: {}", failure.trace.join("\n"), failure.what);
    })
}

#[test]
fn ten_seeds_twice_give_the_same_runs() {
    let (mut fingerprints, mut all) = (std::collections::BTreeSet::new(), Tally::default());
    for seed in 1..=10 {
        println!("seed {seed}");
        let (first, second) = (of(seed), of(seed));
        println!("{} lines, fingerprint {:016x}: {}", first.trace.len(), first.fingerprint(), first.tally);
        for (at, (one, two)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, two, "seed {seed}: the runs part at line {at}");
        }
        assert_eq!(first, second, "seed {seed}");
        all.merge(&first.tally);
        fingerprints.insert(first.fingerprint());
    }
    assert_eq!(fingerprints.len(), 10, "another seed gives another run");
    assert!(all.get("grants") > 500 && all.get("leader changes") > 10, "the runs are vacuous: {all}");
}
