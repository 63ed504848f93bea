//! Walking a directory tree ahead of whoever consumes it.
//!
//! Several threads list directories, always the first in tree order of those that are known and not listed. The consumer
//! asks for directories in tree order, too, and lists one itself if nobody has begun to. Listings that wait are bounded
//! by their number of entries, so memory does not grow with the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use cvmfs_core::error::Result;
use cvmfs_core::path::RepoPath;

use super::listing::{Found, Kind, Lister, Selection, Top};

/// Most entries that wait for the consumer; one directory more may come in each thread.
const MAX_WAITING: usize = 50_000;

/// Fewest threads, unless so many are asked for.
const MIN_THREADS: usize = 4;

/// A directory tree being walked.
#[derive(Debug)]
pub(super) struct Walk {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    top: Arc<Top>,
    selection: Selection,
    state: Mutex<State>,
    /// Signalled when there is something to list or to take.
    changed: Condvar,
}

/// All paths are relative to the top directory.
#[derive(Debug, Default)]
struct State {
    /// Known, and not begun to be listed.
    pending: BTreeSet<RepoPath>,
    running: BTreeSet<RepoPath>,
    done: BTreeMap<RepoPath, Result<Vec<Found>>>,
    /// Entries in `done`.
    waiting: usize,
    closed: bool,
}

impl Walk {
    /// Begins to walk; 0 threads for as many as are useful.
    pub(super) fn new(top: Arc<Top>, selection: Selection, threads: usize) -> Self {
        let threads = match threads {
            // A disk that has to be read is faster when it is asked for more than one thing at a time.
            0 => MIN_THREADS.max(2 * thread::available_parallelism().map_or(1, std::num::NonZero::get)),
            threads => threads,
        };
        let state = State { pending: BTreeSet::from([RepoPath::root()]), ..State::default() };
        let shared = Arc::new(Shared { top, selection, state: Mutex::new(state), changed: Condvar::new() });
        let threads = (0..threads)
            .filter_map(|number| {
                let shared = Arc::clone(&shared);
                // Without any thread the consumer does all of it.
                thread::Builder::new().name(format!("walk-{number}")).spawn(move || shared.work()).ok()
            })
            .collect();
        Self { shared, threads }
    }

    /// Which entries count.
    pub(super) fn selection(&self) -> &Selection {
        &self.shared.selection
    }

    /// Returns the entries of a directory, sorted by name.
    ///
    /// To be called in tree order: what lies before is forgotten.
    pub(super) fn list(&self, directory: &RepoPath) -> Result<Vec<Found>> {
        let mut state = self.shared.state();
        state.forget_before(directory);
        loop {
            if let Some(listed) = state.done.remove(directory) {
                state.waiting -= weight(&listed);
                self.shared.changed.notify_all();
                return listed;
            }
            if !state.running.contains(directory) {
                break;
            }
            state = self.shared.wait(state);
        }
        state.pending.remove(directory);
        drop(state);
        let listed = self.shared.top.list(directory, &self.shared.selection, Lister::Paths);
        let below = self.shared.directories(directory, &listed);
        self.shared.state().pending.extend(below);
        self.shared.changed.notify_all();
        listed
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl State {
    fn forget_before(&mut self, directory: &RepoPath) {
        while let Some(first) = self.done.first_entry()
            && first.key() < directory
        {
            self.waiting -= weight(&first.remove());
        }
        while self.pending.first().is_some_and(|first| first < directory) {
            self.pending.pop_first();
        }
    }
}

fn weight(listed: &Result<Vec<Found>>) -> usize {
    1 + listed.as_ref().map_or(0, Vec::len)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's work: list directories until the walk is over.
    fn work(&self) {
        let lister = Lister::of_own_thread();
        let mut state = self.state();
        loop {
            let next = if state.waiting < MAX_WAITING { state.pending.pop_first() } else { None };
            let Some(directory) = next else {
                if state.closed {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            if state.closed {
                return;
            }
            state.running.insert(directory.clone());
            drop(state);
            let listed = self.top.list(&directory, &self.selection, lister);
            let below = self.directories(&directory, &listed);
            state = self.state();
            state.running.remove(&directory);
            state.pending.extend(below);
            state.waiting += weight(&listed);
            state.done.insert(directory, listed);
            self.changed.notify_all();
        }
    }

    /// The directories in a listing that are to be listed, too.
    fn directories(&self, directory: &RepoPath, listed: &Result<Vec<Found>>) -> Vec<RepoPath> {
        let found = listed.as_deref().unwrap_or_default();
        let directories = found.iter().filter(|found| found.status.kind == Kind::Directory);
        let below = directories.filter(|found| !self.selection.one_file_system || self.top.is_same_file_system(found));
        // Names from the system can be appended; if not, the consumer finds out.
        below.filter_map(|found| directory.child(&found.name).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn any_number_of_threads_gives_the_same_listings() {
        let directory = tempfile::tempdir().unwrap();
        for outer in 0..20 {
            for inner in 0..5 {
                let path = directory.path().join(format!("d{outer}/e{inner}"));
                fs::create_dir_all(&path).unwrap();
                fs::write(path.join("f"), "").unwrap();
            }
        }
        for threads in [1, 2, 8] {
            let top = Arc::new(Top::open(directory.path()).unwrap());
            let walk = Walk::new(top, Selection::default(), threads);
            let mut todo = BTreeSet::from([RepoPath::root()]);
            let mut listed = Vec::new();
            while let Some(directory) = todo.pop_first() {
                for found in walk.list(&directory).unwrap() {
                    let path = directory.child(&found.name).unwrap();
                    // Half of the directories are of no interest to the consumer.
                    if found.status.kind == Kind::Directory && !path.to_string().contains('3') {
                        todo.insert(path.clone());
                    }
                    listed.push(path);
                }
            }
            assert_eq!(listed.len(), 20 + 18 * 5 + 18 * 4, "{threads} threads");
            let state = walk.shared.state();
            assert!(state.waiting <= 20 * 7, "{state:?}");
        }
    }
}
