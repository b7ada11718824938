//! The walk: a power cut after every event of a history, and another life from what one of them left.

use std::ops::RangeInclusive;

use raftlock_server::store::simdisk::{Disk, Event, Media};

use super::rig::{Rig, append, rows};
use super::run::{Progress, run};
use super::script::{Content, Dice, Script};
use crate::tally::Tally;
use crate::world::lock;

/// How much of what was not synced a power cut leaves, in percent of its sectors.
const KEEP: [u32; 5] = [0, 10, 50, 90, 100];

/// Lives of one disk: the second and third begin with what a crash left of the one before.
const LIVES: u64 = 3;

/// Opens what a crash left and compares it with the versions that may be there; gives which it is.
pub fn check(rig: &Rig, script: &Script, possible: RangeInclusive<usize>, story: &str) -> Content {
    let store = rig.open().unwrap_or_else(|e| panic!("{story}: does not open: {e}"));
    let found = Content::of(&store, &script.snapshot_ids);
    if !script.versions[possible.clone()].contains(&found) {
        let near = script.versions.iter().position(|v| *v == found);
        panic!(
            "{story}: found {found:#?}\nwhich is version {near:?}, not one of {possible:?}: {:#?}",
            script.versions[*possible.end()]
        );
    }
    store.abandon();
    found
}

/// What a store does after a crash survives too.
pub fn works_on(rig: &Rig, found: &Content, story: &str) {
    let store = rig.open().unwrap_or_else(|e| panic!("{story}: does not open: {e}"));
    let next = found.next();
    append(&store, rows(next..next + 1, 30));
    store.abandon();
    let store = rig.open().unwrap_or_else(|e| panic!("{story}: does not open again: {e}"));
    assert_eq!(store.log_state().last, Some(next), "{story}");
}

/// Walks over every event of the history of one seed, life after life, until `images` were looked at.
pub fn walk(seed: u64, steps: usize, images: u64) -> Tally {
    let mut tally = Tally::default();
    let (mut media, mut content) = (None, Content::default());
    for life in 0..LIVES {
        let script = Script::going_on(&content, seed ^ (life << 56), steps);
        let left = images.saturating_sub(tally.get("crash images"));
        match one_life(seed, life, &script, media.take(), left, &mut tally) {
            Some((next, found)) => (media, content) = (Some(next), found),
            None => break,
        }
    }
    tally
}

/// Gives an image of a moment in this life, and what is on it.
fn one_life(
    seed: u64,
    life: u64,
    script: &Script,
    began: Option<Media>,
    images: u64,
    tally: &mut Tally,
) -> Option<(Media, Content)> {
    let mut media = began.clone().unwrap_or_default();
    let mut rig = Rig::on(began.map_or_else(Disk::new, Disk::boot));
    lock(&rig.disk).record();
    let progress = Progress::new(rig.disk.clone());
    let (store, ended) = run(script, &progress, || rig.open());
    ended.unwrap_or_else(|e| panic!("seed {seed}, life {life}: {e}"));
    store.expect("it ran to its end").abandon();
    let trace = lock(&rig.disk).take_trace();

    let mut dice = Dice(seed ^ life);
    let goes_on_at = dice.below(trace.len().max(1) as u64) as usize;
    let (mut asked, mut told, mut looked, mut goes_on) = (0, 0, 0, None);
    for (at, event) in trace.into_iter().enumerate() {
        if looked >= images {
            break;
        }
        match event {
            Event::Mark(note) if note % 2 == 0 => asked = asked.max(note / 2),
            Event::Mark(note) => told = told.max(note / 2),
            change => media.push(change),
        }
        let keeps = if media.is_at_rest() { &KEEP[..1] } else { &KEEP[..] };
        for keep in keeps {
            rig.boot(media.crash(seed ^ at as u64, *keep));
            let story = format!("seed {seed}, life {life}, event {at}, {keep} % kept");
            let found = check(&rig, script, told as usize..=asked as usize, &story);
            if looked % 8 == 0 {
                works_on(&rig, &found, &story);
            }
            looked += 1;
            if at == goes_on_at {
                goes_on = Some((media.crash(seed ^ at as u64, *keep), found));
            }
        }
    }
    tally.add("crash images", looked);
    goes_on
}
