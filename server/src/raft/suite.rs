//! openraft's own storage suite, against the real SQLite store.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::Types;
use super::log::LogStore;
use super::machine::{Machine, MachineWriter};
use crate::store::{Store, StoreOptions};

struct RealStore;

impl StoreBuilder<Types, LogStore, MachineWriter, tempfile::TempDir> for RealStore {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, MachineWriter), StorageError<Types>> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = StoreOptions { allow_volatile: true, ..StoreOptions::new(dir.path()) };
        let store = Store::open(options).expect("a fresh store opens");
        let machine = Machine::new(store.clone(), Default::default(), None);
        Ok((dir, LogStore::open(store).expect("a fresh log opens"), machine.writer()))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_on_the_real_store() {
    Suite::test_all(RealStore).await.expect("the suite passes");
}
