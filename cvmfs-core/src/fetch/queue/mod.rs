//! Many objects from one source into one storage.
//!
//! ```text
//! request ─► waiting ─► fetch tasks ─────────► writers ─► results ─► next_result
//!            bounded    one thread, as many    put into
//!                       as pay (`limit`)       the storage
//! ```
//!
//! Every object is verified while it arrives ([`HttpStore`]) and reaches the storage only then. Memory is bounded:
//! small objects wait in memory for their writer, and once those take too much, or an object is large, its bytes go to
//! a staged file of the storage as they come.

mod limit;
mod sink;
mod tasks;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use self::limit::Limit;
use self::sink::{Arrived, MemoryInUse};
use super::HttpStore;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::ObjectId;
use crate::progress::Cancel;
use crate::storage::WriteStore;

/// Verified objects that may wait for a writer.
const BACKLOG_MAX: usize = 256;
/// How many of them a writer takes at a time.
const BATCH: usize = 16;
/// How long a writer that has just worked waits before it looks for more. Waking it for every object would cost more
/// than the writing.
const WRITER_PAUSE: Duration = Duration::from_micros(500);

/// Choices of an [`ObjectQueue`].
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// Requests in flight at the beginning.
    pub initial_in_flight: usize,
    /// The number of requests in flight does not go below this, however the source behaves.
    pub min_in_flight: usize,
    /// The number of requests in flight does not go above this, however much it would pay.
    pub max_in_flight: usize,
    /// Objects that may wait for a request; [`ObjectQueue::request`] blocks while there are more.
    pub max_waiting: usize,
    /// Bytes of objects in memory; what exceeds them goes to disk as it comes.
    pub memory: usize,
    /// Larger objects go to disk as they come.
    pub memory_per_object: usize,
    /// Threads that write objects to the storage.
    pub writers: usize,
    /// How often an object is asked for again after all servers failed in a way that may pass. Each time comes after
    /// all other objects that wait.
    pub rounds: u32,
    /// The wait before an object is asked for again.
    pub round_pause: Duration,
    /// So many failures in a row, without an answer to any request, and the source counts as gone: what still waits
    /// fails without being asked for.
    pub give_up_after: u32,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            initial_in_flight: 32,
            min_in_flight: 8,
            max_in_flight: 512,
            max_waiting: 8192,
            memory: 48 << 20,
            memory_per_object: 1 << 20,
            writers: 2,
            rounds: 2,
            round_pause: Duration::from_secs(2),
            give_up_after: 64,
        }
    }
}

/// What became of a requested object.
#[derive(Debug)]
pub struct Fetched {
    /// The object.
    pub id: ObjectId,
    /// What came with the request.
    pub token: u64,
    /// The stored size in bytes of the object, which is in the storage now; or why it is not. An object that was
    /// requested several times at once was fetched once; the second and further results have size 0.
    pub result: Result<u64>,
}

/// Objects in flight from a source to a storage.
///
/// Any threads may request and take results. Every request has exactly one result. Dropping the queue abandons what
/// is in flight.
///
/// ```no_run
/// # fn example(source: std::sync::Arc<cvmfs_core::fetch::HttpStore>, ids: &[cvmfs_core::hash::ObjectId]) -> cvmfs_core::error::Result<()> {
/// use std::sync::Arc;
/// use cvmfs_core::fetch::queue::{ObjectQueue, QueueOptions};
/// use cvmfs_core::progress::Cancel;
/// use cvmfs_core::storage::LocalStore;
///
/// let destination = Arc::new(LocalStore::open("/srv/cvmfs/sw.example.org")?);
/// let queue = ObjectQueue::new(source, destination, QueueOptions::default(), Cancel::new())?;
/// for id in ids {
///     queue.request(*id, 0)?;
/// }
/// queue.close();
/// while let Some(fetched) = queue.next_result() {
///     fetched.result?;
/// }
/// # Ok(()) }
/// ```
pub struct ObjectQueue {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

/// What callers, fetch tasks and writers see.
struct Shared {
    source: Arc<HttpStore>,
    destination: Arc<dyn WriteStore>,
    options: QueueOptions,
    cancel: Cancel,
    /// The runtime of the source.
    runtime: Handle,
    state: Mutex<State>,
    /// Signalled when an object left `waiting`.
    room: Condvar,
    /// Signalled when there is a result, or will be none.
    finished: Condvar,
    /// Signalled when there is an object to fetch.
    work: Notify,
    /// Turns true when everything is to end.
    stop: watch::Sender<bool>,
    /// One permit for each verified object that may wait for a writer.
    backlog: Semaphore,
    arrived: Mutex<Backlog>,
    /// Signalled when there is something in `arrived` for a writer that sleeps, or when all is to end.
    to_write: Condvar,
    memory: Arc<MemoryInUse>,
}

/// Verified objects.
#[derive(Default)]
struct Backlog {
    objects: VecDeque<Verified>,
    sleeping_writers: usize,
    /// Nothing more is to be written.
    ended: bool,
}

/// An object on its way to a writer.
struct Verified {
    id: ObjectId,
    size: u64,
    arrived: Arrived,
}

struct State {
    /// Objects that nobody fetches yet, with the number of rounds they had.
    waiting: VecDeque<(ObjectId, u32)>,
    /// Objects that a bundle did not deliver; they come first.
    singly: VecDeque<(ObjectId, u32)>,
    /// Bundles on their way.
    bundles: usize,
    /// Objects that failed and wait for another round.
    resting: VecDeque<(Instant, ObjectId, u32)>,
    /// All requested objects without a result.
    open: HashMap<ObjectId, Tokens>,
    results: VecDeque<Fetched>,
    /// Callers that wait for room, and for a result.
    waiting_callers: usize,
    /// Nothing more will be requested.
    closed: bool,
    /// Running fetch tasks, and how many of them have nothing to do.
    tasks: usize,
    idle: usize,
    limit: Limit,
    /// Failures since the last answer.
    failures: u32,
    /// Why nothing is asked for any more.
    gone: Option<String>,
}

/// Who asked for an object.
struct Tokens {
    first: u64,
    more: Vec<u64>,
}

impl ObjectQueue {
    /// Starts threads that write, and tasks on the runtime of `source`; no request is sent yet.
    ///
    /// # Errors
    /// `Io` if the system gives no threads.
    pub fn new(
        source: Arc<HttpStore>,
        destination: Arc<dyn WriteStore>,
        options: QueueOptions,
        cancel: Cancel,
    ) -> Result<Self> {
        let state = State {
            waiting: VecDeque::new(),
            singly: VecDeque::new(),
            bundles: 0,
            resting: VecDeque::new(),
            open: HashMap::new(),
            results: VecDeque::new(),
            waiting_callers: 0,
            closed: false,
            tasks: 0,
            idle: 0,
            limit: Limit::new(&options, source.pushback(), Instant::now()),
            failures: 0,
            gone: None,
        };
        let shared = Arc::new(Shared {
            runtime: source.handle(),
            source,
            destination,
            state: Mutex::new(state),
            room: Condvar::new(),
            finished: Condvar::new(),
            work: Notify::new(),
            stop: watch::Sender::new(false),
            backlog: Semaphore::new(BACKLOG_MAX),
            arrived: Mutex::default(),
            to_write: Condvar::new(),
            memory: Arc::new(MemoryInUse::new(options.memory)),
            options,
            cancel,
        });
        let mut queue = Self { shared, writers: Vec::new() };
        for number in 0..queue.shared.options.writers.max(1) {
            let shared = Arc::clone(&queue.shared);
            let writer = std::thread::Builder::new().name(format!("writer-{number}")).spawn(move || shared.write());
            queue.writers.push(writer.at("thread")?);
        }
        let shared = Arc::clone(&queue.shared);
        queue.shared.runtime.spawn(async move { shared.watch_over().await });
        Ok(queue)
    }

    /// Queues an object; blocks while the queue is full.
    ///
    /// # Errors
    /// `Cancelled` once somebody asked for that; the request then has no result.
    pub fn request(&self, id: ObjectId, token: u64) -> Result<()> {
        let mut state = self.shared.state();
        if let Some(tokens) = state.open.get_mut(&id) {
            tokens.more.push(token);
            return Ok(());
        }
        while state.waiting.len() >= self.shared.options.max_waiting && !self.shared.is_stopped() {
            state = wait(&self.shared.room, state);
        }
        if self.shared.is_stopped() {
            return Err(Error::Cancelled);
        }
        if let Some(tokens) = state.open.get_mut(&id) {
            tokens.more.push(token);
            return Ok(());
        }
        state.open.insert(id, Tokens { first: token, more: Vec::new() });
        state.waiting.push_back((id, 0));
        self.shared.recruit(&mut state);
        Ok(())
    }

    /// Says that nothing more will be requested, so that the results have an end.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.shared.finished.notify_all();
    }

    /// Ends everything at once: what has no result yet gets `Cancelled`, and nothing more can be requested.
    pub fn abandon(&self) {
        self.shared.stop();
        self.close();
    }

    /// Waits for a result; they come in the order in which the work on them ends.
    ///
    /// `None` after [`close`](Self::close), or once everything was cancelled, when every request had its result.
    pub fn next_result(&self) -> Option<Fetched> {
        let mut state = self.shared.state();
        loop {
            if let Some(result) = state.results.pop_front() {
                return Some(result);
            }
            if (state.closed || self.shared.is_stopped()) && state.open.is_empty() {
                return None;
            }
            state = wait(&self.shared.finished, state);
        }
    }

    /// Takes a result if there is one now.
    pub fn try_next_result(&self) -> Option<Fetched> {
        self.shared.state().results.pop_front()
    }

    /// How many requests may be in flight at this moment.
    pub fn in_flight_limit(&self) -> usize {
        self.shared.state().limit.current()
    }
}

impl Drop for ObjectQueue {
    fn drop(&mut self) {
        self.shared.stop();
        for writer in self.writers.drain(..) {
            // A writer that panicked has said so.
            drop(writer.join());
        }
    }
}

impl fmt::Debug for ObjectQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("ObjectQueue")
            .field("open", &state.open.len())
            .field("limit", &state.limit)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Ends everything: what has no result yet gets `Cancelled`, tasks and writers end.
    fn stop(&self) {
        let mut state = self.state();
        self.stop.send_replace(true);
        state.waiting.clear();
        state.singly.clear();
        state.resting.clear();
        for (id, tokens) in std::mem::take(&mut state.open) {
            state.results.extend(tokens.all().map(|token| Fetched { id, token, result: Err(Error::Cancelled) }));
        }
        drop(state);
        self.room.notify_all();
        self.finished.notify_all();
        let mut backlog = self.backlog();
        backlog.ended = true;
        backlog.objects.clear();
        drop(backlog);
        self.to_write.notify_all();
    }

    /// Writes verified objects to the storage, until everything ends.
    fn write(&self) {
        let mut batch = Vec::new();
        let mut results = Vec::new();
        while self.take_batch(&mut batch) {
            let more_waits = batch.len() == BATCH;
            for Verified { id, size, arrived } in batch.drain(..) {
                let put = arrived.put(self.destination.as_ref(), &id);
                results.push((id, put.map(|_| size).map_err(Error::of_target)));
                self.backlog.add_permits(1);
            }
            self.finish(results.drain(..));
            if !more_waits {
                std::thread::sleep(WRITER_PAUSE);
            }
        }
    }

    /// Waits for objects to write; false when there will be none.
    fn take_batch(&self, batch: &mut Vec<Verified>) -> bool {
        let mut backlog = self.backlog();
        while backlog.objects.is_empty() && !backlog.ended {
            backlog.sleeping_writers += 1;
            backlog = self.to_write.wait(backlog).unwrap_or_else(PoisonError::into_inner);
            backlog.sleeping_writers -= 1;
        }
        let count = backlog.objects.len().min(BATCH);
        batch.extend(backlog.objects.drain(..count));
        !backlog.ended
    }

    /// Delivers the results of objects to all who asked.
    fn finish(&self, finished: impl IntoIterator<Item = (ObjectId, Result<u64>)>) {
        let mut state = self.state();
        for (id, result) in finished {
            let Some(tokens) = state.open.remove(&id) else { continue };
            for token in tokens.more {
                let result = result.as_ref().map(|_| 0).map_err(Error::repeated);
                state.results.push_back(Fetched { id, token, result });
            }
            state.results.push_back(Fetched { id, token: tokens.first, result });
        }
        let wake = state.waiting_callers > 0;
        drop(state);
        if wake {
            self.finished.notify_all();
        }
    }
}

/// Lets a caller wait for a signal.
fn wait<'a>(signal: &Condvar, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    state.waiting_callers += 1;
    let mut state = signal.wait(state).unwrap_or_else(PoisonError::into_inner);
    state.waiting_callers -= 1;
    state
}

impl Tokens {
    fn all(self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first).chain(self.more)
    }
}
