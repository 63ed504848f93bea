//! Collection of garbage on a Stratum 1: its own storage, reflog and policy.
//!
//! Revisions come and go at the source. A replica that collects without need reads all its catalogs for nothing, so it
//! collects only if the source has since the last time. It holds the lock of the replica: snapshots wait.
//!
//! Source: `cvmfs/server/cvmfs_server_gc.sh`.

use std::any::Any;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Result;
use cvmfs_core::fetch::HttpStore;
use cvmfs_core::gc::{self, Options, Outcome, Pins, Place, Report};
use cvmfs_core::hash::{ContentHash, DIGEST_SIZE};
use cvmfs_core::manifest::Manifest;
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::repository::Repository;
use cvmfs_core::statistics::StatisticsFile;
use cvmfs_core::status::{self, LAST_GC};
use cvmfs_core::storage::{PruneStore, ReadStore};

use crate::replica::Replica;
use crate::snapshot::proven::Proven;

/// Why a replica was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// It has no snapshot yet.
    Empty,
    /// It passes requests on.
    PassThrough,
    /// The repository does not allow it.
    NotCollectable,
    /// The source has not collected since the replica did.
    SourceUnchanged,
}

/// Whether there is something to collect for a replica; `None` if there is.
///
/// A source that does not tell when it collected is taken to have.
pub fn is_needless(replica: &Replica, cancel: &Cancel) -> Result<Option<Skipped>> {
    cancel.check()?;
    if replica.is_pass_through {
        return Ok(Some(Skipped::PassThrough));
    }
    let Some(manifest) = crate::snapshot::manifest_of(replica)? else { return Ok(Some(Skipped::Empty)) };
    if !manifest.unverified().garbage_collectable {
        return Ok(Some(Skipped::NotCollectable));
    }
    let ours = status::time(&*replica.storage.open()?, LAST_GC)?;
    let source = HttpStore::new(replica.sources.clone(), replica.http_options()?)?;
    // Whoever cannot be asked may have collected.
    let theirs = status::time(&source, LAST_GC).ok().flatten();
    // In the same second it may have been after us.
    Ok(ours.zip(theirs).filter(|(ours, theirs)| theirs < ours).map(|_| Skipped::SourceUnchanged))
}

/// Removes what the replica does not need any more, or only says what that would be.
///
/// # Errors
/// Those of [`gc::collect`].
pub fn collect(
    replica: &Replica,
    options: &Options,
    is_rehearsal: bool,
    report: Report<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let _lock = if is_rehearsal { None } else { Some(replica.lock(options.patience, cancel)?) };
    let store = replica.storage.open()?;
    let stratum1 = Stratum1 { replica, store, now: options.now };
    if is_rehearsal {
        gc::rehearse(&stratum1, options, report, progress, cancel)
    } else {
        gc::collect(&stratum1, options, report, progress, cancel)
    }
}

/// A replica that nobody else changes.
#[derive(Debug)]
struct Stratum1<'a> {
    replica: &'a Replica,
    store: Arc<dyn PruneStore>,
    now: UnixSeconds,
}

impl Place for Stratum1<'_> {
    fn store(&self) -> Arc<dyn PruneStore> {
        Arc::clone(&self.store)
    }

    fn spool(&self) -> &Path {
        &self.replica.spool
    }

    fn name(&self) -> &RepositoryName {
        &self.replica.name
    }

    fn manifest(&self) -> Result<Manifest> {
        let store = Arc::clone(&self.store) as Arc<dyn ReadStore>;
        let keys = self.replica.master_keys()?;
        let repository = Repository::open(store, &self.replica.name, &keys, self.now, &self.replica.scratch()?)?;
        Ok(repository.manifest().clone())
    }

    fn lock(&self, _patience: Duration, _cancel: &Cancel) -> Result<Box<dyn Any>> {
        // The lock of the replica is held all the time.
        Ok(Box::new(()))
    }

    fn pins(
        &self,
        _patience: Duration,
        _cancel: &Cancel,
        _visit: &mut dyn FnMut(&[u8; DIGEST_SIZE]) -> Result<()>,
    ) -> Result<Pins> {
        Ok(Pins::default())
    }

    fn statistics(&self) -> &StatisticsFile {
        &self.replica.statistics
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn may_lack_tags(&self) -> bool {
        true
    }

    fn has_catalog(&self, path: &RepoPath) -> bool {
        self.replica.selection.has_path(path)
    }

    fn forget_catalogs(&self, kept: &HashSet<ContentHash>) -> Result<()> {
        Proven::open(&self.replica.spool, self.replica.selection.path_key())?.retain(kept)
    }
}
