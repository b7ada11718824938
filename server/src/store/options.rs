//! How a store is opened. Every field says how to choose it.

use std::path::PathBuf;

use super::writer::Valve;

/// Keep this much of the log's end in memory.
///
/// Replication to a follower that is a little behind, and apply, then never touch the disk. 32 MiB is some
/// seconds of a busy cluster's log; a follower that is further behind is read for from the file.
pub const CACHE_BYTES: usize = 32 << 20;

/// What [`Store::open`](super::Store::open) needs to know.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The data folder; made if absent. With `vfs` it is the first part of a path that only that VFS reads.
    pub dir: PathBuf,
    /// The name of a registered SQLite VFS: a simulated disk. `None` is the operating system's, and only then
    /// are the folder's file system, its sync and the ballast looked at.
    pub vfs: Option<String>,
    /// Who runs the writer.
    pub writer: Writer,
    /// Accept a data folder on tmpfs or ramfs. For demos and tests: a reboot forgets votes, and a node that
    /// forgot its vote may vote twice.
    pub allow_volatile: bool,
    /// The size of a file that an operator may delete on a full disk, so that a last checkpoint has room. 64 MiB
    /// in production; 0 for none.
    pub ballast_bytes: u64,
    /// How many bytes of entries that are already on disk stay in memory: [`CACHE_BYTES`] unless the machine is
    /// small. What is not on disk yet always stays, whatever this says.
    pub cache_bytes: usize,
}

/// Who runs the writer of each file.
#[derive(Debug, Clone)]
pub enum Writer {
    /// A thread for each file: production.
    Thread,
    /// The caller, inside the call: a simulation on one thread. Same queue, same batch code.
    Inline,
    /// The same behind a valve: while it is shut, what is queued waits, as on a disk that stalls.
    Behind(Valve),
}

impl StoreOptions {
    /// A store in `dir`, as production runs it, without ballast.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            vfs: None,
            writer: Writer::Thread,
            allow_volatile: false,
            ballast_bytes: 0,
            cache_bytes: CACHE_BYTES,
        }
    }

    /// A store on the simulated disk `disk` (see `simdisk`), with its writer in the caller.
    pub fn simulated(disk: &str) -> Self {
        Self { vfs: Some(super::simdisk::VFS.to_owned()), writer: Writer::Inline, ..Self::new(disk) }
    }
}
