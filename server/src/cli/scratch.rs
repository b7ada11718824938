//! What `demo` and `bench` need to run nodes of their own on this machine: a folder, and ports.

use std::path::{Path, PathBuf};

use raftlock_server::testing::wires::FreePorts;

use super::failure::Failure;

/// A folder of this process alone, removed at the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// In `parent`.
    pub fn within(parent: &Path, name: &str) -> Result<Folder, Failure> {
        let folder = parent.join(format!("raftlock-{name}-{}", std::process::id()));
        match std::fs::create_dir(&folder) {
            Ok(()) => Ok(Folder(folder)),
            Err(error) => Err(Failure::Other(format!("{}: {error}", folder.display()))),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is small and in a temporary place.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Nodes have to know each other's addresses before they listen, and find them free again after they were down.
pub fn free_ports(count: usize) -> Result<FreePorts, Failure> {
    FreePorts::find(count).map_err(|error| Failure::Other(format!("no free ports: {error}")))
}
