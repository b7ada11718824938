//! Free space, and when there is too little of it.
//!
//! A node that is low refuses new locks and still serves renewals and releases: they need the log too, but they
//! must not fail for somebody's new lock. The node polls; nothing here acts or reads a disk.

/// Below this much free space a node takes no new locks: room for a log, a snapshot and their checkpoints.
pub const LOW_WATER_BYTES: u64 = 256 << 20;

/// At this much it takes them again. The gap keeps a node from going back and forth.
pub const HIGH_WATER_BYTES: u64 = 512 << 20;

/// The space of the file system that holds the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user may still write.
    pub free_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}

/// Remembers on which side of the two watermarks a node is.
#[derive(Debug, Clone)]
pub struct SpaceGauge {
    low_bytes: u64,
    high_bytes: u64,
    is_low: bool,
}

impl SpaceGauge {
    /// Low below `low_bytes`, fine again from `high_bytes` on.
    pub fn new(low_bytes: u64, high_bytes: u64) -> Self {
        Self { low_bytes, high_bytes: high_bytes.max(low_bytes), is_low: false }
    }

    /// Takes a measurement and says whether the node is low.
    pub fn observe(&mut self, space: Space) -> bool {
        self.is_low = space.free_bytes < if self.is_low { self.high_bytes } else { self.low_bytes };
        self.is_low
    }
}

impl Default for SpaceGauge {
    fn default() -> Self {
        Self::new(LOW_WATER_BYTES, HIGH_WATER_BYTES)
    }
}
