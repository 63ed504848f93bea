//! Which trees a snapshot completes, and in which order.

use std::collections::{HashMap, HashSet};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::hash::{ContentHash, ObjectId};
use cvmfs_core::history::{History, Tag};
use cvmfs_core::manifest::Manifest;
use cvmfs_core::progress::Progress;

use super::failures::Failures;
use super::walk::{Ending, Root, Walk};
use super::{FormerRevisions, Run};

/// What could not be completed.
#[derive(Debug, Default)]
pub(super) struct Trees {
    pub(super) failures: Failures,
    pub(super) warnings: Vec<String>,
}

/// Completes the newest revision, then those before it, then those with tags.
pub(super) fn complete(run: &Run<'_>, walk: &Walk, manifest: &Manifest, progress: &dyn Progress) -> Result<Trees> {
    let mut trees = Trees::default();
    let ours = run.ours.as_ref().map(|ours| ours.unverified().root_catalog);
    let head = Root { catalog: manifest.root_catalog, size: manifest.root_catalog_size, base: ours };
    let was_proven = walk.is_proven(head.catalog)?;
    let ending = trees.complete(walk, &head, progress)?;

    // Newest first. A root catalog that is in the storage stands for those before it, too.
    let mut line = vec![(head.catalog, ending)];
    let takes_former = match run.options.former {
        FormerRevisions::SinceLast => crate::replica::is_complete(&*run.store)?,
        FormerRevisions::All => true,
        FormerRevisions::None => false,
    };
    if !was_proven && ending == Ending::Complete && takes_former {
        let oldest = manifest.garbage_collectable.then(|| days_ago(run.options.now, run.replica.auto_gc.timespan_days));
        let oldest = oldest.max(run.replica.selection.oldest(run.options.now));
        line.extend(trees.complete_former(walk, head, oldest, manifest.garbage_collectable, progress)?);
    }
    let oldest_first = line.iter().rev().take_while(|(_, ending)| *ending == Ending::Complete).map(|(root, _)| *root);
    walk.store_roots(&oldest_first.collect::<Vec<_>>())?;

    let tags = match manifest.history {
        Some(history) => History::fetch(&*run.store, history, &run.replica.scratch()?)?.tags()?,
        None => Vec::new(),
    };
    let tags = tags.into_iter().filter(|tag| run.replica.selection.has_tag(tag, run.options.now));
    trees.complete_tags(walk, tags.collect(), head.catalog, manifest.garbage_collectable, progress)?;
    Ok(trees)
}

fn days_ago(now: UnixSeconds, days: u32) -> UnixSeconds {
    UnixSeconds(now.0 - i64::from(days) * 86_400)
}

impl Trees {
    fn complete(&mut self, walk: &Walk, root: &Root, progress: &dyn Progress) -> Result<Ending> {
        let endings = walk.complete(&[*root], progress)?;
        let ending = endings.get(&root.catalog).copied().unwrap_or(Ending::Failed);
        self.take_failures(walk, root.catalog, ending);
        Ok(ending)
    }

    /// Takes over what could not be had; what several trees lack is told only for the first one.
    fn take_failures(&mut self, walk: &Walk, root: ContentHash, ending: Ending) {
        let failures = walk.take_failures();
        if ending != Ending::Complete && failures.is_empty() && self.failures.is_empty() {
            let id = ObjectId::catalog(root);
            self.failures.add(id, &Error::not_found(format!("a part of the tree of {id}")));
        }
        self.failures.extend(failures);
    }

    /// Completes the revisions before a complete one, newest first, up to one that is in the storage or too old.
    ///
    /// What the source has collected ends the line.
    fn complete_former(
        &mut self,
        walk: &Walk,
        newest: Root,
        oldest: Option<UnixSeconds>,
        is_collectable: bool,
        progress: &dyn Progress,
    ) -> Result<Vec<(ContentHash, Ending)>> {
        let (mut line, mut newer) = (Vec::new(), newest);
        while let Some(previous) = walk.open_root(&newer)?.previous()? {
            if walk.is_stored(previous)? {
                break;
            }
            let root = Root { catalog: previous, size: None, base: Some(newer.catalog) };
            match walk.open_root(&root) {
                Ok(catalog) if oldest.is_some_and(|oldest| catalog.last_modified().is_ok_and(|time| time < oldest)) => {
                    break;
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() && is_collectable => break,
                Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
                Err(error) => {
                    self.failures.add(ObjectId::catalog(previous), &error);
                    line.push((previous, Ending::Failed));
                    break;
                }
            }
            let ending = walk.complete(&[root], progress)?.get(&previous).copied().unwrap_or(Ending::Failed);
            if ending == Ending::Missing && is_collectable {
                let missing = walk.take_failures();
                self.warnings
                    .push(format!("former revisions from {previous} on are collected at the source: {missing}"));
                break;
            }
            self.take_failures(walk, previous, ending);
            line.push((previous, ending));
            if ending != Ending::Complete {
                break;
            }
            newer = root;
        }
        Ok(line)
    }

    /// Completes revisions that have a name, all at once.
    fn complete_tags(
        &mut self,
        walk: &Walk,
        tags: Vec<Tag>,
        base: ContentHash,
        is_collectable: bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut seen = HashSet::from([base]);
        let mut roots = Vec::new();
        let mut names = HashMap::new();
        for tag in tags.into_iter().filter(|tag| seen.insert(tag.root)) {
            let size = Some(tag.root_size).filter(|&size| size > 0);
            roots.push(Root { catalog: tag.root, size, base: Some(base) });
            names.insert(tag.root, tag.name);
        }
        let endings = walk.complete(&roots, progress)?;
        let mut failures = walk.take_failures();
        let mut complete = Vec::new();
        for root in &roots {
            let ending = endings.get(&root.catalog).copied().unwrap_or(Ending::Failed);
            match ending {
                Ending::Complete => complete.push(root.catalog),
                Ending::Missing if is_collectable && !walk.has_catalog(root.catalog)? => {
                    failures.forgive(ObjectId::catalog(root.catalog));
                    let name = &names[&root.catalog];
                    self.warnings.push(format!("tag {name} is left out: the source has collected its revision"));
                }
                Ending::Missing | Ending::Failed if failures.is_empty() && self.failures.is_empty() => {
                    let id = ObjectId::catalog(root.catalog);
                    failures.add(id, &Error::not_found(format!("a part of the tree of {id}")));
                }
                Ending::Missing | Ending::Failed => {}
            }
        }
        self.failures.extend(failures);
        walk.store_roots(&complete)
    }
}
