//! What the disk can do: 4 KiB written over and flushed, again and again. No replicated write is faster.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use raftlock_server::clock::SystemClock;

use super::figures::histogram;

/// Where the writes go round: the size of a write-ahead log that is overwritten.
const FILE_BYTES: usize = 4 << 20;

const PAGE: usize = 4096;

/// So many writers at once are what three nodes on one disk are.
pub const WRITERS: usize = 3;

/// Writes for at least so long in `writers` threads, a file each, in this folder. The times of all of them, in microseconds.
pub fn flushes(folder: &Path, writers: usize, time: Duration) -> io::Result<Histogram<u64>> {
    let mut all = histogram();
    std::thread::scope(|scope| {
        let writing: Vec<_> =
            (0..writers).map(|number| scope.spawn(move || one_writer(folder, number, time))).collect();
        for writer in writing {
            all.add(writer.join().expect("a writer does not panic")?).expect("all have the same bounds");
        }
        Ok(all)
    })
}

fn one_writer(folder: &Path, number: usize, time: Duration) -> io::Result<Histogram<u64>> {
    let path = folder.join(format!("floor-{number}"));
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    file.write_all_at(&vec![1; FILE_BYTES], 0)?;
    file.sync_all()?;
    let (clock, mut times) = (SystemClock::shared(), histogram());
    let began = clock.monotonic();
    let places = (0..FILE_BYTES / PAGE).cycle();
    for (turn, place) in places.enumerate() {
        let at = clock.monotonic();
        if at - began >= time {
            break;
        }
        file.write_all_at(&[turn as u8; PAGE], (place * PAGE) as u64)?;
        file.sync_data()?;
        times.saturating_record((clock.monotonic() - at).as_micros() as u64);
    }
    std::fs::remove_file(path)?;
    Ok(times)
}
