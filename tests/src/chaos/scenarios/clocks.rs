//! Clocks that lie.

use std::time::Duration;

use anyhow::ensure;

use super::super::nodes::founders;
use super::super::place::Host;
use super::super::stage::{Scenario, Stage};
use super::super::tools::FakeTime;
use super::Until;

pub(super) const JUMPS: Scenario = Scenario {
    name: "P11",
    what: "the wall clocks of one node and of all jump by an hour and by ten years",
    secs: 60,
    prepare: wall_clocks,
    run: |stage, length| Box::pin(jumps(stage, length)),
    bites: &[("jumps of wall clocks", 20), ("log lines of another decade", 1)],
};

pub(super) const RATES: Scenario = Scenario {
    name: "P12",
    what: "the clock of one node and of one client go wrong by half a percent",
    secs: 60,
    prepare: rates,
    run: |stage, length| Box::pin(at_rates(stage, length)),
    bites: &[("processes with a false clock", 2), ("clients whose leases go by a false clock", 1)],
};

/// By how much the contract allows clocks to be off.
const OFF: f64 = 0.005;

fn wall_clocks(stage: &mut Stage) -> anyhow::Result<()> {
    for host in founders() {
        let wall = FakeTime::new(&stage.folder, &host.name())?.wall();
        stage.nodes.set_environment(host, &wall);
    }
    Ok(())
}

async fn jumps(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let nodes: Vec<Host> = founders().collect();
    let clocks = nodes.iter().map(|host| FakeTime::new(&stage.folder, &host.name()));
    let clocks = clocks.collect::<anyhow::Result<Vec<_>>>()?;
    let until = Until::over(length);
    for offset in ["+1h", "-1h", "+10y", "-10y", "+0"].into_iter().cycle().take_while(|_| until.is_not_yet())
    {
        let one = stage.rng.usize(0..nodes.len());
        clocks[one].jump(offset)?;
        stage.count("jumps of wall clocks");
        stage.pause(500..1_500).await?;
        for clock in &clocks {
            clock.jump(offset)?;
            stage.count("jumps of wall clocks");
        }
        // What a node says of it shows that it does see the wrong time.
        if offset.ends_with('y') {
            let follower = stage.nodes.follower().await?;
            stage.nodes.order(&["transfer-leader", &follower.name()]).await?;
            ensure!(stage.nodes.leader().await? == follower, "the leadership was not handed over");
            let log = stage.nodes.log(follower);
            stage.add("log lines of another decade", lines_of_another_decade(&log));
        }
        stage.pause(500..1_500).await?;
    }
    for clock in &clocks {
        clock.jump("+0")?;
    }
    let (losses, failures) = (stage.crowd.losses(), stage.crowd.failures());
    ensure!(
        losses.is_empty() && failures.is_empty(),
        "the wall clock had an effect: {losses:?} {failures:?}"
    );
    Ok(())
}

/// Lines with another decade than the first one, which was written before all jumps.
fn lines_of_another_decade(log: &str) -> u64 {
    let decade = |line: &str| {
        line.get(..3).filter(|start| start.bytes().all(|b| b.is_ascii_digit())).map(str::to_owned)
    };
    let mut decades = log.lines().filter_map(decade);
    let Some(first) = decades.next() else { return 0 };
    decades.filter(|decade| *decade != first).count() as u64
}

/// One fast and one slow.
fn rates(stage: &mut Stage) -> anyhow::Result<()> {
    let (fast, slow) = if stage.rng.bool() { (1.0 + OFF, 1.0 - OFF) } else { (1.0 - OFF, 1.0 + OFF) };
    let time = FakeTime::new(&stage.folder, "rates")?;
    stage.nodes.set_environment(Host::node(0), &time.rate(fast));
    stage.crowd.set_environment(Host::client(0), &time.rate(slow));
    Ok(())
}

async fn at_rates(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    for pid in [stage.nodes.pid(Host::node(0))?, stage.crowd.pid(Host::client(0))?] {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        ensure!(maps.contains("libfaketime"), "process {pid} sees the true time");
        stage.count("processes with a false clock");
    }
    // The false clock counts most at the leader.
    let until = Until::over(length);
    while until.is_not_yet() {
        if stage.nodes.leader().await? != Host::node(0) {
            stage.nodes.order(&["transfer-leader", &Host::node(0).name()]).await?;
        }
        stage.pause(2_000..4_000).await?;
    }
    // Its leases do end by the false clock, and those of the others by the true one.
    for host in stage.crowd.up() {
        let pace = stage.crowd.pace(host)?;
        let expected = if host == Host::client(0) { OFF } else { 0.0 };
        ensure!(
            (pace.abs() - expected).abs() < OFF / 2.0,
            "invalid: the leases of {} run out {:.3} % faster than real time",
            host.name(),
            100.0 * pace
        );
    }
    stage.count("clients whose leases go by a false clock");
    Ok(())
}
