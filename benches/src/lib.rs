//! What the benches share: where their data lies.
//!
//! - `lock_throughput`: acquire and release through the SDK, on one node and on three.
//! - `lock_table`: the state machine alone, without disk and network.
//! - `session_codec`: messages of a session stream, to bytes and back.
//! - `store_append`: the log on disk, beside what the disk itself takes for a write and a flush.
//!
//! All nodes of a bench are in one process, on one machine and one disk: the figures say how the parts compare and
//! what a change did to them, not what a cluster on three machines does.

#![warn(missing_docs)]

use std::path::Path;

/// A new folder on the disk that the build lies on. The system's temporary folder may be memory, where a flush costs
/// nothing. Call it with `env!("CARGO_TARGET_TMPDIR")`, which cargo sets for benches only.
pub fn folder_on_disk(target_tmpdir: &str) -> tempfile::TempDir {
    let parent = Path::new(target_tmpdir);
    std::fs::create_dir_all(parent).expect("the target folder is writable");
    tempfile::tempdir_in(parent).expect("the target folder is writable")
}
