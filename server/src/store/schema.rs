//! The tables of the two files, and which format of them this server reads.
//!
//! A newer server reads an older folder; an older server refuses a newer one's by name. A file whose first
//! transaction never arrived is as good as absent, and is made again.

use super::StoreError;
use super::connect::pragma;
use rusqlite::Connection;
use rusqlite::types::Value;

/// One of our files.
pub(super) struct File {
    pub(super) name: &'static str,
    tables: &'static str,
}

/// What needs a sync per commit: the log and small named values (vote, floor, snapshot pointer, identity).
///
/// Log rows are appended at the end of one B-tree and deleted at its head.
pub(super) const RAFT: File = File {
    name: "raft.db",
    tables: "CREATE TABLE log(idx INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL);
             CREATE TABLE value(name TEXT PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;",
};

/// Snapshots, in a file of their own so that writing one stops no commit of the log.
///
/// `chunks` is null while a snapshot is unfinished. A chunk's key is its snapshot's number and its place in it, see
/// `snapshot_desk`; chunks of a number that has no snapshot are garbage.
pub(super) const SNAPSHOTS: File = File {
    name: "snapshots.db",
    tables: "CREATE TABLE snapshot(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, chunks INTEGER,
                                   crc INTEGER NOT NULL, meta BLOB NOT NULL);
             CREATE TABLE chunk(at INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL);",
};

/// The newest format that this server reads, and the one it writes.
const FORMAT: i64 = 1;

/// "RLCK": tells our files from any other SQLite file.
const APPLICATION_ID: i64 = 0x524C_434B;

/// What a file is, before anything is changed in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing was ever committed to it.
    Nothing,
    /// Our tables, in a format that we read.
    Ours,
}

/// Looks at the file without changing it.
pub(super) fn look(db: &Connection, file: &File) -> Result<Found, StoreError> {
    let number = |sql: &'static str| match pragma(db, file.name, sql)?.first().and_then(|row| row.first()) {
        Some(Value::Integer(n)) => Ok(*n),
        other => Err(StoreError::Unfit { file: file.name, what: format!("{sql} answers {other:?}") }),
    };
    let (application, format) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    if application == APPLICATION_ID {
        return if format > FORMAT {
            Err(StoreError::Newer { file: file.name, found: format, known: FORMAT })
        } else {
            Ok(Found::Ours)
        };
    }
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if application == 0 && format == 0 && tables == 0 {
        Ok(Found::Nothing)
    } else {
        Err(StoreError::Foreign { file: file.name })
    }
}

/// Makes the tables, in one transaction: a crash leaves all of it or [`Found::Nothing`].
pub(super) fn create(db: &Connection, file: &File) -> Result<(), StoreError> {
    let sql = format!(
        "BEGIN IMMEDIATE; {} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; COMMIT;",
        file.tables
    );
    db.execute_batch(&sql).map_err(|e| StoreError::from_sqlite(file.name, "making the tables", e))?;
    if db.is_autocommit() {
        Ok(())
    } else {
        Err(StoreError::Unfit {
            file: file.name,
            what: "the first COMMIT left its transaction open".to_owned(),
        })
    }
}
