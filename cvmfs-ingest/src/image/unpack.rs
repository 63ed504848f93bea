//! Layers as changes of a repository: each on its own, and all of an image as one tree.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use cvmfs_core::change::{Change, Content};
use cvmfs_core::entry::Entry;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::xattr::Xattrs;

use super::layout::bookkeeping::{Permissions, Whiteouts};
use super::rows::{Rows, Says, Statement};
use super::stack::{Merged, Stack};
use super::whiteout;

/// Unpacks one layer, with its removals in one of their forms.
#[derive(Debug)]
pub struct Unpack {
    rows: Box<dyn Rows>,
    /// All layers of the image, to find what a hard link into lower layers names, and which of them this is.
    image: Rc<RefCell<Stack>>,
    index: usize,
    top: RepoPath,
    form: Whiteouts,
    /// First names of files with several.
    named: HashMap<i64, RepoPath>,
    /// A change that belongs to the one before.
    also: Option<Change>,
    unnamed: Vec<String>,
}

impl Unpack {
    /// Unpacks the layer `index` of an image to the directory `top`.
    pub fn new(rows: Box<dyn Rows>, image: Rc<RefCell<Stack>>, index: usize, top: RepoPath, form: Whiteouts) -> Self {
        Self { rows, image, index, top, form, named: HashMap::new(), also: None, unnamed: Vec::new() }
    }

    /// The next change; files are stored already, or empty.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        if let Some(change) = self.also.take() {
            return Ok(Some(change));
        }
        let Some(Statement { path: below, says, clears }) = self.rows.next()? else { return Ok(None) };
        let path = self.top.join(&below);
        Ok(Some(match says {
            Says::Somehow(entry) => {
                self.unnamed.push(below.path_hash().to_hex());
                // As in the layers below, so that layers that are mounted on top of each other show what they do.
                let lower = self.image.borrow_mut().find_in(self.index, &below)?;
                self.directory(path, lower.filter(Entry::is_directory).unwrap_or(entry), clears)?
            }
            Says::Put(entry, _) if entry.is_directory() => self.directory(path, entry, clears)?,
            Says::Put(entry, None) => put(path, entry),
            Says::Put(entry, Some(group)) => match self.named.get(&group) {
                Some(target) => Change::Link { path, target: target.clone() },
                None => {
                    self.named.insert(group, path.clone());
                    put(path, entry)
                }
            },
            Says::Link(target) => match self.image.borrow_mut().find_in(self.index, &target)? {
                Some(entry) if !entry.is_directory() => put(path, entry),
                _ => return Err(Error::invalid(path.to_string(), format!("hard link to {target}, which is no file"))),
            },
            Says::Gone => self.removal(&path)?,
        }))
    }

    /// The directories so far that the layer only implies, as hashes of their paths.
    pub fn unnamed(&self) -> &[String] {
        &self.unnamed
    }

    fn directory(&mut self, path: RepoPath, mut entry: Entry, clears: bool) -> Result<Change> {
        match self.form {
            Whiteouts::Aufs if clears => self.also = Some(whiteout_file(path.child(whiteout::OPAQUE)?)),
            Whiteouts::Overlay if clears => whiteout::make_opaque(&mut entry)?,
            _ => {}
        }
        Ok(put(path, entry))
    }

    fn removal(&self, path: &RepoPath) -> Result<Change> {
        let directory = path.parent().unwrap_or_default();
        match self.form {
            Whiteouts::Aufs => Ok(whiteout_file(directory.child(&whiteout::name_of(path.name()))?)),
            Whiteouts::Overlay => Ok(put(path.clone(), whiteout::device())),
        }
    }
}

/// The attribute of a tree's root that says how permissions were kept in it; `keep` if it has none. What is written down about
/// an image goes with its name, and the tree may outlive that or have several names.
const PERMISSIONS: &[u8] = b"user.cvmfs.permissions";
const WORLD_READABLE: &[u8] = b"world-readable";

impl Permissions {
    /// How permissions were kept in a tree, by the entry of its root.
    pub fn of_tree(root: &Entry) -> Self {
        if root.xattrs.get(PERMISSIONS) == Some(WORLD_READABLE) { Self::WorldReadable } else { Self::Keep }
    }

    fn note(self, root: &mut Entry) -> Result<()> {
        // An image may have been made of such a tree.
        (root.xattrs, _) = Xattrs::collect(root.xattrs.iter().filter(|(name, _)| *name != PERMISSIONS));
        match self {
            Self::Keep => Ok(()),
            Self::WorldReadable => root.xattrs.set(PERMISSIONS, WORLD_READABLE),
        }
    }

    fn apply(self, entry: &mut Entry) {
        if self == Self::Keep {
            return;
        }
        // A directory is of no use to anybody unless it can be listed and entered, a file unless it can be read.
        let owner = if entry.is_directory() { 0o500 } else { 0o400 };
        let granted = (entry.permissions | owner) & 0o500;
        entry.permissions |= granted | granted >> 3 | granted >> 6;
    }
}

/// Unpacks all layers of an image as one tree.
#[derive(Debug)]
pub struct Flatten {
    image: Stack,
    top: RepoPath,
    permissions: Permissions,
}

impl Flatten {
    /// Unpacks an image to the directory `top`.
    pub fn new(image: Stack, top: RepoPath, permissions: Permissions) -> Self {
        Self { image, top, permissions }
    }

    /// The symbolic links so far that are directories now, because a higher layer has something below them.
    pub fn take_covered(&mut self) -> Vec<RepoPath> {
        self.image.take_covered()
    }

    /// The next change; files are stored already.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        let Some(Merged { path, mut entry, same_as }) = self.image.next_entry()? else { return Ok(None) };
        if path.is_root() {
            // Its owner must be able to change it, or nobody could remove the image.
            entry.permissions |= 0o700;
            self.permissions.note(&mut entry)?;
        }
        let path = self.top.join(&path);
        if let Some(target) = same_as {
            return Ok(Some(Change::Link { path, target: self.top.join(&target) }));
        }
        self.permissions.apply(&mut entry);
        Ok(Some(put(path, entry)))
    }
}

fn put(path: RepoPath, entry: Entry) -> Change {
    let (metadata, content) = entry.into_parts();
    Change::Put { path, metadata, content }
}

fn whiteout_file(path: RepoPath) -> Change {
    let (metadata, _) = whiteout::unnamed_directory().into_parts();
    Change::Put {
        path,
        metadata: cvmfs_core::change::Metadata { permissions: 0o644, ..metadata },
        content: Content::Read { size: 0 },
    }
}
