//! The leader goes, under load: killed, or asked to hand over. What counts is for how long nobody was granted a lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raftlock_proto::v1::ChangeMembersRequest;
use raftlock_proto::v1::admin_client::AdminClient;
use raftlock_proto::v1::change_members_request::Change;
use raftlock_server::clock::Clock;

use super::figures::{histogram, micros};
use super::load::Measured;
use super::pairs::{connect, failed};
use super::{Args, Bench, Workload, note};
use crate::cli::calls;
use crate::cli::failure::Failure;
use crate::cli::target::Target;

/// After a change of leader, until the next: longer than the gap, and the load is steady again.
const SETTLE: Duration = Duration::from_secs(3);

/// When the last grant was, and the longest time between two of them since it was last asked for.
struct Gaps {
    clock: Arc<dyn Clock>,
    last: Cell<Duration>,
    longest: Cell<Duration>,
    grants: Cell<u64>,
}

impl Gaps {
    fn new(clock: Arc<dyn Clock>) -> Gaps {
        let last = Cell::new(clock.monotonic());
        Gaps { clock, last, longest: Cell::default(), grants: Cell::default() }
    }

    fn grant(&self) {
        let now = self.clock.monotonic();
        let gap = now - self.last.replace(now);
        self.longest.set(self.longest.get().max(gap));
        self.grants.set(self.grants.get() + 1);
    }

    /// The longest since the last call, also one that has not ended.
    fn take_longest(&self) -> Duration {
        self.longest.take().max(self.clock.monotonic() - self.last.get())
    }
}

/// `clients` at work while the leader goes `--kills` times.
pub async fn run(bench: &mut Bench, args: &Args, clients: usize) -> Result<Measured, Failure> {
    let began = bench.clock.monotonic();
    let gaps = Rc::new(Gaps::new(bench.clock.clone()));
    let client = connect(bench).await?;
    let over = Rc::new(Cell::new(false));
    let errors = Rc::new(RefCell::new(Vec::new()));
    let working = tokio::task::LocalSet::new();
    for number in 0..clients {
        let (client, gaps, over, errors) = (client.clone(), gaps.clone(), over.clone(), errors.clone());
        working.spawn_local(async move {
            while !over.get() {
                let pair = async {
                    let guard = client.lock(format!("bench-{number}")).await.map_err(failed)?;
                    gaps.grant();
                    guard.release().await.map_err(failed)
                };
                if let Err(error) = pair.await {
                    errors.borrow_mut().push(error.to_string());
                }
            }
        });
    }
    let mut times = histogram();
    let changes = working.run_until(async {
        tokio::time::sleep(SETTLE).await;
        for _ in 0..args.kills {
            gaps.take_longest();
            change_leader(bench, args).await?;
            tokio::time::sleep(SETTLE).await;
            times.saturating_record(micros(gaps.take_longest()));
            if let Some(local) = &mut bench.local {
                local.ready().await?;
            }
        }
        Ok::<_, Failure>(())
    });
    changes.await?;
    over.set(true);
    working.await;
    client.close().await;
    if let Some(first) = errors.borrow().first() {
        note(&format!("{} pairs failed, the first: {first}", errors.borrow().len()));
    }
    Ok(Measured::new(times, gaps.grants.get(), bench.clock.monotonic() - began))
}

async fn change_leader(bench: &mut Bench, args: &Args) -> Result<(), Failure> {
    match (&mut bench.local, args.workload) {
        (Some(local), Workload::Failover) => {
            let leader = local.leader().await?;
            local.kill(leader).await?;
            // It comes back, as one that an init system looks after.
            tokio::time::sleep(SETTLE / 2).await;
            local.begin(leader)
        }
        _ => hand_over(&bench.addresses).await,
    }
}

async fn hand_over(addresses: &[String]) -> Result<(), Failure> {
    let target = Target::of(addresses.to_vec());
    let change = ChangeMembersRequest { change: Some(Change::TransferLeader(String::new())) };
    let asked = calls::once(&target, async |attempt| {
        let mut admin: AdminClient<_> = attempt.admin.clone();
        admin.change_members(attempt.request(change.clone())).await
    });
    asked.await.map(drop).map_err(|why| why.into_failure("the leadership may have been handed over"))
}
