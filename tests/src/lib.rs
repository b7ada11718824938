//! What the tests of the whole product share.
//!
//! - [`cluster`]: nodes in one process, on real ports; kill, restart, cut and heal. It is the kit that users have, in
//!   `raftlock_server::testing`.
//! - [`world`]: all of it in one thread, on simulated time, network and disks.
//! - [`founders`]: new nodes that found a cluster in that world, while everything goes wrong.
//! - [`history`]: what clients asked and were told, who believed to hold what, when, and under which token; and the checks
//!   that no run may fail. They have numbers, see `tests/README.md`.
//! - [`crash_points`]: every moment at which the store's disk can fail, and what must be there afterwards.
//! - [`clock_schedules`], [`table_rules`]: rules of the leader's clock and of the lock table that need no cluster.
//! - [`fuzz`]: bytes that nobody wrote, at every decoder.
//! - [`planted`]: bugs that the product has in one build only, and the suite that must find each.
//! - [`chaos`]: processes of the release binary on a real network and disk, while everything goes wrong.
//! - [`raw_codec`]: gRPC with bytes as they are.
//! - [`schedules`]: the SDK alone, over lines that fail, in thousands of schedules.
//! - [`tally`]: what a suite came to, in counts that add up.
//!
//! The checks look at what clients saw, never at what a server says of itself, except for the final state.

pub mod chaos;
pub mod clock_schedules;
pub mod cluster;
pub mod crash_points;
pub mod founders;
pub mod fuzz;
pub mod history;
pub mod planted;
pub mod raw_codec;
pub mod schedules;
pub mod table_rules;
pub mod tally;
pub mod world;

pub use raftlock_server::testing::wires;
