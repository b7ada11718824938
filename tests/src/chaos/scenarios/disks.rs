//! Disks that are full, fail, are slow, or change what was written to them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use super::super::nodes::{DISK_FAILED, PATIENCE, founders, within};
use super::super::place::{Host, run};
use super::super::stage::{Scenario, Stage};
use super::super::tools::{SyncFault, Traced};
use super::{Until, as_it_is};

pub(super) const FULL: Scenario = Scenario {
    name: "P8",
    what: "disks fill up, of one node and of all, and have room again",
    secs: 60,
    prepare: small_disks,
    run: |stage, length| Box::pin(full(stage, length)),
    bites: &[("disks filled", 12), ("nodes that felt their disk", 12)],
};

pub(super) const ERRORS: Scenario = Scenario {
    name: "P9",
    what: "the disk fails, once and for good, at the leader and at a follower",
    secs: 60,
    prepare: as_it_is,
    run: |stage, length| Box::pin(errors(stage, length)),
    bites: &[("nodes that ended with their disk", 2)],
};

pub(super) const SLOW: Scenario = Scenario {
    name: "P10",
    what: "the disk takes 200 ms to 3 s for a flush, and once 5 s",
    secs: 90,
    prepare: as_it_is,
    run: |stage, length| Box::pin(slow(stage, length)),
    bites: &[("slow flushes", 20)],
};

pub(super) const DAMAGED: Scenario = Scenario {
    name: "P15",
    what: "bits flip and files are cut on the disk of a node that is down",
    secs: 60,
    prepare: as_it_is,
    run: |stage, length| Box::pin(damaged(stage, length)),
    bites: &[("damaged disks", 4), ("damaged disks refused", 2)],
};

/// Of a disk, and of a database, in bytes.
const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// How long a node may serve on after its disk failed.
const FAILED_FOR: Duration = Duration::from_secs(2);

/// Elections that one slow disk may cost, at most: the node that has it may come to lead again.
const ELECTIONS_OF_A_SLOW_DISK: u64 = 12;

fn small_disks(stage: &mut Stage) -> anyhow::Result<()> {
    for host in founders() {
        let data = stage.nodes.data(host);
        fs::create_dir_all(data)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "none"]).arg(data))?;
        stage.nodes.set_ballast(host, "8MiB");
    }
    Ok(())
}

async fn full(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    for who in (0..3).cycle().take_while(|_| until.is_not_yet()) {
        let hosts = match who {
            0 => vec![stage.nodes.leader().await?],
            1 => vec![stage.nodes.follower().await?],
            _ => founders().collect(),
        };
        let mut fills = Vec::new();
        for host in &hosts {
            fills.push(fill(stage.nodes.data(*host))?);
            stage.count("disks filled");
        }
        stage.pause(2_000..3_000).await?;
        for host in &hosts {
            // It notices in time and takes nothing new, or it wrote in between and cannot go on.
            let ended = stage.nodes.has_ended(*host)?;
            let is_low = stage.nodes.status(*host).await.is_some_and(|seen| seen.disk_low);
            ensure!(
                ended.is_none_or(|code| code == Some(DISK_FAILED)),
                "{} ended with {ended:?}",
                host.name()
            );
            ensure!(ended.is_some() || is_low, "{} did not notice that its disk is full", host.name());
            stage.count("nodes that felt their disk");
        }
        fills.iter().try_for_each(fs::remove_file)?;
        for host in &hosts {
            if !stage.nodes.up().contains(host) {
                stage.nodes.start(*host)?;
            }
        }
        stage.nodes.ready().await?;
        stage.pause(1_000..2_000).await?;
    }
    Ok(())
}

/// Writes until nothing more fits.
fn fill(data: &Path) -> anyhow::Result<PathBuf> {
    let path = data.join("of-somebody-else");
    let mut file = File::create(&path)?;
    let mut piece = vec![0_u8; 1 << 20];
    while !piece.is_empty() {
        match file.write(&piece) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => piece.truncate(piece.len() / 2),
            Err(error) => return Err(error).context("filling a disk"),
        }
    }
    Ok(path)
}

async fn errors(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    let faults = [(true, SyncFault::FailsOnce), (false, SyncFault::Fails), (true, SyncFault::Fails)];
    for (at, (leads, fault)) in faults.iter().cycle().enumerate() {
        if at >= 2 && !until.is_not_yet() {
            break;
        }
        let host = if *leads { stage.nodes.leader().await? } else { stage.nodes.follower().await? };
        let traced = Traced::begin(stage.nodes.pid(host)?, fault, &stage.folder).await?;
        let code = stage.nodes.end_of(host, FAILED_FOR).await?;
        ensure!(code == Some(DISK_FAILED), "{} ended with {code:?}", host.name());
        ensure!(traced.hits() > 0, "invalid: no call failed");
        drop(traced);
        stage.count("nodes that ended with their disk");
        let asked = within(Duration::from_secs(5), async || stage.nodes.holder("lock-0").await.ok());
        asked.await.context("the others do not serve on")?;
        replace_disk(stage, host).await?;
    }
    Ok(())
}

/// An empty disk in place of the one of a node that is down: it comes back as another member, under its name.
pub(super) async fn replace_disk(stage: &mut Stage, host: Host) -> anyhow::Result<()> {
    stage.nodes.wipe(host)?;
    stage.nodes.start(host)?;
    stage.nodes.vote(&founders().collect::<Vec<_>>()).await?;
    stage.count("disks replaced");
    Ok(())
}

async fn slow(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    stage.everybody_keeps("slow", Duration::from_secs(10)).await?;
    let until = Until::over(length);
    let times = [5_000, 200, 1_000, 3_000];
    for (ms, leads) in
        times.into_iter().zip([true, true, false, true]).cycle().take_while(|_| until.is_not_yet())
    {
        let host = if leads { stage.nodes.leader().await? } else { stage.nodes.follower().await? };
        let term = stage.nodes.status(host).await.context("it is up")?.term;
        let time = Duration::from_millis(ms);
        let fault = if ms == 5_000 { SyncFault::LastsOnce(time) } else { SyncFault::Lasts(time) };
        let traced = Traced::begin(stage.nodes.pid(host)?, &fault, &stage.folder).await?;
        stage.pause(5_000..7_000).await?;
        let hits = traced.hits();
        drop(traced);
        stage.add("slow flushes", hits);
        stage.nodes.ready().await?;
        let leader = stage.nodes.leader().await?;
        let elections = stage.nodes.status(leader).await.context("it is up")?.term.saturating_sub(term);
        stage.add("elections under slow disks", elections);
        ensure!(elections <= ELECTIONS_OF_A_SLOW_DISK, "{elections} elections with a flush of {time:?}");
    }
    // Ten seconds of lease outlast every stall.
    stage.check_kept().await
}

async fn damaged(stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
    let until = Until::over(length);
    for everywhere in [true, false].into_iter().cycle().take_while(|_| until.is_not_yet()) {
        let host = stage.nodes.follower().await?;
        let what = if everywhere {
            stage.nodes.signal(host, Signal::TERM)?;
            stage.nodes.end_of(host, PATIENCE).await?;
            spoil(stage, host)?
        } else {
            stage.kill(host)?;
            damage(stage, host)?
        };
        stage.count("damaged disks");
        stage.nodes.start(host)?;
        // One that sees it refuses to start. One that does not reads an older state, which was once true; its operator
        // knows of the damage, and replaces it all the same.
        let ended = within(Duration::from_secs(3), async || stage.nodes.has_ended(host).transpose()).await;
        match ended.transpose()? {
            Some(Some(DISK_FAILED)) => stage.count("damaged disks refused"),
            Some(code) => bail!("{}: {} ended with {code:?}", what, host.name()),
            None if everywhere => bail!("{}: {} serves from that", what, host.name()),
            None => stage.kill(host)?,
        }
        replace_disk(stage, host).await?;
        stage.pause(500..1_000).await?;
    }
    Ok(())
}

/// Flips a bit in every sector of a node's log: whatever it reads is damaged. It has ended well, so all of its log is in
/// this file.
fn spoil(stage: &mut Stage, host: Host) -> anyhow::Result<String> {
    let path = stage.nodes.data(host).join("raft.db");
    let mut bytes = fs::read(&path)?;
    // Not in the first page: a file that is no database at all is refused before anything of ours is read.
    for sector in bytes.chunks_mut(SECTOR).skip(PAGE / SECTOR) {
        sector[stage.rng.usize(0..SECTOR)] ^= 1 << stage.rng.u8(0..8);
    }
    fs::write(&path, bytes)?;
    Ok(format!("{} with a bit flipped in every sector", path.display()))
}

/// Flips a bit of one of a node's files, or cuts some of its end off.
fn damage(stage: &mut Stage, host: Host) -> anyhow::Result<String> {
    let entries = fs::read_dir(stage.nodes.data(host))?.collect::<Result<Vec<_>, _>>()?;
    let is_data = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".db") || name.ends_with("-wal")
    };
    let mut files: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).filter(is_data).collect();
    files.retain(|path| fs::metadata(path).is_ok_and(|file| file.len() > 0));
    files.sort();
    ensure!(!files.is_empty(), "{} has no files to damage", host.name());
    let path = files[stage.rng.usize(0..files.len())].clone();
    let mut bytes = fs::read(&path)?;
    let at = stage.rng.usize(0..bytes.len());
    let what = if stage.rng.bool() {
        bytes[at] ^= 1 << stage.rng.u8(0..8);
        "a bit flipped"
    } else {
        bytes.truncate(at);
        "cut"
    };
    fs::write(&path, bytes)?;
    Ok(format!("{} {what} at {at}", path.display()))
}
