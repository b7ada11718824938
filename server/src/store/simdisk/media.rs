//! What is safely on a disk, what is only on its way there, and what a power cut makes of the two.
//!
//! The rules are those of a Linux file system on a disk with a write cache: a sync of a file brings its data and
//! size to rest; without it each 512-byte sector may arrive or not, in any order. The folder is journalled: of its
//! changes since its last sync a prefix arrives. A *failed* sync brings nothing, all or half of the sectors to rest,
//! and the rest is gone for good: the pages count as clean, so no later sync writes them, though reads still show them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit that arrives whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A file's number on its disk; never reused.
pub type Inode = u64;

/// One change of the disk, in the order in which the process made them.
#[derive(Debug, Clone)]
pub enum Event {
    /// A name was made for a new file.
    Create(String, Inode),
    /// A name was removed.
    Delete(String),
    /// Bytes were written at an offset.
    Write(Inode, usize, Arc<[u8]>),
    /// The file was cut, or grown, to a length.
    Truncate(Inode, usize),
    /// The file was synced.
    Sync(Inode),
    /// A sync of the file failed; the number decides what arrived all the same.
    SyncFailed(Inode, u64),
    /// The folder was synced.
    DirSync,
    /// A note of the test's own; no change.
    Mark(u64),
}

/// What a power cut would leave.
///
/// - `data` and `names` are at rest; `pending` is in the order of the calls.
#[derive(Debug, Clone, Default)]
pub struct Media {
    pub(super) data: BTreeMap<Inode, Vec<u8>>,
    pub(super) names: BTreeMap<String, Inode>,
    pending: Vec<Event>,
}

impl Media {
    /// Takes the next event.
    pub fn push(&mut self, event: Event) {
        match event {
            Event::Sync(inode) => {
                self.take_pending(|e| touches(e, inode)).iter().for_each(|e| self.settle(e))
            }
            Event::DirSync => self.take_pending(is_of_folder).iter().for_each(|e| self.settle(e)),
            Event::SyncFailed(inode, luck) => {
                let keep = [0, 50, 100][(luck % 3) as usize];
                let mut dice = Dice(luck);
                self.take_pending(|e| touches(e, inode))
                    .iter()
                    .for_each(|e| self.settle_part(e, keep, &mut dice));
            }
            Event::Mark(_) => {}
            change => self.pending.push(change),
        }
    }

    /// Whether all crash images are the same now.
    pub fn is_at_rest(&self) -> bool {
        self.pending.is_empty()
    }

    /// What is left after a power cut now, when each unsynced sector arrived with `keep` percent.
    pub fn crash(&self, seed: u64, keep: u32) -> Media {
        let mut dice = Dice(seed);
        let mut left = Media { data: self.data.clone(), names: self.names.clone(), pending: Vec::new() };
        let mut folder_stopped = false;
        for event in &self.pending {
            if is_of_folder(event) {
                folder_stopped |= !dice.percent(keep);
                if folder_stopped {
                    continue;
                }
                left.settle(event);
            } else {
                left.settle_part(event, keep, &mut dice);
            }
        }
        left
    }

    /// The resting bytes of a file, to look at or to damage.
    pub fn file_mut(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        let inode = self.names.get(name)?;
        Some(self.data.entry(*inode).or_default())
    }

    /// What a start finds: no file without a name, nothing on its way.
    pub(super) fn at_boot(mut self) -> Media {
        let named: BTreeMap<Inode, Vec<u8>> =
            self.names.values().map(|i| (*i, self.data.remove(i).unwrap_or_default())).collect();
        Media { data: named, names: self.names, pending: Vec::new() }
    }

    fn take_pending(&mut self, goes: impl Fn(&Event) -> bool) -> Vec<Event> {
        let (taken, rest) = std::mem::take(&mut self.pending).into_iter().partition(goes);
        self.pending = rest;
        taken
    }

    fn settle(&mut self, event: &Event) {
        match event {
            Event::Create(name, inode) => drop(self.names.insert(name.clone(), *inode)),
            Event::Delete(name) => drop(self.names.remove(name)),
            Event::Write(inode, offset, bytes) => write(self.data.entry(*inode).or_default(), *offset, bytes),
            Event::Truncate(inode, len) => self.data.entry(*inode).or_default().resize(*len, 0),
            Event::Sync(_) | Event::SyncFailed(..) | Event::DirSync | Event::Mark(_) => {}
        }
    }

    /// Settles each sector of a write, or the whole of another change, with `keep` percent.
    fn settle_part(&mut self, event: &Event, keep: u32, dice: &mut Dice) {
        match event {
            Event::Write(inode, offset, bytes) => {
                for (at, sector) in sectors(*offset, bytes) {
                    if dice.percent(keep) {
                        write(self.data.entry(*inode).or_default(), at, sector);
                    }
                }
            }
            other if dice.percent(keep) => self.settle(other),
            _ => {}
        }
    }
}

/// Writes `bytes` at `offset`; a gap before them reads as zeros.
pub(super) fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    if let Some(place) = file.get_mut(offset..end) {
        place.copy_from_slice(bytes);
    }
}

fn touches(event: &Event, inode: Inode) -> bool {
    matches!(event, Event::Write(i, ..) | Event::Truncate(i, _) if *i == inode)
}

fn is_of_folder(event: &Event) -> bool {
    matches!(event, Event::Create(..) | Event::Delete(_))
}

/// Cuts a write at the disk's sector borders.
fn sectors(offset: usize, bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut pieces = Vec::new();
    let (mut at, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let room = SECTOR_BYTES - at % SECTOR_BYTES;
        let (piece, tail) = rest.split_at(room.min(rest.len()));
        pieces.push((at, piece));
        at += piece.len();
        rest = tail;
    }
    pieces
}

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn percent(&mut self, chance: u32) -> bool {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % 100 < u64::from(chance)
    }
}
