//! What a replica lacks is fetched while somebody waits for it.
//!
//! ```text
//! missing object ─► lately missing at the source, too? ─► one fetch for all who wait ─► verified ─► stored ─► served
//! ```
//!
//! So a replica can be used before its first snapshot has ended. Objects go to the storage, where a snapshot finds
//! them. Catalogs do not: a catalog in the storage promises that all below it is there. They go to the directory in
//! which snapshots keep catalogs that are not complete yet, and are served from there.
//!
//! Before the first snapshot there is no manifest either. Then those of the source are passed on, verified with the
//! keys of the replica like everything else.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hash::{ObjectId, ObjectKind};
use cvmfs_core::repository::Repository;
use cvmfs_core::storage::{Key, LocalStore, NamedFile, ReadStore, WriteStore};
use tokio::sync::{Semaphore, watch};

use super::connection::Shared;
use super::state::Source;

/// Objects that are fetched of one source at the same time.
const FETCHES_MAX: usize = 32;

/// How long an object that the source lacks, or failed to deliver, is not asked for again.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// Objects of which that is remembered.
const MISSING_MAX: usize = 10_000;

/// How long the documents of the source are passed on without asking again; less than caches keep them.
const DOCUMENTS_KEPT: Duration = Duration::from_secs(30);

type Wanted = (String, ObjectId);

/// Whether a fetch has ended, and how.
type Flight = watch::Receiver<Option<bool>>;

/// Fetches on their way, and what they found.
#[derive(Debug)]
pub(super) struct Puller {
    flights: Mutex<HashMap<Wanted, Flight>>,
    missing: Mutex<HashMap<Wanted, Instant>>,
    /// What waits for one source waits for no other.
    lines: Mutex<HashMap<String, Arc<Line>>>,
}

/// What there is for each replica.
#[derive(Debug)]
struct Line {
    documents: Arc<tokio::sync::Mutex<Option<Documents>>>,
    slots: Semaphore,
}

/// Manifest and whitelist of a source, verified; `None` if that failed.
#[derive(Debug, Clone)]
struct Documents {
    fetched: Instant,
    verified: Option<(Bytes, Bytes)>,
}

impl Puller {
    /// Nothing is on its way.
    pub(super) fn new() -> Self {
        Self { flights: Mutex::default(), missing: Mutex::default(), lines: Mutex::default() }
    }

    fn line(&self, name: &str) -> Arc<Line> {
        let new = || Arc::new(Line { documents: Arc::default(), slots: Semaphore::new(FETCHES_MAX) });
        Arc::clone(lock(&self.lines).entry(name.to_owned()).or_insert_with(new))
    }

    /// Sees to it that an object of a replica is there; `false` if it cannot be had now.
    pub(super) async fn fetch(&self, shared: &Arc<Shared>, name: &str, source: &Arc<Source>, id: ObjectId) -> bool {
        let wanted = (name.to_owned(), id);
        let mut flight = {
            let mut flights = lock(&self.flights);
            if let Some(flight) = flights.get(&wanted) {
                flight.clone()
            } else {
                if self.is_missing(&wanted) {
                    return false;
                }
                let (land, flight) = watch::channel(None);
                flights.insert(wanted.clone(), flight.clone());
                // It goes on when the client that was first has left: others may wait, and more will come.
                tokio::spawn(fly(Arc::clone(shared), wanted, Arc::clone(source), land));
                flight
            }
        };
        // An error means that the task is gone without a result.
        flight.wait_for(Option::is_some).await.is_ok_and(|landed| *landed == Some(true))
    }

    /// Manifest or whitelist of the source of a replica that has no manifest; `None` if they cannot be had.
    pub(super) async fn document(&self, source: &Arc<Source>, file: NamedFile) -> Option<Bytes> {
        let name = source.replica.alias.to_string();
        // Whoever comes while they are fetched waits here.
        let mut documents = Arc::clone(&self.line(&name).documents).lock_owned().await;
        let known = documents.as_ref().filter(|documents| documents.fetched.elapsed() < DOCUMENTS_KEPT).cloned();
        let current = match known {
            Some(current) => current,
            None => {
                let source = Arc::clone(source);
                // The lock is that of the thread, which goes on when the client leaves.
                let fetching = tokio::task::spawn_blocking(move || {
                    let verified = fetch_documents(&source)
                        .inspect_err(|error| tracing::warn!(name, %error, "cannot pass on the manifest of the source"))
                        .ok();
                    documents.insert(Documents { fetched: Instant::now(), verified }).clone()
                });
                fetching.await.ok()?
            }
        };
        let (manifest, whitelist) = current.verified?;
        match file {
            NamedFile::Manifest => Some(manifest),
            NamedFile::Whitelist => Some(whitelist),
            _ => None,
        }
    }

    fn is_missing(&self, wanted: &Wanted) -> bool {
        lock(&self.missing).get(wanted).is_some_and(|noticed| noticed.elapsed() < MISSING_FOR)
    }

    fn note_missing(&self, wanted: &Wanted) {
        let mut missing = lock(&self.missing);
        if missing.len() >= MISSING_MAX {
            missing.retain(|_, noticed| noticed.elapsed() < MISSING_FOR);
        }
        if missing.len() < MISSING_MAX {
            missing.insert(wanted.clone(), Instant::now());
        }
    }
}

/// Fetches one object, and tells all who wait.
async fn fly(shared: Arc<Shared>, wanted: Wanted, source: Arc<Source>, land: watch::Sender<Option<bool>>) {
    let id = wanted.1;
    let result = async {
        let line = shared.puller.line(&wanted.0);
        let _slot = line.slots.acquire().await.map_err(|error| Error::invalid("fetch", error.to_string()))?;
        let fetch = tokio::task::spawn_blocking(move || fetch_object(&source, id));
        fetch.await.map_err(|failure| Error::invalid("fetch", failure.to_string()))?
    };
    let is_there = match result.await {
        Ok(size) => {
            shared.metrics.pulled.fetch_add(1, Ordering::Relaxed);
            shared.metrics.pulled_bytes.fetch_add(size, Ordering::Relaxed);
            true
        }
        Err(error) => {
            shared.metrics.pull_failures.fetch_add(1, Ordering::Relaxed);
            if error.is_not_found() {
                tracing::debug!(name = wanted.0, %id, "the source lacks an object, too");
            } else {
                tracing::warn!(name = wanted.0, %id, %error, "cannot fetch a missing object");
            }
            shared.puller.note_missing(&wanted);
            false
        }
    };
    // First the result, or somebody could come in between and fetch again.
    land.send_replace(Some(is_there));
    lock(&shared.puller.flights).remove(&wanted);
}

/// Fetches an object from the source, verified, and stores it; returns its stored size.
fn fetch_object(source: &Source, id: ObjectId) -> Result<u64> {
    let directory = match id.kind {
        ObjectKind::Catalog => &waiting_catalogs(source),
        _ => source.replica.storage.directory()?,
    };
    let store = LocalStore::create(directory)?;
    // This hands out no byte before all of them are verified.
    let mut content = source.store()?.open(&Key::Object(id))?;
    let mut staged = store.stage()?;
    let size = std::io::copy(&mut content, &mut staged).at(directory)?;
    // No flush follows: a snapshot that comes after a power failure would believe what has a name and a size.
    staged.sync()?;
    staged.finish(&id)?;
    Ok(size)
}

fn fetch_documents(source: &Source) -> Result<(Bytes, Bytes)> {
    let replica = &source.replica;
    let store = source.store()?;
    if replica.is_pass_through && replica.public_keys.is_empty() {
        // Without a key they are passed on as they are, and it is for clients to verify them, as they do anyway.
        let read = |file: NamedFile| store.read(&file.into()).map(Bytes::from);
        return Ok((read(NamedFile::Manifest)?, read(NamedFile::Whitelist)?));
    }
    let keys = replica.master_keys()?;
    let now = super::unix_now();
    let opened =
        Repository::open(Arc::clone(&store) as Arc<dyn ReadStore>, &replica.name, &keys, now, &replica.scratch()?)?;
    // The whitelist that was verified is not kept by whoever verified it; this one is verified again.
    let bytes = store.read(&NamedFile::Whitelist.into())?;
    let whitelist = cvmfs_core::trust::whitelist::SignedWhitelist::parse(&bytes)?;
    whitelist.verify(&replica.name, &keys, now)?.check_certificate(opened.certificate())?;
    Ok((opened.signed_manifest().bytes().to_vec().into(), bytes.into()))
}

/// Where catalogs wait until everything that they reach is stored.
pub(super) fn waiting_catalogs(source: &Source) -> PathBuf {
    source.replica.spool.join("catalogs")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use cvmfs_core::server::ServerRoot;

    use super::*;
    use crate::replica::Replica;

    /// A pass-through replica of a source.
    fn source(root: &std::path::Path, alias: &str, url: &str) -> Arc<Source> {
        let directory = root.join("etc/cvmfs/repositories.d").join(alias);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("server.conf"), format!("CVMFS_STRATUM0={url}\n")).unwrap();
        let text = "CVMFS_PASSTHROUGH=yes\nCVMFS_HTTP_RETRIES=0\nCVMFS_HTTP_TIMEOUT=20\n";
        std::fs::write(directory.join("replica.conf"), text).unwrap();
        let replica = Replica::load(&ServerRoot::new(root).unwrap(), &alias.parse().unwrap()).unwrap();
        Arc::new(Source::new(replica))
    }

    #[tokio::test]
    async fn nobody_waits_for_the_source_of_another_replica() {
        let root = tempfile::tempdir().unwrap();
        // Connections are taken, and nobody answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent_url = format!("http://{}/cvmfs/slow.example.org", silent.local_addr().unwrap());
        let slow = source(root.path(), "slow.example.org", &silent_url);
        // Nobody is there at all.
        let quick = source(root.path(), "quick.example.org", "http://127.0.0.1:1/cvmfs/quick.example.org");
        let puller = Puller::new();
        let both = async {
            tokio::select! {
                biased;
                _ = puller.document(&slow, NamedFile::Manifest) => panic!("it answers"),
                answer = puller.document(&quick, NamedFile::Manifest) => answer,
            }
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), both).await;
        drop(silent);
        assert_eq!(answer, Ok(None));
    }
}
