//! Names of revisions: listing and editing them.
//!
//! Source: `cvmfs/swissknife_history.cc`.

use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::history::{Tag, TagName};
use cvmfs_core::progress::Cancel;
use cvmfs_core::repository::{Repository, Selector};
use serde::Serialize;

use super::Options;

/// A tag, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// The revision.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// When that was written, in seconds since 1970.
    pub timestamp: i64,
    /// The same, readable.
    pub time: String,
    /// Bytes of the root catalog, uncompressed.
    pub catalog_bytes: u64,
    /// The branch; empty for the trunk.
    pub branch: String,
    /// Free text.
    pub description: String,
    /// Whether publishing made the name.
    pub automatic: bool,
}

impl From<&Tag> for Named {
    fn from(tag: &Tag) -> Self {
        Self {
            name: tag.name.clone(),
            revision: tag.revision,
            root_hash: tag.root.to_string(),
            timestamp: tag.timestamp.0,
            time: tag.timestamp.to_string(),
            catalog_bytes: tag.root_size,
            branch: tag.branch.clone(),
            description: tag.description.clone(),
            automatic: TagName::is_managed(&tag.name)
                || tag.name.parse::<TagName>().is_ok_and(|name| name.is_automatic()),
        }
    }
}

/// What became of an edit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edited {
    /// Whether anything was changed.
    pub changed: bool,
    /// The tags that were added, moved or removed, as they are or were.
    pub tags: Vec<Named>,
}

/// All tags, the newest revision first.
pub fn list_tags(repository: &Repository) -> Result<Vec<Named>> {
    Ok(repository.tags()?.iter().map(Named::from).collect())
}

/// Names a revision; nothing changes if it has that name.
///
/// The tag belongs to the branch of the revision, as other tags of it tell.
///
/// # Errors
/// `Conflict` if another revision has the name.
pub fn add_tag(
    publisher: &Publisher,
    name: &TagName,
    revision: &str,
    description: &str,
    options: &Options,
    cancel: &Cancel,
) -> Result<Edited> {
    edit(publisher, options, cancel, |head, history| {
        let tag = describe(head, name, revision, description)?;
        match history.tag(name.as_str())? {
            Some(old) if old.root == tag.root => return Ok(None),
            Some(old) => {
                let reason = format!("it names revision {}; `tag move` moves it", old.revision);
                return Err(Error::conflict(format!("tag {name}"), reason));
            }
            None => history.add(&tag)?,
        }
        Ok(Some(vec![tag]))
    })
}

/// Makes a tag name another revision; nothing changes if it does. Without a new description it keeps the old one.
///
/// # Errors
/// `NotFound` if there is no such tag.
pub fn move_tag(
    publisher: &Publisher,
    name: &TagName,
    revision: &str,
    description: Option<&str>,
    options: &Options,
    cancel: &Cancel,
) -> Result<Edited> {
    edit(publisher, options, cancel, |head, history| {
        let old = history.tag(name.as_str())?.ok_or_else(|| not_found(name.as_str()))?;
        let mut tag = describe(head, name, revision, description.unwrap_or(&old.description))?;
        if old.root == tag.root && old.description == tag.description {
            return Ok(None);
        }
        tag.branch = old.branch;
        history.remove(name.as_str())?;
        history.add(&tag)?;
        Ok(Some(vec![tag]))
    })
}

/// Removes tags: all of them, or none if one cannot be.
///
/// # Errors
/// `NotFound` if one does not exist, `InvalidInput` for those that publishing manages.
pub fn remove_tags(publisher: &Publisher, names: &[String], options: &Options, cancel: &Cancel) -> Result<Edited> {
    if let Some(name) = names.iter().find(|name| TagName::is_managed(name)) {
        return Err(Error::invalid(format!("tag {name}"), "it is managed by publishing"));
    }
    edit(publisher, options, cancel, |_, history| {
        let mut removed: Vec<Tag> = Vec::new();
        for name in names {
            if removed.iter().any(|tag| tag.name == *name) {
                continue;
            }
            removed.push(history.tag(name)?.ok_or_else(|| not_found(name))?);
            history.remove(name)?;
        }
        history.prune_branches()?;
        Ok((!removed.is_empty()).then_some(removed))
    })
}

fn edit(
    publisher: &Publisher,
    options: &Options,
    cancel: &Cancel,
    edit: impl FnMut(&Repository, &mut cvmfs_core::history::History) -> Result<Option<Vec<Tag>>>,
) -> Result<Edited> {
    let tags = publisher.edit_history(options.now, options.patience, cancel, edit)?;
    let changed = tags.is_some();
    Ok(Edited { changed, tags: tags.unwrap_or_default().iter().map(Named::from).collect() })
}

fn describe(head: &Repository, name: &TagName, revision: &str, description: &str) -> Result<Tag> {
    let selector = head.selector(revision)?;
    let found = head.revision(&selector)?;
    let of_revision = |tag: &&Tag| match &selector {
        Selector::Tag(name) => tag.name == *name,
        _ => tag.root == found.root,
    };
    Ok(Tag {
        name: name.to_string(),
        root: found.root,
        revision: found.number,
        timestamp: found.modified,
        description: description.into(),
        root_size: found.size,
        branch: head.tags()?.iter().find(of_revision).map_or_else(String::new, |tag| tag.branch.clone()),
    })
}

fn not_found(name: &str) -> Error {
    Error::not_found(format!("tag {name:?}"))
}
