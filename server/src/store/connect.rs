//! Opening one of our SQLite files: every setting with its reason, each read back.
//!
//! Nothing is trusted: an I/O error while SQLite switches to WAL mode is dropped when the statement is not run to
//! its end, the read-back then says `wal`, and the connection works with a rollback journal, in which the last
//! acknowledged commit can be lost. So every PRAGMA is drained, and WAL mode is asked for a second way.

use super::schema::{self, File, Found};
use super::{StoreError, StoreOptions};
use lock_table::planted;
use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use std::time::Duration;

/// Before 3.51.3 a WAL that two connections write and checkpoint at once could corrupt the file; the no-op
/// checkpoint that measures the WAL is of 3.51.0.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// More statements than we have, so that each is prepared once.
const STATEMENTS_MAX: usize = 64;

/// A connection, and whether the file was made just now.
pub(super) struct Opened {
    pub(super) db: Connection,
    pub(super) new: bool,
}

/// Opens `file`, makes it if it is absent, and checks all that the store relies on.
pub(super) fn connect(file: &File, options: &StoreOptions) -> Result<Opened, StoreError> {
    version_is_fit(file.name, rusqlite::version_number())?;
    let failed = |doing| move |e| StoreError::from_sqlite(file.name, doing, e);

    let path = options.dir.join(file.name);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = match &options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
        None => Connection::open_with_flags(path, flags),
    }
    .map_err(failed("opening"))?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // A file in use stays in use: tell it now.
    db.busy_timeout(Duration::ZERO).map_err(failed("opening"))?;
    // Dropping a connection would checkpoint and delete the WAL. Only `close` may write at the end.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed("opening"))?;

    // Before the first access: no second process, no shared memory, and no SQLITE_BUSY later.
    set(&db, file.name, "locking_mode", "EXCLUSIVE", &text("exclusive"))?;
    // Before anything is changed: refuse what is not ours or too new.
    let found = schema::look(&db, file)?;
    switch_to_wal(&db, file.name)?;
    // One sync of the WAL per commit. NORMAL syncs at checkpoints only, and a commit is then lost with the power.
    set(&db, file.name, "synchronous", "FULL", &Value::Integer(2))?;
    // An I/O error through a mapping is a SIGBUS, not an error code.
    // A VFS that cannot map says nothing.
    let mapped = pragma(&db, file.name, "PRAGMA mmap_size=0")?;
    if !mapped.iter().all(|row| row == &[Value::Integer(0)]) {
        return Err(StoreError::Unfit { file: file.name, what: format!("mmap_size is {mapped:?}") });
    }
    // The writer checkpoints between batches; never inside a COMMIT that somebody waits for.
    set(&db, file.name, "wal_autocheckpoint", "0", &Value::Integer(0))?;
    // No temporary files beside ours.
    set(&db, file.name, "temp_store", "MEMORY", &Value::Integer(2))?;

    if planted::is("synchronous-normal") {
        pragma(&db, file.name, "PRAGMA synchronous=NORMAL")?;
    }

    let new = found == Found::Nothing;
    if new {
        schema::create(&db, file)?;
        checkpoint(&db, file.name, "TRUNCATE")?;
    }
    // SQLite checks the WAL's frames but not the file's pages.
    let health = pragma(&db, file.name, "PRAGMA quick_check(1)")?;
    if health != [[text("ok")]] {
        return Err(StoreError::bad_row(file.name, "-", "-", format!("quick_check says {health:?}")));
    }
    if !new {
        void_old_frames(&db, file.name)?;
    }
    Ok(Opened { db, new })
}

/// Begins the WAL anew after a checkpoint that copied all of it, by a write that changes nothing.
///
/// Until the next write the old frames stay valid. Should one of them be damaged then, on a node that is down, the next
/// start would read those before it, and only those: pages as they once were, over pages of the main file that are newer.
/// Together they are a state that never was, and no checksum tells.
pub(super) fn void_old_frames(db: &Connection, file: &'static str) -> Result<(), StoreError> {
    let version = pragma(db, file, "PRAGMA user_version")?;
    match version.first().map(Vec::as_slice) {
        Some([Value::Integer(version)]) => {
            pragma(db, file, &format!("PRAGMA user_version={version}")).map(drop)
        }
        _ => Err(StoreError::Unfit { file, what: format!("its version is {version:?}") }),
    }
}

/// Runs `PRAGMA wal_checkpoint(mode)`, and says whether something was in the way of all that was asked. An answer that
/// shows another journal mode is an error.
pub(super) fn checkpoint(db: &Connection, file: &'static str, mode: &str) -> Result<bool, StoreError> {
    let answer = pragma(db, file, &format!("PRAGMA wal_checkpoint({mode})"))?;
    match answer.first().map(Vec::as_slice) {
        Some([Value::Integer(busy), Value::Integer(frames), _]) if *frames >= 0 => Ok(*busy != 0),
        _ => {
            Err(StoreError::Unfit { file, what: format!("not in WAL mode: a checkpoint answers {answer:?}") })
        }
    }
}

/// Runs a statement to its end, where its error appears, and returns its rows.
pub(super) fn pragma(db: &Connection, file: &'static str, sql: &str) -> Result<Vec<Vec<Value>>, StoreError> {
    let run = || -> rusqlite::Result<Vec<Vec<Value>>> {
        let mut statement = db.prepare_cached(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut answer = Vec::new();
        while let Some(row) = rows.next()? {
            answer.push((0..columns).map(|i| row.get(i)).collect::<rusqlite::Result<_>>()?);
        }
        Ok(answer)
    };
    run().map_err(|e| StoreError::from_sqlite(file, "reading or changing a setting", e))
}

fn switch_to_wal(db: &Connection, file: &'static str) -> Result<(), StoreError> {
    let answer = pragma(db, file, "PRAGMA journal_mode=WAL")?;
    if answer != [[text("wal")]] {
        return Err(StoreError::Unfit { file, what: format!("journal_mode=WAL answers {answer:?}") });
    }
    if checkpoint(db, file, "PASSIVE")? {
        return Err(StoreError::InUse { file });
    }
    Ok(())
}

/// Sets a PRAGMA and reads it back.
fn set(db: &Connection, file: &'static str, name: &str, to: &str, reads: &Value) -> Result<(), StoreError> {
    pragma(db, file, &format!("PRAGMA {name}={to}"))?;
    let answer = pragma(db, file, &format!("PRAGMA {name}"))?;
    if answer.first().and_then(|row| row.first()) == Some(reads) {
        Ok(())
    } else {
        Err(StoreError::Unfit { file, what: format!("{name} is {answer:?} after it was set to {to}") })
    }
}

fn version_is_fit(file: &'static str, number: i32) -> Result<(), StoreError> {
    if number >= SQLITE_VERSION_MIN {
        return Ok(());
    }
    let what =
        format!("SQLite is {number}, at least {SQLITE_VERSION_MIN} is needed (a WAL bug before it corrupts)");
    Err(StoreError::Unfit { file, what })
}

fn text(s: &str) -> Value {
    Value::Text(s.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::simdisk::{self, Disk, Fault};

    #[test]
    fn every_setting_is_taken() {
        simdisk::mount("connect-1", Disk::new());
        let db = connect(&schema::RAFT, &StoreOptions::simulated("connect-1")).unwrap().db;
        let settings = [
            ("journal_mode", text("wal")),
            ("synchronous", Value::Integer(2)),
            ("locking_mode", text("exclusive")),
            ("wal_autocheckpoint", Value::Integer(0)),
            ("temp_store", Value::Integer(2)),
        ];
        for (name, value) in settings {
            assert_eq!(pragma(&db, "raft.db", &format!("PRAGMA {name}")).unwrap(), [[value]], "{name}");
        }
        assert!(db.db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE).unwrap());
        simdisk::unmount("connect-1");
    }

    /// Fails the `call`-th call while a fresh database is switched to WAL mode by `switch`, and none after it.
    fn switched<T>(disk: &str, call: u64, switch: impl Fn(&Connection) -> T) -> (Connection, T) {
        let path = format!("{disk}/x.db");
        let disk = simdisk::mount(disk, Disk::new());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let db = Connection::open_with_flags_and_vfs(path, flags, simdisk::VFS).unwrap();
        pragma(&db, "x.db", "PRAGMA locking_mode=EXCLUSIVE").unwrap();
        disk.lock().unwrap().fail_at(call, Fault::Eio);
        let answer = switch(&db);
        disk.lock().unwrap().fail_at(0, Fault::Eio);
        (db, answer)
    }

    fn is_in_wal_mode(db: &Connection) -> bool {
        checkpoint(db, "x.db", "PASSIVE").is_ok()
    }

    #[test]
    fn a_drained_pragma_shows_every_error_of_the_wal_switch() {
        let drained = |db: &Connection| pragma(db, "x.db", "PRAGMA journal_mode=WAL");
        let mut refused = 0;
        for call in 1..20 {
            let (db, answer) = switched("connect-2", call, drained);
            if answer.is_ok_and(|mode| mode == [[text("wal")]]) {
                assert!(is_in_wal_mode(&db), "an error at call {call} was lost");
            } else {
                refused += 1;
            }
        }
        assert!(refused > 3, "{refused}: the faults have not bitten");
    }

    #[test]
    fn a_connection_that_only_says_wal_is_not_believed() {
        // One step and then finalize, as `query_row` does it: the error of the commit inside is lost.
        let stepped =
            |db: &Connection| db.query_row("PRAGMA journal_mode=WAL", [], |r| r.get::<_, String>(0));
        let mut liars = 0;
        for call in 1..20 {
            let (db, answer) = switched("connect-4", call, stepped);
            if answer.is_ok_and(|mode| mode == "wal") && !is_in_wal_mode(&db) {
                liars += 1;
                // Asked by ours it either tells or is in WAL mode afterwards.
                let switched = switch_to_wal(&db, "x.db");
                assert!(switched.is_err() || is_in_wal_mode(&db), "call {call}");
            }
        }
        assert!(liars > 0, "SQLite no longer loses that error");
    }

    #[test]
    fn a_first_connection_leaves_the_tables_in_the_main_file() {
        let disk = simdisk::mount("connect-3", Disk::new());
        let opened = connect(&schema::RAFT, &StoreOptions::simulated("connect-3")).unwrap();
        assert!(opened.new);
        let mut left = disk.lock().unwrap().crash(0, 0);
        assert_eq!(&left.file_mut("raft.db").unwrap()[68..72], b"RLCK");
        assert_eq!(disk.lock().unwrap().file("raft.db-wal").unwrap().len(), 0);
    }

    #[test]
    fn a_checkpoint_outside_of_wal_mode_is_an_error() {
        let db = Connection::open_in_memory().unwrap();
        assert!(matches!(checkpoint(&db, "raft.db", "PASSIVE"), Err(StoreError::Unfit { .. })));
    }

    #[test]
    fn a_sqlite_with_the_wal_bug_is_refused() {
        assert!(version_is_fit("raft.db", 3_051_002).is_err());
        assert!(version_is_fit("raft.db", 3_051_003).is_ok());
        assert!(version_is_fit("raft.db", rusqlite::version_number()).is_ok());
    }

    #[test]
    fn a_set_that_is_not_taken_is_an_error() {
        let db = Connection::open_in_memory().unwrap();
        // A database in memory has no WAL.
        assert!(set(&db, "raft.db", "journal_mode", "WAL", &text("wal")).is_err());
        assert!(switch_to_wal(&db, "raft.db").is_err());
    }
}
