//! The statistics database of a publisher: one row a publication, for `cvmfs_server print-stats` and its plots.
//!
//! It is a record for people: failing to write it costs nothing but the row.
//!
//! Source: `cvmfs/statistics_database.{h,cc}`.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::{Options, Outcome};
use crate::changeset::Stored;
use crate::clock::UnixSeconds;
use crate::error::{DatabaseContext as _, Error, Result};
use crate::path::RepositoryName;

/// How long another process may keep the file.
const PATIENCE: Duration = Duration::from_secs(1);

const TABLES: &str = "
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE publish_statistics (publish_id INTEGER PRIMARY KEY, start_time TEXT, finish_time TEXT, revision INTEGER,
  files_added INTEGER, files_removed INTEGER, files_changed INTEGER, chunks_added INTEGER, chunks_duplicated INTEGER,
  catalogs_added INTEGER, directories_added INTEGER, directories_removed INTEGER, directories_changed INTEGER,
  symlinks_added INTEGER, symlinks_removed INTEGER, symlinks_changed INTEGER, sz_bytes_added INTEGER,
  sz_bytes_removed INTEGER, sz_bytes_uploaded INTEGER, sz_catalog_bytes_uploaded INTEGER, success INTEGER);
CREATE TABLE gc_statistics (gc_id INTEGER PRIMARY KEY, start_time TEXT, finish_time TEXT, n_preserved_catalogs INTEGER,
  n_condemned_catalogs INTEGER, n_condemned_objects INTEGER, sz_condemned_bytes INTEGER,
  n_duplicate_delete_requests INTEGER, success INTEGER);
";

/// Adds the row of a publication and drops rows that are older than `days_to_keep`.
///
/// # Errors
/// `InvalidInput` if the file belongs to another repository, `Database` if it cannot be written.
pub(super) fn record(
    path: &Path,
    name: &RepositoryName,
    days_to_keep: u32,
    options: &Options,
    outcome: &Outcome,
    stored: Stored,
) -> Result<()> {
    let start = options.now;
    let finish = UnixSeconds(start.0.saturating_add_unsigned(options.started.elapsed().as_secs()));
    let connection = open(path, name)?;
    let entries = outcome.entries;
    let (files, directories, symlinks) = (entries.files, entries.directories, entries.symlinks);
    let numbers = [
        outcome.revision,
        files.added,
        files.removed,
        files.changed,
        stored.objects_new,
        stored.objects_reused,
        outcome.catalogs,
        directories.added,
        directories.removed,
        directories.changed,
        symlinks.added,
        symlinks.removed,
        symlinks.changed,
        entries.bytes_added,
        entries.bytes_removed,
        stored.bytes_stored,
        outcome.catalog_bytes,
        1,
    ];
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    // Both of the reference's: it compares them as days, and prints them.
    let sql = format!("INSERT INTO publish_statistics VALUES (NULL, ?1, ?2, {})", numbers.join(", "));
    let oldest = UnixSeconds(start.0 - i64::from(days_to_keep) * 86_400).date_and_time();
    connection
        .execute(&sql, [start.date_and_time(), finish.date_and_time()])
        .and_then(|_| connection.execute("DELETE FROM publish_statistics WHERE start_time < ?1", [oldest]))
        .in_database(&path.display())?;
    Ok(())
}

fn open(path: &Path, name: &RepositoryName) -> Result<Connection> {
    let connect = || -> rusqlite::Result<(Connection, String)> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        let is_new = !connection.prepare("SELECT 1 FROM sqlite_master")?.exists([])?;
        if is_new {
            let properties = [("schema", "1.0"), ("schema_revision", "4"), ("repo_name", name.as_str())];
            connection.execute_batch(&format!("BEGIN;{TABLES}"))?;
            for property in properties {
                connection.execute("INSERT INTO properties VALUES (?1, ?2)", property)?;
            }
            connection.execute_batch("COMMIT")?;
        }
        let owner = "SELECT value FROM properties WHERE key = 'repo_name'";
        let owner = connection.query_row(owner, [], |row| row.get(0))?;
        Ok((connection, owner))
    };
    let (connection, owner) = connect().in_database(&path.display())?;
    if owner != name.as_str() {
        return Err(Error::invalid(path.display().to_string(), format!("it has the statistics of {owner}")));
    }
    Ok(connection)
}
