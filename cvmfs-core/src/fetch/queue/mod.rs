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

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use self::limit::Limit;
use self::sink::{Arrival, Arrived, MemoryInUse};
use super::HttpStore;
use super::bundle::BundleOffer;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::ObjectId;
use crate::progress::Cancel;
use crate::storage::{ReadStore as _, WriteStore};

/// How often cancellation is looked for, and the number of requests in flight reconsidered.
const TICK: Duration = Duration::from_millis(50);
/// Verified objects that may wait for a writer.
const BACKLOG_MAX: usize = 256;
/// How many of them a writer takes at a time.
const BATCH: usize = 16;
/// How long a writer that has just worked waits before it looks for more. Waking it for every object would cost more
/// than the writing.
const WRITER_PAUSE: Duration = Duration::from_micros(500);

/// Bundles on their way at the same time.
const BUNDLES_MAX: usize = 16;
/// A bundle takes this part of what waits, so that several can be on their way.
const BUNDLES_FROM_WAITING: usize = 4;
/// A bundle of fewer objects waits a moment for more.
const GATHERED_MIN: usize = 64;
const GATHER_TIME: Duration = Duration::from_millis(2);

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

    /// Finds somebody for an object that waits: a task that has nothing to do, or another one.
    fn recruit(self: &Arc<Self>, state: &mut State) {
        let may_bundle = state.bundles < BUNDLES_MAX;
        if state.singly.is_empty() && (state.waiting.is_empty() || !may_bundle) {
            return;
        }
        if state.idle > 0 {
            self.work.notify_one();
        } else if state.tasks < state.limit.current() {
            state.tasks += 1;
            let shared = Arc::clone(self);
            self.runtime.spawn(async move { shared.fetch_all().await });
        }
    }

    /// Looks after the others until everything ends.
    async fn watch_over(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        let mut stop = self.stop.subscribe();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => {}
            }
            if self.cancel.check().is_err() {
                return self.stop();
            }
            let now = Instant::now();
            let mut state = self.state();
            while state.resting.front().is_some_and(|(when, ..)| *when <= now) {
                let (_, id, rounds) = state.resting.pop_front().expect("it was there");
                state.waiting.push_back((id, rounds));
            }
            let busy = !state.waiting.is_empty() || !state.singly.is_empty();
            state.limit.tick(now, self.source.pushback(), busy);
            let open = state.waiting.len() + state.singly.len();
            for _ in 0..open.min(state.limit.current()) {
                self.recruit(&mut state);
            }
        }
    }

    /// Fetches one object after the other, until there are more tasks than needed.
    async fn fetch_all(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        let work = async {
            while let Some(next) = self.next_waiting().await {
                match next {
                    Next::Fetch(id, rounds) => self.fetch_one(id, rounds).await,
                    Next::Bundle(server, offer, objects) => self.fetch_bundle(server, &offer, objects).await,
                    Next::Fail(id, reason) => {
                        let what = self.source.describe(&id.into());
                        self.finish([(id, Err(Error::Unavailable { what, reason }))]);
                    }
                }
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = work => {}
        }
    }

    /// Waits for something to fetch; `None` if this task is one too many.
    async fn next_waiting(self: &Arc<Self>) -> Option<Next> {
        let mut gathered = false;
        loop {
            let offer = self.source.bundle_offer();
            let gather = {
                let mut state = self.state();
                if state.tasks > state.limit.current() {
                    state.tasks -= 1;
                    // It may have been woken for an object.
                    self.recruit(&mut state);
                    return None;
                }
                let gather = offer.is_some() && !gathered && (1..GATHERED_MIN).contains(&state.waiting.len());
                if !gather || !state.singly.is_empty() {
                    if let Some(next) = self.take_next(&mut state, offer) {
                        return Some(next);
                    }
                    state.idle += 1;
                }
                gather
            };
            if gather {
                gathered = true;
                tokio::time::sleep(GATHER_TIME).await;
                continue;
            }
            self.work.notified().await;
            self.state().idle -= 1;
        }
    }

    fn take_next(self: &Arc<Self>, state: &mut State, offer: Option<(usize, Arc<BundleOffer>)>) -> Option<Next> {
        let single = match (state.singly.pop_front(), offer) {
            (Some(single), _) => Some(single),
            (None, Some((server, offer))) if state.waiting.len() > 1 && state.gone.is_none() => {
                if state.bundles >= BUNDLES_MAX {
                    return None;
                }
                state.bundles += 1;
                let count = (state.waiting.len() / BUNDLES_FROM_WAITING).max(GATHERED_MIN).min(offer.max_objects);
                let objects = state.waiting.drain(..count.min(state.waiting.len())).collect();
                self.make_room(state, count);
                self.recruit(state);
                return Some(Next::Bundle(server, offer, objects));
            }
            (None, _) => state.waiting.pop_front(),
        };
        let (id, rounds) = single?;
        self.make_room(state, 1);
        self.recruit(state);
        let reason = state.gone.clone();
        Some(reason.map_or(Next::Fetch(id, rounds), |reason| Next::Fail(id, reason)))
    }

    /// Tells callers that `count` objects less wait. Not for every object: callers fill the queue at once.
    fn make_room(&self, state: &State, count: usize) {
        let (now, half) = (state.waiting.len(), self.options.max_waiting / 2);
        if state.waiting_callers > 0 && now <= half && now + count > half {
            self.room.notify_all();
        }
    }

    /// Fetches objects in one request and hands them to writers; those that do not come are left to be fetched singly.
    async fn fetch_bundle(self: &Arc<Self>, server: usize, offer: &BundleOffer, objects: Vec<(ObjectId, u32)>) {
        let rounds: HashMap<_, _> = objects.into_iter().collect();
        let ids: Vec<_> = rounds.keys().copied().collect();
        let mut missing: HashSet<_> = rounds.keys().copied().collect();
        if let Some(mut bundle) = self.source.fetch_bundle(server, offer, &ids).await {
            let mut arrived = Vec::new();
            loop {
                let more = bundle.next(&mut arrived).await;
                for (id, stored) in arrived.drain(..) {
                    let size = stored.len() as u64;
                    self.note_answer(&id, 0, &Ok(size));
                    self.hand_over(Verified { id, size, arrived: Arrived::whole(stored, &self.memory) }).await;
                }
                match more {
                    Ok(true) => {}
                    Ok(false) => break self.source.bundle_arrived(server),
                    Err(failure) => break self.source.bundle_failed(server, &failure),
                }
            }
            missing = bundle.into_missing();
        }
        let mut state = self.state();
        state.bundles -= 1;
        state.singly.extend(missing.into_iter().map(|id| (id, rounds.get(&id).copied().unwrap_or_default())));
        self.recruit(&mut state);
    }

    /// Fetches an object and hands it to a writer.
    async fn fetch_one(&self, id: ObjectId, rounds: u32) {
        let mut arrival = Arrival::new(self.destination.as_ref(), &self.memory, self.options.memory_per_object);
        let result = self.source.fetch_object(&id, &mut arrival).await;
        if !self.note_answer(&id, rounds, &result) {
            return;
        }
        match result {
            Ok(size) => self.hand_over(Verified { id, size, arrived: arrival.into_arrived() }).await,
            Err(error) => self.finish([(id, Err(error))]),
        }
    }

    /// Remembers how the source is doing; false if the object waits for another round.
    fn note_answer(&self, id: &ObjectId, rounds: u32, result: &Result<u64>) -> bool {
        let mut state = self.state();
        match result {
            Ok(size) => {
                state.failures = 0;
                state.limit.completed(*size);
                true
            }
            Err(error) if error.is_retryable() => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= self.options.give_up_after && state.gone.is_none() {
                    tracing::warn!(%error, "the source does not answer any more");
                    state.gone =
                        Some(format!("not asked for: the source does not answer; the last failure was: {error}"));
                    let resting: Vec<_> = state.resting.drain(..).map(|(_, id, rounds)| (id, rounds)).collect();
                    state.waiting.extend(resting);
                }
                let again = rounds < self.options.rounds && state.gone.is_none();
                if again {
                    state.resting.push_back((Instant::now() + self.options.round_pause, *id, rounds + 1));
                }
                !again
            }
            Err(_) => {
                state.failures = 0;
                true
            }
        }
    }

    async fn hand_over(&self, verified: Verified) {
        // The semaphore is never closed. The writer gives the permit back.
        if let Ok(permit) = self.backlog.acquire().await {
            permit.forget();
        }
        let mut backlog = self.backlog();
        if backlog.ended {
            return;
        }
        backlog.objects.push_back(verified);
        let wake = backlog.sleeping_writers > 0;
        drop(backlog);
        if wake {
            self.to_write.notify_one();
        }
    }

    /// Writes verified objects to the storage, until everything ends.
    fn write(&self) {
        let mut batch = Vec::new();
        let mut results = Vec::new();
        while self.take_batch(&mut batch) {
            let more_waits = batch.len() == BATCH;
            for Verified { id, size, arrived } in batch.drain(..) {
                results.push((id, arrived.put(self.destination.as_ref(), &id).map(|_| size)));
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

/// What a fetch task is to do.
enum Next {
    Fetch(ObjectId, u32),
    Bundle(usize, Arc<BundleOffer>, Vec<(ObjectId, u32)>),
    /// Nothing but to say why.
    Fail(ObjectId, String),
}

impl Tokens {
    fn all(self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first).chain(self.more)
    }
}
