//! Filling the cache directory of clients before they need it, as for machines without network.
//!
//! 1. The source's documents are fetched and verified.
//! 2. The tree of the newest revision is completed in the cache, or the part of it that a path specification selects.
//! 3. Certificate and meta info; then the note that tells clients which revision is there.
//!
//! What the cache has is not fetched again. The cache can be used, and filled by the reference's tool, at any time.
//!
//! Source: `cvmfs/preload.cc`, `cvmfs/swissknife_pull.cc`.

mod cache;

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cvmfs_core::catalog::Catalog;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::{HttpStore, Url};
use cvmfs_core::hash::{ContentHash, ObjectId};
use cvmfs_core::lock::FileLock;
use cvmfs_core::manifest::{Manifest, SignedManifest};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Progress, Unit};
use cvmfs_core::storage::{LocalStore, MemoryStore, NamedFile, ReadStore as _, WriteStore};
use serde::Serialize;

use self::cache::CacheStore;
use crate::replica::{Transfer, load_keys};
use crate::select::Selection;
use crate::snapshot::crash;
use crate::snapshot::proven::Proven;
use crate::snapshot::source::{Documents, Trust, check_open};
use crate::snapshot::walk::{Root, Setting, Target, Walk};
use crate::snapshot::{Counts, Failures, MAX_CATALOG_SIZE};

/// Choices for filling a cache.
#[derive(Debug, Clone)]
pub struct PreloadOptions {
    /// The time of the run.
    pub now: UnixSeconds,
    /// Where to fetch from, the best first; at least one.
    pub sources: Vec<Url>,
    /// Files with master keys, and directories of such files.
    pub public_keys: Vec<PathBuf>,
    /// The repository; `None` for the one that the source has.
    pub name: Option<RepositoryName>,
    /// A file with a path specification; `None` for everything.
    pub paths: Option<PathBuf>,
    /// How to fetch.
    pub transfer: Transfer,
}

/// What filling a cache did.
#[derive(Debug, Clone, Serialize)]
pub struct PreloadOutcome {
    /// The repository.
    pub name: String,
    /// Whether clients can use the newest revision from the cache now.
    pub complete: bool,
    /// That revision.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// What was fetched.
    pub counts: Counts,
    /// How long it took.
    pub seconds: f64,
    /// What could not be had.
    #[serde(skip_serializing_if = "Failures::is_empty")]
    pub failures: Failures,
}

/// Fills the cache in `directory`; see the [module](self).
///
/// # Errors
/// `Conflict` if another process fills it; those of the source's documents. What could not be had otherwise is no error.
pub fn preload(
    directory: &Path,
    options: &PreloadOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<PreloadOutcome> {
    let started = Instant::now();
    let stores = [Compression::Zlib, Compression::None].map(|kind| CacheStore::create(directory, kind));
    let [compressed, plain] = stores;
    let (compressed, plain) = (compressed?, plain?);
    let source =
        Arc::new(HttpStore::new(options.sources.clone(), options.transfer.http_options(directory.join("txn")))?);
    let manifest = source.read(&NamedFile::Manifest.into())?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => SignedManifest::parse(&manifest)?.unverified().name.clone(),
    };
    let work = directory.join(format!("preload.{name}"));
    fs::create_dir_all(&work).at(&work)?;
    let _lock = FileLock::acquire(&work.join("lock"), std::time::Duration::ZERO, cancel)?
        .ok_or_else(|| Error::conflict(directory.display().to_string(), "another process fills the cache"))?;

    check_open(&source)?;
    let keys = load_keys(&options.public_keys)?;
    let trust = Trust { name: &name, keys: &keys, now: options.now };
    let servers = options.sources.len();
    let documents = Documents::fetch(&source, servers, &MemoryStore::new(), Some(manifest), trust, |_| Ok(()))?;
    let manifest = &documents.manifest;

    progress.phase("fetching", Unit::Bytes, None);
    let selection = options.paths.iter().try_fold(Selection::default(), |all, file| all.with_paths(file))?;
    let proven = Proven::open(&work, selection.path_key())?;
    let unfinished = crash::begin(&work, &compressed, || proven.retain(&HashSet::new()), cancel)?;
    let walk = Walk::new(Setting {
        source: Arc::clone(&source),
        target: Box::new(Cache::new(&compressed, plain)),
        waiting: Arc::new(LocalStore::create(work.join("catalogs"))?),
        proven,
        selection,
        scratch: directory.join("txn"),
        max_catalog_size: MAX_CATALOG_SIZE,
        queue: options.transfer.queue_options(),
        cancel: cancel.clone(),
    })?;
    let root = Root { catalog: manifest.root_catalog, size: manifest.root_catalog_size, base: None };
    walk.complete(&[root], progress)?;
    let failures = walk.take_failures();
    walk.settle()?;
    if failures.is_empty() {
        walk.store_roots(&[root.catalog])?;
        compressed.put(&manifest.certificate_object(), &documents.certificate_bytes)?;
        if let Some(id) = manifest.metainfo_object().filter(|id| !compressed.has(id).unwrap_or(false)) {
            compressed.put(&id, &source.read(&id.into())?)?;
        }
        walk.settle()?;
        write_notes(directory, manifest, options.paths.as_deref())?;
    }
    unfinished.end()?;
    Ok(PreloadOutcome {
        name: name.to_string(),
        complete: failures.is_empty(),
        revision: manifest.revision,
        root_hash: manifest.root_catalog.to_string(),
        counts: walk.counts(),
        seconds: started.elapsed().as_secs_f64(),
        failures,
    })
}

/// The cache, of which each half takes what is stored one way at the source.
struct Cache {
    compressed: Arc<dyn WriteStore>,
    plain: Arc<dyn WriteStore>,
    paths: CacheStore,
}

impl Cache {
    fn new(compressed: &CacheStore, plain: CacheStore) -> Self {
        Self { compressed: Arc::new(compressed.clone()), plain: Arc::new(plain), paths: compressed.clone() }
    }
}

impl Target for Cache {
    fn store(&self, compression: Compression) -> &Arc<dyn WriteStore> {
        match compression {
            Compression::Zlib => &self.compressed,
            Compression::None => &self.plain,
        }
    }

    fn have(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        ids.iter().map(|id| self.paths.has(id)).collect()
    }

    /// A catalog is in the cache as it is used.
    fn open_catalog(&self, catalog: ContentHash, _limit: u64) -> Result<Catalog> {
        Catalog::open(&self.paths.path(&ObjectId::catalog(catalog)))
    }
}

/// Tells clients which revision is in the cache, and the reference's tool with which path specification.
fn write_notes(directory: &Path, manifest: &Manifest, paths: Option<&Path>) -> Result<()> {
    let Manifest { name, root_catalog, revision, timestamp, .. } = manifest;
    let dirtab = paths.map_or(Ok(Vec::new()), |file| fs::read(file).at(file))?;
    write_note(directory, &format!("dirtab.{name}"), &dirtab)?;
    if !directory.join("uuid").exists() {
        let uuid = "/proc/sys/kernel/random/uuid";
        write_note(directory, "uuid", &fs::read(uuid).at(uuid)?)?;
    }
    let note = format!("{root_catalog}T{}R{revision}", timestamp.unwrap_or_default().0);
    write_note(directory, &format!("cvmfschecksum.{name}"), note.as_bytes())
}

fn write_note(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let (mut file, temporary) = cache::temporary(&directory.join("txn"))?;
    file.write_all(content).and_then(|()| file.sync_all()).at(&path)?;
    temporary.persist(&path).map_err(|error| Error::io(&path, error.error))
}
