//! From what was found at a path, and what the repository has there, to changes.
//!
//! A file is taken for unchanged if type, size and modification time are the same (or its bytes, if those are compared);
//! then it is never read. If only the rest of its metadata differs, the entry is put anew with the objects that it has.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use cvmfs_core::catalog::Row;
use cvmfs_core::change::{Change, Content, Metadata};
use cvmfs_core::entry::{Entry, EntryKind, FileContent, Mtime};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::object::read_error;
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::Cancel;
use cvmfs_core::tree::Tree;
use cvmfs_core::xattr::Xattrs;

use super::listing::{Found, Kind, Status, Top, changed, file_status};
use super::source::Shows;

/// Bytes compared at a time.
const BLOCK_SIZE: usize = 256 * 1024;
/// Most files with several names of which is remembered where they were put. Others are read once for each directory.
const MAX_LINKED: usize = 200_000;

/// How the metadata of entries is taken.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The owner of everything; `None` keeps what the directory says.
    pub uid: Option<u32>,
    /// The group of everything; `None` keeps what the directory says.
    pub gid: Option<u32>,
    /// Whether extended attributes are taken.
    pub xattrs: bool,
    /// Whether times are taken to the nanosecond.
    pub mtime_nanoseconds: bool,
    /// Whether files of the same size are compared byte by byte instead of by their modification time.
    pub checksum: bool,
}

/// An entry to be compared with what the repository has at its path.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) found: Found,
    pub(super) row: Option<Row>,
    /// Content that is known without reading: of a graft, or of a copied-up entry without data.
    pub(super) known: Option<FileContent>,
}

/// A change to come.
#[derive(Debug)]
pub(super) enum Step {
    Change(Change),
    /// A regular file to be read.
    Read(ToRead),
}

/// A regular file to be read.
#[derive(Debug, Clone)]
pub(super) struct ToRead {
    path: RepoPath,
    below: RepoPath,
    xattrs: Xattrs,
    inode: (u64, u64),
}

/// What became of a file under a name in another directory.
#[derive(Debug, Clone)]
enum Linked {
    /// It was put at this path, once its content is stored.
    Put(RepoPath),
    /// It has this content already.
    Stored(Content),
}

/// Compares entries and reads files.
#[derive(Debug)]
pub(super) struct Comparer {
    pub(super) top: Arc<Top>,
    pub(super) policy: Policy,
    pub(super) tree: Tree,
    pub(super) warnings: Vec<String>,
    /// Says when to stop; much may be compared before there is a change.
    pub(super) cancel: Cancel,
    /// Files with names in several directories, and how many names are still to come.
    linked: HashMap<(u64, u64), (Linked, u64)>,
    current: Option<OpenFile>,
}

/// The file whose content is being read.
#[derive(Debug)]
struct OpenFile {
    file: File,
    status: Status,
    what: ToRead,
    /// Whether it is being read for the second time.
    again: bool,
}

impl Comparer {
    pub(super) fn new(top: Arc<Top>, policy: Policy, tree: Tree, cancel: Cancel) -> Self {
        Self { top, policy, tree, warnings: Vec::new(), cancel, linked: HashMap::new(), current: None }
    }

    /// What the catalog would say of an entry, its kind apart.
    pub(super) fn metadata(&mut self, below: &RepoPath, status: &Status, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Metadata {
        let xattrs = self.xattrs(below, xattrs);
        self.metadata_with(status, xattrs)
    }

    fn metadata_with(&self, status: &Status, xattrs: Xattrs) -> Metadata {
        let nanoseconds = status.mtime.nanoseconds.filter(|_| self.policy.mtime_nanoseconds);
        Metadata {
            permissions: status.permissions,
            uid: self.policy.uid.unwrap_or(status.uid),
            gid: self.policy.gid.unwrap_or(status.gid),
            mtime: Mtime { nanoseconds, ..status.mtime },
            xattrs,
        }
    }

    fn xattrs(&mut self, below: &RepoPath, found: &[(Vec<u8>, Vec<u8>)]) -> Xattrs {
        if found.is_empty() {
            return Xattrs::new();
        }
        let (xattrs, left_out) = Xattrs::collect(found.iter().map(|(key, value)| (&key[..], &value[..])));
        if !left_out.is_empty() {
            let path = self.top.path(below);
            self.warnings.extend(left_out.into_iter().map(|reason| format!("{}: {reason}", path.display())));
        }
        xattrs
    }

    /// Whether the entry of a row has this metadata, as far as both know it.
    fn has_metadata(&mut self, entry: &Entry, below: impl FnOnce() -> Result<RepoPath>, found: &Found) -> Result<bool> {
        let status = &found.status;
        Ok(entry.permissions == status.permissions
            && entry.uid == self.policy.uid.unwrap_or(status.uid)
            && entry.gid == self.policy.gid.unwrap_or(status.gid)
            && self.is_same_time(entry.mtime, status.mtime)
            && if found.xattrs.is_empty() {
                entry.xattrs.is_empty()
            } else {
                // What was left out is said again, though the entry is the same.
                entry.xattrs == self.xattrs(&below()?, &found.xattrs)
            })
    }

    /// Whether two times are the same, as far as both know them.
    pub(super) fn is_same_time(&self, recorded: Mtime, found: Mtime) -> bool {
        recorded.seconds == found.seconds
            && match (recorded.nanoseconds, found.nanoseconds) {
                (Some(recorded), Some(found)) if self.policy.mtime_nanoseconds => recorded == found,
                _ => true,
            }
    }

    /// Returns the change that makes a directory what was found, unless it is; `shows` is for the directory above it.
    pub(super) fn directory(
        &mut self,
        path: RepoPath,
        below: &RepoPath,
        found: &Found,
        row: Option<&Row>,
        shows: Shows,
    ) -> Result<Option<Change>> {
        if shows == Shows::Everything
            && let Some(row) = row.filter(|row| row.entry.is_directory())
            && self.has_metadata(&row.entry, || Ok(below.clone()), found)?
        {
            return Ok(None);
        }
        let metadata = self.metadata(below, &found.status, &found.xattrs);
        Ok(Some(Change::Put { path, metadata, content: Content::Directory }))
    }

    /// Returns what makes the entries of one directory, none of them a directory, what was found.
    ///
    /// Names of one file become one group: the first is put, the others are links to it.
    pub(super) fn files(
        &mut self,
        directory: &RepoPath,
        below: &RepoPath,
        candidates: Vec<Candidate>,
        shows: Shows,
    ) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let mut linked: BTreeMap<(u64, u64), Vec<Candidate>> = BTreeMap::new();
        for candidate in candidates {
            let status = &candidate.found.status;
            if status.links > 1 && candidate.known.is_none() {
                linked.entry(status.inode).or_default().push(candidate);
            } else {
                self.names_of_file(directory, below, &[candidate], shows, &mut steps)?;
            }
        }
        for names in linked.into_values() {
            self.names_of_file(directory, below, &names, shows, &mut steps)?;
        }
        Ok(steps)
    }

    /// The steps for the names that one file has in a directory.
    fn names_of_file(
        &mut self,
        directory: &RepoPath,
        below: &RepoPath,
        names: &[Candidate],
        shows: Shows,
        steps: &mut Vec<Step>,
    ) -> Result<()> {
        let mut is_same = shows == Shows::Everything && is_group(names);
        let mut content = None;
        for candidate in names {
            let (same, reusable) = self.compare(directory, below, candidate)?;
            is_same &= same;
            content = content.or(reusable);
        }
        let Some((first, others)) = names.split_first() else { return Ok(()) };
        let path = || directory.child(&first.found.name);
        let elsewhere = self.elsewhere(&first.found.status, names.len(), path, content.as_ref())?;
        if is_same {
            return Ok(());
        }
        let path = path()?;
        let below = below.child(&first.found.name)?;
        steps.push(match (content, elsewhere) {
            (None, Some(Linked::Put(target))) => Step::Change(Change::Link { path: path.clone(), target }),
            (None, None) => {
                let xattrs = self.xattrs(&below, &first.found.xattrs);
                let Status { inode, .. } = first.found.status;
                Step::Read(ToRead { path: path.clone(), below, xattrs, inode })
            }
            (Some(content), _) | (None, Some(Linked::Stored(content))) => {
                let metadata = self.metadata(&below, &first.found.status, &first.found.xattrs);
                Step::Change(Change::Put { path: path.clone(), metadata, content })
            }
        });
        for other in others {
            let link = Change::Link { path: directory.child(&other.found.name)?, target: path.clone() };
            steps.push(Step::Change(link));
        }
        Ok(())
    }

    /// Compares an entry with its row: whether they are the same, and the content that it can be put with unread.
    fn compare(
        &mut self,
        directory: &RepoPath,
        below: &RepoPath,
        candidate: &Candidate,
    ) -> Result<(bool, Option<Content>)> {
        let Candidate { found, row, known } = candidate;
        let entry = row.as_ref().map(|row| &row.entry);
        let content = match (found.status.kind, known) {
            (_, Some(known)) => Some(Content::Stored(known.clone())),
            (Kind::Symlink, _) => Some(Content::Symlink { target: found.target.clone() }),
            (Kind::Special(special), _) => Some(Content::Special(special)),
            (Kind::File | Kind::Directory, _) => match entry {
                Some(Entry { kind: EntryKind::File(file), mtime, .. })
                    if file.size == found.status.size
                        && self.is_same_content(directory, below, found, file, *mtime)? =>
                {
                    Some(Content::Stored(file.clone()))
                }
                _ => None,
            },
        };
        let is_same = match (entry, &content) {
            (Some(entry), Some(content)) => {
                let same_kind = match (&entry.kind, content) {
                    (EntryKind::File(old), Content::Stored(new)) => old == new,
                    (EntryKind::Symlink { target: old }, Content::Symlink { target: new }) => old == new,
                    (EntryKind::Special(old), Content::Special(new)) => old == new,
                    _ => false,
                };
                same_kind && self.has_metadata(entry, || below.child(&found.name), found)?
            }
            _ => false,
        };
        Ok((is_same, content))
    }

    /// Whether a file of the right size has the bytes of the repository's.
    fn is_same_content(
        &mut self,
        directory: &RepoPath,
        below: &RepoPath,
        found: &Found,
        stored: &FileContent,
        mtime: Mtime,
    ) -> Result<bool> {
        if !self.policy.checksum || stored.external {
            return Ok(self.is_same_time(mtime, found.status.mtime));
        }
        let path = directory.child(&found.name)?;
        let below = below.child(&found.name)?;
        let place = self.top.path(&below);
        let (file, _) = self.top.open_file(&below)?;
        let mut stored = self.tree.open_file(&path, stored)?;
        let mut blocks = [vec![0; BLOCK_SIZE], vec![0; BLOCK_SIZE]];
        loop {
            self.cancel.check()?;
            let found = read_block(&mut &file, &mut blocks[0]).map_err(|error| Error::io(&place, error))?;
            let length = match read_block(&mut stored, &mut blocks[1]) {
                Ok(length) => length,
                Err(error) => {
                    // Storing the file again repairs it.
                    let error = read_error(&path.to_string(), error);
                    self.warnings.push(format!("{path}: cannot be compared: {error}"));
                    return Ok(false);
                }
            };
            if blocks[0][..found] != blocks[1][..length] {
                return Ok(false);
            }
            if length == 0 {
                return Ok(true);
            }
        }
    }

    /// Where a file with names in other directories was met before, and remembers it for those to come.
    fn elsewhere(
        &mut self,
        status: &Status,
        names: usize,
        path: impl FnOnce() -> Result<RepoPath>,
        content: Option<&Content>,
    ) -> Result<Option<Linked>> {
        let names = names as u64;
        if status.kind != Kind::File || status.links <= names {
            return Ok(None);
        }
        if let Some((linked, left)) = self.linked.get_mut(&status.inode) {
            let linked = linked.clone();
            *left = left.saturating_sub(names);
            if *left == 0 {
                self.linked.remove(&status.inode);
            }
            return Ok(Some(linked));
        }
        if self.linked.len() < MAX_LINKED {
            let linked = match content {
                Some(content) => Linked::Stored(content.clone()),
                None => Linked::Put(path()?),
            };
            self.linked.insert(status.inode, (linked, status.links - names));
        }
        Ok(None)
    }

    /// Opens a file whose turn has come, and returns its entry as it is now.
    pub(super) fn open(&mut self, what: ToRead) -> Result<Change> {
        self.open_again(what, false)
    }

    fn open_again(&mut self, what: ToRead, again: bool) -> Result<Change> {
        let (file, status) = self.top.open_file(&what.below)?;
        if status.inode != what.inode {
            return Err(changed(&self.top.path(&what.below)));
        }
        let metadata = self.metadata_with(&status, what.xattrs.clone());
        let change = Change::Put { path: what.path.clone(), metadata, content: Content::Read { size: status.size } };
        self.current = Some(OpenFile { file, status, what, again });
        Ok(change)
    }

    /// Ends reading a file; one that changed meanwhile is to be read once more.
    ///
    /// # Errors
    /// `Conflict` if it changed for the second time.
    pub(super) fn close(&mut self) -> Result<Option<Change>> {
        let Some(OpenFile { file, status, what, again }) = self.current.take() else { return Ok(None) };
        let path = self.top.path(&what.below);
        let now = file_status(&file, &path)?;
        if (now.size, now.mtime, now.changed) == (status.size, status.mtime, status.changed) {
            return Ok(None);
        }
        if again {
            return Err(changed(&path));
        }
        self.open_again(what, true).map(Some)
    }

    /// Reads content of the open file.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(open) = &mut self.current else { return Ok(0) };
        let path = || self.top.path(&open.what.below);
        match open.file.read(buffer) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::InvalidData, changed(&path()))),
            Ok(size) => Ok(size),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, Error::io(path(), error))),
        }
    }
}

/// Whether rows have these names, and no others, as one group of hard links (or one name as none).
fn is_group(names: &[Candidate]) -> bool {
    let hardlinks = |candidate: &Candidate| candidate.row.as_ref().map(|row| row.hardlinks);
    match names {
        [single] => hardlinks(single).is_some_and(|hardlinks| hardlinks.group == 0),
        [first, others @ ..] => hardlinks(first).is_some_and(|links| {
            links.group != 0
                && usize::try_from(links.count).is_ok_and(|count| count == names.len())
                && others.iter().all(|other| hardlinks(other) == Some(links))
        }),
        [] => true,
    }
}

/// Reads until the block is full or the end is reached.
fn read_block(reader: &mut dyn Read, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match reader.read(&mut block[length..]) {
            Ok(0) => break,
            Ok(size) => length += size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
