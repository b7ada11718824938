//! A disk that lies while nobody looks: one bit of a stopped node's files is flipped, or a file ends too early.
//!
//! The store refuses to open, or what it reads is a state that it once had. It may be an *older* one: SQLite cannot
//! tell a log of frames that was cut or damaged at its end from one whose last commits were never made, nor can
//! anybody who has nothing but these files. That is why a node with a history of its own never counts as a quorum of
//! one, and why a cluster has three.

use std::collections::BTreeSet;

use raftlock_server::store::simdisk::Media;

use super::rig::Rig;
use super::run::{Progress, run};
use super::script::{Content, Dice, Script};
use crate::tally::Tally;
use crate::world::lock;

const FILES: [&str; 4] = ["raft.db", "raft.db-wal", "snapshots.db", "snapshots.db-wal"];

/// Damages of one image. Each opens a store, as a crash image does.
const DAMAGES: u64 = 60;

/// Damages what the history of one seed leaves, one damage at a time.
pub fn of_a_stopped_image(seed: u64, steps: usize) -> Tally {
    let script = Script::random(seed, steps);
    let mut rig = Rig::new();
    let progress = Progress::new(rig.disk.clone());
    let (store, ended) = run(&script, &progress, || rig.open());
    ended.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    store.expect("it ran to its end").abandon();
    let whole = lock(&rig.disk).crash(seed, 100);

    let (mut tally, mut dice) = (Tally::default(), Dice(seed));
    for damage in 0..DAMAGES {
        let mut media = whole.clone();
        let Some(what) = harm(&mut media, &mut dice) else { continue };
        tally.add(what, 1);
        rig.boot(media);
        let story = format!("seed {seed}, damage {damage}: {what}");
        match read(&rig, &script) {
            None => tally.add("damaged images refused", 1),
            Some(found) if script.versions.last() == Some(&found) => {
                tally.add("damages outside of what counts", 1);
            }
            Some(found) => {
                was_once(&found, &script, &story);
                tally.add("damaged images read as an older state", 1);
            }
        }
    }
    tally
}

/// Each file by itself is as it once was, and what the one names the other has.
fn was_once(found: &Content, script: &Script, story: &str) {
    let log = script.versions.iter().any(|version| version.same_log(found));
    let snapshots = script.versions.iter().any(|version| version.snapshots == found.snapshots);
    let named = found.pointer.as_ref().is_none_or(|pointer| found.snapshots.contains_key(&pointer.id));
    assert!(
        log && snapshots && named,
        "{story}: a state that never was ({log}, {snapshots}, {named}): {found:#?}"
    );
}

/// What an opened store holds; `None` if it refuses, at the start or when the damaged part is read.
fn read(rig: &Rig, script: &Script) -> Option<Content> {
    let store = rig.open().ok()?;
    let content = Content::read(&store, &script.snapshot_ids);
    store.abandon();
    content.ok()
}

fn harm(media: &mut Media, dice: &mut Dice) -> Option<&'static str> {
    let there: BTreeSet<&str> = FILES
        .into_iter()
        .filter(|file| media.file_mut(file).is_some_and(|bytes| !bytes.is_empty()))
        .collect();
    let at = dice.below(there.len().max(1) as u64) as usize;
    let file = media.file_mut(there.iter().nth(at)?)?;
    if dice.below(4) == 0 {
        file.truncate(dice.below(file.len() as u64) as usize);
        return Some("files cut short");
    }
    let bit = dice.below(8 * file.len() as u64);
    file[(bit / 8) as usize] ^= 1 << (bit % 8);
    Some("bits flipped")
}
