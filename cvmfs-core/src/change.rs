//! Changes: what every input is turned into before anything is stored.
//!
//! ```text
//! ChangeSource ─► pipeline ─► ChangeSet ─► commit
//!  (this file)
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::entry::{Entry, EntryKind, FileContent, Mount, Mtime, Special};
use crate::error::Result;
use crate::path::RepoPath;
use crate::xattr::Xattrs;

/// Metadata that every type of entry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Mtime,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// An entry of the kind with this metadata.
    pub fn into_entry(self, kind: EntryKind) -> Entry {
        let Self { permissions, uid, gid, mtime, xattrs } = self;
        Entry { kind, permissions: permissions & 0o7777, uid, gid, mtime, xattrs, hidden: false }
    }
}

impl Entry {
    /// Takes an entry apart into what puts it somewhere else; a file's content is stored.
    pub fn into_parts(self) -> (Metadata, Content) {
        let Self { kind, permissions, uid, gid, mtime, xattrs, hidden: _ } = self;
        let content = match kind {
            EntryKind::Directory(_) => Content::Directory,
            EntryKind::File(file) => Content::Stored(file),
            EntryKind::Symlink { target } => Content::Symlink { target },
            EntryKind::Special(special) => Content::Special(special),
        };
        (Metadata { permissions, uid, gid, mtime, xattrs }, content)
    }
}

/// What is put at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory. One that exists keeps its content.
    Directory,
    /// A regular file whose bytes the source gives on request, exactly as many as announced.
    Read {
        /// Plain bytes.
        size: u64,
    },
    /// A regular file whose objects are in the repository's storage, or outside if it is external.
    Stored(FileContent),
    /// A symbolic link.
    Symlink {
        /// Its target, as it is; not empty.
        target: Vec<u8>,
    },
    /// A FIFO, socket or device.
    Special(Special),
}

impl Content {
    /// The entry kind of content that needs no reading; `None` for [`Content::Read`].
    pub(crate) fn into_kind(self) -> Option<EntryKind> {
        match self {
            Self::Directory => Some(EntryKind::Directory(Mount::Plain)),
            Self::Read { .. } => None,
            Self::Stored(file) => Some(EntryKind::File(file)),
            Self::Symlink { target } => Some(EntryKind::Symlink { target }),
            Self::Special(special) => Some(EntryKind::Special(special)),
        }
    }
}

/// One step of changing a repository.
///
/// Steps apply in order, each to the result of those before it. Directories above a path must exist in the repository
/// or come earlier; [`Change::Ensure`] sees to that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Puts an entry; whatever else is at the path gives way. A directory over a directory changes its metadata.
    Put {
        /// Where.
        path: RepoPath,
        /// Its metadata.
        metadata: Metadata,
        /// What.
        content: Content,
    },
    /// Gives an entry that is not a directory one more name.
    Link {
        /// The new name; whatever is there gives way.
        path: RepoPath,
        /// The existing one: put earlier, or in the repository.
        target: RepoPath,
    },
    /// Makes sure that there is a directory; one that exists stays as it is.
    Ensure {
        /// Where.
        path: RepoPath,
        /// Metadata for the case that it has to be made.
        metadata: Metadata,
    },
    /// Removes an entry with everything below it; fine if there is none.
    Remove {
        /// Where.
        path: RepoPath,
    },
    /// Removes what is in a directory, but not the directory.
    Clear {
        /// Where.
        path: RepoPath,
    },
    /// Hides what is at a path in the layers below: in the repository and in earlier [`Origin`] sources. What this
    /// source puts there stays, whether it comes before or after.
    Whiteout {
        /// Where.
        path: RepoPath,
    },
    /// Hides what is in a directory in the layers below, in the same way.
    Opaque {
        /// The directory.
        path: RepoPath,
    },
}

impl Change {
    /// The path that changes.
    pub fn path(&self) -> &RepoPath {
        match self {
            Self::Put { path, .. }
            | Self::Link { path, .. }
            | Self::Ensure { path, .. }
            | Self::Remove { path }
            | Self::Clear { path }
            | Self::Whiteout { path }
            | Self::Opaque { path } => path,
        }
    }
}

/// Where a change comes from: for messages, and to tell the layers of a stack apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The archive, layer or directory. Changes of one of them share the allocation.
    pub source: Arc<str>,
    /// Byte at which the entry begins, where the source is a stream.
    pub offset: Option<u64>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{}: entry at byte {offset}", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// A stream of changes: a tarball, a directory, image layers, another revision.
pub trait ChangeSource {
    /// Returns the next change, `None` after the last.
    ///
    /// Content of the change before that was not read is skipped.
    fn next(&mut self) -> Result<Option<Change>>;

    /// Where the last returned change comes from, if the source can tell.
    fn origin(&self) -> Option<Origin> {
        None
    }

    /// The same changes from the beginning, to look at them before any content is read; only asked before the first
    /// [`next`](Self::next). `None` if the source can be read only once.
    fn preview(&self) -> Result<Option<Box<dyn ChangeSource>>> {
        Ok(None)
    }

    /// Reads content of the last returned [`Content::Read`]; 0 bytes at its end.
    ///
    /// A source that runs dry early fails; it never gives fewer bytes than announced. An error that carries a
    /// [`crate::Error`] keeps it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// What the user should know about the input, found so far.
    fn take_warnings(&mut self) -> Vec<String> {
        Vec::new()
    }
}
