//! Collection of garbage where revisions are made.

use std::any::Any;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::records::Digest;
use super::{Pins, Place};
use crate::changeset::{Needs, change_sets, needs};
use crate::check;
use crate::clock::UnixSeconds;
use crate::commit::{PublishLock, Publisher, refuse_foreign_transaction};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::ContentHash;
use crate::manifest::Manifest;
use crate::path::{RepoPath, RepositoryName};
use crate::progress::Cancel;
use crate::statistics::StatisticsFile;
use crate::storage::PruneStore;

/// How far the clock of the storage may be behind that of the spool directory.
const CLOCK_SKEW: Duration = Duration::from_mins(5);
/// What work in progress is taken to have begun before its last change, where the file system does not tell when a file
/// was made.
const LONGEST_WORK: Duration = Duration::from_hours(30 * 24);

/// A Stratum 0, while others may publish.
#[derive(Debug)]
pub struct Stratum0 {
    publisher: Publisher,
    store: Arc<dyn PruneStore>,
    now: UnixSeconds,
}

impl Stratum0 {
    /// The repository of a publisher, in this storage.
    pub fn new(publisher: Publisher, store: Arc<dyn PruneStore>, now: UnixSeconds) -> Self {
        Self { publisher, store, now }
    }
}

impl Place for Stratum0 {
    fn store(&self) -> Arc<dyn PruneStore> {
        Arc::clone(&self.store)
    }

    fn spool(&self) -> &Path {
        &self.publisher.config.spool
    }

    fn name(&self) -> &RepositoryName {
        &self.publisher.config.name
    }

    fn manifest(&self) -> Result<Manifest> {
        Ok(self.publisher.head(self.now)?.manifest().clone())
    }

    fn lock(&self, patience: Duration, cancel: &Cancel) -> Result<Box<dyn Any>> {
        Ok(Box::new(PublishLock::acquire(self.spool(), patience, cancel)?))
    }

    /// What is checked out, the open transaction, and change sets: those of runs that work and of runs that were killed,
    /// and finished ones that wait to be put together.
    fn pins(&self, patience: Duration, cancel: &Cancel, visit: &mut dyn FnMut(&Digest) -> Result<()>) -> Result<Pins> {
        refuse_foreign_transaction(self.spool())?;
        let mut pins = Pins::default();
        if let Some(checkout) = self.publisher.checkout()? {
            pins.roots.push(checkout.root()?);
        }
        if let Some(Needs::Roots(roots)) = self.publisher.transaction_needs(patience, cancel, visit)? {
            pins.roots.extend(roots);
        }
        // A change set may get its final name while we look: it is listed under that the next time.
        let mut seen = HashSet::new();
        loop {
            let new: Vec<_> = change_sets(self.spool())?.into_iter().filter(|file| seen.insert(file.clone())).collect();
            if new.is_empty() {
                return Ok(pins);
            }
            for file in new {
                let Some(begun) = begun(&file)? else { continue };
                match needs(&file, visit) {
                    Ok(Needs::Roots(roots)) => pins.roots.extend(roots),
                    // Whoever made it has begun to write it, or was killed when they did.
                    Ok(Needs::InUse) | Err(Error::Database { .. }) => {
                        let begun = begun.saturating_sub(CLOCK_SKEW);
                        pins.since = Some(pins.since.map_or(begun, |since| since.min(begun)));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn statistics(&self) -> &StatisticsFile {
        &self.publisher.config.statistics
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn may_lack_tags(&self) -> bool {
        false
    }

    fn has_catalog(&self, _path: &RepoPath) -> bool {
        true
    }

    fn forget_catalogs(&self, kept: &HashSet<ContentHash>) -> Result<()> {
        // What the known-content index and the cache of counters have of objects that went is looked up before it is
        // believed, or still true.
        check::forget_all_but(self.spool(), kept)
    }
}

/// When work on a file began; `None` if it has gone.
fn begun(file: &Path) -> Result<Option<Duration>> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.at(file)?,
    };
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = Duration::from_secs(u64::try_from(metadata.mtime()).unwrap_or(0));
    Ok(Some(born.unwrap_or_else(|| modified.saturating_sub(LONGEST_WORK))))
}
