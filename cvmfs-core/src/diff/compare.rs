//! Comparing two entries, and the hard links of two directories.

use std::collections::{BTreeMap, BTreeSet};

use super::Version;
use crate::catalog::Row;
use crate::entry::{Entry, EntryKind, FileContent, FileObjects, Mtime};

/// Something of an entry that can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// File, directory, symbolic link, FIFO, socket, device. Of what a type has of its own, nothing else is compared
    /// then.
    Type,
    /// Plain bytes of a file.
    Size,
    /// Objects of a file: other bytes, or the same bytes stored in another way (see `Chunks` and `Storage`).
    Content,
    /// Where a file is cut into chunks, or whether it is.
    Chunks,
    /// How a file is stored: compression, hash algorithm, inside or outside of the repository, an additional object of
    /// the whole file.
    Storage,
    /// Target of a symbolic link.
    Target,
    /// Number of a device.
    Device,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Time of last modification; nanoseconds count if both trees know them.
    Mtime,
    /// Extended attributes.
    Xattrs,
    /// Names of the same file in the directory.
    Links,
    /// Whether a directory has a catalog of its own.
    Nesting,
}

impl Aspect {
    /// The word for texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Size => "size",
            Self::Content => "content",
            Self::Chunks => "chunks",
            Self::Storage => "storage",
            Self::Target => "target",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Mtime => "mtime",
            Self::Xattrs => "xattrs",
            Self::Links => "links",
            Self::Nesting => "nesting",
        }
    }
}

/// What differs between two entries of the same path, links aside; in the order of [`Aspect`].
pub(super) fn compare(before: &Entry, after: &Entry) -> Vec<Aspect> {
    let mut aspects = compare_kinds(&before.kind, &after.kind);
    let metadata = [
        (before.permissions != after.permissions, Aspect::Mode),
        ((before.uid, before.gid) != (after.uid, after.gid), Aspect::Owner),
        (!same_time(before.mtime, after.mtime), Aspect::Mtime),
        (before.xattrs != after.xattrs, Aspect::Xattrs),
    ];
    aspects.extend(metadata.into_iter().filter(|(differs, _)| *differs).map(|(_, aspect)| aspect));
    aspects.sort();
    aspects
}

fn compare_kinds(before: &EntryKind, after: &EntryKind) -> Vec<Aspect> {
    match (before, after) {
        (before, after) if before == after => Vec::new(),
        // The same directory is mountpoint in one catalog and root in another.
        (EntryKind::Directory(before), EntryKind::Directory(after)) => {
            if before.is_catalog() == after.is_catalog() {
                Vec::new()
            } else {
                vec![Aspect::Nesting]
            }
        }
        (EntryKind::File(before), EntryKind::File(after)) => compare_files(before, after),
        (EntryKind::Symlink { .. }, EntryKind::Symlink { .. }) => vec![Aspect::Target],
        (EntryKind::Special(before), EntryKind::Special(after))
            if std::mem::discriminant(before) == std::mem::discriminant(after) =>
        {
            vec![Aspect::Device]
        }
        _ => vec![Aspect::Type],
    }
}

fn compare_files(before: &FileContent, after: &FileContent) -> Vec<Aspect> {
    let hashes = |file: &FileContent| match &file.objects {
        FileObjects::Whole(hash) => vec![*hash],
        FileObjects::Chunked { chunks, .. } => chunks.iter().map(|chunk| chunk.hash).collect(),
    };
    let cuts = |file: &FileContent| match &file.objects {
        FileObjects::Whole(_) => Vec::new(),
        FileObjects::Chunked { chunks, .. } => chunks.iter().map(|chunk| (chunk.offset, chunk.size)).collect(),
    };
    let storage = |file: &FileContent| {
        let bulk = match &file.objects {
            FileObjects::Whole(_) => None,
            FileObjects::Chunked { bulk, .. } => *bulk,
        };
        (file.compression, file.algorithm(), file.external, file.direct_io, bulk)
    };
    let compared = [
        (before.size != after.size, Aspect::Size),
        (hashes(before) != hashes(after), Aspect::Content),
        (cuts(before) != cuts(after), Aspect::Chunks),
        (storage(before) != storage(after), Aspect::Storage),
    ];
    compared.into_iter().filter(|(differs, _)| *differs).map(|(_, aspect)| aspect).collect()
}

fn same_time(before: Mtime, after: Mtime) -> bool {
    let both_known = before.nanoseconds.is_some() && after.nanoseconds.is_some();
    before.seconds == after.seconds && (!both_known || before.nanoseconds == after.nanoseconds)
}

/// The hard links of one directory: names by number of the group, sorted; no group of one.
///
/// Numbers mean nothing outside of their catalog; the names are what trees have in common.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<u32, Vec<Vec<u8>>>);

impl Names {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut groups: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.hardlinks.group != 0 && !row.entry.is_directory()) {
            groups.entry(row.hardlinks.group).or_default().push(row.name.clone());
        }
        groups.retain(|_, names| names.len() > 1);
        Self(groups)
    }

    /// Adds to an entry what its directory tells about it.
    pub(super) fn version(&self, row: Row) -> Version {
        match self.0.get(&row.hardlinks.group) {
            Some(names) => Version {
                entry: row.entry,
                links: u32::try_from(names.len()).unwrap_or(u32::MAX),
                first_name: names[0].clone(),
            },
            None => Version { entry: row.entry, links: 1, first_name: row.name },
        }
    }

    /// The names that are in a group on at least one side, but not in the same company.
    pub(super) fn regrouped(before: &Self, after: &Self) -> BTreeSet<Vec<u8>> {
        let of = |names: &Self| names.0.values().cloned().collect::<BTreeSet<_>>();
        of(before).symmetric_difference(&of(after)).flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Compression;
    use crate::entry::{Chunk, Mount, Special};
    use crate::hash::Algorithm;

    fn entry(kind: EntryKind) -> Entry {
        Entry { kind, ..Entry::directory(0o644, 1, 2, Mtime::seconds(5)) }
    }

    fn file(size: u64, objects: FileObjects, compression: Compression) -> Entry {
        entry(EntryKind::File(FileContent { size, compression, objects, external: false, direct_io: false }))
    }

    /// Old catalogs have no nanoseconds.
    #[test]
    fn nanoseconds_count_if_both_are_known() {
        let at = |seconds, nanoseconds| Entry {
            mtime: Mtime { seconds, nanoseconds },
            ..entry(EntryKind::Directory(Mount::Plain))
        };
        for (before, after, differs) in [
            (at(5, None), at(5, Some(7)), false),
            (at(5, Some(7)), at(5, None), false),
            (at(5, Some(7)), at(5, Some(8)), true),
            (at(5, None), at(6, None), true),
        ] {
            let expected: &[Aspect] = if differs { &[Aspect::Mtime] } else { &[] };
            assert_eq!(compare(&before, &after), expected);
        }
    }

    #[test]
    fn content_cuts_and_storage_are_told_apart() {
        let hash = |text: &str| Algorithm::Sha1.hash(text.as_bytes());
        let whole = |text: &str| FileObjects::Whole(hash(text));
        let chunked = |sizes: [u64; 2], bulk| {
            let [first, second] = sizes;
            let chunk = |offset, size| Chunk { offset, size, hash: hash(&format!("{size}")) };
            FileObjects::Chunked { chunks: vec![chunk(0, first), chunk(first, second)], bulk }
        };
        let (zlib, none) = (Compression::Zlib, Compression::None);
        for (before, after, expected) in [
            (file(9, whole("a"), zlib), file(9, whole("a"), zlib), &[][..]),
            (file(9, whole("a"), zlib), file(9, whole("b"), zlib), &[Aspect::Content]),
            (file(9, whole("a"), zlib), file(9, whole("b"), none), &[Aspect::Content, Aspect::Storage]),
            (file(9, whole("a"), zlib), file(9, chunked([4, 5], None), zlib), &[Aspect::Content, Aspect::Chunks]),
            (
                file(9, chunked([4, 5], None), zlib),
                file(9, chunked([3, 6], None), zlib),
                &[Aspect::Content, Aspect::Chunks],
            ),
            (file(9, chunked([4, 5], None), zlib), file(9, chunked([4, 5], Some(hash("a"))), zlib), &[Aspect::Storage]),
            (file(9, whole("a"), zlib), entry(EntryKind::Special(Special::Fifo)), &[Aspect::Type]),
            (
                entry(EntryKind::Special(Special::BlockDevice(1))),
                entry(EntryKind::Special(Special::BlockDevice(2))),
                &[Aspect::Device],
            ),
            (
                entry(EntryKind::Special(Special::BlockDevice(1))),
                entry(EntryKind::Special(Special::CharacterDevice(1))),
                &[Aspect::Type],
            ),
            (entry(EntryKind::Directory(Mount::Root)), entry(EntryKind::Directory(Mount::Mountpoint)), &[]),
            (entry(EntryKind::Directory(Mount::Plain)), entry(EntryKind::Directory(Mount::Root)), &[Aspect::Nesting]),
        ] {
            assert_eq!(compare(&before, &after), expected, "{before:?} {after:?}");
        }
    }
}
