//! The end of the log in memory: entries are readable before they are on disk, and mostly never read from it.
//!
//! - `entries` is contiguous and ends with the log's last entry; what is before it is on disk only.
//! - An entry leaves only when it is on disk, and then only to keep the cache within its bytes.
//! - Memory is ahead of the disk and in the same order: whoever changes the tail queues the same change for the
//!   writer before it lets go of the lock.

use super::{Floor, StoreError};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;

/// Which cut of the tail an append belongs to. After a cut its indexes are taken again, so what the writer says
/// about an earlier append under them means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut(u64);

#[derive(Debug)]
pub(super) struct Tail {
    floor: Option<Floor>,
    /// Where the log begins: after the floor, or where its first entry was put.
    begin: Option<u64>,
    /// The index of `entries[0]`, or of the next entry.
    first: u64,
    entries: VecDeque<Bytes>,
    bytes: usize,
    cache_bytes: usize,
    /// Entries before this index are on disk.
    on_disk: u64,
    cut: Cut,
}

/// Where the entries of a range are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Here they are, the first of them at least.
    Memory(Vec<(u64, Bytes)>),
    /// On disk; the range is what the log has of it there.
    Disk(Range<u64>),
    /// The log has none of them.
    Nowhere,
}

impl Tail {
    pub(super) fn new(floor: Option<Floor>, cache_bytes: usize) -> Self {
        let begin = floor.as_ref().map(|f| f.index + 1);
        let first = begin.unwrap_or(0);
        Self {
            floor,
            begin,
            first,
            entries: VecDeque::new(),
            bytes: 0,
            cache_bytes,
            on_disk: first,
            cut: Cut(0),
        }
    }

    pub(super) fn floor(&self) -> Option<&Floor> {
        self.floor.as_ref()
    }

    /// The last entry's index, if the log has an entry.
    pub(super) fn last(&self) -> Option<u64> {
        let begin = self.begin?;
        (self.next() > begin).then(|| self.next() - 1)
    }

    /// Adds an entry that is on disk: for loading.
    pub(super) fn load(&mut self, index: u64, entry: Bytes) {
        self.push(index, entry);
        self.on_disk = self.next();
        self.evict();
    }

    /// Adds rows that are not on disk yet. They follow the last entry without a gap; a log without entries and floor
    /// may begin anywhere.
    pub(super) fn append(&mut self, rows: &[(u64, Bytes)]) -> Result<Cut, StoreError> {
        let begins_at = rows.first().map_or(0, |(index, _)| *index);
        let start = if self.begin.is_some() { self.next() } else { begins_at };
        if let Some((wanted, (index, _))) = (start..).zip(rows).find(|(wanted, (index, _))| wanted != index) {
            return Err(StoreError::Misuse(format!("append of entry {index} where {wanted} is next")));
        }
        for (index, entry) in rows {
            self.push(*index, entry.clone());
        }
        Ok(self.cut)
    }

    /// The writer has the rows before `next`, appended under `cut`, on disk.
    pub(super) fn committed(&mut self, cut: Cut, next: u64) {
        if cut == self.cut {
            self.on_disk = self.on_disk.max(next);
            self.evict();
        }
    }

    /// Removes `from` and all after it. The floor stays, whatever `from` is.
    pub(super) fn truncate(&mut self, from: u64) {
        let from = from.max(self.begin.unwrap_or(0));
        if from >= self.next() {
            return;
        }
        let keep = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for entry in self.entries.drain(keep.min(self.entries.len())..) {
            self.bytes -= entry.len();
        }
        self.first = self.first.min(from);
        self.on_disk = self.on_disk.min(from);
        self.cut.0 += 1;
        if self.floor.is_none() && self.begin == Some(from) {
            self.begin = None;
        }
    }

    /// Moves the floor; says whether it moved. It may move past the last entry.
    pub(super) fn purge(&mut self, floor: Floor) -> bool {
        if self.floor.as_ref().is_some_and(|f| f.index >= floor.index) {
            return false;
        }
        let begin = floor.index + 1;
        while self.first < begin && self.pop() {}
        self.first = self.first.max(begin);
        self.begin = Some(begin);
        self.floor = Some(floor);
        true
    }

    /// What the log has of `range`: from its beginning, at least one entry, at most `max_bytes` unless the first
    /// alone is larger.
    pub(super) fn read(&self, range: Range<u64>, max_bytes: usize) -> Place {
        let start = range.start.max(self.begin.unwrap_or(0));
        let end = range.end.min(self.next());
        if start >= end || self.last().is_none() {
            return Place::Nowhere;
        }
        if start < self.first {
            return Place::Disk(start..end.min(self.first));
        }
        let mut rows = Vec::new();
        let mut bytes = 0;
        for (index, entry) in (self.first..end).zip(&self.entries).skip((start - self.first) as usize) {
            bytes += entry.len();
            if bytes > max_bytes && !rows.is_empty() {
                break;
            }
            rows.push((index, entry.clone()));
        }
        Place::Memory(rows)
    }

    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn push(&mut self, index: u64, entry: Bytes) {
        if self.begin.is_none() {
            self.begin = Some(index);
            self.first = index;
            self.on_disk = index;
        }
        self.bytes += entry.len();
        self.entries.push_back(entry);
    }

    fn pop(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else {
            return false;
        };
        self.bytes -= entry.len();
        self.first += 1;
        true
    }

    fn evict(&mut self) {
        while self.bytes > self.cache_bytes && self.first < self.on_disk && self.pop() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(range: Range<u64>) -> Vec<(u64, Bytes)> {
        range.map(|i| (i, Bytes::from(vec![i as u8; 10]))).collect()
    }

    fn floor(index: u64) -> Floor {
        Floor { index, data: Bytes::new() }
    }

    #[test]
    fn an_entry_leaves_only_when_it_is_on_disk() {
        let mut tail = Tail::new(None, 20);
        let cut = tail.append(&rows(0..5)).unwrap();
        assert_eq!(tail.read(0..9, 1000), Place::Memory(rows(0..5)), "50 bytes, and none on disk");
        tail.committed(cut, 2);
        assert_eq!(tail.read(0..9, 1000), Place::Disk(0..2));
        assert_eq!(tail.read(2..9, 1000), Place::Memory(rows(2..5)));
        tail.committed(cut, 5);
        assert_eq!(tail.read(0..9, 1000), Place::Disk(0..3), "20 bytes stay");
    }

    #[test]
    fn a_commit_from_before_a_cut_says_nothing_about_what_came_after_it() {
        let mut tail = Tail::new(None, 0);
        let old = tail.append(&rows(0..5)).unwrap();
        tail.truncate(2);
        let new = tail.append(&rows(2..4)).unwrap();
        tail.committed(old, 5);
        assert_eq!(
            tail.read(0..9, 1000),
            Place::Memory(rows(0..4)),
            "2 and 3 are others than the committed ones"
        );
        tail.committed(new, 4);
        assert_eq!(tail.read(0..9, 1000), Place::Disk(0..4));
    }

    #[test]
    fn a_cut_below_the_memory_leaves_the_rest_on_disk() {
        let mut tail = Tail::new(None, 0);
        let cut = tail.append(&rows(0..5)).unwrap();
        tail.committed(cut, 5);
        tail.truncate(2);
        assert_eq!(tail.last(), Some(1));
        tail.append(&rows(2..3)).unwrap();
        assert_eq!(tail.read(0..9, 1000), Place::Disk(0..2));
        assert_eq!(tail.read(2..9, 1000), Place::Memory(rows(2..3)));
    }

    #[test]
    fn a_gap_or_an_overlap_is_refused_and_changes_nothing() {
        let mut tail = Tail::new(Some(floor(4)), 1000);
        assert!(tail.append(&rows(6..7)).is_err());
        assert!(tail.append(&rows(4..5)).is_err());
        assert_eq!(tail.last(), None);
        tail.append(&rows(5..7)).unwrap();
        assert!(tail.append(&rows(6..7)).is_err());
        assert_eq!(tail.last(), Some(6));
    }

    #[test]
    fn the_floor_may_pass_the_last_entry_and_never_falls() {
        let mut tail = Tail::new(None, 1000);
        tail.append(&rows(0..5)).unwrap();
        assert!(tail.purge(floor(2)));
        assert!(!tail.purge(floor(1)));
        assert_eq!(tail.read(0..9, 1000), Place::Memory(rows(3..5)));
        assert!(tail.purge(floor(9)));
        assert_eq!((tail.last(), tail.floor().unwrap().index), (None, 9));
        assert_eq!(tail.read(0..99, 1000), Place::Nowhere);
        tail.append(&rows(10..11)).unwrap();
        assert_eq!(tail.last(), Some(10));
    }

    #[test]
    fn a_read_gives_at_least_one_entry_and_stops_at_its_bytes() {
        let mut tail = Tail::new(None, 1000);
        tail.append(&rows(7..12)).unwrap();
        assert_eq!(tail.read(7..12, 1), Place::Memory(rows(7..8)));
        assert_eq!(tail.read(8..12, 20), Place::Memory(rows(8..10)));
        assert_eq!(tail.read(12..13, 20), Place::Nowhere);
    }
}
