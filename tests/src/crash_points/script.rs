//! Random histories of a store, and what each may leave on disk.
//!
//! A history is made with a reference model, which says after each step what a power cut may leave: `versions[v]` is
//! the disk's content after `v` transactions. `run.rs` runs it.

use super::rig::{bytes, now};
use bytes::Bytes;
use raftlock_server::store::{Floor, SnapshotPointer, Store, StoreError};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// What a store holds that survives.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub values: BTreeMap<String, Bytes>,
    pub floor: Option<Floor>,
    pub log: BTreeMap<u64, Bytes>,
    pub pointer: Option<SnapshotPointer>,
    /// Finished ones: meta and chunks.
    pub snapshots: BTreeMap<String, (Bytes, Vec<Bytes>)>,
}

/// Bytes in short: how many, and a number that tells them from others.
struct Short<'a>(&'a [u8]);

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        write!(f, "{}:{:04x}", self.0.len(), hasher.finish() as u16)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |bytes: &Bytes| format!("{:?}", Short(bytes));
        f.debug_struct("Content")
            .field("vote", &self.vote.as_ref().map(short))
            .field("committed", &self.committed)
            .field(
                "values",
                &self.values.iter().map(|(name, value)| (name, short(value))).collect::<Vec<_>>(),
            )
            .field("floor", &self.floor.as_ref().map(|floor| floor.index))
            .field("log", &self.log.iter().map(|(index, row)| (index, short(row))).collect::<Vec<_>>())
            .field("pointer", &self.pointer.as_ref().map(|pointer| (&pointer.id, pointer.covers)))
            .field("snapshots", &self.snapshots.keys().collect::<Vec<_>>())
            .finish()
    }
}

const NAMES: [&str; 3] = ["identity", "boot", "promise"];

impl Content {
    /// Reads all of it from an open store that is well.
    pub fn of(store: &Store, snapshot_ids: &[String]) -> Self {
        Self::read(store, snapshot_ids).expect("a store that is well")
    }

    /// Reads all of it, or says why a part cannot be read.
    pub fn read(store: &Store, snapshot_ids: &[String]) -> Result<Self, StoreError> {
        let value = |name: &&str| Some(((*name).to_owned(), store.value(name)?));
        let mut snapshots = BTreeMap::new();
        for id in snapshot_ids {
            let Some(info) = now(store.snapshot(id))? else { continue };
            assert!(info.finished, "unfinished ones are swept");
            let chunks: Result<Vec<Bytes>, _> =
                (0..info.chunks).map(|seq| now(store.read_chunk(id, seq))).collect();
            snapshots.insert(id.clone(), (info.meta, chunks?));
        }
        Ok(Self {
            vote: store.vote(),
            committed: store.committed(),
            values: NAMES.iter().filter_map(value).collect(),
            floor: store.log_state().floor,
            log: super::rig::log_in_bites(store)?.into_iter().collect(),
            pointer: store.current_snapshot(),
            snapshots,
        })
    }

    /// Whether the part in `raft.db` is the same.
    pub fn same_log(&self, other: &Self) -> bool {
        Self { snapshots: BTreeMap::new(), ..self.clone() }
            == Self { snapshots: BTreeMap::new(), ..other.clone() }
    }

    /// The index that the next row gets.
    pub fn next(&self) -> u64 {
        let last = self.log.keys().next_back().copied().or(self.floor.as_ref().map(|f| f.index));
        last.map_or(0, |last| last + 1)
    }

    fn move_floor(&mut self, floor: &Floor) {
        if self.floor.as_ref().is_none_or(|f| f.index < floor.index) {
            self.log = self.log.split_off(&(floor.index + 1));
            self.floor = Some(floor.clone());
        }
    }
}

#[derive(Debug, Clone)]
pub enum Op {
    Append(Vec<(u64, Bytes)>),
    Truncate(u64),
    Vote(Bytes),
    Put(&'static str, Bytes),
    Committed(Bytes),
    Purge(Floor),
    Switch(SnapshotPointer, Option<Floor>),
    /// Begins, fills and finishes a snapshot.
    Snapshot(String, Vec<Bytes>),
    Keep(Vec<String>),
    /// The rest is queued from inside the answer of the first append, so that it shares one transaction: two versions.
    Group(Vec<(u64, Bytes)>, Vec<Op>),
    /// Closes and opens again.
    Close,
    /// Leaves without closing and opens again.
    Leave,
}

/// A history with all that may be on disk during it.
pub struct Script {
    /// Each with the version that is on disk when it is done.
    pub ops: Vec<(u64, Op)>,
    pub versions: Vec<Content>,
    pub snapshot_ids: Vec<String>,
}

/// What the calls see, what is on disk, what rides.
#[derive(Default)]
struct Model {
    seen: Content,
    disk: Content,
    committed: Option<Bytes>,
    floor: Option<Floor>,
}

impl Model {
    fn change(content: &mut Content, op: &Op) {
        match op {
            Op::Append(rows) => content.log.extend(rows.iter().cloned()),
            Op::Truncate(from) => drop(content.log.split_off(from)),
            Op::Vote(vote) => content.vote = Some(vote.clone()),
            Op::Put(name, value) => drop(content.values.insert((*name).to_owned(), value.clone())),
            Op::Committed(index) => content.committed = Some(index.clone()),
            Op::Purge(floor) => content.move_floor(floor),
            Op::Switch(pointer, floor) => {
                content.pointer = Some(pointer.clone());
                floor.iter().for_each(|floor| content.move_floor(floor));
            }
            Op::Snapshot(id, chunks) => {
                content.snapshots.insert(id.clone(), (bytes("meta"), chunks.clone()));
            }
            Op::Keep(ids) => {
                let current = content.pointer.as_ref().map(|p| p.id.clone());
                content.snapshots.retain(|id, _| ids.contains(id) || Some(id) == current.as_ref());
            }
            Op::Group(_, rest) => rest.iter().for_each(|op| Self::change(content, op)),
            Op::Close | Op::Leave => {}
        }
    }

    fn board(&mut self) {
        if let Some(committed) = self.committed.take() {
            self.disk.committed = Some(committed);
        }
        if let Some(floor) = self.floor.take() {
            self.disk.move_floor(&floor);
        }
    }

    fn step(&mut self, op: &Op) {
        Self::change(&mut self.seen, op);
        match op {
            Op::Committed(index) => self.committed = Some(index.clone()),
            // One that is not higher is ignored.
            Op::Purge(floor) if self.floor.as_ref().is_some_and(|rides| rides.index >= floor.index) => {}
            Op::Purge(floor) => self.floor = Some(floor.clone()),
            Op::Snapshot(..) | Op::Keep(_) => Self::change(&mut self.disk, op),
            Op::Close => self.board(),
            Op::Leave => {
                (self.committed, self.floor) = (None, None);
                self.seen = self.disk.clone();
            }
            _ => {
                Self::change(&mut self.disk, op);
                self.board();
            }
        }
    }
}

impl Script {
    /// A legal history of `len` steps, from an empty disk on.
    pub fn random(seed: u64, len: usize) -> Self {
        Self::going_on(&Content::default(), seed, len)
    }

    /// A legal history of `len` steps, from what an earlier life left.
    pub fn going_on(found: &Content, seed: u64, len: usize) -> Self {
        let mut dice = Dice(seed);
        let mut model = Model { seen: found.clone(), disk: found.clone(), ..Model::default() };
        let mut script = Self {
            ops: Vec::new(),
            versions: vec![found.clone()],
            snapshot_ids: found.snapshots.keys().cloned().collect(),
        };
        for i in 0..len {
            let op = draw(&mut dice, &model.seen, i);
            if let Op::Snapshot(id, _) = &op {
                script.snapshot_ids.push(id.clone());
            }
            if let Op::Group(first, _) = &op {
                model.step(&Op::Append(first.clone()));
                script.versions.push(model.disk.clone());
            }
            model.step(&op);
            script.versions.push(model.disk.clone());
            script.ops.push((script.versions.len() as u64 - 1, op));
        }
        script
    }
}

fn payload(dice: &mut Dice, max: u64) -> Bytes {
    let len = dice.below(max) as usize;
    let byte = dice.below(256) as u8;
    Bytes::from(vec![byte; len])
}

fn rows_from(dice: &mut Dice, next: u64) -> Vec<(u64, Bytes)> {
    (next..next + 1 + dice.below(5)).map(|i| (i, payload(dice, 3000))).collect()
}

fn draw(dice: &mut Dice, seen: &Content, step: usize) -> Op {
    let next = seen.next();
    let floor_at = |index| Floor { index, data: bytes(&format!("log id {index}")) };
    let begin = seen.floor.as_ref().map_or(0, |f| f.index + 1);
    match dice.below(20) {
        0..=5 => Op::Append(rows_from(dice, next)),
        6 | 7 => Op::Truncate(begin + dice.below(next - begin + 1)),
        8 => Op::Vote(payload(dice, 40)),
        9 => Op::Put(NAMES[dice.below(3) as usize], payload(dice, 200)),
        10 => Op::Committed(bytes(&format!("committed {step}"))),
        11 | 12 => match seen.pointer.as_ref().and_then(|p| p.covers) {
            Some(covers) => Op::Purge(floor_at(covers - dice.below(3).min(covers))),
            None => Op::Vote(payload(dice, 40)),
        },
        13 | 14 => Op::Snapshot(
            format!("s{step}-{seed}", seed = dice.below(1 << 32)),
            (0..dice.below(4)).map(|_| payload(dice, 9000)).collect(),
        ),
        15 => match seen.snapshots.keys().next_back() {
            Some(id) => {
                // A built one covers part of the log; a received one may go past its end.
                let covers = seen.floor.as_ref().map_or(0, |f| f.index).max(next + dice.below(4)).max(1) - 1;
                let covers = covers.max(seen.pointer.as_ref().and_then(|p| p.covers).unwrap_or(0));
                let pointer = SnapshotPointer { id: id.clone(), covers: Some(covers), meta: bytes("m") };
                Op::Switch(pointer, (covers >= next || dice.below(2) == 0).then(|| floor_at(covers)))
            }
            None => Op::Append(rows_from(dice, next)),
        },
        16 => Op::Keep(Vec::new()),
        17 => {
            let first = rows_from(dice, next);
            let after = next + first.len() as u64;
            let second = rows_from(dice, after);
            let cut = after + dice.below(second.len() as u64);
            let third = rows_from(dice, cut);
            let vote = Op::Vote(payload(dice, 40));
            Op::Group(first, vec![vote, Op::Append(second), Op::Truncate(cut), Op::Append(third)])
        }
        18 => Op::Close,
        _ => Op::Leave,
    }
}
