//! Networks: partitions, bad lines, answers that never arrive.

use std::time::Duration;

use super::super::links::Weather;
use super::super::nodes::founders;
use super::super::place::Host;
use super::super::stage::{Scenario, Stage};
use super::{Until, as_it_is};

pub(super) const PARTITIONS: Scenario = Scenario {
    name: "P5",
    what: "partitions: the leader alone, a follower alone, one pair, one direction, clients cut off",
    secs: 150,
    prepare: as_it_is,
    run: |stage, length| Box::pin(partitions(stage, length)),
    bites: &[("partitions", 20), ("pieces and connections held up", 20)],
};

pub(super) const BAD: Scenario = Scenario {
    name: "P6",
    what: "delays, jitter and losses on the lines of clients and nodes",
    secs: 120,
    prepare: as_it_is,
    run: |stage, length| Box::pin(bad(stage, length)),
    bites: &[("pieces delayed", 1_000), ("pieces lost and sent again", 200)],
};

pub(super) const LOST_ANSWERS: Scenario = Scenario {
    name: "P7",
    what: "answers are lost with their connection, after the cluster has done what was asked",
    secs: 90,
    prepare: as_it_is,
    run: |stage, length| Box::pin(lost_answers(stage, length)),
    bites: &[("connections cut with an answer under way", 2_000)],
};

async fn partitions(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    while until.is_not_yet() {
        part_somehow(stage).await?;
        stage.pause(1_000..5_000).await?;
        stage.links.heal();
        stage.pause(500..2_000).await?;
    }
    Ok(())
}

/// One partition, until somebody heals it.
pub(super) async fn part_somehow(stage: &mut Stage) -> anyhow::Result<()> {
    let blocked = Weather { blocked: true, ..Weather::default() };
    let leader = stage.nodes.leader().await?;
    let followers: Vec<Host> = founders().filter(|host| *host != leader).collect();
    let (follower, client) = (stage.any(&followers), stage.any(&stage.crowd.up()));
    let clients = stage.crowd.up();
    match stage.rng.u8(0..7) {
        0 => stage.links.part(&[leader], &followers),
        1 => {
            // With half of the clients: they cannot reach the others either.
            let theirs = [&[leader], &clients[..clients.len() / 2]].concat();
            let others = [&followers, &clients[clients.len() / 2..]].concat();
            stage.links.part(&theirs, &others);
        }
        2 => {
            let others: Vec<Host> = founders().filter(|host| *host != follower).collect();
            stage.links.part(&[follower], &others);
        }
        3 => stage.links.part(&[leader], &[follower]),
        4 => stage.links.set(leader, follower, &blocked),
        5 => followers.iter().for_each(|follower| stage.links.set(*follower, leader, &blocked)),
        _ => {
            let nodes: Vec<Host> = founders().collect();
            stage.links.part(&[client], &nodes);
        }
    }
    stage.count("partitions");
    Ok(())
}

async fn bad(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    for kind in (0..3).cycle().take_while(|_| until.is_not_yet()) {
        weather_somewhere(stage, kind).await?;
        stage.pause(4_000..6_000).await?;
        stage.links.heal();
        stage.pause(500..1_000).await?;
    }
    Ok(())
}

/// Bad weather, until somebody heals it: at the clients, between all nodes, or around one follower.
pub(super) async fn weather_somewhere(stage: &mut Stage, kind: u8) -> anyhow::Result<()> {
    let weather =
        |from, to, lost_percent| Weather { delay_ms: Some((from, to)), lost_percent, ..Weather::default() };
    let nodes: Vec<Host> = founders().collect();
    match kind {
        0 => {
            let storm = weather(50, 500, 10);
            for client in stage.crowd.up() {
                nodes.iter().for_each(|node| stage.links.set_both(client, *node, &storm));
            }
        }
        1 => {
            let drizzle = weather(1, 30, 5);
            for (at, node) in nodes.iter().enumerate() {
                nodes[..at].iter().for_each(|other| stage.links.set_both(*node, *other, &drizzle));
            }
        }
        _ => {
            let follower = stage.nodes.follower().await?;
            let storm = weather(50, 500, 30);
            let others = nodes.iter().filter(|node| **node != follower);
            others.for_each(|node| stage.links.set_both(follower, *node, &storm));
        }
    }
    Ok(())
}

async fn lost_answers(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    cut_answers(stage, 250);
    let until = Until::over(length);
    while until.is_not_yet() {
        stage.pause(500..1_000).await?;
    }
    stage.links.heal();
    Ok(())
}

/// Of a thousand pieces from nodes to clients so many are lost with their connection, until somebody heals it.
pub(super) fn cut_answers(stage: &Stage, cut_permille: u16) {
    let weather = Weather { cut_permille, ..Weather::default() };
    for client in stage.crowd.up() {
        founders().for_each(|node| stage.links.set(node, client, &weather));
    }
}
