//! Counters of whole subtrees, remembered by catalog hash.
//!
//! The `subtree_` counters of a catalog are the sum over the catalogs right below it. Those that a commit does not
//! touch would have to be fetched only to be asked; as a catalog never changes under its hash, its total is remembered
//! in a small database in the spool directory. It is a cache: it can be deleted at any time.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use crate::catalog::{Catalog, Counters};
use crate::error::Result;
use crate::hash::ContentHash;
use crate::storage::ReadStore;

/// The cache, or nothing if its file cannot be used.
#[derive(Debug)]
pub(super) struct Totals(Option<Connection>);

impl Totals {
    /// Opens the cache in the spool directory.
    pub(super) fn open(spool: &Path) -> Self {
        let path = spool.join("catalog-totals.db");
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(&path)?;
            connection.execute_batch(
                "PRAGMA synchronous = OFF; CREATE TABLE IF NOT EXISTS totals (hash TEXT PRIMARY KEY, counters TEXT) WITHOUT ROWID; BEGIN;",
            )?;
            Ok(connection)
        };
        match open() {
            Ok(connection) => Self(Some(connection)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot use the cache of catalog counters");
                Self(None)
            }
        }
    }

    /// The total of the tree from a catalog down: remembered, or read from the catalog and then remembered.
    pub(super) fn of(&mut self, store: &dyn ReadStore, hash: ContentHash, scratch: &Path) -> Result<Counters> {
        if let Some(known) = self.remembered(hash) {
            return Ok(known);
        }
        let total = Catalog::fetch(store, hash, scratch)?.statistics()?.total();
        self.remember(hash, total);
        Ok(total)
    }

    fn remembered(&self, hash: ContentHash) -> Option<Counters> {
        let connection = self.0.as_ref()?;
        let query = || -> rusqlite::Result<Option<String>> {
            let mut statement = connection.prepare_cached("SELECT counters FROM totals WHERE hash = ?1")?;
            statement.query_row([hash.to_string()], |row| row.get(0)).optional()
        };
        query().ok().flatten().and_then(|text| Counters::parse(&text))
    }

    /// Remembers a total; failing to only costs time later.
    pub(super) fn remember(&mut self, hash: ContentHash, total: Counters) {
        if let Some(connection) = &self.0 {
            let insert = "INSERT OR REPLACE INTO totals (hash, counters) VALUES (?1, ?2)";
            if let Err(error) = connection.execute(insert, (hash.to_string(), total.to_string())) {
                tracing::debug!(%error, "cannot remember the counters of a catalog");
            }
        }
    }
}

impl Drop for Totals {
    fn drop(&mut self) {
        if let Some(connection) = &self.0
            && let Err(error) = connection.execute_batch("COMMIT")
        {
            tracing::debug!(%error, "cannot keep the cache of catalog counters");
        }
    }
}
