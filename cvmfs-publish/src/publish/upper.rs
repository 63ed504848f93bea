//! `--upper`: what the upper directory of an overlay file system changes in the tree below it.
//!
//! The upper directory has only what changed: entries are put, whiteouts remove, opaque directories start empty. What
//! overlays write there is told in [`super::overlay`].

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

use cvmfs_core::catalog::Row;
use cvmfs_core::change::Change;
use cvmfs_core::entry::{Entry, EntryKind, FileContent, Mount};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::{RepoPath, display};

use super::compare::{Candidate, Comparer, Step};
use super::graft;
use super::listing::{Found, Kind, sees_trusted_attributes};
use super::overlay::{Signs, Upper, interpret};
use super::source::{Item, Options, Place, Shows, TreeSource, check_place, read_graft};

/// How directories of an upper directory are taken.
#[derive(Debug)]
pub(super) struct UpperRules {
    base_dir: RepoPath,
    external: bool,
    xattrs: bool,
}

impl UpperRules {
    /// Prepares to read the upper directory of an overlay that was mounted with or without `userxattr`.
    ///
    /// # Errors
    /// `InvalidInput` if signs of the overlay cannot be seen: what was removed would come back.
    pub(super) fn new(path: &Path, userxattr: bool, base_dir: RepoPath, options: &Options) -> Result<Self> {
        if !userxattr && !sees_trusted_attributes(path) {
            return Err(Error::invalid(
                path.display().to_string(),
                "the attributes trusted.overlay.* can only be seen by root; if the overlay was mounted with userxattr, \
                 or by fuse-overlayfs, say --userxattr",
            ));
        }
        Ok(Self { base_dir, external: options.external, xattrs: options.policy.xattrs })
    }

    /// An entry without the overlay's own attributes, and without any if none are wanted.
    fn interpret(&self, path: &dyn std::fmt::Display, found: Found) -> Result<Upper> {
        let mut upper = interpret(found).map_err(|reason| Error::invalid(path.to_string(), reason))?;
        if !self.xattrs
            && let Upper::Entry(found, _) = &mut upper
        {
            found.xattrs.clear();
        }
        Ok(upper)
    }

    /// The top directory without the overlay's own attributes, and what shows through.
    pub(super) fn top(&self, found: Found) -> Result<(Found, Shows)> {
        match self.interpret(&self.base_dir, found)? {
            Upper::Entry(_, signs) if signs.opaque && self.base_dir.is_root() => {
                Err(Error::invalid("/", "the upper directory hides all of the repository (attribute overlay.opaque)"))
            }
            Upper::Entry(found, signs) => Ok((found, shows_below(Shows::Everything, &signs))),
            _ => Err(Error::invalid(self.base_dir.to_string(), "the upper directory is a whiteout")),
        }
    }

    /// Finds what a directory of the upper directory changes.
    pub(super) fn examine(&self, comparer: &mut Comparer, place: Place, found: Vec<Found>) -> Result<VecDeque<Item>> {
        let Place { path: directory_path, below: directory_below, directory, mut shows } = place;
        let mut entries = Vec::new();
        let mut removed = Vec::new();
        let mut grafts = BTreeSet::new();
        for found in found {
            let below = directory_below.child(&found.name)?;
            let place = comparer.top.path(&below);
            match self.interpret(&place.display(), found)? {
                Upper::Whiteout(name) => removed.push(name),
                Upper::OpaqueMarker if shows == Shows::Everything => shows = Shows::Nothing,
                Upper::OpaqueMarker | Upper::Ignored => {}
                Upper::Entry(found, _) if found.status.kind == Kind::File && found.name.starts_with(graft::PREFIX) => {
                    grafts.extend(found.name.strip_prefix(graft::PREFIX).map(<[u8]>::to_vec));
                }
                Upper::Entry(found, signs) => entries.push((found, signs)),
            }
        }

        let mut items = VecDeque::new();
        if shows == Shows::Nothing && directory.is_some() {
            items.push_back(change(Change::Clear { path: directory_path.clone() }));
        }
        for name in removed {
            let path = directory_path.child(&name)?;
            let is_there = match &directory {
                Some(directory) => directory.find(&name)?.is_some_and(|row| !row.entry.hidden),
                None => false,
            };
            if is_there && shows == Shows::Everything && !entries.iter().any(|(found, _)| found.name == name) {
                items.push_back(change(Change::Remove { path }));
            }
        }
        let (mut enter, mut files) = (Vec::new(), Vec::new());
        for (mut found, signs) in entries {
            let path = directory_path.child(&found.name)?;
            let below = directory_below.child(&found.name)?;
            check_place(&path, found.status.kind)?;
            let row = match &directory {
                Some(directory) => directory.find(&found.name)?,
                None => None,
            };
            if row.as_ref().is_some_and(|row| row.entry.kind == EntryKind::Directory(Mount::Bind)) {
                return Err(Error::invalid(path.to_string(), "it shows another revision and cannot be changed"));
            }
            if found.status.kind == Kind::Directory {
                if signs.redirect.is_some() {
                    return Err(Error::Unsupported {
                        what: format!(
                            "{}: a directory that was renamed in place (attribute overlay.redirect); mount the \
                             overlay with redirect_dir=off, or copy the directory and remove the old one: it",
                            comparer.top.path(&below).display()
                        ),
                    });
                }
                enter.extend(comparer.directory(path.clone(), &below, &found, row.as_ref(), shows)?.map(change));
                let directory = TreeSource::below(comparer, directory.as_ref(), row.as_ref())?;
                enter.push(Item::Enter(Place { path, below, directory, shows: shows_below(shows, &signs) }));
                continue;
            }
            let known = if signs.metacopy {
                Some(self.copied_up(comparer, &directory_path, &path, &found, row.as_ref(), &signs)?)
            } else if found.status.kind == Kind::File && grafts.contains(&found.name) {
                let marker = directory_below.child(&[graft::PREFIX, &found.name].concat())?;
                // The reference keeps none of a graft.
                found.xattrs.clear();
                Some(read_graft(comparer, &marker, self.external)?)
            } else {
                None
            };
            files.push(Candidate { found, row, known });
        }
        items.extend(comparer.files(&directory_path, &directory_below, files, shows)?.into_iter().map(Item::Step));
        items.extend(enter);
        Ok(items)
    }

    /// The content of a file of which only the metadata was copied up.
    fn copied_up(
        &self,
        comparer: &mut Comparer,
        directory: &RepoPath,
        path: &RepoPath,
        found: &Found,
        row: Option<&Row>,
        signs: &Signs,
    ) -> Result<FileContent> {
        let origin = match signs.redirect.as_deref() {
            None => path.clone(),
            Some([b'/', absolute @ ..]) => self.base_dir.join(&RepoPath::from_bytes(absolute)?),
            Some(name) => directory.child(name)?,
        };
        match comparer.tree.find(&origin)?.map(|row| row.entry.kind) {
            Some(EntryKind::File(file)) if file.size == found.status.size => return Ok(file),
            _ => {}
        }
        // It may have been published before.
        match row.map(|row| &row.entry) {
            Some(Entry { kind: EntryKind::File(file), mtime, .. })
                if file.size == found.status.size && comparer.is_same_time(*mtime, found.status.mtime) =>
            {
                Ok(file.clone())
            }
            _ => {
                let reason = format!(
                    "its data was not copied up (attribute overlay.metacopy), and {origin} in the repository is not \
                     the file that it is of; mount the overlay with metacopy=off"
                );
                Err(Error::invalid(display(path.as_bytes()), reason))
            }
        }
    }
}

/// What shows through in a directory of one where so much does.
fn shows_below(above: Shows, signs: &Signs) -> Shows {
    match (above, signs.opaque) {
        (Shows::Everything, false) => Shows::Everything,
        (Shows::Everything, true) => Shows::Nothing,
        (Shows::Nothing | Shows::NothingAbove, _) => Shows::NothingAbove,
    }
}

fn change(change: Change) -> Item {
    Item::Step(Step::Change(change))
}
