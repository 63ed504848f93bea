//! Finding entries of a revision by what they are.

use cvmfs_core::catalog::Row;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::entry::{EntryKind, Special};
use cvmfs_core::error::Result;
use cvmfs_core::glob::Pattern;
use cvmfs_core::path::RepoPath;
use cvmfs_core::tree::Tree;

/// A type of entries, by the letters of `find -type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `f`
    File,
    /// `d`
    Directory,
    /// `l`
    Symlink,
    /// `p`
    Fifo,
    /// `s`
    Socket,
    /// `c`
    CharacterDevice,
    /// `b`
    BlockDevice,
}

/// What an entry must be; everything that is not said matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Criteria {
    /// The last component of the path.
    pub name: Option<Pattern>,
    /// The whole path with its leading slash; wildcards match slashes, too.
    pub path: Option<Pattern>,
    /// One of these types, if there are any.
    pub types: Vec<Type>,
    /// Least plain bytes of a regular file.
    pub min_size: Option<u64>,
    /// Most plain bytes of a regular file.
    pub max_size: Option<u64>,
    /// Last modified after this.
    pub newer: Option<UnixSeconds>,
    /// Last modified before this.
    pub older: Option<UnixSeconds>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Directories below the top, the top counts as 0.
    pub max_depth: Option<usize>,
}

impl Criteria {
    fn match_entry(&self, path: &RepoPath, row: &Row) -> bool {
        let entry = &row.entry;
        let size = match &entry.kind {
            EntryKind::File(file) => Some(file.size),
            _ => None,
        };
        let mtime = entry.mtime.seconds;
        let asked = |text: &Option<Pattern>, bytes: &[u8]| text.as_ref().is_none_or(|pattern| pattern.matches(bytes));
        asked(&self.name, path.name())
            && asked(&self.path, &[b"/", path.as_bytes()].concat())
            && (self.types.is_empty() || self.types.contains(&type_of(&entry.kind)))
            && self.min_size.is_none_or(|least| size.is_some_and(|size| size >= least))
            && self.max_size.is_none_or(|most| size.is_some_and(|size| size <= most))
            && self.newer.is_none_or(|time| mtime > time.0)
            && self.older.is_none_or(|time| mtime < time.0)
            && self.uid.is_none_or(|uid| uid == entry.uid)
            && self.gid.is_none_or(|gid| gid == entry.gid)
    }
}

fn type_of(kind: &EntryKind) -> Type {
    match kind {
        EntryKind::File(_) => Type::File,
        EntryKind::Directory(_) => Type::Directory,
        EntryKind::Symlink { .. } => Type::Symlink,
        EntryKind::Special(Special::Fifo) => Type::Fifo,
        EntryKind::Special(Special::Socket) => Type::Socket,
        EntryKind::Special(Special::CharacterDevice(_)) => Type::CharacterDevice,
        EntryKind::Special(Special::BlockDevice(_)) => Type::BlockDevice,
    }
}

/// Calls `found` for the top and everything below it that meets the criteria, a directory before its content.
pub fn find(
    tree: &mut Tree,
    top: &RepoPath,
    criteria: &Criteria,
    found: &mut dyn FnMut(&RepoPath, &Row) -> Result<()>,
) -> Result<()> {
    let depth_of = |path: &RepoPath| path.components().count();
    let deepest = criteria.max_depth.map(|depth| depth_of(top) + depth);
    tree.walk_into(top, &mut |path, row| {
        if criteria.match_entry(path, row) {
            found(path, row)?;
        }
        Ok(deepest.is_none_or(|deepest| depth_of(path) < deepest))
    })
}
