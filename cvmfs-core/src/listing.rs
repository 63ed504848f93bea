//! Entries for the eyes of people and for JSON: what listings and comparisons show.

use serde::Serialize;

use crate::entry::{Entry, EntryKind, Mount, Special};
use crate::path::{RepoPath, display};

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The path, escaped where it is not printable.
    pub path: String,
    /// What the entry is; see [`kind_name`].
    pub kind: &'static str,
    /// Permission bits in octal.
    pub mode: String,
    /// Link count.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Plain bytes, length of a link target, or device number.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of that, if recorded.
    pub mtime_nanoseconds: Option<u32>,
    /// Target of a symbolic link.
    pub target: Option<String>,
    /// Objects of a file.
    pub objects: Vec<String>,
    /// Whether the directory has a catalog of its own.
    pub nested_catalog: bool,
    /// Names of extended attributes.
    pub xattrs: Vec<String>,
}

impl Listed {
    /// Describes an entry.
    pub fn new(path: &RepoPath, links: u32, entry: &Entry) -> Self {
        let objects = match &entry.kind {
            EntryKind::File(file) => file.parts().iter().map(|(id, _)| id.to_string()).collect(),
            _ => Vec::new(),
        };
        let target = match &entry.kind {
            EntryKind::Symlink { target } => Some(display(target)),
            _ => None,
        };
        Self {
            path: path.to_string(),
            kind: kind_name(&entry.kind),
            mode: format!("{:04o}", entry.permissions),
            links,
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size_column(),
            mtime: entry.mtime.seconds,
            mtime_nanoseconds: entry.mtime.nanoseconds,
            target,
            objects,
            nested_catalog: matches!(entry.kind, EntryKind::Directory(Mount::Root | Mount::Mountpoint)),
            xattrs: entry.xattrs.iter().map(|(key, _)| display(key)).collect(),
        }
    }
}

/// `directory`, `file`, `symlink`, `fifo`, `socket`, `character device` or `block device`.
pub fn kind_name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory(_) => "directory",
        EntryKind::File(_) => "file",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::Special(Special::Fifo) => "fifo",
        EntryKind::Special(Special::Socket) => "socket",
        EntryKind::Special(Special::CharacterDevice(_)) => "character device",
        EntryKind::Special(Special::BlockDevice(_)) => "block device",
    }
}
