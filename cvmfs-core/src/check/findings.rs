//! What a check finds: data, not errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::hash::ObjectId;
use crate::path::RepoPath;

/// Findings of one kind that are kept; others are counted.
const KEPT: u64 = 100;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The whitelist is missing, malformed, not signed by the master key, or has expired.
    Whitelist,
    /// The manifest is missing, malformed, not signed by its certificate, or differs from the root catalog.
    Manifest,
    /// The certificate is missing, malformed, or not on the whitelist.
    Certificate,
    /// The meta info is missing or damaged.
    Metainfo,
    /// The tag database is missing or damaged.
    History,
    /// A tag differs from its root catalog, or has none.
    Tag,
    /// Branches do not fit the tags.
    Branch,
    /// The reflog is missing, damaged, or lacks an object.
    Reflog,
    /// A shortcut to a root object is missing.
    Shortcut,
    /// A catalog that is needed does not exist.
    CatalogMissing,
    /// A catalog's bytes are not those of its hash, or no catalog.
    CatalogDamaged,
    /// A catalog is not as large as whoever refers to it says.
    CatalogSize,
    /// A catalog is for another place in the tree.
    CatalogPlace,
    /// The root entry of a catalog is missing or wrong.
    RootEntry,
    /// A mountpoint differs from the root entry of the nested catalog.
    TransitionPoint,
    /// Mountpoints and references to nested catalogs do not match.
    Nested,
    /// A marker of a nested catalog is missing, or where no nested catalog is.
    Marker,
    /// An entry cannot be reached from the root entry.
    Dangling,
    /// An entry has no name, an impossible one, or the key of another path.
    Name,
    /// Flags contradict each other or the type.
    Flags,
    /// A link count is wrong.
    LinkCount,
    /// Names of one file differ, or are fewer or more than their link count.
    Hardlinks,
    /// A target or its length is wrong.
    Symlink,
    /// A size or hash is where none can be, or none where one must be.
    Content,
    /// Chunks do not cover their file.
    Chunks,
    /// Extended attributes cannot be read.
    Xattrs,
    /// A counter differs from what the rows have.
    Counters,
    /// An object that is needed does not exist.
    ObjectMissing,
    /// The size of an object cannot be right.
    ObjectSize,
    /// The bytes of an object are not those of its hash.
    ObjectDamaged,
}

impl fmt::Display for Kind {
    /// Prints the word that JSON has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where: a path of the repository, an object, or a document.
    pub place: String,
    /// In words.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind, self.place, self.message)
    }
}

/// Gathers findings of many threads.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<Gathered>);

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    kept: Vec<Finding>,
    counts: BTreeMap<Kind, u64>,
    /// What another copy of the repository may have.
    lost: BTreeSet<ObjectId>,
    /// Catalogs with wrong counters, by place.
    miscounted: BTreeSet<RepoPath>,
}

impl Findings {
    /// Notes that an object is missing or damaged.
    pub(super) fn lose(&self, id: ObjectId) {
        self.gathered().lost.insert(id);
    }

    /// Notes that the counters of the catalog at a place are wrong.
    pub(super) fn miscount(&self, path: &RepoPath) {
        self.gathered().miscounted.insert(path.clone());
    }

    /// What was noted to be lost and to be miscounted.
    pub(super) fn take_noted(&self) -> (BTreeSet<ObjectId>, BTreeSet<RepoPath>) {
        let mut gathered = self.gathered();
        (std::mem::take(&mut gathered.lost), std::mem::take(&mut gathered.miscounted))
    }

    pub(super) fn add(&self, kind: Kind, place: impl fmt::Display, message: impl Into<String>) {
        self.add_with(kind, place, || message.into());
    }

    /// The same with words that take time to find.
    pub(super) fn add_with(&self, kind: Kind, place: impl fmt::Display, message: impl FnOnce() -> String) {
        let is_kept = {
            let mut gathered = self.gathered();
            let count = gathered.counts.entry(kind).or_default();
            *count += 1;
            *count <= KEPT
        };
        if is_kept {
            let finding = Finding { kind, place: place.to_string(), message: message() };
            self.gathered().kept.push(finding);
        }
    }

    /// Takes over what was found elsewhere.
    pub(super) fn absorb(&self, mut other: Gathered) {
        let mut gathered = self.gathered();
        for (kind, count) in other.counts {
            *gathered.counts.entry(kind).or_default() += count;
        }
        other.kept.retain(|finding| {
            gathered.kept.iter().filter(|kept| kept.kind == finding.kind).count()
                < usize::try_from(KEPT).unwrap_or(usize::MAX)
        });
        gathered.kept.append(&mut other.kept);
        gathered.lost.append(&mut other.lost);
        gathered.miscounted.append(&mut other.miscounted);
    }

    /// What was found, to be taken over.
    pub(super) fn into_inner(self) -> Gathered {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are so far.
    pub(super) fn count(&self) -> u64 {
        self.gathered().counts.values().sum()
    }

    /// Those that are kept, sorted, and the number of all of them.
    pub(super) fn finish(self) -> (Vec<Finding>, u64) {
        let count = self.count();
        let mut kept = std::mem::take(&mut self.gathered().kept);
        kept.sort();
        (kept, count)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
