//! Snapshots on their own: every so often, and as soon as a source says that it has something new.
//!
//! ```text
//! every so often ─────┐
//! notices (serve) ────┼─► agenda ─► threads ─► snapshot ─► report
//! subscriptions ──────┘
//! ```
//!
//! There are never two runs on one replica. Requests that come during a run are joined: one more run follows it, which
//! finds whatever they were about.

mod agenda;

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::Url;
use cvmfs_core::manifest::SignedManifest;
use cvmfs_core::notice;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::NamedFile;

use self::agenda::Agenda;
use crate::replica::Replica;
use crate::snapshot::{SnapshotOptions, SnapshotOutcome, snapshot};

/// How often the configuration is looked at for replicas that came or went.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// How often somebody looks whether everything is to end.
const CANCEL_CHECK: Duration = Duration::from_millis(200);
/// The wait before a broken subscription is renewed; it doubles up to the maximum.
const RENEW_FIRST: Duration = Duration::from_secs(1);
const RENEW_MAX: Duration = Duration::from_mins(2);

/// Choices for a schedule.
#[derive(Debug, Clone)]
pub struct ScheduleOptions {
    /// Time from the end of a snapshot to the next one; each time up to a quarter more or less.
    pub every: Duration,
    /// Snapshots at the same time, of different replicas.
    pub concurrent: usize,
    /// Only these replicas; all that are active if there is none.
    pub names: Vec<RepositoryName>,
    /// Only replicas of this group.
    pub group: Option<String>,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self { every: Duration::from_mins(3), concurrent: 2, names: Vec::new(), group: None }
    }
}

/// Gets what became of each snapshot.
pub type Report = dyn Fn(&Replica, &Result<SnapshotOutcome>) + Send + Sync;

/// Tells the time.
pub type Clock = fn() -> Result<UnixSeconds>;

/// Snapshots that happen on their own, until they are cancelled or this is dropped.
pub struct Schedule {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    root: ServerRoot,
    options: ScheduleOptions,
    clock: Clock,
    report: Box<Report>,
    cancel: Cancel,
    state: Mutex<State>,
    /// Signalled when something may be due.
    changed: Condvar,
    random: RandomState,
}

#[derive(Default)]
struct State {
    agenda: Agenda,
    /// When the configuration was looked at.
    listed: Option<Instant>,
    /// Aliases and servers that are listened to.
    subscriptions: HashSet<(RepositoryName, Url)>,
    subscribers: Vec<JoinHandle<()>>,
}

impl Schedule {
    /// Begins; the first snapshots are due at once. `cancel` is the schedule's own: dropping the schedule cancels it.
    ///
    /// # Errors
    /// Those of the configuration; `Io` if the system gives no threads.
    pub fn start(
        root: ServerRoot,
        options: ScheduleOptions,
        clock: Clock,
        cancel: Cancel,
        report: impl Fn(&Replica, &Result<SnapshotOutcome>) + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            root,
            options,
            clock,
            report: Box::new(report),
            cancel,
            state: Mutex::default(),
            changed: Condvar::new(),
            random: RandomState::new(),
        });
        shared.replicas()?;
        let schedule = Self { shared, threads: Mutex::default() };
        for number in 0..schedule.shared.options.concurrent.max(1) {
            let shared = Arc::clone(&schedule.shared);
            let thread = std::thread::Builder::new().name(format!("snapshot-{number}"));
            let thread = thread.spawn(move || shared.work()).at("thread")?;
            schedule.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(schedule)
    }

    /// Asks for a snapshot as soon as possible; false if there is no such replica in the schedule.
    pub fn request(&self, alias: &RepositoryName) -> bool {
        self.shared.request(alias)
    }

    /// Waits until everything was cancelled and has ended.
    pub fn wait(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // A thread that panicked has said so.
        for thread in threads {
            drop(thread.join());
        }
        let subscribers = std::mem::take(&mut self.shared.state().subscribers);
        for thread in subscribers {
            drop(thread.join());
        }
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        self.shared.changed.notify_all();
        self.wait();
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedule").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, alias: &RepositoryName) -> bool {
        let known = self.state().agenda.request(alias, Instant::now());
        self.changed.notify_one();
        known
    }

    /// The replicas that are meant, as configured now.
    fn replicas(&self) -> Result<Vec<Replica>> {
        let ScheduleOptions { names, group, .. } = &self.options;
        let mut replicas = Replica::all(&self.root)?;
        replicas.retain(|replica| if names.is_empty() { replica.is_active } else { names.contains(&replica.alias) });
        replicas.retain(|replica| group.as_ref().is_none_or(|group| replica.group == *group));
        Ok(replicas)
    }

    /// Runs what is due, until everything ends.
    fn work(self: &Arc<Self>) {
        while self.cancel.check().is_ok() {
            self.look_at_configuration();
            let now = Instant::now();
            let mut state = self.state();
            let Some(alias) = state.agenda.begin(now) else {
                let wait = state.agenda.next_due().map_or(CANCEL_CHECK, |due| due.saturating_duration_since(now));
                drop(self.changed.wait_timeout(state, wait.min(CANCEL_CHECK)));
                continue;
            };
            drop(state);
            self.run(&alias);
            let now = Instant::now();
            self.state().agenda.end(&alias, now, now + self.pause());
        }
    }

    fn run(&self, alias: &RepositoryName) {
        // It may have been configured another way meanwhile.
        let replica = match Replica::load(&self.root, alias) {
            Ok(replica) => replica,
            Err(error) => return tracing::warn!(%alias, %error, "cannot load the configuration of a replica"),
        };
        let result = (self.clock)().and_then(|now| {
            // Somebody else's run is as good as ours.
            let options = SnapshotOptions { patience: Duration::ZERO, ..SnapshotOptions::new(now) };
            snapshot(&replica, &options, &Silent, &self.cancel)
        });
        if !matches!(result, Err(Error::Cancelled)) {
            (self.report)(&replica, &result);
        }
    }

    /// The time to the next snapshot: different ones, so that servers that started together do not stay together.
    fn pause(&self) -> Duration {
        let thousandths = u32::try_from(self.random.hash_one(Instant::now()) % 1001).unwrap_or_default();
        let half = self.options.every / 2;
        half * 3 / 2 + half * thousandths / 1000
    }

    /// Looks now and then which replicas there are.
    fn look_at_configuration(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if state.listed.is_some_and(|listed| now.duration_since(listed) < LIST_EVERY) {
                return;
            }
            state.listed = Some(now);
        }
        let replicas = match self.replicas() {
            Ok(replicas) => replicas,
            Err(error) => return tracing::warn!(%error, "cannot look for replicas"),
        };
        let names: Vec<_> = replicas.iter().map(|replica| replica.alias.clone()).collect();
        let mut state = self.state();
        state.agenda.set(&names, now);
        for replica in replicas {
            let Some(server) = replica.subscription.clone() else { continue };
            if state.subscriptions.insert((replica.alias.clone(), server.clone())) {
                let shared = Arc::clone(self);
                let thread = std::thread::Builder::new().name("subscription".to_owned());
                match thread.spawn(move || shared.listen(&replica, &server)) {
                    Ok(thread) => state.subscribers.push(thread),
                    Err(error) => tracing::warn!(%error, "cannot listen to a source"),
                }
            }
        }
    }

    /// Listens to the source of a replica, for as long as it is configured so.
    fn listen(&self, replica: &Replica, server: &Url) {
        let mut pause = RENEW_FIRST;
        while self.is_subscribed(replica, server) {
            let mut told = |manifest: Vec<u8>| {
                pause = RENEW_FIRST;
                if is_news(replica, &manifest) {
                    self.request(&replica.alias);
                }
            };
            match notice::subscribe(server, &replica.name, &self.cancel, &mut told) {
                Err(Error::Cancelled) => return,
                Err(error) => tracing::debug!(alias = %replica.alias, %error, "subscription"),
                Ok(()) => {}
            }
            // Something may have been missed.
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if self.cancel.check().is_err() {
                    return;
                }
                std::thread::sleep(CANCEL_CHECK.min(pause));
            }
            pause = (pause * 2).min(RENEW_MAX);
        }
        self.state().subscriptions.remove(&(replica.alias.clone(), server.clone()));
    }

    fn is_subscribed(&self, replica: &Replica, server: &Url) -> bool {
        let configured = Replica::load(&self.root, &replica.alias);
        self.cancel.check().is_ok() && configured.is_ok_and(|replica| replica.subscription.as_ref() == Some(server))
    }
}

/// Whether a manifest is another one than the replica has. It is not verified here: the snapshot fetches its own.
fn is_news(replica: &Replica, manifest: &[u8]) -> bool {
    let ours = std::fs::read(replica.storage.join(NamedFile::Manifest.name()));
    SignedManifest::parse(manifest).is_ok() && ours.map_or(true, |ours| ours != manifest)
}
