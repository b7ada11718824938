//! The SDK alone, in thousands of schedules: guards dropped in every way, renewals that race the end of a lease, acquires
//! dropped just when they are granted, answers that come late and over connections that are no more.
//!
//! One thread and tokio's paused time. The clients are the product's; the leader is its lock table and its session streams
//! without a log ([`raftlock_server::testing::desk`]), so that a schedule takes a few milliseconds. Connections lead through
//! lines that delay, swallow and cut.
//!
//! ```text
//! lines  connections in memory, and what happens to them
//! desk   the leader behind them
//! app    what applications do with their guards
//! run    one schedule, and what must hold of it
//! ```

mod app;
mod desk;
mod lines;
mod run;

pub use run::run;
