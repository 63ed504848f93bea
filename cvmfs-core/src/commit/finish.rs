//! Finished catalogs on their way into the storage, several at a time.

use std::fs::{self, File};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalog::{Counters, FinishedCatalog, Nested};
use crate::compression::{CompressingWriter, Compressor, Effort};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use crate::object::{ObjectWriter, StoredObject};
use crate::parallel;
use crate::path::RepoPath;
use crate::storage::WriteStore;

/// Databases larger than this are deflated as a stream, on several threads, instead of whole in memory.
const WHOLE_FILE_MAX: u64 = 32 << 20;

/// Stores catalogs, on the threads of whoever asks.
#[derive(Debug)]
pub(super) struct Storer {
    store: Arc<dyn WriteStore>,
    algorithm: Algorithm,
    effort: Effort,
    compressors: Mutex<Vec<Compressor>>,
}

/// Stores catalogs in parallel, on threads of its own. Dropping it waits for what they have begun, which is on disk.
#[derive(Debug)]
pub(super) struct Finisher {
    storer: Arc<Storer>,
    pool: rayon::ThreadPool,
    /// Each catalog on its way has a clone of it.
    busy: Option<Sender<()>>,
    /// Ends when there are no clones.
    idle: Mutex<Receiver<()>>,
}

/// A catalog that is stored.
#[derive(Debug, Clone)]
pub(super) struct StoredCatalog {
    pub(super) nested: Nested,
    /// Bytes of the database, uncompressed.
    pub(super) size: u64,
    pub(super) stored_size: u64,
    pub(super) revision: u64,
    pub(super) total: Counters,
}

/// A catalog that is being stored.
#[derive(Debug)]
pub(super) struct StoringCatalog {
    pub(super) path: RepoPath,
    result: Receiver<Result<StoredCatalog>>,
}

impl StoringCatalog {
    /// Waits for the end of it.
    pub(super) fn wait(self) -> Result<StoredCatalog> {
        // A worker that panics drops its end of the channel.
        self.result
            .recv()
            .unwrap_or_else(|_| Err(Error::malformed(format!("catalog {}", self.path), "its worker died")))
    }
}

impl Storer {
    pub(super) fn new(store: Arc<dyn WriteStore>, algorithm: Algorithm, effort: Effort) -> Self {
        Self { store, algorithm, effort, compressors: Mutex::default() }
    }

    /// Stores a catalog.
    pub(super) fn store(&self, mount: RepoPath, finished: FinishedCatalog) -> Result<StoredCatalog> {
        let idle = self.compressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(self.effort));
        let (kind, level) = (ObjectKind::Catalog, self.effort.level);
        let stored = store_database(&*self.store, &finished.file, kind, self.algorithm, &mut compressor, level);
        self.compressors.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        let FinishedCatalog { file, statistics, revision } = finished;
        // Before anybody hears of it: with the last catalog the process may end, and nobody would remove the file.
        drop(file);
        stored.map(|StoredDatabase { hash, size, stored_size }| StoredCatalog {
            nested: Nested { path: mount, hash, size: Some(size) },
            size,
            stored_size,
            revision,
            total: statistics.total(),
        })
    }
}

impl Finisher {
    /// Prepares `threads` workers; 0 for one a core.
    pub(super) fn new(
        store: Arc<dyn WriteStore>,
        algorithm: Algorithm,
        effort: Effort,
        threads: usize,
    ) -> Result<Self> {
        let (busy, idle) = channel();
        let storer = Arc::new(Storer::new(store, algorithm, effort));
        Ok(Self { storer, pool: parallel::pool(threads)?, busy: Some(busy), idle: Mutex::new(idle) })
    }

    /// Begins to store a catalog.
    pub(super) fn store(&self, path: RepoPath, finished: FinishedCatalog) -> StoringCatalog {
        let (sender, result) = sync_channel(1);
        let (storer, mount, busy) = (Arc::clone(&self.storer), path.clone(), self.busy.clone());
        self.pool.spawn(move || {
            // Nobody waits any more if the commit failed elsewhere.
            let _ = sender.send(storer.store(mount, finished));
            drop(busy);
        });
        StoringCatalog { path, result }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        self.busy = None;
        // Nothing is ever sent.
        let _ = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner).recv();
    }
}

/// A database object in the storage.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredDatabase {
    pub(super) hash: ContentHash,
    /// Bytes of the database, uncompressed.
    pub(super) size: u64,
    pub(super) stored_size: u64,
}

/// Deflates, hashes and stores a database file; always zlib, whatever the repository's compression.
pub(super) fn store_database(
    store: &dyn WriteStore,
    file: &std::path::Path,
    kind: ObjectKind,
    algorithm: Algorithm,
    compressor: &mut Compressor,
    level: u8,
) -> Result<StoredDatabase> {
    let size = fs::metadata(file).at(file)?.len();
    if size <= WHOLE_FILE_MAX {
        let plain = fs::read(file).at(file)?;
        let stored = compressor.compress(&plain);
        let id = ObjectId::of(algorithm, kind, stored);
        store.put(&id, stored)?;
        return Ok(StoredDatabase { hash: id.hash, size, stored_size: stored.len() as u64 });
    }
    let mut writer = CompressingWriter::new(ObjectWriter::new(store, algorithm)?, level, 0).at(file)?;
    let mut source = File::open(file).at(file)?;
    let writer = io::copy(&mut source, &mut writer).and_then(|_| writer.finish()).at(file)?;
    let StoredObject { id, stored_size, .. } = writer.finish(kind)?;
    Ok(StoredDatabase { hash: id.hash, size, stored_size })
}
