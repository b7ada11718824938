//! The leader of a schedule: the product's table and streams behind a gRPC server in memory, its ticks, and what it looked
//! like over time.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock_proto::v1::raft_lock_server::{RaftLock, RaftLockServer};
use raftlock_proto::{CLUSTER_ID_KEY, v1};
use raftlock_server::testing::desk::{Desk, DeskStream};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::history::Timelines;
use crate::world::lock;

/// As the product's.
const TICK: Duration = raftlock_server::clock::TICK;

/// Clones share it.
#[derive(Clone)]
pub(super) struct Leader(Arc<Mutex<State>>);

struct State {
    desk: Desk,
    began: Instant,
    /// When cluster time last moved.
    moved: Instant,
    locks: Vec<String>,
    log: Timelines,
    /// Tokens that hold something.
    standing: Vec<u64>,
    broken: Option<String>,
}

impl Leader {
    /// With its clock going.
    pub(super) fn new(locks: &[String]) -> Leader {
        let now = Instant::now();
        let state = State {
            desk: Desk::default(),
            began: now,
            moved: now,
            locks: locks.to_vec(),
            log: Timelines::default(),
            standing: Vec::new(),
            broken: None,
        };
        let leader = Leader(Arc::new(Mutex::new(state)));
        let ticking = leader.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                ticking.with(|_| ());
            }
        });
        leader
    }

    /// Serves whoever connects.
    pub(super) fn serve(&self, accepted: mpsc::UnboundedReceiver<DuplexStream>) {
        let incoming =
            futures_util::StreamExt::map(UnboundedReceiverStream::new(accepted), Ok::<_, std::io::Error>);
        let service = RaftLockServer::new(Service(self.clone()));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    }

    /// What was held when; nothing is left.
    pub(super) fn verdict(&self) -> Result<Timelines, String> {
        let state = lock(&self.0);
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let left = state.desk.table().counts();
        if (left.sessions, left.held, left.waiters) != (0, 0, 0) {
            return Err(format!("H9: {left:?} are left after all clients have closed"));
        }
        Ok(state.log.clone())
    }

    /// Does something at the desk, after the time that has passed.
    fn with<T>(&self, act: impl FnOnce(&mut Desk) -> T) -> T {
        let mut state = lock(&self.0);
        let now = Instant::now();
        let passed = ((now - state.moved).as_millis() as u64).min(2 * TICK.as_millis() as u64);
        if passed > 0 {
            state.desk.pass(passed);
            state.moved = now;
        }
        let done = act(&mut state.desk);
        state.look(now);
        done
    }
}

impl State {
    fn look(&mut self, now: Instant) {
        let at = now - self.began;
        let mut held = Vec::new();
        for name in &self.locks {
            let view = self.desk.table().get(name, 1);
            let token = view.holders.first().map(|holder| holder.token.get());
            held.extend(token);
            self.log.holds(at, name, token);
            self.log.waits(at, name, view.queue_length > 0);
        }
        for token in self.standing.iter().filter(|token| !held.contains(token)) {
            self.log.ends(at, *token);
        }
        self.standing = held;
        if let Err(broken) = self.desk.table().check() {
            self.broken.get_or_insert(broken);
        }
    }
}

struct Service(Leader);

type Responses = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RaftLock for Service {
    type SessionStream = Responses;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let stream = self.0.with(Desk::open);
        let (leader, mut incoming, mine) = (self.0.clone(), request.into_inner(), stream.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                leader.with(|desk| desk.take(&mine, message));
            }
            leader.with(|desk| desk.close(&mine));
        });
        Ok(named(Box::pin(responses(stream)) as Responses))
    }

    async fn get_lock(
        &self,
        _: Request<v1::GetLockRequest>,
    ) -> Result<Response<v1::GetLockResponse>, Status> {
        Err(Status::unimplemented("schedules do not read"))
    }

    async fn list_locks(
        &self,
        _: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        Err(Status::unimplemented("schedules do not read"))
    }

    async fn lock(&self, _: Request<v1::LockRequest>) -> Result<Response<v1::LockResponse>, Status> {
        Err(Status::unimplemented("the SDK does not call it"))
    }

    async fn unlock(&self, _: Request<v1::UnlockRequest>) -> Result<Response<v1::UnlockResponse>, Status> {
        Err(Status::unimplemented("the SDK does not call it"))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented("the SDK does not call it"))
    }
}

fn responses(stream: DeskStream) -> impl Stream<Item = Result<v1::SessionResponse, Status>> + Send {
    futures_util::stream::unfold(stream, |stream| async move {
        let message = stream.next().await?;
        Some((Ok(message), stream))
    })
}

fn named<T>(body: T) -> Response<T> {
    let mut response = Response::new(body);
    response.metadata_mut().insert(CLUSTER_ID_KEY, "schedules".parse().expect("a header"));
    response
}
