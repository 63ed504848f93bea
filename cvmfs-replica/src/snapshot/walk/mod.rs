//! Completing trees: everything that catalogs reach is brought into the storage, and then the catalogs themselves.
//!
//! ```text
//!            ┌─► scan ─► objects that are missing ─► object queue ─┐
//! root ─► node           nested catalogs ─► node                   ├─► all there ─► store the catalog ─► its parents
//!            └── catalog queue ◄── is not here ────────────────────┘
//! ```
//!
//! Invariant of the reference: a catalog is in the storage only if all that it reaches is. A catalog that was fetched
//! and is not complete waits in a store of its own. Root catalogs are not stored here: whoever asked decides when.
//!
//! Catalogs are scanned on a few threads while objects are being fetched. A node is the state of one catalog, some
//! hundred bytes; entries of catalogs are never held in memory.

mod nodes;
mod scan;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cvmfs_core::catalog::Catalog;
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::HttpStore;
use cvmfs_core::fetch::queue::{ObjectQueue, QueueOptions};
use cvmfs_core::hash::{ContentHash, ObjectId};
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::storage::WriteStore;

use self::nodes::{Job, State};
use super::failures::Failures;
use super::proven::Proven;
use super::source;
use crate::select::Selection;

/// How often progress is shown and cancellation looked for.
const TICK: Duration = Duration::from_millis(100);
/// How often what is complete is made durable and entered as proven.
const SETTLE_INTERVAL: Duration = Duration::from_mins(1);
/// A catalog may be this much larger than declared, in bytes: declared sizes are wrong at times, and nobody minds.
const SIZE_SLACK: u64 = 64 << 20;

/// Where a walk brings things.
pub(crate) trait Target: Send + Sync {
    /// The store that takes objects which are stored this way at the source; catalogs are zlib streams.
    fn store(&self, compression: Compression) -> &Arc<dyn WriteStore>;

    /// Which of these objects are there, undamaged as far as a look shows; in their order.
    fn have(&self, ids: &[ObjectId]) -> Result<Vec<bool>>;

    /// Whether an object is there.
    fn has(&self, id: &ObjectId) -> Result<bool> {
        Ok(self.have(std::slice::from_ref(id))?.first() == Some(&true))
    }

    /// Opens a catalog that is there and has at most `limit` bytes.
    fn open_catalog(&self, catalog: ContentHash, limit: u64) -> Result<Catalog>;
}

/// What a walk works with.
pub(crate) struct Setting {
    pub(crate) source: Arc<HttpStore>,
    pub(crate) target: Box<dyn Target>,
    /// Catalogs that are fetched and not complete.
    pub(crate) waiting: Arc<dyn WriteStore>,
    pub(crate) proven: Proven,
    pub(crate) selection: Selection,
    /// Directory for databases in use.
    pub(crate) scratch: PathBuf,
    /// Most bytes of a catalog, inflated.
    pub(crate) max_catalog_size: u64,
    pub(crate) queue: QueueOptions,
    pub(crate) cancel: Cancel,
}

/// The root of a tree to complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root {
    pub(crate) catalog: ContentHash,
    /// Bytes of the catalog, inflated, if known.
    pub(crate) size: Option<u64>,
    /// A similar tree that may be complete already.
    pub(crate) base: Option<ContentHash>,
}

/// What became of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// All of it is in the target; the root catalog perhaps not yet.
    Complete,
    /// The source does not have a part of it.
    Missing,
    /// A part of it could not be fetched or is wrong.
    Failed,
}

/// What a walk has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Objects that were fetched, catalogs included.
    pub objects: u64,
    /// Stored bytes of these.
    pub bytes: u64,
    /// Catalogs among them.
    pub catalogs: u64,
    /// Objects that were looked up.
    pub looked_up: u64,
}

impl Counts {
    pub(super) fn add_object(&mut self, stored_size: u64) {
        self.objects += 1;
        self.bytes += stored_size;
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
            catalogs: self.catalogs + other.catalogs,
            looked_up: self.looked_up + other.looked_up,
        }
    }
}

/// A walk over any number of trees.
pub(crate) struct Walk {
    shared: Arc<Shared>,
    /// Threads that take the results of queues.
    takers: Vec<JoinHandle<()>>,
}

struct Shared {
    setting: Setting,
    catalog_queue: ObjectQueue,
    compressed_queue: ObjectQueue,
    plain_queue: Option<ObjectQueue>,
    state: Mutex<State>,
    /// Signalled when there is a job, a tree has ended, or all is over.
    changed: Condvar,
}

impl Walk {
    pub(crate) fn new(setting: Setting) -> Result<Self> {
        let queue = |destination: &Arc<dyn WriteStore>| {
            let (source, destination) = (Arc::clone(&setting.source), Arc::clone(destination));
            ObjectQueue::new(source, destination, setting.queue.clone(), setting.cancel.clone())
        };
        let [compressed, plain] = [Compression::Zlib, Compression::None].map(|kind| setting.target.store(kind));
        let shared = Arc::new(Shared {
            catalog_queue: queue(&setting.waiting)?,
            compressed_queue: queue(compressed)?,
            plain_queue: if Arc::ptr_eq(compressed, plain) { None } else { Some(queue(plain)?) },
            setting,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let takers = (0..shared.queues().count()).map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let queue = shared.queues().nth(number).expect("one of them");
                while let Some(fetched) = queue.next_result() {
                    shared.take(fetched, number == 0);
                }
            })
        });
        Ok(Self { takers: takers.collect(), shared })
    }

    /// Completes trees, and tells for each root what became of it.
    ///
    /// What cannot be fetched does not end the walk, so that the next one has less to do; see [`Ending`].
    ///
    /// # Errors
    /// `Cancelled`; and what makes going on impossible, such as a full disk.
    pub(crate) fn complete(&self, roots: &[Root], progress: &dyn Progress) -> Result<HashMap<ContentHash, Ending>> {
        let shared = &*self.shared;
        for root in roots {
            shared.enter(None, root.catalog, root.size, root.base)?;
        }
        let threads = thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| shared.work());
            }
            let outcome = shared.wait_for(roots, progress);
            if outcome.is_err() {
                shared.queues().for_each(ObjectQueue::abandon);
            }
            let mut state = shared.state();
            state.is_over = true;
            shared.changed.notify_all();
            outcome?;
            Ok(roots.iter().filter_map(|root| Some((root.catalog, *state.endings.get(&root.catalog)?))).collect())
        })
        .inspect(|_| shared.state().is_over = false)
    }

    /// Stores root catalogs whose trees are complete, in this order.
    pub(crate) fn store_roots(&self, roots: &[ContentHash]) -> Result<()> {
        for &root in roots {
            self.shared.setting.proven.add_root(root)?;
            self.shared.store(root)?;
            self.shared.state().fresh.push(root);
        }
        Ok(())
    }

    /// Makes everything durable, and enters as proven what is complete.
    pub(crate) fn settle(&self) -> Result<()> {
        self.shared.settle()
    }

    /// Opens a root catalog, which is fetched if it is not here.
    pub(crate) fn open_root(&self, root: &Root) -> Result<Catalog> {
        let limit = self.shared.size_limit(root.size);
        if self.shared.is_stored(root.catalog)? {
            return self.shared.setting.target.open_catalog(root.catalog, limit);
        }
        let Setting { source, waiting, scratch, .. } = &self.shared.setting;
        let id = ObjectId::catalog(root.catalog);
        if waiting.size(&id.into())?.is_none() {
            let size = source::copy(source, &**waiting, &id)?;
            let counts = &mut self.shared.state().counts;
            counts.add_object(size);
            counts.catalogs += 1;
        }
        Catalog::fetch_limited(&**waiting, root.catalog, scratch, limit)
    }

    /// Whether the tree below a root is in the target, root catalog included, as earlier runs or this one proved.
    pub(crate) fn is_proven(&self, root: ContentHash) -> Result<bool> {
        self.shared.is_complete(root)
    }

    /// Whether a catalog is in the target, whatever that means.
    pub(crate) fn is_stored(&self, root: ContentHash) -> Result<bool> {
        self.shared.is_stored(root)
    }

    /// Whether a catalog was seen, complete or not.
    pub(crate) fn has_catalog(&self, catalog: ContentHash) -> Result<bool> {
        let waits = self.shared.setting.waiting.size(&ObjectId::catalog(catalog).into())?.is_some();
        Ok(waits || self.shared.is_stored(catalog)?)
    }

    pub(crate) fn proven(&self) -> &Proven {
        &self.shared.setting.proven
    }

    pub(crate) fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// What could not be had so far; forgets it.
    pub(crate) fn take_failures(&self) -> Failures {
        std::mem::take(&mut self.shared.state().failures)
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.shared.queues().for_each(ObjectQueue::abandon);
        for taker in self.takers.drain(..) {
            // It panicked; that was shown.
            let _ = taker.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one for catalogs comes first.
    fn queues(&self) -> impl Iterator<Item = &ObjectQueue> {
        [&self.catalog_queue, &self.compressed_queue].into_iter().chain(&self.plain_queue)
    }

    /// Waits until all trees have ended, showing progress and entering what is proven.
    fn wait_for(&self, roots: &[Root], progress: &dyn Progress) -> Result<()> {
        let (mut shown, mut settled) = (self.state().counts.bytes, Instant::now());
        loop {
            let (is_over, bytes) = {
                let mut state = self.state();
                if let Some(error) = state.fatal.take() {
                    return Err(error);
                }
                let is_over = roots.iter().all(|root| state.endings.contains_key(&root.catalog));
                if !is_over {
                    let waited = self.changed.wait_timeout(state, TICK);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                (is_over, state.counts.bytes)
            };
            progress.advance(bytes - shown);
            shown = bytes;
            self.setting.cancel.check()?;
            if is_over {
                return Ok(());
            }
            if settled.elapsed() >= SETTLE_INTERVAL {
                self.settle()?;
                settled = Instant::now();
            }
        }
    }

    /// Makes durable what is stored, and then enters as proven what is complete.
    fn settle(&self) -> Result<()> {
        let fresh = std::mem::take(&mut self.state().fresh);
        self.setting.target.store(Compression::Zlib).flush().map_err(Error::of_target)?;
        self.setting.proven.insert(&fresh)
    }

    /// Does jobs until all is over.
    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state();
                loop {
                    if state.is_over {
                        return;
                    }
                    if let Some(job) = state.jobs.pop() {
                        break job;
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let done = match job {
                Job::Scan(node) => self.scan(node),
                Job::Store(node) => self.store_node(node),
            };
            if let Err(error) = done {
                self.state().fatal.get_or_insert(error);
                self.changed.notify_all();
            }
        }
    }

    fn is_stored(&self, catalog: ContentHash) -> Result<bool> {
        self.setting.target.has(&ObjectId::catalog(catalog))
    }

    fn is_complete(&self, catalog: ContentHash) -> Result<bool> {
        if self.state().complete.contains(&catalog) {
            return Ok(true);
        }
        if !self.setting.proven.contains(catalog)? {
            return Ok(false);
        }
        let is_stored = self.is_stored(catalog)?;
        if !is_stored {
            self.setting.proven.remove(catalog)?;
        }
        Ok(is_stored)
    }

    fn size_limit(&self, declared: Option<u64>) -> u64 {
        let max = self.setting.max_catalog_size;
        declared.map_or(max, |size| size.saturating_add(SIZE_SLACK)).min(max)
    }
}
