//! Random histories: the table does what the plain model of `model/mod.rs` does, in whatever steps,
//! through snapshots, and after any bytes.
//!
//! A failure prints the history it shrank to and leaves a seed in
//! `properties.proptest-regressions`, which runs first from then on.

mod history;
mod model;
mod support;

use history::{batch, beginning, history, name, round};
use lock_table::*;
use model::Model;
use proptest::prelude::*;
use support::{apply, through_snapshot};

/// Enough for a few seconds; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(1000),
    }
}

/// Promises that are read off the outputs alone: tokens rise, and no session gets a lock after its
/// end.
#[derive(Default)]
struct Promises {
    token: Option<Token>,
    granted: std::collections::BTreeSet<(SessionId, Ticket)>,
    ended: std::collections::BTreeSet<SessionId>,
}

impl Promises {
    fn hold_for(&mut self, outputs: &[Output]) {
        for output in outputs {
            match output {
                Output::Event(Event::SessionEnded { session, .. }) => {
                    assert!(self.ended.insert(*session))
                }
                Output::Event(Event::Granted { session, ticket, token, remaining_ms })
                | Output::Outcome {
                    outcome: Outcome::Granted { session, ticket, token, remaining_ms },
                    ..
                } => {
                    assert!(!self.ended.contains(session), "a grant to a session that ended");
                    if self.granted.insert((*session, *ticket)) {
                        assert!(self.token < Some(*token), "a new grant without a new token");
                        assert!(*remaining_ms > 0, "a new grant past the deadline");
                        self.token = Some(*token);
                    }
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    /// Outputs and views are those of the model; small steps and a way through bytes change
    /// nothing.
    #[test]
    fn the_table_does_what_the_model_does(rounds in history(1..40), budget in 1usize..20) {
        let mut model = Model::default();
        let (mut table, mut twin) = (LockTable::new(), LockTable::new());
        let mut promises = Promises::default();
        for table in [&mut table, &mut twin] {
            apply(table, beginning(), 100);
        }
        model.apply(&beginning());
        for round in rounds {
            let batch = batch(&round, &model);
            let expected = model.apply(&batch);
            prop_assert_eq!(&apply(&mut table, batch.clone(), usize::MAX), &expected);
            let decoded = Batch::decode(&batch.encode()).expect("bytes just written");
            prop_assert_eq!(&apply(&mut twin, decoded, budget), &expected);
            promises.hold_for(&expected);
            let Counts { locks, held, sessions, waiters } = table.counts();
            prop_assert_eq!([locks, held, sessions, waiters], model.counts());
            for number in 0..3 {
                let view = table.get(name(number).as_str(), 100);
                let holders = view.holders.into_iter();
                let holders = holders.map(|held| (held.owner, held.token, held.remaining_ms));
                let waiters = view.waiters.into_iter().map(|waiter| waiter.owner);
                prop_assert_eq!((holders.collect(), waiters.collect()), model.view(&name(number)));
            }
        }
        prop_assert!(table == twin);
    }

    /// A snapshot taken bit by bit, between and inside later batches, is the one taken at once. The
    /// table read at from it goes on as the first does.
    #[test]
    fn a_snapshot_is_the_table_as_it_was(
        before in history(1..25),
        during in history(1..10),
        records in 1usize..5,
        pauses in 1usize..12,
    ) {
        let mut model = Model::default();
        let (mut table, mut twin) = (LockTable::new(), LockTable::new());
        for table in [&mut table, &mut twin] {
            apply(table, beginning(), 100);
        }
        model.apply(&beginning());
        for round in &before {
            let batch = batch(round, &model);
            model.apply(&batch);
            apply(&mut table, batch.clone(), 100);
            apply(&mut twin, batch, 100);
        }
        let mut at_once = Vec::new();
        twin.snapshot_begin().expect("between batches");
        at_once.extend(std::iter::from_fn(|| twin.snapshot_step(records)));
        let mut restored = through_snapshot(&mut twin, records);
        prop_assert!(restored == twin);

        let mut bit_by_bit = Vec::new();
        table.snapshot_begin().expect("between batches");
        for round in &during {
            let batch = batch(round, &model);
            model.apply(&batch);
            let expected = apply(&mut restored, batch.clone(), 100);
            table.begin(batch).expect("the batch before is done");
            prop_assert!(table.snapshot_begin().is_err());
            let mut outputs = Vec::new();
            let mut steps = 0;
            while !table.step(1, &mut outputs) {
                steps += 1;
                if steps % pauses == 0 {
                    bit_by_bit.extend(table.snapshot_step(records));
                }
            }
            prop_assert_eq!(outputs, expected);
        }
        bit_by_bit.extend(std::iter::from_fn(|| table.snapshot_step(records)));
        prop_assert_eq!(bit_by_bit, at_once);
        prop_assert!(table == restored);
    }

    /// Whatever the bytes, the answer is an error, not a panic.
    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Batch::decode(&bytes).is_err());
        prop_assert!(Restore::new().push(&bytes).is_err());
        prop_assert!(Restore::new().finish().is_err());
    }

    /// A bit that a disk flipped is found, wherever it is.
    #[test]
    fn a_flipped_bit_is_found(
        round in round(),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let mut bytes = batch(&round, &Model::default()).encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Batch::decode(&bytes).is_err());
    }

    /// What a batch takes as bytes is what its parts take and a little more, so that a proposer can fill it up.
    #[test]
    fn a_batch_can_be_sealed_around_parts_that_were_encoded_before(round in round()) {
        let batch = batch(&round, &Model::default());
        let mut content = Vec::new();
        batch.renewals.iter().for_each(|renewal| renewal.encode_into(&mut content));
        batch.commands.iter().for_each(|command| command.encode_into(&mut content));
        let sealed = Batch::seal(batch.stamp, batch.dt_ms, batch.renewals_complete, &content);
        prop_assert!(sealed.len() <= content.len() + SEAL_BYTES_MAX);
        prop_assert_eq!(Batch::decode(&sealed), Ok(batch));
    }
}
