//! The leader's clock under schedules of offices, quick batches and stalls: cluster time never runs faster than real
//! time, over any span and not only in the end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock_server::clock::{Clock, DT_MAX, LeaderClock};

use crate::tally::Tally;
use crate::world::lock;

/// Offices in one schedule, and batches in one office.
const OFFICES: u64 = 4;
const BATCHES: u64 = 60;

#[derive(Clone, Debug, Default)]
struct Hand(Arc<Mutex<Duration>>);

impl Clock for Hand {
    fn monotonic(&self) -> Duration {
        *lock(&self.0)
    }

    fn unix_seconds(&self) -> u64 {
        0
    }
}

/// Runs the schedule of one seed.
///
/// # Errors
/// What was wrong, and where.
pub fn run(seed: u64) -> Result<Tally, String> {
    let (mut rng, hand) = (fastrand::Rng::with_seed(seed), Hand::default());
    let mut tally = Tally::default();
    tally.add("clock schedules", 1);
    for office in 0..OFFICES {
        pass(&mut rng, &hand, &mut tally);
        let mut clock = LeaderClock::new(Arc::new(hand.clone()));
        // Real time and cluster time at the end of each batch of this office.
        let mut ends: Vec<(Duration, Duration)> = Vec::new();
        for batch in 0..BATCHES {
            pass(&mut rng, &hand, &mut tally);
            let dt = Duration::from_millis(clock.close_batch(true));
            let wrong = |what: &str| Err(format!("office {office}, batch {batch}: {what}: dt {dt:?}"));
            let Some((_, before)) = ends.last().copied() else {
                if !dt.is_zero() {
                    return wrong("T1: the first batch of a leader adds time");
                }
                ends.push((hand.monotonic(), Duration::ZERO));
                continue;
            };
            if dt > DT_MAX {
                return wrong("T2: a stall is not lost");
            }
            let (now, cluster) = (hand.monotonic(), before + dt);
            // What rounding left over of the batch before the span may fall into it: below a millisecond.
            let faster =
                |(real, at): &(Duration, Duration)| cluster - *at > now - *real + Duration::from_millis(1);
            if ends.iter().any(faster) {
                return wrong("T1: over some span cluster time ran faster than real time");
            }
            ends.push((now, cluster));
        }
    }
    Ok(tally)
}

/// Lets some time pass: mostly what lies between two batches, at times a stall.
fn pass(rng: &mut fastrand::Rng, hand: &Hand, tally: &mut Tally) {
    let stall = rng.u8(0..12) == 0;
    tally.add("stalls of a leader", stall.into());
    let micros = if stall { rng.u64(600_000..8_000_000) } else { rng.u64(100..250_000) };
    *lock(&hand.0) += Duration::from_micros(micros);
}
