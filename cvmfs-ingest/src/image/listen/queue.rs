//! What is to be looked at, on disk: whoever was told that a hint is queued can rely on it.
//!
//! ```text
//!            add                 take               finish: done
//! hint ──► waiting ───────────► running ───────────────────────► (gone)
//!             ▲  ▲                │  │ failed too often
//!             │  └── after a while┘  └──────────► failed
//!             └── add ────────────────────────────┘
//! ```
//!
//! A hint about what is queued joins it. One about what is running lets it run once more. Each entry is a file that is
//! replaced as a whole; one that was running when the process ended is waiting again when the next one begins.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::Backoff;
use cvmfs_core::lock::FileLock;
use cvmfs_core::progress::Cancel;
use serde::{Deserialize, Serialize};

use super::payload::{Action, Hint};
use crate::image::digest::Digest;

/// How files of entries end, and those that are being written.
const EXTENSION: &str = "json";
const NEW_EXTENSION: &str = "new";

/// Limits of a queue.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most entries, those that failed included.
    pub length_max: usize,
    /// How often something is tried before it counts as failed.
    pub attempts_max: u32,
    /// The first wait after a failure, at most; it doubles from then on.
    pub backoff_initial: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            length_max: 10_000,
            attempts_max: 10,
            backoff_initial: Duration::from_secs(10),
            backoff_max: Duration::from_mins(30),
        }
    }
}

/// Whether an entry must survive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Somebody relies on it.
    Durable,
    /// It would come again by itself.
    Volatile,
}

/// How many hints were new, and how many were about what was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Added {
    /// Entries made for them, or revived.
    pub queued: usize,
    /// Joined to what was there.
    pub joined: usize,
}

/// Something to do, taken from the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Where to look, and why.
    pub hint: Hint,
    /// Whether somebody relies on it.
    pub durability: Durability,
    /// The number of this attempt, counted from 1.
    pub attempt: u32,
}

/// What becomes of an entry after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Done,
    /// It is tried again: at once if something new was said of it, or else after a while.
    Again(Duration),
    /// It was tried often enough.
    Failed,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Somebody works on it.
    Running,
    /// Its time will come.
    Waiting,
    /// Only a new hint brings it back.
    Failed,
    /// The same, and nobody minds.
    Ignored,
}

/// An entry for those who look.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The image, or all of a repository.
    pub image: String,
    /// What was said of it.
    pub action: Action,
    /// Where it is.
    pub state: State,
    /// When it was queued, in seconds since 1970.
    pub queued: i64,
    /// How often it was tried.
    pub attempts: u32,
    /// Seconds until it is tried again; `None` unless it waits.
    pub due_in_seconds: Option<f64>,
    /// Whether it runs once more after this.
    pub again: bool,
    /// What went wrong the last time.
    pub error: Option<String>,
}

/// Entries by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lengths {
    /// Waiting.
    pub waiting: usize,
    /// Running.
    pub running: usize,
    /// Failed.
    pub failed: usize,
    /// Failed, as was to be expected.
    pub ignored: usize,
}

/// Hints that wait for their turn, each image once.
#[derive(Debug)]
pub struct Queue {
    directory: PathBuf,
    options: Options,
    backoff: Backoff,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Signalled when something may be due.
    changed: Condvar,
    _lock: FileLock,
}

/// An entry as it is in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    action: Action,
    image: String,
    queued: i64,
    attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default)]
    failed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ignored: bool,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    hint: Hint,
    due: Instant,
    running: bool,
    /// A hint came while it was running.
    again: bool,
    /// Whether there is a file.
    durable: bool,
}

impl Entry {
    fn state(&self) -> State {
        match &self.record {
            _ if self.running => State::Running,
            Record { failed: true, ignored: true, .. } => State::Ignored,
            Record { failed: true, .. } => State::Failed,
            _ => State::Waiting,
        }
    }

    /// Whether only a new hint brings it back.
    fn is_given_up(&self) -> bool {
        matches!(self.state(), State::Failed | State::Ignored)
    }

    fn job(&self) -> Job {
        let durability = if self.durable { Durability::Durable } else { Durability::Volatile };
        Job { hint: self.hint.clone(), durability, attempt: self.record.attempts }
    }

    /// Tries what has failed once more. Nothing new was said of it, and it may well fail again.
    fn try_once(&mut self, now: Instant) {
        if self.is_given_up() {
            (self.due, self.record.failed) = (now, false);
        }
    }

    /// Starts over, after what is running if anything is; returns whether that makes a difference. Whatever was wrong
    /// may have been put right.
    fn renew(&mut self, now: Instant) -> bool {
        if self.running {
            return !std::mem::replace(&mut self.again, true);
        }
        let is_news = self.record.attempts > 0 || self.record.failed;
        (self.again, self.due) = (false, now);
        (self.record.attempts, self.record.failed) = (0, false);
        is_news
    }
}

impl Queue {
    /// Opens the queue in a directory, which is made if there is none. What it has is due at once.
    ///
    /// # Errors
    /// `Conflict` if another process has it open.
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        fs::create_dir_all(directory).at(directory)?;
        let lock = directory.join("lock");
        let lock = FileLock::acquire(&lock, Duration::ZERO, &Cancel::new())?.ok_or_else(|| {
            Error::conflict(lock.display().to_string(), "another process listens for this repository")
        })?;
        let queue = Self {
            directory: directory.to_owned(),
            backoff: Backoff::new(options.backoff_initial, options.backoff_max),
            options,
            entries: Mutex::default(),
            changed: Condvar::new(),
            _lock: lock,
        };
        queue.load()?;
        Ok(queue)
    }

    fn load(&self) -> Result<()> {
        let now = Instant::now();
        let mut entries = self.entries();
        for file in fs::read_dir(&self.directory).at(&self.directory)? {
            let path = file.at(&self.directory)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            match extension {
                // Nobody was told that it is there.
                Some(NEW_EXTENSION) => fs::remove_file(&path).at(&path)?,
                Some(EXTENSION) => {
                    let bytes = fs::read(&path).at(&path)?;
                    let Some((hint, mut record)) = parse(&bytes) else {
                        tracing::warn!(path = %path.display(), "not an entry of the queue");
                        continue;
                    };
                    // It may be what ended the process.
                    record.failed |= record.attempts >= self.options.attempts_max;
                    let entry = Entry { record, hint, due: now, running: false, again: false, durable: true };
                    entries.insert(key(&entry.hint), entry);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Every change leaves the entries whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues hints. If they are to be durable, they are when this returns.
    ///
    /// # Errors
    /// `Unavailable` if they are too many: none is queued then. `Io`: some may be queued.
    pub fn add(&self, hints: &[Hint], durability: Durability, now: UnixSeconds) -> Result<Added> {
        let durable = durability == Durability::Durable;
        let mut entries = self.entries();
        self.make_room(&mut entries, hints)?;
        let mut added = Added::default();
        let mut written = false;
        for hint in hints {
            let key = key(hint);
            match entries.entry(key) {
                Slot::Vacant(vacant) => {
                    let record = Record {
                        action: hint.action,
                        image: hint.image.whole_name(),
                        queued: now.0,
                        attempts: 0,
                        error: None,
                        failed: false,
                        ignored: false,
                    };
                    if durable {
                        self.write(vacant.key(), &record)?;
                        written = true;
                    }
                    let due = Instant::now();
                    let hint = hint.clone();
                    vacant.insert(Entry { record, hint, due, running: false, again: false, durable });
                    added.queued += 1;
                }
                Slot::Occupied(mut occupied) => {
                    let key = occupied.key().clone();
                    let entry = occupied.get_mut();
                    *(if entry.is_given_up() { &mut added.queued } else { &mut added.joined }) += 1;
                    if !durable {
                        entry.try_once(Instant::now());
                        continue;
                    }
                    let is_news = entry.renew(Instant::now());
                    if is_news || !entry.durable {
                        // What is running starts over after this, also in another process.
                        self.write(&key, &Record { attempts: 0, ..entry.record.clone() })?;
                        (entry.durable, written) = (true, true);
                    }
                }
            }
        }
        if written {
            self.flush()?;
        }
        drop(entries);
        self.changed.notify_all();
        Ok(added)
    }

    /// Forgets what failed, the oldest first, if that makes room for hints.
    fn make_room(&self, entries: &mut BTreeMap<String, Entry>, hints: &[Hint]) -> Result<()> {
        let new: std::collections::BTreeSet<String> =
            hints.iter().map(key).filter(|key| !entries.contains_key(key)).collect();
        let surplus = (entries.len() + new.len()).saturating_sub(self.options.length_max);
        let mut failed: Vec<(i64, String)> = entries
            .iter()
            .filter(|(_, entry)| entry.is_given_up())
            .map(|(key, entry)| (entry.record.queued, key.clone()))
            .collect();
        if surplus > failed.len() {
            let reason = format!("it has {} entries, and room for {}", entries.len(), self.options.length_max);
            return Err(Error::Unavailable { what: "the queue of images".to_owned(), reason });
        }
        failed.sort();
        for (_, key) in failed.into_iter().take(surplus) {
            self.remove(&key)?;
            entries.remove(&key);
        }
        Ok(())
    }

    /// Takes what is due for the longest time; waits for it as long as `patience`.
    ///
    /// # Errors
    /// `Io` if it cannot be noted that this is an attempt.
    pub fn take(&self, patience: Duration) -> Result<Option<Job>> {
        let begun = Instant::now();
        let mut entries = self.entries();
        loop {
            let now = Instant::now();
            let waiting = entries.iter_mut().filter(|(_, entry)| entry.state() == State::Waiting);
            let next = waiting.min_by_key(|(_, entry)| entry.due);
            let wait = match next {
                Some((key, entry)) if entry.due <= now => {
                    // An image that ends the process, whatever its fault, must not do so for ever.
                    let mut record = entry.record.clone();
                    record.attempts += 1;
                    if entry.durable {
                        self.write(key, &record)?;
                    }
                    (entry.record, entry.running) = (record, true);
                    return Ok(Some(entry.job()));
                }
                Some((_, entry)) => entry.due - now,
                None => patience,
            };
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let woken = self.changed.wait_timeout(entries, wait.min(left));
            entries = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends an attempt; a failure may be `ignored`. What was cancelled was none.
    ///
    /// # Errors
    /// `Io` if that cannot be noted; it holds for this process all the same.
    pub fn finish<T>(&self, job: &Job, result: &Result<T>, ignored: bool) -> Result<Fate> {
        let mut entries = self.entries();
        let key = key(&job.hint);
        let Some(entry) = entries.get_mut(&key) else { return Ok(Fate::Done) };
        entry.running = false;
        let now = Instant::now();
        let fate = match result {
            Ok(_) if !entry.again => {
                let durable = entry.durable;
                entries.remove(&key);
                if durable {
                    self.remove(&key)?;
                }
                return Ok(Fate::Done);
            }
            _ if entry.again => {
                entry.renew(now);
                Fate::Again(Duration::ZERO)
            }
            Err(Error::Cancelled) => {
                entry.record.attempts = entry.record.attempts.saturating_sub(1);
                entry.due = now;
                Fate::Again(Duration::ZERO)
            }
            _ if entry.record.attempts >= self.options.attempts_max => {
                (entry.record.failed, entry.record.ignored) = (true, ignored);
                Fate::Failed
            }
            _ => {
                let wait = self.backoff.delay(entry.record.attempts.saturating_sub(1));
                entry.due = now + wait;
                Fate::Again(wait)
            }
        };
        if !matches!(result, Err(Error::Cancelled)) {
            entry.record.error = result.as_ref().err().map(ToString::to_string);
        }
        if entry.durable {
            self.write(&key, &entry.record)?;
        }
        drop(entries);
        self.changed.notify_all();
        Ok(fate)
    }

    /// All entries: what is running first, then what waits, then what failed, each in the order of its time.
    pub fn shown(&self) -> Vec<Shown> {
        let now = Instant::now();
        let entries = self.entries();
        let mut all: Vec<&Entry> = entries.values().collect();
        all.sort_by_key(|entry| (entry.state() as u8, entry.due, entry.record.queued));
        let show = |entry: &Entry| {
            let state = entry.state();
            let due = entry.due.saturating_duration_since(now).as_secs_f64();
            Shown {
                image: entry.record.image.clone(),
                action: entry.record.action,
                state,
                queued: entry.record.queued,
                attempts: entry.record.attempts,
                due_in_seconds: (state == State::Waiting).then_some(due),
                again: entry.again,
                error: entry.record.error.clone(),
            }
        };
        all.into_iter().map(show).collect()
    }

    /// Counts entries.
    pub fn lengths(&self) -> Lengths {
        let mut lengths = Lengths::default();
        for entry in self.entries().values() {
            *match entry.state() {
                State::Waiting => &mut lengths.waiting,
                State::Running => &mut lengths.running,
                State::Failed => &mut lengths.failed,
                State::Ignored => &mut lengths.ignored,
            } += 1;
        }
        lengths
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{}.{EXTENSION}", Digest::of(key.as_bytes()).hex()))
    }

    /// Replaces the file of an entry. What it was before is there until it is what it is now, even if power fails; a new
    /// one needs [`flush`](Self::flush) as well.
    fn write(&self, key: &str, record: &Record) -> Result<()> {
        let path = self.path(key);
        let new = path.with_extension(NEW_EXTENSION);
        let bytes = serde_json::to_vec(record).expect("texts and numbers can be written as JSON");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&new))).at(&path)
    }

    fn flush(&self) -> Result<()> {
        File::open(&self.directory).and_then(|directory| directory.sync_all()).at(&self.directory)
    }

    /// Removes the file of an entry. One that comes back after a loss of power costs a look at the registry.
    fn remove(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
            _ => Ok(()),
        }
    }
}

/// What makes hints the same.
fn key(Hint { action, image }: &Hint) -> String {
    let action = match action {
        Action::Push => "push",
        Action::Delete => "delete",
    };
    format!("{action} {}/{}{}", image.registry, image.repository, image.reference())
}

fn parse(bytes: &[u8]) -> Option<(Hint, Record)> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    let image = record.image.parse().ok()?;
    Some((Hint { action: record.action, image }, record))
}
