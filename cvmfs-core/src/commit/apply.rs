//! Applying a change set to the catalogs of a revision: one pass in tree order, one directory at a time.
//!
//! Directories on the way down are a stack of [`Frame`]s; catalogs on the way down are a stack, too. A directory is
//! *closed* when the pass leaves it: what was to go is removed, hard links are grouped, sub-directories are counted,
//! and the directory becomes a nested catalog or ceases to be one. A catalog is closed with its directory: it is
//! balanced, finished and handed to the workers that store it; by then all catalogs below it are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::entries::Entries;
use super::finish::{Finisher, StoredCatalog, StoringCatalog};
use super::totals::Totals;
use crate::catalog::{Counters, Finish, MARKER, Row, WritableCatalog};
use crate::changeset::{ChangeSet, Op, Pending};
use crate::clock::UnixSeconds;
use crate::entry::{Entry, EntryKind, Hardlinks, Mount};
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash};
use crate::path::RepoPath;
use crate::server::NestingConfig;
use crate::storage::ReadStore;
use crate::tree::Tree;

/// What the pass needs to know and to use.
pub(super) struct Context<'a> {
    pub(super) store: &'a dyn ReadStore,
    pub(super) scratch: &'a Path,
    pub(super) finisher: &'a Finisher,
    pub(super) totals: &'a mut Totals,
    pub(super) changes: &'a ChangeSet,
    pub(super) nesting: &'a NestingConfig,
    pub(super) algorithm: Algorithm,
    pub(super) now: UnixSeconds,
    /// `TTL` property of the root catalog, if it is to be set.
    pub(super) ttl: Option<u32>,
    /// The number of the new revision; `None` for the next.
    pub(super) revision: Option<u64>,
    /// The empty file's content, for markers of catalogs that are split off.
    pub(super) empty_file: &'a EntryKind,
}

/// What became of the tree.
#[derive(Debug)]
pub(super) struct Applied {
    /// The new root catalog; `None` if nothing changed.
    pub(super) root: Option<StoredCatalog>,
    /// Catalogs that were stored.
    pub(super) catalogs: u64,
    /// Their stored bytes.
    pub(super) catalog_bytes: u64,
    /// Entries that were added, changed and removed.
    pub(super) entries: Entries,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

/// Applies all changes to a tree.
pub(super) fn apply(context: Context<'_>, tree: &mut Tree) -> Result<Applied> {
    let root = tree.root();
    let head = tree.root_catalog()?;
    let before = head.statistics()?.total();
    let mut catalog = WritableCatalog::copy_of(&head, RepoPath::root(), context.scratch)?;
    if let Some(ttl) = context.ttl {
        catalog.set_property("TTL", &ttl)?;
    }
    let changes = context.changes;
    let mut pass = Pass {
        context,
        before,
        catalogs: vec![OpenCatalog { catalog, base: Some(root), stored: Vec::new() }],
        frames: vec![Frame::new(RepoPath::root(), true, true)],
        applied: Applied {
            root: None,
            catalogs: 0,
            catalog_bytes: 0,
            entries: Entries::default(),
            warnings: Vec::new(),
        },
    };
    changes.for_each(|pending| pass.apply(pending))?;
    pass.finish()
}

/// A catalog on the way down.
pub(super) struct OpenCatalog {
    pub(super) catalog: WritableCatalog,
    /// The object that it replaces.
    base: Option<ContentHash>,
    /// New versions of catalogs right below it, on their way into the storage.
    pub(super) stored: Vec<StoringCatalog>,
}

/// A directory on the way down.
struct Frame {
    path: RepoPath,
    /// Whether the directory was in the tree before.
    existed: bool,
    /// Whether it is the root of the innermost open catalog.
    is_mount: bool,
    /// Whether entries that the change set does not mention go; with the names of those not mentioned so far.
    unmentioned: Option<BTreeSet<Vec<u8>>>,
    /// Names of one file that the change set puts here, with the group that each was in; by number in the change set.
    links: BTreeMap<i64, Vec<(Vec<u8>, u32)>>,
    /// Groups of hard links that lost a member.
    broken_groups: BTreeSet<u32>,
    directories_changed: bool,
    marker_changed: bool,
}

impl Frame {
    fn new(path: RepoPath, existed: bool, is_mount: bool) -> Self {
        Self {
            path,
            existed,
            is_mount,
            unmentioned: None,
            links: BTreeMap::new(),
            broken_groups: BTreeSet::new(),
            directories_changed: false,
            marker_changed: false,
        }
    }
}

pub(super) struct Pass<'a> {
    pub(super) context: Context<'a>,
    /// What the tree had before.
    before: Counters,
    catalogs: Vec<OpenCatalog>,
    frames: Vec<Frame>,
    pub(super) applied: Applied,
}

impl Pass<'_> {
    fn catalog(&mut self) -> &mut WritableCatalog {
        &mut self.catalogs.last_mut().expect("the root catalog is open until the end").catalog
    }

    fn frame(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("the root directory is open until the end")
    }

    /// Applies one row of the change set.
    fn apply(&mut self, pending: Pending) -> Result<()> {
        let parent = pending.path.parent().unwrap_or_default();
        while !parent.starts_with(&self.frame().path) {
            self.close_frame()?;
        }
        let origin = pending.origin.clone();
        self.apply_below(&parent, pending).map_err(|error| error.from_origin(origin.as_ref()))
    }

    /// Applies a row whose parent is in or below the innermost directory.
    fn apply_below(&mut self, parent: &RepoPath, pending: Pending) -> Result<()> {
        let Pending { path, op, cleared, inode, .. } = pending;
        if path.is_root() {
            return self.apply_to_root(op, cleared);
        }
        if !self.descend(parent, &op)? {
            return Ok(());
        }
        if let Some(unmentioned) = &mut self.frame().unmentioned {
            unmentioned.remove(path.name());
        }
        let old = if self.frame().existed { self.catalog().find(&path)? } else { None };
        match op {
            Op::Remove => self.remove(&path, old),
            Op::Keep => match old {
                Some(row) if row.entry.is_directory() => self.enter(&path, &row, true, cleared),
                Some(_) => Err(Error::invalid(path.to_string(), "only a directory can be cleared")),
                None => Ok(()),
            },
            Op::Ensure(entry) => match old {
                Some(row) if row.entry.is_directory() => self.enter(&path, &row, true, cleared),
                Some(_) if !cleared => Err(Error::invalid(
                    path.to_string(),
                    "it is in the repository, but not a directory: cannot put entries below it",
                )),
                // What is cleared away may have been anything.
                old => self.put_directory(&path, entry, old, cleared),
            },
            Op::Put(entry) if entry.is_directory() => self.put_directory(&path, entry, old, cleared),
            Op::Put(entry) => self.put_file(&path, entry, old, inode),
            Op::LinkToExisting(target) => {
                Err(Error::invalid(path.to_string(), format!("hard link to {target}, which does not exist")))
            }
        }
    }

    fn apply_to_root(&mut self, op: Op, cleared: bool) -> Result<()> {
        let path = RepoPath::root();
        if let Op::Put(entry) = op {
            let mut row =
                self.catalog().find(&path)?.ok_or_else(|| Error::malformed("root catalog", "it has no root entry"))?;
            if !same_directory(&row.entry, &entry) {
                self.applied.entries.change(&row.entry, &entry);
                row.entry = Entry { kind: row.entry.kind, hidden: row.entry.hidden, ..entry };
                self.catalog().replace(&row)?;
            }
        }
        if cleared {
            self.clear_frame()?;
        }
        Ok(())
    }

    /// Makes `directory`, which is in or below the innermost one, the innermost one.
    ///
    /// Returns `false` if it does not exist and nothing needs it: what is to be removed below it is not there.
    fn descend(&mut self, directory: &RepoPath, op: &Op) -> Result<bool> {
        let depth = self.frame().path.components().count();
        let below: Vec<Vec<u8>> = directory.components().skip(depth).map(<[u8]>::to_vec).collect();
        for name in below {
            let path = self.frame().path.child(&name)?;
            let row = if self.frame().existed { self.catalog().find(&path)? } else { None };
            match row {
                Some(row) if row.entry.is_directory() => self.enter(&path, &row, true, false)?,
                None | Some(_) if matches!(op, Op::Remove | Op::Keep) => return Ok(false),
                Some(_) => return Err(Error::invalid(directory.to_string(), format!("{path} is not a directory"))),
                None => return Err(Error::invalid(directory.to_string(), format!("there is no directory {path}"))),
            }
        }
        Ok(true)
    }

    /// Opens a frame for a directory whose row is in the innermost catalog.
    fn enter(&mut self, path: &RepoPath, row: &Row, existed: bool, cleared: bool) -> Result<()> {
        let mut is_mount = false;
        match row.entry.kind {
            EntryKind::Directory(Mount::Mountpoint) => {
                let nested = self.catalog().nested_at(path)?.ok_or_else(|| {
                    Error::malformed(format!("catalog entry {path}"), "a mountpoint without nested catalog")
                })?;
                let catalog =
                    WritableCatalog::fetch(self.context.store, nested.hash, path.clone(), self.context.scratch)?;
                self.catalogs.push(OpenCatalog { catalog, base: Some(nested.hash), stored: Vec::new() });
                is_mount = true;
            }
            EntryKind::Directory(Mount::Bind) => {
                return Err(Error::invalid(
                    path.to_string(),
                    "the directory shows another revision and cannot be changed",
                ));
            }
            // A new tree gets its catalog at once; otherwise its rows would be moved later.
            _ if !existed && self.marker_is_coming(path)? => {
                self.split(path)?;
                is_mount = true;
            }
            _ => {}
        }
        let inherits = self.frame().unmentioned.is_some();
        self.frames.push(Frame::new(path.clone(), existed, is_mount));
        if (cleared || inherits) && existed {
            self.clear_frame()?;
        }
        Ok(())
    }

    /// From now on, whatever is in the innermost directory and not mentioned goes.
    fn clear_frame(&mut self) -> Result<()> {
        let path = self.frame().path.clone();
        let names = self.catalog().names(&path)?.into_iter().map(|(name, _)| name).collect();
        self.frame().unmentioned = Some(names);
        Ok(())
    }

    fn marker_is_coming(&self, directory: &RepoPath) -> Result<bool> {
        let marker = self.context.changes.get(&directory.child(MARKER)?)?;
        Ok(marker
            .is_some_and(|pending| matches!(pending.op, Op::Put(entry) if matches!(entry.kind, EntryKind::File(_)))))
    }

    fn put_directory(&mut self, path: &RepoPath, entry: Entry, old: Option<Row>, cleared: bool) -> Result<()> {
        if is_marker(path) {
            return Err(Error::invalid(path.to_string(), "a catalog marker must be a regular file"));
        }
        match old {
            Some(mut row) if row.entry.is_directory() => {
                let changed = !same_directory(&row.entry, &entry);
                if changed {
                    self.applied.entries.change(&row.entry, &entry);
                    row.entry = Entry { kind: row.entry.kind, hidden: row.entry.hidden, ..entry };
                    self.catalog().replace(&row)?;
                }
                self.enter(path, &row, true, cleared)?;
                if changed && self.frame().is_mount {
                    row.entry.kind = EntryKind::Directory(Mount::Root);
                    self.catalog().replace(&row)?;
                }
                Ok(())
            }
            other => {
                if other.is_some() {
                    self.remove(path, other)?;
                }
                let row = Row::new(path, entry);
                self.catalog().add(&row)?;
                self.applied.entries.add(&row.entry);
                self.frame().directories_changed = true;
                self.enter(path, &row, false, false)
            }
        }
    }

    fn put_file(&mut self, path: &RepoPath, entry: Entry, old: Option<Row>, inode: Option<i64>) -> Result<()> {
        self.check_file(path, &entry)?;
        if path.name() == MARKER {
            self.frame().marker_changed = true;
        }
        let group = old.as_ref().map_or(0, |row| row.hardlinks.group);
        if let Some(inode) = inode {
            self.frame().links.entry(inode).or_default().push((path.name().to_vec(), group));
        }
        match old {
            // Whether a name in a group stays in it is known when all names of the directory are.
            Some(row) if row.entry == entry && (group == 0 || inode.is_some()) => Ok(()),
            Some(row) if row.entry.is_directory() => {
                self.remove(path, Some(row))?;
                self.add_file(path, entry)
            }
            Some(row) => {
                if group != 0 {
                    self.frame().broken_groups.insert(group);
                }
                self.applied.entries.change(&row.entry, &entry);
                self.catalog().replace(&Row { hardlinks: Hardlinks::SINGLE, entry, ..row })
            }
            None => self.add_file(path, entry),
        }
    }

    fn add_file(&mut self, path: &RepoPath, entry: Entry) -> Result<()> {
        self.applied.entries.add(&entry);
        self.catalog().add(&Row::new(path, entry))
    }

    /// Refuses what would damage the repository, and warns of or refuses what exceeds a limit.
    fn check_file(&mut self, path: &RepoPath, entry: &Entry) -> Result<()> {
        match &entry.kind {
            EntryKind::File(_) if is_marker(path) && path.parent().is_some_and(|parent| parent.is_root()) => {
                Err(Error::invalid(path.to_string(), "the root directory cannot be a nested catalog"))
            }
            EntryKind::File(file) if file.size > self.context.nesting.file_size_limit => self.exceeds(format!(
                "{path} has {} bytes; the limit for files is {} (CVMFS_FILE_MBYTE_LIMIT)",
                file.size, self.context.nesting.file_size_limit
            )),
            EntryKind::File(_) => Ok(()),
            _ if is_marker(path) => Err(Error::invalid(path.to_string(), "a catalog marker must be a regular file")),
            EntryKind::Symlink { target } if target.is_empty() => {
                Err(Error::invalid(path.to_string(), "a symbolic link without target"))
            }
            _ => Ok(()),
        }
    }

    fn exceeds(&mut self, message: String) -> Result<()> {
        if self.context.nesting.enforce_limits {
            return Err(Error::invalid("limit", message));
        }
        self.applied.warnings.push(message);
        Ok(())
    }

    fn remove(&mut self, path: &RepoPath, old: Option<Row>) -> Result<()> {
        let Some(row) = old else { return Ok(()) };
        if row.hardlinks.group != 0 {
            self.frame().broken_groups.insert(row.hardlinks.group);
        }
        self.frame().directories_changed |= row.entry.is_directory();
        self.frame().marker_changed |= path.name() == MARKER;
        self.catalog().remove(path)
    }

    /// Leaves the innermost directory.
    fn close_frame(&mut self) -> Result<()> {
        self.remove_unmentioned()?;
        self.group_links()?;
        self.count_directories()?;
        self.follow_marker()?;
        let frame = self.frames.pop().expect("the caller has seen it");
        if frame.is_mount {
            let open = self.catalogs.pop().expect("a mount frame has a catalog");
            if let Some(merged) = self.merge_back_if_small(open)? {
                let storing = self.close_catalog(merged)?;
                self.register(storing);
            }
        }
        Ok(())
    }

    fn remove_unmentioned(&mut self) -> Result<()> {
        let directory = self.frame().path.clone();
        for name in self.frame().unmentioned.take().unwrap_or_default() {
            let path = directory.child(&name)?;
            let row = self.catalog().find(&path)?;
            self.remove(&path, row)?;
        }
        Ok(())
    }

    /// Numbers the groups of hard links that the change set made or changed in this directory.
    fn group_links(&mut self) -> Result<()> {
        let directory = self.frame().path.clone();
        for names in std::mem::take(&mut self.frame().links).into_values() {
            let groups: BTreeSet<u32> = names.iter().map(|(_, group)| *group).collect();
            let names: BTreeSet<Vec<u8>> = names.into_iter().map(|(name, _)| name).collect();
            let only = groups.first().copied().filter(|_| groups.len() == 1);
            let is_unchanged = match only {
                Some(0) => names.len() == 1,
                Some(group) => {
                    self.catalog().hardlink_group(&directory, group)?.into_iter().collect::<BTreeSet<_>>() == names
                }
                None => false,
            };
            if is_unchanged {
                continue;
            }
            let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
            let hardlinks = if count == 1 {
                Hardlinks::SINGLE
            } else {
                Hardlinks { group: self.catalog().next_hardlink_group()?, count }
            };
            for name in names {
                self.catalog().set_hardlinks(&directory.child(&name)?, hardlinks)?;
            }
            self.frame().broken_groups.extend(groups.into_iter().filter(|group| *group != 0));
        }
        for group in std::mem::take(&mut self.frame().broken_groups) {
            let names = self.catalog().hardlink_group(&directory, group)?;
            let hardlinks = match u32::try_from(names.len()).unwrap_or(u32::MAX) {
                1 => Hardlinks::SINGLE,
                count => Hardlinks { group, count },
            };
            for name in names {
                self.catalog().set_hardlinks(&directory.child(&name)?, hardlinks)?;
            }
        }
        Ok(())
    }

    fn count_directories(&mut self) -> Result<()> {
        if !self.frame().directories_changed {
            return Ok(());
        }
        let (directory, is_mount) = (self.frame().path.clone(), self.frame().is_mount);
        let count = 2 + self.catalog().count_directories(&directory)?;
        self.catalog().set_link_count(&directory, count)?;
        // The transition point stands in the parent, too.
        if is_mount && let [.., parent, _] = &mut self.catalogs[..] {
            parent.catalog.set_link_count(&directory, count)?;
        }
        Ok(())
    }

    /// Makes the innermost directory a nested catalog if a marker has come, and a plain one if it has gone.
    fn follow_marker(&mut self) -> Result<()> {
        let (directory, is_mount) = (self.frame().path.clone(), self.frame().is_mount);
        if !self.frame().marker_changed || directory.is_root() {
            return Ok(());
        }
        match (self.catalog().find(&directory.child(MARKER)?)?.is_some(), is_mount) {
            (true, false) => {
                self.split(&directory)?;
                self.frame().is_mount = true;
            }
            (false, true) => {
                let open = self.catalogs.pop().expect("a mount frame has a catalog");
                self.merge(open)?;
                self.frame().is_mount = false;
            }
            _ => {}
        }
        Ok(())
    }

    /// Splits the tree below a directory off the innermost catalog and opens it as the new innermost one.
    fn split(&mut self, directory: &RepoPath) -> Result<()> {
        let scratch = self.context.scratch;
        let open = self.catalogs.last_mut().expect("the root catalog is open until the end");
        let child = split_off(open, directory, scratch)?;
        self.catalogs.push(child);
        Ok(())
    }

    /// Takes a nested catalog back into the innermost one.
    pub(super) fn merge(&mut self, open: OpenCatalog) -> Result<()> {
        let parent = self.catalogs.last_mut().expect("a nested catalog has a parent");
        parent.catalog.merge(open.catalog)?;
        parent.stored.extend(open.stored);
        Ok(())
    }

    /// Registers a stored catalog with the innermost open one.
    fn register(&mut self, storing: Option<StoringCatalog>) {
        let parent = self.catalogs.last_mut().expect("a nested catalog has a parent");
        parent.stored.extend(storing);
    }

    /// Balances, finishes and begins to store a catalog; `None` if nothing in or below it changed.
    pub(super) fn close_catalog(&mut self, mut open: OpenCatalog) -> Result<Option<StoringCatalog>> {
        if open.catalog.is_changed() {
            self.balance(&mut open)?;
        }
        let mut fresh = BTreeMap::new();
        for storing in std::mem::take(&mut open.stored) {
            let stored = storing.wait()?;
            self.context.totals.remember(stored.nested.hash, stored.total);
            self.applied.catalogs += 1;
            self.applied.catalog_bytes += stored.stored_size;
            open.catalog.set_nested(&stored.nested)?;
            fresh.insert(stored.nested.hash, stored.total);
        }
        if !open.catalog.is_changed() {
            return Ok(None);
        }
        let mut subtree = Counters::default();
        for nested in open.catalog.nested()? {
            subtree += match fresh.get(&nested.hash) {
                Some(total) => *total,
                None => self.context.totals.of(self.context.store, nested.hash, self.context.scratch)?,
            };
        }
        let previous = open.base.unwrap_or(ContentHash::null(self.context.algorithm));
        let mount = open.catalog.mount().clone();
        let revision = self.context.revision.filter(|_| mount.is_root());
        let finished = open.catalog.finish(&Finish { now: self.context.now, previous, subtree, revision })?;
        self.check_size(&mount, finished.statistics.own.entries())?;
        Ok(Some(self.context.finisher.store(mount, finished)))
    }

    fn check_size(&mut self, mount: &RepoPath, entries: u64) -> Result<()> {
        let (limit, variable) = if mount.is_root() {
            (self.context.nesting.root_limit, "CVMFS_ROOT_KCATALOG_LIMIT")
        } else {
            (self.context.nesting.nested_limit, "CVMFS_NESTED_KCATALOG_LIMIT")
        };
        if entries <= limit {
            return Ok(());
        }
        self.exceeds(format!("the catalog at {mount} has {entries} entries; the limit is {limit} ({variable})"))
    }

    /// Leaves all directories and returns what became of the tree.
    fn finish(mut self) -> Result<Applied> {
        while self.frames.len() > 1 {
            self.close_frame()?;
        }
        self.remove_unmentioned()?;
        self.group_links()?;
        self.count_directories()?;
        let root = self.catalogs.pop().expect("the root catalog is open until the end");
        if let Some(storing) = self.close_catalog(root)? {
            let stored = storing.wait()?;
            self.context.totals.remember(stored.nested.hash, stored.total);
            self.applied.catalogs += 1;
            self.applied.catalog_bytes += stored.stored_size;
            self.applied.entries.settle(self.before, stored.total);
            self.applied.root = Some(stored);
        }
        Ok(self.applied)
    }
}

/// Splits the tree below a directory off a catalog, with the new versions of catalogs below it.
pub(super) fn split_off(open: &mut OpenCatalog, directory: &RepoPath, scratch: &Path) -> Result<OpenCatalog> {
    let catalog = open.catalog.split(directory, scratch)?;
    let stored = open.stored.extract_if(.., |storing| storing.path.starts_with(directory)).collect();
    Ok(OpenCatalog { catalog, base: None, stored })
}

fn is_marker(path: &RepoPath) -> bool {
    path.name() == MARKER
}

/// Whether a directory need not be written: everything but its role among catalogs is the same.
fn same_directory(old: &Entry, new: &Entry) -> bool {
    *old == Entry { kind: old.kind.clone(), hidden: old.hidden, ..new.clone() }
}
