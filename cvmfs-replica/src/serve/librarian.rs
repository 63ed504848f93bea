//! Looking into repositories for pages, without harm to serving.
//!
//! Catalogs are databases: opening one takes memory, disk and time. So all of that happens on a few threads that do
//! nothing else, each keeps the catalogs that it opened lately, and whoever asks waits for a limited time in a queue of
//! limited length. Then there is an error, and clients that read objects have noticed nothing.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hash::ContentHash;
use cvmfs_core::history::History;
use cvmfs_core::history::Tag;
use cvmfs_core::manifest::{Manifest, SignedManifest};
use cvmfs_core::storage::NamedFile;
use cvmfs_core::tree::Tree;
use tokio::sync::oneshot;

use super::repositories::Storage;

/// Threads that open catalogs.
const THREADS: usize = 2;

/// Questions that wait for them.
const QUEUE: usize = 64;

/// How long one waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Largest catalog that is opened, in bytes, uncompressed.
const CATALOG_MAX: u64 = 512 << 20;

/// Trees, with up to 16 open catalogs each, and tag lists that each thread keeps.
const KEPT: usize = 4;

type Question = Box<dyn FnOnce(&mut Shelf) + Send>;

/// The threads that look into repositories.
#[derive(Debug)]
pub(super) struct Librarian {
    questions: SyncSender<Question>,
    /// Made for the catalogs, and gone with this value.
    _directory: tempfile::TempDir,
}

/// What one thread has open.
#[derive(Debug)]
pub(super) struct Shelf {
    scratch: PathBuf,
    /// Most recently used first.
    trees: Vec<(Storage, Tree)>,
    tags: Vec<(Storage, ContentHash, Arc<Vec<Tag>>)>,
}

impl Librarian {
    /// Starts the threads; catalogs are inflated below `scratch`.
    pub(super) fn start(scratch: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("cvmfs-pages-").tempdir_in(scratch).at(scratch)?;
        let (questions, queue) = sync_channel::<Question>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let (queue, scratch) = (Arc::clone(&queue), directory.path().to_owned());
            let work = move || {
                let mut shelf = Shelf { scratch, trees: Vec::new(), tags: Vec::new() };
                while let Some(question) = next(&queue) {
                    question(&mut shelf);
                }
            };
            std::thread::Builder::new().name("librarian".to_owned()).spawn(work).at("thread")?;
        }
        Ok(Self { questions, _directory: directory })
    }

    /// Has a thread look something up.
    ///
    /// # Errors
    /// `Unavailable` if there is too much to do, besides those of `question`.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Shelf) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let busy = || Error::Unavailable { what: "catalogs".to_owned(), reason: "too many requests".to_owned() };
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |shelf| {
            // Whoever asked may have given up.
            if !reply.is_closed() {
                drop(reply.send(question(shelf)));
            }
        });
        self.questions.try_send(question).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => busy(),
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }
}

fn next(queue: &Mutex<Receiver<Question>>) -> Option<Question> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Shelf {
    /// The tree below a root catalog.
    pub(super) fn tree(&mut self, storage: &Storage, root: ContentHash) -> Result<&mut Tree> {
        let place = self.trees.iter().position(|(place, tree)| place == storage && tree.root() == root);
        let entry = match place {
            Some(index) => self.trees.remove(index),
            None => (storage.clone(), Tree::new(storage.open()?, root, &self.scratch).with_catalog_limit(CATALOG_MAX)),
        };
        self.trees.insert(0, entry);
        self.trees.truncate(KEPT);
        Ok(&mut self.trees[0].1)
    }

    /// The tags of a revision, the newest first.
    pub(super) fn tags(&mut self, storage: &Storage, manifest: &Manifest) -> Result<Arc<Vec<Tag>>> {
        let Some(history) = manifest.history else { return Ok(Arc::default()) };
        if let Some((_, _, tags)) = self.tags.iter().find(|(place, hash, _)| place == storage && *hash == history) {
            return Ok(Arc::clone(tags));
        }
        let tags = Arc::new(History::fetch(&*storage.open()?, history, &self.scratch)?.tags()?);
        self.tags.insert(0, (storage.clone(), history, Arc::clone(&tags)));
        self.tags.truncate(KEPT);
        Ok(tags)
    }
}

/// Reads the manifest of a storage; its signature is not checked here.
pub(super) fn read_manifest(storage: &Storage) -> Result<SignedManifest> {
    SignedManifest::parse(&storage.open()?.read(&NamedFile::Manifest.into())?)
}
