//! Tarballs as a stream of changes.
//!
//! Paths to remove come first, then the base directory, then the archives' entries in their order. An archive can be a
//! layer, whose whiteouts hide what is below it.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cvmfs_core::catalog::MARKER;
use cvmfs_core::change::{Change, ChangeSource, Content, Metadata, Origin};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::entry::{Mtime, Special, device_number};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::idmap::IdMap;
use cvmfs_core::path::{PathHash, RepoPath, display};
use cvmfs_core::xattr::Xattrs;

use crate::archive::{self, Archive, ArchiveError, Entry, EntryKind};
use crate::links::Links;

/// What the names of whiteouts begin with.
const WHITEOUT: &[u8] = b".wh.";
/// Bytes that the target of a symbolic link may have, as in Linux.
const TARGET_MAX: usize = 4095;
/// The name of the whiteout that hides all that is in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A tarball to be read, compressed or not.
pub struct Input {
    /// What errors and warnings call it.
    pub name: String,
    /// Its bytes.
    pub reader: Box<dyn Read + Send>,
    /// The file that can be opened once more to get the same bytes, if there is one.
    pub file: Option<PathBuf>,
}

impl Input {
    /// A tarball that can be read only once.
    pub fn stream(name: impl Into<String>, reader: impl Read + Send + 'static) -> Self {
        Self { name: name.into(), reader: Box::new(reader), file: None }
    }

    /// A tarball in a file.
    ///
    /// # Errors
    /// `InvalidInput` if it is a directory.
    pub fn file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).at(path)?;
        let kind = file.metadata().at(path)?.file_type();
        if kind.is_dir() {
            return Err(Error::invalid(name, "it is a directory, not a tarball"));
        }
        Ok(Self { file: kind.is_file().then(|| path.to_owned()), ..Self::stream(name, file) })
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Input({})", self.name)
    }
}

/// Who owns the entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// What becomes of the archive's owners.
    pub uid: IdMap,
    /// What becomes of the archive's groups.
    pub gid: IdMap,
    /// Owner and group of directories that have to be made and that no archive names.
    pub implied: (u32, u32),
}

/// Choices for reading tarballs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that entries go below.
    pub base_dir: RepoPath,
    /// Paths to remove first.
    pub delete: Vec<RepoPath>,
    /// Whether the base directory becomes a nested catalog: it is made even if there are no archives, and the commit
    /// marks it.
    pub catalog: bool,
    /// Who owns the entries.
    pub ownership: Ownership,
    /// Whether archives are image layers: entries whose names begin with `.wh.` hide what is in the repository and in
    /// earlier archives, as the OCI image format defines it; an entry below a symbolic link of an archive goes where that
    /// leads within the base directory. Otherwise there can be nothing below a link.
    pub whiteouts: bool,
    /// Bytes that each archive may have, uncompressed.
    pub size_limit: u64,
    /// Whether extended attributes are taken.
    pub xattrs: bool,
    /// Whether times are taken to the nanosecond.
    pub mtime_nanoseconds: bool,
    /// Time of directories that have to be made.
    pub now: UnixSeconds,
}

/// Reads tarballs one after the other.
pub struct TarSource {
    options: Options,
    /// Changes that come before the next entry.
    queue: VecDeque<Change>,
    inputs: VecDeque<Input>,
    current: Option<Current>,
    /// Directories that exist for sure, and other entries of the archives, so that impossible paths are noticed where
    /// they come up.
    directories: HashSet<PathHash>,
    files: HashSet<PathHash>,
    /// One of the directories: the next path is most often in the same one.
    last: RepoPath,
    /// Symbolic links of layers.
    links: Links,
    /// Archives opened so far.
    number: usize,
    warnings: Vec<String>,
}

/// The archive that is being read.
struct Current {
    name: Arc<str>,
    archive: Archive<Box<dyn Read + Send>>,
    /// Where the last entry begins.
    offset: u64,
}

impl std::fmt::Debug for TarSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TarSource({})", self.options.base_dir)
    }
}

impl TarSource {
    /// Prepares to read archives in order.
    ///
    /// # Errors
    /// `InvalidInput` if the repository root is to become a nested catalog or is to be removed.
    pub fn new(inputs: Vec<Input>, options: Options) -> Result<Self> {
        if options.catalog && options.base_dir.is_root() {
            return Err(Error::invalid(
                "--catalog",
                "the root directory cannot be a nested catalog: give a base directory",
            ));
        }
        let mut source = Self {
            queue: options.delete.iter().map(|path| Change::Remove { path: path.clone() }).collect(),
            inputs: inputs.into(),
            current: None,
            directories: HashSet::from([RepoPath::root().path_hash()]),
            files: HashSet::new(),
            last: RepoPath::root(),
            links: Links::default(),
            number: 0,
            warnings: Vec::new(),
            options,
        };
        let base_dir = source.options.base_dir.clone();
        source.options.delete.iter().chain([&base_dir]).try_for_each(refuse_generated)?;
        if !source.inputs.is_empty() || source.options.catalog {
            source.ensure_ancestors(&base_dir);
            source.ensure(base_dir);
        }
        Ok(source)
    }

    /// Opens the next archive; `false` after the last.
    fn open_next(&mut self) -> Result<bool> {
        let Some(Input { name, reader, .. }) = self.inputs.pop_front() else { return Ok(false) };
        let (_, reader) = archive::decompress(reader).map_err(|error| in_archive(&name, &error))?;
        let mut archive = Archive::with_limit(reader, self.options.size_limit);
        if self.options.whiteouts {
            // The digest of a layer tells whether it is whole.
            archive = archive.without_last_padding();
        }
        self.current = Some(Current { name: name.into(), archive, offset: 0 });
        self.number += 1;
        Ok(true)
    }

    /// Queues the changes of one entry.
    fn queue_entry(&mut self, name: &str, entry: Entry) -> Result<()> {
        let place = Place { archive: name, path: &entry.path, offset: entry.offset };
        for warning in &entry.warnings {
            self.warnings.push(format!("{place}: {warning}"));
        }
        let path = self.repository_path(&entry.path, &place)?;
        let path = self.behind_links(path, &place)?;
        let is_directory = entry.kind == EntryKind::Directory;
        if path == self.options.base_dir && !is_directory {
            return Err(place.refuse("it would replace the base directory"));
        }
        if path.is_root() {
            // The archive's idea of its top directory does not change the root of the repository.
            return Ok(());
        }
        if self.options.whiteouts && self.is_whiteout(&path) {
            return self.queue_whiteout(&path, &place);
        }
        self.check_place(&path, &entry.kind, &place)?;
        self.ensure_ancestors(&path);
        let key = path.path_hash();
        let change = match entry.kind {
            EntryKind::HardLink { ref target } => {
                let target = self.repository_path(target, &place)?;
                let target = self.behind_links(target, &place)?;
                if self.directories.contains(&target.path_hash()) {
                    return Err(place.refuse(&format!("hard link to the directory {target}")));
                }
                if target == path {
                    // GNU tar writes this for a file that it was given twice.
                    let is_there = self.files.contains(&key);
                    return if is_there { Ok(()) } else { Err(place.refuse("hard link to itself")) };
                }
                Change::Link { path, target }
            }
            _ => {
                let metadata = self.metadata(&entry, &place)?;
                let content = match entry.kind {
                    EntryKind::File { size } => Content::Read { size },
                    EntryKind::Directory => Content::Directory,
                    EntryKind::Symlink { target } if target.len() > TARGET_MAX => {
                        let reason = format!("the target of the symbolic link has {} bytes", target.len());
                        return Err(place.refuse(&format!("{reason}, more than {TARGET_MAX}")));
                    }
                    EntryKind::Symlink { target } => Content::Symlink { target },
                    EntryKind::Fifo => Content::Special(Special::Fifo),
                    EntryKind::CharDevice { major, minor } => {
                        Content::Special(Special::CharacterDevice(device_number(major, minor)))
                    }
                    EntryKind::BlockDevice { major, minor } => {
                        Content::Special(Special::BlockDevice(device_number(major, minor)))
                    }
                    EntryKind::HardLink { .. } => unreachable!("handled above"),
                };
                Change::Put { path, metadata, content }
            }
        };
        if self.options.whiteouts {
            self.note_link(&change, is_directory).map_err(|error| place.refuse(&error.to_string()))?;
        }
        if is_directory {
            self.files.remove(&key);
            self.directories.insert(key);
        } else {
            if self.directories.remove(&key) {
                self.forget_places();
            }
            self.files.insert(key);
        }
        self.queue.push_back(change);
        Ok(())
    }

    /// Remembers the symbolic links of layers.
    fn note_link(&mut self, change: &Change, is_directory: bool) -> Result<()> {
        match change {
            Change::Put { path, content, .. } => {
                self.links.replace(path, is_directory);
                if let Content::Symlink { target } = content {
                    self.links.add(path, target, self.number)?;
                }
            }
            Change::Link { path, target } => {
                self.links.replace(path, false);
                self.links.add_name(path, target, self.number)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Where a path of a layer ends that leads through symbolic links of its own.
    fn behind_links(&mut self, path: RepoPath, place: &Place<'_>) -> Result<RepoPath> {
        // Directories are none.
        if path.is_in(&self.last) || path.parent().is_some_and(|parent| self.directories.contains(&parent.path_hash()))
        {
            return Ok(path);
        }
        let (path, remark) = self.links.follow(path, &self.options.base_dir).map_err(|error| match error {
            Error::InvalidInput { reason, .. } => place.refuse(&reason),
            other => other,
        })?;
        self.warnings.extend(remark.map(|remark| format!("{place}: {remark}")));
        Ok(path)
    }

    /// After something is gone: directories would have to be made again, files are in nobody's way.
    fn forget_places(&mut self) {
        self.directories = HashSet::from([RepoPath::root().path_hash()]);
        self.files.clear();
        self.last = RepoPath::root();
    }

    fn is_whiteout(&self, path: &RepoPath) -> bool {
        let base = self.options.base_dir.components().count();
        path.components().skip(base).any(|name| name.starts_with(WHITEOUT))
    }

    fn queue_whiteout(&mut self, path: &RepoPath, place: &Place<'_>) -> Result<()> {
        let directory = path.parent().unwrap_or_default();
        let name = path.name().strip_prefix(WHITEOUT).unwrap_or_default();
        let hidden = if path.name() == OPAQUE {
            self.links.forget(&directory, self.number);
            Change::Opaque { path: directory }
        } else if self.is_whiteout(&directory) || name.starts_with(WHITEOUT) {
            // The union file system's own housekeeping, which never is in the tree.
            return Ok(());
        } else {
            let path = directory.child(name).map_err(|_| place.refuse("a whiteout of nothing"))?;
            refuse_generated(&path).map_err(|_| place.refuse("/.cvmfs is generated by publishing"))?;
            self.links.forget(&path, self.number);
            Change::Whiteout { path }
        };
        self.forget_places();
        self.queue.push_back(hidden);
        Ok(())
    }

    /// Where in the repository an entry or link target goes.
    fn repository_path(&mut self, name: &[u8], place: &Place<'_>) -> Result<RepoPath> {
        let below = RepoPath::from_bytes(name).map_err(|error| match error {
            Error::InvalidInput { reason, .. } => place.refuse(&reason),
            other => other,
        })?;
        // The root itself is the same however it is written; umoci writes it so.
        if name.starts_with(b"/") && !below.is_root() {
            self.warnings.push(format!(
                "{place}: the absolute name {:?} is taken relative to the base directory",
                display(name)
            ));
        }
        Ok(self.options.base_dir.join(&below))
    }

    fn check_place(&self, path: &RepoPath, kind: &EntryKind, place: &Place<'_>) -> Result<()> {
        refuse_generated(path).map_err(|_| place.refuse("/.cvmfs is generated by publishing"))?;
        let parent = path.parent().unwrap_or_default();
        if path.name() == MARKER {
            if !matches!(kind, EntryKind::File { .. } | EntryKind::HardLink { .. }) {
                return Err(place.refuse("a catalog marker must be a regular file"));
            }
            if parent.is_root() {
                return Err(place.refuse("the root directory cannot be a nested catalog"));
            }
        }
        // The parent was checked with the entry before if it is known to be a directory.
        if path.is_in(&self.last) || self.directories.contains(&parent.path_hash()) {
            return Ok(());
        }
        let in_the_way = path.ancestors().into_iter().find(|ancestor| self.files.contains(&ancestor.path_hash()));
        match in_the_way {
            Some(ancestor) => Err(place.refuse(&format!("{ancestor} is not a directory"))),
            None => Ok(()),
        }
    }

    fn metadata(&mut self, entry: &Entry, place: &Place<'_>) -> Result<Metadata> {
        let owner = |map: &IdMap, id: u64| map.map(id).ok_or_else(|| place.refuse(&format!("owner {id} is too large")));
        let nanoseconds = entry.mtime.nanoseconds.filter(|_| self.options.mtime_nanoseconds);
        let mut xattrs = Xattrs::new();
        if self.options.xattrs {
            let (taken, left_out) = Xattrs::collect(entry.xattrs.iter().map(|(key, value)| (&key[..], &value[..])));
            xattrs = taken;
            self.warnings.extend(left_out.into_iter().map(|reason| format!("{place}: {reason}")));
        }
        Ok(Metadata {
            permissions: u32::from(entry.mode),
            uid: owner(&self.options.ownership.uid, entry.uid)?,
            gid: owner(&self.options.ownership.gid, entry.gid)?,
            mtime: Mtime { seconds: entry.mtime.seconds, nanoseconds },
            xattrs,
        })
    }

    /// Queues what makes sure that all directories above `path` exist.
    fn ensure_ancestors(&mut self, path: &RepoPath) {
        if path.is_in(&self.last) {
            return;
        }
        let parent = path.parent().unwrap_or_default();
        if !self.directories.contains(&parent.path_hash()) {
            for ancestor in path.ancestors() {
                self.ensure(ancestor);
            }
        }
        self.last = parent;
    }

    fn ensure(&mut self, path: RepoPath) {
        if self.directories.insert(path.path_hash()) {
            let metadata = self.implied();
            self.queue.push_back(Change::Ensure { path, metadata });
        }
    }

    fn implied(&self) -> Metadata {
        let (uid, gid) = self.options.ownership.implied;
        Metadata { permissions: 0o755, uid, gid, mtime: Mtime::seconds(self.options.now.0), xattrs: Xattrs::new() }
    }
}

impl ChangeSource for TarSource {
    fn next(&mut self) -> Result<Option<Change>> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Ok(Some(change));
            }
            let Some(Current { name, archive, offset }) = &mut self.current else {
                if self.open_next()? {
                    continue;
                }
                return Ok(None);
            };
            match archive.next().map_err(|error| in_archive(name, &error))? {
                Some(entry) => {
                    *offset = entry.offset;
                    let name = Arc::clone(name);
                    self.queue_entry(&name, entry)?;
                }
                None => self.current = None,
            }
        }
    }

    fn origin(&self) -> Option<Origin> {
        let Current { name, offset, .. } = self.current.as_ref()?;
        Some(Origin { source: Arc::clone(name), offset: Some(*offset) })
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.current {
            Some(Current { name, archive, .. }) => archive
                .read(buffer)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, in_archive(name, &error))),
            None => Ok(0),
        }
    }

    fn preview(&self) -> Result<Option<Box<dyn ChangeSource>>> {
        let again: Option<Vec<&Path>> = self.inputs.iter().map(|input| input.file.as_deref()).collect();
        let Some(again) = again else { return Ok(None) };
        let inputs = again.into_iter().map(Input::file).collect::<Result<_>>()?;
        Ok(Some(Box::new(Self::new(inputs, self.options.clone())?)))
    }

    fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

/// An entry of an archive, for messages.
struct Place<'a> {
    archive: &'a str,
    path: &'a [u8],
    offset: u64,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: entry {:?} at byte {}", self.archive, display(self.path), self.offset)
    }
}

impl Place<'_> {
    fn refuse(&self, reason: &str) -> Error {
        Error::invalid(self.to_string(), reason)
    }
}

fn refuse_generated(path: &RepoPath) -> Result<()> {
    if path.is_generated() {
        return Err(Error::invalid(path.to_string(), "/.cvmfs is generated by publishing"));
    }
    Ok(())
}

/// An archive's failure in our vocabulary, with the archive's name and the system's or decoder's reason.
fn in_archive(name: &str, error: &ArchiveError) -> Error {
    let mut reason = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        reason.push_str(&format!(": {cause}"));
    }
    match error {
        ArchiveError::Truncated { .. } | ArchiveError::Malformed { .. } | ArchiveError::Decompression { .. } => {
            Error::malformed(name, reason)
        }
        ArchiveError::Unsupported { .. } | ArchiveError::TooLarge { .. } | ArchiveError::Io { .. } => {
            Error::invalid(name, reason)
        }
    }
}
