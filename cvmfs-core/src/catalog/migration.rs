//! Catalogs of older schemas, written anew with the tables of the newest one.
//!
//! Before schema 2.1, entries have inodes, and nothing says who owns them, how many links they have, or where nested
//! catalogs begin. That is put together from what there is, as the reference does it.
//!
//! Source: `cvmfs/swissknife_migrate.cc`, `cvmfs/catalog_sql.cc`.

use std::collections::HashSet;
use std::path::Path;

use super::schema::COLUMNS;
use super::{Catalog, MARKER, Row, WritableCatalog};
use crate::database::{Text, bytes};
use crate::entry::{Entry, flag, type_bits};
use crate::error::Result;
use crate::path::{PathHash, RepoPath, display};

/// What catalogs from before schema 2.1 do not say.
#[derive(Debug, Clone)]
pub(crate) struct Legacy {
    /// The owner and group of everything.
    pub(crate) owner: (u32, u32),
    /// The file that makes a directory a nested catalog.
    pub(crate) marker: Entry,
}

/// Link count, size, mode, time, owner and group of a root entry, as they stand in the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootEntry([i64; 6]);

/// A catalog with the newest schema, made of an older one.
#[derive(Debug)]
pub(crate) struct Migrated {
    pub(crate) catalog: WritableCatalog,
    /// What the operator should know.
    pub(crate) warnings: Vec<String>,
}

impl Catalog {
    /// Whether the catalog is as the newest schema makes it: all tables and counters, and the columns in their order.
    ///
    /// A catalog that was upgraded in place has its newer columns at the end, where the reference looks for others when it
    /// takes a nested catalog back into such a one.
    pub(crate) fn is_newest(&self) -> Result<bool> {
        self.shape.is_newest(&self.database)
    }

    /// Writes the catalog at `mount` anew, with the newest schema. Row ids stay.
    ///
    /// The link counts of mountpoints are in the catalogs below them if this one is from before link counts: see
    /// [`WritableCatalog::follow_root`].
    pub(crate) fn migrate(&self, mount: &RepoPath, legacy: &Legacy, scratch: &Path) -> Result<Migrated> {
        let mut new = WritableCatalog::create(mount.clone(), scratch)?;
        // A file cannot be attached within a transaction.
        new.database.batch("COMMIT;")?;
        new.database.execute("ATTACH DATABASE ?1 AS old", [self.database.path().to_string_lossy()])?;
        new.database.batch("BEGIN;")?;
        self.copy_tables(&new)?;
        if self.shape.inodes && !self.shape.link_counts {
            group_inodes(&new)?;
        }
        new.database.batch("COMMIT;")?;
        new.database.connection.flush_prepared_statement_cache();
        new.database.batch("DETACH DATABASE old; BEGIN;")?;

        new.mark_special_files()?;
        let mut warnings = Vec::new();
        if !self.shape.owners {
            let sql = "UPDATE catalog SET uid = ?1, gid = ?2";
            new.database.execute(sql, legacy.owner)?;
        }
        if !self.shape.link_counts {
            new.count_links()?;
            new.add_marker(&legacy.marker)?;
            warnings = new.drop_dangling_mountpoints()?;
        }
        Ok(Migrated { catalog: new, warnings })
    }

    /// Copies all rows from the attached file.
    fn copy_tables(&self, new: &WritableCatalog) -> Result<()> {
        let database = &new.database;
        let columns = &self.shape.entry_columns;
        database.batch(&format!(
            "INSERT INTO main.catalog (rowid, {COLUMNS}) SELECT rowid, {columns} FROM old.catalog ORDER BY rowid;
             UPDATE main.catalog SET name = coalesce(name, ''), symlink = coalesce(symlink, '')
             WHERE name IS NULL OR symlink IS NULL;"
        ))?;
        if self.shape.chunks {
            let columns = "md5path_1, md5path_2, offset, size, hash";
            database.batch(&format!("INSERT INTO main.chunks ({columns}) SELECT {columns} FROM old.chunks;"))?;
        }
        let size = if self.shape.nested_size { "size" } else { "NULL" };
        let hash = if self.shape.nested_hash { "sha1" } else { "NULL" };
        let copy = format!("(path, sha1, size) SELECT path, {hash}, {size} FROM old.");
        database.batch(&format!("INSERT INTO main.nested_catalogs {copy}nested_catalogs;"))?;
        if self.shape.bind_mountpoints {
            database.batch(&format!("INSERT INTO main.bind_mountpoints {copy}bind_mountpoints;"))?;
        }
        if self.shape.properties {
            database.batch(
                "INSERT OR REPLACE INTO main.properties (key, value) SELECT key, value FROM old.properties
                 WHERE key NOT IN ('schema', 'schema_revision', 'root_prefix');",
            )?;
        }
        Ok(())
    }
}

/// Makes groups of hard links of entries that share an inode. Those whose names are in several directories, or that
/// differ otherwise, stay files of their own, as link counts are only for one directory.
fn group_inodes(new: &WritableCatalog) -> Result<()> {
    new.database.batch(&format!(
        "CREATE TEMP TABLE links (number INTEGER PRIMARY KEY, inode INTEGER UNIQUE, names INTEGER);
         INSERT INTO links (inode, names) SELECT inode, count(*) FROM old.catalog
         WHERE flags & {directory} = 0 AND inode > 0 GROUP BY inode HAVING count(*) > 1
         AND min(parent_1) = max(parent_1) AND min(parent_2) = max(parent_2)
         AND min(hash) IS max(hash) AND count(hash) IN (0, count(*)) AND min(symlink) IS max(symlink)
         AND min(size) = max(size) AND min(mode) = max(mode) AND min(mtime) = max(mtime) AND min(flags) = max(flags)
         ORDER BY inode;
         UPDATE main.catalog SET hardlinks = links.number << 32 | links.names
         FROM old.catalog AS entry JOIN links ON links.inode = entry.inode
         WHERE entry.md5path_1 = main.catalog.md5path_1 AND entry.md5path_2 = main.catalog.md5path_2
         AND entry.flags & {directory} = 0;
         DROP TABLE links;",
        directory = flag::DIRECTORY
    ))
}

impl WritableCatalog {
    /// FIFOs, sockets and devices have a flag since schema revision 5.
    fn mark_special_files(&self) -> Result<()> {
        use type_bits::{DIRECTORY, FILE, MASK, SYMLINK};
        let sql = format!(
            "UPDATE catalog SET flags = flags | {} WHERE mode & {MASK} NOT IN ({FILE}, {SYMLINK}, {DIRECTORY})",
            flag::SPECIAL
        );
        self.database.batch(&sql)
    }

    /// Counts the links of directories: two, and one of each directory in them.
    fn count_links(&self) -> Result<()> {
        self.database.batch(&format!(
            "UPDATE catalog SET hardlinks = 2 + (SELECT count(*) FROM catalog AS entry
             WHERE entry.parent_1 = catalog.md5path_1 AND entry.parent_2 = catalog.md5path_2 AND entry.flags & {directory})
             WHERE flags & {directory}",
            directory = flag::DIRECTORY
        ))
    }

    fn add_marker(&mut self, marker: &Entry) -> Result<()> {
        let path = self.mount.child(MARKER)?;
        if self.mount.is_root() || self.find(&path)?.is_some() {
            return Ok(());
        }
        self.add(&Row::new(&path, marker.clone()))
    }

    /// Makes plain directories of mountpoints that no nested catalog is registered for; says which.
    fn drop_dangling_mountpoints(&mut self) -> Result<Vec<String>> {
        let registered: HashSet<PathHash> = self.nested()?.iter().map(|nested| nested.path.path_hash()).collect();
        let sql = "SELECT md5path_1, md5path_2, name FROM catalog WHERE flags & ?1";
        let mountpoints = self.database.query(sql, [flag::MOUNTPOINT], |row| {
            Ok((PathHash { first: row.get(0)?, second: row.get(1)? }, bytes(row, 2)?.to_vec()))
        })?;
        let mut warnings = Vec::new();
        for (path, name) in mountpoints.into_iter().filter(|(path, _)| !registered.contains(path)) {
            let sql = "UPDATE catalog SET flags = flags & ~?3 WHERE md5path_1 = ?1 AND md5path_2 = ?2";
            self.database.execute(sql, (path.first, path.second, flag::MOUNTPOINT))?;
            let (name, mount) = (display(&name), &self.mount);
            warnings.push(format!("catalog of {mount}: {name:?} was marked as a nested catalog and is none"));
        }
        Ok(warnings)
    }

    /// What the root entry of the catalog says, for [`follow_root`](Self::follow_root).
    pub(crate) fn root_entry(&self) -> Result<Option<RootEntry>> {
        let key = self.mount.path_hash();
        let sql = "SELECT hardlinks, size, mode, mtime, uid, gid FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        self.database.query_one(sql, (key.first, key.second), |row| {
            Ok(RootEntry([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?]))
        })
    }

    /// Makes a mountpoint say what the root entry of the catalog below it says.
    pub(crate) fn follow_root(&mut self, mountpoint: &RepoPath, root: &RootEntry) -> Result<()> {
        let (key, [hardlinks, size, mode, mtime, uid, gid]) = (mountpoint.path_hash(), root.0);
        let sql = "UPDATE catalog SET hardlinks = ?3, size = ?4, mode = ?5, mtime = ?6, uid = ?7, gid = ?8
                   WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        let parameters = (key.first, key.second, hardlinks, size, mode, mtime, uid, gid);
        self.changed |= self.database.execute(sql, parameters)? > 0;
        Ok(())
    }

    /// Notes the size of a nested catalog that is registered without.
    pub(crate) fn note_size(&mut self, nested: &super::Nested) -> Result<()> {
        let sql = "UPDATE nested_catalogs SET size = ?2 WHERE path = ?1 AND coalesce(size, 0) = 0";
        let size = nested.size.map(u64::cast_signed);
        self.database.execute(sql, (Text(&nested.path.to_catalog_text()), size))?;
        Ok(())
    }
}
