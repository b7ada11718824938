//! The one way in which tests put a batch through a table.

use lock_table::{Batch, LockTable, Output};

/// Applies a batch in steps of `budget` and checks every invariant afterwards.
pub fn apply(table: &mut LockTable, batch: Batch, budget: usize) -> Vec<Output> {
    let commands = batch.commands.len();
    table.begin(batch).expect("tests make batches under the rules of this code, one at a time");
    let mut out = Vec::new();
    while !table.step(budget, &mut out) {}
    if let Err(problem) = table.check() {
        panic!("broken invariant: {problem}\nafter {out:#?}");
    }
    let answered = out.iter().filter_map(|output| match output {
        Output::Outcome { command, .. } => Some(*command),
        Output::Event(_) => None,
    });
    assert!(answered.eq(0..commands), "each command is answered once, in order");
    out
}

/// The table that a snapshot of this one gives.
pub fn through_snapshot(table: &mut LockTable, records: usize) -> LockTable {
    table.snapshot_begin().expect("between batches");
    let mut restore = lock_table::Restore::new();
    while let Some(chunk) = table.snapshot_step(records) {
        assert!(chunk.len() < 1024 * 1024);
        restore.push(&chunk).expect("a chunk just written");
    }
    restore.finish().expect("a snapshot of a sound table")
}
