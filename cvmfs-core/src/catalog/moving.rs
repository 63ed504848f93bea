//! Whole subtrees inside and between catalogs: remove, split off, merge back.

use std::path::Path;

use super::WritableCatalog;
use super::schema::COLUMNS;
use crate::database::{Text, bytes};
use crate::entry::{EntryKind, Mount, flag};
use crate::error::{Error, Result};
use crate::path::RepoPath;

/// A directory met on the way down through one catalog.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: RepoPath,
    /// Whether its content is in another catalog.
    pub(crate) mounted: bool,
}

impl WritableCatalog {
    /// Removes an entry with everything below it, nested catalogs included.
    pub fn remove(&mut self, path: &RepoPath) -> Result<()> {
        let Some(row) = self.find(path)? else { return Ok(()) };
        if let EntryKind::Directory(mount) = row.entry.kind {
            for directory in self.directories(path, mount)? {
                self.remove_content(&directory)?;
            }
        }
        self.delete_row(path.path_hash())
    }

    fn remove_content(&mut self, directory: &Directory) -> Result<()> {
        if directory.mounted {
            return self.remove_nested(&directory.path);
        }
        let key = directory.path.path_hash();
        let below = "parent_1 = ?1 AND parent_2 = ?2";
        self.database.execute(
            &format!("DELETE FROM chunks WHERE (md5path_1, md5path_2) IN (SELECT md5path_1, md5path_2 FROM catalog WHERE {below} AND flags & 64)"),
            (key.first, key.second),
        )?;
        self.database.execute(&format!("DELETE FROM catalog WHERE {below}"), (key.first, key.second))?;
        Ok(())
    }

    /// All directories of this catalog from `top` down, each before its sub-directories.
    pub(crate) fn directories(&self, top: &RepoPath, mount: Mount) -> Result<Vec<Directory>> {
        let mounted = |mount| matches!(mount, Mount::Mountpoint | Mount::Bind);
        let mut found = vec![Directory { path: top.clone(), mounted: mounted(mount) }];
        let mut next = 0;
        while let Some(Directory { path, mounted }) = found.get(next) {
            if !mounted {
                let key = path.path_hash();
                let sql =
                    "SELECT name, flags FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 AND flags & 1 ORDER BY name";
                let children = self
                    .database
                    .query(sql, (key.first, key.second), |row| Ok((bytes(row, 0)?.to_vec(), row.get::<_, u32>(1)?)))?;
                let path = path.clone();
                for (name, flags) in children {
                    let mounted = flags & (flag::MOUNTPOINT | flag::BIND) != 0;
                    found.push(Directory { path: path.child(&name)?, mounted });
                }
            }
            next += 1;
        }
        Ok(found)
    }

    /// Splits the tree below a directory off into a new catalog.
    ///
    /// The directory becomes a mountpoint here and the root there; nested catalogs below it are registered there from
    /// now on. Registering the new catalog here is left to the caller, who knows its hash later.
    ///
    /// # Errors
    /// `InvalidInput` if the path is no plain directory of this catalog.
    pub fn split(&mut self, path: &RepoPath, scratch: &Path) -> Result<Self> {
        let row = self.find(path)?.ok_or_else(|| Error::not_found(path.to_string()))?;
        if row.entry.kind != EntryKind::Directory(Mount::Plain) || path.is_root() {
            return Err(Error::invalid(path.to_string(), "only a plain directory can become a nested catalog"));
        }
        let mut child = Self::create(path.clone(), scratch)?;
        self.set_mount(path, Mount::Mountpoint)?;
        let directories = self.directories(path, Mount::Plain)?;
        let rows = format!("SELECT {COLUMNS} FROM main.catalog");
        self.with_attached(&mut child, |parent| {
            // The row itself: an entry does not know the size that others stored for a directory, and both rows must
            // say the same.
            let root = format!("INSERT INTO child.catalog ({COLUMNS}) {rows} WHERE md5path_1 = ?1 AND md5path_2 = ?2");
            parent.database.execute(&root, (row.path.first, row.path.second))?;
            for directory in &directories {
                parent.move_content(directory, &rows, "child", "main")?;
            }
            Ok(())
        })?;
        child.set_mount(path, Mount::Root)?;
        Ok(child)
    }

    /// Takes the rows of a nested catalog back into this one and its nested catalogs with them.
    ///
    /// The directory becomes a plain one; the caller drops the registration's object.
    pub fn merge(&mut self, mut child: Self) -> Result<()> {
        let path = child.mount.clone();
        let groups = self.next_hardlink_group()? - 1;
        let directories = child.directories(&path, Mount::Plain)?;
        let shifted = COLUMNS.replace(
            "hardlinks",
            &format!("CASE WHEN hardlinks >> 32 > 0 THEN hardlinks + ({groups} << 32) ELSE hardlinks END"),
        );
        self.remove_nested(&path)?;
        self.set_mount(&path, Mount::Plain)?;
        self.with_attached(&mut child, |parent| {
            for directory in &directories {
                parent.move_content(directory, &format!("SELECT {shifted} FROM child.catalog"), "main", "child")?;
            }
            parent.database.batch("INSERT OR REPLACE INTO main.bind_mountpoints SELECT * FROM child.bind_mountpoints")
        })
    }

    /// Moves the rows of one directory's content from one schema to the other.
    fn move_content(&self, directory: &Directory, select: &str, to: &str, from: &str) -> Result<()> {
        if directory.mounted {
            let path = directory.path.to_catalog_text();
            for table in ["nested_catalogs", "bind_mountpoints"] {
                let columns = "path, sha1, size";
                let copy = format!(
                    "INSERT OR REPLACE INTO {to}.{table} ({columns}) SELECT {columns} FROM {from}.{table} WHERE path = ?1"
                );
                self.database.execute(&copy, [Text(&path)])?;
                self.database.execute(&format!("DELETE FROM {from}.{table} WHERE path = ?1"), [Text(&path)])?;
            }
            return Ok(());
        }
        let key = directory.path.path_hash();
        let key = (key.first, key.second);
        let below = "parent_1 = ?1 AND parent_2 = ?2";
        let chunked = format!(
            "(md5path_1, md5path_2) IN (SELECT md5path_1, md5path_2 FROM {from}.catalog WHERE {below} AND flags & 64)"
        );
        let rows = format!("INSERT INTO {to}.catalog ({COLUMNS}) {select} WHERE {below} ORDER BY rowid");
        self.database.execute(&rows, key)?;
        self.database.execute(&format!("INSERT INTO {to}.chunks SELECT * FROM {from}.chunks WHERE {chunked}"), key)?;
        self.database.execute(&format!("DELETE FROM {from}.chunks WHERE {chunked}"), key)?;
        self.database.execute(&format!("DELETE FROM {from}.catalog WHERE {below}"), key)?;
        Ok(())
    }

    /// Runs `work` with the file of another catalog attached to this one's connection as `child`.
    fn with_attached(&mut self, child: &mut Self, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        // Neither file may be in a transaction while it is attached, and the other connection must let go of its file.
        child.database.batch("COMMIT; PRAGMA locking_mode = NORMAL; SELECT count(*) FROM properties;")?;
        self.database.batch("COMMIT;")?;
        let path = child.database.path().to_string_lossy().into_owned();
        self.database.execute("ATTACH DATABASE ?1 AS child", [path])?;
        self.database.batch("PRAGMA child.journal_mode = OFF; PRAGMA child.synchronous = OFF; BEGIN;")?;
        work(self)?;
        self.database.batch("COMMIT;")?;
        self.database.connection.flush_prepared_statement_cache();
        self.database.batch("DETACH DATABASE child; BEGIN;")?;
        child.database.batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN;")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Nested, Row, writable::Finish};
    use crate::clock::UnixSeconds;
    use crate::compression::Compression;
    use crate::entry::{Chunk, Entry, FileContent, FileObjects, Hardlinks, Mtime};
    use crate::hash::{Algorithm, ContentHash};

    fn directory() -> Entry {
        Entry::directory(0o755, 1, 2, Mtime::seconds(3))
    }

    fn file(content: &[u8]) -> Entry {
        let objects = FileObjects::Whole(Algorithm::Sha1.hash(content));
        let file = FileContent { size: 1, compression: Compression::Zlib, objects, external: false, direct_io: false };
        Entry { kind: EntryKind::File(file), ..directory() }
    }

    fn chunked() -> Entry {
        let hash = Algorithm::Sha1.hash(b"chunk");
        let chunks = vec![Chunk { offset: 0, size: 7, hash }, Chunk { offset: 7, size: 3, hash }];
        let objects = FileObjects::Chunked { chunks, bulk: None };
        let file = FileContent { size: 10, compression: Compression::None, objects, external: false, direct_io: false };
        Entry { kind: EntryKind::File(file), ..directory() }
    }

    fn path(text: &str) -> RepoPath {
        text.parse().unwrap()
    }

    /// A root catalog with `/a/b/{big,one,two}`, `/a/b/c/deep`, `/a/other`, and a mountpoint `/a/b/n`.
    fn sample(scratch: &Path) -> WritableCatalog {
        let mut catalog = WritableCatalog::create(RepoPath::root(), scratch).unwrap();
        for (at, entry) in [
            ("", directory()),
            ("a", directory()),
            ("a/b", directory()),
            ("a/b/big", chunked()),
            ("a/b/one", file(b"linked")),
            ("a/b/two", file(b"linked")),
            ("a/b/c", directory()),
            ("a/b/c/deep", file(b"deep")),
            ("a/b/n", Entry { kind: EntryKind::Directory(Mount::Mountpoint), ..directory() }),
            ("a/other", file(b"other")),
        ] {
            catalog.add(&Row::new(&path(at), entry)).unwrap();
        }
        for name in ["a/b/one", "a/b/two"] {
            catalog.set_hardlinks(&path(name), Hardlinks { group: 1, count: 2 }).unwrap();
        }
        let hash = Algorithm::Sha1.hash(b"nested");
        catalog.set_nested(&Nested { path: path("a/b/n"), hash, size: Some(5) }).unwrap();
        catalog
    }

    fn all_rows(catalog: &WritableCatalog, top: &str) -> Vec<(String, Row)> {
        let mut rows = Vec::new();
        let mut todo = vec![path(top)];
        while let Some(directory) = todo.pop() {
            for row in catalog.list(&directory).unwrap() {
                let at = directory.child(&row.name).unwrap();
                if row.entry.is_directory() {
                    todo.push(at.clone());
                }
                rows.push((at.to_string(), row));
            }
        }
        rows.sort_by(|left, right| left.0.cmp(&right.0));
        rows
    }

    #[test]
    fn a_split_moves_everything_below_and_a_merge_brings_it_back() {
        let scratch = tempfile::tempdir().unwrap();
        let mut parent = sample(scratch.path());
        parent.database.execute("UPDATE catalog SET size = 77 WHERE name = 'b'", []).unwrap();
        let before = all_rows(&parent, "");

        let child = parent.split(&path("a/b"), scratch.path()).unwrap();
        let left: Vec<String> = all_rows(&parent, "").into_iter().map(|(at, _)| at).collect();
        assert_eq!(left, ["/a", "/a/b", "/a/other"]);
        assert_eq!(parent.find(&path("a/b")).unwrap().unwrap().entry.flags(), 3);
        assert_eq!(parent.nested().unwrap(), []);
        let root = child.find(&path("a/b")).unwrap().unwrap();
        assert_eq!((root.entry.flags(), root.parent), (33, path("a").path_hash()));
        let moved: Vec<_> = before.iter().filter(|(at, _)| at.starts_with("/a/b/")).cloned().collect();
        assert_eq!(all_rows(&child, "a/b"), moved);
        assert_eq!(child.nested().unwrap().len(), 1);

        // Others store other sizes of directories; both rows of a transition point must have the same.
        let size = |catalog: &WritableCatalog| -> Option<i64> {
            let sql = "SELECT size FROM catalog WHERE name = 'b'";
            catalog.database.query_one(sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!((size(&parent), size(&child)), (Some(77), Some(77)));

        // A group of the same number in the parent must not be mixed up with the returning one.
        parent.set_hardlinks(&path("a/other"), Hardlinks { group: 1, count: 1 }).unwrap();
        parent.merge(child).unwrap();
        let expected: Vec<_> = before
            .into_iter()
            .map(|(at, mut row)| {
                if row.hardlinks.group == 1 {
                    row.hardlinks.group = 2;
                }
                if at == "/a/other" {
                    row.hardlinks.group = 1;
                }
                (at, row)
            })
            .collect();
        assert_eq!(all_rows(&parent, ""), expected);
        assert_eq!(parent.nested().unwrap()[0].path, path("a/b/n"));
    }

    #[test]
    fn removing_a_tree_leaves_nothing_of_it() {
        let scratch = tempfile::tempdir().unwrap();
        let mut catalog = sample(scratch.path());
        let before = catalog.count_rows().unwrap();
        catalog.remove(&path("a/b")).unwrap();
        assert_eq!(catalog.count_rows().unwrap(), before - 7);
        catalog.remove(&path("a/b")).unwrap();
        let left: Vec<String> = all_rows(&catalog, "").into_iter().map(|(at, _)| at).collect();
        assert_eq!(left, ["/a", "/a/other"]);
        assert_eq!(catalog.nested().unwrap(), []);
        let chunks: Option<i64> =
            catalog.database.query_one("SELECT count(*) FROM chunks", [], |row| row.get(0)).unwrap();
        assert_eq!(chunks, Some(0));
    }

    #[test]
    fn a_finished_catalog_reads_back_with_counters_from_its_rows() {
        let scratch = tempfile::tempdir().unwrap();
        let catalog = sample(scratch.path());
        let before = all_rows(&catalog, "");
        let previous = ContentHash::null(Algorithm::Sha1);
        let finish =
            Finish { now: UnixSeconds(9), previous, subtree: super::super::Counters::default(), revision: None };
        let finished = catalog.finish(&finish).unwrap();
        let read = Catalog::open(&finished.file).unwrap();
        assert_eq!(
            (read.revision().unwrap(), read.last_modified().unwrap(), read.previous().unwrap()),
            (1, UnixSeconds(9), None)
        );
        assert_eq!(read.statistics().unwrap(), finished.statistics);
        let own = finished.statistics.own;
        assert_eq!((own.regular, own.directory, own.chunked, own.chunks), (5, 5, 1, 2));
        assert_eq!((own.file_size, own.chunked_size, own.nested, own.xattr), (14, 10, 1, 0));
        for (at, row) in before {
            assert_eq!(read.find(&path(&at)).unwrap(), Some(row), "{at}");
        }
        // The layout that the reference's own SQLite writes.
        let header = std::fs::read(&finished.file).unwrap();
        assert_eq!(
            (&header[..16], &header[16..18], &header[18..20]),
            (&b"SQLite format 3\0"[..], &[4, 0][..], &[1, 1][..])
        );
    }
}
