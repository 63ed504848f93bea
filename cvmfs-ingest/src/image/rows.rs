//! What a layer says, path by path in tree order: from its change set, or from the repository that has it unpacked.

use std::collections::{HashSet, VecDeque};

use cvmfs_core::catalog::{AUTO_MARKER, MARKER, Row};
use cvmfs_core::changeset::{ChangeSet, Op, Pending};
use cvmfs_core::entry::Entry;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::tree::{Directory, Tree};

use super::layer::TOP;
use super::whiteout;

/// What a layer says about one path, relative to its root.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The path.
    pub path: RepoPath,
    /// What becomes of it.
    pub says: Says,
    /// What layers below have in the directory goes.
    pub clears: bool,
}

/// What becomes of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Says {
    /// It is a directory; that of a layer below keeps its metadata.
    Somehow(Entry),
    /// It is this. Names of one file share the number.
    Put(Entry, Option<i64>),
    /// It is one more name of what layers below have at another path.
    Link(RepoPath),
    /// Layers below have it no more.
    Gone,
}

impl Says {
    /// Whether there is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Somehow(entry) | Self::Put(entry, _) if entry.is_directory())
    }
}

/// The statements of a layer.
pub trait Rows: std::fmt::Debug {
    /// The next statement in tree order.
    fn next(&mut self) -> Result<Option<Statement>>;

    /// The statement about one path, if there is one.
    fn get(&mut self, path: &RepoPath) -> Result<Option<Statement>>;
}

/// Whether something is about the nested catalogs of whoever wrote the layer, and not about the image: marks that catalogs
/// were split, and what comes with them; the mark of the layer itself; that there is no mark any more, which cannot be
/// said in all forms.
fn is_for_catalogs(path: &RepoPath, says: &Says, was_split: impl FnOnce() -> Result<bool>) -> Result<bool> {
    match path.name() {
        AUTO_MARKER => Ok(true),
        MARKER if *says == Says::Gone => Ok(true),
        MARKER => Ok(path.parent().is_some_and(|parent| parent.is_root()) || was_split()?),
        _ => Ok(false),
    }
}

/// The statements of a layer that was just fetched.
#[derive(Debug)]
pub struct Fetched {
    changes: ChangeSet,
    top: RepoPath,
    page: VecDeque<Pending>,
    /// The last row that was read.
    last: Option<RepoPath>,
    /// Statements that come before the next row.
    ready: VecDeque<Statement>,
    /// The path of the last of these.
    said: Option<RepoPath>,
}

impl Fetched {
    /// Begins at the first statement.
    pub fn new(changes: ChangeSet) -> Result<Self> {
        let top = RepoPath::from_bytes(TOP.as_bytes())?;
        Ok(Self { changes, top, page: VecDeque::new(), last: None, ready: VecDeque::new(), said: None })
    }

    fn statement(&self, pending: Pending) -> Result<Option<Statement>> {
        let Some(path) = pending.path.relative_to(&self.top) else { return Ok(None) };
        let (says, clears) = match pending.op {
            Op::Keep => (Says::Somehow(whiteout::unnamed_directory()), false),
            Op::Ensure(entry) => (Says::Somehow(entry), false),
            Op::Put(entry) => whiteout::decode_overlay(entry, pending.inode),
            Op::LinkToExisting(target) => match target.relative_to(&self.top) {
                Some(target) => (Says::Link(target), false),
                None => return Ok(None),
            },
            Op::Remove => (Says::Gone, false),
        };
        let was_split = || {
            let mark = pending.path.parent().unwrap_or_default().child(AUTO_MARKER)?;
            Ok(self.changes.get(&mark)?.is_some())
        };
        if is_for_catalogs(&path, &says, was_split)? {
            return Ok(None);
        }
        Ok(Some(Statement { path, says, clears: clears || pending.cleared }))
    }
}

impl Fetched {
    /// The next statement that is a row.
    fn next_row(&mut self) -> Result<Option<Statement>> {
        loop {
            if let Some(pending) = self.page.pop_front() {
                match self.statement(pending)? {
                    Some(statement) => return Ok(Some(statement)),
                    None => continue,
                }
            }
            self.page = self.changes.rows_after(self.last.as_ref())?.into();
            match self.page.back() {
                Some(last) => self.last = Some(last.path.clone()),
                None => return Ok(None),
            }
        }
    }
}

/// A directory that a layer does not name, but something in it, or that is its root.
fn implied(path: RepoPath) -> Statement {
    Statement { path, says: Says::Somehow(whiteout::unnamed_directory()), clears: false }
}

impl Rows for Fetched {
    fn next(&mut self) -> Result<Option<Statement>> {
        if self.ready.is_empty() {
            let statement = match (self.next_row()?, &self.said) {
                (Some(statement), _) => statement,
                // A layer without anything has a root as well.
                (None, None) => implied(RepoPath::root()),
                (None, Some(_)) => return Ok(None),
            };
            // Removals are rows without rows for the directories above them.
            let is_new = |above: &RepoPath| self.said.as_ref().is_none_or(|said| !said.starts_with(above));
            self.ready = statement.path.ancestors().into_iter().filter(is_new).map(implied).collect();
            self.said = Some(statement.path.clone());
            self.ready.push_back(statement);
        }
        Ok(self.ready.pop_front())
    }

    fn get(&mut self, path: &RepoPath) -> Result<Option<Statement>> {
        let at = self.top.join(path);
        if let Some(pending) = self.changes.get(&at)? {
            return self.statement(pending);
        }
        let is_implied = path.is_root() || self.changes.has_rows_below(&at)?;
        Ok(is_implied.then(|| implied(path.clone())))
    }
}

/// The statements of a layer that is in the repository, whatever form its removals have there.
#[derive(Debug)]
pub struct Unpacked {
    tree: Tree,
    top: RepoPath,
    /// Directories that the layer only implies, as hashes of their paths.
    unnamed: HashSet<String>,
    /// The root of the layer, once it was looked at.
    root: Option<Directory>,
    /// The directories on the way, with what is still to come of each, in order.
    todo: Vec<(Directory, VecDeque<Statement>)>,
    /// Directories listed so far.
    listed: u32,
}

/// Catalogs that are looked at again on the way through a layer: those of the directories on the way stay open anyway.
const OPEN_CATALOGS: usize = 4;

impl Unpacked {
    /// Begins at the root of the layer, the directory `top` of a tree. The hashes of
    /// those of its directories that it only implies are known from elsewhere.
    pub fn new(tree: Tree, top: RepoPath, unnamed: HashSet<String>) -> Self {
        Self { tree: tree.with_open_catalogs(OPEN_CATALOGS), top, unnamed, root: None, todo: Vec::new(), listed: 0 }
    }

    /// Lists a directory: what its entries say, and whether one of them hides what is below it.
    fn list(&mut self, directory: &Directory) -> Result<(VecDeque<Statement>, bool)> {
        let rows = directory.list()?;
        let directory = &directory.path().relative_to(&self.top).unwrap_or_default();
        self.listed += 1;
        let is_opaque = rows.iter().any(|row| row.name == whiteout::OPAQUE);
        let was_split = rows.iter().any(|row| row.name == AUTO_MARKER);
        let mut statements = Vec::with_capacity(rows.len());
        for row in rows {
            if let Some(statement) = self.statement(directory, row)?
                && !is_for_catalogs(&statement.path, &statement.says, || Ok(was_split))?
            {
                statements.push(statement);
            }
        }
        statements.sort_by(|one, other| one.path.name().cmp(other.path.name()));
        Ok((statements.into(), is_opaque))
    }

    fn statement(&self, directory: &RepoPath, row: Row) -> Result<Option<Statement>> {
        // Groups have no names outside their directory.
        let group = row.hardlinks.group;
        let group = (group != 0).then(|| i64::from(self.listed) << 32 | i64::from(group));
        let decoded = whiteout::decode(row.name, row.entry, group);
        decoded.map(|(name, says, clears)| Ok(self.about(directory.child(&name)?, says, clears))).transpose()
    }

    /// The directory at a path of the layer; `None` if there is none.
    fn enter(&mut self, path: &RepoPath) -> Result<Option<Directory>> {
        let mut directory = match &self.root {
            Some(root) => root.clone(),
            None => self.root.insert(self.tree.directory(&self.top)?).clone(),
        };
        for name in path.components() {
            match directory.find(name)? {
                Some(row) if row.entry.is_directory() => directory = self.tree.child_directory(&directory, &row)?,
                _ => return Ok(None),
            }
        }
        Ok(Some(directory))
    }

    fn root(&mut self) -> Result<Statement> {
        let row = self.tree.get(&self.top)?;
        let (_, says, clears) = whiteout::decode(Vec::new(), row.entry, None)
            .ok_or_else(|| Error::malformed(self.top.to_string(), "it is no directory"))?;
        Ok(self.about(RepoPath::root(), says, clears))
    }

    fn about(&self, path: RepoPath, says: Says, clears: bool) -> Statement {
        let says = match says {
            Says::Put(Entry { kind, .. }, _) if self.unnamed.contains(&path.path_hash().to_hex()) => {
                // All but that it may have a catalog of its own was made up.
                Says::Somehow(Entry { kind, ..whiteout::unnamed_directory() })
            }
            says => says,
        };
        Statement { path, says, clears }
    }
}

impl Rows for Unpacked {
    fn next(&mut self) -> Result<Option<Statement>> {
        let mut statement = if self.listed == 0 {
            self.root()?
        } else {
            loop {
                let Some((_, statements)) = self.todo.last_mut() else { return Ok(None) };
                match statements.pop_front() {
                    Some(statement) => break statement,
                    None => self.todo.pop(),
                };
            }
        };
        if let Says::Put(entry, _) | Says::Somehow(entry) = &statement.says
            && entry.is_directory()
        {
            let directory = match self.todo.last() {
                None => self.enter(&RepoPath::root())?.ok_or_else(|| Error::not_found(self.top.to_string()))?,
                Some((parent, _)) => self.tree.directory_in(parent, statement.path.name(), entry)?,
            };
            let (below, is_opaque) = self.list(&directory)?;
            self.todo.push((directory, below));
            statement.clears |= is_opaque;
        }
        Ok(Some(statement))
    }

    fn get(&mut self, path: &RepoPath) -> Result<Option<Statement>> {
        let Some(parent) = path.parent() else { return self.root().map(Some) };
        let Some(directory) = self.enter(&parent)? else { return Ok(None) };
        for name in [path.name().to_vec(), whiteout::name_of(path.name())] {
            let row = directory.find(&name)?;
            let Some(mut statement) = row.map(|row| self.statement(&parent, row)).transpose()?.flatten() else {
                continue;
            };
            if let Says::Put(entry, _) | Says::Somehow(entry) = &statement.says
                && entry.is_directory()
            {
                let below = self.tree.directory_in(&directory, &name, entry)?;
                statement.clears |= below.find(whiteout::OPAQUE)?.is_some();
            }
            return Ok(Some(statement));
        }
        Ok(None)
    }
}
