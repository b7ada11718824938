//! What much of something costs: sessions, held locks, waiters. Renewed for a while, left to end, or looked at in memory.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::try_join_all;

use super::crowd::{Crowd, STREAM_SESSIONS};
use super::figures::{histogram, micros};
use super::load::{self, Measured};
use super::{Args, Bench, Workload, cost, pairs};
use crate::cli::calls;
use crate::cli::failure::Failure;

/// The lease of what is renewed or left to end.
const TTL: Duration = Duration::from_secs(10);

/// Longer than any run: what is held stays held without renewals.
const LONG_TTL: Duration = Duration::from_secs(3_600);

/// Other work beside the masses.
const BESIDE: usize = 64;

/// How long after it is due everything may take to be freed.
const FREED_LIMIT: Duration = Duration::from_secs(120);

/// How long it may take until the log that a node lacks is gone, and until the node has the snapshot instead.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);

const LOOK: Duration = Duration::from_millis(20);

/// How many locks a session holds at most here: with more the renewal and the end of one would be what is measured.
const SESSION_LOCKS: usize = 1_000;

/// `count` of them.
pub async fn run(bench: &mut Bench, args: &Args, count: usize, time: Duration) -> Result<Measured, Failure> {
    match args.workload {
        Workload::Renew => renew(bench, count, time).await,
        Workload::Expire => expire(bench, count).await,
        Workload::Sessions => sessions(bench, count, time).await,
        Workload::Connections => connections(bench, count, time).await,
        Workload::Held => held(bench, count, time).await,
        Workload::Waiters => waiters(bench, count, time).await,
        Workload::Restart => restart(bench, count).await,
        Workload::Snapshot => snapshot(bench, count, time).await,
        other => unreachable!("{other:?} has a file of its own"),
    }
}

/// All are renewed every third of their lease, for `time` alone and for as long beside others at work. The times are from
/// a renewal of a stream's sessions to the last answer, of the time alone.
async fn renew(bench: &Bench, count: usize, time: Duration) -> Result<Measured, Failure> {
    let mut crowd = Crowd::open(bench, count, TTL).await?;
    let leader = match &bench.local {
        Some(local) => local.pid(local.leader().await?),
        None => None,
    };
    let cpu = || leader.and_then(cost::processor_seconds);
    let (before, began) = (cpu(), bench.clock.monotonic());
    let mut measured = renewed(bench, &mut crowd, count, time).await?;
    if let Some((now, before)) = cpu().zip(before) {
        let share = (now - before) / (bench.clock.monotonic() - began).as_secs_f64();
        measured = measured.with("leader_core_percent", 100.0 * share);
    }
    let beside = pairs::beside(bench, BESIDE, time);
    let (_, others) = tokio::try_join!(renewed(bench, &mut crowd, count, time), beside)?;
    Ok(measured.with("others_per_s", others.ops as f64 / others.took.as_secs_f64()))
}

async fn renewed(
    bench: &Bench,
    crowd: &mut Crowd,
    count: usize,
    time: Duration,
) -> Result<Measured, Failure> {
    let (clock, began) = (bench.clock.clone(), bench.clock.monotonic());
    let renewing = crowd.streams.iter_mut().enumerate().map(|(at, stream)| {
        let clock = clock.clone();
        async move {
            let mut times = Vec::new();
            // Not all at the same moment.
            let mut due = began + TTL / 3 * at as u32 / (count.div_ceil(STREAM_SESSIONS) as u32);
            while due < began + time {
                tokio::time::sleep(due.saturating_sub(clock.monotonic())).await;
                stream.renew().await?;
                times.push(clock.monotonic() - due);
                due += TTL / 3;
            }
            Ok::<_, Failure>((times, stream.sessions.len() as u64))
        }
    });
    let (mut times, mut ops) = (histogram(), 0);
    for (of_stream, sessions) in try_join_all(renewing).await? {
        ops += sessions * of_stream.len() as u64;
        of_stream.into_iter().for_each(|time| times.saturating_record(micros(time)));
    }
    Ok(Measured::new(times, ops, bench.clock.monotonic() - began))
}

/// All hold a lock and end at once, while others work. The times are those of the others, from when it is due.
async fn expire(bench: &Bench, count: usize) -> Result<Measured, Failure> {
    let mut crowd = Crowd::open(bench, count, TTL).await?;
    let holding = crowd.streams.iter_mut().enumerate().map(|(at, stream)| {
        let names = (0..stream.sessions.len()).map(|number| format!("bench-{at}-{number}"));
        stream.acquire(names.collect(), false)
    });
    try_join_all(holding).await?;
    // From here on they all have the same time left, but for how long this takes.
    try_join_all(crowd.streams.iter_mut().map(super::crowd::Stream::renew)).await?;
    let due = bench.clock.monotonic() + TTL;
    let working = pairs::beside(bench, BESIDE, TTL + Duration::from_secs(5));
    let freed = async {
        tokio::time::sleep(due.saturating_sub(bench.clock.monotonic())).await;
        loop {
            let status = calls::status(&bench.addresses[0]).await;
            let late = bench.clock.monotonic() - due;
            if status.is_ok_and(|status| (status.sessions as usize) < count / 100 + 10) {
                return Ok(late);
            }
            if late > FREED_LIMIT {
                return Err(Failure::Other(format!("not freed within {FREED_LIMIT:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let (measured, freed) = tokio::try_join!(working, freed)?;
    Ok(Measured { ops: count as u64, ..measured }.with("freed_after_ms", freed.as_secs_f64() * 1e3))
}

async fn sessions(bench: &Bench, count: usize, time: Duration) -> Result<Measured, Failure> {
    let before = bench.rss();
    let _crowd = Crowd::open(bench, count, LONG_TTL).await?;
    weighed(bench, before, count, "rss_bytes_per_session", time).await
}

async fn connections(bench: &Bench, count: usize, time: Duration) -> Result<Measured, Failure> {
    let leader = match &bench.local {
        Some(local) => local.leader().await?,
        None => 0,
    };
    let before = bench.rss();
    let _crowd = Crowd::connect(&bench.addresses[leader], count, LONG_TTL).await?;
    weighed(bench, before, count, "rss_bytes_per_connection", time).await
}

async fn held(bench: &Bench, count: usize, time: Duration) -> Result<Measured, Failure> {
    let before = bench.rss();
    let _crowd = hold(bench, count).await?;
    weighed(bench, before, count, "rss_bytes_per_lock", time).await
}

async fn waiters(bench: &Bench, count: usize, time: Duration) -> Result<Measured, Failure> {
    let mut holder = Crowd::open(bench, 1, LONG_TTL).await?;
    let stream = &mut holder.streams[0];
    stream.acquire(vec!["bench-waited-for".to_owned()], false).await?;
    let mut crowd = Crowd::open(bench, count.div_ceil(SESSION_LOCKS), LONG_TTL).await?;
    let before = bench.rss();
    spread(&mut crowd, count, true, |_, _| "bench-waited-for".to_owned()).await?;
    weighed(bench, before, count, "rss_bytes_per_waiter", time).await
}

/// Everything is held when all nodes are killed. What counts is how long until the cluster grants a lock again.
async fn restart(bench: &mut Bench, count: usize) -> Result<Measured, Failure> {
    let began = bench.clock.monotonic();
    let crowd = hold(bench, count).await?;
    drop(crowd);
    let nodes = bench.addresses.len();
    let local = bench.local.as_mut().expect("it was checked");
    for at in 0..nodes {
        local.kill(at).await?;
    }
    let started = bench.clock.monotonic();
    for at in 0..nodes {
        local.begin(at)?;
    }
    local.ready().await?;
    let client = pairs::connect(bench).await?;
    client.lock("bench-after").await.map_err(pairs::failed)?.release().await.map_err(pairs::failed)?;
    let serving = bench.clock.monotonic() - started;
    client.close().await;
    let status = calls::status(&bench.addresses[0]).await.map_err(Failure::Other)?;
    if (status.locks as usize) < count {
        return Err(Failure::Other(format!("{} of {count} locks are there after the restart", status.locks)));
    }
    let mut times = histogram();
    times.saturating_record(micros(serving));
    Ok(Measured::new(times, count as u64, bench.clock.monotonic() - began))
}

/// Others work while the nodes take snapshots of what is held, and while one travels to a node that was away for longer
/// than the log is kept. For `time` at least, and until that node has caught up.
async fn snapshot(bench: &mut Bench, count: usize, time: Duration) -> Result<Measured, Failure> {
    let _crowd = hold(bench, count).await?;
    let local = bench.local.as_mut().expect("it was checked");
    let leader = local.leader().await?;
    let away = (leader + 1) % bench.addresses.len();
    local.kill(away).await?;
    let addresses = bench.addresses.clone();
    let status = async |at: usize| calls::status(&addresses[at]).await.map_err(Failure::Other);
    let before = status(leader).await?;
    let client = pairs::connect_to(vec![addresses[leader].clone()]).await?;
    let is_back = Rc::new(Cell::new(false));
    let watched = is_back.clone();
    let goes_on = move |so_long| so_long < time || !watched.get();
    let clock = bench.clock.clone();
    let worker = client.clone();
    let pair = move |number| pairs::private(worker.clone(), number);
    let working = load::closed_while(&clock, BESIDE, goes_on, pair);
    let travelling = async {
        let began = clock.monotonic();
        let in_time = async |what: &str| match clock.monotonic() - began {
            so_long if so_long > CATCH_UP_LIMIT => {
                Err(Failure::Other(format!("{what} within {CATCH_UP_LIMIT:?}")))
            }
            _ => {
                tokio::time::sleep(LOOK).await;
                Ok(())
            }
        };
        while status(leader).await?.purged_index <= before.last_log_index {
            in_time("the leader let go of no log").await?;
        }
        local.begin(away)?;
        local.ready().await?;
        while status(away).await?.snapshot_index <= before.last_log_index {
            in_time("no snapshot arrived").await?;
        }
        is_back.set(true);
        Ok::<_, Failure>(clock.monotonic() - began)
    };
    let (measured, caught_up) = tokio::try_join!(working, travelling)?;
    client.close().await;
    Ok(measured.with("caught_up_ms", caught_up.as_secs_f64() * 1e3))
}

/// So many locks, a thousand in a session.
async fn hold(bench: &Bench, count: usize) -> Result<Crowd, Failure> {
    let mut crowd = Crowd::open(bench, count.div_ceil(SESSION_LOCKS), LONG_TTL).await?;
    // Sixteen bytes.
    spread(&mut crowd, count, false, |at, number| format!("held{at:04}{number:08}")).await?;
    Ok(crowd)
}

/// Asks for so many locks, as many on each stream; the name follows from the stream's number and the lock's on it.
async fn spread(
    crowd: &mut Crowd,
    count: usize,
    waits: bool,
    name: impl Fn(usize, usize) -> String,
) -> Result<(), Failure> {
    let streams = crowd.streams.len();
    for (at, stream) in crowd.streams.iter_mut().enumerate() {
        let share = count / streams + usize::from(at < count % streams);
        stream.acquire((0..share).map(|number| name(at, number)).collect(), waits).await?;
    }
    Ok(())
}

/// What the leader grew by for each, and how others fare meanwhile.
async fn weighed(
    bench: &Bench,
    before: Option<u64>,
    count: usize,
    what: &'static str,
    time: Duration,
) -> Result<Measured, Failure> {
    let grown = bench.rss().zip(before).map(|(now, before)| now.saturating_sub(before));
    let measured = pairs::beside(bench, BESIDE, time).await?;
    Ok(match grown {
        Some(grown) => measured.with(what, grown as f64 / count as f64),
        None => measured,
    })
}
