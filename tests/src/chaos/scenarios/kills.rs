//! `kill -9`.

use std::time::Duration;

use super::super::stage::{KEPT_TTL, Scenario, Stage};
use super::{Until, as_it_is};

pub(super) const ONE: Scenario = Scenario {
    name: "P1",
    what: "one node after another is killed and started again",
    secs: 120,
    prepare: as_it_is,
    run: |stage, length| Box::pin(one(stage, length)),
    bites: &[("nodes killed", 15)],
};

pub(super) const ALL_AT_ONCE: Scenario = Scenario {
    name: "P2",
    what: "all nodes are killed at once, again and again",
    secs: 60,
    prepare: as_it_is,
    run: |stage, length| Box::pin(all_at_once(stage, length)),
    bites: &[("deaths of all nodes", 5), ("kept locks found", 30)],
};

async fn one(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    while until.is_not_yet() {
        stage.pause(1_500..5_000).await?;
        let up = stage.nodes.up();
        let host = stage.any(&up);
        stage.kill(host)?;
        stage.pause(100..2_000).await?;
        stage.nodes.start(host)?;
    }
    Ok(())
}

async fn all_at_once(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    stage.everybody_keeps("always", KEPT_TTL).await?;
    let until = Until::over(length);
    while until.is_not_yet() {
        stage.pause(2_000..6_000).await?;
        stage.kill_all().await?;
        stage.count("deaths of all nodes");
        stage.check_kept().await?;
    }
    Ok(())
}
