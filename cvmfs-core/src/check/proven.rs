//! Catalogs that earlier checks found fine, in a small database in the spool directory: it can be deleted at any time.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _};

use super::rows::Fingerprint;
use crate::catalog::Counters;
use crate::error::{DatabaseContext as _, Result};
use crate::hash::ContentHash;

/// Version of the file; a file of another version is replaced. It changes with what a check looks at.
const VERSION: i64 = 1;

/// What is known of a catalog whose whole tree is fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fine {
    /// Bytes of the database, uncompressed.
    pub(super) size: u64,
    /// What its root entry says.
    pub(super) root: Fingerprint,
    /// Counters of the tree from this catalog down.
    pub(super) total: Counters,
}

/// The opened database.
#[derive(Debug)]
pub(super) struct Proven {
    connection: Mutex<Connection>,
    what: String,
    /// Whether the bytes of all objects were looked at, too.
    is_thorough: bool,
}

impl Proven {
    /// Opens the database; one that is damaged or of another version is made anew.
    pub(super) fn open(spool: &Path, is_thorough: bool) -> Result<Self> {
        let path = spool.join("checked.db");
        let what = path.display().to_string();
        let connection = connect(&path).or_else(|error| {
            tracing::warn!(what, %error, "what earlier checks found is lost");
            for suffix in ["", "-wal", "-shm"] {
                // What does not go shows in the next line.
                let _ = std::fs::remove_file(format!("{what}{suffix}"));
            }
            connect(&path).in_database(&what)
        })?;
        Ok(Self { connection: Mutex::new(connection), what, is_thorough })
    }

    /// What is known of the catalog at a path.
    pub(super) fn find(&self, catalog: ContentHash, path: &[u8]) -> Result<Option<Fine>> {
        let sql = "SELECT size, root, total FROM fine WHERE hash = ?1 AND path = ?2 AND thorough >= ?3";
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let found = connection
            .prepare_cached(sql)
            .and_then(|mut select| {
                let columns =
                    |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get::<_, String>(2)?));
                select.query_row((catalog.to_string(), path, self.is_thorough), columns).optional()
            })
            .in_database(&self.what)?;
        let fine = |(size, root, total): (i64, Fingerprint, String)| {
            Some(Fine { size: u64::try_from(size).ok()?, root, total: Counters::parse(&total)? })
        };
        Ok(found.and_then(fine))
    }

    /// Enters catalogs with their paths.
    pub(super) fn insert(&self, catalogs: &[(ContentHash, Vec<u8>, Fine)]) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut insert = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            for (hash, path, Fine { size, root, total }) in catalogs {
                let sql = "INSERT INTO fine (hash, path, thorough, size, root, total) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                           ON CONFLICT (hash, path) DO UPDATE SET thorough = max(thorough, excluded.thorough)";
                let size = i64::try_from(*size).unwrap_or(0);
                let values = (hash.to_string(), path, self.is_thorough, size, root, total.to_string());
                transaction.prepare_cached(sql)?.execute(values)?;
            }
            transaction.commit()
        };
        insert().in_database(&self.what)
    }

    /// Forgets all catalogs but these.
    pub(super) fn retain(&self, kept: &HashSet<ContentHash>) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retain = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            let known: Vec<String> = transaction
                .prepare("SELECT DISTINCT hash FROM fine")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for hash in known {
                if !hash.parse().is_ok_and(|hash| kept.contains(&hash)) {
                    transaction.prepare_cached("DELETE FROM fine WHERE hash = ?1")?.execute([hash])?;
                }
            }
            transaction.commit()
        };
        retain().in_database(&self.what)
    }
}

/// What was forgotten must stay so, even if power fails: the next thing is that objects are removed.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != VERSION {
        connection.execute_batch(&format!(
            "DROP TABLE IF EXISTS fine;
             CREATE TABLE fine (hash TEXT, path BLOB, thorough INTEGER, size INTEGER, root BLOB, total TEXT,
               PRIMARY KEY (hash, path)) WITHOUT ROWID;
             PRAGMA user_version = {VERSION};"
        ))?;
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    #[test]
    fn a_catalog_is_fine_at_its_place_and_as_thoroughly_as_it_was_looked_at() {
        let spool = tempfile::tempdir().unwrap();
        let hash = Algorithm::Shake128.hash(b"catalog");
        let total = Counters { regular: 3, ..Counters::default() };
        let fine = Fine { size: 5, root: [7; 20], total };
        let quick = Proven::open(spool.path(), false).unwrap();
        quick.insert(&[(hash, b"a".to_vec(), fine)]).unwrap();
        assert_eq!(quick.find(hash, b"a").unwrap(), Some(fine));
        assert_eq!(quick.find(hash, b"b").unwrap(), None);
        let thorough = Proven::open(spool.path(), true).unwrap();
        assert_eq!(thorough.find(hash, b"a").unwrap(), None);
        thorough.insert(&[(hash, b"a".to_vec(), fine)]).unwrap();
        quick.insert(&[(hash, b"a".to_vec(), fine)]).unwrap();
        assert_eq!(thorough.find(hash, b"a").unwrap(), Some(fine));
        thorough.retain(&HashSet::from([hash])).unwrap();
        assert_eq!(quick.find(hash, b"a").unwrap(), Some(fine));
        thorough.retain(&HashSet::new()).unwrap();
        assert_eq!(quick.find(hash, b"a").unwrap(), None);
    }
}
