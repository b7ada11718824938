//! Processes that stand still: SIGSTOP, and SIGCONT later.

use std::time::Duration;

use anyhow::ensure;
use futures_util::future::try_join_all;
use rustix::process::Signal;

use super::super::nodes::ELECTION;
use super::super::stage::{Scenario, Stage, TTL};
use super::{Until, as_it_is};

pub(super) const LEADER: Scenario = Scenario {
    name: "P3",
    what: "the leader stands still for half an election timeout, for one, for three",
    secs: 120,
    prepare: as_it_is,
    run: |stage, length| Box::pin(leader(stage, length)),
    bites: &[("leaders stopped", 24), ("leaders stopped, short", 8)],
};

pub(super) const CLIENTS: Scenario = Scenario {
    name: "P4",
    what: "clients stand still for half a lease, for one, for three",
    secs: 120,
    prepare: slow_writes,
    run: |stage, length| Box::pin(clients(stage, length)),
    bites: &[("clients frozen", 40), ("stale writes refused", 1)],
};

/// So that some are under way when their client is stopped.
pub(super) fn slow_writes(stage: &mut Stage) -> anyhow::Result<()> {
    stage.crowd.write_time = Duration::from_millis(600);
    Ok(())
}

async fn leader(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    for half_timeouts in [1, 2, 6].into_iter().cycle().take_while(|_| until.is_not_yet()) {
        let leader = stage.nodes.leader().await?;
        let losses = stage.crowd.losses().len();
        stop(stage, leader, ELECTION * half_timeouts / 2).await?;
        stage.pause(1_000..2_500).await?;
        if half_timeouts == 1 {
            let lost = stage.crowd.losses().split_off(losses);
            ensure!(lost.is_empty(), "a stop below the election timeout cost leases: {lost:?}");
            stage.count("leaders stopped, short");
        }
    }
    Ok(())
}

/// Has a node stand still for a while.
pub(super) async fn stop(
    stage: &mut Stage,
    host: super::super::place::Host,
    time: Duration,
) -> anyhow::Result<()> {
    stage.nodes.signal(host, Signal::STOP)?;
    tokio::time::sleep(time).await;
    stage.nodes.signal(host, Signal::CONT)?;
    stage.count("leaders stopped");
    Ok(())
}

async fn clients(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    while until.is_not_yet() {
        let mut hosts = stage.crowd.up();
        stage.rng.shuffle(&mut hosts);
        let times = [TTL / 2, 2 * TTL + Duration::from_millis(200), 3 * TTL];
        let frozen = hosts.into_iter().zip(times).map(|(host, time)| stage.crowd.freeze(host, time));
        try_join_all(frozen).await?;
        stage.pause(100..500).await?;
    }
    Ok(())
}
