//! What earlier runs proved, in a database in the spool directory.
//!
//! | table | holds |
//! | --- | --- |
//! | `proven` | catalogs whose whole tree was seen in the storage, each for one selection of paths; entered after a flush |
//! | `roots` | root catalogs that were stored and are not in the reflog yet |
//! | `facts` | what the last good run ended with |
//!
//! Losing the database costs time: everything is looked up again.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cvmfs_core::error::{Error, Result};
use cvmfs_core::hash::{Algorithm, ContentHash};
use rusqlite::{Connection, OptionalExtension as _};

const TABLES: &str = "
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS proven (hash BLOB, selection TEXT, PRIMARY KEY (hash, selection)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS roots (hash TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
";

/// The opened database.
#[derive(Debug)]
pub(crate) struct Proven {
    connection: Mutex<Connection>,
    selection: String,
    what: String,
}

impl Proven {
    /// Opens the database in the spool directory for one selection of paths; a damaged one is made anew.
    pub(crate) fn open(spool: &Path, selection: &str) -> Result<Self> {
        let path = spool.join("proven.db");
        let what = path.display().to_string();
        let connect = || {
            let connection = Connection::open(&path)?;
            connection.busy_timeout(std::time::Duration::from_secs(10))?;
            connection.execute_batch(TABLES)?;
            Ok(connection)
        };
        let connection = connect().or_else(|error: rusqlite::Error| {
            tracing::warn!(what, %error, "what earlier runs proved is lost; everything is looked up again");
            for suffix in ["", "-wal", "-shm"] {
                // What does not go shows in the next line.
                let _ = std::fs::remove_file(format!("{what}{suffix}"));
            }
            connect().map_err(|error| Error::database(&what, error))
        })?;
        Ok(Self { connection: Mutex::new(connection), selection: selection.to_owned(), what })
    }

    /// Whether the tree of a catalog was proven to be in the storage.
    pub(crate) fn contains(&self, catalog: ContentHash) -> Result<bool> {
        self.with(|connection| {
            connection
                .prepare_cached("SELECT 1 FROM proven WHERE hash = ?1 AND selection = ?2")?
                .exists((key(catalog), &self.selection))
        })
    }

    /// Enters catalogs. Everything that they reach must have been made durable.
    pub(crate) fn insert(&self, catalogs: &[ContentHash]) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            for catalog in catalogs {
                let sql = "INSERT OR IGNORE INTO proven (hash, selection) VALUES (?1, ?2)";
                transaction.prepare_cached(sql)?.execute((key(*catalog), &self.selection))?;
            }
            transaction.commit()
        })
    }

    /// Forgets a catalog whose tree turned out not to be in the storage.
    pub(crate) fn remove(&self, catalog: ContentHash) -> Result<()> {
        self.with(|connection| connection.execute("DELETE FROM proven WHERE hash = ?1", [key(catalog)]).map(drop))
    }

    /// Forgets all catalogs but these; that is durable when it returns.
    pub(crate) fn retain(&self, kept: &HashSet<ContentHash>) -> Result<()> {
        let kept: HashSet<Vec<u8>> = kept.iter().map(|hash| key(*hash)).collect();
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut all = transaction.prepare("SELECT DISTINCT hash FROM proven")?;
                let mut rows = all.query([])?;
                let mut gone = Vec::new();
                while let Some(row) = rows.next()? {
                    let hash: Vec<u8> = row.get(0)?;
                    if !kept.contains(&hash) {
                        gone.push(hash);
                    }
                }
                let mut delete = transaction.prepare("DELETE FROM proven WHERE hash = ?1")?;
                for hash in gone {
                    delete.execute([hash])?;
                }
            }
            transaction.commit()?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        })
    }

    /// Notes that a root catalog is about to be stored, for the reflog.
    pub(crate) fn add_root(&self, root: ContentHash) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO roots (hash) VALUES (?1)";
        self.with(|connection| connection.execute(sql, [root.to_string()]).map(drop))
    }

    /// The root catalogs that the reflog lacks.
    pub(crate) fn roots(&self) -> Result<Vec<ContentHash>> {
        let texts: Vec<String> = self.with(|connection| {
            connection.prepare("SELECT hash FROM roots ORDER BY hash")?.query_map([], |row| row.get(0))?.collect()
        })?;
        texts.iter().map(|text| text.parse()).collect()
    }

    /// What the last run ended with: tells the manifest, and with what choices it was replicated. `None` if it did not
    /// end well, or there was none.
    pub(crate) fn last_good(&self) -> Result<Option<String>> {
        let sql = "SELECT value FROM facts WHERE key = 'last good'";
        self.with(|connection| connection.query_row(sql, [], |row| row.get(0)).optional())
    }

    /// Notes that a run begins: until it ends well, nothing is known to be good.
    pub(crate) fn begin(&self) -> Result<()> {
        self.with(|connection| connection.execute("DELETE FROM facts WHERE key = 'last good'", []).map(drop))
    }

    /// Notes what a good run ended with; the reflog has all roots.
    pub(crate) fn end(&self, good: &str) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM roots", [])?;
            let sql = "INSERT OR REPLACE INTO facts (key, value) VALUES ('last good', ?1)";
            transaction.execute(sql, [good])?;
            transaction.commit()
        })
    }

    fn with<T>(&self, run: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection: MutexGuard<'_, Connection> = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut connection).map_err(|error| Error::database(&self.what, error))
    }
}

/// The digest, with the number of its algorithm.
fn key(hash: ContentHash) -> Vec<u8> {
    let number = Algorithm::ALL.iter().position(|algorithm| *algorithm == hash.algorithm()).unwrap_or_default();
    let mut key = hash.digest().to_vec();
    key.push(u8::try_from(number).unwrap_or(u8::MAX));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proven_is_so_for_one_selection() {
        let spool = tempfile::tempdir().unwrap();
        let hash = Algorithm::Rmd160.hash(b"catalog");
        let all = Proven::open(spool.path(), "").unwrap();
        all.insert(&[hash]).unwrap();
        assert!(all.contains(hash).unwrap());
        assert!(!all.contains(ContentHash::new(Algorithm::Sha1, *hash.digest())).unwrap());
        assert!(!Proven::open(spool.path(), "part").unwrap().contains(hash).unwrap());
        all.remove(hash).unwrap();
        assert!(!all.contains(hash).unwrap());
    }

    #[test]
    fn what_is_collected_is_not_proven_any_more() {
        let spool = tempfile::tempdir().unwrap();
        let [kept, gone] = [b"kept", b"gone"].map(|text| Algorithm::Sha1.hash(text));
        let proven = Proven::open(spool.path(), "part").unwrap();
        proven.insert(&[kept, gone]).unwrap();
        Proven::open(spool.path(), "").unwrap().retain(&HashSet::from([kept])).unwrap();
        assert!(proven.contains(kept).unwrap() && !proven.contains(gone).unwrap());
    }

    #[test]
    fn a_run_that_began_is_not_good_until_it_ended() {
        let spool = tempfile::tempdir().unwrap();
        let proven = Proven::open(spool.path(), "").unwrap();
        let root = Algorithm::Sha1.hash(b"root");
        assert_eq!(proven.last_good().unwrap(), None);
        proven.add_root(root).unwrap();
        assert_eq!(proven.roots().unwrap(), [root]);
        proven.end("key").unwrap();
        assert_eq!((proven.last_good().unwrap(), proven.roots().unwrap()), (Some("key".to_owned()), vec![]));
        proven.begin().unwrap();
        assert_eq!(proven.last_good().unwrap(), None);
    }

    #[test]
    fn a_damaged_database_is_made_anew() {
        let spool = tempfile::tempdir().unwrap();
        std::fs::write(spool.path().join("proven.db"), "no database, but long enough to be taken for one".repeat(100))
            .unwrap();
        let proven = Proven::open(spool.path(), "").unwrap();
        assert_eq!(proven.last_good().unwrap(), None);
    }
}
