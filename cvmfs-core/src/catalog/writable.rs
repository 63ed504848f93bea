//! A catalog being edited in a scratch file.

use std::path::Path;

use tempfile::TempPath;

use super::schema::{self, Shape};
use super::statistics::{Counters, Statistics};
use super::{Catalog, Nested, Row, find, list, nested, nested_at};
use crate::clock::UnixSeconds;
use crate::database::{Database, Text};
use crate::entry::{Chunk, EntryKind, FileContent, FileObjects, Mount, flag};
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId};
use crate::path::{PathHash, RepoPath};
use crate::storage::ReadStore;

/// Share of free pages above which a catalog is written anew.
const MAX_FREE_PAGES: f64 = 0.20;
/// Share of unused row ids above which rows are numbered anew: clients derive inodes from row ids.
const MAX_WASTED_ROWS: f64 = 0.25;

/// A catalog opened for changes; nothing is kept of them before [`finish`](Self::finish).
#[derive(Debug)]
pub struct WritableCatalog {
    pub(super) database: Database,
    pub(super) shape: Shape,
    pub(super) mount: RepoPath,
    pub(super) changed: bool,
}

/// What a finished catalog is: a file to be stored, and what its parent must know.
#[derive(Debug)]
pub struct FinishedCatalog {
    /// The database file; goes away with the value.
    pub file: TempPath,
    /// Its counters.
    pub statistics: Statistics,
    /// Its revision.
    pub revision: u64,
}

/// What goes into the properties of a catalog when it is finished.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    /// The time of the commit.
    pub now: UnixSeconds,
    /// The catalog that this one replaces; null for a new one.
    pub previous: ContentHash,
    /// The sum of the counters of all catalogs below.
    pub subtree: Counters,
    /// A revision to set instead of counting up by one.
    pub revision: Option<u64>,
}

impl WritableCatalog {
    /// Creates an empty catalog for the tree below `mount`; the root row is the caller's to add.
    pub fn create(mount: RepoPath, scratch: &Path) -> Result<Self> {
        let database = Database::create(scratch, format!("new catalog {mount}"), schema::TABLES)?;
        database.set_property("schema", &schema::VERSION)?;
        database.set_property("schema_revision", &schema::REVISION)?;
        database.set_property("revision", &0)?;
        if !mount.is_root() {
            let prefix = mount.to_catalog_text();
            database.execute("INSERT INTO properties (key, value) VALUES ('root_prefix', ?1)", [Text(&prefix)])?;
        }
        let shape = Shape::read(&database)?;
        Ok(Self { database, shape, mount, changed: true })
    }

    /// Fetches a catalog for changes and brings its schema to the newest revision.
    pub fn fetch(store: &dyn ReadStore, hash: ContentHash, mount: RepoPath, scratch: &Path) -> Result<Self> {
        Self::upgraded(Database::fetch(store, &ObjectId::catalog(hash), scratch)?, mount)
    }

    /// The same for a catalog that was fetched to be read.
    pub(crate) fn copy_of(catalog: &Catalog, mount: RepoPath, scratch: &Path) -> Result<Self> {
        Self::upgraded(catalog.database.copy(scratch)?, mount)
    }

    fn upgraded(database: Database, mount: RepoPath) -> Result<Self> {
        schema::upgrade(&database, &Shape::read(&database)?)?;
        let shape = Shape::read(&database)?;
        Ok(Self { database, shape, mount, changed: false })
    }

    /// Where the catalog is mounted.
    pub fn mount(&self) -> &RepoPath {
        &self.mount
    }

    /// Whether anything was changed.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Sets a property such as `TTL` or `volatile`.
    pub fn set_property(&mut self, key: &str, value: &dyn std::fmt::Display) -> Result<()> {
        if self.database.property(key)?.as_deref() != Some(&value.to_string()) {
            self.changed = true;
            self.database.set_property(key, value)?;
        }
        Ok(())
    }

    /// Finds one entry of this catalog.
    pub fn find(&self, path: &RepoPath) -> Result<Option<Row>> {
        find(&self.database, &self.shape, path.path_hash())
    }

    /// Lists a directory of this catalog, sorted by name.
    pub fn list(&self, directory: &RepoPath) -> Result<Vec<Row>> {
        list(&self.database, &self.shape, directory.path_hash())
    }

    /// The names in a directory of this catalog, and whether each is a directory.
    pub fn names(&self, directory: &RepoPath) -> Result<Vec<(Vec<u8>, bool)>> {
        let key = directory.path_hash();
        let sql = "SELECT name, flags & 1 FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 ORDER BY name";
        self.database.query(sql, (key.first, key.second), |row| {
            Ok((crate::database::bytes(row, 0)?.to_vec(), row.get::<_, i64>(1)? != 0))
        })
    }

    /// The number of sub-directories of a directory.
    pub fn count_directories(&self, directory: &RepoPath) -> Result<u32> {
        let key = directory.path_hash();
        let sql = "SELECT count(*) FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 AND flags & 1";
        let count = self.database.query_one(sql, (key.first, key.second), |row| row.get(0))?;
        Ok(count.unwrap_or(0))
    }

    /// The number of rows.
    pub fn count_rows(&self) -> Result<u64> {
        let count: Option<i64> = self.database.query_one("SELECT count(*) FROM catalog", [], |row| row.get(0))?;
        Ok(count.unwrap_or(0).unsigned_abs())
    }

    /// Adds an entry at a path that has none.
    pub fn add(&mut self, row: &Row) -> Result<()> {
        let sql = "INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens, \
                   flags, name, symlink, uid, gid, xattr) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
        self.write(sql, row)
    }

    /// Changes an entry where it stands: the row id, and with it the client's inode, stays.
    pub fn replace(&mut self, row: &Row) -> Result<()> {
        self.delete_chunks(row.path)?;
        let sql = "UPDATE catalog SET parent_1 = ?3, parent_2 = ?4, hardlinks = ?5, hash = ?6, size = ?7, mode = ?8, mtime = ?9, \
                   mtimens = ?10, flags = ?11, name = ?12, symlink = ?13, uid = ?14, gid = ?15, xattr = ?16 \
                   WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        self.write(sql, row)
    }

    fn write(&mut self, sql: &str, row: &Row) -> Result<()> {
        self.changed = true;
        let entry = &row.entry;
        let target: &[u8] = match &entry.kind {
            EntryKind::Symlink { target } => target,
            _ => b"",
        };
        let hash = entry.hash_column();
        self.database.execute(
            sql,
            rusqlite::params![
                row.path.first,
                row.path.second,
                row.parent.first,
                row.parent.second,
                row.hardlinks.to_column(),
                hash.as_ref().map(|hash| &hash.digest()[..]),
                entry.size_column().cast_signed(),
                entry.mode(),
                entry.mtime.seconds,
                entry.mtime.nanoseconds,
                entry.flags(),
                Text(&row.name),
                Text(target),
                entry.uid,
                entry.gid,
                entry.xattrs.encode()?,
            ],
        )?;
        if let EntryKind::File(FileContent { objects: FileObjects::Chunked { chunks, .. }, .. }) = &entry.kind {
            self.put_chunks(row.path, chunks)?;
        }
        Ok(())
    }

    fn put_chunks(&self, path: PathHash, chunks: &[Chunk]) -> Result<()> {
        let sql = "INSERT INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?1, ?2, ?3, ?4, ?5)";
        for chunk in chunks {
            let (offset, size) = (chunk.offset.cast_signed(), chunk.size.cast_signed());
            self.database.execute(sql, (path.first, path.second, offset, size, &chunk.hash.digest()[..]))?;
        }
        Ok(())
    }

    fn delete_chunks(&self, path: PathHash) -> Result<()> {
        self.database
            .execute("DELETE FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2", (path.first, path.second))?;
        Ok(())
    }

    /// Sets the link count of a directory.
    pub fn set_link_count(&mut self, directory: &RepoPath, count: u32) -> Result<()> {
        let key = directory.path_hash();
        let sql = "UPDATE catalog SET hardlinks = ?3 WHERE md5path_1 = ?1 AND md5path_2 = ?2 AND hardlinks <> ?3";
        self.changed |= self.database.execute(sql, (key.first, key.second, count))? > 0;
        Ok(())
    }

    /// Sets how a directory takes part in the nesting of catalogs, in this catalog's row of it.
    pub fn set_mount(&mut self, directory: &RepoPath, mount: Mount) -> Result<()> {
        let bits = match mount {
            Mount::Plain => 0,
            Mount::Mountpoint => flag::MOUNTPOINT,
            Mount::Root => flag::ROOT,
            Mount::Bind => flag::BIND,
        };
        let mask = flag::MOUNTPOINT | flag::ROOT | flag::BIND;
        let key = directory.path_hash();
        let sql = "UPDATE catalog SET flags = (flags & ~?3) | ?4 WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        self.changed |= self.database.execute(sql, (key.first, key.second, mask, bits))? > 0;
        Ok(())
    }

    /// Removes one row with its chunks.
    pub(super) fn delete_row(&mut self, path: PathHash) -> Result<()> {
        self.delete_chunks(path)?;
        let sql = "DELETE FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        self.changed |= self.database.execute(sql, (path.first, path.second))? > 0;
        Ok(())
    }

    /// A number for a new group of hard links.
    pub fn next_hardlink_group(&self) -> Result<u32> {
        let largest: Option<Option<i64>> =
            self.database.query_one("SELECT max(hardlinks) >> 32 FROM catalog", [], |row| row.get(0))?;
        u32::try_from(largest.flatten().unwrap_or(0) + 1)
            .map_err(|_| Error::malformed(self.database.what(), "no number is left for another group of hard links"))
    }

    /// Sets the group and count of hard links of one entry.
    pub fn set_hardlinks(&mut self, path: &RepoPath, hardlinks: crate::entry::Hardlinks) -> Result<()> {
        let key = path.path_hash();
        let sql = "UPDATE catalog SET hardlinks = ?3 WHERE md5path_1 = ?1 AND md5path_2 = ?2 AND hardlinks <> ?3";
        self.changed |= self.database.execute(sql, (key.first, key.second, hardlinks.to_column()))? > 0;
        Ok(())
    }

    /// The names in `directory` that belong to a group of hard links.
    pub fn hardlink_group(&self, directory: &RepoPath, group: u32) -> Result<Vec<Vec<u8>>> {
        let key = directory.path_hash();
        let sql = "SELECT name FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 AND hardlinks >> 32 = ?3";
        self.database.query(sql, (key.first, key.second, group), |row| Ok(crate::database::bytes(row, 0)?.to_vec()))
    }

    /// All nested catalogs right below this one, in path order.
    pub fn nested(&self) -> Result<Vec<Nested>> {
        nested(&self.database, &self.shape, "nested_catalogs")
    }

    /// The nested catalog mounted at exactly this path.
    pub fn nested_at(&self, path: &RepoPath) -> Result<Option<Nested>> {
        nested_at(&self.database, &self.shape, path)
    }

    /// Registers a nested catalog, or its new version.
    pub fn set_nested(&mut self, child: &Nested) -> Result<()> {
        self.changed = true;
        let sql = "INSERT OR REPLACE INTO nested_catalogs (path, sha1, size) VALUES (?1, ?2, ?3)";
        let size = child.size.map(u64::cast_signed);
        self.database.execute(sql, (Text(&child.path.to_catalog_text()), child.hash.to_string(), size))?;
        Ok(())
    }

    /// Takes a nested catalog or bind mountpoint off the list; its directory is the caller's business.
    pub fn remove_nested(&mut self, path: &RepoPath) -> Result<()> {
        self.changed = true;
        for table in ["nested_catalogs", "bind_mountpoints"] {
            self.database.execute(&format!("DELETE FROM {table} WHERE path = ?1"), [Text(&path.to_catalog_text())])?;
        }
        Ok(())
    }

    /// Counts rows, sets the properties, packs the file if worth it, and closes it.
    pub fn finish(mut self, finish: &Finish) -> Result<FinishedCatalog> {
        let database = &mut self.database;
        let statistics = Statistics { own: Counters::recount(database, &self.shape)?, subtree: finish.subtree };
        statistics.write(database)?;
        let revision = finish.revision.unwrap_or(database.parse_property::<u64>("revision")?.unwrap_or(0) + 1);
        database.set_property("revision", &revision)?;
        database.set_property("last_modified", &finish.now.0)?;
        database.set_property("previous_revision", &finish.previous)?;
        compact(database)?;
        Ok(FinishedCatalog { file: self.database.finish()?, statistics, revision })
    }
}

/// Drops free pages if there are many, and numbers the rows anew in their order if few numbers are in use.
fn compact(database: &mut Database) -> Result<()> {
    let number = |database: &Database, sql: &str| -> Result<f64> {
        Ok(database.query_one(sql, [], |row| row.get::<_, Option<f64>>(0))?.flatten().unwrap_or(0.0))
    };
    let wasted = number(database, "SELECT 1.0 - CAST(count(*) AS REAL) / max(rowid) FROM catalog")?;
    if wasted > MAX_WASTED_ROWS {
        // To make the index anew is faster than to keep it up with each row.
        let sql = "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = 'idx_catalog_parent'";
        let index: Option<String> = database.query_one(sql, [], |row| row.get(0))?;
        database.batch(&format!(
            "DROP INDEX IF EXISTS idx_catalog_parent;
             CREATE TEMP TABLE ordered AS SELECT * FROM catalog ORDER BY rowid;
             DELETE FROM catalog;
             INSERT INTO catalog SELECT * FROM ordered ORDER BY rowid;
             DROP TABLE ordered;
             {};",
            index.unwrap_or_default()
        ))?;
    }
    let free = number(database, "SELECT CAST(freelist_count AS REAL) FROM pragma_freelist_count")?;
    let pages = number(database, "SELECT CAST(page_count AS REAL) FROM pragma_page_count")?;
    if wasted > MAX_WASTED_ROWS || free > MAX_FREE_PAGES * pages {
        database.vacuum()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, Mtime};
    use crate::hash::Algorithm;

    /// Row ids and free pages of a catalog of which only the last of 1000 rows are left. The first rows are large.
    fn after_removal(left: i64) -> (Vec<i64>, i64) {
        let scratch = tempfile::tempdir().unwrap();
        let mut catalog = WritableCatalog::create(RepoPath::root(), scratch.path()).unwrap();
        let directory = Entry::directory(0o755, 0, 0, Mtime::seconds(0));
        let link = Entry { kind: EntryKind::Symlink { target: vec![b'x'; 900] }, ..directory.clone() };
        let entry = |number| if number <= 240 { link.clone() } else { directory.clone() };
        let row = |number: i64| Row::new(&format!("d{number:04}").parse().unwrap(), entry(number));
        (1..=1000).for_each(|number| catalog.add(&row(number)).unwrap());
        for number in 1..=1000 - left {
            catalog.remove(&format!("d{number:04}").parse().unwrap()).unwrap();
        }
        let previous = ContentHash::null(Algorithm::Sha1);
        let finish = Finish { now: UnixSeconds(9), previous, subtree: Counters::default(), revision: None };
        let finished = catalog.finish(&finish).unwrap();
        let connection = rusqlite::Connection::open(&finished.file).unwrap();
        let mut rows = connection.prepare("SELECT rowid, name FROM catalog ORDER BY rowid").unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let rows: Vec<(i64, String)> = rows.map(Result::unwrap).collect();
        let names: Vec<String> = (1001 - left..=1000).map(|number| format!("d{number:04}")).collect();
        assert!(rows.iter().map(|(_, name)| name).eq(&names));
        let free = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
        (rows.into_iter().map(|(id, _)| id).collect(), free)
    }

    #[test]
    fn free_pages_go_and_rows_are_numbered_anew_if_it_is_worth_it() {
        let (ids, free) = after_removal(980);
        assert!(ids.into_iter().eq(21..=1000) && free > 0);
        let (ids, free) = after_removal(760);
        assert!(ids.into_iter().eq(241..=1000) && free == 0);
        let (ids, free) = after_removal(400);
        assert!(ids.into_iter().eq(1..=400) && free == 0);
    }
}
