//! Bytes that nobody wrote: what is decoded from them must be refused, or be as good as what somebody wrote.
//!
//! Valid bytes are changed in the ways in which bytes change: bits flip, pieces are cut out, doubled, moved, taken from
//! elsewhere, lengths lie. Where a checksum would hide what comes behind it, it is made right again. Nothing may panic;
//! what is accepted keeps every invariant, is written as it was read, and has the same effect again.
//!
//! - `tables`: batches of commands, and snapshots;
//! - `rows`: rows of the log, votes, descriptions of snapshots.

mod rows;
mod tables;

use crate::tally::Tally;

/// Changed inputs of each kind, in one seed.
const INPUTS: usize = 200;

/// One seed.
///
/// # Errors
/// What was wrong, and with which bytes.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut tally = Tally::default();
    tables::batches(&mut rng, &mut tally)?;
    tables::snapshots(&mut rng, &mut tally)?;
    rows::all(&mut rng, &mut tally)?;
    Ok(tally)
}

/// Changes valid bytes, a little or a lot.
pub fn change(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(0..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 64));
        match rng.u8(0..9) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.u8(0..8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.u8(..);
                }
            }
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice);
            }
            6 => {
                let other = &others[rng.usize(0..others.len())];
                let from = rng.usize(0..=other.len());
                let to = rng.usize(from..=other.len().min(from + 64));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            // The longest number there is, where a number, a length or a tag may stand.
            7 => {
                let length = rng.usize(1..=10);
                let mut number = vec![0xFF; length];
                number[length - 1] = rng.u8(0..0x80);
                bytes.splice(at..end, number);
            }
            _ => {
                let noise: Vec<u8> = (0..rng.usize(1..20)).map(|_| rng.u8(..)).collect();
                bytes.splice(at..at, noise);
            }
        }
    }
}

/// Counts what became of an input.
fn count(tally: &mut Tally, what: &str, accepted: bool) {
    tally.add(&format!("{what} {}", if accepted { "accepted" } else { "refused" }), 1);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_seeds_of_bytes_that_nobody_wrote() {
        let mut all = Tally::default();
        (1..=10)
            .for_each(|seed| all.merge(&run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))));
        // Both must happen, or the inputs are too good or too bad to find anything.
        for what in ["batches", "snapshots", "rows"] {
            for how in ["accepted", "refused"] {
                assert!(all.get(&format!("{what} {how}")) > 20, "{what} {how}: {all}");
            }
        }
    }
}
