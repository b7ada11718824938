//! Plain data that callers read: tokens, modes, and what a lookup of a lock shows.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A number that rises with every grant of the cluster. Give it to the resource that the lock protects, and let the
/// resource refuse a lower one than the highest it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for FencingToken {
    fn from(number: u64) -> FencingToken {
        FencingToken(number)
    }
}

impl From<FencingToken> for u64 {
    fn from(token: FencingToken) -> u64 {
        token.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// By one holder.
    #[default]
    Exclusive,
    /// By any number of shared holders.
    Shared,
    /// By holders whose permits together fit into the capacity.
    Permits {
        /// How many this holder has.
        permits: u32,
        /// How many there are.
        capacity: u32,
    },
}

/// Who holds a lock and who waits for it, as the cluster knew it at one moment. Times are for people, never for
/// deciding whether a lease is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// Name of the lock.
    pub name: String,
    /// By token; at most 1,000.
    pub holders: Vec<Holder>,
    /// In the order in which they will be served; at most 1,000.
    pub waiters: Vec<Waiter>,
    /// How many hold it in all.
    pub holder_count: u32,
    /// How many wait in all.
    pub queue_length: u32,
}

impl LockInfo {
    /// Nobody holds it and nobody waits.
    pub fn is_free(&self) -> bool {
        self.holder_count == 0 && self.queue_length == 0
    }
}

/// One holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// As its client calls itself.
    pub owner: String,
    /// Of its grant.
    pub token: FencingToken,
    /// What is left of its lease.
    pub remaining: Duration,
    /// How it holds.
    pub mode: Mode,
    /// What it said about itself when it asked.
    pub metadata: BTreeMap<String, String>,
}

/// One waiter for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiter {
    /// As its client calls itself.
    pub owner: String,
    /// 1 is the next to be served.
    pub place: u32,
    /// How long it has waited.
    pub waiting: Duration,
    /// How it wants to hold. Of permits only the kind is known here; both numbers are 0.
    pub mode: Mode,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockSummary {
    /// Name of the lock.
    pub name: String,
    /// The holder whose lease ends last; `None` for a lock that is only waited for.
    pub owner: Option<String>,
    /// Of that holder.
    pub token: Option<FencingToken>,
    /// What is left of that holder's lease.
    pub remaining: Duration,
    /// How it is held. Of permits only the kind is known here; both numbers are 0.
    pub mode: Mode,
    /// How many hold it.
    pub holder_count: u32,
    /// How many wait for it.
    pub queue_length: u32,
}

/// A part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockPage {
    /// By name.
    pub locks: Vec<LockSummary>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
}

/// Why a lock could not be had at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contention {
    /// Which of the names is in the way.
    pub name: String,
    /// The holder whose lease ends last, or, of a free lock, its oldest waiter.
    pub owner: String,
    /// The lock is free, but an older waiter is to be served first.
    pub behind_waiter: bool,
    pub token: Option<FencingToken>,
    pub remaining: Duration,
    pub holder_count: u32,
    pub queue_length: u32,
    pub place: Option<u32>,
}
