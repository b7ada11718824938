//! When to end a command whose lock is not being renewed. Arithmetic only.

use std::time::Duration;

/// What to do with so much of the lease left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Let it run, and look again after this at the latest.
    Run { at_most: Duration },
    /// End it politely; after this, otherwise.
    Terminate { at_most: Duration },
    /// Kill it now.
    Kill,
}

/// Fixed points of a lease, as what is left of it.
///
/// - A renewal is due after a third of the TTL and the SDK counts a lease shorter than the cluster does. So a lease in
///   good order never comes near the last quarter, where all of this lies.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    terminate_at: Duration,
    kill_at: Duration,
}

impl Plan {
    /// `kill_after` lies between TERM and KILL, if the lease is long enough.
    pub fn new(ttl: Duration, kill_after: Duration) -> Plan {
        // A killed group is gone in milliseconds; the rest is for a machine under load.
        let kill_at = (ttl / 20).clamp(Duration::from_millis(100), Duration::from_secs(1));
        let grace = kill_after.min((ttl / 4).saturating_sub(kill_at));
        Plan { terminate_at: kill_at + grace, kill_at }
    }

    /// When the watchdog kills, which it has to do only if this process does not.
    pub fn watchdog_at(&self) -> Duration {
        self.kill_at / 2
    }

    /// What to do with `remaining` left.
    pub fn next(&self, remaining: Duration) -> Next {
        if remaining <= self.kill_at {
            Next::Kill
        } else if remaining <= self.terminate_at {
            Next::Terminate { at_most: remaining - self.kill_at }
        } else {
            Next::Run { at_most: remaining - self.terminate_at }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_long_lease_gives_all_the_time_asked_for() {
        let plan = Plan::new(ms(30_000), ms(5_000));
        assert_eq!(plan.next(ms(20_000)), Next::Run { at_most: ms(14_000) });
        assert_eq!(plan.next(ms(6_000)), Next::Terminate { at_most: ms(5_000) });
        assert_eq!(plan.next(ms(1_000)), Next::Kill);
        assert_eq!(plan.watchdog_at(), ms(500));
    }

    #[test]
    fn a_short_lease_gives_what_it_can() {
        for ttl in [1_000, 2_000, 4_000, 10_000] {
            let plan = Plan::new(ms(ttl), ms(5_000));
            let (terminate_at, kill_at) = (plan.terminate_at, plan.kill_at);
            assert!(ms(100) <= kill_at && kill_at < terminate_at, "{plan:?}");
            // A renewal that is answered leaves more than half.
            assert!(terminate_at <= ms(ttl / 4), "{plan:?}");
        }
    }

    #[test]
    fn no_patience_means_no_politeness() {
        let plan = Plan::new(ms(30_000), Duration::ZERO);
        assert_eq!(plan.next(ms(1_001)), Next::Run { at_most: ms(1) });
        assert_eq!(plan.next(ms(1_000)), Next::Kill);
    }
}
