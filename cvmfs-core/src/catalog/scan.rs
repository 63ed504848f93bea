//! Rows of a catalog as they are, right or wrong: for whoever judges them.

use rusqlite::types::ValueRef;

use super::Catalog;
use crate::database::bytes;
use crate::error::{DatabaseContext as _, Error, Result};
use crate::hash::{ObjectId, ObjectKind};
use crate::path::{PathHash, display};

/// A row of an entry, uninterpreted. Numbers that are NULL are 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScannedRow<'a> {
    pub(crate) path: PathHash,
    pub(crate) parent: PathHash,
    pub(crate) hardlinks: i64,
    /// Empty for NULL.
    pub(crate) hash: &'a [u8],
    pub(crate) size: i64,
    pub(crate) mode: i64,
    pub(crate) mtime: i64,
    pub(crate) mtimens: Option<i64>,
    pub(crate) flags: i64,
    /// `None` for NULL.
    pub(crate) name: Option<&'a [u8]>,
    /// `None` for NULL.
    pub(crate) symlink: Option<&'a [u8]>,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// `None` for NULL.
    pub(crate) xattr: Option<&'a [u8]>,
}

/// A row of a chunk, uninterpreted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScannedChunk<'a> {
    pub(crate) path: PathHash,
    pub(crate) offset: i64,
    pub(crate) size: i64,
    pub(crate) digest: &'a [u8],
}

/// Which rows are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    All,
    Directories,
}

impl Catalog {
    /// Visits rows, in no particular order.
    pub(crate) fn scan(&self, rows: Rows, visit: &mut dyn FnMut(ScannedRow<'_>) -> Result<()>) -> Result<()> {
        let condition = if rows == Rows::Directories { " WHERE flags & 1" } else { "" };
        let sql = format!("SELECT {} FROM catalog{condition}", self.shape.entry_columns);
        self.visit_scanned(&sql, |row| {
            let number = |column| number(row, column);
            visit(ScannedRow {
                path: PathHash { first: number(0)?, second: number(1)? },
                parent: PathHash { first: number(2)?, second: number(3)? },
                hardlinks: number(4)?,
                hash: content(row, 5)?.unwrap_or_default(),
                size: number(6)?,
                mode: number(7)?,
                mtime: number(8)?,
                mtimens: match row.get_ref(9) {
                    Ok(ValueRef::Null) => None,
                    _ => Some(number(9)?),
                },
                flags: number(10)?,
                name: content(row, 11)?,
                symlink: content(row, 12)?,
                uid: number(13)?,
                gid: number(14)?,
                xattr: content(row, 15)?,
            })
        })
    }

    /// Visits the chunks of all files; those of a file together, by offset.
    pub(crate) fn scan_chunks(&self, visit: &mut dyn FnMut(ScannedChunk<'_>) -> Result<()>) -> Result<()> {
        if !self.shape.chunks {
            return Ok(());
        }
        let sql = "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks ORDER BY md5path_1, md5path_2, offset";
        self.visit_scanned(sql, |row| {
            let path = PathHash { first: number(row, 0)?, second: number(row, 1)? };
            let digest = content(row, 4)?.unwrap_or_default();
            visit(ScannedChunk { path, offset: number(row, 2)?, size: number(row, 3)?, digest })
        })
    }

    /// Where in this catalog an object is needed; the path of one such entry, as far as it can be told.
    pub(crate) fn place_of(&self, id: &ObjectId) -> Result<Option<String>> {
        let table = if id.kind == ObjectKind::Chunk { "chunks" } else { "catalog" };
        let sql = format!("SELECT md5path_1, md5path_2 FROM {table} WHERE hash = ?1 LIMIT 1");
        let columns = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let Some(mut at) = self.database.query_one(&sql, [&id.hash.digest()[..]], columns)? else { return Ok(None) };
        let root = self.root()?;
        let (end, mut names) = (root.path_hash(), Vec::new());
        let above = "SELECT parent_1, parent_2, name FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        // No path has more names than that; rows that are wrong may lead in a circle.
        while at != (end.first, end.second) && names.len() < 4096 {
            let columns = |row: &rusqlite::Row<'_>| Ok(((row.get(0)?, row.get(1)?), bytes(row, 2)?.to_vec()));
            let Some((parent, name)) = self.database.query_one(above, at, columns)? else { break };
            names.push(name);
            at = parent;
        }
        names.reverse();
        let below = display(&names.join(&b'/'));
        Ok(Some(if root.is_root() { format!("/{below}") } else { format!("{root}/{below}") }))
    }

    fn visit_scanned(&self, sql: &str, mut visit: impl FnMut(&rusqlite::Row<'_>) -> Result<()>) -> Result<()> {
        let what = &self.database.what();
        let mut statement = self.database.connection.prepare(sql).in_database(what)?;
        let mut rows = statement.query([]).in_database(what)?;
        while let Some(row) = rows.next().in_database(what)? {
            visit(row)?;
        }
        Ok(())
    }
}

fn number(row: &rusqlite::Row<'_>, column: usize) -> Result<i64> {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(number)) => Ok(number),
        Ok(ValueRef::Null) => Ok(0),
        _ => Err(Error::malformed("catalog row", format!("column {column} is no number"))),
    }
}

fn content<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> Result<Option<&'a [u8]>> {
    match row.get_ref(column) {
        Ok(ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => Ok(Some(bytes)),
        Ok(ValueRef::Null) => Ok(None),
        _ => Err(Error::malformed("catalog row", format!("column {column} is neither text nor blob"))),
    }
}
