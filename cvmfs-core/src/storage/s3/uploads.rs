//! Objects on their way into the bucket: callers go on, and wait only if too much is under way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::hash::ObjectId;

/// Bytes under way above which callers wait.
const MAX_BYTES: u64 = 64 << 20;
/// Objects that are remembered as sent, so that they are not looked for.
const MAX_SENT: usize = 100_000;

#[derive(Debug)]
pub(super) struct Uploads {
    state: Mutex<State>,
    changed: Condvar,
    max_objects: usize,
}

#[derive(Debug, Default)]
struct State {
    pending: HashMap<ObjectId, Pending>,
    /// The numbers of those.
    under_way: BTreeSet<u64>,
    last_number: u64,
    bytes: u64,
    /// Sizes of objects that were put since the last flush.
    sent: HashMap<ObjectId, u64>,
}

/// Objects of one operation that were given up. They stay until it puts the same object with success: nobody may be told
/// that all is well because somebody else was told that it is not.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<BTreeMap<ObjectId, Error>>);

impl Failures {
    /// # Errors
    /// That of an object that was given up.
    pub(super) fn check(&self) -> Result<()> {
        self.lock().values().next().map_or(Ok(()), |error| Err(error.repeated()))
    }

    fn note(&self, id: ObjectId, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.lock().remove(&id),
            Err(error) => self.lock().insert(id, error),
        };
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectId, Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object under way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    memory: u64,
    /// Later ones have greater numbers.
    number: u64,
}

impl Uploads {
    pub(super) fn new(max_objects: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), max_objects }
    }

    /// Announces an object that takes so many bytes of memory until it is [finished](Self::finish).
    ///
    /// Returns `false` if it was put a while ago, with the same size.
    pub(super) fn begin(&self, id: ObjectId, size: u64, memory: u64) -> bool {
        let mut state = self.without(&id);
        if state.sent.get(&id) == Some(&size) {
            return false;
        }
        while state.pending.len() >= self.max_objects
            || state.pending.contains_key(&id)
            || (state.bytes + memory > MAX_BYTES && !state.pending.is_empty())
        {
            state = self.wait(state);
        }
        state.last_number += 1;
        let number = state.last_number;
        state.pending.insert(id, Pending { memory, number });
        state.under_way.insert(number);
        state.bytes += memory;
        true
    }

    pub(super) fn finish(&self, id: ObjectId, size: u64, outcome: Result<()>, failures: &Failures) {
        let mut state = self.lock();
        if let Some(Pending { memory, number }) = state.pending.remove(&id) {
            state.bytes -= memory;
            state.under_way.remove(&number);
        }
        if outcome.is_ok() {
            if state.sent.len() >= MAX_SENT {
                state.sent.clear();
            }
            state.sent.insert(id, size);
        }
        // Before anybody can see that it is not under way any more.
        failures.note(id, outcome);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until an object is not under way, and returns its size if it was put a while ago.
    pub(super) fn settle(&self, id: &ObjectId) -> Option<u64> {
        self.without(id).sent.get(id).copied()
    }

    /// Waits until nothing is under way that was announced before; what is put from now on is another matter.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        let last = state.last_number;
        while state.under_way.first().is_some_and(|number| *number <= last) {
            state = self.wait(state);
        }
    }

    /// Forgets which objects were put a while ago.
    pub(super) fn forget(&self) {
        self.lock().sent.clear();
    }

    fn without(&self, id: &ObjectId) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.pending.contains_key(id) {
            state = self.wait(state);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}
