//! How work is asked for: closed, so many at once and each after the one before; or open, at a rate, whatever the answers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use raftlock_server::clock::Clock;
use tokio::task::JoinSet;

use super::figures::{histogram, micros};
use crate::cli::failure::Failure;

/// Calls of an open loop that may wait for their answers: beyond that the cluster is not slow but over its peak.
pub const WAITING_MAX: usize = 100_000;

/// The times of `ops` operations.
#[derive(Debug)]
pub struct Measured {
    pub times: Histogram<u64>,
    pub ops: u64,
    pub took: Duration,
    /// What only this workload has.
    pub more: BTreeMap<&'static str, f64>,
}

impl Measured {
    pub fn new(times: Histogram<u64>, ops: u64, took: Duration) -> Measured {
        Measured { times, ops, took, more: BTreeMap::new() }
    }

    /// With one more figure.
    pub fn with(mut self, what: &'static str, figure: f64) -> Measured {
        self.more.insert(what, figure);
        self
    }
}

/// `clients` at a time for so long: `op` is given the number of its client.
pub async fn closed<F, Fut>(
    clock: &Arc<dyn Clock>,
    clients: usize,
    time: Duration,
    op: F,
) -> Result<Measured, Failure>
where
    F: Fn(usize) -> Fut + 'static,
    Fut: Future<Output = Result<(), Failure>> + 'static,
{
    closed_while(clock, clients, move |so_long| so_long < time, op).await
}

/// As [`closed`], for as long as `goes_on` says of the time so far.
pub async fn closed_while<F, Fut>(
    clock: &Arc<dyn Clock>,
    clients: usize,
    goes_on: impl Fn(Duration) -> bool + Clone + 'static,
    op: F,
) -> Result<Measured, Failure>
where
    F: Fn(usize) -> Fut + 'static,
    Fut: Future<Output = Result<(), Failure>> + 'static,
{
    let (op, began) = (Rc::new(op), clock.monotonic());
    let working = tokio::task::LocalSet::new();
    let ended = working.run_until(async {
        let times = Rc::new(RefCell::new(histogram()));
        let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
        for client in 0..clients {
            let (op, clock, times, goes_on) = (op.clone(), clock.clone(), times.clone(), goes_on.clone());
            tasks.spawn_local(async move {
                loop {
                    let at = clock.monotonic();
                    if !goes_on(at - began) {
                        return Ok(());
                    }
                    op(client).await?;
                    times.borrow_mut().saturating_record(micros(clock.monotonic() - at));
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a client does not panic")?;
        }
        Ok::<_, Failure>(times.borrow().clone())
    });
    let times = ended.await?;
    let ops = times.len();
    Ok(Measured::new(times, ops, clock.monotonic() - began))
}

/// So many a second for so long. Times count from when each was to begin.
pub async fn open<F, Fut>(
    clock: &Arc<dyn Clock>,
    per_second: f64,
    time: Duration,
    op: F,
) -> Result<Measured, Failure>
where
    F: Fn(usize) -> Fut + 'static,
    Fut: Future<Output = Result<(), Failure>> + 'static,
{
    let (op, began) = (Rc::new(op), clock.monotonic());
    let working = tokio::task::LocalSet::new();
    let ended = working.run_until(async {
        let mut tasks: JoinSet<Result<u64, Failure>> = JoinSet::new();
        let mut times = histogram();
        let mut number = 0;
        loop {
            let due = began + Duration::from_secs_f64(number as f64 / per_second);
            if due - began >= time {
                break;
            }
            let early = due.saturating_sub(clock.monotonic());
            if !early.is_zero() {
                tokio::time::sleep(early).await;
            }
            while let Some(done) = tasks.try_join_next() {
                times.saturating_record(done.expect("an operation does not panic")?);
            }
            if tasks.len() >= WAITING_MAX {
                return Err(Failure::Other(format!(
                    "{WAITING_MAX} calls wait: the rate is above what the cluster does"
                )));
            }
            let (op, clock) = (op.clone(), clock.clone());
            tasks.spawn_local(async move {
                op(number).await?;
                Ok(micros(clock.monotonic() - due))
            });
            number += 1;
        }
        while let Some(done) = tasks.join_next().await {
            times.saturating_record(done.expect("an operation does not panic")?);
        }
        Ok(times)
    });
    let times = ended.await?;
    let ops = times.len();
    Ok(Measured::new(times, ops, clock.monotonic() - began))
}
