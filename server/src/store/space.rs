//! Free space, and when there is too little of it.
//!
//! A node that is low refuses new locks and still serves renewals and releases: they need the log too, but they
//! must not fail for somebody's new lock. The node asks once in a while; nothing here acts or reads a disk.

use super::batch::CHECKPOINT_BYTES;
use super::{Store, StoreError};

/// What the two files need to come to rest: each has a WAL of this much, and a checkpoint copies it into the main
/// file, which may grow by as much again.
const CHECKPOINT_ROOM_BYTES: u64 = 2 * 2 * CHECKPOINT_BYTES;

/// The space of the file system that holds the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user may still write.
    pub free_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}

/// Who says how much space there is: the data folder's file system, or a test.
pub trait FreeSpace: std::fmt::Debug + Send + Sync + 'static {
    /// The space of the file system that `store` writes to. Short; it is asked about once a second.
    fn space(&self, store: &Store) -> Result<Space, StoreError>;
}

/// The file system itself.
#[derive(Debug)]
pub struct DiskSpace;

impl FreeSpace for DiskSpace {
    fn space(&self, store: &Store) -> Result<Space, StoreError> {
        store.space()
    }
}

/// How much free space means what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Below this the node takes no new locks.
    pub low_bytes: u64,
    /// From here on it takes them again. The gap keeps a node from going back and forth.
    pub high_bytes: u64,
    /// Below this the ballast goes: what is left should bring both files to rest.
    pub critical_bytes: u64,
}

impl Watermarks {
    /// For a node whose log grows by `log_bytes` between two snapshots, the last of which had `snapshot_bytes`.
    ///
    /// Low is what the node writes before anything is freed again, without a single new lock: the log of one
    /// generation, the next snapshot beside the current one, and the checkpoints of both files. On a small disk that
    /// could be most of it, so that low is never more than an eighth of the disk.
    pub fn of(total_bytes: u64, log_bytes: u64, snapshot_bytes: u64) -> Self {
        let needed = CHECKPOINT_ROOM_BYTES.saturating_add(log_bytes).saturating_add(snapshot_bytes);
        let low_bytes = needed.min(total_bytes / 8);
        Self {
            low_bytes,
            high_bytes: low_bytes.saturating_mul(2),
            critical_bytes: CHECKPOINT_ROOM_BYTES.min(low_bytes / 2),
        }
    }
}

/// Remembers on which side of the watermarks a node is.
#[derive(Debug, Clone, Default)]
pub struct SpaceGauge {
    is_low: bool,
}

impl SpaceGauge {
    /// Takes a measurement and says whether the node is low.
    pub fn observe(&mut self, space: Space, marks: Watermarks) -> bool {
        self.is_low = space.free_bytes < if self.is_low { marks.high_bytes } else { marks.low_bytes };
        self.is_low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn low_is_what_a_node_writes_without_a_new_lock() {
        let marks = Watermarks::of(1 << 40, 64 * MIB, 100 * MIB);
        assert_eq!(marks.low_bytes, (32 + 64 + 100) * MIB);
        assert_eq!((marks.high_bytes, marks.critical_bytes), (2 * marks.low_bytes, 32 * MIB));
    }

    #[test]
    fn a_small_disk_is_not_low_from_the_first_day() {
        let marks = Watermarks::of(64 * MIB, 64 * MIB, 0);
        assert_eq!((marks.low_bytes, marks.high_bytes, marks.critical_bytes), (8 * MIB, 16 * MIB, 4 * MIB));
    }
}
