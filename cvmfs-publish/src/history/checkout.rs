//! Choosing what the next commit goes on from: the trunk, or an older revision as a branch.

use cvmfs_core::commit::{Checkout, Publisher};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::history::Tag;
use cvmfs_core::progress::Cancel;
use serde::Serialize;

use super::Options;

/// What is checked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedOut {
    /// Where the next commit goes; `None` for the trunk.
    #[serde(flatten)]
    pub checkout: Option<Checkout>,
    /// Whether the branch does not exist yet.
    pub new_branch: bool,
}

/// Checks out a revision as a new branch, or the newest revision of a branch that exists (without `revision`).
///
/// # Errors
/// `InvalidInput` for an impossible name of a branch; `Conflict` if a new branch exists already; `NotFound` if an
/// existing one does not.
pub fn check_out(
    publisher: &Publisher,
    revision: Option<&str>,
    branch: &str,
    options: &Options,
    cancel: &Cancel,
) -> Result<CheckedOut> {
    let is_valid = |character: char| character.is_ascii_alphanumeric() || "_@./-".contains(character);
    if branch.is_empty() || !branch.chars().all(is_valid) {
        return Err(Error::invalid(format!("branch {branch:?}"), "only letters, digits and _ @ . / - are allowed"));
    }
    let head = publisher.head(options.now)?;
    let tags = head.tags()?;
    let newest = tags.iter().filter(|tag| tag.branch == branch).max_by_key(|tag| tag.revision);
    let (tag, root, previous_branch) = match (revision, newest) {
        (None, Some(newest)) => (newest.name.clone(), newest.root, newest.branch.clone()),
        (None, None) => return Err(Error::not_found(format!("branch {branch:?}"))),
        (Some(_), Some(newest)) => {
            let reason = format!("it exists already, at {} (revision {})", newest.name, newest.revision);
            return Err(Error::conflict(format!("branch {branch}"), reason));
        }
        (Some(revision), None) => {
            let root = head.revision(&head.selector(revision)?)?.root;
            let named = |tag: &&Tag| tag.root == root && (tag.name == revision || revision.parse::<u64>().is_ok());
            let tag = tags.iter().find(named).or_else(|| tags.iter().find(|tag| tag.root == root));
            let name = tag.map_or_else(|| root.to_string(), |tag| tag.name.clone());
            (name, root, tag.map_or_else(String::new, |tag| tag.branch.clone()))
        }
    };
    let checkout = Checkout { tag, root_hash: root.to_string(), branch: branch.into(), previous_branch };
    publisher.set_checkout(Some(&checkout), options.patience, cancel)?;
    Ok(CheckedOut { checkout: Some(checkout), new_branch: newest.is_none() })
}
