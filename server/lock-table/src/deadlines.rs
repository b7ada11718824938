//! What is due when: the ends of leases and of waits, in the order in which they are due.
//!
//! Derived from the sessions and requests. Due things come by time; at the same time leases before
//! waits, so that a lock which becomes free at that moment still reaches the waiter; then by id, or
//! by place in the order of requests.

use std::collections::BTreeSet;

use crate::types::{ClusterTime, Sequence, SessionId};

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Deadlines {
    pub(crate) sessions: BTreeSet<(ClusterTime, SessionId)>,
    pub(crate) waits: BTreeSet<(ClusterTime, Sequence)>,
}

/// Something whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Session(SessionId),
    Wait(Sequence),
}

impl Deadlines {
    /// The first thing that is due at `now`. It stays due until it is taken out.
    pub(crate) fn first_due(&self, now: ClusterTime) -> Option<Due> {
        let session = self.sessions.first().filter(|(at, _)| *at <= now);
        let wait = self.waits.first().filter(|(at, _)| *at <= now);
        match (session, wait) {
            (Some((session_at, _)), Some((wait_at, wait))) if wait_at < session_at => Some(Due::Wait(*wait)),
            (Some((_, session)), _) => Some(Due::Session(*session)),
            (None, Some((_, wait))) => Some(Due::Wait(*wait)),
            (None, None) => None,
        }
    }
}
