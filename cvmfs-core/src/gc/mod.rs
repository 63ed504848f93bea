//! Collection of garbage: objects that no retained revision needs are removed.
//!
//! ```text
//! reflog, history ─► roots that stay ─► mark: their catalogs, once each ─► digests in 256 files
//!                    pins (what is being worked on)                              │
//!                                     listing of the storage, prefix by prefix ─►┴─► condemned, in 256 files
//! plan ─► lock: what was published meanwhile is marked, reflog, condemned roots ─► catalogs ─► objects
//! ```
//!
//! 1. The age from which objects may go is fixed first: that of the grace period, or that of the oldest work in progress,
//!    by the clock of the storage. Who begins later makes young what they use.
//! 2. Everything that retained revisions and pins reach is entered into files by first byte of the digest. Memory grows with
//!    catalogs, not with objects. The first catalog that cannot be read ends it: nothing was removed.
//! 3. The listing is compared with that. What is neither reached nor young is condemned; whether a revision ever had it does
//!    not matter, so what aborted runs left is found as well.
//! 4. Under the lock, for a moment: what was published since is marked, condemned root catalogs leave the reflog and then
//!    the storage. From here on nobody can go back to them.
//! 5. Other condemned catalogs go, then objects. Each is looked at once more when it goes; see [`PruneStore::prune`].
//!
//! Killed at any instant, what stays is complete, and the next run finds the rest.
//!
//! Source: `cvmfs/swissknife_gc.cc`, `cvmfs/garbage_collection/`, `cvmfs/server/cvmfs_server_gc.sh`.

mod log;
mod mark;
pub(crate) mod records;
mod retain;
mod stratum0;
mod sweep;

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use serde::Serialize;

use self::mark::Marker;
use self::records::{CondemnedObjects, Digest, Reached, visit_condemned};
use self::retain::{Keeping, Retained, retained};
use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::lock::FileLock;
use crate::manifest::Manifest;
use crate::parallel;
use crate::path::{RepoPath, RepositoryName};
use crate::progress::{Cancel, Progress, Unit};
use crate::reflog::StoredReflog;
use crate::statistics::{Run, StatisticsFile, Table};
use crate::status;
use crate::storage::PruneStore;

pub use log::DeletionLog;
pub use stratum0::Stratum0;

/// How long objects stay that nothing needs, unless somebody says otherwise: one day.
pub const GRACE_PERIOD: Duration = Duration::from_hours(24);
/// Held by a collection alone, and by checks together.
const LOCK_FILE: &str = "is_collecting.lock";
/// Age from which revisions go if nothing is said, in seconds: three days.
pub const KEEP_SECONDS: i64 = 3 * 86_400;

/// A repository whose garbage is collected: what differs between a Stratum 0 and a Stratum 1.
pub trait Place: fmt::Debug + Sync {
    /// The storage.
    fn store(&self) -> Arc<dyn PruneStore>;

    /// Directory for working files, with the checksum of the reflog.
    fn spool(&self) -> &Path;

    /// The repository.
    fn name(&self) -> &RepositoryName;

    /// Reads and verifies the manifest of the newest revision.
    fn manifest(&self) -> Result<Manifest>;

    /// Takes the right to change the reflog until the value is dropped: nobody publishes meanwhile.
    fn lock(&self, patience: Duration, cancel: &Cancel) -> Result<Box<dyn Any>>;

    /// What is being worked on. `visit` gets the digests of objects that are needed for it.
    fn pins(&self, patience: Duration, cancel: &Cancel, visit: &mut dyn FnMut(&Digest) -> Result<()>) -> Result<Pins>;

    /// Where runs are recorded.
    fn statistics(&self) -> &StatisticsFile;

    /// Whether nobody else writes to the storage during the run, so that condemned catalogs need not be old.
    fn is_exclusive(&self) -> bool;

    /// Whether revisions with tags may be missing.
    fn may_lack_tags(&self) -> bool;

    /// Whether the nested catalog at a path must be in the storage.
    fn has_catalog(&self, path: &RepoPath) -> bool;

    /// Forgets, durably, what is known of all catalogs but these.
    fn forget_catalogs(&self, kept: &HashSet<ContentHash>) -> Result<()>;
}

/// What is being worked on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// Root catalogs that it was begun from, if they are there.
    pub roots: Vec<ContentHash>,
    /// When the oldest of those began of which nobody can see what they need: what is younger than that stays.
    pub since: Option<Duration>,
}

/// Which former revisions stay, apart from those with tags. A revision must satisfy both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many before the newest one.
    pub revisions: Option<u64>,
    /// Those that were added since then, and the one before.
    pub since: Option<UnixSeconds>,
}

/// Choices for a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The time of the run.
    pub now: UnixSeconds,
    /// When it began.
    pub started: Instant,
    /// Which revisions stay.
    pub keep: Keep,
    /// How long objects stay that nothing needs.
    pub grace: Duration,
    /// Threads; 0 for one a core.
    pub threads: usize,
    /// How long to wait for whoever publishes.
    pub patience: Duration,
}

impl Options {
    /// A run at `now` that keeps the revisions of three days.
    pub fn new(now: UnixSeconds) -> Self {
        Self {
            now,
            started: Instant::now(),
            keep: Keep { revisions: None, since: Some(UnixSeconds(now.0 - KEEP_SECONDS)) },
            grace: GRACE_PERIOD,
            threads: 0,
            patience: Duration::from_mins(10),
        }
    }
}

/// A number of objects and their stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Objects.
    pub objects: u64,
    /// Stored bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        *self = self.and(Self { objects: 1, bytes });
    }

    fn and(self, other: Self) -> Self {
        Self { objects: self.objects + other.objects, bytes: self.bytes + other.bytes }
    }
}

/// What a run did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Revisions that stay.
    pub revisions_kept: u64,
    /// Revisions that leave the reflog.
    pub revisions_condemned: u64,
    /// Catalogs that stay because revisions need them.
    pub catalogs_kept: u64,
    /// Different objects that are needed, these catalogs among them.
    pub objects_kept: u64,
    /// What goes, or would go.
    pub condemned: Tally,
    /// The catalogs among that.
    pub condemned_catalogs: u64,
    /// What nothing needs and is too young to go.
    pub young: Tally,
    /// Objects that were condemned and came into use before they went.
    pub revived: u64,
    /// How long it took.
    pub seconds: f64,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Receives the objects that go, before they do, from any thread.
pub type Report<'a> = &'a (dyn Fn(&[ObjectId]) -> Result<()> + Sync);

/// Finds what would be removed, and removes nothing. `report` gets the objects.
///
/// # Errors
/// Those of [`collect`].
pub fn rehearse(
    place: &dyn Place,
    options: &Options,
    report: Report<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let pool = parallel::pool(options.threads)?;
    let plan = Plan::make(place, options, &pool, progress, cancel)?;
    plan.visit(report)?;
    Ok(Outcome { seconds: options.started.elapsed().as_secs_f64(), ..plan.outcome })
}

/// Removes what nothing needs; see the [module](self). `report` gets the objects that go.
///
/// # Errors
/// `Refused` if the repository does not allow it; `Conflict` if another collection or a check runs, or somebody publishes
/// for too long; that of the first catalog that cannot be read, in which case nothing is removed.
pub fn collect(
    place: &dyn Place,
    options: &Options,
    report: Report<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let _lock = lock(place.spool(), cancel)?;
    // What a run that was killed had moved aside has its name again, and is listed.
    place.store().flush()?;
    let pool = parallel::pool(options.threads)?;
    let plan = Plan::make(place, options, &pool, progress, cancel);
    let outcome = plan.and_then(|plan| plan.apply(options, report, progress, cancel));
    let recorded = record(place, options, &outcome);
    let mut outcome = outcome?;
    outcome.warnings.extend(recorded.err().map(|error| format!("no row in the statistics database: {error}")));
    status::set(&*place.store(), status::LAST_GC, &options.now.date_command())?;
    Ok(Outcome { seconds: options.started.elapsed().as_secs_f64(), ..outcome })
}

/// Adds the row of a run to the statistics database. A run that was refused or stopped was none.
fn record(place: &dyn Place, options: &Options, outcome: &Result<Outcome>) -> Result<()> {
    let numbers = match outcome {
        // Nobody asks twice for the same object here.
        Ok(outcome) => [
            outcome.catalogs_kept,
            outcome.condemned_catalogs,
            outcome.condemned.objects,
            outcome.condemned.bytes,
            0,
            1,
        ],
        Err(Error::Refused { .. } | Error::InvalidInput { .. } | Error::Conflict { .. } | Error::Cancelled) => {
            return Ok(());
        }
        Err(_) => [0; 6],
    };
    place.statistics().add(Table::Collections, Run { start: options.now, took: options.started.elapsed() }, &numbers)
}

/// One collection at a time, and no check meanwhile; the lock file is the reference's.
fn lock(spool: &Path, cancel: &Cancel) -> Result<FileLock> {
    let path = spool.join(LOCK_FILE);
    FileLock::acquire(&path, Duration::ZERO, cancel)?.ok_or_else(|| {
        Error::conflict(path.display().to_string(), "another collection of garbage, or a check, is running")
    })
}

/// Keeps collections away until the value is dropped: what they remove would look like damage.
///
/// # Errors
/// `Conflict` if one is running, and for longer than `patience`.
pub(crate) fn hold_off(spool: &Path, patience: Duration, cancel: &Cancel) -> Result<FileLock> {
    let path = spool.join(LOCK_FILE);
    FileLock::share(&path, patience, cancel)?
        .ok_or_else(|| Error::conflict(path.display().to_string(), "a collection of garbage is running"))
}

/// What is to go, found without changing anything.
struct Plan<'a> {
    place: &'a dyn Place,
    pool: &'a ThreadPool,
    marker: Marker<'a>,
    scratch: PathBuf,
    /// Objects that were put or reused since then stay.
    older_than: Duration,
    /// Entries of the reflog, as they were.
    reflog: HashSet<ObjectId>,
    /// Those that leave it.
    unlisted: Vec<ObjectId>,
    catalogs: sweep::Catalogs,
    /// All other objects that go.
    condemned: CondemnedObjects,
    outcome: Outcome,
}

impl<'a> Plan<'a> {
    fn make(
        place: &'a dyn Place,
        options: &Options,
        pool: &'a ThreadPool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Self> {
        if options.keep == Keep::default() {
            return Err(Error::invalid("revisions to keep", "say how many, or since when"));
        }
        let store = place.store();
        let scratch = place.spool().join("tmp");
        fs::create_dir_all(&scratch).at(&scratch)?;
        let manifest = place.manifest()?;
        if !manifest.garbage_collectable {
            let reason =
                "it does not allow collection of garbage: set CVMFS_GARBAGE_COLLECTION=true in its server.conf, as \
                          `mkfs --gc` does, and publish"
                    .to_owned();
            return Err(Error::Refused { what: format!("repository {}", place.name()), reason });
        }

        // 1. Whoever begins to work from here on makes young what they use.
        progress.phase("marking", Unit::Catalogs, None);
        let begin = store.clock()?;
        let reached = Reached::create(&scratch)?;
        let mut pinned = reached.writer();
        let pins = place.pins(options.patience, cancel, &mut |digest| pinned.add(digest))?;
        let older_than = begin.saturating_sub(options.grace).min(pins.since.unwrap_or(Duration::MAX));

        // 2. What is needed.
        let entries = reflog(place, &*store).read(manifest.reflog_checksum)?.entries()?;
        let in_use_since = pins.since.map(|since| UnixSeconds(since.as_secs().cast_signed()));
        let keeping = Keeping { keep: options.keep, in_use_since };
        let Retained { mut roots, auxiliary, warnings } = retained(place, &manifest, &entries, keeping, &scratch)?;
        let revisions_kept = roots.len() as u64;
        for root in pins.roots {
            if store.size(&ObjectId::catalog(root).into())?.is_some() {
                roots.push(root);
            }
        }
        auxiliary.iter().try_for_each(|id| pinned.add(id.hash.digest()))?;
        drop(pinned);
        let marker = Marker::new(place, scratch.clone(), pool);
        marker.mark(&roots, &reached, progress, cancel)?;
        // What is missing there would go.
        reached.complete()?;

        // 3. What is not.
        let mut unlisted: Vec<ObjectId> = {
            let (walked, auxiliary) = (marker.walked(), HashSet::<ObjectId>::from_iter(auxiliary));
            let stays = |id: &ObjectId| match id.kind {
                ObjectKind::Catalog => walked.contains(&id.hash),
                _ => auxiliary.contains(id),
            };
            entries.iter().map(|(id, _)| *id).filter(|id| !stays(id)).collect()
        };
        progress.phase("listing", Unit::Objects, None);
        let condemned = CondemnedObjects::create(&scratch)?;
        let sweep = sweep::Sweep { store: &*store, pool, older_than, is_exclusive: place.is_exclusive() };
        let found = sweep.find(&reached, &unlisted, &condemned, progress, cancel)?;
        unlisted.retain(|id| !found.young_listed.contains(id));
        let outcome = Outcome {
            dry_run: true,
            revisions_kept,
            revisions_condemned: unlisted.iter().filter(|id| id.kind == ObjectKind::Catalog).count() as u64,
            catalogs_kept: marker.walked().len() as u64,
            objects_kept: found.reached,
            condemned: found.condemned,
            condemned_catalogs: found.catalogs.count(),
            young: found.young,
            revived: 0,
            seconds: 0.0,
            warnings,
        };
        let reflog = entries.into_iter().map(|(id, _)| id).collect();
        let catalogs = found.catalogs;
        Ok(Self { place, pool, marker, scratch, older_than, reflog, unlisted, catalogs, condemned, outcome })
    }

    /// Shows what is to go, catalogs first.
    fn visit(&self, report: Report<'_>) -> Result<()> {
        report(&self.catalogs.ids())?;
        for first in 0..=u8::MAX {
            visit_condemned(&self.condemned, first, &mut |objects| {
                report(&objects.iter().map(|object| object.id).collect::<Vec<_>>())
            })?;
        }
        Ok(())
    }

    fn apply(
        mut self,
        options: &Options,
        report: Report<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let store = self.place.store();
        let sweep = sweep::Sweep {
            store: &*store,
            pool: self.pool,
            older_than: self.older_than,
            is_exclusive: self.place.is_exclusive(),
        };
        let later = Reached::create(&self.scratch)?;

        // 4. What was published since: most of it before the lock is taken, so that nobody has to wait.
        self.mark_later(&later, progress, cancel)?;
        let lock = self.place.lock(options.patience, cancel)?;
        let manifest = self.mark_later(&later, progress, cancel)?;
        let spared = {
            let walked = self.marker.walked();
            self.unlisted.retain(|id| !(id.kind == ObjectKind::Catalog && walked.contains(&id.hash)));
            let named = [Some(manifest.certificate_object()), manifest.history_object(), manifest.metainfo_object()];
            self.unlisted.retain(|id| !named.contains(&Some(*id)));
            let spared = self.catalogs.spare(&walked);
            self.place.forget_catalogs(&walked)?;
            spared
        };
        if !self.unlisted.is_empty() {
            reflog(self.place, &*store).remove(manifest.reflog_checksum, &self.unlisted)?;
        }
        let mut removed = sweep.remove_roots(&self.catalogs, report)?;
        drop(lock);

        // 5. Catalogs are gone for good before the first object goes that they reach.
        progress.phase("removing", Unit::Objects, Some(self.outcome.condemned.objects));
        removed = removed.and(sweep.remove_nested(&self.catalogs, report, progress, cancel)?);
        if self.catalogs.count() > 0 {
            store.flush()?;
        }
        removed = removed.and(sweep.remove_objects(&self.condemned, &later, report, progress, cancel)?);
        Ok(Outcome {
            dry_run: false,
            revisions_condemned: self.unlisted.iter().filter(|id| id.kind == ObjectKind::Catalog).count() as u64,
            catalogs_kept: self.marker.walked().len() as u64,
            condemned: removed.gone,
            condemned_catalogs: self.catalogs.count(),
            revived: removed.revived + spared,
            ..self.outcome
        })
    }

    /// Marks what the reflog, the manifest and the history have by now, and returns the manifest.
    fn mark_later(&self, later: &Reached, progress: &dyn Progress, cancel: &Cancel) -> Result<Manifest> {
        let manifest = self.place.manifest()?;
        let store = self.place.store();
        let entries = reflog(self.place, &*store).read(manifest.reflog_checksum)?.entries()?;
        // The newest revision and those with tags; what was published and superseded since is in the reflog.
        let keeping = Keeping { keep: Keep { revisions: Some(0), since: None }, in_use_since: None };
        let Retained { mut roots, auxiliary, .. } = retained(self.place, &manifest, &entries, keeping, &self.scratch)?;
        let mut writer = later.writer();
        let new = entries.iter().map(|(id, _)| *id).filter(|id| !self.reflog.contains(id));
        for id in new.chain(auxiliary) {
            writer.add(id.hash.digest())?;
            if id.kind == ObjectKind::Catalog && store.size(&id.into())?.is_some() {
                roots.push(id.hash);
            }
        }
        let pins = self.place.pins(Duration::ZERO, cancel, &mut |digest| writer.add(digest));
        match pins {
            Ok(pins) => {
                for root in pins.roots {
                    if store.size(&ObjectId::catalog(root).into())?.is_some() {
                        roots.push(root);
                    }
                }
            }
            // A command is adding to the transaction: what it uses is young, or it finds out when it is published.
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        drop(writer);
        self.marker.mark(&roots, later, progress, cancel)?;
        later.complete()?;
        Ok(manifest)
    }
}

fn reflog<'a>(place: &'a dyn Place, store: &'a dyn PruneStore) -> StoredReflog<'a> {
    StoredReflog { store, spool: place.spool(), name: place.name() }
}
