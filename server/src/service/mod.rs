//! The ports: what comes in over gRPC is checked for its shape, turned into our types, and handed on.
//!
//! ```text
//! lock      the public unary calls
//! session   the public session stream
//! admin     what an operator asks one node
//! peer      the receiving end of the peer protocol: Raft, relay, discovery
//! convert   wire <-> lock-table types; wire types stop here
//! status    our errors -> gRPC statuses, in one place
//! gate      how many connections a port takes, and how long one may stay silent
//! serve     a tonic router on a listener until told to stop
//! ```

pub mod admin;
pub mod convert;
pub mod gate;
pub mod lock;
pub mod peer;
pub mod serve;
pub mod session;
pub mod status;
