//! The end of a store whose disk failed.
//!
//! Any error of a transaction, a checkpoint or a read is final: after a failed sync Linux marks the pages clean, so a
//! second sync says "done" about bytes that never arrived, and a COMMIT that failed may come back as committed after
//! a crash. So the first cause is kept, every pending and later call is answered with it, and nothing more is
//! written. Whether and how the process ends is not decided here.

use super::StoreError;
use std::sync::Arc;
use tokio::sync::watch;

/// The first cause, shared by both files: one disk, one fate.
#[derive(Debug)]
pub(super) struct Poison {
    cause: watch::Sender<Option<StoreError>>,
}

impl Poison {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { cause: watch::Sender::new(None) })
    }

    /// Keeps `cause` if it is the first; returns what every caller is told from now on.
    pub(super) fn set(&self, cause: StoreError) -> StoreError {
        self.cause.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(%cause, "the store stops: nothing more is acknowledged or written");
                *first = Some(cause.clone());
            }
            is_first
        });
        self.error().unwrap_or(StoreError::Poisoned(Arc::new(cause)))
    }

    /// What callers are told, once poisoned.
    pub(super) fn error(&self) -> Option<StoreError> {
        self.cause.borrow().clone().map(|cause| StoreError::Poisoned(Arc::new(cause)))
    }

    pub(super) fn is_set(&self) -> bool {
        self.cause.borrow().is_some()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<StoreError>> {
        self.cause.subscribe()
    }
}
