//! Which revisions stay.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::{Keep, Place};
use crate::catalog::Catalog;
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::history::History;
use crate::manifest::Manifest;
use crate::storage::PruneStore;

/// What stays, as far as manifest, history and reflog say.
#[derive(Debug, Default)]
pub(super) struct Retained {
    /// Root catalogs, the newest one first.
    pub(super) roots: Vec<ContentHash>,
    /// Certificates, histories and meta infos.
    pub(super) auxiliary: Vec<ObjectId>,
    pub(super) warnings: Vec<String>,
}

impl Retained {
    fn add(&mut self, root: ContentHash) {
        if !self.roots.contains(&root) {
            self.roots.push(root);
        }
    }
}

/// What a revision is kept for, apart from its place in the history.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Keeping {
    pub(super) keep: Keep,
    /// Revisions since then may be what somebody works on.
    pub(super) in_use_since: Option<UnixSeconds>,
}

/// Finds what stays: the newest revision, those before it as far as they are to be kept, those with tags, and what the
/// manifest names.
///
/// A revision counts as of the time when the reflog got it. The first one that is too old stays, too: it was the newest
/// one at that time. One that is missing ends the line: it was collected earlier.
///
/// # Errors
/// Those of catalogs that cannot be read; `MissingObject` if there is no root catalog for a tag that must have one.
///
/// Source: `cvmfs/garbage_collection/garbage_collector_impl.h`, `gc_aux_impl.h`, `cvmfs/catalog_traversal.h`.
pub(super) fn retained(
    place: &dyn Place,
    manifest: &Manifest,
    reflog: &[(ObjectId, UnixSeconds)],
    keeping: Keeping,
    scratch: &Path,
) -> Result<Retained> {
    let store = &*place.store();
    let times: HashMap<ObjectId, UnixSeconds> = reflog.iter().copied().collect();
    let mut retained = Retained::default();

    let oldest = line(store, manifest.root_catalog, &times, keeping, scratch, &mut retained)?;
    if let Some(history) = manifest.history {
        for tag in History::fetch(store, history, scratch)?.tags()? {
            let id = ObjectId::catalog(tag.root);
            if store.size(&id.into())?.is_some() {
                retained.add(tag.root);
            } else if place.may_lack_tags() {
                retained.warnings.push(format!("the revision of tag {} is not here", tag.name));
            } else {
                let what = format!("root catalog of tag {}: {}", tag.name, store.describe(&id.into()));
                return Err(Error::MissingObject { what });
            }
        }
    }

    let named = [manifest.certificate_object()];
    let named = named.into_iter().chain(manifest.history_object()).chain(manifest.metainfo_object());
    retained.auxiliary.extend(named);
    let is_young = |(id, time): &&(ObjectId, UnixSeconds)| id.kind != ObjectKind::Catalog && *time >= oldest;
    retained.auxiliary.extend(reflog.iter().filter(is_young).map(|(id, _)| *id));
    Ok(retained)
}

/// Adds the newest revision and those before it that stay; returns the time of the oldest.
fn line(
    store: &dyn PruneStore,
    head: ContentHash,
    times: &HashMap<ObjectId, UnixSeconds>,
    keeping: Keeping,
    scratch: &Path,
    retained: &mut Retained,
) -> Result<UnixSeconds> {
    let Keeping { keep, in_use_since } = keeping;
    let (mut root, mut oldest, mut depth) = (head, UnixSeconds(i64::MAX), 0);
    let mut seen = HashSet::new();
    while seen.insert(root) {
        let catalog = match Catalog::fetch(store, root, scratch) {
            Err(Error::MissingObject { .. }) if depth > 0 => break,
            catalog => catalog?,
        };
        let time = match times.get(&ObjectId::catalog(root)) {
            Some(time) => *time,
            None => catalog.last_modified()?,
        };
        retained.add(root);
        oldest = oldest.min(time);
        let is_kept =
            keep.revisions.is_none_or(|revisions| depth < revisions) && keep.since.is_none_or(|since| time >= since);
        let is_in_use = in_use_since.is_some_and(|since| time >= since);
        let previous = catalog.previous()?.filter(|_| is_kept || is_in_use);
        let Some(previous) = previous else { break };
        (root, depth) = (previous, depth + 1);
    }
    Ok(oldest)
}
