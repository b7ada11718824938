//! Crash points of the store: whatever was told is there, nothing that was not asked for is, after a power cut at any
//! moment; and a store whose disk failed writes nothing more.
//!
//! A [`script`] is a random history of a store with a reference model beside it, [`run`](mod@run) performs it and notes
//! what was asked and told, [`walk`](mod@walk) cuts the power after every event of it, [`faults`] lets every call of it
//! fail in turn, and [`damage`] flips bits of what a stopped node left. All on the simulated disk of the store's own
//! `simdisk`; the [`rig`] is what tests of the store share.
//!
//! One seed is one history: [`run_seed`] puts it through all of them. Everything random follows from the seed.

pub mod damage;
pub mod faults;
pub mod rig;
pub mod run;
pub mod script;
pub mod walk;

use raftlock_server::store::simdisk::Fault;

use crate::tally::Tally;

/// Steps of a history whose every event is a crash point.
const STEPS: usize = 30;

/// Steps of a history that is run again for each of its calls: the cost is the square of it.
const STEPS_OF_FAULTS: usize = 12;

/// Puts the history of one seed through everything, with at most so many images of its walk.
///
/// # Panics
/// When a check fails. The message has the seed and the place.
pub fn run_seed(seed: u64, images: u64) -> Tally {
    let mut tally = Tally::default();
    tally.add("store histories", 1);
    tally.merge(&walk::walk(seed, STEPS, images));
    // One kind of fault a seed: each run of a history is short, and there are hundreds.
    let fault = [Fault::Eio, Fault::Enospc, Fault::PowerCut][(seed % 3) as usize];
    tally.merge(&faults::at_every_call(seed, STEPS_OF_FAULTS, fault));
    tally.merge(&damage::of_a_stopped_image(seed, STEPS));
    tally
}
