//! Distributed locks that renew themselves, fail over, tell you when they are lost, and release on drop.
//!
//! A lock is a lease, and a holder that is frozen (a stopped process, a paused virtual machine, a long page-in) does
//! not notice that its lease ends. [`LockGuard::lost`] fires before the cluster can grant the lock to another, without
//! any network, but only in a process that runs. So give [`LockGuard::token`] to the resource that the lock protects,
//! and let it refuse a token lower than the highest it has seen: tokens rise with every grant of the cluster.
//!
//! ```no_run
//! use std::time::Duration;
//! use raftlock::{Client, FencingToken};
//!
//! # async fn charge(token: FencingToken) -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let client = Client::connect("http://n1:50051,http://n2:50051,http://n3:50051").await?;
//! let guard = client.lock("payment:42").wait(Duration::from_secs(5)).await?;
//! tokio::select! {
//!     charged = charge(guard.token()) => charged?,
//!     why = guard.lost() => return Err(why.into()),
//! }
//! guard.release().await?; // or drop it
//! client.close().await; // else the last releases may be lost with the process
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! - **Renewal** runs on a thread of the client's own, every third of the TTL, so a blocked runtime loses no lock.
//!   A holder rides out a gap of `g` seconds without a leader if its TTL is above 1.5·(g + 0.5 s).
//! - **Fail-over**: name all servers. While a lock is held the next one is asked at once; a waiter keeps its place in
//!   the queue, and a request whose answer was lost never makes a second holder.
//! - **Release**: by [`LockGuard::release`] or by dropping the guard, on any thread, repeated until it is answered or
//!   the lease is over.
//! - **Not** re-entrant, and no upgrade from shared to exclusive: a second acquire by the same client waits.
//!
//! # Code map
//!
//! `client` and `lock` post commands to the `keeper`, which owns the sessions (`session`, with `lease` and `tickets`),
//! chooses `endpoints`, and speaks through `transport` in the words of `wire`, packed by `outbox`. `guard` looks at its lease by itself.

#![warn(missing_docs)]

mod client;
mod config;
mod endpoints;
mod error;
mod guard;
mod info;
mod keeper;
mod lease;
mod limits;
mod lock;
mod outbox;
mod planted;
mod process;
mod retry;
#[doc(hidden)]
pub mod seams;
mod session;
mod tickets;
mod transport;
mod wire;

pub use client::Client;
#[doc(hidden)]
pub use config::address;
pub use config::{ClientBuilder, DEFAULT_CONNECT_TIMEOUT, DEFAULT_TTL, ENDPOINTS_ENV, Endpoints};
pub use error::{EndpointFailure, Error, ErrorKind, Unavailable, WaitTimeout};
pub use guard::{GuardState, LockGuard, LostReason};
pub use info::{FencingToken, Holder, LockInfo, LockPage, LockSummary, Mode, Waiter};
pub use lock::LockBuilder;
pub use tokio_util::sync::CancellationToken;
