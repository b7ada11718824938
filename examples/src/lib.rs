//! What the examples stand on, beside the SDK: a private cluster, worker processes, a database that checks
//! tokens, and the time of day.
//!
//! None of it is needed to use RaftLock. What an application copies is in the examples themselves; of what is here,
//! [`fenced`] shows what a resource does with a token.

#![warn(missing_docs)]

pub mod cluster;
pub mod crew;
pub mod fenced;
pub mod local_time;
