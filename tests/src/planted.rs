//! Bugs that the product has in one build only, each under a name, and the suite that must find each: a suite that
//! never went red proves nothing.
//!
//! The places in the product ask `planted::is(NAME)`, which is `false` in every build but that of `tests/planted-rustc`.
//! Each bug names the cheapest suite that finds it, which is one that hunts unknown bugs as well.

/// One bug.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// Its name in the product.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// The suite that must find it, a subcommand of `prove`.
    pub suite: &'static str,
    /// How many seeds that may take.
    pub seeds: u64,
}

const fn bug(name: &'static str, what: &'static str, suite: &'static str, seeds: u64) -> Planted {
    Planted { name, what, suite, seeds }
}

/// All of them.
pub const PLANTED: [Planted; 16] = [
    bug("ack-before-commit", "appends are answered before their COMMIT", "crash", 3),
    bug("vote-not-saved", "a vote is answered and not written", "crash", 3),
    bug("synchronous-normal", "the WAL is synced at checkpoints only", "crash", 3),
    bug("truncate-forward", "the log is cut from the front, in two transactions", "crash", 20),
    bug("snapshot-without-membership", "a snapshot forgets who the members are", "sim", 100),
    bug("wall-clock-in-apply", "each node adds some time of its own", "sim", 10),
    bug("time-restarts", "cluster time begins anew with each leader", "sim", 20),
    bug("no-clamp", "a stalled leader's time passes for its leases too", "clock", 100),
    bug("no-dedup", "a repeated acquire is another acquire", "sim", 100),
    bug("release-ignores-token", "a release with an old token releases", "table", 10),
    bug("deadline-from-reply", "a client counts its lease from the answer", "sim", 200),
    bug("local-read", "a leader answers reads without asking its quorum", "sim", 100),
    bug("grant-to-the-dead", "a session past its deadline is granted locks", "table", 10),
    bug("identity-unchecked", "an emptied node answers for its old self", "sim", 100),
    bug("clamp-without-reanchor", "a stalled leader catches its lost time up", "clock", 100),
    bug("naive-clock", "time is the leader's base and what elapsed since", "clock", 100),
];
