//! SQLite files as the formats need them: catalogs, tag databases and reflogs share these few steps.
//!
//! Databases under construction are scratch files: no journal, no flush; what becomes of them is an object, and
//! that is stored with all care.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, ToSql};
use tempfile::TempPath;

use crate::compression::Compression;
use crate::error::{DatabaseContext as _, Error, IoContext as _, Result};
use crate::hash::ObjectId;
use crate::object;
use crate::storage::ReadStore;

/// Page size of new databases in bytes; the one of the SQLite that the reference bundles.
const PAGE_SIZE: u32 = 1024;

/// KiB of pages that one connection may hold in memory.
const CACHE_KIB: i64 = 32 * 1024;

/// Bytes, at its beginning, of a database that is only read that are mapped into memory instead of copied page by page.
const MAPPED: i64 = 64 << 20;

/// Bytes to be stored as SQLite text, valid UTF-8 or not: names and link targets are byte strings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// The bytes of a text or blob column, empty for NULL.
pub(crate) fn bytes<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    })
}

/// An open database file with the properties table that all formats have.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) connection: Connection,
    path: Location,
    what: String,
}

/// Where the file is, and whether it goes away with the value.
#[derive(Debug)]
enum Location {
    Temporary(TempPath),
    Kept(PathBuf),
}

impl Database {
    /// Creates an empty scratch database in `scratch` and runs `schema`; `what` names it in errors.
    pub(crate) fn create(scratch: &Path, what: impl Into<String>, schema: &str) -> Result<Self> {
        let path = tempfile::Builder::new().prefix("cvmfs-db-").tempfile_in(scratch).at(scratch)?.into_temp_path();
        let database = Self::open_scratch(path, what.into())?;
        database.batch(&format!("PRAGMA page_size = {PAGE_SIZE}; BEGIN;"))?;
        database.batch(schema)?;
        Ok(database)
    }

    /// Fetches a zlib-compressed database object into a scratch file that may be changed.
    pub(crate) fn fetch(store: &dyn ReadStore, id: &ObjectId, scratch: &Path) -> Result<Self> {
        let database = Self::open_scratch(fetch_file(store, id, scratch, u64::MAX)?, describe(store, id))?;
        database.batch("BEGIN;")?;
        Ok(database)
    }

    /// Copies a database that is only read into a scratch file that may be changed.
    pub(crate) fn copy(&self, scratch: &Path) -> Result<Self> {
        let path = tempfile::Builder::new().prefix("cvmfs-db-").tempfile_in(scratch).at(scratch)?.into_temp_path();
        fs::copy(self.path(), &path).at(&path)?;
        let database = Self::open_scratch(path, self.what.clone())?;
        database.batch("BEGIN;")?;
        Ok(database)
    }

    /// Fetches a zlib-compressed database object of at most `limit` plain bytes to be read only.
    pub(crate) fn fetch_read_only(store: &dyn ReadStore, id: &ObjectId, scratch: &Path, limit: u64) -> Result<Self> {
        let path = fetch_file(store, id, scratch, limit)?;
        let database = Self {
            connection: open_read_only(&path, &describe(store, id))?,
            path: Location::Temporary(path),
            what: describe(store, id),
        };
        database.check_readable()?;
        Ok(database)
    }

    /// Puts a database file that is stored plainly into a scratch file that may be changed.
    pub(crate) fn from_bytes(scratch: &Path, what: impl Into<String>, content: &[u8]) -> Result<Self> {
        let file = tempfile::Builder::new().prefix("cvmfs-db-").tempfile_in(scratch).at(scratch)?;
        fs::write(file.path(), content).at(file.path())?;
        let database = Self::open_scratch(file.into_temp_path(), what.into())?;
        database.batch("BEGIN;")?;
        Ok(database)
    }

    /// Opens a database file in place to be read only.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self> {
        let what = path.display().to_string();
        let database = Self { connection: open_read_only(path, &what)?, path: Location::Kept(path.to_owned()), what };
        database.check_readable()?;
        Ok(database)
    }

    fn open_scratch(path: TempPath, what: String) -> Result<Self> {
        let connection = Connection::open(&path).in_database(&what)?;
        connection.set_prepared_statement_cache_capacity(64);
        let database = Self { connection, path: Location::Temporary(path), what };
        // A journal would only protect a file that nobody looks at after a failure.
        database.batch(&format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -{CACHE_KIB};"
        ))?;
        Ok(database)
    }

    /// Fails early and clearly on a file that is no database.
    fn check_readable(&self) -> Result<()> {
        self.connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(())).in_database(&self.what)
    }

    /// How errors name the database.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Runs statements without parameters.
    pub(crate) fn batch(&self, sql: &str) -> Result<()> {
        self.connection.execute_batch(sql).in_database(&self.what)
    }

    /// Runs one statement and returns the number of changed rows.
    pub(crate) fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(parameters))
            .in_database(&self.what)
    }

    /// Runs a query and maps its rows.
    pub(crate) fn query<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        map: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let rows = || -> rusqlite::Result<Vec<T>> {
            self.connection.prepare_cached(sql)?.query_map(parameters, map)?.collect()
        };
        rows().in_database(&self.what)
    }

    /// Runs a query without parameters and visits its rows.
    pub(crate) fn visit(
        &self,
        sql: &str,
        mut visit: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let mut rows = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                visit(row)?;
            }
            Ok(())
        };
        rows().in_database(&self.what)
    }

    /// Runs a query for at most one row.
    pub(crate) fn query_one<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        map: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let row = || self.connection.prepare_cached(sql)?.query_row(parameters, map).optional();
        row().in_database(&self.what)
    }

    /// The text of a property.
    pub(crate) fn property(&self, key: &str) -> Result<Option<String>> {
        let sql = "SELECT CAST(value AS TEXT) FROM properties WHERE key = ?1";
        Ok(self.query_one(sql, [key], |row| row.get::<_, Option<String>>(0))?.flatten())
    }

    /// A property as a number or other parsable value; `None` if absent.
    pub(crate) fn parse_property<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.property(key)? else { return Ok(None) };
        let malformed = |_| Error::malformed(&self.what, format!("property {key} has an impossible value {text:?}"));
        text.parse().map(Some).map_err(malformed)
    }

    /// Sets a property.
    pub(crate) fn set_property(&self, key: &str, value: &dyn std::fmt::Display) -> Result<()> {
        self.execute("INSERT OR REPLACE INTO properties (key, value) VALUES (?1, ?2)", [key, &value.to_string()])?;
        Ok(())
    }

    /// The names of a table's columns; empty if there is no such table.
    pub(crate) fn columns(&self, table: &str) -> Result<Vec<String>> {
        self.query("SELECT name FROM pragma_table_info(?1)", [table], |row| row.get(0))
    }

    /// Writes a scratch database anew, without free pages: into another file, which is not copied back.
    pub(crate) fn vacuum(&mut self) -> Result<()> {
        let scratch = self.path().parent().unwrap_or(Path::new("."));
        let path = tempfile::Builder::new().prefix("cvmfs-db-").tempfile_in(scratch).at(scratch)?.into_temp_path();
        self.batch("COMMIT;")?;
        self.execute("VACUUM INTO ?1", [path.to_string_lossy()])?;
        *self = Self::open_scratch(path, self.what.clone())?;
        self.batch("BEGIN;")
    }

    /// Ends the changes and returns the file, which goes away when the value is dropped.
    pub(crate) fn finish(self) -> Result<TempPath> {
        self.batch("COMMIT;")?;
        let Self { connection, path, what } = self;
        connection.close().map_err(|(_, error)| Error::database(what, error))?;
        match path {
            Location::Temporary(path) => Ok(path),
            Location::Kept(path) => unreachable!("{} was opened read-only", path.display()),
        }
    }

    /// Ends the changes and returns the bytes of the file.
    pub(crate) fn into_bytes(self) -> Result<Vec<u8>> {
        let path = self.finish()?;
        fs::read(&path).at(&path)
    }

    /// Bytes of the file.
    pub(crate) fn file_size(&self) -> Result<u64> {
        fs::metadata(self.path()).at(self.path()).map(|metadata| metadata.len())
    }

    /// The path of the file, for attaching it to another connection.
    pub(crate) fn path(&self) -> &Path {
        match &self.path {
            Location::Temporary(path) => path,
            Location::Kept(path) => path,
        }
    }
}

fn open_read_only(path: &Path, what: &str) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).in_database(&what)?;
    connection.set_prepared_statement_cache_capacity(64);
    let settings = format!("PRAGMA temp_store = MEMORY; PRAGMA locking_mode = EXCLUSIVE; PRAGMA mmap_size = {MAPPED};");
    connection.execute_batch(&settings).in_database(&what)?;
    Ok(connection)
}

fn describe(store: &dyn ReadStore, id: &ObjectId) -> String {
    format!("{} {}", id.kind.noun(), store.describe(&(*id).into()))
}

/// Downloads, verifies and inflates an object into a scratch file.
///
/// # Errors
/// Also `Malformed` if it has more than `limit` plain bytes.
fn fetch_file(store: &dyn ReadStore, id: &ObjectId, scratch: &Path, limit: u64) -> Result<TempPath> {
    let mut reader = object::open(store, id, Compression::Zlib)?;
    let mut plain_size = 0;
    let mut file = tempfile::Builder::new().prefix("cvmfs-db-").tempfile_in(scratch).at(scratch)?;
    let mut block = vec![0; 64 * 1024];
    loop {
        let size = reader.read(&mut block).map_err(|error| object::read_error(&describe(store, id), error))?;
        if size == 0 {
            break;
        }
        plain_size += size as u64;
        if plain_size > limit {
            return Err(Error::malformed(describe(store, id), format!("larger than {limit} bytes when inflated")));
        }
        std::io::Write::write_all(&mut file, &block[..size]).at(file.path())?;
    }
    Ok(file.into_temp_path())
}
