//! The only place in the server that reads a clock.
//!
//! [`LeaderClock`] turns the leader's monotonic clock into the `dt` of its batches. Invariant: over any span, the sum
//! of the `dt`s is at most the time that passed, so cluster time never runs faster than real time and no lease ends
//! early. What a stall loses is lost for good; it is never caught up by later batches (etcd issue 15247 is what
//! happens otherwise). The wall clock is read once in a cluster's life, for its first fencing token.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lock_table::planted;

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

/// Lets other threads have the processor first; whether that took at most `limit`. By the runtime's clock, which stands
/// while a simulation does this: what follows from it differs on no run of a seed.
pub(crate) fn offer_processor(limit: Duration) -> bool {
    let offered = tokio::time::Instant::now();
    std::thread::yield_now();
    offered.elapsed() <= limit
}

/// Planted: what no apply may read. Nothing calls it in an ordinary build.
#[allow(clippy::disallowed_methods, reason = "this is the clock file")]
pub(crate) fn wall_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
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
        let closed = planted::is("naive-clock").then(|| clock.monotonic());
        LeaderClock { clock, closed, rest: Duration::ZERO, stalls: 0 }
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
        let dt_max = if planted::is("no-clamp") { Duration::MAX } else { DT_MAX };
        let dt = (passed + self.rest).min(dt_max);
        if planted::is("clamp-without-reanchor") || planted::is("naive-clock") {
            self.closed = Some(before + dt);
        }
        let ms = dt.as_millis() as u64;
        self.rest = dt - Duration::from_millis(ms);
        ms
    }

    /// How often a batch came more than three ticks after the one before.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }
}

/// How long cluster time is watched before something is said of it. Batches come up to two ticks apart, which is less
/// than a tenth of this.
const PACE_SPAN: Duration = Duration::from_secs(5);

/// How far cluster time may be off this node's clock, in percent. The clocks of a cluster may differ by half a percent,
/// and a span is measured to within a tenth; what is beyond this is a fault of a machine.
const PACE_BOUND_PERCENT: u64 = 20;

/// How cluster time moves, by this node's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As it should.
    Steady,
    /// It stands or lags: the leader stalls, or cannot commit. Leases last longer than they should.
    Slow,
    /// The leader's clock runs away, or this node's stands still. Leases may end early.
    Fast,
}

/// Compares how cluster time moves, as the leader makes it, with this node's own clock (T11). It only tells: a node
/// cannot know which of two clocks is wrong, and no decision hangs on it.
#[derive(Clone, Debug, Default)]
pub struct PaceGauge {
    /// Where the present span began: this node's clock, cluster time.
    began: Option<(Duration, Duration)>,
}

impl PaceGauge {
    /// Takes a measurement; at the end of a span says how it went. `cluster` is `None` while cluster time need not move,
    /// or nobody leads: then the span is given up.
    pub fn observe(&mut self, own: Duration, cluster: Option<Duration>) -> Option<Pace> {
        let Some(cluster) = cluster else {
            self.began = None;
            return None;
        };
        let (own_began, cluster_began) = *self.began.get_or_insert((own, cluster));
        let passed = own.saturating_sub(own_began);
        if passed < PACE_SPAN {
            return None;
        }
        self.began = Some((own, cluster));
        let percent =
            cluster.saturating_sub(cluster_began).as_millis() as u64 * 100 / passed.as_millis() as u64;
        Some(match percent {
            percent if percent < 100 - PACE_BOUND_PERCENT => Pace::Slow,
            percent if percent > 100 + PACE_BOUND_PERCENT => Pace::Fast,
            _ => Pace::Steady,
        })
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

    /// What a gauge says of cluster time that moves `percent` as fast as this node's clock, for 6 s.
    fn pace(percent: u64) -> Vec<Pace> {
        let mut gauge = PaceGauge::default();
        let at = |tick: u64| Duration::from_millis(tick * 200);
        (0..=30).filter_map(|tick| gauge.observe(at(tick), Some(at(tick) * percent as u32 / 100))).collect()
    }

    #[test]
    fn cluster_time_that_is_far_off_this_nodes_clock_is_told() {
        assert_eq!(pace(100), [Pace::Steady]);
        assert_eq!(pace(90), [Pace::Steady], "a late batch is no fault");
        assert_eq!((pace(0), pace(50)), (vec![Pace::Slow], vec![Pace::Slow]));
        assert_eq!(pace(200), [Pace::Fast]);
    }

    #[test]
    fn a_span_without_a_leader_says_nothing() {
        let mut gauge = PaceGauge::default();
        let seconds = Duration::from_secs;
        assert_eq!(gauge.observe(seconds(0), Some(seconds(0))), None);
        assert_eq!(gauge.observe(seconds(4), None), None);
        assert_eq!(gauge.observe(seconds(8), Some(seconds(0))), None, "a new span begins");
        assert_eq!(gauge.observe(seconds(13), Some(seconds(5))), Some(Pace::Steady));
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
