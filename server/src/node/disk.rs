//! What a node reads from its disk before anything else: the store, and who it is.

use std::path::PathBuf;

use super::{NodeError, Seams};
use crate::config::Config;
use crate::peers::Boot;
use crate::raft::random_u64;
use crate::store::{Store, StoreError, StoreOptions, Writer};

const STORAGE_ID: &str = "storage_id";
const BOOT: &str = "boot";

/// Holds why this data directory is stale, once a member of the cluster has said so.
pub const STALE: &str = "stale";

/// There once the node is no member any more.
pub const REMOVED: &str = "removed";

pub async fn open_store(config: &Config, seams: &Seams) -> Result<Store, StoreError> {
    let options = StoreOptions {
        vfs: seams.vfs.clone(),
        writer: seams.writer.clone(),
        allow_volatile: config.allow_volatile_data,
        ballast_bytes: config.ballast_bytes,
        ..StoreOptions::new(PathBuf::from(&config.data_dir))
    };
    match options.writer {
        Writer::Inline | Writer::Behind(_) => Store::open(options),
        // It reads the whole log, and a node may start inside an application's runtime.
        Writer::Thread => {
            tokio::task::spawn_blocking(|| Store::open(options)).await.expect("opening does not panic")
        }
    }
}

/// The node's id, made at its first start, and how often it has started.
pub async fn next_boot(store: &Store) -> Result<(u64, Boot), NodeError> {
    let number = |name: &'static str| match store.value(name) {
        None => Ok(None),
        Some(bytes) => match bytes[..].try_into() {
            Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
            Err(_) => Err(NodeError::Identity { what: name }),
        },
    };
    let id = match number(STORAGE_ID)? {
        Some(id) => id,
        None => {
            let id = random_u64();
            store.put_value(STORAGE_ID, id.to_be_bytes().to_vec().into()).await?;
            id
        }
    };
    let boot = Boot { count: number(BOOT)?.unwrap_or(0) + 1, nonce: random_u64() };
    store.put_value(BOOT, boot.count.to_be_bytes().to_vec().into()).await?;
    Ok((id, boot))
}
