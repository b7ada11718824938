//! A disk that forgets: a SQLite VFS in memory, for tests and simulation only.
//!
//! A [`Disk`] is what the process sees plus what a power cut would leave ([`Media`]). Every change is one
//! [`Event`]; the same events serve live faults ([`Disk::fail_at`]) and the offline walk over all crash points
//! (feed them to a [`Media`] one by one, ask it for a crash image after each, [`Disk::boot`] that image).
//!
//! SQLite finds a disk by path: `"<disk id>/<file>"`, in one table for the process. Nothing here reads a clock or
//! draws randomness: a crash image is a function of its seed.
//!
//! A power cut of a running node, in this order: [`Disk::kill`] (so that code which runs while the node is
//! dropped writes nothing), drop the node, [`Disk::crash`], [`mount`] what is left under the same id, open again.
//! Locks are not simulated: two stores on one disk are not refused.

mod disk;
mod media;
mod vfs;

pub use disk::{Disk, Fault};
pub use media::{Event, Media};
pub use vfs::{VFS, register_as_default};

use super::hold;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A disk as SQLite's callbacks and the test share it.
pub type SharedDisk = Arc<Mutex<Disk>>;

static DISKS: Mutex<BTreeMap<String, SharedDisk>> = Mutex::new(BTreeMap::new());

/// Puts `disk` under `id`, in the place of an earlier one. Files that are open on the earlier one stay with it.
pub fn mount(id: &str, disk: Disk) -> SharedDisk {
    vfs::register();
    let disk = Arc::new(Mutex::new(disk));
    hold(&DISKS).insert(id.to_owned(), Arc::clone(&disk));
    disk
}

/// The disk that is mounted as `id`.
pub fn mounted(id: &str) -> Option<SharedDisk> {
    hold(&DISKS).get(id).cloned()
}

/// Forgets the disk that is mounted as `id`.
pub fn unmount(id: &str) {
    hold(&DISKS).remove(id);
}
