//! All of P1 to P7 at once.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::super::nodes::{ELECTION, founders};
use super::super::place::Host;
use super::super::stage::{Scenario, Stage, TTL};
use super::Until;
use super::stops::slow_writes;
use super::weather::{cut_answers, part_somehow, weather_somewhere};

pub(super) const AT_ONCE: Scenario = Scenario {
    name: "P17",
    what: "P1 to P7, overlapping",
    secs: 240,
    prepare: slow_writes,
    run: |stage, length| Box::pin(at_once(stage, length)),
    bites: &[("nodes killed", 20), ("leaders stopped", 5), ("clients killed", 3), ("partitions", 10)],
};

/// What ends something that went wrong.
enum Undo {
    Start(Host),
    Continue(Host),
    Heal,
}

async fn at_once(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    let mut undo: Vec<(Instant, Undo)> = Vec::new();
    while until.is_not_yet() {
        begin_something(stage, &mut undo).await?;
        stage.pause(100..1_500).await?;
        let (due, later) = undo.into_iter().partition(|(at, _)| *at <= Instant::now());
        undo = later;
        end(stage, due)?;
    }
    end(stage, undo)
}

fn end(stage: &mut Stage, due: Vec<(Instant, Undo)>) -> anyhow::Result<()> {
    for (_, undo) in due {
        match undo {
            Undo::Start(host) => stage.nodes.start(host)?,
            Undo::Continue(host) => stage.nodes.signal(host, Signal::CONT)?,
            Undo::Heal => stage.links.heal(),
        }
    }
    Ok(())
}

async fn begin_something(stage: &mut Stage, undo: &mut Vec<(Instant, Undo)>) -> anyhow::Result<()> {
    let after = |stage: &mut Stage, ms| Instant::now() + Duration::from_millis(stage.rng.u64(ms));
    let is_stopped = undo.iter().any(|(_, undo)| matches!(undo, Undo::Continue(_)));
    match stage.rng.u8(0..12) {
        0..=2 => {
            let up = stage.nodes.up();
            // Nobody is killed who stands still: his turn to go on would find another process.
            if up.len() == founders().count() && !is_stopped {
                let host = stage.any(&up);
                stage.kill(host)?;
                undo.push((after(stage, 200..3_000), Undo::Start(host)));
            }
        }
        3 if undo.is_empty() => {
            let up = stage.nodes.up();
            up.iter().try_for_each(|host| stage.kill(*host))?;
            up.iter().for_each(|host| undo.push((Instant::now(), Undo::Start(*host))));
        }
        4 | 5 => {
            let up = stage.nodes.up();
            if !is_stopped && up.len() == founders().count() {
                let host = stage.any(&up);
                stage.nodes.signal(host, Signal::STOP)?;
                stage.count("leaders stopped");
                let longest = (ELECTION * 4).as_millis() as u64;
                undo.push((after(stage, 50..longest), Undo::Continue(host)));
            }
        }
        6 => {
            let up = stage.crowd.up();
            let (host, time) = (stage.any(&up), TTL.mul_f64(stage.rng.f64() * 3.0));
            stage.crowd.freeze(host, time).await?;
        }
        7 => {
            let up = stage.crowd.up();
            let host = stage.any(&up);
            stage.crowd.kill(host).await?;
        }
        8 | 9 => {
            // Only with a leader there are sides to take.
            if undo.is_empty() {
                part_somehow(stage).await?;
                undo.push((after(stage, 500..4_000), Undo::Heal));
            }
        }
        10 => {
            if undo.is_empty() {
                let kind = stage.rng.u8(0..3);
                weather_somewhere(stage, kind).await?;
                undo.push((after(stage, 1_000..5_000), Undo::Heal));
            }
        }
        _ => {
            cut_answers(stage, 100);
            undo.push((after(stage, 1_000..5_000), Undo::Heal));
        }
    }
    Ok(())
}
