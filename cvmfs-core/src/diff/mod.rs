//! What differs between two trees: revisions, tags, the root of a pending change, two subtrees.
//!
//! ```text
//! (Tree, top) ─┐
//!              ├─► diff ─► Difference, in tree order ─► line of text, JSON, Summary, Change
//! (Tree, top) ─┘
//! ```
//!
//! Both trees are walked side by side, a directory at a time. Where both have the very same nested catalog, nothing is
//! fetched; every other catalog is fetched once. Memory holds the directories on the way down, nothing else.
//!
//! Hidden entries (the reference's `.cvmfs`) and what bind mountpoints show are not part of a tree.
//!
//! Source: `cvmfs/catalog_diff_tool_impl.h`.

mod compare;
mod report;
mod walk;

use crate::change::Change;
use crate::entry::Entry;
use crate::error::Result;
use crate::path::RepoPath;
use compare::Names;

pub use compare::Aspect;
pub use report::{Report, Summary};
pub use walk::{Side, diff};

/// Choices for a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Report directories that only became, or ceased to be, nested catalogs. That is no change of the tree.
    pub nesting: bool,
}

/// An entry of one of the trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The entry.
    pub entry: Entry,
    /// Names of the same file in the directory; 1 for a directory.
    pub links: u32,
    /// The first of these names in the order of bytes.
    pub first_name: Vec<u8>,
}

impl Version {
    fn is_first_name(&self, path: &RepoPath) -> bool {
        self.links == 1 || self.first_name == path.name()
    }
}

/// A path at which two trees differ. At least one side has an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path in the tree before.
    pub path: RepoPath,
    /// What was there; `None` if the path was added.
    pub before: Option<Version>,
    /// What is there now; `None` if the path was removed.
    pub after: Option<Version>,
    /// What changed of an entry that both trees have, in the order of [`Aspect`]; empty for one that was added or
    /// removed.
    pub aspects: Vec<Aspect>,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is in the tree after, not in the one before.
    Added,
    /// It is in the tree before, not in the one after.
    Removed,
    /// It is in both, and differs.
    Changed,
}

impl Difference {
    /// Whether the path was added, removed or changed.
    pub fn fate(&self) -> Fate {
        match (&self.before, &self.after) {
            (None, _) => Fate::Added,
            (_, None) => Fate::Removed,
            _ => Fate::Changed,
        }
    }

    /// Forgets aspects of a change that do not matter; `false` if nothing is left of it.
    pub fn ignore(&mut self, aspects: &[Aspect]) -> bool {
        self.aspects.retain(|aspect| !aspects.contains(aspect));
        self.fate() != Fate::Changed || !self.aspects.is_empty()
    }

    /// Whether content is the same, as far as hashes tell: metadata, links or nesting changed only.
    pub fn is_metadata_only(&self) -> bool {
        let of_content = |aspect: &Aspect| matches!(aspect, Aspect::Type | Aspect::Size | Aspect::Content);
        self.fate() == Fate::Changed && !self.aspects.iter().any(of_content)
    }
}

/// Turns differences, given in their order, into the changes that make the tree before equal to the tree after.
///
/// File content is named, not read: its objects must be in the storage of the repository that is changed.
#[derive(Debug, Default)]
pub struct ChangeMaker {
    /// A path that goes with everything below it.
    gone: Option<RepoPath>,
}

impl ChangeMaker {
    /// A maker for the differences of one comparison.
    pub fn new() -> Self {
        Self::default()
    }

    /// The change that the next difference asks for; `None` if an earlier one does it, too, or if only the nesting of
    /// catalogs differs, which follows from the markers.
    pub fn change(&mut self, difference: &Difference) -> Option<Change> {
        let path = difference.path.clone();
        if self.gone.as_ref().is_some_and(|gone| path.starts_with(gone)) {
            return None;
        }
        let was_directory = difference.before.as_ref().is_some_and(|version| version.entry.is_directory());
        let is_directory = difference.after.as_ref().is_some_and(|version| version.entry.is_directory());
        if was_directory && !is_directory {
            self.gone = Some(path.clone());
        }
        let Some(after) = &difference.after else { return Some(Change::Remove { path }) };
        if difference.aspects == [Aspect::Nesting] {
            return None;
        }
        if !after.is_first_name(&path)
            && let Some(target) = path.parent().and_then(|directory| directory.child(&after.first_name).ok())
        {
            return Some(Change::Link { path, target });
        }
        let (metadata, content) = after.entry.clone().into_parts();
        Some(Change::Put { path, metadata, content })
    }
}

/// Calls `record` with the changes that make the tree before equal to the tree after.
pub fn changes(before: Side<'_>, after: Side<'_>, record: &mut dyn FnMut(Change) -> Result<()>) -> Result<()> {
    let mut maker = ChangeMaker::new();
    diff(before, after, Options::default(), &mut |difference| match maker.change(&difference) {
        Some(change) => record(change),
        None => Ok(()),
    })
}
