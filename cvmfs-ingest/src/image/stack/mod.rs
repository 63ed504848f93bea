//! Layers on top of each other: one tree.
//!
//! The layers' statements come in the same order, so that one pass merges them. What lies below a directory is decided
//! when the directory is: it shows layers from a certain one on, its *floor*.
//!
//! - A removal, and anything that is not a directory, hides what is below it in its own and lower layers.
//! - A directory that clears hides what lower layers have in it. So does one in the place of something else.
//! - A directory over a directory has its own metadata, unless its layer only implies it.
//! - So a layer that has `bin/x` and says nothing of `bin` makes that a directory, even where a lower layer has a link `bin`:
//!   that is what an overlay mount of the layers shows, which podman, Docker and containerd do. (`umoci`, which unpacks one
//!   layer onto the other, would follow the link.)
//!
//! Source: the OCI image specification, "Applying Changesets"; overlayfs in the documentation of Linux.

use std::collections::HashMap;

use cvmfs_core::entry::{Entry, EntryKind};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;

use super::rows::{Rows, Says, Statement};

/// An entry of the merged tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Its path.
    pub path: RepoPath,
    /// What it is.
    pub entry: Entry,
    /// Another name of the same file that came before, if there is one.
    pub same_as: Option<RepoPath>,
}

/// Merges layers.
#[derive(Debug)]
pub struct Stack {
    /// The lowest first.
    layers: Vec<Cursor>,
    /// The directories above the next path, each with its floor.
    floors: Vec<(RepoPath, usize)>,
    /// First names of files with several, by layer and number.
    named: HashMap<(usize, i64), RepoPath>,
    /// Links that are gone because a layer has something below them.
    covered: Vec<RepoPath>,
}

#[derive(Debug)]
struct Cursor {
    rows: Box<dyn Rows>,
    /// The next statement, if it was read.
    next: Option<Statement>,
    started: bool,
}

impl Cursor {
    fn peek(&mut self) -> Result<Option<&Statement>> {
        if !self.started {
            self.started = true;
            self.next = self.rows.next()?;
        }
        Ok(self.next.as_ref())
    }

    fn take(&mut self) -> Result<Option<Statement>> {
        let next = self.rows.next()?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

impl Stack {
    /// Puts layers on top of each other, the lowest first.
    pub fn new(layers: Vec<Box<dyn Rows>>) -> Self {
        let layers = layers.into_iter().map(|rows| Cursor { rows, next: None, started: false }).collect();
        Self { layers, floors: Vec::new(), named: HashMap::new(), covered: Vec::new() }
    }

    /// The next entry in tree order.
    pub fn next_entry(&mut self) -> Result<Option<Merged>> {
        loop {
            let Some(path) = self.next_path()? else { return Ok(None) };
            if let Some(merged) = self.merge(path)? {
                return Ok(Some(merged));
            }
        }
    }

    /// The symbolic links so far in whose place is a directory now, because a higher layer has something below them.
    pub fn take_covered(&mut self) -> Vec<RepoPath> {
        std::mem::take(&mut self.covered)
    }

    /// The first path in tree order that a layer still has something to say about.
    fn next_path(&mut self) -> Result<Option<RepoPath>> {
        let mut first: Option<RepoPath> = None;
        for layer in &mut self.layers {
            if let Some(statement) = layer.peek()?
                && first.as_ref().is_none_or(|first| statement.path.cmp_in_tree(first).is_lt())
            {
                first = Some(statement.path.clone());
            }
        }
        Ok(first)
    }

    /// Takes what the layers say about a path, and decides.
    fn merge(&mut self, path: RepoPath) -> Result<Option<Merged>> {
        while self.floors.last().is_some_and(|(directory, _)| !path.starts_with(directory)) {
            self.floors.pop();
        }
        let above = self.floors.last().map_or(0, |(_, floor)| *floor);
        let mut floor = above;
        let mut found: Option<(Entry, Option<(usize, i64)>)> = None;
        for index in 0..self.layers.len() {
            if self.layers[index].peek()?.is_none_or(|statement| statement.path != path) {
                continue;
            }
            let Some(Statement { says, clears, .. }) = self.layers[index].take()? else { continue };
            if index < above {
                continue;
            }
            let was_directory = found.as_ref().is_some_and(|(entry, _)| entry.is_directory());
            if clears {
                floor = index;
            }
            found = match says {
                Says::Somehow(_) if was_directory => found,
                Says::Somehow(entry) => {
                    if let Some((Entry { kind: EntryKind::Symlink { .. }, .. }, _)) = found {
                        self.covered.push(path.clone());
                    }
                    Some((entry, None))
                }
                Says::Put(entry, group) => Some((entry, group.map(|group| (index, group)))),
                Says::Link(target) => Some((self.link_target(index, &path, &target)?, None)),
                Says::Gone => None,
            };
            if !found.as_ref().is_some_and(|(entry, _)| entry.is_directory()) {
                floor = index + 1;
            }
        }
        let Some((entry, group)) = found else {
            self.floors.push((path, floor));
            return Ok(None);
        };
        self.floors.push((path.clone(), floor));
        let same_as = group.and_then(|group| self.named.get(&group).cloned());
        if let (Some(group), None) = (group, &same_as) {
            self.named.insert(group, path.clone());
        }
        Ok(Some(Merged { path, entry, same_as }))
    }

    /// What a hard link into lower layers names.
    fn link_target(&mut self, layer: usize, path: &RepoPath, target: &RepoPath) -> Result<Entry> {
        match self.find_in(layer, target)? {
            Some(entry) if entry.is_directory() => {
                Err(Error::invalid(path.to_string(), format!("hard link to the directory {target}")))
            }
            Some(entry) => Ok(entry),
            None => Err(Error::invalid(path.to_string(), format!("hard link to {target}, which does not exist"))),
        }
    }

    /// What the merged tree has at a path.
    pub fn find(&mut self, path: &RepoPath) -> Result<Option<Entry>> {
        self.find_in(self.layers.len(), path)
    }

    /// What the lowest layers have at a path together.
    pub fn find_in(&mut self, layers: usize, path: &RepoPath) -> Result<Option<Entry>> {
        // A directory that higher layers only imply: it is one, whatever lower layers have.
        let mut implied: Option<Entry> = None;
        for index in (0..layers).rev() {
            let rows = &mut self.layers[index].rows;
            match rows.get(path)? {
                Some(Statement { says: Says::Somehow(entry), .. }) => {
                    implied.get_or_insert(entry);
                }
                Some(Statement { says: Says::Put(entry, _), .. }) => {
                    return Ok(Some(implied.filter(|_| !entry.is_directory()).unwrap_or(entry)));
                }
                Some(Statement { says: Says::Link(target), .. }) => {
                    return Ok(implied.or(self.find_in(index, &target)?));
                }
                Some(Statement { says: Says::Gone, .. }) => return Ok(implied),
                None => {}
            }
            if hides_what_is_below(&mut **rows, path)? {
                return Ok(implied);
            }
        }
        Ok(implied)
    }
}

/// Whether a layer hides what lower layers have at a path that it says nothing about itself, or nothing of its own.
fn hides_what_is_below(rows: &mut dyn Rows, path: &RepoPath) -> Result<bool> {
    for ancestor in path.ancestors() {
        match rows.get(&ancestor)? {
            Some(statement) if statement.clears || !statement.says.is_directory() => return Ok(true),
            Some(_) => {}
            // Nothing is said about what lies in a directory that nothing is said about.
            None => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
