//! Every call of a history fails in turn: with an I/O error, for want of space, or because the power is gone.

use raftlock_server::store::simdisk::Fault;
use raftlock_server::store::{Store, StoreError};

use super::rig::{Rig, bytes, now, rows};
use super::run::{Progress, run};
use super::script::{Dice, Script};
use super::walk::{check, works_on};
use crate::tally::Tally;
use crate::world::lock;

/// Runs the history of one seed with the fault at each of its calls in turn, those of the first start included.
pub fn at_every_call(seed: u64, steps: usize, fault: Fault) -> Tally {
    let script = Script::random(seed, steps);
    let mut dice = Dice(seed);
    let mut tally = Tally::default();
    for call in 1.. {
        let mut rig = Rig::new();
        lock(&rig.disk).fail_at(call, fault);
        let progress = Progress::new(rig.disk.clone());
        let (store, ended) = run(&script, &progress, || rig.open());
        let story = format!("seed {seed}, {fault:?} at call {call}");
        let calls = rig.ops();
        match (store, &ended) {
            (Some(store), Err(e)) => {
                check_poisoned(&rig, store, e, &story);
                tally.add("stores poisoned", 1);
            }
            (Some(store), Ok(())) => store.abandon(),
            (None, _) => tally.add("stores that did not open", 1),
        }
        let keep = [0, 50, 100][dice.below(3) as usize];
        rig.power_cut(call, keep);
        let story = format!("{story}, {keep} % kept");
        let found = check(&rig, &script, progress.possible(), &story);
        works_on(&rig, &found, &story);
        if ended.is_ok() && calls < call {
            break;
        }
        let name = match fault {
            Fault::Eio => "I/O errors",
            Fault::Enospc => "full disks",
            Fault::PowerCut => "power cuts in a call",
        };
        tally.add(name, 1);
    }
    tally
}

/// A store that failed answers everything with its first cause and touches the disk no more.
fn check_poisoned(rig: &Rig, store: Store, error: &StoreError, story: &str) {
    let poisoned = store.poisoned();
    let cause = poisoned.borrow().clone().unwrap_or_else(|| panic!("{story}: {error} did not poison"));
    assert!(
        matches!(cause, StoreError::Io { .. } | StoreError::DiskFull { .. }),
        "{story}: the cause is {cause:?}"
    );
    let ops = rig.ops();
    let is_poisoned = |answer: Result<(), StoreError>| {
        assert!(matches!(answer, Err(StoreError::Poisoned(_))), "{story}: {answer:?}");
    };
    is_poisoned(now(store.save_vote(bytes("late"))));
    is_poisoned(now(store.truncate_from(0)));
    is_poisoned(now(store.append(rows(0..1, 1), Box::new(|_| panic!("never called")))));
    is_poisoned(now(store.append_chunk("s", 0, bytes("late"))));
    is_poisoned(store.set_committed(bytes("late")));
    is_poisoned(now(store.close()));
    drop(store);
    assert_eq!(rig.ops(), ops, "{story}: a failed store wrote");
}
