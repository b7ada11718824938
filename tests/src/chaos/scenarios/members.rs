//! Who belongs to the cluster, under load.

use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use super::super::nodes::{DISK_FAILED, PATIENCE, founders, within};
use super::super::place::Host;
use super::super::stage::{Scenario, Stage};
use super::disks::replace_disk;
use super::{Until, as_it_is};

pub(super) const WIPED: Scenario = Scenario {
    name: "P13",
    what: "a follower's disk is emptied and it starts again under its name",
    secs: 30,
    prepare: as_it_is,
    run: |stage, length| Box::pin(wiped(stage, length)),
    bites: &[("disks replaced", 1)],
};

pub(super) const REPLACED: Scenario = Scenario {
    name: "P14",
    what: "a member is replaced by a new node, and whoever takes part in it is killed meanwhile",
    secs: 120,
    prepare: as_it_is,
    run: |stage, length| Box::pin(replaced(stage, length)),
    bites: &[("members replaced", 4), ("nodes killed in a replacement", 4)],
};

pub(super) const ROLLING: Scenario = Scenario {
    name: "P16",
    what: "one node after another is asked to stop and started again; no call fails",
    secs: 60,
    prepare: as_it_is,
    run: |stage, length| Box::pin(rolling(stage, length)),
    bites: &[("nodes stopped in order", 9)],
};

async fn wiped(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    while until.is_not_yet() {
        let host = stage.nodes.follower().await?;
        stage.kill(host)?;
        replace_disk(stage, host).await?;
        stage.pause(500..1_000).await?;
    }
    Ok(())
}

async fn replaced(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    let mut spare = Host::node(3);
    while until.is_not_yet() {
        let mut members: Vec<Host> = stage.members.clone();
        let at = stage.rng.usize(0..members.len());
        let old = std::mem::replace(&mut members[at], spare);
        members.sort();
        stage.nodes.start(spare)?;
        learns(stage, spare).await?;
        let victim = stage.any(&[old, spare, members[0], members[2]]);
        let patience = Duration::from_millis(stage.rng.u64(0..400));
        // Whoever gave the order does not wait for its end; the cluster works on it all the same.
        let _ = tokio::time::timeout(patience, stage.nodes.order(&replacement(old, spare))).await;
        stage.kill(victim)?;
        stage.count("nodes killed in a replacement");
        stage.pause(300..1_000).await?;
        stage.nodes.start(victim)?;
        complete(stage, old, spare, &members).await?;
        stage.members = members;
        stage.count("members replaced");
        spare = old;
    }
    Ok(())
}

fn replacement(old: Host, new: Host) -> [String; 4] {
    ["members".to_owned(), "replace".to_owned(), old.name(), new.name()]
}

/// Waits until a node that was just started is known as a member.
async fn learns(stage: &Stage, host: Host) -> anyhow::Result<()> {
    let known = within(PATIENCE, async || {
        let leader = stage.nodes.leader().await.ok()?;
        let members = stage.nodes.status(leader).await?.members;
        members.iter().any(|member| member.name == host.name() && member.state == "alive").then_some(())
    });
    known.await.with_context(|| format!("{} does not join", host.name()))
}

/// Repeats the order until it is done, whatever became of it when somebody was killed; the old member ends by itself, and
/// its disk is given to somebody else.
async fn complete(stage: &mut Stage, old: Host, new: Host, members: &[Host]) -> anyhow::Result<()> {
    let done = within(PATIENCE, async || {
        // An order that came through before is refused: there is no such member any more.
        let _ = stage.nodes.order(&replacement(old, new)).await;
        let leader = stage.nodes.leader().await.ok()?;
        let seen = stage.nodes.status(leader).await?.members;
        let is_out = seen.iter().all(|member| member.name != old.name());
        is_out.then_some(())
    });
    done.await.with_context(|| format!("{} is not replaced by {}", old.name(), new.name()))?;
    stage.nodes.vote(members).await?;
    let code = stage.nodes.end_of(old, PATIENCE).await.context("the old member does not end")?;
    ensure!(code == Some(0) || code == Some(DISK_FAILED), "the old member ended with {code:?}");
    stage.nodes.wipe(old)
}

async fn rolling(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    for host in founders().collect::<Vec<_>>().into_iter().cycle().take_while(|_| until.is_not_yet()) {
        stage.nodes.signal(host, Signal::TERM)?;
        let code = stage.nodes.end_of(host, PATIENCE).await?;
        ensure!(code == Some(0), "{} ended with {code:?}", host.name());
        stage.nodes.start(host)?;
        stage.nodes.ready().await?;
        stage.count("nodes stopped in order");
        stage.pause(500..1_500).await?;
    }
    let failures = stage.crowd.failures();
    ensure!(failures.is_empty(), "a rolling restart failed calls: {failures:?}");
    Ok(())
}
