//! Going back: the tree of an older revision becomes the newest one.
//!
//! Plan, then apply: tags of the revisions in between are lost.

use cvmfs_core::commit::{self, Publisher, rollback_target};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::history::{Tag, TagName};
use cvmfs_core::progress::Cancel;
use cvmfs_core::repository::{Repository, Selector};
use serde::Serialize;

use super::{Named, Options};

/// What a rollback would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The newest revision.
    pub revision: u64,
    /// The revision to go back to.
    pub target_revision: u64,
    /// Its root catalog.
    pub target_root_hash: String,
    /// Tags that go.
    pub removed_tags: Vec<Named>,
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolledBack {
    /// The new revision.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// The revision that was the newest.
    pub previous_revision: u64,
    /// The revision whose tree it is.
    pub target_revision: u64,
    /// Tags that went.
    pub removed_tags: Vec<Named>,
}

/// Looks what a rollback would do.
///
/// # Errors
/// Those of [`roll_back`].
pub fn plan_rollback(head: &Repository, target: &str) -> Result<Plan> {
    let selector = select(head, target)?;
    let found = rollback_target(head, &selector)?;
    let name = match &selector {
        Selector::Tag(name) => Some(&name[..]),
        _ => None,
    };
    let goes = |tag: &&Tag| tag.is_lost_by_rollback(found.number, name);
    Ok(Plan {
        revision: head.manifest().revision,
        target_revision: found.number,
        target_root_hash: found.root.to_string(),
        removed_tags: head.tags()?.iter().filter(goes).map(Named::from).collect(),
    })
}

/// Publishes the tree of a tag, number or root hash again.
///
/// # Errors
/// `NotFound` if there is no such revision; `InvalidInput` if it is the newest, or if there is nothing to undo.
pub fn roll_back(publisher: &Publisher, target: &str, options: &Options, cancel: &Cancel) -> Result<RolledBack> {
    let selector = select(&publisher.head(options.now)?, target)?;
    let options = commit::Options { patience: options.patience, ..commit::Options::new(options.now) };
    let done = publisher.roll_back(&selector, &options, cancel)?;
    Ok(RolledBack {
        revision: done.revision,
        root_hash: done.root.to_string(),
        previous_revision: done.before.number,
        target_revision: done.target.number,
        removed_tags: done.removed.iter().map(Named::from).collect(),
    })
}

fn select(head: &Repository, target: &str) -> Result<Selector> {
    if target == TagName::trunk_previous().as_str() && !head.tags()?.iter().any(|tag| tag.name == target) {
        let reason = "nothing was published since the last rollback; say which revision to go back to";
        return Err(Error::invalid(target, reason));
    }
    head.selector(target)
}
