//! What becomes of paths, as the rows say.

use std::sync::Arc;

use super::row::{key, path_of, read_entry};
use super::{ChangeSet, Op, Pending, Summary, op};
use crate::change::Origin;
use crate::database::bytes;
use crate::error::{DatabaseContext as _, Result};
use crate::path::RepoPath;

impl ChangeSet {
    /// What becomes of one path, if the change set says.
    pub fn get(&self, path: &RepoPath) -> Result<Option<Pending>> {
        Ok(self.select("key = ?1", [key(path)])?.pop())
    }

    /// Calls `visit` with all rows in tree order; it may ask for other rows meanwhile.
    pub fn for_each(&self, mut visit: impl FnMut(Pending) -> Result<()>) -> Result<()> {
        let mut page = self.rows_after(None)?;
        while let Some(last) = page.last().map(|pending| pending.path.clone()) {
            for pending in page {
                visit(pending)?;
            }
            page = self.rows_after(Some(&last))?;
        }
        Ok(())
    }

    /// Some of the rows behind a path, or the first, in tree order; none behind the last.
    pub fn rows_after(&self, path: Option<&RepoPath>) -> Result<Vec<Pending>> {
        const PAGE: usize = 1000;
        match path {
            None => self.select(&format!("1 ORDER BY key LIMIT {PAGE}"), []),
            Some(path) => self.select(&format!("key > ?1 ORDER BY key LIMIT {PAGE}"), [key(path)]),
        }
    }

    /// Whether anything below a path changes.
    pub fn has_rows_below(&self, path: &RepoPath) -> Result<bool> {
        let next = self.select("key > ?1 ORDER BY key LIMIT 1", [key(path)])?;
        Ok(next.iter().any(|pending| pending.path.starts_with(path)))
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
}
