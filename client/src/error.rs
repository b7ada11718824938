//! One error for callers, its variants named by what the caller can do; and what went wrong with one endpoint.
//!
//! This is the only file that turns a gRPC status into an error of ours.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic_types::StatusExt;

use crate::guard::LostReason;
use crate::info::{Contention, FencingToken};

/// What went wrong. [`kind`](Error::kind) is for a `match`, [`is_retryable`](Error::is_retryable) for a loop.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside its bounds. Nothing was asked of the cluster, or the cluster refused it.
    #[error("{0}")]
    InvalidArgument(String),
    /// The lock was not granted within the time that the caller gave. Nothing is held and nothing waits any more.
    #[error("{0}")]
    WaitTimeout(Box<WaitTimeout>),
    /// No server gave an answer in time.
    #[error("{0}")]
    Unavailable(Box<Unavailable>),
    /// The lock is not held any more.
    #[error("the lock is lost: {0}")]
    Lost(#[from] LostReason),
    /// [`Client::close`](crate::Client::close) was called, or the client's runtime is gone.
    #[error("the client is closed")]
    Closed,
    /// The lock is held or waited for with another capacity than this request names.
    #[error("{0}")]
    CapacityMismatch(String),
    /// As many wait for this lock as the cluster allows.
    #[error("{0}")]
    QueueFull(String),
    /// The cluster has as many sessions, or locks, as it allows.
    #[error("{0}")]
    LimitReached(String),
    /// The process forked after the client was made. Make a client in the child: two processes must not share one.
    #[error("this client was made in another process (before a fork); make a new one here")]
    Forked,
    /// The cluster refused for a reason that this version does not know.
    #[error("the cluster refused: {message} ({reason})")]
    #[non_exhaustive]
    Refused {
        /// As the cluster names it.
        reason: String,
        /// For people.
        message: String,
    },
    /// The operating system refused the keeper a thread or randomness.
    #[error("the operating system refused what the client needs: {0}")]
    System(#[source] Arc<std::io::Error>),
}

/// The variants of [`Error`], without their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// See [`Error::InvalidArgument`].
    InvalidArgument,
    /// See [`Error::WaitTimeout`].
    WaitTimeout,
    /// See [`Error::Unavailable`].
    Unavailable,
    /// See [`Error::Lost`].
    Lost,
    /// See [`Error::Closed`].
    Closed,
    /// See [`Error::CapacityMismatch`].
    CapacityMismatch,
    /// See [`Error::QueueFull`].
    QueueFull,
    /// See [`Error::LimitReached`].
    LimitReached,
    /// See [`Error::Forked`].
    Forked,
    /// See [`Error::Refused`].
    Refused,
    /// See [`Error::System`].
    System,
}

impl Error {
    /// Which variant this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Error::WaitTimeout(_) => ErrorKind::WaitTimeout,
            Error::Unavailable(_) => ErrorKind::Unavailable,
            Error::Lost(_) => ErrorKind::Lost,
            Error::Closed => ErrorKind::Closed,
            Error::CapacityMismatch(_) => ErrorKind::CapacityMismatch,
            Error::QueueFull(_) => ErrorKind::QueueFull,
            Error::LimitReached(_) => ErrorKind::LimitReached,
            Error::Forked => ErrorKind::Forked,
            Error::Refused { .. } => ErrorKind::Refused,
            Error::System(_) => ErrorKind::System,
        }
    }

    /// The same call may succeed later without a change of its arguments. After [`Error::Lost`] that means a new
    /// acquire, with a new token.
    pub fn is_retryable(&self) -> bool {
        match self.kind() {
            ErrorKind::WaitTimeout
            | ErrorKind::Unavailable
            | ErrorKind::Lost
            | ErrorKind::QueueFull
            | ErrorKind::LimitReached => true,
            ErrorKind::InvalidArgument
            | ErrorKind::Closed
            | ErrorKind::CapacityMismatch
            | ErrorKind::Forked
            | ErrorKind::Refused
            | ErrorKind::System => false,
        }
    }

    /// From the reason of an operation that the cluster could not take.
    pub(crate) fn from_reason(reason: &str, message: &str) -> Error {
        let text = if message.is_empty() { reason.to_owned() } else { message.to_owned() };
        match reason {
            "INVALID_ARGUMENT" => Error::InvalidArgument(text),
            "CAPACITY_MISMATCH" => Error::CapacityMismatch(text),
            "QUEUE_FULL" => Error::QueueFull(text),
            "LIMIT_REACHED" => Error::LimitReached(text),
            _ => Error::Refused { reason: reason.to_owned(), message: text },
        }
    }
}

/// Who was in the way when a wait ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WaitTimeout {
    /// Which lock; of several, the one in the way if that is known.
    pub name: String,
    /// How long the caller waited.
    pub waited: Duration,
    /// The holder whose lease ends last, or, of a free lock, the waiter to be served first. `None` where no server
    /// could be asked.
    pub holder: Option<String>,
    /// Of that holder.
    pub token: Option<FencingToken>,
    /// What is left of that holder's lease. For people, never for a deadline.
    pub remaining: Option<Duration>,
    /// How many hold the lock.
    pub holder_count: u32,
    /// How many wait for it.
    pub queue_length: u32,
    /// The place that this request had in the queue; 1 is the next to be served.
    pub place: Option<u32>,
    /// Why no server could be asked, endpoint by endpoint; empty if the wait ended in the queue.
    pub unreachable: Vec<EndpointFailure>,
}

impl WaitTimeout {
    pub(crate) fn new(
        name: &str,
        waited: Duration,
        place: Option<u32>,
        contention: Option<&Contention>,
    ) -> WaitTimeout {
        let in_the_way = contention.map(|c| c.name.as_str()).filter(|name| !name.is_empty());
        WaitTimeout {
            name: in_the_way.unwrap_or(name).to_owned(),
            waited,
            holder: contention.map(|c| c.owner.clone()).filter(|owner| !owner.is_empty()),
            token: contention.and_then(|c| c.token),
            remaining: contention.filter(|c| !c.behind_waiter).map(|c| c.remaining),
            holder_count: contention.map_or(0, |c| c.holder_count),
            queue_length: contention.map_or(0, |c| c.queue_length),
            place: contention.and_then(|c| c.place).or(place),
            unreachable: Vec::new(),
        }
    }
}

impl fmt::Display for WaitTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lock {:?} was not granted within {}", self.name, ForPeople(self.waited))?;
        if let Some(holder) = &self.holder {
            let role = if self.holder_count == 0 { "to be served first is" } else { "held by" };
            write!(f, "; {role} {holder:?}")?;
        }
        if let Some(place) = self.place {
            write!(f, "; place {place} in the queue")?;
        }
        for failure in &self.unreachable {
            write!(f, "; {failure}")?;
        }
        Ok(())
    }
}

/// Which endpoints were asked, and why none of them answered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Unavailable {
    /// How long the caller waited.
    pub waited: Duration,
    /// One for each configured endpoint.
    pub endpoints: Vec<EndpointFailure>,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no server gave an answer within {}", ForPeople(self.waited))?;
        for failure in &self.endpoints {
            write!(f, "; {failure}")?;
        }
        Ok(())
    }
}

/// A duration as people say it: milliseconds below a second, then tenths of a second.
pub(crate) struct ForPeople(pub Duration);

impl fmt::Display for ForPeople {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = (self.0 + Duration::from_micros(500)).as_millis();
        if ms < 1_000 {
            return write!(f, "{ms}ms");
        }
        let tenths = (ms + 50) / 100;
        match tenths % 10 {
            0 => write!(f, "{}s", tenths / 10),
            tenth => write!(f, "{}.{tenth}s", tenths / 10),
        }
    }
}

/// Why one endpoint gave no answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointFailure {
    /// Its `host:port`.
    pub endpoint: String,
    /// For people.
    pub reason: String,
    /// What the transport or the server said.
    pub source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl fmt::Display for EndpointFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.reason)
    }
}

impl StdError for EndpointFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What the keeper makes of a failed connection, stream or call.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub reason: String,
    /// `host:port` of the leader, if the server named it.
    pub leader: Option<String>,
    /// Waiting this long may help.
    pub retry_after: Option<Duration>,
    pub source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), leader: None, retry_after: None, source: None }
    }

    pub(crate) fn silence(limit: Duration) -> Failure {
        Failure::new(format!("no answer within {}", ForPeople(limit)))
    }

    /// With the innermost cause in the text: "connection refused" tells more than "transport error".
    pub(crate) fn from_transport(error: impl StdError + Send + Sync + 'static) -> Failure {
        let mut innermost: &dyn StdError = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Failure { source: None, ..Failure::new(innermost.to_string()) }.with_source(error)
    }

    pub(crate) fn from_status(status: tonic::Status) -> Failure {
        let info = status.get_details_error_info();
        let leader = info.as_ref().and_then(|info| info.metadata.get("leader_endpoint")).cloned();
        let reason = match &info {
            Some(info) => format!("{} ({})", status.message(), info.reason),
            None => match status.source() {
                Some(source) => innermost_text(source),
                None => format!("{} ({:?})", status.message(), status.code()),
            },
        };
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        Failure { leader, retry_after, ..Failure::new(reason) }.with_source(status)
    }

    fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Failure {
        self.source = Some(Arc::new(source));
        self
    }
}

fn innermost_text(mut error: &(dyn StdError + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A failed unary call: try again, or tell the caller.
#[derive(Clone, Debug)]
pub(crate) enum CallFailure {
    Again(Failure),
    Final(Error),
}

impl CallFailure {
    pub(crate) fn silence(limit: Duration) -> CallFailure {
        CallFailure::Again(Failure::silence(limit))
    }

    pub(crate) fn from_status(status: tonic::Status) -> CallFailure {
        use tonic::Code;
        let reason = status.get_details_error_info().map(|info| info.reason);
        match status.code() {
            Code::InvalidArgument => CallFailure::Final(Error::InvalidArgument(status.message().to_owned())),
            Code::ResourceExhausted | Code::OutOfRange => {
                CallFailure::Final(Error::LimitReached(status.message().to_owned()))
            }
            Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition => CallFailure::Final(Error::Refused {
                reason: reason.unwrap_or_else(|| format!("{:?}", status.code())),
                message: status.message().to_owned(),
            }),
            // A read changes nothing, so whatever else went wrong, asking again is safe.
            _ => CallFailure::Again(Failure::from_status(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_ended_names_holder_and_place() {
        let contention = Contention {
            name: "k".into(),
            owner: "b:1".into(),
            holder_count: 1,
            place: Some(3),
            ..Default::default()
        };
        let error = Error::WaitTimeout(Box::new(WaitTimeout::new(
            "k",
            Duration::from_secs(2),
            Some(5),
            Some(&contention),
        )));
        let text = "lock \"k\" was not granted within 2s; held by \"b:1\"; place 3 in the queue";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.kind(), ErrorKind::WaitTimeout);
        assert!(error.is_retryable());
    }

    #[test]
    fn durations_are_told_to_people() {
        let cases = [
            (Duration::ZERO, "0ms"),
            (Duration::from_micros(1_700), "2ms"),
            (Duration::from_micros(999_400), "999ms"),
            (Duration::from_micros(999_600), "1s"),
            (Duration::from_micros(1_002_345), "1s"),
            (Duration::from_millis(1_250), "1.3s"),
            (Duration::from_millis(59_960), "60s"),
            (Duration::from_millis(7_500), "7.5s"),
        ];
        for (duration, text) in cases {
            assert_eq!(ForPeople(duration).to_string(), text);
        }
        let waited = Duration::from_micros(1_002_345);
        let unavailable = Unavailable { waited, endpoints: Vec::new() };
        assert_eq!(unavailable.to_string(), "no server gave an answer within 1s");
        let timeout = WaitTimeout::new("k", waited, None, None);
        assert_eq!(timeout.to_string(), "lock \"k\" was not granted within 1s");
        assert_eq!(Failure::silence(Duration::from_secs(5) / 3).reason, "no answer within 1.7s");
    }

    #[test]
    fn a_status_keeps_its_reason_and_hint() {
        use tonic_types::ErrorDetails;
        let metadata = [("leader_endpoint".to_owned(), "n2:50051".to_owned())];
        let details = ErrorDetails::with_error_info("NOT_LEADER", "raftlock", metadata);
        let status = tonic::Status::with_error_details(tonic::Code::Unavailable, "follower", details);
        let failure = Failure::from_status(status);
        assert_eq!(failure.reason, "follower (NOT_LEADER)");
        assert_eq!(failure.leader.as_deref(), Some("n2:50051"));
        assert!(failure.source.is_some());
    }
}
