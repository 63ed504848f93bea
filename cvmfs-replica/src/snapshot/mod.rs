//! Snapshots: bringing a replica to the newest revision of its source.
//!
//! 1. Take the lock. Fetch the manifest. If it is ours and the last run ended well, only the whitelist is looked at: two
//!    requests.
//! 2. The source must be open for replication; whitelist, certificate and manifest must verify, and must not be older
//!    than ours. A source whose documents do not verify is left for the next one.
//! 3. Certificate, meta info and tag database: kept as they are stored at the source.
//! 4. Complete the trees: the newest revision, those before it, those with tags (`walk`). Root catalogs are stored
//!    when their tree is complete, a former revision before those that came after it.
//! 5. If anything could not be had, everything else is there now, and the old revision stays.
//! 6. Flush, reflog, whitelist, and **the manifest last**; then the files that monitors read.
//!
//! Killed at any moment, the replica has its old revision or the new one, complete, and the next run fetches what is
//! missing.
//!
//! Source: `cvmfs/swissknife_pull.cc`, `cvmfs/server/cvmfs_server_snapshot.sh`.

pub(crate) mod crash;
mod failures;
pub(crate) mod proven;
pub(crate) mod source;
mod trees;
pub(crate) mod walk;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs_core::catalog::Catalog;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::HttpStore;
use cvmfs_core::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs_core::manifest::{Manifest, SignedManifest};
use cvmfs_core::progress::{Cancel, Progress, Unit};
use cvmfs_core::reflog::StoredReflog;
use cvmfs_core::storage::{LocalStore, NamedFile, PruneStore, ReadStore as _, WriteStore};
use cvmfs_core::trust::keys::PublicKey;
use serde::{Deserialize, Serialize};

use self::proven::Proven;
use self::source::{Documents, Trust};
use self::walk::{Setting, Target, Walk};
use crate::replica::{Replica, stored_manifest};
use crate::status::{self, HistoryEntry, Snapshotting};

pub use failures::Failures;
pub use walk::Counts;

/// Temporary files of this age in seconds belong to nobody.
const ABANDONED_SECONDS: i64 = 2 * 86_400;
/// Most bytes of a catalog, inflated, unless somebody says more.
pub(crate) const MAX_CATALOG_SIZE: u64 = 4 << 30;

/// Choices for a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// The time of the run.
    pub now: UnixSeconds,
    /// How long to wait for another run on the same replica.
    pub patience: Duration,
    /// Take a revision that is older than the one that the replica has.
    pub accept_older: bool,
    /// Which former revisions come along.
    pub former: FormerRevisions,
    /// Most bytes of a catalog, inflated.
    pub max_catalog_size: u64,
}

impl SnapshotOptions {
    /// The defaults for a run at `now`.
    pub fn new(now: UnixSeconds) -> Self {
        Self {
            now,
            patience: Duration::MAX,
            accept_older: false,
            former: FormerRevisions::SinceLast,
            max_catalog_size: MAX_CATALOG_SIZE,
        }
    }
}

/// Which revisions before the newest one a snapshot replicates, besides those with tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormerRevisions {
    /// Those since the last snapshot; none with the first one.
    SinceLast,
    /// All that the replica lacks, also with the first one.
    All,
    /// None.
    None,
}

/// How a snapshot ended, if not with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The replica has the newest revision now.
    Updated,
    /// It had it already.
    Unchanged,
    /// Something could not be had; the replica has the revision that it had before.
    Incomplete,
    /// There is nothing to do for a replica that passes requests on.
    PassThrough,
}

/// What a snapshot did.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotOutcome {
    /// How it ended.
    pub ending: Ending,
    /// The revision that the replica has now.
    pub revision: Option<u64>,
    /// The revision that it had before.
    pub previous_revision: Option<u64>,
    /// The root catalog of the revision that it has now.
    pub root_hash: Option<String>,
    /// What was fetched.
    pub counts: Counts,
    /// How long it took.
    pub seconds: f64,
    /// What could not be had.
    #[serde(skip_serializing_if = "Failures::is_empty")]
    pub failures: Failures,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Brings a replica to the newest revision of its source; see the [module](self).
///
/// # Errors
/// `Conflict` if another run takes too long; `Untrusted` or `Expired` if no source has documents that verify; `Refused`
/// if the source is not open for replication, or has an older revision only. What could not be had otherwise is no
/// error, but an outcome with the ending [`Ending::Incomplete`].
pub fn snapshot(
    replica: &Replica,
    options: &SnapshotOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<SnapshotOutcome> {
    if replica.is_pass_through {
        return Ok(outcome_of(Ending::PassThrough, None));
    }
    // The first snapshot may take days; whoever comes meanwhile comes again anyway.
    let patience = if replica.is_complete()? { options.patience } else { Duration::ZERO };
    let _lock = replica.lock(patience, cancel)?;
    let started = Instant::now();
    let result = Run::open(replica, options, cancel).and_then(|run| run.run(progress));
    let seconds = started.elapsed().as_secs_f64();
    let entry = HistoryEntry {
        start: options.now.0,
        seconds,
        ending: result.as_ref().ok().map(|outcome| outcome.ending),
        revision: result.as_ref().ok().and_then(|outcome| outcome.revision),
        counts: result.as_ref().map(|outcome| outcome.counts).unwrap_or_default(),
        error: match &result {
            Ok(outcome) if outcome.failures.is_empty() => None,
            Ok(outcome) => Some(outcome.failures.to_string()),
            Err(error) => Some(error.to_string()),
        },
    };
    if let Err(error) = status::add_to_history(replica, &entry) {
        tracing::warn!(%error, "cannot note the run");
    }
    result.map(|outcome| SnapshotOutcome { seconds, ..outcome })
}

/// A run, with all that it works on.
struct Run<'a> {
    replica: &'a Replica,
    options: &'a SnapshotOptions,
    cancel: &'a Cancel,
    store: Arc<dyn PruneStore>,
    source: Arc<HttpStore>,
    keys: Vec<PublicKey>,
    /// What is in the place of the manifest.
    in_place: Option<Vec<u8>>,
    /// The manifest that the replica has.
    ours: Option<SignedManifest>,
}

impl<'a> Run<'a> {
    fn open(replica: &'a Replica, options: &'a SnapshotOptions, cancel: &'a Cancel) -> Result<Self> {
        let store = replica.storage.create()?;
        let in_place = stored_manifest(&*store)?;
        // A file that is no manifest is replaced like an old one.
        let ours = in_place.as_deref().and_then(|bytes| SignedManifest::parse(bytes).ok());
        Ok(Self {
            replica,
            options,
            cancel,
            store,
            source: Arc::new(HttpStore::new(replica.sources.clone(), replica.http_options()?)?),
            keys: replica.master_keys()?,
            in_place,
            ours,
        })
    }

    fn run(&self, progress: &dyn Progress) -> Result<SnapshotOutcome> {
        let proven = Proven::open(&self.replica.spool, self.replica.selection.path_key())?;
        let bytes = self.source.read(&NamedFile::Manifest.into())?;
        let has_it = self.is_unchanged(&proven, &bytes)?;
        if !has_it {
            source::check_open(&self.source)?;
        }
        let servers = self.replica.sources.len();
        let trust = Trust { name: &self.replica.name, keys: &self.keys, now: self.options.now };
        let documents =
            Documents::fetch(&self.source, servers, &*self.store, Some(bytes), trust, |new| self.check_age(new))?;
        if has_it && documents.has_certificate && self.is_unchanged(&proven, &documents.manifest_bytes)? {
            self.update_whitelist(&documents.whitelist_bytes)?;
            // A run that was killed may have left it.
            self.store.remove(NamedFile::IsSnapshotting)?;
            status::set_last_snapshot(&*self.store, self.options.now)?;
            return Ok(outcome_of(Ending::Unchanged, self.ours.as_ref()));
        }
        if has_it {
            // Its certificate is lost, or another manifest came with a second look at the documents.
            source::check_open(&self.source)?;
        }
        proven.begin()?;
        let unfinished = crash::begin(&self.replica.spool, &*self.store, || Ok(()), self.cancel)?;
        let snapshotting = Snapshotting::begin(&*self.store, self.options.now)?;

        progress.phase("fetching", Unit::Bytes, None);
        let named = self.fetch_named_objects(&documents)?;
        let walk = Walk::new(self.setting(proven)?)?;
        let trees = trees::complete(self, &walk, &documents.manifest, progress)?;
        walk.settle()?;
        let outcome = SnapshotOutcome {
            counts: walk.counts().and(named),
            failures: trees.failures,
            warnings: trees.warnings,
            ..outcome_of(Ending::Incomplete, self.ours.as_ref())
        };
        if !outcome.failures.is_empty() {
            unfinished.end()?;
            return Ok(outcome);
        }
        self.publish(&walk, &documents)?;
        unfinished.end()?;
        drop(snapshotting);
        self.tidy_up()?;
        status::set_last_snapshot(&*self.store, self.options.now)?;
        let Manifest { revision, root_catalog, .. } = documents.manifest;
        Ok(SnapshotOutcome {
            ending: Ending::Updated,
            revision: Some(revision),
            root_hash: Some(root_catalog.to_string()),
            ..outcome
        })
    }

    /// Whether the replica has all that belongs to the source's manifest.
    fn is_unchanged(&self, proven: &Proven, manifest: &[u8]) -> Result<bool> {
        let is_ours = self.ours.as_ref().is_some_and(|ours| ours.bytes() == manifest);
        Ok(is_ours && proven.last_good()?.is_some_and(|good| good == self.key(manifest)))
    }

    /// The source may sign its whitelist anew at any time, and that of the replica may be lost.
    fn update_whitelist(&self, whitelist: &[u8]) -> Result<()> {
        if self.store.read(&NamedFile::Whitelist.into()).is_ok_and(|stored| stored == whitelist) {
            return Ok(());
        }
        self.store.write(NamedFile::Whitelist, whitelist)
    }

    /// Tells the manifest, and what of the revision was replicated.
    fn key(&self, manifest: &[u8]) -> String {
        format!("{} {}", Algorithm::Sha1.hash(manifest), self.replica.selection.key())
    }

    /// Refuses to go back.
    fn check_age(&self, new: &Manifest) -> Result<()> {
        let Some(ours) = self.ours.as_ref().map(SignedManifest::unverified) else { return Ok(()) };
        if self.options.accept_older || (new.revision, new.timestamp) >= (ours.revision, ours.timestamp) {
            return Ok(());
        }
        let reason = match new.revision.cmp(&ours.revision) {
            std::cmp::Ordering::Less => {
                format!("revision {} is older than {}, which the replica has", new.revision, ours.revision)
            }
            _ => format!("revision {} was signed before the one that the replica has", new.revision),
        };
        let what = self.source.describe(&NamedFile::Manifest.into());
        Err(Error::Refused { what, reason: format!("{reason} (see --accept-older)") })
    }

    /// Stores certificate, meta info and tag database, each as it is at the source.
    fn fetch_named_objects(&self, documents: &Documents) -> Result<Counts> {
        let Documents { manifest, certificate_bytes, .. } = documents;
        let mut counts = Counts::default();
        let others = [manifest.metainfo_object(), manifest.history_object()].into_iter().flatten();
        for id in others.chain([manifest.certificate_object()]) {
            if self.store.read(&id.into()).is_ok_and(|stored| id.hash.algorithm().hash(&stored) == id.hash) {
                continue;
            }
            self.store.discard(&id)?;
            let size = if id.kind == ObjectKind::Certificate {
                self.store.put(&id, certificate_bytes)?;
                certificate_bytes.len() as u64
            } else {
                source::copy(&self.source, &*self.store, &id)?
            };
            counts.add_object(size);
        }
        Ok(counts)
    }

    fn setting(&self, proven: Proven) -> Result<Setting> {
        let scratch = self.replica.scratch()?;
        let storage: Arc<dyn WriteStore> = Arc::clone(&self.store) as _;
        Ok(Setting {
            source: Arc::clone(&self.source),
            target: Box::new(Storage { store: storage, scratch: scratch.clone() }),
            waiting: Arc::new(LocalStore::create(self.waiting())?),
            proven,
            selection: self.replica.selection.clone(),
            scratch,
            max_catalog_size: self.options.max_catalog_size,
            queue: self.replica.transfer.queue_options(),
            cancel: self.cancel.clone(),
        })
    }

    /// Removes what runs that were killed left behind.
    fn tidy_up(&self) -> Result<()> {
        self.store.remove_abandoned(UnixSeconds(self.options.now.0 - ABANDONED_SECONDS))?;
        let waiting = LocalStore::open(self.waiting())?;
        waiting.discard_if(self.cancel, &|id, _| Ok(self.store.size(&(*id).into())?.is_some()))?;
        Ok(())
    }

    /// Where catalogs are that are fetched and not complete.
    fn waiting(&self) -> PathBuf {
        self.replica.spool.join("catalogs")
    }

    /// Makes the new revision the one that the replica has.
    fn publish(&self, walk: &Walk, documents: &Documents) -> Result<()> {
        let Documents { manifest, manifest_bytes, whitelist_bytes, .. } = documents;
        let mut named = vec![manifest.root_object(), manifest.certificate_object()];
        named.extend(manifest.history_object().into_iter().chain(manifest.metainfo_object()));
        if manifest.shortcuts {
            named.iter().try_for_each(|id| self.store.put_shortcut(id))?;
        }
        named.extend(walk.proven().roots()?.into_iter().map(ObjectId::catalog));
        let reflog = StoredReflog { store: &*self.store, spool: &self.replica.spool, name: &self.replica.name };
        reflog.add(None, manifest.root_catalog.algorithm(), self.options.now, &named)?;
        self.store.write(NamedFile::Whitelist, whitelist_bytes)?;
        // Another machine may replicate into the same bucket, though it should not.
        let is_ours = |current: Option<&[u8]>| current == self.in_place.as_deref();
        if !self.store.write_if(NamedFile::Manifest, manifest_bytes, &is_ours)? {
            return Err(Error::Superseded { what: self.store.describe(&NamedFile::Manifest.into()) });
        }
        walk.proven().end(&self.key(manifest_bytes))
    }
}

/// The manifest of the revision that a replica has.
pub(crate) fn manifest_of(replica: &Replica) -> Result<Option<SignedManifest>> {
    Ok(replica.manifest()?.and_then(|bytes| SignedManifest::parse(&bytes).ok()))
}

/// The storage of a replica.
struct Storage {
    store: Arc<dyn WriteStore>,
    scratch: PathBuf,
}

impl Target for Storage {
    fn store(&self, _compression: Compression) -> &Arc<dyn WriteStore> {
        &self.store
    }

    fn have(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        let sizes = self.store.sizes(ids).map_err(Error::of_target)?;
        let is_empty = |id: &ObjectId| id.hash == id.hash.algorithm().hash(b"");
        // An empty file is what a crash leaves; that of an empty object is none the worse for it.
        let has = |(id, size): (&ObjectId, Option<u64>)| size.is_some_and(|size| size > 0 || is_empty(id));
        Ok(ids.iter().zip(sizes).map(has).collect())
    }

    fn open_catalog(&self, catalog: ContentHash, limit: u64) -> Result<Catalog> {
        Catalog::fetch_limited(&*self.store, catalog, &self.scratch, limit).map_err(Error::of_target)
    }
}

/// The outcome of a run that did nothing, for a replica that has this manifest.
fn outcome_of(ending: Ending, ours: Option<&SignedManifest>) -> SnapshotOutcome {
    let ours = ours.map(SignedManifest::unverified);
    SnapshotOutcome {
        ending,
        revision: ours.map(|manifest| manifest.revision),
        previous_revision: ours.map(|manifest| manifest.revision),
        root_hash: ours.map(|manifest| manifest.root_catalog.to_string()),
        counts: Counts::default(),
        seconds: 0.0,
        failures: Failures::default(),
        warnings: Vec::new(),
    }
}
