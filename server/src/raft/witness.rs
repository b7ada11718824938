//! Who looks on while entries become changes of the lock table: nobody in production, the suites that check histories
//! in tests. It sees every entry, also those that a snapshot takes out of the log before anybody could read them there.
//!
//! A witness hears; it decides nothing and is asked nothing.

use std::fmt;

/// One entry that a node has just applied.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// Its place in the log.
    pub index: u64,
    /// The term of its leader.
    pub term: u64,
    /// The storage id of its leader.
    pub leader: u64,
    /// The encoded batch of the lock table; `None` for an entry of Raft's own, blank or a membership.
    pub batch: Option<&'a [u8]>,
    /// What the table's running hash came to.
    pub trail: u64,
}

/// See the top of the file. Called before the entry counts as applied, under the lock of the table: it must be short.
pub trait Witness: Send + Sync + fmt::Debug {
    /// An entry was applied.
    fn applied(&self, entry: &Applied<'_>);

    /// The table was replaced by a snapshot's, which holds everything up to `index`.
    fn installed(&self, index: u64, trail: u64);
}
