//! What each change does to the rows that are there.

use super::row::{encode_chunks, key, subtree};
use super::{ChangeSet, Op, Pending, op};
use crate::change::{Change, Metadata};
use crate::entry::{Entry, EntryKind, FileContent, FileObjects, Mount};
use crate::error::{DatabaseContext as _, Error, Result};
use crate::path::RepoPath;

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

/// What a row said before a new change came.
struct Before {
    op: u8,
    cleared: bool,
    is_directory: bool,
}

impl ChangeSet {
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
}
