//! When a lease is over, as its holder must see it: earlier than the cluster, never later.
//!
//! [`Lease`] is the arithmetic of one session; instants are arguments. [`LeaseCell`] is what guards on any thread
//! look at. The keeper writes it; a guard that sees the deadline pass closes it for good.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::planted;
use crate::process::Process;
use crate::seams::Clock;

/// A reading of the lease clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(Duration);

impl BootTime {
    pub(crate) fn read(clock: &Clock) -> BootTime {
        BootTime(clock())
    }

    /// How long until `later`; zero if it has passed.
    pub(crate) fn until(self, later: BootTime) -> Duration {
        later.0.saturating_sub(self.0)
    }

    fn plus(self, duration: Duration) -> BootTime {
        BootTime(self.0 + duration)
    }

    fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).expect("a machine does not run for 584 years")
    }
}

/// Counts a client's opens and renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(pub u64);

/// What an answer did to the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The lease now ends then.
    Until(BootTime),
    /// It told nothing new.
    Known,
    /// It came after the end, and changes nothing about that.
    Late,
}

/// The lease of one session, from the renewals it sent and the answers it got.
///
/// - The deadline counts from before the *first* queueing of the number that the answer names. The cluster counts
///   from when it applied that number, which is later.
/// - An answer never moves the deadline past what its own number allows, nor past what a shorter lease that was
///   asked for since allows: the cluster may have applied that one already.
#[derive(Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    queued: BTreeMap<Number, Queued>,
    covered: Option<Number>,
    /// The TTL of the highest answered number.
    granted: Option<Duration>,
    deadline: Option<BootTime>,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    at: BootTime,
    ttl: Duration,
}

impl Queued {
    fn end(&self) -> BootTime {
        self.at.plus(self.ttl - margin(self.ttl))
    }
}

/// What the holder gives up of each lease: the rate error of two clocks, and the time between looking and acting.
pub(crate) fn margin(ttl: Duration) -> Duration {
    (ttl / 100).max(Duration::from_millis(50))
}

impl Lease {
    pub(crate) fn new(ttl: Duration) -> Lease {
        Lease { ttl, queued: BTreeMap::new(), covered: None, granted: None, deadline: None }
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// For the renewals queued from now on.
    pub(crate) fn set_ttl(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    /// The cluster does not take the TTL that was set: back to the last one it took. False if that is the same.
    pub(crate) fn forget_ttl(&mut self) -> bool {
        let taken = self.granted.unwrap_or(self.ttl);
        std::mem::replace(&mut self.ttl, taken) != taken
    }

    pub(crate) fn deadline(&self) -> Option<BootTime> {
        self.deadline
    }

    /// A number is about to be queued. Returns the deadline if a shorter lease pulls it in: from here on the
    /// cluster may count the shorter one.
    pub(crate) fn queue(&mut self, number: Number, at: BootTime) -> Option<BootTime> {
        let queued = *self.queued.entry(number).or_insert(Queued { at, ttl: self.ttl });
        let pulled_in = self.deadline.filter(|&deadline| queued.end() < deadline).map(|_| queued.end());
        self.deadline = pulled_in.or(self.deadline);
        pulled_in
    }

    /// Numbers above the highest answered one are still open.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.queued
            .last_key_value()
            .is_some_and(|(&last, _)| self.covered.is_none_or(|covered| covered < last))
    }

    /// The cluster says that `number` is the highest the lease counts from.
    pub(crate) fn answered(&mut self, number: Number, now: BootTime) -> Answer {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Answer::Late;
        }
        if self.covered.is_some_and(|covered| covered >= number) || !self.queued.contains_key(&number) {
            return Answer::Known;
        }
        let end = self.queued.range(number..).map(|(_, queued)| queued.end()).min();
        let mut end = end.expect("the number itself is in the range");
        if planted::is("deadline-from-reply") {
            end = now.plus(self.queued[&number].ttl);
        }
        if now >= end {
            return Answer::Late;
        }
        self.granted = Some(self.queued[&number].ttl);
        self.queued.retain(|&queued, _| queued > number);
        self.covered = Some(number);
        self.deadline = Some(end);
        Answer::Until(end)
    }
}

/// An answer takes a round trip and a commit: nothing gets less time.
const ANSWER_LIMIT_MIN: Duration = Duration::from_millis(100);

/// However long the TTL: a stream that leaves a renewal unanswered for so long answers nothing else either, and whoever
/// waits on it would not hear of its grant. HTTP/2 pings (`transport.rs`) find the dead connections, but not a server
/// that lives and has lost its way. Five seconds are more than an election; asking elsewhere then costs one read.
const ANSWER_LIMIT_MAX: Duration = Duration::from_secs(5);

/// How long a renewal may stay unanswered before the next endpoint is asked: a ninth of the TTL, but of what is `left` of
/// the lease only such a share that each of `ways` endpoints can be asked in turn before it is over. That is less than a
/// ninth late in a lease, and while a longer TTL is asked for than the cluster has granted.
pub(crate) fn answer_limit(ttl: Duration, left: Option<Duration>, ways: u32) -> Duration {
    let share = left.map_or(Duration::MAX, |left| left / (ways + 1));
    (ttl / 9).min(share).clamp(ANSWER_LIMIT_MIN, ANSWER_LIMIT_MAX)
}

/// No lease: nothing was answered yet, or it is over.
const OVER: u64 = 0;

/// The deadline that guards see, on any thread and without the keeper.
///
/// - Once over, over for good: whoever sees the deadline pass closes the cell, and a closed cell never opens. So a
///   renewal that comes late cannot make a lock held again that was once seen as lost.
pub(crate) struct LeaseCell {
    /// Nanoseconds on the lease clock, or [`OVER`].
    deadline: AtomicU64,
    at_risk: AtomicBool,
    clock: Clock,
    /// A forked child has a copy of this cell but no keeper, and must not believe that it holds anything.
    process: Process,
}

impl LeaseCell {
    pub(crate) fn new(clock: Clock, deadline: BootTime) -> LeaseCell {
        LeaseCell {
            deadline: AtomicU64::new(deadline.nanos()),
            at_risk: AtomicBool::new(false),
            clock,
            process: Process::current(),
        }
    }

    /// What is left; `None` once over.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        if Process::current() != self.process {
            return None;
        }
        loop {
            let deadline = self.deadline.load(Ordering::Acquire);
            if deadline == OVER {
                return None;
            }
            let now = BootTime::read(&self.clock).nanos();
            if now < deadline {
                return Some(Duration::from_nanos(deadline - now));
            }
            // The keeper may have moved the deadline since it was read; then look again.
            if self.deadline.compare_exchange(deadline, OVER, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return None;
            }
        }
    }

    /// Moves the deadline. False if the lease is over: then it stays so.
    pub(crate) fn set(&self, deadline: BootTime) -> bool {
        let moved = |old| (old != OVER).then_some(deadline.nanos());
        self.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, moved).is_ok()
    }

    pub(crate) fn end(&self) {
        self.deadline.store(OVER, Ordering::Release);
    }

    pub(crate) fn set_at_risk(&self, at_risk: bool) {
        self.at_risk.store(at_risk, Ordering::Release);
    }

    pub(crate) fn is_at_risk(&self) -> bool {
        self.at_risk.load(Ordering::Acquire)
    }
}

impl fmt::Debug for LeaseCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseCell").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn lease(ttl_ms: u64, queued: &[(u64, u64)]) -> Lease {
        let mut lease = Lease::new(Duration::from_millis(ttl_ms));
        for &(number, ms) in queued {
            lease.queue(Number(number), at(ms));
        }
        lease
    }

    #[test]
    fn the_margin_is_one_percent_but_at_least_50_ms() {
        assert_eq!(margin(Duration::from_secs(1)), Duration::from_millis(50));
        assert_eq!(margin(Duration::from_secs(5)), Duration::from_millis(50));
        assert_eq!(margin(Duration::from_secs(30)), Duration::from_millis(300));
    }

    #[test]
    fn the_deadline_counts_from_the_queueing_of_the_number_that_is_answered() {
        // (renewals as (number, queued at), answers as (number, at, what it says)), TTL 10 s, margin 100 ms.
        type Case<'a> = (&'a [(u64, u64)], &'a [(u64, u64, Answer)]);
        let until = |ms| Answer::Until(at(ms));
        let cases: [Case; 7] = [
            (&[(1, 1_000)], &[(1, 1_005, until(10_900))]),
            // A slow answer gives no more time than a quick one.
            (&[(1, 1_000)], &[(1, 9_000, until(10_900))]),
            // Queued again under the same number: the first time counts.
            (&[(1, 1_000), (1, 4_000)], &[(1, 4_005, until(10_900))]),
            // An old answer after a new one tells nothing.
            (&[(1, 0), (2, 3_000)], &[(2, 3_005, until(12_900)), (1, 3_006, Answer::Known)]),
            // A number that was never queued gives nothing to count from.
            (&[(1, 0)], &[(7, 5, Answer::Known)]),
            // At the deadline or after it, the lease is lost, whatever the answer says.
            (&[(1, 0), (2, 9_000)], &[(1, 1, until(9_900)), (2, 9_900, Answer::Late)]),
            (&[(1, 0)], &[(1, 9_900, Answer::Late)]),
        ];
        for (queued, answers) in cases {
            let mut lease = lease(10_000, queued);
            for &(number, now, want) in answers {
                assert_eq!(lease.answered(Number(number), at(now)), want, "{queued:?} {answers:?}");
            }
        }
    }

    #[test]
    fn a_shorter_lease_counts_from_when_it_is_asked_for() {
        let mut lease = lease(30_000, &[(1, 0), (2, 1_000)]);
        assert_eq!(lease.answered(Number(1), at(10)), Answer::Until(at(29_700)));
        lease.set_ttl(Duration::from_secs(5));
        assert_eq!(lease.queue(Number(3), at(2_000)), Some(at(6_950)));
        // The answer to a renewal for 30 s, sent before, does not undo that.
        assert_eq!(lease.answered(Number(2), at(2_100)), Answer::Until(at(6_950)));
        assert_eq!(lease.answered(Number(3), at(2_200)), Answer::Until(at(6_950)));
        // A longer one counts from its answer on.
        lease.set_ttl(Duration::from_secs(30));
        assert_eq!(lease.queue(Number(4), at(3_000)), None);
        assert_eq!(lease.deadline(), Some(at(6_950)));
        assert_eq!(lease.answered(Number(4), at(3_100)), Answer::Until(at(32_700)));
    }

    #[test]
    fn open_numbers_are_known() {
        let mut lease = lease(10_000, &[(1, 0), (2, 10)]);
        assert!(lease.is_unanswered());
        lease.answered(Number(1), at(20));
        assert!(lease.is_unanswered());
        lease.answered(Number(2), at(20));
        assert!(!lease.is_unanswered());
    }

    #[test]
    fn a_renewal_may_stay_unanswered_for_a_ninth_of_the_ttl_and_a_share_of_what_is_left() {
        let ms = Duration::from_millis;
        let limit = |ttl, left: Option<u64>, ways| answer_limit(ms(ttl), left.map(ms), ways);
        assert_eq!(limit(9_000, None, 3), ms(1_000));
        assert_eq!(limit(9_000, Some(5_910), 3), ms(1_000));
        assert_eq!(limit(600, None, 3), ms(100));
        // Late in the lease, and with a TTL that is not granted yet.
        assert_eq!(limit(9_000, Some(1_200), 3), ms(300));
        assert_eq!(limit(3_600_000, Some(1_200), 3), ms(300));
        assert_eq!(limit(9_000, Some(10), 3), ms(100));
        // A silent stream is noticed, however long the TTL.
        assert_eq!(limit(3_600_000, Some(2_000_000), 3), ms(5_000));
        // Whatever each way is given, all are asked before the lease is over.
        for (left, ways) in [(6_000, 3), (6_000, 9), (2_000, 5)] {
            let mut left = ms(left);
            for _ in 0..ways {
                left = left.saturating_sub(answer_limit(ms(9_000), Some(left), ways));
            }
            assert!(left > Duration::ZERO, "{ways} ways");
        }
    }

    #[test]
    fn a_ttl_that_is_not_taken_is_forgotten() {
        let mut lease = lease(9_000, &[(1, 0)]);
        assert_eq!(lease.answered(Number(1), at(10)), Answer::Until(at(8_910)));
        lease.set_ttl(Duration::from_secs(60));
        lease.queue(Number(2), at(1_000));
        assert!(lease.forget_ttl());
        assert_eq!(lease.ttl(), Duration::from_secs(9));
        assert!(!lease.forget_ttl());
    }

    #[test]
    fn a_cell_that_was_seen_over_never_opens_again() {
        let now = Arc::new(AtomicU64::new(0));
        let clock: Clock = {
            let now = now.clone();
            Arc::new(move || Duration::from_millis(now.load(Ordering::Relaxed)))
        };
        let cell = LeaseCell::new(clock, at(100));
        assert_eq!(cell.remaining(), Some(Duration::from_millis(100)));
        assert!(cell.set(at(200)));
        now.store(150, Ordering::Relaxed);
        assert_eq!(cell.remaining(), Some(Duration::from_millis(50)));
        now.store(200, Ordering::Relaxed);
        assert_eq!(cell.remaining(), None);
        assert!(!cell.set(at(900)));
        assert_eq!(cell.remaining(), None);
    }
}
