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
    /// `Unsupported` for a schema that no reader of version 2.5 reads; `Malformed` if it is no catalog.
    pub(super) fn read(database: &Database) -> Result<Self> {
        let columns = database.columns("catalog")?;
        if columns.is_empty() {
            return Err(Error::malformed(database.what(), "it has no table `catalog`"));
        }
        let version: f64 = if database.columns("properties")?.is_empty() {
            0.9
        } else {
            database.parse_property("schema")?.unwrap_or(1.0)
        };
        let is = |known: f64| (version - known).abs() < EPSILON;
        if version > 2.0 - EPSILON && !is(2.4) && !is(2.5) {
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
        let has_table = |name| Ok::<_, Error>(!database.columns(name)?.is_empty());
        Ok(Self {
            entry_columns,
            xattr_column: column("xattr", "NULL"),
            nested_size: database.columns("nested_catalogs")?.iter().any(|name| name == "size"),
            bind_mountpoints: has_table("bind_mountpoints")?,
            chunks: has_table("chunks")?,
            statistics: has_table("statistics")?,
        })
    }
}

/// Brings a catalog of schema 2.5 to the newest revision, in the reference's steps.
///
/// # Errors
/// `Unsupported` for another schema: such a catalog has to be migrated first.
pub(super) fn upgrade(database: &Database) -> Result<()> {
    let version: f64 = database.parse_property("schema")?.unwrap_or(0.0);
    if (version - 2.5).abs() > EPSILON {
        return Err(Error::Unsupported { what: format!("{}: writing catalog schema {version}", database.what()) });
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
