//! One file, directory or link of a repository: what a catalog row says about it.
//!
//! Source: `cvmfs/directory_entry.h`, `cvmfs/catalog_sql.h`.

use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use crate::xattr::Xattrs;

/// Size that directories are listed with.
pub const DIRECTORY_SIZE: u64 = 4096;

/// Time of last modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999, if known.
    pub nanoseconds: Option<u32>,
}

impl Mtime {
    /// A time to the second.
    pub const fn seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: None }
    }
}

/// Metadata and content of an entry, without its place in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and what belongs to it.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky, at most `0o7777`.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Mtime,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Not shown in listings, but found by name.
    pub hidden: bool,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory(Mount),
    /// A regular file.
    File(FileContent),
    /// A symbolic link.
    Symlink {
        /// The target, unexpanded; not empty.
        target: Vec<u8>,
    },
    /// A FIFO, socket or device.
    Special(Special),
}

/// How a directory takes part in the nesting of catalogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mount {
    /// Not at all.
    #[default]
    Plain,
    /// Its content is in another catalog; this row is in the parent.
    Mountpoint,
    /// The first row of a nested catalog.
    Root,
    /// Shows a tree of another revision.
    Bind,
}

impl Mount {
    /// Whether the directory has a catalog of its own.
    pub const fn is_catalog(self) -> bool {
        matches!(self, Self::Mountpoint | Self::Root)
    }
}

/// The content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// Plain bytes.
    pub size: u64,
    /// How objects of the file are stored.
    pub compression: Compression,
    /// Where the bytes are.
    pub objects: FileObjects,
    /// The bytes are on an external data server, not in the repository.
    pub external: bool,
    /// The client reads around the kernel's page cache.
    pub direct_io: bool,
}

/// The objects of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileObjects {
    /// One object.
    Whole(ContentHash),
    /// Several; at least one.
    Chunked {
        /// In ascending offset order, without gaps.
        chunks: Vec<Chunk>,
        /// The whole file stored once more, for clients from before chunking.
        bulk: Option<ContentHash>,
    },
}

/// A piece of a chunked file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Place of its first byte in the plain file.
    pub offset: u64,
    /// Plain bytes.
    pub size: u64,
    /// Hash of the stored bytes.
    pub hash: ContentHash,
}

/// A file that is neither regular, directory nor symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A character device with its device number as `makedev` composes it.
    CharacterDevice(u64),
    /// A block device.
    BlockDevice(u64),
}

/// Composes a device number as the C library's `makedev` does.
pub fn device_number(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | minor & 0xff
}

/// Splits a device number into major and minor number.
#[expect(clippy::cast_possible_truncation, reason = "a 64-bit number made of two 32-bit ones")]
pub fn device_parts(device: u64) -> (u32, u32) {
    let (major, minor) = (device >> 32 & 0xffff_f000 | device >> 8 & 0xfff, device >> 12 & 0xffff_ff00 | device & 0xff);
    (major as u32, minor as u32)
}

/// Place of an entry in a group of hard links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hardlinks {
    /// Number of the group in its catalog; 0 for none.
    pub group: u32,
    /// Names of the entry; for a directory 2 + its sub-directories.
    pub count: u32,
}

impl Hardlinks {
    /// An entry with one name.
    pub const SINGLE: Self = Self { group: 0, count: 1 };

    /// The column value.
    pub fn to_column(self) -> i64 {
        i64::from(self.group) << 32 | i64::from(self.count)
    }

    /// Splits the column value; the bits are taken as they are.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "two 32-bit numbers in one 64-bit column"
    )]
    pub fn from_column(value: i64) -> Self {
        Self { group: (value >> 32) as u32, count: value as u32 }
    }
}

/// Bits of the `flags` column.
pub mod flag {
    /// A directory.
    pub const DIRECTORY: u32 = 1;
    /// Transition point, in the parent catalog.
    pub const MOUNTPOINT: u32 = 2;
    /// Anything but a directory.
    pub const FILE: u32 = 4;
    /// A symbolic link (with `FILE`).
    pub const SYMLINK: u32 = 8;
    /// FIFO, socket or device (with `FILE`).
    pub const SPECIAL: u32 = 16;
    /// Root row of a nested catalog.
    pub const ROOT: u32 = 32;
    /// A regular file with rows in `chunks`.
    pub const CHUNKED: u32 = 64;
    /// Content is not in the repository.
    pub const EXTERNAL: u32 = 128;
    /// First of three bits for the hash algorithm.
    pub const HASH_SHIFT: u32 = 8;
    /// First of three bits for the compression.
    pub const COMPRESSION_SHIFT: u32 = 11;
    /// Bind mountpoint.
    pub const BIND: u32 = 0x4000;
    /// Not listed.
    pub const HIDDEN: u32 = 0x8000;
    /// Read around the page cache.
    pub const DIRECT_IO: u32 = 0x1_0000;
}

/// File type bits of the `mode` column.
pub(crate) mod type_bits {
    pub(crate) const MASK: u32 = 0o170_000;
    pub(crate) const SOCKET: u32 = 0o140_000;
    pub(crate) const SYMLINK: u32 = 0o120_000;
    pub(crate) const FILE: u32 = 0o100_000;
    pub(crate) const BLOCK: u32 = 0o060_000;
    pub(crate) const DIRECTORY: u32 = 0o040_000;
    pub(crate) const CHARACTER: u32 = 0o020_000;
    pub(crate) const FIFO: u32 = 0o010_000;
}

impl FileContent {
    /// The hash algorithm of the file's objects.
    pub fn algorithm(&self) -> Algorithm {
        match &self.objects {
            FileObjects::Whole(hash) => hash.algorithm(),
            FileObjects::Chunked { chunks, bulk } => {
                chunks.first().map(|chunk| chunk.hash).or(*bulk).map_or(Algorithm::Sha1, |hash| hash.algorithm())
            }
        }
    }

    /// The objects to read in order to get all bytes, with their plain sizes, in order.
    pub fn parts(&self) -> Vec<(ObjectId, u64)> {
        match &self.objects {
            FileObjects::Whole(hash) => vec![(ObjectId::new(*hash, ObjectKind::File), self.size)],
            FileObjects::Chunked { chunks, .. } => {
                chunks.iter().map(|chunk| (ObjectId::new(chunk.hash, ObjectKind::Chunk), chunk.size)).collect()
            }
        }
    }
}

impl Entry {
    /// A plain directory.
    pub fn directory(permissions: u32, uid: u32, gid: u32, mtime: Mtime) -> Self {
        let kind = EntryKind::Directory(Mount::Plain);
        Self { kind, permissions, uid, gid, mtime, xattrs: Xattrs::new(), hidden: false }
    }

    /// Whether this is a directory of any kind.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory(_))
    }

    /// The `mode` column: type and permissions.
    pub fn mode(&self) -> u32 {
        let type_bits = match &self.kind {
            EntryKind::Directory(_) => type_bits::DIRECTORY,
            EntryKind::File(_) => type_bits::FILE,
            EntryKind::Symlink { .. } => type_bits::SYMLINK,
            EntryKind::Special(Special::Fifo) => type_bits::FIFO,
            EntryKind::Special(Special::Socket) => type_bits::SOCKET,
            EntryKind::Special(Special::CharacterDevice(_)) => type_bits::CHARACTER,
            EntryKind::Special(Special::BlockDevice(_)) => type_bits::BLOCK,
        };
        type_bits | self.permissions & 0o7777
    }

    /// The `size` column: plain bytes, length of a link target, or device number.
    pub fn size_column(&self) -> u64 {
        match &self.kind {
            EntryKind::Directory(_) => DIRECTORY_SIZE,
            EntryKind::File(file) => file.size,
            EntryKind::Symlink { target } => target.len() as u64,
            EntryKind::Special(Special::CharacterDevice(device) | Special::BlockDevice(device)) => *device,
            EntryKind::Special(Special::Fifo | Special::Socket) => 0,
        }
    }

    /// The `hash` column.
    pub fn hash_column(&self) -> Option<ContentHash> {
        match &self.kind {
            EntryKind::File(FileContent { objects: FileObjects::Whole(hash), .. }) => Some(*hash),
            EntryKind::File(FileContent { objects: FileObjects::Chunked { bulk, .. }, .. }) => *bulk,
            _ => None,
        }
    }

    /// The `flags` column.
    pub fn flags(&self) -> u32 {
        let flags = match &self.kind {
            EntryKind::Directory(mount) => {
                flag::DIRECTORY
                    | match mount {
                        Mount::Plain => 0,
                        Mount::Mountpoint => flag::MOUNTPOINT,
                        Mount::Root => flag::ROOT,
                        Mount::Bind => flag::BIND,
                    }
            }
            EntryKind::Symlink { .. } => flag::FILE | flag::SYMLINK,
            EntryKind::Special(_) => flag::FILE | flag::SPECIAL,
            EntryKind::File(file) => {
                let set = |condition, bit| if condition { bit } else { 0 };
                flag::FILE
                    | set(matches!(file.objects, FileObjects::Chunked { .. }), flag::CHUNKED)
                    | set(file.external, flag::EXTERNAL)
                    | set(file.direct_io, flag::DIRECT_IO)
                    | (file.algorithm() as u32) << flag::HASH_SHIFT
                    | (file.compression as u32) << flag::COMPRESSION_SHIFT
            }
        };
        if self.hidden { flags | flag::HIDDEN } else { flags }
    }
}

/// The columns of a row that say what an entry is, as read from a catalog.
#[derive(Debug, Clone)]
pub struct RawKind<'a> {
    /// Column `flags`.
    pub flags: u32,
    /// Column `mode`.
    pub mode: u32,
    /// Column `size`.
    pub size: u64,
    /// Column `hash`, empty for NULL.
    pub hash: &'a [u8],
    /// Column `symlink`.
    pub symlink: &'a [u8],
}

impl RawKind<'_> {
    /// The hash algorithm that the flags name.
    ///
    /// # Errors
    /// `Malformed` for a number that no client knows.
    pub fn algorithm(&self) -> Result<Algorithm> {
        Algorithm::ALL
            .get((self.flags >> flag::HASH_SHIFT & 7) as usize)
            .copied()
            .ok_or_else(|| Error::malformed("flags", format!("unknown hash algorithm in {:#x}", self.flags)))
    }

    /// How the flags say that the content is stored.
    ///
    /// # Errors
    /// `Malformed` for a number that no client knows.
    pub fn compression(&self) -> Result<Compression> {
        match self.flags >> flag::COMPRESSION_SHIFT & 7 {
            0 => Ok(Compression::Zlib),
            1 => Ok(Compression::None),
            _ => Err(Error::malformed("flags", format!("unknown compression in {:#x}", self.flags))),
        }
    }

    /// Makes sense of the columns; `chunks` are the rows of `chunks` of a chunked file.
    ///
    /// # Errors
    /// `Malformed` if the columns contradict each other.
    pub fn interpret(&self, chunks: Vec<Chunk>) -> Result<EntryKind> {
        let contradiction =
            |reason: &str| Err(Error::malformed(format!("mode {:o}, flags {:#x}", self.mode, self.flags), reason));
        let is = |bit| self.flags & bit != 0;
        match self.mode & type_bits::MASK {
            type_bits::DIRECTORY if is(flag::DIRECTORY) => Ok(EntryKind::Directory(if is(flag::ROOT) {
                Mount::Root
            } else if is(flag::MOUNTPOINT) {
                Mount::Mountpoint
            } else if is(flag::BIND) {
                Mount::Bind
            } else {
                Mount::Plain
            })),
            type_bits::DIRECTORY => contradiction("a directory without directory flag"),
            _ if is(flag::DIRECTORY) => contradiction("directory flag on something else"),
            type_bits::SYMLINK => Ok(EntryKind::Symlink { target: self.symlink.to_vec() }),
            type_bits::FIFO => Ok(EntryKind::Special(Special::Fifo)),
            type_bits::SOCKET => Ok(EntryKind::Special(Special::Socket)),
            type_bits::CHARACTER => Ok(EntryKind::Special(Special::CharacterDevice(self.size))),
            type_bits::BLOCK => Ok(EntryKind::Special(Special::BlockDevice(self.size))),
            type_bits::FILE => {
                let algorithm = self.algorithm()?;
                let compression = self.compression()?;
                let hash = match self.hash {
                    [] => None,
                    digest => Some(ContentHash::from_digest(algorithm, digest)?),
                };
                let objects = match (is(flag::CHUNKED), hash) {
                    (true, bulk) => FileObjects::Chunked { chunks, bulk },
                    (false, Some(hash)) => FileObjects::Whole(hash),
                    (false, None) => return contradiction("a file without content hash"),
                };
                let (external, direct_io) = (is(flag::EXTERNAL), is(flag::DIRECT_IO));
                Ok(EntryKind::File(FileContent { size: self.size, compression, objects, external, direct_io }))
            }
            _ => contradiction("unknown type"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(algorithm: Algorithm, compression: Compression, chunked: bool) -> EntryKind {
        let hash = algorithm.hash(b"x");
        let objects = if chunked {
            FileObjects::Chunked { chunks: vec![Chunk { offset: 0, size: 1, hash }], bulk: None }
        } else {
            FileObjects::Whole(hash)
        };
        EntryKind::File(FileContent { size: 1, compression, objects, external: false, direct_io: false })
    }

    #[test]
    fn flags_match_the_published_table_and_read_back() {
        use Algorithm::{Sha1, Shake128};
        for (kind, hidden, expected) in [
            (EntryKind::Directory(Mount::Plain), false, 1),
            (EntryKind::Directory(Mount::Mountpoint), false, 3),
            (EntryKind::Directory(Mount::Root), false, 33),
            (EntryKind::Directory(Mount::Mountpoint), true, 0x8003),
            (EntryKind::Directory(Mount::Root), true, 0x8021),
            (EntryKind::Directory(Mount::Bind), false, 0x4001),
            (file(Sha1, Compression::Zlib, false), false, 4),
            (file(Shake128, Compression::Zlib, false), false, 516),
            (file(Shake128, Compression::None, false), false, 2564),
            (file(Shake128, Compression::Zlib, true), false, 580),
            (EntryKind::Symlink { target: b"t".to_vec() }, false, 12),
            (EntryKind::Special(Special::Fifo), false, 20),
        ] {
            let entry = Entry { kind, hidden, ..Entry::directory(0o644, 0, 0, Mtime::seconds(0)) };
            assert_eq!(entry.flags(), expected, "{entry:?}");

            let chunks = match &entry.kind {
                EntryKind::File(FileContent { objects: FileObjects::Chunked { chunks, .. }, .. }) => chunks.clone(),
                _ => Vec::new(),
            };
            let hash = entry.hash_column();
            let raw = RawKind {
                flags: expected,
                mode: entry.mode(),
                size: entry.size_column(),
                hash: hash.as_ref().map_or(&[], |hash| &hash.digest()[..]),
                symlink: b"t",
            };
            assert_eq!(raw.interpret(chunks).unwrap(), entry.kind);
        }
    }

    #[test]
    fn modes_carry_the_type() {
        let mode = |kind, permissions| Entry { kind, ..Entry::directory(permissions, 0, 0, Mtime::seconds(0)) }.mode();
        assert_eq!(mode(EntryKind::Directory(Mount::Plain), 0o755), 16877);
        assert_eq!(mode(file(Algorithm::Sha1, Compression::Zlib, false), 0o644), 33188);
        assert_eq!(mode(EntryKind::Symlink { target: b"t".to_vec() }, 0o777), 41471);
        assert_eq!(mode(EntryKind::Special(Special::Socket), 0o4755), 0o144_755);
    }

    #[test]
    fn contradictions_are_refused() {
        let raw = |mode, flags, hash| RawKind { flags, mode, size: 0, hash, symlink: b"" }.interpret(Vec::new());
        assert!(raw(0o040_755, 4, &[]).is_err());
        assert!(raw(0o100_644, 1, &[]).is_err());
        assert!(raw(0o100_644, 4, &[]).is_err());
        assert!(raw(0o100_644, 4, &[1; 19]).is_err());
        assert!(raw(0o100_644, 4 | 7 << flag::HASH_SHIFT, &[1; 20]).is_err());
        assert!(raw(0o100_644, 4 | 2 << flag::COMPRESSION_SHIFT, &[1; 20]).is_err());
        assert!(raw(0, 4, &[1; 20]).is_err());
        assert!(raw(0o100_644, 4, &[1; 20]).is_ok());
    }

    /// Expected values are those of Python's `os.makedev`.
    #[test]
    fn device_numbers_are_those_of_the_c_library() {
        for (major, minor, expected) in
            [(1, 3, 0x103), (259, 70_000, 0x1111_0370), (4095, 255, 0xfffff), (4096, 256, 0x1000_0010_0000)]
        {
            assert_eq!(device_number(major, minor), expected);
            assert_eq!(device_parts(expected), (major, minor));
        }
    }

    #[test]
    fn hard_link_groups_share_a_column_with_the_count() {
        let pair = Hardlinks { group: 1, count: 2 };
        assert_eq!(pair.to_column(), 4_294_967_298);
        assert_eq!(Hardlinks::from_column(4_294_967_298), pair);
        assert_eq!(Hardlinks::SINGLE.to_column(), 1);
    }
}
