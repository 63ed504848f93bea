//! Tables of a catalog, and what older ones lack.
//!
//! Source: `cvmfs/catalog_sql.cc`.

use crate::database::Database;
use crate::error::{Error, Result};

/// Schema of catalogs that we write.
pub(super) const VERSION: &str = "2.5";
/// Newest schema revision that we know; larger ones are backward compatible.
pub(super) const REVISION: u32 = 7;
/// Slack in comparing schema versions, which are stored as decimal numbers.
const EPSILON: f64 = 0.0005;
/// Number of counters in the newest schema.
const COUNTERS: i64 = 24;

/// All columns of `catalog`, in the order that they are made.
pub(super) const COLUMNS: &str = "md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens, flags, name, symlink, uid, gid, xattr";

/// All tables in the order of the reference. The order of columns matters: one place in the reference copies whole
/// rows between catalogs by position.
pub(super) const TABLES: &str = "
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, \
hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, \
uid INTEGER, gid INTEGER, xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB, \
CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size), \
FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog(md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
";

/// What a catalog file has, read from the file itself rather than from its version: upgrades append columns.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// The version of the schema; 0.9 without properties.
    version: f64,
    /// Whether the table of entries is that of the newest schema, columns in their order.
    newest_columns: bool,
    /// Whether there are properties.
    pub(super) properties: bool,
    /// Whether entries have link counts and groups of hard links, as since schema 2.1; before, they have inodes.
    pub(super) link_counts: bool,
    /// Whether entries have inodes.
    pub(super) inodes: bool,
    /// Whether entries have owners.
    pub(super) owners: bool,
    /// Whether `nested_catalogs` has a hash.
    pub(super) nested_hash: bool,
    /// The select list for entries, with constants for columns that the file lacks.
    pub(super) entry_columns: String,
    /// The column of extended attributes, or a constant.
    pub(super) xattr_column: &'static str,
    /// Whether `nested_catalogs` has a size.
    pub(super) nested_size: bool,
    /// Whether there are bind mountpoints.
    pub(super) bind_mountpoints: bool,
    /// Whether there are chunks.
    pub(super) chunks: bool,
    /// Whether there are counters.
    pub(super) statistics: bool,
}

impl Shape {
    /// Reads the shape of a catalog.
    ///
    /// # Errors
    /// `Unsupported` for a schema newer than 2.5; `Malformed` if it is no catalog.
    pub(super) fn read(database: &Database) -> Result<Self> {
        let columns = database.columns("catalog")?;
        if columns.is_empty() {
            return Err(Error::malformed(database.what(), "it has no table `catalog`"));
        }
        let properties = !database.columns("properties")?.is_empty();
        let version: f64 = if properties { database.parse_property("schema")?.unwrap_or(1.0) } else { 0.9 };
        if version > 2.5 + EPSILON {
            return Err(Error::Unsupported { what: format!("{}: catalog schema {version}", database.what()) });
        }
        let column = |name: &'static str, otherwise: &'static str| {
            if columns.iter().any(|column| column == name) { name } else { otherwise }
        };
        let entry_columns = [
            "md5path_1",
            "md5path_2",
            "parent_1",
            "parent_2",
            column("hardlinks", "1"),
            "hash",
            "size",
            "mode",
            "mtime",
            column("mtimens", "NULL"),
            "flags",
            "name",
            "symlink",
            column("uid", "0"),
            column("gid", "0"),
            column("xattr", "NULL"),
        ]
        .join(", ");
        let has = |name: &str| columns.iter().any(|column| column == name);
        let has_table = |name| Ok::<_, Error>(!database.columns(name)?.is_empty());
        let nested = database.columns("nested_catalogs")?;
        Ok(Self {
            version,
            newest_columns: columns.join(", ") == COLUMNS,
            properties,
            link_counts: has("hardlinks"),
            inodes: has("inode"),
            owners: has("uid") && has("gid"),
            nested_hash: nested.iter().any(|name| name == "sha1"),
            entry_columns,
            xattr_column: column("xattr", "NULL"),
            nested_size: nested.iter().any(|name| name == "size"),
            bind_mountpoints: has_table("bind_mountpoints")?,
            chunks: has_table("chunks")?,
            statistics: has_table("statistics")?,
        })
    }

    /// Whether the schema has all counters that its revision says; earlier ones had four, or none.
    pub(super) fn counts_everything(&self) -> bool {
        self.version > 2.5 - EPSILON
    }

    /// Whether a file of this shape has everything that the newest schema has, where the newest schema has it: what was
    /// upgraded in place has not.
    pub(super) fn is_newest(&self, database: &Database) -> Result<bool> {
        let tables = self.properties && self.nested_size && self.bind_mountpoints && self.chunks && self.statistics;
        if !tables || !self.newest_columns || !self.counts_everything() {
            return Ok(false);
        }
        let count = |sql: &str| Ok::<i64, Error>(database.query_one(sql, [], |row| row.get(0))?.unwrap_or(0));
        Ok(database.parse_property::<u32>("schema_revision")?.unwrap_or(0) >= REVISION
            && count("SELECT count(*) FROM statistics")? >= COUNTERS
            && count("SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name = 'idx_catalog_parent'")? > 0)
    }
}

/// Brings a catalog of schema 2.5 to the newest revision, in the reference's steps.
///
/// # Errors
/// `Unsupported` for another schema: such a catalog has to be migrated first.
pub(super) fn upgrade(database: &Database, shape: &Shape) -> Result<()> {
    if !shape.counts_everything() {
        let (what, version) = (database.what(), shape.version);
        let what = format!("{what}: to change a catalog of schema {version} (run `cvmfs-publish migrate`)");
        return Err(Error::Unsupported { what });
    }
    let revision: u32 = database.parse_property("schema_revision")?.unwrap_or(0);
    let steps = [
        "ALTER TABLE nested_catalogs ADD size INTEGER;",
        "ALTER TABLE catalog ADD xattr BLOB;",
        "",
        "CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));",
        "",
        "",
        "ALTER TABLE catalog ADD mtimens INTEGER;",
    ];
    for step in steps.iter().skip(revision as usize) {
        database.batch(step)?;
    }
    if revision < REVISION {
        database.set_property("schema_revision", &REVISION)?;
    }
    Ok(())
}
