//! Tar archives in one forward pass.
//!
//! ```text
//! Read ─ decompress ─> Read ─ Archive::next ─> Entry, then Archive::read for its content
//! ```
//!
//! [`decompress`] finds out the compression and decodes on a thread of its own. [`Archive`] reads what GNU tar,
//! bsdtar, star, Python, Go and old Unix systems write: v7, ustar, GNU and PAX headers, sparse files in their four
//! encodings, extended attributes and access control lists. Entries come as the archive has them: paths are raw
//! bytes and may be absolute or contain `..`, the same path may come twice, a hard link may name anything. What
//! they mean is the caller's business.
//!
//! Three rules decide the doubtful cases:
//! - **Nothing is lost silently.** Damage, truncation and entry types that cannot be represented are errors. What
//!   can be left out without changing the tree, such as an access control list with unknown names, is a warning of
//!   its entry.
//! - **Where readers disagree, libarchive decides**, since the reference publisher uses it, unless that would break
//!   the first rule.
//! - **Input never decides on memory.** Names, attributes and sparse maps have limits, and are refused beyond them.
//!
//! ```
//! use cvmfs_ingest::archive::{Archive, EntryKind, decompress};
//!
//! fn total_size(input: Box<dyn std::io::Read + Send>) -> cvmfs_ingest::archive::Result<u64> {
//!     let (_, tar) = decompress(input)?;
//!     let mut archive = Archive::new(tar);
//!     let mut total = 0;
//!     while let Some(entry) = archive.next()? {
//!         if let EntryKind::File { size } = entry.kind {
//!             total += size;
//!         }
//!     }
//!     Ok(total)
//! }
//! assert_eq!(total_size(Box::new(&[0; 1024][..])).unwrap(), 0);
//! ```
//!
//! Source: POSIX.1-2017 `pax`; the GNU tar manual, "Tar Internals"; libarchive's `tar(5)`.

mod acl;
mod compression;
mod error;
mod header;
mod parts;
mod pax;
mod reader;
mod sparse;
mod stream;
mod xattr;

use std::collections::BTreeMap;

pub use compression::{Format, decompress};
pub use error::{ArchiveError, Position, Result};
pub use reader::{Archive, Content};

/// One member of an archive, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as the archive has it: any bytes but NUL, often with leading `./` or trailing `/`.
    /// Empty only for directories.
    pub path: Vec<u8>,
    /// What the entry is.
    pub kind: EntryKind,
    /// Permissions with set-user-id, set-group-id and sticky bit; never more than twelve bits.
    /// If there is an access control list, they agree with it as in a file system.
    pub mode: u16,
    /// The owner's number.
    pub uid: u64,
    /// The group's number.
    pub gid: u64,
    /// The owner's name; empty if not recorded.
    pub uname: Vec<u8>,
    /// The group's name; empty if not recorded.
    pub gname: Vec<u8>,
    /// Time of the last change of the content.
    pub mtime: Timestamp,
    /// Extended attributes by full name; access control lists are in their `system.posix_acl_*` binary form.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where the entry's own header begins in the uncompressed archive, in bytes. Headers that extend it (long
    /// names, PAX records) come before.
    pub offset: u64,
    /// What was left out because it cannot be represented, as sentences that do not repeat the path.
    pub warnings: Vec<String>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Bytes that [`Archive::read`] delivers, holes of sparse files included.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points; not empty.
        target: Vec<u8>,
    },
    /// A further name of another entry.
    HardLink {
        /// The other entry's path, as the archive has it; not empty.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
}

/// A point in time as an archive records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below a billion; `None` if the archive records whole seconds only.
    pub nanoseconds: Option<u32>,
}
