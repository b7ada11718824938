//! The only place in the server that reads a clock.
//!
//! [`LeaderClock`] turns the leader's monotonic clock into the `dt` of its batches. Invariant: over any span, the sum
//! of the `dt`s is at most the time that passed, so cluster time never runs faster than real time and no lease ends
//! early. What a stall loses is lost for good; it is never caught up by later batches (etcd issue 15247 is what
//! happens otherwise). The wall clock is read once in a cluster's life, for its first fencing token.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the leader moves cluster time while any session lives.
pub const TICK: Duration = Duration::from_millis(200);

/// The most time that one batch may add. Above it the leader was stalled, and leases must not pay for that.
pub const DT_MAX: Duration = Duration::from_millis(2 * TICK.as_millis() as u64);

/// A gap between two batches above this counts as a stall in `status`.
const STALL: Duration = Duration::from_millis(3 * TICK.as_millis() as u64);

/// Time, passed in so that a simulation can bring its own.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Time since some fixed instant, never backwards.
    fn monotonic(&self) -> Duration;
    /// Seconds since 1970, for the first fencing token of a cluster and nothing else.
    fn unix_seconds(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// The usual way to hand it to a node.
    #[allow(clippy::disallowed_methods, reason = "this is the clock file")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock file")]
    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

/// The clock of one term of office: how much time each batch adds.
#[derive(Debug)]
pub struct LeaderClock {
    clock: Arc<dyn Clock>,
    /// When the previous batch of this leader was closed. The first batch has none, and adds no time.
    closed: Option<Duration>,
    /// What rounding down to milliseconds left over.
    rest: Duration,
    stalls: u64,
}

impl LeaderClock {
    /// A leader's clock, at the beginning of its office.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        LeaderClock { clock, closed: None, rest: Duration::ZERO, stalls: 0 }
    }

    /// The `dt` in milliseconds of the batch that was closed just now. Called once a batch, after it was closed: a
    /// renewal that was there before the clock was read is in the batch.
    ///
    /// `ticking`: whether a tick was due since the batch before, so that a long gap is a stall and not idleness.
    pub fn close_batch(&mut self, ticking: bool) -> u64 {
        let now = self.clock.monotonic();
        let Some(before) = self.closed.replace(now) else { return 0 };
        let passed = now.saturating_sub(before);
        self.stalls += u64::from(ticking && passed > STALL);
        let dt = (passed + self.rest).min(DT_MAX);
        let ms = dt.as_millis() as u64;
        self.rest = dt - Duration::from_millis(ms);
        ms
    }

    /// How often a batch came more than three ticks after the one before.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct FakeClock(AtomicU64);

    impl FakeClock {
        fn advance(&self, micros: u64) {
            self.0.fetch_add(micros, Ordering::Relaxed);
        }
    }

    impl Clock for FakeClock {
        fn monotonic(&self) -> Duration {
            Duration::from_micros(self.0.load(Ordering::Relaxed))
        }

        fn unix_seconds(&self) -> u64 {
            0
        }
    }

    #[test]
    fn the_first_batch_of_a_leader_adds_no_time() {
        let clock = Arc::new(FakeClock::default());
        clock.advance(5_000_000);
        let mut leader = LeaderClock::new(clock.clone());
        assert_eq!(leader.close_batch(true), 0);
        clock.advance(7_000);
        assert_eq!(leader.close_batch(true), 7);
    }

    #[test]
    fn what_rounding_leaves_over_is_carried() {
        let clock = Arc::new(FakeClock::default());
        let mut leader = LeaderClock::new(clock.clone());
        leader.close_batch(true);
        let mut sum = 0;
        for _ in 0..1_000 {
            clock.advance(1_700);
            sum += leader.close_batch(true);
        }
        assert_eq!(sum, 1_700);
    }

    #[test]
    fn a_stall_is_lost_and_not_caught_up() {
        let clock = Arc::new(FakeClock::default());
        let mut leader = LeaderClock::new(clock.clone());
        leader.close_batch(true);
        clock.advance(5_000_000);
        assert_eq!(leader.close_batch(true), DT_MAX.as_millis() as u64);
        for _ in 0..100 {
            clock.advance(1_000);
            assert_eq!(leader.close_batch(true), 1, "a quick batch after a stall adds what passed, no more");
        }
        assert_eq!(leader.stalls(), 1);
        clock.advance(5_000_000);
        assert_eq!(leader.close_batch(false), DT_MAX.as_millis() as u64);
        assert_eq!(leader.stalls(), 1, "nobody needed time to move: that was no stall");
    }
}
