//! `--from`: a path of the repository becomes equal to a directory.
//!
//! The sorted listing of each directory is joined with the sorted listing of what the repository has there.
//!
//! How a tree is cut into catalogs is not content of the directory: a marker that the repository has and the directory
//! lacks stays if the commit made it, that is, if it belongs to automatic balancing, is asked for by `.cvmfsdirtab`, or
//! is that of the base directory.

use std::collections::{BTreeSet, VecDeque};

use cvmfs_core::catalog::{AUTO_MARKER, MARKER, Row};
use cvmfs_core::change::Change;
use cvmfs_core::dirtab::{self, Dirtab};
use cvmfs_core::entry::{EntryKind, Mount};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::object::read_error;
use cvmfs_core::path::RepoPath;

use super::compare::{Candidate, Comparer, Step};
use super::graft;
use super::listing::{Found, Kind};
use super::source::{Item, Place, Shows, TreeSource, check_place, read_graft, read_small};
use super::walk::Walk;

/// How directories of the source are taken.
#[derive(Debug)]
pub(super) struct DirectoryRules {
    base_dir: RepoPath,
    delete: bool,
    external: bool,
    /// The rules for nested catalogs, once they were needed.
    dirtab: Option<Dirtab>,
}

impl DirectoryRules {
    pub(super) fn new(base_dir: RepoPath, delete: bool, external: bool) -> Self {
        Self { base_dir, delete, external, dirtab: None }
    }

    /// Finds what a directory needs to become what was found.
    pub(super) fn examine(
        &mut self,
        comparer: &mut Comparer,
        walk: &Walk,
        place: Place,
        found: Vec<Found>,
    ) -> Result<VecDeque<Item>> {
        let Place { path, below, directory, .. } = place;
        let rows = match &directory {
            Some(directory) => directory.list()?,
            None => Vec::new(),
        };
        let mut found = found;
        let grafts = found.extract_if(.., |found| is_graft(found));
        let grafts: BTreeSet<Vec<u8>> =
            grafts.filter_map(|found| found.name.strip_prefix(graft::PREFIX).map(<[u8]>::to_vec)).collect();
        let has = |name: &[u8]| found.binary_search_by(|entry| entry.name[..].cmp(name)).is_ok();
        let markers = Markers {
            found: has(MARKER),
            automatic: rows.binary_search_by(|row| row.name[..].cmp(AUTO_MARKER)).is_ok(),
        };

        let mut items = VecDeque::new();
        let mut enter = Vec::new();
        let mut files = Vec::with_capacity(found.len());
        let mut rows = rows.into_iter().peekable();
        let mut found = found.into_iter().peekable();
        loop {
            let order = match (found.peek(), rows.peek()) {
                (Some(found), Some(row)) => found.name.cmp(&row.name),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => break,
            };
            let found = if order.is_le() { found.next() } else { None };
            let row = if order.is_ge() { rows.next() } else { None };
            // Neither is a user's to change.
            if row.as_ref().is_some_and(|row| row.entry.hidden || row.entry.kind == EntryKind::Directory(Mount::Bind)) {
                continue;
            }
            let Some(mut found) = found else {
                let Some(row) = row else { continue };
                if self.goes(comparer, walk, &path, &below, &row, markers)? {
                    let path = path.child(&row.name)?;
                    items.push_back(Item::Step(Step::Change(Change::Remove { path })));
                }
                continue;
            };
            if found.name.starts_with(b".cvmfs") {
                check_place(&path.child(&found.name)?, found.status.kind)?;
            }
            if found.status.kind == Kind::Directory {
                let (path, below) = (path.child(&found.name)?, below.child(&found.name)?);
                let change = comparer.directory(path.clone(), &below, &found, row.as_ref(), Shows::Everything)?;
                let is_open = !walk.selection().one_file_system || comparer.top.is_same_file_system(&found);
                enter.extend(change.map(|change| Item::Step(Step::Change(change))));
                if is_open {
                    let directory = TreeSource::below(comparer, directory.as_ref(), row.as_ref())?;
                    enter.push(Item::Enter(Place { path, below, directory, shows: Shows::Everything }));
                }
                continue;
            }
            if !self.delete && row.as_ref().is_some_and(|row| row.entry.is_directory()) {
                return Err(Error::invalid(
                    path.child(&found.name)?.to_string(),
                    "it is a directory in the repository, but not in the source; without deleting it cannot change",
                ));
            }
            let known = if grafts.contains(&found.name) && found.status.kind == Kind::File {
                let marker = below.child(&[graft::PREFIX, &found.name].concat())?;
                // The reference keeps none of a graft.
                found.xattrs.clear();
                Some(read_graft(comparer, &marker, self.external)?)
            } else {
                None
            };
            files.push(Candidate { found, row, known });
        }
        items.extend(comparer.files(&path, &below, files, Shows::Everything)?.into_iter().map(Item::Step));
        items.extend(enter);
        Ok(items)
    }

    /// Whether what the repository has and the directory lacks goes.
    fn goes(
        &mut self,
        comparer: &mut Comparer,
        walk: &Walk,
        directory: &RepoPath,
        below: &RepoPath,
        row: &Row,
        markers: Markers,
    ) -> Result<bool> {
        if !self.delete || walk.selection().excludes(&below.child(&row.name)?) {
            return Ok(false);
        }
        match &row.name[..] {
            AUTO_MARKER => Ok(markers.found),
            MARKER if markers.automatic || *directory == self.base_dir => Ok(false),
            MARKER => Ok(!self.dirtab(comparer)?.matches(directory)),
            _ => Ok(true),
        }
    }

    /// The rules that the commit will follow.
    fn dirtab(&mut self, comparer: &mut Comparer) -> Result<&Dirtab> {
        if self.dirtab.is_none() {
            let text = self.read_dirtab(comparer)?;
            self.dirtab = Some(Dirtab::parse(&text)?);
        }
        Ok(self.dirtab.get_or_insert_default())
    }

    fn read_dirtab(&self, comparer: &mut Comparer) -> Result<Vec<u8>> {
        let path = RepoPath::root().child(dirtab::NAME)?;
        if self.base_dir.is_root() {
            match read_small(comparer, &path, dirtab::MAX_SIZE) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    if self.delete {
                        return Ok(Vec::new());
                    }
                }
                result => return result,
            }
        }
        match comparer.tree.find(&path)?.map(|row| row.entry.kind) {
            Some(EntryKind::File(file)) => {
                let mut text = Vec::new();
                let mut reader = comparer.tree.open_file(&path, &file)?;
                std::io::Read::read_to_end(&mut reader, &mut text)
                    .map_err(|error| read_error(&path.to_string(), error))?;
                Ok(text)
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// What a directory has of catalog markers.
#[derive(Debug, Clone, Copy)]
struct Markers {
    /// The source has the marker of a nested catalog.
    found: bool,
    /// The repository has the one that says that it was made by automatic balancing.
    automatic: bool,
}

fn is_graft(found: &Found) -> bool {
    found.status.kind == Kind::File && found.name.starts_with(graft::PREFIX)
}
