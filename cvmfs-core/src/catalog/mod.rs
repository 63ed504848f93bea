//! File catalogs: SQLite databases that list the entries of one subtree.
//!
//! A [`Catalog`] is a local file opened for reading; it never fetches. A [`WritableCatalog`] is a scratch copy that is
//! edited and becomes a new object. Where a subtree has a catalog of its own, the parent holds the directory as
//! *mountpoint*, the nested catalog holds it again as its *root*.
//!
//! Source: `cvmfs/catalog_sql.h`, `cvmfs/catalog.h`.

mod migration;
mod moving;
mod objects;
mod scan;
mod schema;
mod statistics;
mod sweeping;
mod writable;

use std::path::Path;

use crate::clock::UnixSeconds;
use crate::database::{Database, Text, bytes};
use crate::entry::{Chunk, Entry, Hardlinks, Mtime, RawKind, flag};
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash, ObjectId};
use crate::path::{PathHash, RepoPath, display};
use crate::storage::ReadStore;
use crate::xattr::Xattrs;
use schema::Shape;

pub(crate) use migration::{Legacy, Migrated, RootEntry};
pub use objects::NeededObject;
pub(crate) use scan::{Rows, ScannedChunk, ScannedRow};
pub(crate) use statistics::StoredCounters;
pub use statistics::{Counters, Statistics};
pub use writable::{Finish, FinishedCatalog, WritableCatalog};

/// Name of the file that makes its directory a nested catalog.
pub const MARKER: &[u8] = b".cvmfscatalog";
/// Name of the file that says that a nested catalog was made by automatic splitting.
pub const AUTO_MARKER: &[u8] = b".cvmfsautocatalog";

/// One row: an entry with its place in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Key of the path.
    pub path: PathHash,
    /// Key of the directory.
    pub parent: PathHash,
    /// Last component; empty for the repository root.
    pub name: Vec<u8>,
    /// Hard-link group and link count.
    pub hardlinks: Hardlinks,
    /// Everything else.
    pub entry: Entry,
}

impl Row {
    /// A row for an entry with one name (or a directory without sub-directories).
    pub fn new(path: &RepoPath, entry: Entry) -> Self {
        Self {
            path: path.path_hash(),
            parent: path.parent().map_or(PathHash::NULL, |parent| parent.path_hash()),
            name: path.name().to_vec(),
            hardlinks: Hardlinks { group: 0, count: if entry.is_directory() { 2 } else { 1 } },
            entry,
        }
    }
}

/// A reference from a catalog to one below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Where it is mounted.
    pub path: RepoPath,
    /// Its object; null if the catalog does not say, as the oldest ones.
    pub hash: ContentHash,
    /// Bytes of its database, uncompressed; unknown in old catalogs.
    pub size: Option<u64>,
}

/// A catalog opened for reading.
#[derive(Debug)]
pub struct Catalog {
    database: Database,
    shape: Shape,
}

impl Catalog {
    /// Fetches a catalog object and opens it; `scratch` is a directory for the inflated file.
    ///
    /// # Errors
    /// Those of the store; `HashMismatch`; `Malformed` and `Unsupported` for what is no catalog that we can read.
    pub fn fetch(store: &dyn ReadStore, hash: ContentHash, scratch: &Path) -> Result<Self> {
        Self::fetch_limited(store, hash, scratch, u64::MAX)
    }

    /// Like [`fetch`](Self::fetch), for a catalog of at most `limit` uncompressed bytes.
    ///
    /// # Errors
    /// Also `Malformed` if it is larger.
    pub fn fetch_limited(store: &dyn ReadStore, hash: ContentHash, scratch: &Path, limit: u64) -> Result<Self> {
        Self::new(Database::fetch_read_only(store, &ObjectId::catalog(hash), scratch, limit)?)
    }

    /// Opens an uncompressed catalog file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Database::open_read_only(path)?)
    }

    fn new(database: Database) -> Result<Self> {
        let shape = Shape::read(&database)?;
        Ok(Self { database, shape })
    }

    /// The revision of this catalog; that of the root catalog is the repository's.
    pub fn revision(&self) -> Result<u64> {
        Ok(self.parse_property("revision")?.unwrap_or(0))
    }

    /// When the catalog was written.
    pub fn last_modified(&self) -> Result<UnixSeconds> {
        Ok(UnixSeconds(self.parse_property("last_modified")?.unwrap_or(0)))
    }

    /// Bytes of the database, uncompressed.
    pub fn file_size(&self) -> Result<u64> {
        self.database.file_size()
    }

    /// The catalog that this one replaced; `None` for the first of its path.
    pub fn previous(&self) -> Result<Option<ContentHash>> {
        let hash = self.parse_property::<ContentHash>("previous_revision")?;
        Ok(hash.filter(|hash| !hash.is_null()))
    }

    /// Seconds that a client may wait before it asks for a new revision, if the catalog says.
    pub fn ttl(&self) -> Result<Option<u32>> {
        self.parse_property("TTL")
    }

    /// Where the catalog is mounted, if it says; `/` otherwise.
    pub fn root(&self) -> Result<RepoPath> {
        Ok(self.parse_property("root_prefix")?.unwrap_or_default())
    }

    /// Whether the catalog says where it is mounted, and of which revision it is: the oldest ones do not.
    pub(crate) fn has_place(&self) -> bool {
        self.shape.properties
    }

    /// Whether entries have link counts, and nested catalogs markers: those of before schema 2.1 have not.
    pub(crate) fn has_link_counts(&self) -> bool {
        self.shape.link_counts
    }

    fn parse_property<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        if self.shape.properties { self.database.parse_property(key) } else { Ok(None) }
    }

    /// The counters as stored; counted from the rows if the catalog is too old to have any.
    pub fn statistics(&self) -> Result<Statistics> {
        if self.shape.statistics {
            Statistics::read(&self.database, &self.shape)
        } else {
            Ok(Statistics { own: self.recount()?, subtree: Counters::default() })
        }
    }

    /// The counters as they are, right or wrong; `None` if the catalog is too old to have any.
    pub(crate) fn stored_counters(&self) -> Result<Option<StoredCounters>> {
        if self.shape.statistics { StoredCounters::read(&self.database, &self.shape).map(Some) } else { Ok(None) }
    }

    /// The counters of this catalog as its rows have them.
    pub fn recount(&self) -> Result<Counters> {
        Counters::recount(&self.database, &self.shape)
    }

    /// Finds one entry of this catalog.
    pub fn find(&self, path: &RepoPath) -> Result<Option<Row>> {
        find(&self.database, &self.shape, path.path_hash())
    }

    /// Lists a directory of this catalog, sorted by name; hidden entries included.
    ///
    /// Empty for a mountpoint: its entries are in the nested catalog.
    pub fn list(&self, directory: &RepoPath) -> Result<Vec<Row>> {
        list(&self.database, &self.shape, directory.path_hash())
    }

    /// All nested catalogs right below this one, in path order.
    pub fn nested(&self) -> Result<Vec<Nested>> {
        nested(&self.database, &self.shape, "nested_catalogs")
    }

    /// All bind mountpoints of this catalog, in path order.
    pub fn bind_mountpoints(&self) -> Result<Vec<Nested>> {
        if self.shape.bind_mountpoints {
            nested(&self.database, &self.shape, "bind_mountpoints")
        } else {
            Ok(Vec::new())
        }
    }

    /// The nested catalog mounted at exactly this path.
    pub fn nested_at(&self, path: &RepoPath) -> Result<Option<Nested>> {
        nested_at(&self.database, &self.shape, path)
    }
}

fn find(database: &Database, shape: &Shape, path: PathHash) -> Result<Option<Row>> {
    let sql = format!("SELECT {} FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2", shape.entry_columns);
    let row = |row: &rusqlite::Row<'_>| Ok(RawRow::read(row)?.interpret(database, shape));
    database.query_one(&sql, (path.first, path.second), row)?.transpose()
}

fn list(database: &Database, shape: &Shape, directory: PathHash) -> Result<Vec<Row>> {
    let sql = format!("SELECT {} FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2", shape.entry_columns);
    let row = |row: &rusqlite::Row<'_>| Ok(RawRow::read(row)?.interpret(database, shape));
    let rows = database.query(&sql, (directory.first, directory.second), row)?;
    let mut rows = rows.into_iter().collect::<Result<Vec<Row>>>()?;
    // They mostly come in order, which costs less to see here than in the database.
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn nested(database: &Database, shape: &Shape, table: &str) -> Result<Vec<Nested>> {
    let columns = nested_columns(shape);
    let rows = database.query(&format!("SELECT {columns} FROM {table} ORDER BY path"), [], nested_row)?;
    rows.into_iter().map(|row| interpret_nested(database, row)).collect()
}

fn nested_at(database: &Database, shape: &Shape, path: &RepoPath) -> Result<Option<Nested>> {
    let sql = format!("SELECT {} FROM nested_catalogs WHERE path = ?1", nested_columns(shape));
    let row = database.query_one(&sql, [Text(&path.to_catalog_text())], nested_row)?;
    row.map(|row| interpret_nested(database, row)).transpose()
}

fn nested_columns(shape: &Shape) -> String {
    let column = |has: bool, name: &'static str| if has { name } else { "NULL" };
    format!("path, {}, {}", column(shape.nested_hash, "sha1"), column(shape.nested_size, "size"))
}

type NestedRow = (Vec<u8>, Option<String>, Option<i64>);

fn nested_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<NestedRow> {
    Ok((bytes(row, 0)?.to_vec(), row.get(1)?, row.get(2)?))
}

fn interpret_nested(database: &Database, (path, hash, size): NestedRow) -> Result<Nested> {
    let path = RepoPath::from_bytes(&path)?;
    let hash = match hash {
        Some(hash) if !hash.is_empty() => hash.parse().map_err(|_| {
            Error::malformed(database.what(), format!("nested catalog {path} has an impossible hash {hash:?}"))
        })?,
        _ => ContentHash::null(Algorithm::Sha1),
    };
    // Zero stands for unknown, too.
    Ok(Nested { path, hash, size: size.and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0) })
}

/// A row as SQLite returns it.
struct RawRow<'a> {
    path: PathHash,
    parent: PathHash,
    hardlinks: i64,
    hash: &'a [u8],
    size: i64,
    mode: i64,
    mtime: i64,
    mtimens: Option<i64>,
    flags: i64,
    name: &'a [u8],
    symlink: &'a [u8],
    uid: i64,
    gid: i64,
    xattr: &'a [u8],
}

impl<'a> RawRow<'a> {
    fn read(row: &'a rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            path: PathHash { first: row.get(0)?, second: row.get(1)? },
            parent: PathHash { first: row.get(2)?, second: row.get(3)? },
            hardlinks: row.get(4)?,
            hash: bytes(row, 5)?,
            size: row.get(6)?,
            mode: row.get(7)?,
            mtime: row.get(8)?,
            mtimens: row.get(9)?,
            flags: row.get(10)?,
            name: bytes(row, 11)?,
            symlink: bytes(row, 12)?,
            uid: row.get(13)?,
            gid: row.get(14)?,
            xattr: bytes(row, 15)?,
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "32-bit numbers, device numbers and owners are kept in 64-bit columns as their bits"
    )]
    fn interpret(self, database: &Database, shape: &Shape) -> Result<Row> {
        let named = |error| match error {
            Error::Malformed { what, reason } => {
                Error::malformed(database.what(), format!("entry {:?}: {what}: {reason}", display(self.name)))
            }
            other => other,
        };
        let raw = RawKind {
            flags: self.flags as u32,
            mode: self.mode as u32,
            size: self.size as u64,
            hash: self.hash,
            symlink: self.symlink,
        };
        let chunks = if raw.flags & flag::CHUNKED != 0 && shape.chunks {
            read_chunks(database, self.path, &raw).map_err(named)?
        } else {
            Vec::new()
        };
        let kind = raw.interpret(chunks).map_err(named)?;
        let xattrs = if self.xattr.is_empty() { Xattrs::new() } else { Xattrs::parse(self.xattr).map_err(named)? };
        let nanoseconds = self.mtimens.map(|nanoseconds| nanoseconds.clamp(0, 999_999_999) as u32);
        let entry = Entry {
            kind,
            permissions: self.mode as u32 & 0o7777,
            uid: self.uid as u32,
            gid: self.gid as u32,
            mtime: Mtime { seconds: self.mtime, nanoseconds },
            xattrs,
            hidden: raw.flags & flag::HIDDEN != 0,
        };
        let hardlinks = Hardlinks::from_column(self.hardlinks);
        Ok(Row { path: self.path, parent: self.parent, name: self.name.to_vec(), hardlinks, entry })
    }
}

/// Reads the chunks of a file and checks that they cover it without gap or overlap.
fn read_chunks(database: &Database, path: PathHash, raw: &RawKind<'_>) -> Result<Vec<Chunk>> {
    let algorithm = raw.algorithm()?;
    let sql = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2 ORDER BY offset";
    let rows = database.query(sql, (path.first, path.second), |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, bytes(row, 2)?.to_vec()))
    })?;
    let malformed = |reason: &str| Error::malformed("chunks", reason);
    let number = |value| u64::try_from(value).map_err(|_| malformed("negative offset or size"));
    let mut chunks = Vec::with_capacity(rows.len());
    let mut end = 0_u64;
    for (offset, size, hash) in rows {
        let chunk =
            Chunk { offset: number(offset)?, size: number(size)?, hash: ContentHash::from_digest(algorithm, &hash)? };
        if chunk.offset != end {
            return Err(malformed("they overlap or leave a gap"));
        }
        end = end.checked_add(chunk.size).ok_or_else(|| malformed("larger than any file"))?;
        chunks.push(chunk);
    }
    if end != raw.size {
        return Err(malformed("they do not cover the file"));
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::entry::{EntryKind, FileObjects, Mount, Special};
    use crate::hash::Algorithm;

    /// Writes a catalog with the tables of an older schema: a root, a directory `d`, a file `f` and a nested catalog.
    fn old_catalog(directory: &Path, schema: &str, columns: &str, nested: &str, extra: &str) -> std::path::PathBuf {
        let path = directory.join("catalog");
        let connection = Connection::open(&path).unwrap();
        let properties = if schema.is_empty() {
            String::new()
        } else {
            format!(
                "CREATE TABLE properties (key TEXT PRIMARY KEY, value TEXT); INSERT INTO properties VALUES {schema};"
            )
        };
        connection
            .execute_batch(&format!(
                "{properties} CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, \
                 parent_2 INTEGER, {columns}, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2)); \
                 CREATE TABLE nested_catalogs ({nested}); {extra}"
            ))
            .unwrap();
        let columns: Vec<&str> = columns.split(", ").map(|column| column.split(' ').next().unwrap()).collect();
        for (at, mode, flags, size) in
            [("", 16877, 1, 4096), ("d", 16877, 3, 4096), ("f", 33188, 4, 12), ("p", 4480, 4, 0)]
        {
            let at: RepoPath = at.parse().unwrap();
            let parent = at.parent().map_or(PathHash::NULL, |parent| parent.path_hash());
            let value = |column: &&str| match *column {
                "hash" if flags == 4 && mode == 33188 => "x'ff049c626904064d641feca0e9936e5b211807c6'".to_owned(),
                "hash" | "xattr" | "mtimens" => "NULL".into(),
                "size" => size.to_string(),
                "mode" => mode.to_string(),
                "flags" => flags.to_string(),
                "name" => format!("'{}'", String::from_utf8_lossy(at.name())),
                "symlink" => "''".into(),
                _ => "1".into(),
            };
            let values: Vec<String> = columns.iter().map(value).collect();
            let PathHash { first, second } = at.path_hash();
            let sql = format!(
                "INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, {}) VALUES ({first}, {second}, {}, {}, {})",
                columns.join(", "),
                parent.first,
                parent.second,
                values.join(", ")
            );
            connection.execute(&sql, []).unwrap();
        }
        let nested =
            "INSERT INTO nested_catalogs (path, sha1) VALUES ('/d', 'da39a3ee5e6b4b0d3255bfef95601890afd80709')";
        connection.execute(nested, []).unwrap();
        path
    }

    const OLDEST: &str =
        "inode INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, flags INTEGER, name TEXT, symlink TEXT";
    const SCHEMA_2_4: &str = "hardlinks INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, flags INTEGER, \
                              name TEXT, symlink TEXT, uid INTEGER, gid INTEGER";
    const CHUNKS: &str =
        "CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB);";

    #[test]
    fn older_schemas_are_read() {
        for (schema, columns, nested, extra) in [
            ("", OLDEST, "path TEXT, sha1 TEXT", ""),
            ("('schema', '1.2'), ('revision', '3')", OLDEST, "path TEXT, sha1 TEXT", ""),
            ("('schema', '2.4'), ('revision', '3')", SCHEMA_2_4, "path TEXT, sha1 TEXT", CHUNKS),
            ("('schema', '2.5'), ('schema_revision', '0')", SCHEMA_2_4, "path TEXT, sha1 TEXT", CHUNKS),
            ("('schema', '2.5'), ('schema_revision', '1')", SCHEMA_2_4, "path TEXT, sha1 TEXT, size INTEGER", CHUNKS),
            ("('schema', '2.5'), ('schema_revision', '99')", SCHEMA_2_4, "path TEXT, sha1 TEXT, size INTEGER", CHUNKS),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let catalog = Catalog::open(&old_catalog(directory.path(), schema, columns, nested, extra)).unwrap();
            let names: Vec<_> = catalog.list(&RepoPath::root()).unwrap().into_iter().map(|row| row.name).collect();
            assert_eq!(names, [b"d", b"f", b"p"], "{schema}");
            let find = |at: &str| catalog.find(&at.parse().unwrap()).unwrap().unwrap();
            assert_eq!(find("d").entry.kind, EntryKind::Directory(Mount::Mountpoint));
            assert_eq!(find("p").entry.kind, EntryKind::Special(Special::Fifo));
            let file = find("f");
            assert_eq!((file.hardlinks.count, file.entry.mtime.nanoseconds), (1, None));
            let EntryKind::File(content) = file.entry.kind else { panic!("{schema}: no file") };
            let stored = Algorithm::Sha1.hash(&crate::compression::stock_zlib(b"hello world\n"));
            assert_eq!((content.size, content.objects), (12, FileObjects::Whole(stored)));
            let nested = catalog.nested().unwrap();
            assert_eq!((nested.len(), nested[0].size), (1, None));
            assert_eq!(catalog.statistics().unwrap().own.regular, 1);
        }
    }

    #[test]
    fn unknown_schemas_and_other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for schema in ["('schema', '2.6')", "('schema', '3.0')"] {
            let path = old_catalog(directory.path(), schema, SCHEMA_2_4, "path TEXT, sha1 TEXT", CHUNKS);
            assert!(matches!(Catalog::open(&path), Err(Error::Unsupported { .. })), "{schema}");
            std::fs::remove_file(path).unwrap();
        }
        let path = directory.path().join("other");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE other (x)").unwrap();
        assert!(matches!(Catalog::open(&path), Err(Error::Malformed { .. })));
        std::fs::write(&path, "no database").unwrap();
        assert!(Catalog::open(&path).is_err());
    }

    #[test]
    fn a_catalog_of_schema_2_5_is_upgraded_when_it_is_changed() {
        let directory = tempfile::tempdir().unwrap();
        let statistics = "CREATE TABLE statistics (counter TEXT PRIMARY KEY, value INTEGER);";
        let schema = "('schema', '2.5'), ('schema_revision', '0'), ('revision', '7')";
        let path =
            old_catalog(directory.path(), schema, SCHEMA_2_4, "path TEXT, sha1 TEXT", &format!("{CHUNKS}{statistics}"));
        let store = crate::storage::MemoryStore::new();
        let stored = crate::compression::stock_zlib(&std::fs::read(path).unwrap());
        let id = ObjectId::of(Algorithm::Sha1, crate::hash::ObjectKind::Catalog, &stored);
        crate::storage::WriteStore::put(&store, &id, &stored).unwrap();

        let mut catalog = WritableCatalog::fetch(&store, id.hash, RepoPath::root(), directory.path()).unwrap();
        let mut row = catalog.find(&"f".parse().unwrap()).unwrap().unwrap();
        row.entry.mtime.nanoseconds = Some(5);
        row.entry.xattrs.set(b"user.a", b"1").unwrap();
        catalog.replace(&row).unwrap();
        let finish = Finish { now: UnixSeconds(9), previous: id.hash, subtree: Counters::default(), revision: None };
        let finished = catalog.finish(&finish).unwrap();
        let catalog = Catalog::open(&finished.file).unwrap();
        assert_eq!(catalog.find(&"f".parse().unwrap()).unwrap(), Some(row));
        assert_eq!((catalog.revision().unwrap(), catalog.previous().unwrap()), (8, Some(id.hash)));
        assert_eq!(catalog.statistics().unwrap().own.xattr, 1);
        assert_eq!(catalog.bind_mountpoints().unwrap(), []);
    }
}
