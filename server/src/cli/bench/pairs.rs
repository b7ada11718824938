//! Acquire and awaited release: each client a lock of its own, all of them one, or all of them one together. And what
//! clients do most of the time, which is to renew.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::try_join_all;
use raftlock::{Client, LockGuard};
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_proto::v1::{LockRequest, UnlockRequest};
use tonic::transport::{Channel, Endpoint};

use super::figures::{histogram, micros};
use super::load::{self, Measured};
use super::{Api, Args, Bench, Workload};
use crate::cli::calls;
use crate::cli::failure::{Failure, chain};

/// Longer than any run: what is measured is not the renewals.
const TTL: Duration = Duration::from_secs(30);

/// In an open loop as many locks take turns as calls may wait, so that none waits for another.
const LOCKS: usize = load::WAITING_MAX;

/// Runs for `time`.
pub async fn run(bench: &Bench, args: &Args, clients: usize, time: Duration) -> Result<Measured, Failure> {
    match (args.workload, args.api) {
        (Workload::Hot, _) => hot(bench, clients, time).await,
        (Workload::Shared, _) => shared(bench, clients, time).await,
        (Workload::Mixed, _) => mixed(bench, clients, time).await,
        (_, Api::Session) => session(bench, args.rate, clients, time).await,
        (_, Api::Unary) => unary(bench, args.rate, clients, time).await,
    }
}

/// The SDK, as one process has it: all tasks share its connection.
pub async fn connect(bench: &Bench) -> Result<Client, Failure> {
    connect_to(bench.addresses.clone()).await
}

/// As [`connect`], to some of the nodes.
pub async fn connect_to(addresses: Vec<String>) -> Result<Client, Failure> {
    let builder = Client::builder().endpoints(addresses).owner("bench").default_ttl(TTL);
    builder.connect().await.map_err(|error| Failure::from_sdk(&error))
}

pub fn failed(error: raftlock::Error) -> Failure {
    Failure::Other(chain(&error))
}

/// Each client a lock of its own, beside something else.
pub async fn beside(bench: &Bench, clients: usize, time: Duration) -> Result<Measured, Failure> {
    session(bench, None, clients, time).await
}

async fn session(
    bench: &Bench,
    rate: Option<u32>,
    clients: usize,
    time: Duration,
) -> Result<Measured, Failure> {
    let client = connect(bench).await?;
    let worker = client.clone();
    let measured = looped(bench, rate, clients, time, move |number| private(worker.clone(), number)).await;
    client.close().await;
    measured
}

/// Acquires and releases a lock of its own.
pub async fn private(client: Client, number: usize) -> Result<(), Failure> {
    let guard = client.lock(format!("bench-{}", number % LOCKS)).await.map_err(failed)?;
    guard.release().await.map_err(failed)
}

/// As Chubby's clients did (OSDI 2006, section 4.1): of a hundred operations 93 renew a lease, six ask who holds a lock,
/// and one releases and acquires.
async fn mixed(bench: &Bench, clients: usize, time: Duration) -> Result<Measured, Failure> {
    let client = connect(bench).await?;
    let name = |number: usize| format!("bench-{number}");
    let acquire = move |client: Client, number: usize| async move {
        // Renewed by hand, so that each renewal is an operation that is awaited.
        client.lock(name(number)).auto_renew(false).await.map_err(failed)
    };
    let acquiring = (0..clients).map(|number| acquire(client.clone(), number));
    let holders = try_join_all(acquiring).await?.into_iter().enumerate();
    // Out of step with each other.
    let holders = holders.map(|(number, guard)| Holder { turn: number, guard: Some(guard) });
    let holders: Rc<RefCell<Vec<Holder>>> = Rc::new(RefCell::new(holders.collect()));
    let (worker, kept) = (client.clone(), holders.clone());
    let op = move |number: usize| {
        let (client, holders) = (worker.clone(), kept.clone());
        async move {
            let (turn, guard) = {
                let holder = &mut holders.borrow_mut()[number];
                holder.turn += 1;
                (holder.turn % 100, holder.guard.take().expect("one operation of a client at a time"))
            };
            let guard = match turn {
                0 => {
                    guard.release().await.map_err(failed)?;
                    acquire(client, number).await?
                }
                1..=6 => {
                    client.get(name(number)).await.map_err(failed)?;
                    guard
                }
                _ => {
                    guard.extend(TTL).await.map_err(failed)?;
                    guard
                }
            };
            holders.borrow_mut()[number].guard = Some(guard);
            Ok(())
        }
    };
    let measured = load::closed(&bench.clock, clients, time, op).await;
    holders.borrow_mut().clear();
    client.close().await;
    measured
}

/// One client of [`mixed`].
struct Holder {
    turn: usize,
    /// Not there while an operation is under way.
    guard: Option<LockGuard>,
}

async fn unary(
    bench: &Bench,
    rate: Option<u32>,
    clients: usize,
    time: Duration,
) -> Result<Measured, Failure> {
    // A client that is told where the leader is saves each call a hop.
    let leader = calls::status(&bench.addresses[0]).await.map(|status| status.leader_address);
    let leader = leader.ok().filter(|leader| bench.addresses.contains(leader));
    let addresses = leader.map_or_else(|| bench.addresses.clone(), |leader| vec![leader]);
    let mut channels = Vec::new();
    for address in &addresses {
        let failed =
            |error: tonic::transport::Error| Failure::NoLeader(format!("{address}: {}", chain(&error)));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
        channels.push(RaftLockClient::new(endpoint.connect().await.map_err(failed)?));
    }
    let pair = move |number: usize| {
        let mut client = channels[number % channels.len()].clone();
        async move { unary_pair(&mut client, number % LOCKS).await }
    };
    looped(bench, rate, clients, time, pair).await
}

async fn unary_pair(client: &mut RaftLockClient<Channel>, number: usize) -> Result<(), Failure> {
    let failed = |status: tonic::Status| Failure::Other(status.message().to_owned());
    let (resource_id, client_id) = (format!("bench-{number}"), format!("bench-{number}"));
    let lock = LockRequest {
        resource_id: resource_id.clone(),
        client_id: client_id.clone(),
        ttl_seconds: TTL.as_secs() as i64,
        ..LockRequest::default()
    };
    let granted = client.lock(lock).await.map_err(failed)?.into_inner();
    if !granted.success {
        return Err(Failure::Other(format!("{resource_id} is held by another: {}", granted.message)));
    }
    let fencing_token = granted.fencing_token;
    let unlock = UnlockRequest { resource_id, client_id, fencing_token, ..UnlockRequest::default() };
    client.unlock(unlock).await.map_err(failed)?;
    Ok(())
}

async fn looped<F, Fut>(
    bench: &Bench,
    rate: Option<u32>,
    clients: usize,
    time: Duration,
    pair: F,
) -> Result<Measured, Failure>
where
    F: Fn(usize) -> Fut + 'static,
    Fut: Future<Output = Result<(), Failure>> + 'static,
{
    match rate {
        Some(rate) => load::open(&bench.clock, f64::from(rate), time, pair).await,
        None => load::closed(&bench.clock, clients, time, pair).await,
    }
}

/// All want one lock. The times are from the call that releases it to the next holder's hearing of it.
async fn hot(bench: &Bench, clients: usize, time: Duration) -> Result<Measured, Failure> {
    let client = connect(bench).await?;
    let (worker, clock) = (client.clone(), bench.clock.clone());
    let released: Rc<Cell<Option<Duration>>> = Rc::default();
    let times = Rc::new(RefCell::new(histogram()));
    let noted = times.clone();
    let hand_over = move |_| {
        let (client, clock, released, times) =
            (worker.clone(), clock.clone(), released.clone(), noted.clone());
        async move {
            let guard = client.lock("bench-hot").await.map_err(failed)?;
            if let Some(at) = released.take() {
                times.borrow_mut().saturating_record(micros(clock.monotonic() - at));
            }
            released.set(Some(clock.monotonic()));
            guard.release().await.map_err(failed)
        }
    };
    let measured = load::closed(&bench.clock, clients, time, hand_over).await;
    client.close().await;
    let times = times.borrow().clone();
    Ok(Measured { times, ..measured? })
}

async fn shared(bench: &Bench, clients: usize, time: Duration) -> Result<Measured, Failure> {
    let client = connect(bench).await?;
    let worker = client.clone();
    let pair = move |_| {
        let client = worker.clone();
        async move {
            let guard = client.lock("bench-shared").shared().await.map_err(failed)?;
            guard.release().await.map_err(failed)
        }
    };
    let measured = load::closed(&bench.clock, clients, time, pair).await;
    client.close().await;
    measured
}
