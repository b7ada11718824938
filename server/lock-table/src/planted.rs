//! Bugs that the suites must find, each at one place in the product and under one name: `tests/src/planted.rs` lists
//! them. They are in no build but that of the suites, which sets a flag of its own; there the name of one is chosen by
//! an environment variable, and without it the build is like any other.

/// Whether the bug of this name was chosen. Never, in an ordinary build.
#[cfg(not(raftlock_planted))]
#[inline(always)]
pub const fn is(_: &str) -> bool {
    false
}

/// Whether the bug of this name was chosen.
#[cfg(raftlock_planted)]
pub fn is(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("RAFTLOCK_PLANTED").ok()).as_deref() == Some(name)
}
