//! Change sets: the net effect of a stream of changes, on disk, without file data.
//!
//! Each path has one row that says what becomes of it; later changes overwrite earlier ones as they come in. Rows are
//! kept in tree order (a directory before its content, the content before the next sibling), which is the order in
//! which [`crate::commit`] applies them. A change set that was closed survives the process that made it, can be
//! inspected, and can be put together from several sources.

mod pins;
mod reading;
mod recording;
mod row;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use crate::change::Origin;
use crate::entry::Entry;
use crate::error::{DatabaseContext as _, Error, IoContext as _, Result};
use crate::hash::ContentHash;
use crate::path::RepoPath;
pub use pins::{FINISHED, PARTIAL, layers};
pub(crate) use pins::{Needs, change_sets, is_in_use, journals, needs};

/// Changes in one SQLite transaction: the rows that are written to disk together.
const BATCH: u32 = 10_000;

/// `key` is the path with NUL for slash, so that byte order is tree order.
const TABLES: &str = "
CREATE TABLE properties (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE changes (key BLOB PRIMARY KEY, op INTEGER, cleared INTEGER, inode INTEGER, target BLOB, mode INTEGER,
  uid INTEGER, gid INTEGER, mtime INTEGER, mtimens INTEGER, size INTEGER, flags INTEGER, hash BLOB, symlink BLOB,
  xattr BLOB, chunks BLOB, source INTEGER, offset INTEGER) WITHOUT ROWID;
CREATE TABLE sources (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE catalogs (key BLOB PRIMARY KEY) WITHOUT ROWID;
";

/// Key of the property with the root catalog that the maker looked at.
const BASE: &str = "base";
/// What the keys of the properties begin with that name other root catalogs whose objects rows have.
const NEEDS: &str = "needs ";

/// Keys of the properties that count what was stored, in the order of [`Stored`].
const STORED: [&str; 3] = ["objects_new", "objects_reused", "bytes_stored"];

/// What becomes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The directory stays as it is, but what is in it and not in the change set goes.
    Keep,
    /// A directory is made unless there is one.
    Ensure(Entry),
    /// The entry is put.
    Put(Entry),
    /// The entry becomes one more name of an entry that is in the repository.
    LinkToExisting(RepoPath),
    /// The entry is removed with everything below it.
    Remove,
}

/// One row of a change set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The path.
    pub path: RepoPath,
    /// What becomes of it.
    pub op: Op,
    /// What is in the directory now and not in the change set goes.
    pub cleared: bool,
    /// Rows of the same number are names of one file; `None` for a file with one name.
    pub inode: Option<i64>,
    /// Where the change comes from, if that is known.
    pub origin: Option<Origin>,
}

/// Numbers of rows by what becomes of the paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Summary {
    /// Directories that must exist.
    pub ensured: u64,
    /// Entries put.
    pub put: u64,
    /// Links to entries in the repository.
    pub links: u64,
    /// Entries removed.
    pub removed: u64,
}

/// What storing the content of the changes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// Objects that were not in the storage.
    pub objects_new: u64,
    /// Objects that were.
    pub objects_reused: u64,
    /// Stored bytes of new objects.
    pub bytes_stored: u64,
}

/// A change set in a file of its own.
pub struct ChangeSet {
    connection: Connection,
    path: PathBuf,
    /// Changes since the last commit to disk; `None` if there is to be one commit, at the end.
    uncommitted: Option<u32>,
    next_inode: i64,
    /// Whether there may be rows below a path that has none.
    has_gaps: bool,
    /// Names of sources by number, and which of them rows come from now, at which offset.
    sources: Vec<Arc<str>>,
    source: Option<usize>,
    offset: Option<u64>,
    tally: Option<Tally>,
    /// The directory that was found fit to have entries, and still is: the next path is most often in the same one.
    fit: Option<RepoPath>,
}

/// Numbers of entries that directories have for sure.
#[derive(Debug)]
struct Tally {
    /// Entries that the root directory may have, and any other.
    limits: (u64, u64),
    entries: HashMap<RepoPath, u64>,
}

impl fmt::Debug for ChangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChangeSet({})", self.path.display())
    }
}

mod op {
    pub(super) const KEEP: u8 = 0;
    pub(super) const ENSURE: u8 = 1;
    pub(super) const PUT: u8 = 2;
    pub(super) const LINK: u8 = 3;
    pub(super) const REMOVE: u8 = 4;
}

impl ChangeSet {
    /// Creates an empty change set in a new file; `base` is the root catalog that its maker looked at. It can be opened
    /// again once it was closed.
    pub fn create(path: &Path, base: ContentHash) -> Result<Self> {
        let set = Self::connect(path, OpenFlags::default())?;
        set.connection
            .execute_batch(&format!("PRAGMA page_size = 4096; PRAGMA journal_mode = MEMORY; {TABLES}"))
            .and_then(|()| set.connection.execute("INSERT INTO properties VALUES (?1, ?2)", [BASE, &base.to_string()]))
            .and_then(|_| set.connection.execute_batch("BEGIN"))
            .in_database(&path.display())?;
        Ok(set)
    }

    /// Opens a change set that was made earlier. What is added is lost unless the set is closed.
    pub fn open(path: &Path) -> Result<Self> {
        let existing = OpenFlags::default().difference(OpenFlags::SQLITE_OPEN_CREATE);
        let mut set = Self { uncommitted: None, has_gaps: true, ..Self::connect(path, existing)? };
        set.connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            .in_database(&path.display())?;
        let largest = "SELECT coalesce(max(inode), 0) FROM changes";
        set.next_inode =
            set.connection.query_row(largest, [], |row| row.get::<_, i64>(0)).in_database(&path.display())? + 1;
        set.sources = set.read_sources().in_database(&path.display())?;
        set.connection.execute_batch("BEGIN").in_database(&path.display())?;
        Ok(set)
    }

    /// Opens a change set that was closed, to look at it. Any number of processes may.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).in_database(&path.display())?;
        connection.set_prepared_statement_cache_capacity(64);
        let mut set = Self::on(connection, path);
        set.sources = set.read_sources().in_database(&path.display())?;
        Ok(set)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self> {
        let connection = Connection::open_with_flags(path, flags).in_database(&path.display())?;
        connection.set_prepared_statement_cache_capacity(64);
        // What is not closed is lost, with the process as with the machine: objects are not flushed yet, either.
        connection
            .execute_batch("PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -8192;")
            .in_database(&path.display())?;
        Ok(Self::on(connection, path))
    }

    fn on(connection: Connection, path: &Path) -> Self {
        Self {
            connection,
            path: path.to_owned(),
            uncommitted: Some(0),
            next_inode: 1,
            has_gaps: false,
            sources: Vec::new(),
            source: None,
            offset: None,
            tally: None,
            fit: None,
        }
    }

    fn read_sources(&self) -> rusqlite::Result<Vec<Arc<str>>> {
        let mut statement = self.connection.prepare("SELECT name FROM sources ORDER BY id")?;
        statement.query_map([], |row| Ok(row.get::<_, String>(0)?.into()))?.collect()
    }

    /// Says where the changes come from that are recorded from now on.
    pub fn set_origin(&mut self, origin: Option<&Origin>) -> Result<()> {
        self.offset = origin.and_then(|origin| origin.offset);
        self.source = match origin {
            None => None,
            Some(Origin { source, .. }) => match self.sources.last() {
                Some(last) if Arc::ptr_eq(last, source) => Some(self.sources.len() - 1),
                _ => {
                    self.sources.push(Arc::clone(source));
                    let id = self.sources.len() - 1;
                    self.execute("INSERT INTO sources (id, name) VALUES (?1, ?2)", (id.cast_signed(), &**source))?;
                    Some(id)
                }
            },
        };
        Ok(())
    }

    /// From now on refuses to put more entries into one directory than the catalogs of the root directory and of any
    /// other may have. All of them are in one catalog, whatever becomes of the directory.
    pub(crate) fn limit_directories(&mut self, root: u64, other: u64) {
        self.tally = Some(Tally { limits: (root, other), entries: HashMap::new() });
    }

    /// Counts a path that comes to the change set.
    fn count(&mut self, path: &RepoPath) -> Result<()> {
        let (Some(tally), Some(parent)) = (&mut self.tally, path.parent()) else { return Ok(()) };
        let limit = if parent.is_root() { tally.limits.0 } else { tally.limits.1 };
        let entries = tally.entries.entry(parent).or_default();
        *entries += 1;
        // The directory itself is an entry of the catalog, too.
        if *entries < limit {
            return Ok(());
        }
        let variable =
            if limit == tally.limits.0 { "CVMFS_ROOT_KCATALOG_LIMIT" } else { "CVMFS_NESTED_KCATALOG_LIMIT" };
        let reason = format!("its directory has more entries than a catalog may have, {limit} ({variable})");
        Err(Error::invalid(path.to_string(), reason))
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin { source: Arc::clone(&self.sources[self.source?]), offset: self.offset })
    }

    /// The root catalog that the maker of the changes looked at.
    pub fn base(&self) -> Result<ContentHash> {
        let sql = "SELECT value FROM properties WHERE key = ?1";
        self.connection.query_row(sql, [BASE], |row| row.get::<_, String>(0)).in_database(&self.path.display())?.parse()
    }

    /// Notes that objects of another revision are put, which must not be collected before.
    pub fn need_revision(&mut self, root: ContentHash) -> Result<()> {
        self.execute("INSERT OR IGNORE INTO properties VALUES (?1, '')", [format!("{NEEDS}{root}")])
    }

    /// The root catalogs of the revisions, apart from the base, whose objects are put.
    pub fn needed_revisions(&self) -> Result<Vec<ContentHash>> {
        let query = || -> rusqlite::Result<Vec<String>> {
            let sql = "SELECT substr(key, length(?1) + 1) FROM properties WHERE substr(key, 1, length(?1)) = ?1";
            self.connection.prepare_cached(sql)?.query_map([NEEDS], |row| row.get(0))?.collect()
        };
        query().in_database(&self.path.display())?.iter().map(|root| root.parse()).collect()
    }

    /// Writes down what the set is about, for whoever opens it again.
    pub fn set_about(&mut self, about: &str) -> Result<()> {
        self.execute("INSERT OR REPLACE INTO properties VALUES ('about', ?1)", [about])
    }

    /// What its maker wrote down.
    pub fn about(&self) -> Result<Option<String>> {
        use rusqlite::OptionalExtension as _;
        let sql = "SELECT value FROM properties WHERE key = 'about'";
        self.connection.query_row(sql, [], |row| row.get(0)).optional().in_database(&self.path.display())
    }

    /// Adds to what storing the content came to.
    pub fn add_stored(&mut self, stored: Stored) -> Result<()> {
        let Stored { objects_new, objects_reused, bytes_stored } = stored;
        let sql = "INSERT INTO properties VALUES (?1, ?2) \
                   ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + CAST(excluded.value AS INTEGER)";
        for (key, number) in STORED.into_iter().zip([objects_new, objects_reused, bytes_stored]) {
            self.execute(sql, (key, number.cast_signed()))?;
        }
        Ok(())
    }

    /// What storing the content came to.
    pub fn stored(&self) -> Result<Stored> {
        let number = |key: &str| {
            let sql = "SELECT coalesce(max(CAST(value AS INTEGER)), 0) FROM properties WHERE key = ?1";
            let number = self.connection.query_row(sql, [key], |row| row.get::<_, i64>(0));
            number.map(i64::cast_unsigned).in_database(&self.path.display())
        };
        let [objects_new, objects_reused, bytes_stored] = STORED.map(number);
        Ok(Stored { objects_new: objects_new?, objects_reused: objects_reused?, bytes_stored: bytes_stored? })
    }

    /// Ends the set: everything is on disk, and nothing else holds the file.
    pub fn close(self) -> Result<()> {
        self.connection.execute_batch("COMMIT").in_database(&self.path.display())?;
        self.connection.close().map_err(|(_, error)| error).in_database(&self.path.display())
    }

    /// The same, and it is there after a crash of the machine, too.
    pub fn close_durably(self) -> Result<()> {
        let path = self.path.clone();
        self.connection.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").in_database(&path.display())?;
        self.connection.close().map_err(|(_, error)| error).in_database(&path.display())?;
        File::open(&path).and_then(|file| file.sync_all()).at(&path)
    }

    /// Does something with the set and undoes all changes to it.
    pub(crate) fn undo_after<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let execute = |set: &Self, sql| set.connection.execute_batch(sql).in_database(&set.path.display());
        // A commit to disk would end what is to be undone.
        let uncommitted = self.uncommitted.take();
        execute(self, "SAVEPOINT work")?;
        let (sources, source, has_gaps) = (self.sources.len(), self.source, self.has_gaps);
        let result = work(self);
        execute(self, "ROLLBACK TO work; RELEASE work")?;
        self.uncommitted = uncommitted;
        self.sources.truncate(sources);
        self.fit = None;
        (self.source, self.has_gaps) = (source, has_gaps);
        result
    }

    fn execute(&mut self, sql: &str, parameters: impl rusqlite::Params) -> Result<()> {
        self.change_rows(sql, parameters).map(drop)
    }

    /// Runs a statement and returns the number of rows that it changed.
    fn change_rows(&mut self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize> {
        let run = || self.connection.prepare_cached(sql)?.execute(parameters);
        let rows = run().in_database(&self.path.display())?;
        if let Some(uncommitted) = &mut self.uncommitted {
            *uncommitted += 1;
            if *uncommitted == BATCH {
                *uncommitted = 0;
                self.connection.execute_batch("COMMIT; BEGIN").in_database(&self.path.display())?;
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
