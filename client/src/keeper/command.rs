//! What callers and guards post to the keeper, and what they are answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::guard::GuardCell;
use crate::info::Contention;
use crate::session::Kind;
use crate::transport::{Answer, Question};
use crate::wire::Ask;

/// Names one call of one caller, and the guard that comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub u64);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What callers post. The queue has no limit of its own: each call in progress posts at most twice and each guard at
/// most thrice in its life, and guards are bounded by the locks that a session may have.
#[derive(Debug)]
pub(crate) enum Command {
    Connect {
        request: RequestId,
        reply: Reply<()>,
    },
    Acquire {
        request: RequestId,
        wish: Wish,
        reply: Reply<Acquired>,
    },
    /// The future of this acquire was dropped.
    Abandon {
        request: RequestId,
    },
    Release {
        request: RequestId,
        reply: Option<Reply<()>>,
    },
    Extend {
        request: RequestId,
        guard: RequestId,
        ttl: Duration,
        reply: Reply<()>,
    },
    Read {
        request: RequestId,
        question: Question,
        reply: Reply<Answer>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// One acquire as its caller wants it.
#[derive(Debug)]
pub(crate) struct Wish {
    pub ask: Arc<Ask>,
    pub ttl: Duration,
    pub kind: Kind,
    pub patience: Patience,
}

/// How long a caller waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not in the queue.
    Try,
    AtMost(Duration),
    Forever,
}

#[derive(Debug)]
pub(crate) enum Acquired {
    Granted {
        cell: Arc<GuardCell>,
        attempts: u32,
        endpoint: Arc<str>,
    },
    /// Only to [`Patience::Try`].
    Busy(Contention),
}
