//! The revisions of a repository, from the newest back.

use cvmfs_core::error::{Error, Result};
use cvmfs_core::repository::{Repository, Selector};
use serde::Serialize;

use super::Named;

/// One revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// Its number.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// When it was written, in seconds since 1970.
    pub timestamp: i64,
    /// The same, readable.
    pub time: String,
    /// The names that it has.
    pub tags: Vec<Named>,
    /// The size of its tree.
    pub size: Size,
    /// The difference to the revision that it replaced; `None` if that is not in the storage any more.
    pub change: Option<Size>,
}

/// A size of a tree, or a difference of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Entries.
    pub entries: i64,
    /// Plain bytes of all files.
    pub bytes: i64,
    /// Catalogs.
    pub catalogs: i64,
}

/// Lists at most `limit` revisions, beginning with one and going on with the one that it replaced.
///
/// Ends at the first revision, or where the storage has no older ones any more.
pub fn log(repository: &Repository, from: &Selector, limit: usize) -> Result<Vec<LogEntry>> {
    let tags = repository.tags()?;
    let mut entries: Vec<LogEntry> = Vec::new();
    let mut next = Some(from.clone());
    while let Some(selector) = next {
        let mut tree = repository.tree(&selector)?;
        let root = tree.root();
        let catalog = match tree.root_catalog() {
            // Removed by a garbage collection.
            Err(Error::MissingObject { .. } | Error::NotFound { .. }) if !entries.is_empty() => break,
            catalog => catalog?,
        };
        let total = catalog.statistics()?.total();
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let size = Size {
            // Each nested root stands in its parent, too.
            entries: signed(total.entries()) - signed(total.nested),
            bytes: signed(total.file_size),
            catalogs: 1 + signed(total.nested),
        };
        if let Some(newer) = entries.last_mut() {
            newer.change = Some(newer.size.minus(size));
        }
        if entries.len() == limit {
            break;
        }
        let time = catalog.last_modified()?;
        let previous = catalog.previous()?;
        entries.push(LogEntry {
            revision: catalog.revision()?,
            root_hash: root.to_string(),
            timestamp: time.0,
            time: time.to_string(),
            tags: tags.iter().filter(|tag| tag.root == root).map(Named::from).collect(),
            size,
            // The first revision came out of nothing.
            change: previous.is_none().then_some(size),
        });
        next = previous.map(Selector::Root);
    }
    Ok(entries)
}

impl Size {
    fn minus(self, older: Self) -> Self {
        Self {
            entries: self.entries - older.entries,
            bytes: self.bytes - older.bytes,
            catalogs: self.catalogs - older.catalogs,
        }
    }
}
