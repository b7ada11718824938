//! Which lock, and for how long: the flags that `lock`, `renew` and `run` share.

use std::time::Duration;

use super::values;

/// A lock and the lease that is asked for it.
#[derive(Debug, clap::Args)]
pub struct Lease {
    /// Name of the lock.
    #[arg(value_name = "RESOURCE")]
    pub resource: String,
    /// Length of the lease: 30s, or a number of seconds; 0 is the server's default, for `run` 30s. A holder that
    /// renews rides out a change of leader from about 4s on.
    #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true, value_parser = values::duration)]
    pub ttl: Duration,
}
