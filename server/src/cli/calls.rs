//! Unary calls to whichever server answers: endpoint after endpoint, for some seconds.
//!
//! What matters is whether a call that got no answer may have been executed. A server that says UNAVAILABLE with a
//! reason of ours did nothing, and neither did one that could not be dialled: the next is asked. Everything else, a
//! broken connection above all, is *unknown*: a call that carries its own identity is repeated, another is not.

use std::fmt;
use std::time::Duration;

use raftlock_proto::v1::admin_client::AdminClient;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_proto::v1::{StatusRequest, StatusResponse};
use raftlock_server::clock::SystemClock;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use super::failure::{Failure, chain};
use super::print::brief;
use super::target::Target;

/// How long servers are tried, on top of what the call itself waits for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one server may take to answer while there are others to ask.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Between two rounds over all endpoints. About an election fits between the first and the third.
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// A waiting call is silent for long; a connection that does not answer a ping for this long is dead.
const PING: Duration = Duration::from_secs(2);

/// A lock with a thousand holders and all their metadata.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One try of a call.
pub struct Attempt {
    /// To the server being asked.
    pub client: RaftLockClient<Channel>,
    /// To the same server, for what operators ask.
    pub admin: AdminClient<Channel>,
    /// Since the first try.
    pub elapsed: Duration,
    /// How long the answer may take.
    limit: Duration,
}

impl Attempt {
    /// The request, with a deadline after which the servers drop it instead of executing it late.
    pub fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        request.set_timeout(self.limit);
        request
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The cluster took the request and says that it is wrong, or that it cannot be.
    Refused(Status),
    /// Nothing was done.
    NoLeader(Tried),
    /// It may have been done.
    Unknown(Tried),
}

/// What the last try at each endpoint came to.
#[derive(Debug)]
pub struct Tried {
    limit: Duration,
    endpoints: Vec<(String, String)>,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoints.iter().try_for_each(|(address, why)| write!(f, "\n  {address}: {why}"))
    }
}

impl NoAnswer {
    /// As a failure of the command; `unknown` says what an unknown outcome means here.
    pub fn into_failure(self, unknown: &str) -> Failure {
        match self {
            NoAnswer::Refused(status) => refused(&status),
            NoAnswer::NoLeader(tried) => Failure::NoLeader(format!(
                "no server reached a leader within {}; nothing was done{tried}",
                brief(tried.limit)
            )),
            NoAnswer::Unknown(tried) => Failure::Other(format!("the outcome is unknown: {unknown}{tried}")),
        }
    }
}

impl From<NoAnswer> for Failure {
    /// For reads, of which nothing is left behind.
    fn from(reason: NoAnswer) -> Failure {
        match reason {
            NoAnswer::Unknown(tried) => NoAnswer::NoLeader(tried).into(),
            known => known.into_failure(""),
        }
    }
}

fn refused(status: &Status) -> Failure {
    let text = status.message().to_owned();
    let reason = status.get_details_error_info().map(|info| info.reason);
    match (reason.as_deref(), status.code()) {
        (Some("TOKEN_REQUIRED"), _) => Failure::Usage(format!("{text}; say which with --token")),
        (Some("QUEUE_FULL"), _) => Failure::NotAcquired(text),
        (_, Code::InvalidArgument) => Failure::Usage(text),
        (_, Code::Unimplemented) => {
            Failure::Other("that server does not know this call: is it a RaftLock server?".into())
        }
        _ => Failure::Other(text),
    }
}

/// Makes a call that may be repeated: a read, or one that carries what makes its repeat the same call.
pub async fn repeatable<A>(
    target: &Target,
    wait: Duration,
    call: impl AsyncFn(Attempt) -> Result<Response<A>, Status>,
) -> Result<A, NoAnswer> {
    Rounds::new(target, wait).run(call, OnUnknown::Repeat).await
}

/// Makes a call whose repeat would be another call. It is repeated only where nothing was done.
pub async fn once<A>(
    target: &Target,
    call: impl AsyncFn(Attempt) -> Result<Response<A>, Status>,
) -> Result<A, NoAnswer> {
    Rounds::new(target, Duration::ZERO).run(call, OnUnknown::Stop).await
}

/// Asks one server about itself, without any other and only once.
pub async fn status(address: &str) -> Result<StatusResponse, String> {
    let channel = connect(address, CONNECT_LIMIT).await?;
    let mut client = AdminClient::new(channel);
    match tokio::time::timeout(ANSWER_LIMIT, client.status(StatusRequest {})).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(in_words(&status)),
        Err(_) => Err(format!("no answer within {}", brief(ANSWER_LIMIT))),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OnUnknown {
    Repeat,
    Stop,
}

/// What a try came to, if not to an answer.
enum Miss {
    /// Nothing was done there.
    NotDone(String),
    Unknown(String),
    Refused(Status),
}

struct Rounds<'a> {
    addresses: &'a [String],
    wait: Duration,
    misses: Vec<Option<String>>,
    any_unknown: bool,
}

impl Rounds<'_> {
    fn new(target: &Target, wait: Duration) -> Rounds<'_> {
        let addresses = target.addresses();
        Rounds { addresses, wait, misses: vec![None; addresses.len()], any_unknown: false }
    }

    async fn run<A>(
        mut self,
        call: impl AsyncFn(Attempt) -> Result<Response<A>, Status>,
        on_unknown: OnUnknown,
    ) -> Result<A, NoAnswer> {
        let clock = SystemClock::shared();
        let start = clock.monotonic();
        let limit = PATIENCE + self.wait;
        loop {
            for at in 0..self.addresses.len() {
                let elapsed = clock.monotonic() - start;
                let Some(left) = limit.checked_sub(elapsed).filter(|left| !left.is_zero()) else {
                    return Err(self.given_up(limit));
                };
                match self.attempt(at, elapsed, left, &call).await {
                    Ok(answer) => return Ok(answer),
                    Err(Miss::Refused(status)) => return Err(NoAnswer::Refused(status)),
                    Err(Miss::NotDone(why)) => self.misses[at] = Some(why),
                    Err(Miss::Unknown(why)) => {
                        self.misses[at] = Some(why);
                        self.any_unknown = true;
                        if on_unknown == OnUnknown::Stop {
                            return Err(self.given_up(limit));
                        }
                    }
                }
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn attempt<A>(
        &self,
        at: usize,
        elapsed: Duration,
        left: Duration,
        call: &impl AsyncFn(Attempt) -> Result<Response<A>, Status>,
    ) -> Result<A, Miss> {
        let channel = connect(&self.addresses[at], left.min(CONNECT_LIMIT)).await.map_err(Miss::NotDone)?;
        let admin = AdminClient::new(channel.clone());
        let client = RaftLockClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let alone = self.addresses.len() == 1;
        let limit = if alone { left } else { left.min(ANSWER_LIMIT + self.wait) };
        match tokio::time::timeout(limit, call(Attempt { client, admin, elapsed, limit })).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(judged(status)),
            Err(_) => Err(Miss::Unknown(format!("no answer within {}", brief(limit)))),
        }
    }

    fn given_up(self, limit: Duration) -> NoAnswer {
        let endpoints = self.addresses.iter().zip(self.misses);
        let endpoints = endpoints.filter_map(|(address, why)| Some((address.clone(), why?))).collect();
        let tried = Tried { limit, endpoints };
        if self.any_unknown { NoAnswer::Unknown(tried) } else { NoAnswer::NoLeader(tried) }
    }
}

fn judged(status: Status) -> Miss {
    let is_ours = status.get_details_error_info().is_some();
    match status.code() {
        Code::Unavailable if is_ours => Miss::NotDone(in_words(&status)),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            Miss::Unknown(in_words(&status))
        }
        _ => Miss::Refused(status),
    }
}

/// The innermost cause tells most: "connection refused", not "transport error".
fn in_words(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => chain(source),
        None => status.message().to_owned(),
    }
}

async fn connect(address: &str, limit: Duration) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint.tcp_nodelay(true).http2_keep_alive_interval(PING).keep_alive_timeout(PING);
    match tokio::time::timeout(limit, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(innermost(&error)),
        Err(_) => Err(format!("no connection within {}", brief(limit))),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn miss(code: Code, reason: Option<&str>) -> &'static str {
        let status = match reason {
            Some(reason) => {
                let details = ErrorDetails::with_error_info(reason, "raftlock", HashMap::new());
                Status::with_error_details(code, "why", details)
            }
            None => Status::new(code, "why"),
        };
        match judged(status) {
            Miss::NotDone(_) => "not done",
            Miss::Unknown(_) => "unknown",
            Miss::Refused(_) => "refused",
        }
    }

    #[test]
    fn only_our_own_unavailable_proves_that_nothing_was_done() {
        assert_eq!(miss(Code::Unavailable, Some("NO_LEADER")), "not done");
        assert_eq!(miss(Code::Unavailable, None), "unknown");
        assert_eq!(miss(Code::DeadlineExceeded, Some("OUTCOME_UNKNOWN")), "unknown");
        assert_eq!(miss(Code::Unknown, None), "unknown");
        assert_eq!(miss(Code::InvalidArgument, Some("INVALID_ARGUMENT")), "refused");
    }

    #[test]
    fn what_was_refused_decides_the_exit_code() {
        let code = |code, reason| {
            let details = ErrorDetails::with_error_info(reason, "raftlock", HashMap::new());
            refused(&Status::with_error_details(code, "why", details)).exit_code()
        };
        assert_eq!(code(Code::InvalidArgument, "INVALID_ARGUMENT"), 2);
        assert_eq!(code(Code::FailedPrecondition, "TOKEN_REQUIRED"), 2);
        assert_eq!(code(Code::ResourceExhausted, "QUEUE_FULL"), 75);
        assert_eq!(code(Code::ResourceExhausted, "LIMIT_REACHED"), 1);
    }
}
