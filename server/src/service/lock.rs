//! The public service: unary calls for scripts and other languages, and the door of the session stream.
//!
//! A call is executed where the leader is: here, or forwarded there, one hop. A call that was forwarded to us is never
//! forwarded again.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use lock_table::{Command, Event as TableEvent, Outcome, Ttl};
use prost::Message;
use raftlock_proto::peer::forward_request::Method;
use raftlock_proto::v1::raft_lock_server::RaftLock;
use raftlock_proto::v1::{self, SessionRequest, SessionResponse};
use raftlock_proto::{CLUSTER_ID_KEY, LEADER_KEY, NO_FORWARD_KEY};
use tokio::sync::oneshot;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Request, Response, Status, Streaming};

use super::{convert, status};
use crate::edge::{Edge, Route};
use crate::proposer::{NotTaken, Proposer};
use crate::raft::RaftHandle;
use crate::streams::{CallAnswer, Caller, Origin};

/// How long a call without a deadline of its own waits for its outcome, on top of what it asked to wait for the lock.
const OUTCOME_WAIT: Duration = Duration::from_secs(10);

/// Holders and waiters that one GetLock shows.
const VIEW_MAX: usize = 1_000;

/// Locks on a page when the caller does not say.
const PAGE_DEFAULT: u32 = 100;

/// Locks on a page at most.
const PAGE_MAX: u32 = 1_000;

/// Unary calls, executed on the leader.
#[derive(Clone)]
pub struct Calls {
    /// The way into the log.
    pub proposer: Proposer,
    /// Reads.
    pub raft: RaftHandle,
    /// For a TTL of 0 or none.
    pub default_ttl: Ttl,
}

impl Calls {
    /// Executes an encoded call that a follower forwarded.
    pub async fn execute(
        &self,
        method: Method,
        message: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<u8>, Status> {
        fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
            M::decode(bytes).map_err(|error| status::invalid(error.to_string()))
        }
        Ok(match method {
            Method::Lock => self.lock(read(message)?, limit).await?.encode_to_vec(),
            Method::Unlock => self.unlock(read(message)?, limit).await?.encode_to_vec(),
            Method::Renew => self.renew(read(message)?, limit).await?.encode_to_vec(),
            Method::GetLock => self.get(read(message)?).await?.encode_to_vec(),
            Method::ListLocks => self.list(read(message)?).await?.encode_to_vec(),
            Method::Unspecified | Method::ChangeMembers => {
                return Err(status::invalid("a forwarded call names no method of the lock service"));
            }
        })
    }

    async fn lock(
        &self,
        request: v1::LockRequest,
        limit: Option<Duration>,
    ) -> Result<v1::LockResponse, Status> {
        let wait = Duration::from_millis(request.wait_ms.max(0) as u64);
        let command =
            convert::lock_command(request, self.default_ttl).map_err(|what| status::rejected(&what))?;
        let limit = limit.unwrap_or(OUTCOME_WAIT + wait);
        Ok(match self.propose(command, !wait.is_zero(), limit).await? {
            CallAnswer::Outcome(Outcome::Granted { token, remaining_ms, .. })
            | CallAnswer::Parked(TableEvent::Granted { token, remaining_ms, .. }) => {
                convert::acquired(token, remaining_ms)
            }
            CallAnswer::Outcome(Outcome::UnaryRefused { contention }) => {
                convert::not_acquired("Lock not acquired", Some(&contention))
            }
            CallAnswer::Outcome(Outcome::Queued { place, .. }) => convert::not_acquired(
                &format!("Lock not acquired: an earlier call of yours waits in place {place}"),
                None,
            ),
            CallAnswer::Parked(TableEvent::WaitEnded { contention, .. }) => {
                convert::not_acquired("Lock not acquired in time", contention.as_ref())
            }
            CallAnswer::Parked(TableEvent::SessionEnded { .. }) => {
                convert::not_acquired("Lock not acquired: the wait was given up", None)
            }
            other => return Err(unexpected("Lock", other)),
        })
    }

    async fn unlock(
        &self,
        request: v1::UnlockRequest,
        limit: Option<Duration>,
    ) -> Result<v1::UnlockResponse, Status> {
        let command = convert::unlock_command(request).map_err(|what| status::rejected(&what))?;
        let (success, message) = match self.propose(command, false, limit.unwrap_or(OUTCOME_WAIT)).await? {
            CallAnswer::Outcome(Outcome::Unlocked { .. }) => (true, "Lock released".to_owned()),
            CallAnswer::Outcome(Outcome::UnaryNotHolder { holder }) => (false, not_held(holder.as_ref())),
            other => return Err(unexpected("Unlock", other)),
        };
        Ok(v1::UnlockResponse { success, message })
    }

    async fn renew(
        &self,
        request: v1::RenewRequest,
        limit: Option<Duration>,
    ) -> Result<v1::RenewResponse, Status> {
        let command =
            convert::renew_command(request, self.default_ttl).map_err(|what| status::rejected(&what))?;
        let (success, message, remaining_ms) = match self
            .propose(command, false, limit.unwrap_or(OUTCOME_WAIT))
            .await?
        {
            CallAnswer::Outcome(Outcome::Renewed { remaining_ms, .. }) => {
                (true, "Lock renewed".to_owned(), i64::try_from(remaining_ms).unwrap_or(i64::MAX))
            }
            CallAnswer::Outcome(Outcome::UnaryNotHolder { holder }) => (false, not_held(holder.as_ref()), 0),
            other => return Err(unexpected("Renew", other)),
        };
        Ok(v1::RenewResponse { success, message, remaining_ms })
    }

    async fn get(&self, request: v1::GetLockRequest) -> Result<v1::GetLockResponse, Status> {
        let name = convert::get_name(&request).map_err(|what| status::rejected(&what))?;
        self.read_point().await?;
        let view = self.raft.machine().read(|table| table.get(name.as_str(), VIEW_MAX)).await;
        Ok(convert::lock_view(&name, view))
    }

    async fn list(&self, request: v1::ListLocksRequest) -> Result<v1::ListLocksResponse, Status> {
        let size = match request.page_size {
            0 => PAGE_DEFAULT,
            size if size <= PAGE_MAX => size,
            _ => return Err(status::invalid(format!("page_size: must be at most {PAGE_MAX}"))),
        };
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        self.read_point().await?;
        let page = self.raft.machine().read(|table| table.list(&request.prefix, after, size as usize)).await;
        let full = page.len() == size as usize;
        let next_page_token =
            page.last().filter(|_| full).map(|last| last.name.to_string()).unwrap_or_default();
        Ok(v1::ListLocksResponse {
            locks: page.into_iter().map(convert::lock_summary).collect(),
            next_page_token,
        })
    }

    async fn read_point(&self) -> Result<(), Status> {
        let standing = self.raft.standing();
        let read = self.raft.read_point().await;
        read.map_err(|error| status::read_failed(&error, standing.borrow().leader.as_ref()))
    }

    async fn propose(&self, command: Command, waits: bool, limit: Duration) -> Result<CallAnswer, Status> {
        let (answer, outcome) = oneshot::channel();
        match self.proposer.submit(command, Origin::Call(Caller { answer, waits })) {
            Ok(()) => {}
            Err(NotTaken::NotLeader) => {
                return Err(status::not_leader(self.raft.standing().borrow().leader.as_ref()));
            }
            Err(NotTaken::Full) => return Err(status::busy()),
            Err(NotTaken::DiskLow) => return Err(status::disk_low()),
        }
        match tokio::time::timeout(limit, outcome).await {
            Ok(Ok(CallAnswer::Outcome(Outcome::Rejected(rejection)))) => Err(status::rejected(&rejection)),
            Ok(Ok(CallAnswer::NotProposed)) => {
                Err(status::not_leader(self.raft.standing().borrow().leader.as_ref()))
            }
            Ok(Ok(CallAnswer::Unknown)) | Ok(Err(_)) | Err(_) => Err(status::outcome_unknown()),
            Ok(Ok(answer)) => Ok(answer),
        }
    }
}

fn not_held(holder: Option<&lock_table::Contention>) -> String {
    match holder {
        Some(holder) => format!("Lock not held by you: {}", convert::in_words(holder)),
        None => "Lock not held by you: it is free".to_owned(),
    }
}

fn unexpected(call: &str, answer: CallAnswer) -> Status {
    Status::internal(format!("{call} was answered with {answer:?}"))
}

/// The public service on any node.
#[derive(Clone)]
pub struct LockService {
    /// Where calls and streams go.
    pub edge: Arc<Edge>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

impl LockService {
    /// Executes a call where the leader is: here with `execute`, or there, as bytes.
    async fn unary<Q, A, F>(
        &self,
        method: Method,
        request: Request<Q>,
        execute: impl FnOnce(Calls, Q, Option<Duration>) -> F + Send,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + Waits,
        A: Message + Default,
        F: Future<Output = Result<A, Status>> + Send,
    {
        let limit = deadline(request.metadata());
        let no_forward = request.metadata().contains_key(NO_FORWARD_KEY);
        let request = request.into_inner();
        let answer = match self.edge.route() {
            Route::Here(local) => execute(local.calls.clone(), request, limit).await,
            Route::There(relay) if no_forward => Err(status::not_leader(Some(relay.leader()))),
            Route::There(relay) => {
                let message = request.encode_to_vec().into();
                relay
                    .forward(method, message, request.waits(), limit)
                    .await
                    .and_then(|bytes| A::decode(bytes).map_err(|error| Status::internal(error.to_string())))
            }
            Route::Nowhere(why) => Err(why.status()),
        };
        named(self.edge.cluster(), answer.map(Response::new))
    }

    fn accepted(&self, request: Request<Streaming<SessionRequest>>) -> Result<Response<Responses>, Status> {
        let responses = self.edge.clone().stream(request.into_inner());
        responses.map(|responses| Response::new(Box::pin(responses) as Responses))
    }
}

/// Whether a call may stay with the leader for as long as its lock is queued.
trait Waits {
    fn waits(&self) -> bool {
        false
    }
}

impl Waits for v1::LockRequest {
    fn waits(&self) -> bool {
        self.wait_ms > 0
    }
}

impl Waits for v1::UnlockRequest {}
impl Waits for v1::RenewRequest {}
impl Waits for v1::GetLockRequest {}
impl Waits for v1::ListLocksRequest {}

#[tonic::async_trait]
impl RaftLock for LockService {
    async fn lock(&self, request: Request<v1::LockRequest>) -> Result<Response<v1::LockResponse>, Status> {
        let here = |calls: Calls, request, limit| async move { calls.lock(request, limit).await };
        self.unary(Method::Lock, request, here).await
    }

    async fn unlock(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::UnlockResponse>, Status> {
        let here = |calls: Calls, request, limit| async move { calls.unlock(request, limit).await };
        self.unary(Method::Unlock, request, here).await
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let here = |calls: Calls, request, limit| async move { calls.renew(request, limit).await };
        self.unary(Method::Renew, request, here).await
    }

    async fn get_lock(
        &self,
        request: Request<v1::GetLockRequest>,
    ) -> Result<Response<v1::GetLockResponse>, Status> {
        let here = |calls: Calls, request, _| async move { calls.get(request).await };
        self.unary(Method::GetLock, request, here).await
    }

    async fn list_locks(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        let here = |calls: Calls, request, _| async move { calls.list(request).await };
        self.unary(Method::ListLocks, request, here).await
    }

    type SessionStream = Responses;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let opened = match self.edge.route() {
            Route::There(relay) if request.metadata().contains_key(NO_FORWARD_KEY) => {
                Err(status::not_leader(Some(relay.leader())))
            }
            Route::Nowhere(why) => Err(why.status()),
            Route::Here(_) => self.accepted(request),
            Route::There(relay) => {
                let mut accepted = self.accepted(request);
                let leader = relay.leader().1.client_address.parse();
                if let (Ok(accepted), Ok(leader)) = (&mut accepted, leader) {
                    accepted.metadata_mut().insert(LEADER_KEY, leader);
                }
                accepted
            }
        };
        named(self.edge.cluster(), opened)
    }
}

/// Puts the cluster's id on an answer, good or bad.
pub(super) fn named<T>(
    cluster: Option<&AsciiMetadataValue>,
    answer: Result<Response<T>, Status>,
) -> Result<Response<T>, Status> {
    let Some(id) = cluster.cloned() else { return answer };
    match answer {
        Ok(mut answer) => {
            answer.metadata_mut().insert(CLUSTER_ID_KEY, id);
            Ok(answer)
        }
        Err(mut status) => {
            status.metadata_mut().insert(CLUSTER_ID_KEY, id);
            Err(status)
        }
    }
}

/// What is left of the caller's gRPC deadline: digits and a unit, as the gRPC protocol over HTTP/2 defines
/// `grpc-timeout`. Nonsense is no deadline.
pub(super) fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(count.saturating_mul(60))),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read_in_every_unit() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ASCII"));
            deadline(&metadata)
        };
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(of("3M"), Some(Duration::from_secs(180)));
        assert_eq!(of("soon"), None);
        assert_eq!(of("S"), None);
    }
}
