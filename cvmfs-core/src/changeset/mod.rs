//! Change sets: the net effect of a stream of changes, on disk, without file data.
//!
//! Each path has one row that says what becomes of it; later changes overwrite earlier ones as they come in. Rows are
//! kept in tree order (a directory before its content, the content before the next sibling), which is the order in
//! which [`crate::commit`] applies them. A change set that was closed survives the process that made it, can be
//! inspected, and can be put together from several sources.

mod row;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use crate::change::{Change, Metadata, Origin};
use crate::database::bytes;
use crate::entry::{Entry, EntryKind, FileContent, FileObjects, Mount};
use crate::error::{DatabaseContext as _, Error, IoContext as _, Result};
use crate::hash::ContentHash;
use crate::path::RepoPath;
use row::{encode_chunks, key, path_of, read_entry, subtree};

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

macro_rules! insert {
    ($on_conflict:literal) => {
        concat!(
            "INSERT OR ",
            $on_conflict,
            " INTO changes (key, op, cleared, inode, mode, uid, gid, mtime, mtimens, size, flags, hash, symlink, xattr, ",
            "chunks, source, offset) ",
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"
        )
    };
}

/// Adds a row at a path that has none; leaves one that is there.
const INSERT_NEW: &str = insert!("IGNORE");
/// Puts a row, whatever is there.
const INSERT_OR_REPLACE: &str = insert!("REPLACE");

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

/// What a row said before a new change came.
struct Before {
    op: u8,
    cleared: bool,
    is_directory: bool,
}

impl ChangeSet {
    /// Creates an empty change set in a new file; `base` is the root catalog that its maker looked at. It can be opened
    /// again once it was closed.
    pub fn create(path: &Path, base: ContentHash) -> Result<Self> {
        let set = Self::connect(path, OpenFlags::default())?;
        set.connection
            .execute_batch(&format!("PRAGMA page_size = 4096; PRAGMA journal_mode = MEMORY; {TABLES}"))
            .and_then(|()| set.connection.execute("INSERT INTO properties VALUES ('base', ?1)", [base.to_string()]))
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

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self> {
        let connection = Connection::open_with_flags(path, flags).in_database(&path.display())?;
        connection.set_prepared_statement_cache_capacity(64);
        // What is not closed is lost, with the process as with the machine: objects are not flushed yet, either.
        connection
            .execute_batch("PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -8192;")
            .in_database(&path.display())?;
        Ok(Self {
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
        })
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
        let sql = "SELECT value FROM properties WHERE key = 'base'";
        self.connection.query_row(sql, [], |row| row.get::<_, String>(0)).in_database(&self.path.display())?.parse()
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
    pub(crate) fn close_durably(self) -> Result<()> {
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

    /// Adds a change without content to be read; see [`put`](Self::put) for those with content.
    pub fn record(&mut self, change: Change) -> Result<()> {
        self.record_one(change).map_err(|error| error.from_origin(self.origin().as_ref()))
    }

    fn record_one(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Put { path, metadata, content } => {
                let kind = content
                    .into_kind()
                    .ok_or_else(|| Error::invalid(path.to_string(), "content must be stored before it is recorded"))?;
                self.write_entry(&path, op::PUT, &metadata.into_entry(kind), None)
            }
            Change::Link { path, target } => self.link(&path, &target),
            Change::Ensure { path, metadata } => self.ensure(&path, metadata),
            Change::Remove { path } => self.remove(&path),
            Change::Clear { path } => self.clear(&path),
            Change::Whiteout { path } => self.white_out(&path),
            Change::Opaque { path } => self.hide_content(&path),
        }
    }

    /// Puts an entry whose content, if it is a file, is stored.
    pub fn put(&mut self, path: &RepoPath, entry: &Entry) -> Result<()> {
        self.write_entry(path, op::PUT, entry, None).map_err(|error| error.from_origin(self.origin().as_ref()))
    }

    /// Asks for a nested catalog at a directory, unless it has one or goes.
    pub fn want_catalog(&mut self, path: &RepoPath) -> Result<()> {
        self.execute("INSERT OR IGNORE INTO catalogs (key) VALUES (?1)", [key(path)])
    }

    /// The directories that nested catalogs are wanted for, in tree order.
    pub fn wanted_catalogs(&self) -> Result<Vec<RepoPath>> {
        let query = || -> rusqlite::Result<Vec<Vec<u8>>> {
            self.connection
                .prepare_cached("SELECT key FROM catalogs ORDER BY key")?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        query().in_database(&self.path.display())?.iter().map(|key| path_of(key)).collect()
    }

    fn ensure(&mut self, path: &RepoPath, metadata: Metadata) -> Result<()> {
        let entry = metadata.into_entry(EntryKind::Directory(Mount::Plain));
        match self.before(path)? {
            Some(Before { op: op::ENSURE | op::PUT, is_directory: true, .. }) => Ok(()),
            Some(Before { op: op::PUT | op::LINK, .. }) => Err(Error::invalid(
                path.to_string(),
                "it is put as something else than a directory, but has entries below it",
            )),
            // Nothing is left that could stay as it is.
            Some(Before { op: op::REMOVE, .. }) => self.write_entry(path, op::PUT, &entry, None),
            None if self.is_gone(path)? => self.write_entry(path, op::PUT, &entry, None),
            None | Some(_) => self.write_entry(path, op::ENSURE, &entry, None),
        }
    }

    /// Whether what the repository has at a path without row goes with a directory above it.
    fn is_gone(&self, path: &RepoPath) -> Result<bool> {
        for ancestor in path.ancestors() {
            if let Some(Before { op, cleared, is_directory }) = self.before(&ancestor)?
                && (cleared || op == op::REMOVE || !is_directory)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn link(&mut self, path: &RepoPath, target: &RepoPath) -> Result<()> {
        if path == target {
            return Err(Error::invalid(path.to_string(), "it cannot be a hard link to itself"));
        }
        match self.get(target)? {
            Some(Pending { op: Op::Put(entry), inode, .. }) if !entry.is_directory() => {
                let inode = match inode {
                    Some(inode) => inode,
                    None => self.assign_inode(target)?,
                };
                self.write_entry(path, op::PUT, &entry, Some(inode))
            }
            Some(Pending { op: Op::LinkToExisting(first), .. }) => self.write_link(path, &first),
            Some(Pending { op: Op::Put(_) | Op::Ensure(_) | Op::Keep, .. }) => {
                Err(Error::invalid(path.to_string(), format!("hard link to the directory {target}")))
            }
            Some(Pending { op: Op::Remove, .. }) => {
                Err(Error::invalid(path.to_string(), format!("hard link to {target}, which is removed")))
            }
            None if self.is_gone(target)? => {
                Err(Error::invalid(path.to_string(), format!("hard link to {target}, which does not exist")))
            }
            None => self.write_link(path, target),
        }
    }

    fn write_link(&mut self, path: &RepoPath, target: &RepoPath) -> Result<()> {
        self.make_way(path)?;
        let sql = "INSERT OR REPLACE INTO changes (key, op, cleared, target, source, offset) \
                   VALUES (?1, ?2, 0, ?3, ?4, ?5)";
        self.execute(sql, (key(path), op::LINK, target.as_bytes(), self.source_column(), self.offset_column()))
    }

    fn remove(&mut self, path: &RepoPath) -> Result<()> {
        if path.is_root() {
            return Err(Error::invalid("/", "the root directory cannot be removed"));
        }
        self.make_way(path)?;
        let sql = "INSERT OR REPLACE INTO changes (key, op, cleared, source, offset) VALUES (?1, ?2, 0, ?3, ?4)";
        self.execute(sql, (key(path), op::REMOVE, self.source_column(), self.offset_column()))
    }

    fn clear(&mut self, path: &RepoPath) -> Result<()> {
        self.mark_cleared(path)?;
        self.delete_below(path)
    }

    /// What a directory has in the repository goes, but for what the change set mentions.
    fn mark_cleared(&mut self, path: &RepoPath) -> Result<()> {
        match self.before(path)? {
            None if self.is_gone(path)? => Ok(()),
            None => {
                let sql = "INSERT INTO changes (key, op, cleared, source, offset) VALUES (?1, ?2, 1, ?3, ?4)";
                self.execute(sql, (key(path), op::KEEP, self.source_column(), self.offset_column()))
            }
            Some(Before { op: op::REMOVE, .. }) => Ok(()),
            Some(Before { is_directory: true, .. }) => {
                self.execute("UPDATE changes SET cleared = 1 WHERE key = ?1", [key(path)])
            }
            Some(_) => Err(Error::invalid(path.to_string(), "only a directory can be cleared")),
        }
    }

    fn white_out(&mut self, path: &RepoPath) -> Result<()> {
        let put_by_this_source =
            "SELECT 1 FROM changes WHERE key >= ?1 AND key < ?2 AND source IS ?3 AND op IN (?4, ?5, ?6)";
        let (from, to) = subtree(path);
        let is_put_again = self
            .connection
            .prepare_cached(put_by_this_source)
            .and_then(|mut select| select.exists((from, to, self.source_column(), op::ENSURE, op::PUT, op::LINK)))
            .in_database(&self.path.display())?;
        match self.before(path)? {
            Some(Before { is_directory: false, .. }) if is_put_again => Ok(()),
            _ if is_put_again => self.hide_content(path),
            _ => self.remove(path),
        }
    }

    /// Drops what earlier sources put below a directory, but for directories that this source has something in.
    fn hide_content(&mut self, path: &RepoPath) -> Result<()> {
        self.mark_cleared(path)?;
        let keep = "SELECT key, source IS ?3 FROM changes WHERE key > ?1 AND key < ?2 ORDER BY key DESC";
        let (from, to) = subtree(path);
        let rows: Vec<(Vec<u8>, bool)> = self
            .connection
            .prepare_cached(keep)
            .and_then(|mut statement| {
                let rows =
                    statement.query_map((from, to, self.source_column()), |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            })
            .in_database(&self.path.display())?;
        self.fit = None;
        let mut kept: Option<Vec<u8>> = None;
        for (key, is_ours) in rows {
            let is_above_kept = kept
                .as_ref()
                .is_some_and(|kept| kept.strip_prefix(&key[..]).is_some_and(|rest| rest.first() == Some(&0)));
            if is_ours || is_above_kept {
                kept = Some(key);
            } else {
                self.execute("DELETE FROM changes WHERE key = ?1", [key])?;
            }
        }
        Ok(())
    }

    /// Puts one entry under several names.
    pub(crate) fn put_linked(&mut self, names: &std::collections::BTreeSet<RepoPath>, entry: &Entry) -> Result<()> {
        let inode = self.next_inode;
        self.next_inode += 1;
        names.iter().try_for_each(|name| self.write_entry(name, op::PUT, entry, Some(inode)))
    }

    fn assign_inode(&mut self, path: &RepoPath) -> Result<i64> {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.execute("UPDATE changes SET inode = ?2 WHERE key = ?1", (key(path), inode))?;
        Ok(inode)
    }

    /// Prepares a path for something that has nothing below it.
    fn make_way(&mut self, path: &RepoPath) -> Result<()> {
        self.check_ancestors(path)?;
        self.fit = None;
        self.delete_below(path)?;
        self.execute("DELETE FROM catalogs WHERE key = ?1", [key(path)])
    }

    /// Nothing can be below what the change set puts as a file.
    fn check_ancestors(&mut self, path: &RepoPath) -> Result<()> {
        if self.fit.as_ref().is_some_and(|fit| path.is_in(fit)) {
            return Ok(());
        }
        let Some(parent) = path.parent() else { return Ok(()) };
        match self.before(&parent)? {
            Some(Before { op: op::PUT | op::LINK, is_directory: false, .. }) => {
                return Err(Error::invalid(path.to_string(), format!("{parent} is not a directory")));
            }
            Some(_) => {}
            None => self.has_gaps |= !parent.is_root(),
        }
        self.fit = Some(parent);
        Ok(())
    }

    fn delete_below(&mut self, path: &RepoPath) -> Result<()> {
        self.fit = None;
        // Rows that go are not told apart: what is counted from here on is less than there is.
        if let Some(tally) = &mut self.tally {
            tally.entries.clear();
        }
        self.execute("DELETE FROM catalogs WHERE key > ?1 AND key < ?2", subtree(path))?;
        self.execute("DELETE FROM changes WHERE key > ?1 AND key < ?2", subtree(path))
    }

    fn write_entry(&mut self, path: &RepoPath, op: u8, entry: &Entry, inode: Option<i64>) -> Result<()> {
        self.check_ancestors(path)?;
        // Most paths come once. What is put there has nothing to make way for, unless there are rows below it.
        if (entry.is_directory() || !self.has_gaps) && self.write_row(INSERT_NEW, path, op, entry, inode, false)? {
            return self.count(path);
        }
        let before = self.before(path)?;
        if !entry.is_directory() {
            self.make_way(path)?;
        }
        if before.is_none() {
            self.count(path)?;
        }
        // A directory over something that was to go (or over a file that took the place of a directory) starts empty.
        let cleared = entry.is_directory()
            && before.is_some_and(|before| before.cleared || before.op == op::REMOVE || !before.is_directory);
        self.write_row(INSERT_OR_REPLACE, path, op, entry, inode, cleared).map(drop)
    }

    /// Writes a row with one of the two statements; returns whether it was written.
    fn write_row(
        &mut self,
        sql: &str,
        path: &RepoPath,
        op: u8,
        entry: &Entry,
        inode: Option<i64>,
        cleared: bool,
    ) -> Result<bool> {
        let (target, chunks): (&[u8], Vec<u8>) = match &entry.kind {
            EntryKind::Symlink { target } => (target, Vec::new()),
            EntryKind::File(FileContent { objects: FileObjects::Chunked { chunks, .. }, .. }) => {
                (b"", encode_chunks(chunks))
            }
            _ => (b"", Vec::new()),
        };
        let hash = entry.hash_column();
        let written = self.change_rows(
            sql,
            rusqlite::params![
                key(path),
                op,
                cleared,
                inode,
                entry.mode(),
                entry.uid,
                entry.gid,
                entry.mtime.seconds,
                entry.mtime.nanoseconds,
                entry.size_column().cast_signed(),
                entry.flags(),
                hash.as_ref().map(|hash| &hash.digest()[..]),
                target,
                entry.xattrs.encode()?,
                chunks,
                self.source_column(),
                self.offset_column(),
            ],
        )?;
        Ok(written > 0)
    }

    fn source_column(&self) -> Option<isize> {
        self.source.map(usize::cast_signed)
    }

    fn offset_column(&self) -> Option<i64> {
        self.offset.map(u64::cast_signed)
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

    fn before(&self, path: &RepoPath) -> Result<Option<Before>> {
        use rusqlite::OptionalExtension as _;
        let query = || -> rusqlite::Result<Option<Before>> {
            let sql = "SELECT op, cleared, flags FROM changes WHERE key = ?1";
            let map = |row: &rusqlite::Row<'_>| {
                let op = row.get(0)?;
                let flags: Option<u32> = row.get(2)?;
                let is_directory =
                    op == op::KEEP || flags.is_some_and(|flags| flags & crate::entry::flag::DIRECTORY != 0);
                Ok(Before { op, cleared: row.get(1)?, is_directory })
            };
            self.connection.prepare_cached(sql)?.query_row([key(path)], map).optional()
        };
        query().in_database(&self.path.display())
    }

    /// What becomes of one path, if the change set says.
    pub fn get(&self, path: &RepoPath) -> Result<Option<Pending>> {
        Ok(self.select("key = ?1", [key(path)])?.pop())
    }

    /// Calls `visit` with all rows in tree order.
    pub fn for_each(&self, mut visit: impl FnMut(Pending) -> Result<()>) -> Result<()> {
        // Pages of rows, so that the visitor may ask for other rows meanwhile.
        const PAGE: usize = 1000;
        let mut rows = self.select(&format!("1 ORDER BY key LIMIT {PAGE}"), [])?;
        while let Some(last) = rows.last().map(|pending| key(&pending.path)) {
            let is_last = rows.len() < PAGE;
            for pending in rows {
                visit(pending)?;
            }
            if is_last {
                return Ok(());
            }
            rows = self.select(&format!("key > ?1 ORDER BY key LIMIT {PAGE}"), [last])?;
        }
        Ok(())
    }

    /// The rows that link to entries of the repository, in tree order.
    pub(crate) fn links(&self) -> Result<Vec<Pending>> {
        self.select("op = ?1 ORDER BY key", [op::LINK])
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.select("1 LIMIT 1", [])?.is_empty())
    }

    /// Counts the rows.
    pub fn summary(&self) -> Result<Summary> {
        let count = |code: u8| {
            let sql = "SELECT count(*) FROM changes WHERE op = ?1";
            self.connection
                .query_row(sql, [code], |row| row.get::<_, i64>(0))
                .map(i64::unsigned_abs)
                .in_database(&self.path.display())
        };
        Ok(Summary {
            ensured: count(op::ENSURE)?,
            put: count(op::PUT)?,
            links: count(op::LINK)?,
            removed: count(op::REMOVE)?,
        })
    }

    fn select(&self, condition: &str, parameters: impl rusqlite::Params) -> Result<Vec<Pending>> {
        let sql = format!(
            "SELECT key, op, cleared, inode, target, mode, uid, gid, mtime, mtimens, size, flags, hash, symlink, xattr, chunks, \
             source, offset \
             FROM changes WHERE {condition}"
        );
        let query = || -> rusqlite::Result<Vec<Result<Pending>>> {
            self.connection.prepare_cached(&sql)?.query_map(parameters, |row| Ok(self.read_row(row)))?.collect()
        };
        query().in_database(&self.path.display())?.into_iter().collect()
    }

    fn read_row(&self, row: &rusqlite::Row<'_>) -> Result<Pending> {
        let context = "change set";
        let column = |index| bytes(row, index).in_database(&context);
        let number = |index| row.get::<_, Option<i64>>(index).in_database(&context);
        let path = path_of(column(0)?)?;
        let code: u8 = row.get(1).in_database(&context)?;
        let op = match code {
            op::KEEP => Op::Keep,
            op::REMOVE => Op::Remove,
            op::LINK => Op::LinkToExisting(RepoPath::from_bytes(column(4)?)?),
            op::ENSURE => Op::Ensure(read_entry(row)?),
            _ => Op::Put(read_entry(row)?),
        };
        let source = number(16)?.and_then(|id| self.sources.get(usize::try_from(id).ok()?));
        let offset = number(17)?.map(i64::cast_unsigned);
        let origin = source.map(|source| Origin { source: Arc::clone(source), offset });
        Ok(Pending { path, op, cleared: row.get(2).in_database(&context)?, inode: number(3)?, origin })
    }
}

#[cfg(test)]
mod tests;
