//! Changes of the tree that need no file data: remove, move, copy, link, make directories, permissions, owners.
//!
//! An edit looks at a tree and says what changes; [`apply`] makes a revision of it, or adds it to the open transaction.
//! A copy is rows of catalogs only: its files are the objects of the original.

use std::collections::BTreeMap;

use cvmfs_core::catalog::Row;
use cvmfs_core::change::{Change, Content, Metadata};
use cvmfs_core::commit::{self, Publisher};
use cvmfs_core::diff::{self, Side};
use cvmfs_core::entry::Mtime;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::publication::{Destination, Draft, Finished};
use cvmfs_core::repository::Selector;
use cvmfs_core::tree::Tree;
use cvmfs_core::xattr::Xattrs;

use crate::mode::ModeChange;

/// One change of the tree.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Removes what is at a path.
    Remove {
        /// Where.
        path: RepoPath,
        /// Whether it may be a directory with everything below it.
        recursive: bool,
        /// Whether it is fine if there is nothing.
        missing_ok: bool,
    },
    /// Makes a directory.
    MakeDirectory {
        /// Where.
        path: RepoPath,
        /// Whether parents are made as well, and a directory that exists is fine.
        parents: bool,
        /// Permission bits.
        permissions: u32,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Where.
        path: RepoPath,
        /// What it says; not empty.
        target: Vec<u8>,
    },
    /// Gives a file one more name.
    Link {
        /// The new name.
        path: RepoPath,
        /// An existing one.
        target: RepoPath,
    },
    /// Moves what is at a path to another one, where nothing is.
    Move {
        /// From here.
        from: RepoPath,
        /// To here.
        to: RepoPath,
    },
    /// Copies what is at a path, of this or of another revision, to another one.
    Copy {
        /// From here.
        from: RepoPath,
        /// To here.
        to: RepoPath,
        /// The revision that it is copied from; `None` for the tree that is edited.
        revision: Option<Selector>,
        /// Whether what is there now is replaced.
        replace: bool,
    },
    /// Changes permissions.
    SetMode {
        /// Where.
        path: RepoPath,
        /// How.
        mode: ModeChange,
        /// Whether of everything below as well.
        recursive: bool,
    },
    /// Changes owners.
    SetOwner {
        /// Where.
        path: RepoPath,
        /// The new owner; `None` keeps it.
        uid: Option<u32>,
        /// The new group; `None` keeps it.
        gid: Option<u32>,
        /// Whether of everything below as well.
        recursive: bool,
    },
}

/// Makes edits, all or none: in the open transaction if there is one, as a revision of their own otherwise.
///
/// New directories and links belong to `owner`, a user and a group.
///
/// # Errors
/// `InvalidInput` for an edit that is not possible in the tree, and all those of a commit.
pub fn apply(
    publisher: &Publisher,
    edits: &[Edit],
    owner: (u32, u32),
    options: &commit::Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Finished> {
    let destination = match publisher.transaction()? {
        Some(_) => Destination::Transaction,
        None => Destination::Revision,
    };
    let publisher = &publisher.for_operation();
    let mut draft = Draft::begin(publisher, destination, options.now, options.patience, cancel)?;
    let mut editor = Editor { publisher, owner, now: options.now, tree: draft.tree()? };
    // Each edit sees the tree as it was before all of them, so two that meet are refused or the later one wins.
    for edit in edits {
        let changes = draft.changes();
        if let Edit::Copy { revision: Some(selector), .. } = edit {
            changes.need_revision(publisher.head(options.now)?.tree(selector)?.root())?;
        }
        editor.make(edit, &mut |change| changes.record(change))?;
    }
    draft.finish_edits(&editor.tree, options, progress, cancel)
}

type Record<'a> = &'a mut dyn FnMut(Change) -> Result<()>;

struct Editor<'a> {
    publisher: &'a Publisher,
    owner: (u32, u32),
    now: cvmfs_core::clock::UnixSeconds,
    tree: Tree,
}

impl Editor<'_> {
    fn make(&mut self, edit: &Edit, record: Record<'_>) -> Result<()> {
        match edit {
            Edit::Remove { path, recursive, missing_ok } => self.remove(path, *recursive, *missing_ok, record),
            Edit::MakeDirectory { path, parents, permissions } => {
                self.make_directory(path, *parents, *permissions, record)
            }
            Edit::Symlink { path, target } => {
                self.check_free(path)?;
                let content = Content::Symlink { target: target.clone() };
                record(Change::Put { path: path.clone(), metadata: self.metadata(0o777), content })
            }
            Edit::Link { path, target } => {
                self.check_free(path)?;
                record(Change::Link { path: path.clone(), target: target.clone() })
            }
            Edit::Move { from, to } => {
                self.check_free(to)?;
                self.copy(from, to, None, record)?;
                record(Change::Remove { path: from.clone() })
            }
            Edit::Copy { from, to, revision, replace } => {
                if !replace {
                    self.check_free(to)?;
                }
                let tree =
                    revision.as_ref().map(|selector| self.publisher.head(self.now)?.tree(selector)).transpose()?;
                self.copy(from, to, tree, record)
            }
            Edit::SetMode { path, mode, recursive } => {
                let change = |metadata: &mut Metadata, content: &Content| {
                    // A symbolic link has no permissions of its own.
                    if !matches!(content, Content::Symlink { .. }) {
                        let is_directory = matches!(content, Content::Directory);
                        metadata.permissions = mode.apply(metadata.permissions, is_directory);
                    }
                };
                self.set_metadata(path, *recursive, &change, record)
            }
            Edit::SetOwner { path, uid, gid, recursive } => {
                let change = |metadata: &mut Metadata, _: &Content| {
                    metadata.uid = uid.unwrap_or(metadata.uid);
                    metadata.gid = gid.unwrap_or(metadata.gid);
                };
                self.set_metadata(path, *recursive, &change, record)
            }
        }
    }

    fn remove(&mut self, path: &RepoPath, recursive: bool, missing_ok: bool, record: Record<'_>) -> Result<()> {
        match self.tree.find(path)? {
            None if missing_ok => Ok(()),
            None => Err(nothing(path)),
            Some(row) if row.entry.is_directory() && !recursive => {
                Err(Error::invalid(path.to_string(), "it is a directory: say that it goes with everything below it"))
            }
            Some(_) => record(Change::Remove { path: path.clone() }),
        }
    }

    fn make_directory(&mut self, path: &RepoPath, parents: bool, permissions: u32, record: Record<'_>) -> Result<()> {
        if parents {
            for ancestor in path.ancestors() {
                record(Change::Ensure { path: ancestor, metadata: self.metadata(0o755) })?;
            }
            return record(Change::Ensure { path: path.clone(), metadata: self.metadata(permissions) });
        }
        self.check_free(path)?;
        record(Change::Put { path: path.clone(), metadata: self.metadata(permissions), content: Content::Directory })
    }

    /// Copies from another tree, or within the one that is edited.
    fn copy(&mut self, from: &RepoPath, to: &RepoPath, other: Option<Tree>, record: Record<'_>) -> Result<()> {
        let within = other.is_none();
        if within && to.starts_with(from) {
            return Err(Error::invalid(to.to_string(), format!("it is in {from} itself")));
        }
        let mut source = match other {
            Some(tree) => tree,
            None => self.tree.clone(),
        };
        let row = source.find(from)?.ok_or_else(|| nothing(from))?;
        if row.entry.is_directory() {
            return diff::changes(Side::at(&mut self.tree, to.clone()), Side::at(&mut source, from.clone()), record);
        }
        if within && from.parent() == to.parent() && row.hardlinks.group != 0 {
            // Another name of the same file; a file moved this way keeps its other names.
            return record(Change::Link { path: to.clone(), target: from.clone() });
        }
        let (metadata, content) = row.entry.into_parts();
        record(Change::Put { path: to.clone(), metadata, content })
    }

    fn set_metadata(
        &mut self,
        top: &RepoPath,
        recursive: bool,
        change: &dyn Fn(&mut Metadata, &Content),
        record: Record<'_>,
    ) -> Result<()> {
        let row = self.tree.find(top)?.ok_or_else(|| nothing(top))?;
        let mut rows = vec![(top.clone(), row.clone())];
        if row.hardlinks.group != 0
            && let Some(directory) = top.parent()
        {
            // Names of one file have one set of metadata.
            for sibling in self.tree.list(&directory)? {
                if sibling.hardlinks.group == row.hardlinks.group && sibling.name != top.name() {
                    rows.push((directory.child(&sibling.name)?, sibling));
                }
            }
        }
        // The first name of each group of hard links, by directory and group.
        let mut first_names: BTreeMap<(RepoPath, u32), RepoPath> = BTreeMap::new();
        let mut set = |path: &RepoPath, row: &Row| {
            let group = row.hardlinks.group;
            if group != 0 {
                let directory = path.parent().unwrap_or_default();
                if let Some(first) = first_names.get(&(directory.clone(), group)) {
                    return record(Change::Link { path: path.clone(), target: first.clone() });
                }
                first_names.insert((directory, group), path.clone());
            }
            let (mut metadata, content) = row.entry.clone().into_parts();
            change(&mut metadata, &content);
            record(Change::Put { path: path.clone(), metadata, content })
        };
        if recursive {
            return self.tree.walk(top, &mut set);
        }
        rows.iter().try_for_each(|(path, row)| set(path, row))
    }

    /// Nothing may be at the path, and its parent must be a directory.
    fn check_free(&mut self, path: &RepoPath) -> Result<()> {
        let parent = path.parent().ok_or_else(|| Error::invalid("/", "it is the root directory"))?;
        match self.tree.find(&parent)? {
            Some(row) if row.entry.is_directory() => {}
            Some(_) => return Err(Error::invalid(path.to_string(), format!("{parent} is not a directory"))),
            None => return Err(Error::invalid(path.to_string(), format!("there is no directory {parent}"))),
        }
        match self.tree.find(path)? {
            Some(_) => Err(Error::invalid(path.to_string(), "there is something already")),
            None => Ok(()),
        }
    }

    fn metadata(&self, permissions: u32) -> Metadata {
        let (uid, gid) = self.owner;
        Metadata { permissions, uid, gid, mtime: Mtime::seconds(self.now.0), xattrs: Xattrs::new() }
    }
}

fn nothing(path: &RepoPath) -> Error {
    Error::invalid(path.to_string(), "there is nothing")
}
