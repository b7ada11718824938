//! What can go wrong with a node's disk, named by what the reader can do about it.
//!
//! Three kinds: an *open* is refused (the text says why and what to do), a *call* is refused (a bug of
//! the caller; nothing was changed), or the *disk* failed, which is final: see `poison.rs`. How an error
//! ends the process is decided elsewhere.

use std::path::PathBuf;
use std::sync::Arc;

/// Why the store did not do what it was asked.
///
/// Cheap to clone, because one failed commit is the answer to many callers. The source is kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A row or a page is not what was written. The disk, or a hand, changed it.
    #[error(
        "{file}: table {table}, row {row}: {what}. This node's disk cannot be trusted: \
         replace the node with a fresh one, do not repair or copy the file"
    )]
    Corrupt {
        /// `raft.db` or `snapshots.db`.
        file: &'static str,
        /// The table, or `-` where SQLite itself found the damage.
        table: &'static str,
        /// The row's key, or `-`.
        row: String,
        /// What is wrong with it.
        what: String,
        /// SQLite's own words, where it found the damage.
        #[source]
        source: Option<Arc<rusqlite::Error>>,
    },

    /// The disk is full. What was being written is not acknowledged.
    #[error("{file}: the disk is full. Free space (the ballast file may be deleted), then replace the node")]
    DiskFull {
        /// The file that could not grow.
        file: &'static str,
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },

    /// Reading or writing failed. After a failed sync the page cache may show what the disk does not have, so
    /// nothing is tried again.
    #[error(
        "{file}: {doing} failed. Do not restart on this disk: replace the node, or reboot the host first"
    )]
    Io {
        /// The file, or the folder.
        file: &'static str,
        /// What was being done.
        doing: &'static str,
        /// SQLite's or the operating system's error.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },

    /// The data folder or a file in it cannot be used.
    #[error("{what}: {doing} failed. Check the path, its rights and its mount")]
    Access {
        /// The folder or the file.
        what: String,
        /// What was being done.
        doing: &'static str,
        /// SQLite's or the operating system's error.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },

    /// SQLite does not behave as we rely on: a setting was not taken, or its version is too old.
    #[error("{file}: {what}. This build must not run on this machine")]
    Unfit {
        /// The file.
        file: &'static str,
        /// What was expected and what was found.
        what: String,
    },

    /// The data folder was written by a newer server.
    #[error(
        "{file} has format {found}, this server reads up to {known}: start the newer server that wrote it, or a fresh node"
    )]
    Newer {
        /// The file.
        file: &'static str,
        /// Its format.
        found: i64,
        /// The newest that this server knows.
        known: i64,
    },

    /// A SQLite file that we did not write.
    #[error("{file} is not a file of this server: give it another data folder")]
    Foreign {
        /// The file.
        file: &'static str,
    },

    /// Another process has the data folder open.
    #[error("{file} is in use by another process: one data folder belongs to one node")]
    InUse {
        /// The file.
        file: &'static str,
    },

    /// The data folder is on a file system that forgets at a reboot.
    #[error(
        "{dir} is on {kind}, which forgets everything at a reboot: choose a disk, or allow volatile data"
    )]
    Volatile {
        /// The folder.
        dir: PathBuf,
        /// The file system.
        kind: &'static str,
    },

    /// The data folder is on a file system whose locks and syncs cannot be trusted.
    #[error("{dir} is on {kind}: its locks and syncs cannot be relied on; choose a local disk")]
    Remote {
        /// The folder.
        dir: PathBuf,
        /// The file system.
        kind: &'static str,
    },

    /// The disk failed earlier; this is the first cause.
    #[error("the store stopped at its first disk error")]
    Poisoned(#[source] Arc<StoreError>),

    /// The store was closed, or left.
    #[error("the store is closed")]
    Closed,

    /// There is no such snapshot or chunk. Nothing was changed.
    #[error("{what} is not in the store")]
    Missing {
        /// What was asked for.
        what: String,
    },

    /// The call breaks an order that the caller must keep. Nothing was changed.
    #[error("refused: {0}")]
    Misuse(String),
}

impl StoreError {
    /// Names a SQLite error by what can be done about it.
    pub(super) fn from_sqlite(file: &'static str, doing: &'static str, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase,
            PermissionDenied, ReadOnly,
        };
        let code = error.sqlite_error_code();
        let source = Arc::new(error);
        match code {
            Some(DiskFull) => Self::DiskFull { file, source },
            Some(DatabaseCorrupt | NotADatabase) => Self::Corrupt {
                file,
                table: "-",
                row: "-".to_owned(),
                what: format!("SQLite found damage while {doing}"),
                source: Some(source),
            },
            Some(DatabaseBusy | DatabaseLocked) => Self::InUse { file },
            Some(CannotOpen | PermissionDenied | ReadOnly) => {
                Self::Access { what: file.to_owned(), doing, source }
            }
            _ => Self::Io { file, doing, source },
        }
    }

    /// A row that is not what was written.
    pub(super) fn bad_row(
        file: &'static str,
        table: &'static str,
        row: impl ToString,
        what: impl Into<String>,
    ) -> Self {
        Self::Corrupt { file, table, row: row.to_string(), what: what.into(), source: None }
    }

    /// Whether the call was refused before anything was changed, so that the store lives on.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Misuse(_))
    }
}
