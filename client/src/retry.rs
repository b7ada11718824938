//! How long to pause between rounds of failed connections. The only user of the `backoff` crate.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

use crate::seams::Random;

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// While a lock is held: only so long that a round of refused connections does not spin.
const PAUSE_HELD: Duration = Duration::from_millis(100);
/// A server may ask for more patience than our policy has, but not for any amount.
const PAUSE_ASKED_MAX: Duration = Duration::from_secs(5);
/// A client that was thrown off one server together with a thousand others must not reach the next with them.
const SPREAD: f64 = 0.5;

#[derive(Debug)]
pub(crate) struct Retry {
    policy: ExponentialBackoff,
}

impl Retry {
    pub(crate) fn new() -> Retry {
        let mut policy = ExponentialBackoff {
            initial_interval: PAUSE_FIRST,
            current_interval: PAUSE_FIRST,
            max_interval: PAUSE_MAX,
            multiplier: 2.0,
            // The spread comes from the client's own seed, and the end from the caller's patience.
            randomization_factor: 0.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        policy.reset();
        Retry { policy }
    }

    /// A server does what it should.
    pub(crate) fn reset(&mut self) {
        self.policy.reset();
    }

    /// While a lock is held.
    pub(crate) fn pause_held(&self, random: &mut Random) -> Duration {
        random.around(PAUSE_HELD, SPREAD)
    }

    /// While none is. `lease` is what is left of a session that still may be saved; a quarter of it at most is spent.
    pub(crate) fn pause(
        &mut self,
        random: &mut Random,
        asked: Option<Duration>,
        lease: Option<Duration>,
    ) -> Duration {
        let own = self.policy.next_backoff().unwrap_or(PAUSE_MAX);
        let asked = asked.unwrap_or_default().min(PAUSE_ASKED_MAX);
        let pause = random.around(own, SPREAD).max(asked);
        lease.map_or(pause, |lease| pause.min(lease / 4).max(PAUSE_FIRST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_again_after_success() {
        let mut random = Random::new(Some(1)).unwrap();
        let mut retry = Retry::new();
        let pauses: Vec<Duration> = (0..12).map(|_| retry.pause(&mut random, None, None)).collect();
        assert!(pauses[0] <= PAUSE_FIRST.mul_f64(1.5), "{pauses:?}");
        assert!(pauses[11] >= PAUSE_MAX.mul_f64(0.5) && pauses[11] <= PAUSE_MAX.mul_f64(1.5), "{pauses:?}");
        retry.reset();
        assert!(retry.pause(&mut random, None, None) <= PAUSE_FIRST.mul_f64(1.5));
    }

    #[test]
    fn a_server_may_ask_for_more_and_a_lease_for_less() {
        let mut random = Random::new(Some(1)).unwrap();
        let mut retry = Retry::new();
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(retry.pause(&mut random, Some(second), None), second);
        assert_eq!(retry.pause(&mut random, Some(minute), None), PAUSE_ASKED_MAX);
        assert_eq!(retry.pause(&mut random, Some(minute), Some(second)), second / 4);
    }
}
