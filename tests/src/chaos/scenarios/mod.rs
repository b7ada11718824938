//! What goes wrong: P1 to P17.

mod clocks;
mod disks;
mod everything;
mod kills;
mod members;
mod stops;
mod weather;

use std::time::Duration;

use tokio::time::Instant;

use super::stage::{Scenario, Stage};

/// All of them, in their order.
pub(crate) const ALL: [Scenario; 17] = [
    kills::ONE,
    kills::ALL_AT_ONCE,
    stops::LEADER,
    stops::CLIENTS,
    weather::PARTITIONS,
    weather::BAD,
    weather::LOST_ANSWERS,
    disks::FULL,
    disks::ERRORS,
    disks::SLOW,
    clocks::JUMPS,
    clocks::RATES,
    members::WIPED,
    members::REPLACED,
    disks::DAMAGED,
    members::ROLLING,
    everything::AT_ONCE,
];

/// Nothing is to be prepared.
fn as_it_is(_: &mut Stage) -> anyhow::Result<()> {
    Ok(())
}

/// The end of a time that begins now.
struct Until(Instant);

impl Until {
    fn over(length: Duration) -> Until {
        Until(Instant::now() + length)
    }

    fn is_not_yet(&self) -> bool {
        Instant::now() < self.0
    }
}
