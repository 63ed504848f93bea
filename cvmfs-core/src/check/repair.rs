//! Mending what can be mended; nothing is invented.
//!
//! - Objects that are missing or damaged come from another copy of the repository, if they have their hash there.
//! - A reflog that is lost is put together again from what is in the storage; one that lacks objects gets them.
//! - Counters are counted again, in a new revision with the same tree.
//!
//! Each round of mending is followed by a check, because a catalog that was missing hides what is below it.
//!
//! Source: `cvmfs/swissknife_reflog.cc`, for the reflog.

use std::any::Any;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::{Kind, Looked, Options, Report, Subject, look};
use crate::catalog::Catalog;
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::gc;
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::history::History;
use crate::manifest::Manifest;
use crate::parallel;
use crate::path::RepoPath;
use crate::progress::{Cancel, Progress, Unit};
use crate::reflog::StoredReflog;
use crate::storage::{Key, ReadStore, WriteStore};

/// Most rounds of mending: catalogs are no deeper.
const MAX_ROUNDS: usize = 100;

/// Publishes the newest tree again, with the counters of the catalogs at these places, and of those above, counted again.
pub type Recount<'a> = &'a dyn Fn(&BTreeSet<RepoPath>) -> Result<()>;

/// What there is to mend with.
pub struct Means<'a> {
    /// Another copy of the repository.
    pub mirror: Option<Arc<dyn ReadStore>>,
    /// Takes the right to change the reflog until the value is dropped.
    pub lock: &'a dyn Fn() -> Result<Box<dyn Any>>,
    /// Counts again what a Stratum 0 can.
    pub recount: Option<Recount<'a>>,
}

impl std::fmt::Debug for Means<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Means({:?})", self.mirror)
    }
}

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// Objects that came from the other copy.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Whether the reflog was completed or made anew.
    pub reflog: bool,
    /// Whether counters were counted again.
    pub counters: bool,
    /// Why other things could not be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// Checks a repository and mends what can be mended; the report is what is wrong after that.
///
/// # Errors
/// Those of [`super::check`], and of the means.
pub fn repair(
    subject: &Subject<'_>,
    options: &Options,
    means: &Means<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(Report, Mended)> {
    let _lock = gc::hold_off(subject.spool, options.patience, cancel)?;
    let mut mended = Mended::default();
    let mut tried = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let Looked { report, manifest, lost, miscounted } = look(subject, options, progress, cancel)?;
        let (Some(manifest), false) = (manifest, report.is_clean()) else { return Ok((report, mended)) };
        let before = (mended.objects, mended.reflog, mended.counters);
        let lost: Vec<ObjectId> = lost.into_iter().filter(|id| tried.insert(*id)).collect();
        if let Some(mirror) = &means.mirror {
            bring(&*subject.store, mirror, &lost, options.threads, &mut mended, progress, cancel)?;
        }
        let is_whole = mended.objects == before.0;
        if is_whole && !mended.reflog && report.findings.iter().any(|finding| finding.kind == Kind::Reflog) {
            let _lock = (means.lock)()?;
            mend_reflog(subject, &manifest, options.now)?;
            mended.reflog = true;
        }
        // Counters of a tree that is not whole cannot be told.
        let are_last = report.findings.iter().all(|finding| matches!(finding.kind, Kind::Counters | Kind::Reflog));
        if let Some(recount) =
            means.recount.filter(|_| is_whole && are_last && !mended.counters && !miscounted.is_empty())
        {
            recount(&miscounted)?;
            mended.counters = true;
        }
        if before == (mended.objects, mended.reflog, mended.counters) {
            return Ok((report, mended));
        }
    }
    Ok((look(subject, options, progress, cancel)?.report, mended))
}

/// Brings objects from another copy, each verified.
fn bring(
    store: &dyn WriteStore,
    mirror: &Arc<dyn ReadStore>,
    lost: &[ObjectId],
    threads: usize,
    mended: &mut Mended,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    if lost.is_empty() {
        return Ok(());
    }
    progress.phase("mending", Unit::Objects, Some(lost.len() as u64));
    let done = Mutex::new(mended);
    let pool = parallel::pool(threads)?;
    parallel::work_off(&pool, lost.iter().copied(), |id, _| {
        cancel.check()?;
        let key = Key::Object(id);
        let read = mirror.read(&key).and_then(|stored| {
            let actual = id.hash.algorithm().hash(&stored);
            if actual == id.hash {
                return Ok(stored);
            }
            let (expected, actual) = (id.hash.to_string(), actual.to_string());
            Err(Error::HashMismatch { what: mirror.describe(&key), expected, actual })
        });
        let stored = match read {
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => {
                done.lock().unwrap_or_else(PoisonError::into_inner).failures.push(error.to_string());
                return Ok(());
            }
            Ok(stored) => stored,
        };
        // What is there has the right size, perhaps, and not the right bytes.
        store.discard(&id)?;
        store.put(&id, &stored)?;
        let mut mended = done.lock().unwrap_or_else(PoisonError::into_inner);
        mended.objects += 1;
        mended.bytes += stored.len() as u64;
        progress.advance(1);
        Ok(())
    })?;
    store.flush()
}

/// Completes the reflog, or makes it anew from what is in the storage.
fn mend_reflog(subject: &Subject<'_>, manifest: &Manifest, now: UnixSeconds) -> Result<()> {
    let reflog = StoredReflog { store: &*subject.store, spool: subject.spool, name: subject.name };
    let found = root_objects(subject, manifest, &subject.spool.join("tmp"), now)?;
    let expected = manifest.reflog_checksum.filter(|_| !subject.is_replica);
    let algorithm = manifest.root_catalog.algorithm();
    match reflog.read(expected).and_then(|reflog| reflog.entries()) {
        Ok(entries) => {
            let listed: HashSet<ObjectId> = entries.into_iter().map(|(id, _)| id).collect();
            let missing: Vec<ObjectId> = found.iter().map(|(id, _)| *id).filter(|id| !listed.contains(id)).collect();
            reflog.add(expected, algorithm, now, &missing)?;
        }
        Err(error) if is_lost(&error) => drop(reflog.rebuild(algorithm, &found)?),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether a document is missing or damaged, as far as an error tells. All other errors say nothing of it, and what a new
/// reflog would not know would be collected one day.
fn is_lost(error: &Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
        Error::NotFound { .. } | Error::MissingObject { .. } | Error::HashMismatch { .. } | Error::Malformed { .. } => {
            true
        }
        Error::Database { source, .. } => source
            .downcast_ref::<rusqlite::Error>()
            .and_then(rusqlite::Error::sqlite_error_code)
            .is_some_and(|code| matches!(code, DatabaseCorrupt | NotADatabase)),
        _ => false,
    }
}

/// The root objects that can be found from the manifest on, each with its time: revisions by those after them, tag databases by
/// those after them, and the revisions that these name.
fn root_objects(
    subject: &Subject<'_>,
    manifest: &Manifest,
    scratch: &Path,
    now: UnixSeconds,
) -> Result<Vec<(ObjectId, UnixSeconds)>> {
    let store = &*subject.store;
    let mut found = vec![(manifest.certificate_object(), now)];
    found.extend(manifest.metainfo_object().map(|id| (id, now)));
    let (mut roots, mut seen) = (vec![manifest.root_catalog], HashSet::new());
    let mut history = manifest.history;
    while let Some(hash) = history.filter(|hash| seen.insert(*hash)) {
        let database = match History::fetch(store, hash, scratch) {
            Err(Error::MissingObject { .. }) => break,
            database => database?,
        };
        found.push((ObjectId::new(hash, ObjectKind::History), now));
        roots.extend(database.tags()?.into_iter().map(|tag| tag.root));
        history = database.previous()?;
    }
    for root in roots {
        let mut next: Option<ContentHash> = Some(root);
        while let Some(hash) = next.filter(|hash| seen.insert(*hash)) {
            let catalog = match Catalog::fetch(store, hash, scratch) {
                Err(Error::MissingObject { .. }) => break,
                catalog => catalog?,
            };
            found.push((ObjectId::catalog(hash), catalog.last_modified()?));
            next = catalog.previous()?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_or_damaged_is_made_anew() {
        let database =
            |code| Error::database("reflog", rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        let what = || "reflog".to_owned();
        for lost in [
            Error::not_found("reflog"),
            Error::HashMismatch { what: what(), expected: String::new(), actual: String::new() },
            Error::malformed("reflog", "unknown schema"),
            database(rusqlite::ffi::SQLITE_CORRUPT),
            database(rusqlite::ffi::SQLITE_NOTADB),
        ] {
            assert!(is_lost(&lost), "{lost}");
        }
        for other in [
            Error::Unavailable { what: what(), reason: "status 503".into() },
            Error::Refused { what: what(), reason: "status 403".into() },
            Error::io("reflog", std::io::ErrorKind::PermissionDenied.into()),
            database(rusqlite::ffi::SQLITE_FULL),
            Error::Cancelled,
        ] {
            assert!(!is_lost(&other), "{other}");
        }
    }
}
