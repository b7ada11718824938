//! Where our failures become gRPC statuses, with a machine-readable reason each.
//!
//! UNAVAILABLE: nothing was proposed, try again, here or elsewhere. DEADLINE_EXCEEDED with `OUTCOME_UNKNOWN`: it may
//! have happened; repeat it with the same request id. INVALID_ARGUMENT names the field and the bound.

use std::collections::HashMap;
use std::time::Duration;

use lock_table::Rejection;
use raftlock_proto::SESSION_REQUEST_BYTES_MAX;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::members::controller::Refused;
use crate::outbox::Ending;
use crate::raft::{Member, ReadError};

/// The `domain` of our `google.rpc.ErrorInfo`.
const DOMAIN: &str = "raftlock";

/// How long a caller does well to wait when an election is on: about as long as one takes.
const ELECTION_WAIT: Duration = Duration::from_millis(300);

/// How long to wait when the proposal queue is full: it drains thousands a tick.
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// A status with a reason, and a delay after which trying again may help.
pub fn with_reason(code: Code, reason: &str, message: impl Into<String>, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    if let Some(delay) = retry {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, message, details)
}

/// No leader is known here.
pub fn no_leader() -> Status {
    let message = "no leader is known to this node; nothing was proposed";
    with_reason(Code::Unavailable, "NO_LEADER", message, Some(ELECTION_WAIT))
}

/// Another node leads, and the caller asked not to be forwarded, or the leader changed just now.
pub fn not_leader(leader: Option<&(u64, Member)>) -> Status {
    let Some((id, node)) = leader else { return no_leader() };
    let hint = HashMap::from([
        ("leader_id".to_owned(), id.to_string()),
        ("leader_endpoint".to_owned(), node.client_address.clone()),
    ]);
    let mut details = ErrorDetails::with_error_info("NOT_LEADER", DOMAIN, hint);
    details.set_retry_info(Some(Duration::ZERO));
    let message = format!("this node is not the leader, {} is; nothing was proposed", node.name);
    Status::with_error_details(Code::Unavailable, message, details)
}

/// Too much waits to be proposed.
pub fn busy() -> Status {
    let message = "the queue of proposals is full; nothing was proposed";
    with_reason(Code::Unavailable, "QUEUE_BUSY", message, Some(BUSY_WAIT))
}

/// What a caller is told who wants a new lock of a leader with a low disk.
pub const DISK_LOW: &str =
    "the leader's disk is low: no new locks and sessions, nothing was executed; renewals and releases go on";

/// The leader's disk is low. No delay is named: it waits for an operator.
pub fn disk_low() -> Status {
    with_reason(Code::ResourceExhausted, "DISK_LOW", DISK_LOW, None)
}

/// The node starts, drains, or has stopped.
pub fn not_serving(what: &str) -> Status {
    with_reason(Code::Unavailable, "NOT_SERVING", format!("this node is {what}"), Some(ELECTION_WAIT))
}

/// Proposed, and the outcome did not come in time.
pub fn outcome_unknown() -> Status {
    let message = "the outcome is unknown: it may have been executed. Repeat it with the same request_id";
    with_reason(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", message, Some(ELECTION_WAIT))
}

/// What a stream of requests ended with, for whoever sent it: what is wrong with a message is the sender's fault, not ours.
pub fn unread(status: Status) -> Status {
    if status.code() == Code::Internal { invalid(status.message()) } else { status }
}

/// Input that can never be right.
pub fn invalid(message: impl Into<String>) -> Status {
    with_reason(Code::InvalidArgument, "INVALID_ARGUMENT", message, None)
}

/// A message above the bound of the public port.
pub fn too_large() -> Status {
    let message = format!("a message of at most {SESSION_REQUEST_BYTES_MAX} bytes is taken");
    with_reason(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message, None)
}

/// A session stream above the bound of the node.
pub fn too_many_streams(most: usize) -> Status {
    let message = format!("this node carries at most {most} session streams");
    with_reason(Code::ResourceExhausted, "TOO_MANY_STREAMS", message, Some(BUSY_WAIT))
}

/// A linearizable read could not be had here.
pub fn read_failed(error: &ReadError, leader: Option<&(u64, Member)>) -> Status {
    match error {
        ReadError::NotLeader => not_leader(leader),
        ReadError::NoQuorum => no_leader(),
        ReadError::Stopped(_) => not_serving("stopped"),
    }
}

/// What the table refused to execute.
pub fn rejected(rejection: &Rejection) -> Status {
    let (code, retry) = match rejection {
        Rejection::InvalidArgument { .. } | Rejection::RequestIdReused | Rejection::TicketGap { .. } => {
            (Code::InvalidArgument, None)
        }
        Rejection::CapacityMismatch { .. } | Rejection::TokenRequired => (Code::FailedPrecondition, None),
        Rejection::QueueFull { .. } | Rejection::LimitReached { .. } => (Code::ResourceExhausted, None),
        Rejection::NotConfigured => (Code::Unavailable, Some(ELECTION_WAIT)),
    };
    with_reason(code, reason(rejection), rejection.to_string(), retry)
}

/// A change of the membership that was not made.
pub fn membership(refused: &Refused) -> Status {
    let (code, reason) = match refused {
        Refused::NotLeader => return no_leader(),
        Refused::Unknown => (Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
        Refused::NotFound(_) => (Code::NotFound, "NO_SUCH_MEMBER"),
        Refused::Not(_) => (Code::FailedPrecondition, "MEMBERSHIP"),
        Refused::Invalid(_) => (Code::InvalidArgument, "INVALID_ARGUMENT"),
    };
    with_reason(code, reason, refused.to_string(), None)
}

/// The machine-readable word for a rejection, in statuses and on session streams alike.
pub fn reason(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::InvalidArgument { .. } => "INVALID_ARGUMENT",
        Rejection::RequestIdReused => "REQUEST_ID_REUSED",
        Rejection::TicketGap { .. } => "TICKET_GAP",
        Rejection::CapacityMismatch { .. } => "CAPACITY_MISMATCH",
        Rejection::QueueFull { .. } => "QUEUE_FULL",
        Rejection::LimitReached { .. } => "LIMIT_REACHED",
        Rejection::TokenRequired => "TOKEN_REQUIRED",
        Rejection::NotConfigured => "NOT_CONFIGURED",
    }
}

/// How a session stream ends. `None`: without an error.
pub fn stream_end(ending: Ending) -> Option<Status> {
    match ending {
        Ending::Done => None,
        Ending::SlowConsumer => Some(with_reason(
            Code::Aborted,
            "SLOW_CONSUMER",
            "the client does not read its stream; resume on a new one",
            None,
        )),
        Ending::Malformed(what) => Some(invalid(what)),
        Ending::TooLarge => Some(too_large()),
        Ending::Stopping => Some(not_serving("stopping")),
    }
}
