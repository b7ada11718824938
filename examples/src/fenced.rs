//! A database that checks fencing tokens: what a resource does to be safe from a holder that does not know that its
//! lock is lost.
//!
//! Beside its own tables it keeps the highest token that it has seen for each resource. A write that comes with a lower
//! one is from the past, and is refused. The check and the write are one transaction, else another write could come in
//! between.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use raftlock::FencingToken;
use rusqlite::{Connection, Result, Transaction, TransactionBehavior};

/// How long a writer waits for another one.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE fences (resource TEXT PRIMARY KEY, highest_token INTEGER NOT NULL);
    CREATE TABLE refusals (resource TEXT NOT NULL, token INTEGER NOT NULL, highest_token INTEGER NOT NULL);
";

/// One SQLite file, used by many processes.
pub struct FencedDb {
    db: Connection,
}

/// A write was refused: somebody with a higher token was here before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// What the writer came with.
    pub token: u64,
    /// What had been seen.
    pub highest_token: u64,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stale { token, highest_token } = self;
        write!(f, "token {token} is stale, {highest_token} was seen")
    }
}

impl FencedDb {
    /// Makes the file, with the caller's own tables.
    ///
    /// # Errors
    ///
    /// What SQLite says.
    pub fn create(path: &Path, tables: &str) -> Result<FencedDb> {
        let fenced = FencedDb::open(path)?;
        fenced.db.execute_batch(SCHEMA)?;
        fenced.db.execute_batch(tables)?;
        Ok(fenced)
    }

    /// Opens a file that was made before.
    ///
    /// # Errors
    ///
    /// What SQLite says.
    pub fn open(path: &Path) -> Result<FencedDb> {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_LIMIT)?;
        Ok(FencedDb { db })
    }

    /// Does `write` if `token` is not lower than any that was seen for `resource`. All of it or nothing.
    ///
    /// # Errors
    ///
    /// What SQLite says. A stale token is no error but an answer; it is also counted.
    pub fn write<T>(
        &mut self,
        resource: &str,
        token: FencingToken,
        write: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<std::result::Result<T, Stale>> {
        let token = signed(token);
        // IMMEDIATE: no other process writes between the look at the token and the write.
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let highest: i64 = transaction.query_row(
            "INSERT INTO fences VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET highest_token = max(highest_token, excluded.highest_token)
             RETURNING highest_token",
            (resource, token),
            |row| row.get(0),
        )?;
        let answer = if token < highest {
            let refusal = (resource, token, highest);
            transaction.execute("INSERT INTO refusals VALUES (?1, ?2, ?3)", refusal)?;
            Err(Stale { token: token.cast_unsigned(), highest_token: highest.cast_unsigned() })
        } else {
            Ok(write(&transaction)?)
        };
        transaction.commit()?;
        Ok(answer)
    }

    /// For reads, and for writes that nobody protects.
    pub fn unfenced(&mut self) -> &mut Connection {
        &mut self.db
    }

    /// How many writes were refused.
    ///
    /// # Errors
    ///
    /// What SQLite says.
    pub fn refused(&mut self) -> Result<u64> {
        self.count("SELECT count(*) FROM refusals")
    }

    /// The number that `query` answers with.
    ///
    /// # Errors
    ///
    /// What SQLite says.
    pub fn count(&mut self, query: &str) -> Result<u64> {
        self.db.query_row(query, (), |row| row.get(0).map(i64::cast_unsigned))
    }
}

/// SQLite's integers are signed.
fn signed(token: FencingToken) -> i64 {
    i64::try_from(token.get()).expect("tokens count up from below 2^62")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_token_is_refused_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = FencedDb::create(&dir.path().join("db"), "CREATE TABLE t (v)").unwrap();
        let mut put = |resource: &str, token: u64| {
            let write = |tx: &Transaction<'_>| tx.execute("INSERT INTO t VALUES (1)", ());
            db.write(resource, token.into(), write).unwrap()
        };
        assert_eq!(put("a", 5), Ok(1));
        assert_eq!(put("a", 5), Ok(1), "the same holder may write again");
        assert_eq!(put("a", 4), Err(Stale { token: 4, highest_token: 5 }));
        assert_eq!(put("b", 4), Ok(1), "another resource has its own fence");
        assert_eq!(put("a", 6), Ok(1));
        assert_eq!(db.count("SELECT count(*) FROM t").unwrap(), 4);
        assert_eq!(db.refused().unwrap(), 1);
    }
}
