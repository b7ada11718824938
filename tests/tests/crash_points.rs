//! A few histories of the store through every crash point; `prove crash` walks as many as one likes.

use raftlock_tests::crash_points::run_seed;
use raftlock_tests::tally::Tally;

#[test]
fn what_was_told_survives_any_crash_and_a_failed_disk_writes_no_more() {
    let mut tally = Tally::default();
    // One for each kind of fault.
    (0..3).for_each(|seed| tally.merge(&run_seed(seed, 700)));
    println!("{tally}");
    assert!(tally.get("crash images") > 1_500, "the walk has become vacuous");
    for name in ["I/O errors", "full disks", "power cuts in a call", "bits flipped", "files cut short"] {
        assert!(tally.get(name) > 0, "no {name}");
    }
    assert!(tally.get("damaged images refused") > 0, "no damage was seen");
    assert!(tally.get("stores poisoned") > 0, "no fault hit a store that was open");
}
