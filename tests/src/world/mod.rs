//! A whole cluster and its clients in one thread, on simulated time, network and disks: one seed, one run.
//!
//! The servers are the product's own code, openraft and SQLite included; so is the SDK. What they reach the world
//! through is ours: turmoil's network, tokio's paused clock, a disk that forgets what was not synced, and random numbers
//! that follow from the seed. The same seed gives the same run, line by line, if tokio's own choices are seeded too:
//! that takes `--cfg tokio_unstable` (see `tests/sim.rs`).
//!
//! ```text
//! plan     what a run is to be like, drawn from its seed
//! hosts    nodes on the simulated network, clock and disk
//! clients  what applications do, and what they saw
//! reader   somebody who only asks who holds what
//! freeze   a process that stands still
//! faults   what goes wrong, and when it is over
//! watch    what must hold of the log and of every node, looked at while it happens
//! run      chaos, calm, quiet; and what is checked at the end
//! ```

mod clients;
mod faults;
mod freeze;
pub(crate) mod hosts;
pub mod plan;
mod reader;
pub mod run;
mod watch;

use std::sync::{Mutex, MutexGuard};

pub use run::{Outcome, run};

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Brings tokio's counter of task ids to a multiple of 64: the ids choose the order in which a crashed host's tasks are
/// dropped, and that orders what its peers see.
pub(crate) fn align_task_ids() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        loop {
            let task = tokio::spawn(async {});
            let id: u64 = task.id().to_string().parse().expect("a task id is a number");
            task.await.expect("it does nothing");
            if id.is_multiple_of(64) {
                break;
            }
        }
    });
}
