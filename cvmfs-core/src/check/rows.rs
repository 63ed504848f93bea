//! The rows of one catalog.

use std::collections::HashMap;
use std::fmt;

use super::findings::{Findings, Kind};
use crate::catalog::{Catalog, Counters, MARKER, Rows, ScannedChunk, ScannedRow};
use crate::entry::{Hardlinks, RawKind, flag, type_bits};
use crate::error::Result;
use crate::hash::{Algorithm, ContentHash, DIGEST_SIZE, ObjectId, ObjectKind};
use crate::path::{PathHash, RepoPath, display};
use crate::xattr::Xattrs;

/// What the rows of a catalog showed.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    /// The catalog's own counters, as its rows have them.
    pub(super) counters: Counters,
    /// What mountpoints say of the root entry of the catalog below, by path.
    pub(super) mountpoints: HashMap<RepoPath, Fingerprint>,
    /// Directories that show a tree of another revision.
    pub(super) binds: Vec<RepoPath>,
    /// What the root entry says.
    pub(super) root: Option<Fingerprint>,
}

/// What a mountpoint and the root entry of its nested catalog must have in common.
///
/// Source: `CompareEntries` in `cvmfs/swissknife_check.cc`.
pub(super) type Fingerprint = [u8; DIGEST_SIZE];

/// An object that an entry needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) id: ObjectId,
    /// Plain bytes that it must have.
    pub(super) plain_size: u64,
    pub(super) is_compressed: bool,
}

/// A directory while its catalog is being looked at.
struct Directory {
    parent: PathHash,
    name: Vec<u8>,
    hardlinks: i64,
    flags: i64,
    /// Entries that are directories.
    directories: u32,
    /// Where it is; `None` while that is not known.
    path: Option<RepoPath>,
    has_entries: bool,
    has_marker: bool,
}

/// The names of one file.
struct Group {
    first: RepoPath,
    common: Fingerprint,
    expected: u32,
    found: u32,
}

/// Looks at all rows of the catalog at `mount`. `need` gets the objects of entries, each as often as there are entries.
///
/// One pass over the directories says where they are, a second one judges every row; memory grows with directories,
/// hard links and chunked files, not with entries.
///
/// # Errors
/// Those of the database, and of `need`.
pub(super) fn inspect(
    catalog: &Catalog,
    mount: &RepoPath,
    findings: &Findings,
    need: &mut dyn FnMut(Need) -> Result<()>,
) -> Result<Inspected> {
    let root = mount.path_hash();
    let mut rows = Inspection {
        mount,
        root,
        findings,
        directories: read_directories(catalog, mount)?,
        groups: HashMap::new(),
        chunked: HashMap::new(),
        inspected: Inspected::default(),
    };
    catalog.scan(Rows::All, &mut |row| rows.judge(row, need))?;
    if rows.inspected.root.is_none() {
        findings.add(Kind::RootEntry, mount, "the catalog has no root entry");
    }
    rows.judge_chunks(catalog, need)?;
    rows.judge_groups();
    rows.judge_directories(catalog.has_link_counts());
    Ok(rows.inspected)
}

/// The directories of a catalog, with their paths if those are known.
fn read_directories(catalog: &Catalog, mount: &RepoPath) -> Result<HashMap<PathHash, Directory>> {
    let mut directories = HashMap::new();
    catalog.scan(Rows::Directories, &mut |row| {
        let directory = Directory {
            parent: row.parent,
            name: row.name.unwrap_or_default().to_vec(),
            hardlinks: row.hardlinks,
            flags: row.flags,
            directories: 0,
            path: None,
            has_entries: false,
            has_marker: false,
        };
        directories.insert(row.path, directory);
        Ok(())
    })?;
    if let Some(root) = directories.get_mut(&mount.path_hash()) {
        root.path = Some(mount.clone());
    }
    // From each one up to one whose place is known, and down again. Nothing leads out of a circle.
    let keys: Vec<PathHash> = directories.keys().copied().collect();
    for key in keys {
        let (mut chain, mut at) = (Vec::new(), key);
        let mut known = None;
        while chain.len() <= directories.len() {
            match directories.get(&at) {
                Some(Directory { path: Some(path), .. }) => {
                    known = Some(path.clone());
                    break;
                }
                Some(directory) => {
                    chain.push(at);
                    at = directory.parent;
                }
                None => break,
            }
        }
        let Some(mut path) = known else { continue };
        for key in chain.into_iter().rev() {
            let Some(directory) = directories.get_mut(&key) else { break };
            let Ok(child) = path.child(&directory.name) else { break };
            directory.path = Some(child.clone());
            path = child;
        }
    }
    Ok(directories)
}

struct Inspection<'a> {
    mount: &'a RepoPath,
    root: PathHash,
    findings: &'a Findings,
    directories: HashMap<PathHash, Directory>,
    /// Hard links by directory and group number.
    groups: HashMap<(PathHash, u32), Group>,
    /// Files whose chunks are to be looked at: place, size, flags.
    chunked: HashMap<PathHash, (RepoPath, i64, u32)>,
    inspected: Inspected,
}

/// A place that is put together only if something is wrong with it.
struct Place<'a>(Option<&'a RepoPath>, &'a [u8]);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(directory) if directory.is_root() => write!(f, "/{}", display(self.1)),
            Some(directory) => write!(f, "{directory}/{}", display(self.1)),
            None => write!(f, "…/{}", display(self.1)),
        }
    }
}

impl Inspection<'_> {
    fn judge(&mut self, row: ScannedRow<'_>, need: &mut dyn FnMut(Need) -> Result<()>) -> Result<()> {
        let flags = u32::try_from(row.flags).unwrap_or(u32::MAX);
        let mode = u32::try_from(row.mode).unwrap_or(0);
        self.count(&row, flags, mode);
        if row.path == self.root {
            self.judge_root(&row, flags, mode);
            return Ok(());
        }
        let name = row.name.unwrap_or_default();
        let directory = self.directories.get_mut(&row.parent);
        let above = directory.as_ref().and_then(|directory| directory.path.as_ref());
        let place = Place(above, name);
        let findings = self.findings;
        if row.name.is_none() || row.symlink.is_none() {
            findings.add(Kind::Name, &place, "its name or target is NULL, which kills clients");
        }
        let path = match above {
            None => {
                findings.add(Kind::Dangling, &place, "no directory of the catalog leads to it");
                return need_whole(&row, flags, mode, need);
            }
            Some(above) => above.child(name),
        };
        let path = match path {
            Err(error) => {
                findings.add(Kind::Name, &place, error.to_string());
                return Ok(());
            }
            Ok(path) => path,
        };
        if path.path_hash() != row.path {
            findings.add(Kind::Name, &path, "its key is that of another path");
        }

        let is_directory = mode & type_bits::MASK == type_bits::DIRECTORY;
        if let Some(directory) = directory {
            directory.has_entries = true;
            directory.directories += u32::from(is_directory);
            directory.has_marker |= name == MARKER;
            if name == MARKER && (row.parent != self.root || self.mount.is_root()) {
                findings.add(Kind::Marker, &path, "no nested catalog begins here");
            }
        }
        self.judge_flags(flags, mode, &path);
        let links = Hardlinks::from_column(row.hardlinks);
        if links.count == 0 {
            findings.add(Kind::LinkCount, &path, "its link count is 0");
        }
        match mode & type_bits::MASK {
            type_bits::DIRECTORY => self.judge_directory(&row, flags, links, &path),
            _ if links.count > 1 && links.group == 0 => {
                findings.add(Kind::Hardlinks, &path, format!("it has {} links and belongs to no group", links.count));
            }
            _ if links.group != 0 => {
                let common = fingerprint(&row, flags, false);
                let group = self.groups.entry((row.parent, links.group)).or_insert_with(|| Group {
                    first: path.clone(),
                    common,
                    expected: links.count,
                    found: 0,
                });
                group.found += 1;
                if group.common != common {
                    let message = format!("it is a hard link to {}, and differs from that", group.first);
                    findings.add(Kind::Hardlinks, &path, message);
                }
            }
            _ => {}
        }
        self.judge_content(&row, flags, mode, &path);
        if let Some(blob) = row.xattr.filter(|blob| !blob.is_empty())
            && let Err(error) = Xattrs::parse(blob)
        {
            findings.add(Kind::Xattrs, &path, error.to_string());
        }
        if flags & flag::CHUNKED != 0 && mode & type_bits::MASK == type_bits::FILE {
            self.chunked.insert(row.path, (path.clone(), row.size, flags));
        }
        need_whole(&row, flags, mode, need)
    }

    fn count(&mut self, row: &ScannedRow<'_>, flags: u32, mode: u32) {
        let size = u64::try_from(row.size).unwrap_or(0);
        let counters = &mut self.inspected.counters;
        match mode & type_bits::MASK {
            type_bits::DIRECTORY => counters.directory += 1,
            type_bits::SYMLINK => counters.symlink += 1,
            type_bits::FILE => {
                counters.regular += 1;
                counters.file_size += size;
            }
            _ => counters.special += 1,
        }
        if flags & flag::CHUNKED != 0 {
            counters.chunked += 1;
            counters.chunked_size += size;
        }
        if flags & flag::EXTERNAL != 0 {
            counters.external += 1;
            counters.external_file_size += size;
        }
        counters.xattr += u64::from(row.xattr.is_some());
    }

    fn judge_root(&mut self, row: &ScannedRow<'_>, flags: u32, mode: u32) {
        let wrong = |message: &str| self.findings.add(Kind::RootEntry, self.mount, message);
        self.inspected.root = Some(fingerprint(row, flags, true));
        if mode & type_bits::MASK != type_bits::DIRECTORY || flags & flag::DIRECTORY == 0 {
            wrong("it is no directory");
        }
        let is_nested = !self.mount.is_root();
        if (flags & flag::ROOT != 0) != is_nested {
            wrong(if is_nested {
                "it lacks the flag of a nested catalog"
            } else {
                "it has the flag of a nested catalog"
            });
        }
        let above = self.mount.parent().map_or(PathHash::NULL, |parent| parent.path_hash());
        if row.parent != above {
            wrong("its parent is another directory than the one above");
        }
        if row.name != Some(self.mount.name()) {
            wrong("it has another name");
        }
    }

    fn judge_flags(&self, flags: u32, mode: u32, path: &RepoPath) {
        let is = |bit| flags & bit != 0;
        let wrong = |message: &str| {
            self.findings.add(Kind::Flags, path, format!("{message} (flags {flags:#x}, mode {mode:o})"));
        };
        let kind = mode & type_bits::MASK;
        let is_special = [type_bits::FIFO, type_bits::SOCKET, type_bits::CHARACTER, type_bits::BLOCK].contains(&kind);
        if !is_special && ![type_bits::DIRECTORY, type_bits::SYMLINK, type_bits::FILE].contains(&kind) {
            return wrong("there is no such type of file");
        }
        let is_directory = kind == type_bits::DIRECTORY;
        if is(flag::DIRECTORY) != is_directory || is(flag::FILE) == is_directory {
            wrong("the flags name another type than the mode");
        }
        if is(flag::SYMLINK) != (kind == type_bits::SYMLINK) || is(flag::SPECIAL) && !is_special {
            wrong("the flags name another type than the mode");
        }
        if is(flag::ROOT) {
            wrong("it is marked as the root of a nested catalog");
        }
        if is(flag::MOUNTPOINT | flag::BIND) && !is_directory || is(flag::MOUNTPOINT) && is(flag::BIND) {
            wrong("it cannot be a mountpoint");
        }
        if is(flag::CHUNKED | flag::EXTERNAL | flag::DIRECT_IO) && kind != type_bits::FILE {
            wrong("only a regular file can have chunks, be external, or be read around the cache");
        }
        let raw = RawKind { flags, mode, size: 0, hash: &[], symlink: &[] };
        if kind == type_bits::FILE && (raw.algorithm().is_err() || raw.compression().is_err()) {
            wrong("unknown hash algorithm or compression");
        }
    }

    fn judge_directory(&mut self, row: &ScannedRow<'_>, flags: u32, links: Hardlinks, path: &RepoPath) {
        if links.group != 0 {
            self.findings.add(Kind::Hardlinks, path, "a directory cannot be a hard link");
        }
        if flags & flag::MOUNTPOINT != 0 {
            self.inspected.mountpoints.insert(path.clone(), fingerprint(row, flags, true));
        }
        if flags & flag::BIND != 0 {
            self.inspected.binds.push(path.clone());
        }
    }

    fn judge_content(&self, row: &ScannedRow<'_>, flags: u32, mode: u32, path: &RepoPath) {
        let wrong = |kind, message: &str| self.findings.add(kind, path, message);
        let target = row.symlink.unwrap_or_default();
        match mode & type_bits::MASK {
            type_bits::SYMLINK => {
                if target.is_empty() {
                    wrong(Kind::Symlink, "it has no target");
                } else if row.size != 0 && u64::try_from(row.size) != Ok(target.len() as u64) {
                    // The reference's ingest writes 0, and nobody reads it.
                    wrong(Kind::Symlink, &format!("its size is {}, its target has {} bytes", row.size, target.len()));
                }
            }
            _ if !target.is_empty() => wrong(Kind::Symlink, "it has a target and is no symbolic link"),
            _ => {}
        }
        match mode & type_bits::MASK {
            type_bits::FILE => {
                if row.size < 0 {
                    wrong(Kind::Content, "its size is negative");
                }
                if !row.hash.is_empty() && row.hash.len() != DIGEST_SIZE {
                    wrong(Kind::Content, &format!("its hash has {} bytes", row.hash.len()));
                }
                let is_null = row.hash.iter().all(|&byte| byte == 0);
                if is_null && flags & flag::CHUNKED == 0 {
                    wrong(Kind::Content, "it has no content hash");
                }
            }
            // The hash of a directory is reserved for micro catalogs.
            type_bits::DIRECTORY => {}
            kind => {
                if !row.hash.is_empty() {
                    wrong(Kind::Content, "it has a content hash and is no regular file");
                }
                if [type_bits::FIFO, type_bits::SOCKET].contains(&kind) && row.size != 0 {
                    wrong(Kind::Content, "it has a size and no content");
                }
            }
        }
        if row.mtimens.is_some_and(|nanoseconds| !(0..1_000_000_000).contains(&nanoseconds)) {
            wrong(Kind::Content, "nanoseconds of its time are out of range");
        }
    }

    fn judge_chunks(&mut self, catalog: &Catalog, need: &mut dyn FnMut(Need) -> Result<()>) -> Result<()> {
        let findings = self.findings;
        // The file whose chunks come now, and the end of the last one.
        let mut current: Option<(PathHash, i64)> = None;
        let mut wrong: Vec<PathHash> = Vec::new();
        let (chunked, counters) = (&self.chunked, &mut self.inspected.counters);
        let mut covered: HashMap<PathHash, i64> = HashMap::new();
        catalog.scan_chunks(&mut |ScannedChunk { path, offset, size, digest }| {
            counters.chunks += 1;
            let Some((place, _, flags)) = chunked.get(&path) else {
                let is_new = current.is_none_or(|(before, _)| before != path);
                current = Some((path, 0));
                if is_new {
                    findings.add(Kind::Chunks, catalog_place(self.mount), "there are chunks of no file");
                }
                return Ok(());
            };
            let end = match current {
                Some((before, end)) if before == path => end,
                _ => 0,
            };
            if (offset != end || size < 0) && !wrong.contains(&path) {
                let message = format!("a chunk begins at {offset}, the one before ends at {end}");
                findings.add(Kind::Chunks, place, message);
                wrong.push(path);
            }
            let next = offset.saturating_add(size.max(0));
            current = Some((path, next));
            covered.insert(path, next);
            match object(*flags, ObjectKind::Chunk, digest, size) {
                Some(chunk) if flags & flag::EXTERNAL == 0 => need(chunk),
                Some(_) => Ok(()),
                None => {
                    findings.add(Kind::Chunks, place, "the hash of a chunk is malformed");
                    Ok(())
                }
            }
        })?;
        for (path, (place, size, _)) in chunked {
            match covered.get(path) {
                None => findings.add(Kind::Chunks, place, "it is marked as chunked and has no chunks"),
                Some(end) if end != size && !wrong.contains(path) => {
                    findings.add(Kind::Chunks, place, format!("its chunks have {end} bytes, it has {size}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn judge_groups(&self) {
        for Group { first, expected, found, .. } in self.groups.values() {
            if expected != found {
                let message = format!("its link count is {expected}, and it has {found} names");
                self.findings.add(Kind::Hardlinks, first, message);
            }
        }
    }

    /// Catalogs from before link counts have no markers either.
    fn judge_directories(&self, has_link_counts: bool) {
        for (key, directory) in &self.directories {
            let Some(path) = &directory.path else { continue };
            let flags = u32::try_from(directory.flags).unwrap_or(u32::MAX);
            if *key != self.root && flags & (flag::MOUNTPOINT | flag::BIND) != 0 {
                if directory.has_entries {
                    self.findings.add(Kind::Nested, path, "it is a mountpoint and has entries in the catalog above");
                }
                continue;
            }
            if !has_link_counts {
                continue;
            }
            let count = Hardlinks::from_column(directory.hardlinks).count;
            let expected = directory.directories + 2;
            if count != expected {
                self.findings.add(Kind::LinkCount, path, format!("its link count is {count}, not {expected}"));
            }
        }
        let root = self.directories.get(&self.root);
        if has_link_counts && !self.mount.is_root() && root.is_some_and(|root| !root.has_marker) {
            self.findings.add(Kind::Marker, self.mount, "the nested catalog has no marker");
        }
    }
}

/// How findings name a catalog as a whole.
pub(super) fn catalog_place(mount: &RepoPath) -> String {
    format!("catalog of {mount}")
}

/// Passes on the object of a whole file, if there is one.
fn need_whole(row: &ScannedRow<'_>, flags: u32, mode: u32, need: &mut dyn FnMut(Need) -> Result<()>) -> Result<()> {
    let kind = match mode & type_bits::MASK {
        type_bits::DIRECTORY => ObjectKind::MicroCatalog,
        _ => ObjectKind::File,
    };
    if flags & flag::EXTERNAL != 0 {
        return Ok(());
    }
    match object(flags, kind, row.hash, row.size) {
        Some(object) if !object.id.hash.is_null() => need(object),
        _ => Ok(()),
    }
}

/// The object of a row; `None` if there is none, or no such hash.
fn object(flags: u32, kind: ObjectKind, digest: &[u8], size: i64) -> Option<Need> {
    let algorithm = *Algorithm::ALL.get((flags >> flag::HASH_SHIFT & 7) as usize)?;
    let hash = ContentHash::from_digest(algorithm, digest).ok()?;
    let is_compressed = matches!(flags >> flag::COMPRESSION_SHIFT & 7, 0);
    Some(Need { id: ObjectId::new(hash, kind), plain_size: u64::try_from(size).unwrap_or(0), is_compressed })
}

/// What several rows of the same thing must have in common.
fn fingerprint(row: &ScannedRow<'_>, flags: u32, with_name: bool) -> Fingerprint {
    let mut text = Vec::with_capacity(160);
    let xattrs = row.xattr.map_or(0, |blob| blob.len() as u64 + 1);
    let kept = flags & !(flag::MOUNTPOINT | flag::ROOT);
    for number in [row.hardlinks, row.size, row.mode, row.mtime, row.uid, row.gid, i64::from(kept)] {
        text.extend(number.to_le_bytes());
    }
    text.extend(row.mtimens.unwrap_or(-1).to_le_bytes());
    text.extend(xattrs.to_le_bytes());
    for bytes in [row.hash, row.symlink.unwrap_or_default(), row.xattr.unwrap_or_default()] {
        text.extend((bytes.len() as u64).to_le_bytes());
        text.extend(bytes);
    }
    if with_name {
        text.extend(row.name.unwrap_or_default());
    }
    *Algorithm::Sha1.hash(&text).digest()
}
