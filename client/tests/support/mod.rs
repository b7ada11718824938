//! A network in memory and servers that answer by script: what the SDK meets in these tests.
//!
//! A [`Net`] has nodes by address. A test takes each stream that a client opens on a node, reads its operations and
//! answers them, or does not. Time is tokio's, paused, and the lease clock follows it.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod table;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use raftlock::seams::{Connection, Executor, Seams};
use raftlock::{Client, ClientBuilder, LockGuard};
use raftlock_proto::v1::raft_lock_server::{RaftLock, RaftLockServer};
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::ticket_outcome::Outcome;
use raftlock_proto::{CLUSTER_ID_KEY, LEADER_KEY, SESSION_REQUEST_BYTES_MAX, v1};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

pub const CLUSTER: &str = "cluster-1";

/// A test that waits longer has failed. Of paused time; far above what any test needs.
const PATIENCE: Duration = Duration::from_secs(600);

/// Seconds, for short tests.
pub fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<BTreeMap<String, Port>>>);

struct Port {
    incoming: mpsc::UnboundedSender<Result<DuplexStream, io::Error>>,
    state: State,
    dials: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Up,
    /// Connections are refused.
    Down,
    /// Nothing is answered, not even a dial.
    Dark,
}

impl Net {
    pub fn set(&self, address: &str, state: State) {
        self.0.lock().unwrap().get_mut(address).unwrap().state = state;
    }

    pub fn dials(&self, address: &str) -> usize {
        self.0.lock().unwrap()[address].dials
    }

    async fn dial(self, address: String) -> io::Result<Connection> {
        let state = {
            let mut ports = self.0.lock().unwrap();
            let Some(port) = ports.get_mut(&address) else {
                return Err(io::Error::new(io::ErrorKind::NotFound, "no such host"));
            };
            port.dials += 1;
            // In paused time a client that dials without a pause would stop the clock, and so the test would never end.
            assert!(port.dials < 10_000, "the client spins");
            match port.state {
                State::Up => {
                    let (ours, theirs) = tokio::io::duplex(1 << 20);
                    port.incoming.send(Ok(theirs)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
                    return Ok(Connection::new(ours));
                }
                other => other,
            }
        };
        match state {
            State::Dark => std::future::pending().await,
            _ => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused")),
        }
    }

    fn listen(&self, address: &str) -> mpsc::UnboundedReceiver<Result<DuplexStream, io::Error>> {
        let (incoming, accepted) = mpsc::unbounded_channel();
        self.0.lock().unwrap().insert(address.to_owned(), Port { incoming, state: State::Up, dials: 0 });
        accepted
    }

    /// A node that hands its streams to the test.
    pub fn node(&self, address: &str) -> Node {
        self.node_of(address, CLUSTER)
    }

    pub fn node_of(&self, address: &str, cluster: &str) -> Node {
        let (streams, opened) = mpsc::unbounded_channel();
        let (refusal, leader) = (Arc::default(), Arc::default());
        let answers = Arc::new(Mutex::new(Answers::default()));
        let service = Service {
            cluster: cluster.into(),
            streams,
            refusal: Arc::clone(&refusal),
            leader: Arc::clone(&leader),
            answers: answers.clone(),
        };
        serve(service, self.listen(address));
        Node { net: self.clone(), address: address.into(), opened, refusal, leader, answers }
    }

    /// The seams of a client in this network, on the caller's runtime; and the keeper's end.
    pub fn seams(&self) -> (Seams, Arc<Mutex<Option<JoinHandle<()>>>>) {
        let keeper = Arc::new(Mutex::new(None));
        let started = Instant::now();
        let net = self.clone();
        let slot = keeper.clone();
        let seams = Seams {
            clock: Arc::new(move || s(1_000.0) + started.elapsed()),
            executor: Executor::Given(Arc::new(move |run| *slot.lock().unwrap() = Some(tokio::spawn(run)))),
            dial: Arc::new(move |address| Box::pin(net.clone().dial(address))),
            seed: Some(7),
        };
        (seams, keeper)
    }

    /// Production's clock and thread, this network.
    pub fn threaded_seams(&self) -> Seams {
        let net = self.clone();
        Seams { dial: Arc::new(move |address| Box::pin(net.clone().dial(address))), ..Seams::production() }
    }

    pub fn builder(&self, endpoints: &str) -> ClientBuilder {
        Client::builder().endpoints(endpoints).owner("me").seams(self.seams().0)
    }

    pub fn client(&self, endpoints: &str) -> Client {
        self.builder(endpoints).lazy().unwrap()
    }
}

fn serve(service: impl RaftLock, accepted: mpsc::UnboundedReceiver<Result<DuplexStream, io::Error>>) {
    let server = tonic::transport::Server::builder().add_service(RaftLockServer::new(service));
    tokio::spawn(server.serve_with_incoming(UnboundedReceiverStream::new(accepted)));
}

/// A node under the test's control.
pub struct Node {
    net: Net,
    pub address: String,
    opened: mpsc::UnboundedReceiver<Script>,
    refusal: Arc<Mutex<Option<Status>>>,
    leader: Arc<Mutex<Option<String>>>,
    pub answers: Arc<Mutex<Answers>>,
}

/// What unary calls are answered with, in turn.
#[derive(Default)]
pub struct Answers {
    pub locks: VecDeque<Result<v1::GetLockResponse, Status>>,
    pub pages: VecDeque<Result<v1::ListLocksResponse, Status>>,
}

impl Node {
    /// The next stream that a client opens here.
    pub async fn stream(&mut self) -> Script {
        let opened = tokio::time::timeout(PATIENCE, self.opened.recv()).await.expect("a stream comes");
        opened.expect("the node is served")
    }

    /// Whether a stream was opened that the test has not taken.
    pub fn has_stream(&self) -> bool {
        !self.opened.is_empty()
    }

    /// Streams are refused with this from now on.
    pub fn refuse(&self, status: Option<Status>) {
        *self.refusal.lock().unwrap() = status;
    }

    /// It says of itself that it follows this leader.
    pub fn follow(&self, leader: &str) {
        *self.leader.lock().unwrap() = Some(leader.to_owned());
    }

    pub fn set(&self, state: State) {
        self.net.set(&self.address, state);
    }
}

struct Service {
    cluster: String,
    streams: mpsc::UnboundedSender<Script>,
    refusal: Arc<Mutex<Option<Status>>>,
    leader: Arc<Mutex<Option<String>>>,
    answers: Arc<Mutex<Answers>>,
}

pub fn named<T>(cluster: &str, body: T) -> Response<T> {
    let mut response = Response::new(body);
    response.metadata_mut().insert(CLUSTER_ID_KEY, cluster.parse().unwrap());
    response
}

type Responses = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RaftLock for Service {
    type SessionStream = Responses;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Responses>, Status> {
        if let Some(status) = self.refusal.lock().unwrap().clone() {
            return Err(status);
        }
        let (responses, body) = mpsc::channel(64);
        let script = Script {
            requests: request.into_inner(),
            responses,
            ops: VecDeque::new(),
            renews: true,
            messages: 0,
        };
        let _ = self.streams.send(script);
        let mut accepted = named(&self.cluster, Box::pin(ReceiverStream::new(body)) as Responses);
        if let Some(leader) = &*self.leader.lock().unwrap() {
            accepted.metadata_mut().insert(LEADER_KEY, leader.parse().unwrap());
        }
        Ok(accepted)
    }

    async fn get_lock(
        &self,
        _: Request<v1::GetLockRequest>,
    ) -> Result<Response<v1::GetLockResponse>, Status> {
        let answer = self.answers.lock().unwrap().locks.pop_front();
        answer.unwrap_or_else(|| Ok(Default::default())).map(|body| named(&self.cluster, body))
    }

    async fn list_locks(
        &self,
        _: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        let answer = self.answers.lock().unwrap().pages.pop_front();
        answer.unwrap_or_else(|| Ok(Default::default())).map(|body| named(&self.cluster, body))
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

/// One stream, from the server's side. Dropping it ends the stream.
pub struct Script {
    requests: Streaming<v1::SessionRequest>,
    responses: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    ops: VecDeque<Op>,
    /// Renewals are answered without the test.
    pub renews: bool,
    /// How many came.
    pub messages: usize,
}

impl Script {
    /// The next operation, or the end of the stream.
    pub async fn op(&mut self) -> Option<Op> {
        tokio::time::timeout(PATIENCE, self.next_op()).await.expect("an operation comes")
    }

    async fn next_op(&mut self) -> Option<Op> {
        loop {
            while self.ops.is_empty() {
                let message = self.requests.message().await.ok().flatten()?;
                self.messages += 1;
                let bytes = message.encoded_len();
                assert!(bytes <= SESSION_REQUEST_BYTES_MAX, "a message of {bytes} bytes");
                self.ops.extend(message.ops.into_iter().map(|op| op.op.expect("an operation has a kind")));
            }
            match self.ops.pop_front() {
                Some(Op::Renew(renew)) if self.renews => self.renewed(renew.number, &renew.sessions).await,
                other => return other,
            }
        }
    }

    /// No operation but renewals comes for so long.
    pub async fn is_quiet_for(&mut self, duration: Duration) -> bool {
        match tokio::time::timeout(duration, self.op()).await {
            Err(_) => true,
            Ok(op) => {
                self.ops.extend(op);
                false
            }
        }
    }

    pub async fn ends(&mut self) {
        let op = self.op().await;
        assert!(op.is_none(), "{op:?}");
    }

    pub async fn send(&mut self, event: Event) {
        let event = v1::SessionEvent { event: Some(event) };
        // A client that has left does not listen.
        let _ = self.responses.send(Ok(v1::SessionResponse { events: vec![event] })).await;
    }

    pub async fn fail(self, status: Status) {
        let _ = self.responses.send(Err(status)).await;
    }

    pub async fn open(&mut self, session: u64) -> v1::OpenSession {
        match self.op().await {
            Some(Op::Open(open)) => {
                let (key, number) = (open.key, open.number);
                self.send(Event::Opened(v1::SessionOpened { key, session, number })).await;
                open
            }
            other => panic!("expected an open: {other:?}"),
        }
    }

    pub async fn resume(&mut self) -> v1::ResumeSession {
        match self.op().await {
            Some(Op::Resume(resume)) => resume,
            other => panic!("expected a resume: {other:?}"),
        }
    }

    /// Expects a resume and answers it.
    pub async fn resumed(
        &mut self,
        number: u64,
        held: &[(u64, u64)],
        queued: &[(u64, u32)],
    ) -> v1::ResumeSession {
        let resume = self.resume().await;
        let answer = v1::SessionResumed {
            key: resume.key,
            session: resume.session,
            held: held.iter().map(|&(ticket, token)| v1::HeldTicket { ticket, token }).collect(),
            queued: queued.iter().map(|&(ticket, place)| v1::QueuedTicket { ticket, place }).collect(),
            number,
            ..Default::default()
        };
        self.send(Event::Resumed(answer)).await;
        resume
    }

    pub async fn renew(&mut self) -> v1::RenewSessions {
        match self.op().await {
            Some(Op::Renew(renew)) => renew,
            other => panic!("expected a renewal: {other:?}"),
        }
    }

    pub async fn renewed(&mut self, number: u64, sessions: &[u64]) {
        self.send(Event::Renewed(v1::SessionsRenewed { number, sessions: sessions.to_vec() })).await;
    }

    pub async fn acquire(&mut self) -> v1::Acquire {
        match self.op().await {
            Some(Op::Acquire(acquire)) => acquire,
            other => panic!("expected an acquire: {other:?}"),
        }
    }

    pub async fn release(&mut self) -> v1::Release {
        match self.op().await {
            Some(Op::Release(release)) => release,
            other => panic!("expected a release: {other:?}"),
        }
    }

    pub async fn cancel(&mut self) -> v1::Cancel {
        match self.op().await {
            Some(Op::Cancel(cancel)) => cancel,
            other => panic!("expected a cancel: {other:?}"),
        }
    }

    pub async fn close(&mut self) -> v1::CloseSession {
        match self.op().await {
            Some(Op::Close(close)) => close,
            other => panic!("expected a close: {other:?}"),
        }
    }

    pub async fn outcome(&mut self, session: u64, ticket: u64, outcome: Outcome) {
        self.send(Event::Outcome(v1::TicketOutcome { session, ticket, outcome: Some(outcome) })).await;
    }

    pub async fn granted(&mut self, session: u64, ticket: u64, token: u64) {
        self.outcome(session, ticket, Outcome::Granted(v1::Granted { token })).await;
    }

    pub async fn queued(&mut self, session: u64, ticket: u64, place: u32) {
        self.outcome(session, ticket, Outcome::Queued(v1::Queued { place })).await;
    }

    pub async fn finished(&mut self, session: u64, ticket: u64) {
        self.outcome(session, ticket, Outcome::Finished(v1::Finished::default())).await;
    }

    pub async fn error(&mut self, session: u64, ticket: u64, reason: &str) {
        let error = v1::OpError { reason: reason.into(), ..Default::default() };
        self.outcome(session, ticket, Outcome::Error(error)).await;
    }

    pub async fn lost(&mut self, session: u64, reason: v1::session_lost::Reason) {
        self.send(Event::Lost(v1::SessionLost { session, key: 0, reason: reason.into() })).await;
    }

    /// Opens session 1 and grants its next acquire under `token`. Returns the guard.
    pub async fn grant(&mut self, client: &Client, name: &str, ttl: Duration, token: u64) -> LockGuard {
        let waiting = tokio::spawn(client.lock(name).ttl(ttl).into_future());
        self.open(1).await;
        let acquire = self.acquire().await;
        self.granted(1, acquire.ticket, token).await;
        waiting.await.unwrap().unwrap()
    }
}

/// One node, one client, one stream.
pub async fn pair() -> (Net, Node, Client) {
    let net = Net::default();
    let node = net.node("a:1");
    let client = net.client("a:1");
    (net, node, client)
}

/// The client's stream, opened by a question that needs no session.
pub async fn node_stream(node: &mut Node, client: &Client) -> Script {
    let asking = {
        let client = client.clone();
        tokio::spawn(async move { client.get("anything").await })
    };
    let stream = node.stream().await;
    asking.await.unwrap().unwrap();
    stream
}

/// Lets everything that can happen now happen.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
