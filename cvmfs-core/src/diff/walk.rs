//! The walk through two trees, side by side.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::rc::Rc;
use std::vec::IntoIter;

use super::compare::compare;
use super::{Aspect, Difference, Names, Options};
use crate::catalog::{Catalog, Row};
use crate::entry::{EntryKind, Mount};
use crate::error::{Error, Result};
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::tree::Tree;

/// One of the two trees: all of it, or what is at a path.
#[derive(Debug)]
pub struct Side<'a> {
    /// The tree.
    pub tree: &'a mut Tree,
    /// Where the comparison starts; nothing need be there.
    pub top: RepoPath,
}

impl<'a> Side<'a> {
    /// A whole tree.
    pub fn whole(tree: &'a mut Tree) -> Self {
        Self { tree, top: RepoPath::root() }
    }

    /// What a tree has at a path.
    pub fn at(tree: &'a mut Tree, top: RepoPath) -> Self {
        Self { tree, top }
    }
}

/// Calls `visit` with each path at which two trees differ, in tree order: a directory before its content, the content
/// before its next sibling. A tree that was added or removed is visited with all its entries.
///
/// The tops of the two sides may be different paths; a [`Difference`] has the path below the top of `before`. So
/// `before` at the place of a copy and `after` at its original yield what makes the copy.
///
/// # Errors
/// Those of fetching catalogs, and of `visit`.
pub fn diff(
    mut before: Side<'_>,
    mut after: Side<'_>,
    options: Options,
    visit: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    let (old, new) = (before.start()?, after.start()?);
    if old.place.is_same_catalog(&new.place) && before.top == after.top {
        return Ok(());
    }
    let mut walk = Walk { before, after, options, visit, frames: Vec::new() };
    walk.compare_tops(old, new)?;
    while let Some(frame) = walk.frames.last_mut() {
        match frame.next_pair() {
            Some(pair) => walk.compare(pair)?,
            None => drop(walk.frames.pop()),
        }
    }
    Ok(())
}

/// A directory in its catalog.
struct Place {
    path: RepoPath,
    hash: ContentHash,
    catalog: Rc<Catalog>,
}

impl Place {
    fn is_same_catalog(&self, other: &Self) -> bool {
        self.hash == other.hash
    }

    fn rows(this: Option<&Self>) -> Result<Vec<Row>> {
        let mut rows = this.map_or(Ok(Vec::new()), |place| place.catalog.list(&place.path))?;
        rows.retain(|row| !row.entry.hidden);
        Ok(rows)
    }
}

/// The top of a side.
struct Start {
    place: Place,
    row: Option<Row>,
    siblings: Names,
}

impl Side<'_> {
    fn start(&mut self) -> Result<Start> {
        let path = self.top.clone();
        let (hash, catalog) = self.tree.catalog_of(&path)?;
        let row = catalog.find(&path)?;
        let siblings = match path.parent() {
            Some(directory) if row.as_ref().is_some_and(|row| row.hardlinks.group != 0) => {
                Names::of(&self.tree.list(&directory)?)
            }
            _ => Names::default(),
        };
        Ok(Start { place: Place { path, hash, catalog }, row, siblings })
    }

    /// The place of a directory right below another; `None` if there is nothing to walk into.
    fn place_below(&mut self, directory: &Place, row: Option<&Row>) -> Result<Option<Place>> {
        let Some(row) = row else { return Ok(None) };
        let EntryKind::Directory(mount) = row.entry.kind else { return Ok(None) };
        let path = directory.path.child(&row.name)?;
        match mount {
            Mount::Bind => Ok(None),
            Mount::Plain | Mount::Root => {
                Ok(Some(Place { path, hash: directory.hash, catalog: Rc::clone(&directory.catalog) }))
            }
            Mount::Mountpoint => {
                let hash = nested_hash(directory, &path)?;
                let catalog = self.tree.catalog(hash, &path)?;
                Ok(Some(Place { path, hash, catalog }))
            }
        }
    }
}

fn nested_hash(directory: &Place, path: &RepoPath) -> Result<ContentHash> {
    let nested = directory.catalog.nested_at(path)?;
    let missing = || Error::malformed(format!("catalog entry {path}"), "a mountpoint without nested catalog");
    Ok(nested.ok_or_else(missing)?.hash)
}

/// The same name on both sides.
struct Pair {
    before: Option<Row>,
    after: Option<Row>,
}

/// A directory on the way down that at least one side has.
struct Frame {
    path: RepoPath,
    before: Option<Place>,
    after: Option<Place>,
    rows: (Peekable<IntoIter<Row>>, Peekable<IntoIter<Row>>),
    names: (Names, Names),
    regrouped: BTreeSet<Vec<u8>>,
}

impl Frame {
    fn open(path: RepoPath, before: Option<Place>, after: Option<Place>) -> Result<Self> {
        let rows = (Place::rows(before.as_ref())?, Place::rows(after.as_ref())?);
        let names = (Names::of(&rows.0), Names::of(&rows.1));
        let regrouped = Names::regrouped(&names.0, &names.1);
        let rows = (rows.0.into_iter().peekable(), rows.1.into_iter().peekable());
        Ok(Self { path, before, after, rows, names, regrouped })
    }

    /// The next name in the order of bytes.
    fn next_pair(&mut self) -> Option<Pair> {
        let (before, after) = &mut self.rows;
        let order = match (before.peek(), after.peek()) {
            (None, None) => return None,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(before), Some(after)) => before.name.cmp(&after.name),
        };
        Some(Pair {
            before: if order.is_le() { before.next() } else { None },
            after: if order.is_ge() { after.next() } else { None },
        })
    }
}

struct Walk<'a> {
    before: Side<'a>,
    after: Side<'a>,
    options: Options,
    visit: &'a mut dyn FnMut(Difference) -> Result<()>,
    frames: Vec<Frame>,
}

impl Walk<'_> {
    fn compare_tops(&mut self, old: Start, new: Start) -> Result<()> {
        let is_directory = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.entry.is_directory());
        let before = is_directory(&old.row).then_some(old.place);
        let after = is_directory(&new.row).then_some(new.place);
        let regrouped = Names::regrouped(&old.siblings, &new.siblings);
        let path = self.before.top.clone();
        let pair = Pair { before: old.row, after: new.row };
        self.report(path.clone(), pair, (&old.siblings, &new.siblings), &regrouped)?;
        if before.is_some() || after.is_some() {
            self.frames.push(Frame::open(path, before, after)?);
        }
        Ok(())
    }

    fn compare(&mut self, pair: Pair) -> Result<()> {
        let frame = self.frames.pop().expect("the pair is from the innermost frame");
        let Some(row) = pair.before.as_ref().or(pair.after.as_ref()) else { return Ok(()) };
        let path = frame.path.child(&row.name)?;
        let below = self.open_below(&frame, &path, &pair)?;
        self.report(path, pair, (&frame.names.0, &frame.names.1), &frame.regrouped)?;
        self.frames.push(frame);
        self.frames.extend(below);
        Ok(())
    }

    /// Opens the directory that one or both sides have, unless it is the same catalog on both.
    fn open_below(&mut self, frame: &Frame, path: &RepoPath, pair: &Pair) -> Result<Option<Frame>> {
        if let (Some(before), Some(after), Some(old), Some(new)) =
            (&frame.before, &frame.after, &pair.before, &pair.after)
            && [old, new].iter().all(|row| row.entry.kind == EntryKind::Directory(Mount::Mountpoint))
            && nested_hash(before, &before.path.child(&old.name)?)?
                == nested_hash(after, &after.path.child(&new.name)?)?
        {
            return Ok(None);
        }
        let place = |side: &mut Side<'_>, directory: &Option<Place>, row: &Option<Row>| match directory {
            Some(directory) => side.place_below(directory, row.as_ref()),
            None => Ok(None),
        };
        let before = place(&mut self.before, &frame.before, &pair.before)?;
        let after = place(&mut self.after, &frame.after, &pair.after)?;
        if before.is_none() && after.is_none() {
            return Ok(None);
        }
        Frame::open(path.clone(), before, after).map(Some)
    }

    fn report(
        &mut self,
        path: RepoPath,
        pair: Pair,
        names: (&Names, &Names),
        regrouped: &BTreeSet<Vec<u8>>,
    ) -> Result<()> {
        let mut aspects = Vec::new();
        if let (Some(before), Some(after)) = (&pair.before, &pair.after) {
            aspects = compare(&before.entry, &after.entry);
            if regrouped.contains(&before.name) {
                aspects.push(Aspect::Links);
                aspects.sort();
            }
            if !self.options.nesting {
                aspects.retain(|aspect| *aspect != Aspect::Nesting);
            }
            if aspects.is_empty() {
                return Ok(());
            }
        }
        let before = pair.before.map(|row| names.0.version(row));
        let after = pair.after.map(|row| names.1.version(row));
        if before.is_none() && after.is_none() {
            return Ok(());
        }
        (self.visit)(Difference { path, before, after, aspects })
    }
}
