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

use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cvmfs_core::catalog::{Catalog, NeededObject};
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::HttpStore;
use cvmfs_core::fetch::queue::{Fetched, ObjectQueue, QueueOptions};
use cvmfs_core::hash::{ContentHash, ObjectId};
use cvmfs_core::object::{self, VerifyingReader};
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::storage::{Key, ReadStore as _, WriteStore};

use super::failures::Failures;
use super::proven::Proven;
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

    /// Whether an object is there, undamaged as far as a look shows.
    fn has(&self, id: &ObjectId) -> Result<bool>;

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
    pub(super) fn add_object(&mut self, stored_size: usize) {
        self.objects += 1;
        self.bytes += stored_size as u64;
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

#[derive(Default)]
struct State {
    nodes: HashMap<u64, Node>,
    by_catalog: HashMap<ContentHash, u64>,
    last_node: u64,
    jobs: Vec<Job>,
    /// Catalogs whose trees are in the target, as far as this walk saw.
    complete: HashSet<ContentHash>,
    /// Those among them that are not entered as proven.
    fresh: Vec<ContentHash>,
    /// Catalogs whose trees cannot be completed.
    broken: HashMap<ContentHash, Ending>,
    /// Objects on their way, each with the nodes that wait for it.
    asked: HashMap<ObjectId, Vec<u64>>,
    /// Objects that cannot be had.
    lost: HashMap<ObjectId, Ending>,
    endings: HashMap<ContentHash, Ending>,
    failures: Failures,
    counts: Counts,
    /// What makes going on impossible.
    fatal: Option<Error>,
    is_over: bool,
}

/// A catalog that is not complete.
struct Node {
    catalog: ContentHash,
    size: Option<u64>,
    base: Option<ContentHash>,
    is_root: bool,
    /// Whether its object is in the target already.
    is_stored: bool,
    /// Whether a damaged copy of it was found and thrown away.
    was_damaged: bool,
    parents: Vec<u64>,
    /// Objects and nested catalogs that are not there yet, and one for the scan.
    waits_for: u64,
    ending: Ending,
}

enum Job {
    /// Open the catalog, or have it fetched.
    Scan(u64),
    /// All that it reaches is there.
    Store(u64),
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
            let stored = source.read(&id.into())?;
            waiting.put(&id, &stored)?;
            let counts = &mut self.shared.state().counts;
            counts.add_object(stored.len());
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
        self.setting.target.store(Compression::Zlib).flush()?;
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

    /// Makes a node for a catalog that is not complete; its parent waits for it.
    fn enter(
        &self,
        parent: Option<u64>,
        catalog: ContentHash,
        size: Option<u64>,
        base: Option<ContentHash>,
    ) -> Result<()> {
        let is_complete = self.is_complete(catalog)?;
        let mut state = self.state();
        let state = &mut *state;
        let known = if is_complete { Some(Ending::Complete) } else { state.broken.get(&catalog).copied() };
        if let Some(ending) = known {
            match parent.and_then(|parent| state.nodes.get_mut(&parent)) {
                Some(parent) => parent.ending = parent.ending.max(ending),
                None => drop(state.endings.insert(catalog, ending)),
            }
            return Ok(());
        }
        if let Some(parent) = parent.and_then(|parent| state.nodes.get_mut(&parent)) {
            parent.waits_for += 1;
        }
        if let Some(node) = state.by_catalog.get(&catalog).and_then(|node| state.nodes.get_mut(node)) {
            node.parents.extend(parent);
            node.is_root |= parent.is_none();
            return Ok(());
        }
        state.last_node += 1;
        let number = state.last_node;
        let node = Node {
            catalog,
            size,
            base,
            is_root: parent.is_none(),
            is_stored: false,
            was_damaged: false,
            parents: parent.into_iter().collect(),
            waits_for: 1,
            ending: Ending::Complete,
        };
        state.nodes.insert(number, node);
        state.by_catalog.insert(catalog, number);
        state.endings.remove(&catalog);
        state.jobs.push(Job::Scan(number));
        self.changed.notify_all();
        Ok(())
    }

    /// Looks up what a catalog reaches and has the rest fetched.
    fn scan(&self, number: u64) -> Result<()> {
        let (hash, size, base) = {
            let state = self.state();
            let Some(node) = state.nodes.get(&number) else { return Ok(()) };
            (node.catalog, node.size, node.base)
        };
        let id = ObjectId::catalog(hash);
        let limit = self.size_limit(size);
        let is_stored = self.is_stored(hash)?;
        let opened = if is_stored {
            self.setting.target.open_catalog(hash, limit)
        } else if self.setting.waiting.size(&id.into())?.is_some_and(|size| size > 0) {
            Catalog::fetch_limited(&*self.setting.waiting, hash, &self.setting.scratch, limit)
        } else {
            return self.catalog_queue.request(id, number);
        };
        let scanned = opened.and_then(|catalog| {
            if let Some(node) = self.state().nodes.get_mut(&number) {
                node.is_stored = is_stored;
            }
            self.scan_catalog(number, &catalog, base)
        });
        match scanned {
            Ok(()) => self.arrived(vec![(number, Ending::Complete)]),
            // Our own troubles are not the source's.
            Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
            Err(error) => self.throw_away(number, is_stored, &error)?,
        }
        Ok(())
    }

    fn scan_catalog(&self, number: u64, catalog: &Catalog, base: Option<ContentHash>) -> Result<()> {
        let base = self.open_base([base, catalog.previous()?])?;
        for nested in catalog.nested()? {
            if !self.setting.selection.has_path(&nested.path) {
                continue;
            }
            let similar = base.as_ref().map(|base| base.nested_at(&nested.path)).transpose()?.flatten();
            self.enter(Some(number), nested.hash, nested.size, similar.map(|similar| similar.hash))?;
        }
        let mut looked_up = 0;
        let result = catalog.objects(base.as_ref(), &mut |object| {
            looked_up += 1;
            self.setting.cancel.check()?;
            if self.setting.target.has(&object.id)? { Ok(()) } else { self.request(number, &object) }
        });
        self.state().counts.looked_up += looked_up;
        result
    }

    /// Opens the first of similar catalogs whose trees are complete.
    fn open_base(&self, similar: [Option<ContentHash>; 2]) -> Result<Option<Catalog>> {
        for hash in similar.into_iter().flatten() {
            if !self.is_complete(hash)? {
                continue;
            }
            let max = self.setting.max_catalog_size;
            let opened = if self.is_stored(hash)? {
                self.setting.target.open_catalog(hash, max)
            } else {
                Catalog::fetch_limited(&*self.setting.waiting, hash, &self.setting.scratch, max)
            };
            match opened {
                Ok(base) => return Ok(Some(base)),
                Err(error @ Error::Io { .. }) => return Err(error),
                // It would only have saved time.
                Err(error) => tracing::warn!(%hash, %error, "cannot read a catalog of the replica"),
            }
        }
        Ok(None)
    }

    /// Has a missing object fetched for a node.
    fn request(&self, number: u64, object: &NeededObject) -> Result<()> {
        {
            let mut state = self.state();
            let state = &mut *state;
            let Some(node) = state.nodes.get_mut(&number) else { return Ok(()) };
            if let Some(ending) = state.lost.get(&object.id) {
                node.ending = node.ending.max(*ending);
                return Ok(());
            }
            if let Some(askers) = state.asked.get_mut(&object.id) {
                node.waits_for += 1;
                askers.push(number);
                return Ok(());
            }
            // It may have come since it was looked up; from here on nobody else asks for it.
            if self.setting.target.has(&object.id)? {
                return Ok(());
            }
            node.waits_for += 1;
            state.asked.insert(object.id, vec![number]);
        }
        let queue = match (&self.plain_queue, object.compression) {
            (Some(plain), Compression::None) => plain,
            _ => &self.compressed_queue,
        };
        queue.request(object.id, number)
    }

    /// Takes what became of a request.
    fn take(&self, fetched: Fetched, is_catalog: bool) {
        let Fetched { id, token, result } = fetched;
        let mut state = self.state();
        match result {
            Ok(bytes) => {
                state.counts.objects += 1;
                state.counts.bytes += bytes;
                state.counts.catalogs += u64::from(is_catalog);
                if is_catalog {
                    state.jobs.push(Job::Scan(token));
                    drop(state);
                    self.changed.notify_all();
                    return;
                }
                let askers = state.asked.remove(&id).unwrap_or_default();
                drop(state);
                self.arrived(askers.into_iter().map(|node| (node, Ending::Complete)).collect());
            }
            Err(error @ (Error::Io { .. } | Error::Cancelled)) => {
                state.fatal.get_or_insert(error);
                drop(state);
                self.changed.notify_all();
            }
            Err(error) => {
                let ending = if error.is_not_found() { Ending::Missing } else { Ending::Failed };
                state.lost.insert(id, ending);
                state.failures.add(id, &error);
                let askers = if is_catalog { vec![token] } else { state.asked.remove(&id).unwrap_or_default() };
                drop(state);
                self.arrived(askers.into_iter().map(|node| (node, ending)).collect());
            }
        }
    }

    /// For each of these nodes, one thing that it waited for has come, or will not come.
    fn arrived(&self, mut arrived: Vec<(u64, Ending)>) {
        let mut state = self.state();
        let state = &mut *state;
        // Whoever waits is woken for what concerns him, not for each object.
        let mut is_news = false;
        while let Some((number, ending)) = arrived.pop() {
            let Some(node) = state.nodes.get_mut(&number) else { continue };
            node.ending = node.ending.max(ending);
            node.waits_for -= 1;
            if node.waits_for > 0 {
                continue;
            }
            if node.ending == Ending::Complete && !node.is_stored && !node.is_root {
                node.waits_for = 1;
                state.jobs.push(Job::Store(number));
                is_news = true;
                continue;
            }
            let Some(node) = state.nodes.remove(&number) else { continue };
            state.by_catalog.remove(&node.catalog);
            if node.ending == Ending::Complete {
                state.complete.insert(node.catalog);
                if node.is_stored {
                    state.fresh.push(node.catalog);
                }
            } else {
                state.broken.insert(node.catalog, node.ending);
            }
            if node.is_root {
                state.endings.insert(node.catalog, node.ending);
                is_news = true;
            }
            arrived.extend(node.parents.into_iter().map(|parent| (parent, node.ending)));
        }
        if is_news {
            self.changed.notify_all();
        }
    }

    /// Deals with a catalog that cannot be read: a damaged copy is fetched once more, a wrong catalog is a failure.
    fn throw_away(&self, number: u64, is_stored: bool, error: &Error) -> Result<()> {
        let (id, is_second) = {
            let mut state = self.state();
            let Some(node) = state.nodes.get_mut(&number) else { return Ok(()) };
            let is_second = std::mem::replace(&mut node.was_damaged, true);
            node.is_stored = false;
            (ObjectId::catalog(node.catalog), is_second)
        };
        let store = if is_stored { self.setting.target.store(Compression::Zlib) } else { &self.setting.waiting };
        if !is_second && !is_whole(&**store, &id) {
            tracing::warn!(catalog = %id, %error, "fetching a damaged catalog again");
            store.discard(&id)?;
            return self.catalog_queue.request(id, number);
        }
        if !is_stored {
            store.discard(&id)?;
        }
        let url = self.setting.source.describe(&id.into());
        self.state().failures.add(id, &Error::malformed(url, error.to_string()));
        self.arrived(vec![(number, Ending::Failed)]);
        Ok(())
    }

    fn store_node(&self, number: u64) -> Result<()> {
        let Some(catalog) = self.state().nodes.get(&number).map(|node| node.catalog) else { return Ok(()) };
        self.store(catalog)?;
        if let Some(node) = self.state().nodes.get_mut(&number) {
            node.is_stored = true;
        }
        self.arrived(vec![(number, Ending::Complete)]);
        Ok(())
    }

    /// Moves a catalog whose tree is complete from where it waited to the target.
    fn store(&self, catalog: ContentHash) -> Result<()> {
        let id = ObjectId::catalog(catalog);
        let Setting { waiting, target, .. } = &self.setting;
        if self.is_stored(catalog)? {
            return Ok(());
        }
        let key = Key::Object(id);
        let place = waiting.describe(&key);
        let mut from = VerifyingReader::new(waiting.open(&key)?, id, place.clone());
        let mut to = target.store(Compression::Zlib).stage()?;
        io::copy(&mut from, &mut to).map_err(|error| object::read_error(&place, error))?;
        to.flush().at(&place)?;
        to.finish(&id)?;
        waiting.discard(&id)
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

/// Whether a store has an object with the right bytes.
fn is_whole(store: &dyn WriteStore, id: &ObjectId) -> bool {
    let key = Key::Object(*id);
    let verified = |stored| io::copy(&mut VerifyingReader::new(stored, *id, store.describe(&key)), &mut io::sink());
    store.open(&key).is_ok_and(|stored| verified(stored).is_ok())
}
