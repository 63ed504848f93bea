//! Jobs that a service does on its own: of several kinds, for each repository, every so often and when somebody asks.
//!
//! ```text
//! every so often ──┐
//! requests ────────┴─► agenda ─► threads of each kind ─► Work::run ─► records, for monitors
//! ```
//!
//! - Never two jobs of one kind go on on one repository. What removes is alone there; the others only add, and may go on
//!   together: a check may take days, and neither snapshots nor the whitelist wait for that.
//! - Each kind has threads of its own, so that what takes long on one repository does not keep others waiting.
//! - Requests that come during a run are joined: one more follows it, which finds whatever they were about.
//! - Intervals are counted by a clock that nobody sets. After a restart a job is due when its interval is over since the
//!   last run that the repository itself remembers ([`Work::last`]); a time in the future counts as now.
//! - What fails is tried again sooner than its interval says, and less and less often.

mod agenda;
mod record;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::agenda::{Agenda, Job};
use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::path::RepositoryName;
use crate::progress::Cancel;

pub use record::Record;

/// How often the configuration is looked at for jobs that came or went.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// How often somebody looks whether everything is to end.
const CANCEL_CHECK: Duration = Duration::from_millis(200);

/// How much less than others jobs get of the processors that have time.
const NICE: i32 = 10;

/// A kind of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A replica is brought to the newest revision of its source.
    Snapshot,
    /// Garbage is collected.
    Gc,
    /// A repository is checked.
    Check,
    /// The whitelist is looked at, and signed again if it is about to expire.
    Resign,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Snapshot, Self::Gc, Self::Check, Self::Resign];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Gc => "gc",
            Self::Check => "check",
            Self::Resign => "resign",
        }
    }

    /// Whether it has time, and others not: it leaves processors to whoever serves.
    fn takes_long(self) -> bool {
        matches!(self, Self::Gc | Self::Check)
    }

    /// Whether it must not go on while the other one does, on the same repository.
    fn excludes(self, other: Self) -> bool {
        self == other || [self, other].contains(&Self::Gc)
    }
}

/// What a job did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Objects that were fetched, removed or looked at.
    pub objects: u64,
    /// Bytes of those; of a check, those that were read.
    pub bytes: u64,
}

/// What there is to do, and who does it.
pub trait Work: Send + Sync + 'static {
    /// The jobs, as configured now, each with its interval. What cannot be read of one repository must not keep others
    /// from theirs.
    fn jobs(&self) -> Result<Vec<(RepositoryName, Kind, Duration)>>;

    /// When a job was done for the last time, as far as the repository remembers.
    fn last(&self, name: &RepositoryName, kind: Kind) -> Option<UnixSeconds>;

    /// Does a job. What is wrong with the repository is no error of a check.
    ///
    /// # Errors
    /// `Cancelled` if that was asked for; then the next run is to go on, or begin again.
    fn run(&self, name: &RepositoryName, kind: Kind, cancel: &Cancel) -> Result<Done>;
}

/// Tells the time.
pub type Clock = fn() -> Result<UnixSeconds>;

/// Jobs that are done on their own, until they are cancelled or this is dropped.
pub struct Schedule {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    work: Box<dyn Work>,
    clock: Clock,
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
    records: BTreeMap<Job, Record>,
}

impl Schedule {
    /// Begins, with so many threads for each kind. `cancel` is the schedule's own: dropping the schedule cancels it.
    ///
    /// # Errors
    /// Those of [`Work::jobs`]; `Io` if the system gives no threads.
    pub fn start(work: Box<dyn Work>, threads: &[(Kind, usize)], clock: Clock, cancel: Cancel) -> Result<Self> {
        work.jobs()?;
        let state = Mutex::default();
        let shared =
            Arc::new(Shared { work, clock, cancel, state, changed: Condvar::new(), random: RandomState::new() });
        let schedule = Self { shared, threads: Mutex::default() };
        for (kind, number) in threads.iter().flat_map(|&(kind, count)| (0..count).map(move |number| (kind, number))) {
            let shared = Arc::clone(&schedule.shared);
            let thread = std::thread::Builder::new().name(format!("{}-{number}", kind.name()));
            let thread = thread.spawn(move || shared.do_what_is_due(kind)).at("thread")?;
            schedule.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(schedule)
    }

    /// Asks for a job as soon as possible; false if it is not in the schedule.
    pub fn request(&self, name: &RepositoryName, kind: Kind) -> bool {
        let known = self.shared.state().agenda.request(&(name.clone(), kind), Instant::now());
        self.shared.changed.notify_all();
        known
    }

    /// What became of the jobs, by repository.
    pub fn records(&self) -> Vec<Record> {
        self.shared.state().records.values().cloned().collect()
    }

    /// Asks everything to end soon. What is interrupted leaves things whole.
    pub fn cancel(&self) {
        self.shared.cancel.cancel();
        self.shared.changed.notify_all();
    }

    /// Waits until everything was cancelled and has ended.
    pub fn wait(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // A thread that panicked has said so.
        for thread in threads {
            drop(thread.join());
        }
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.cancel();
        self.wait();
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedule").field("agenda", &self.shared.state().agenda).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due of a kind, until everything ends.
    fn do_what_is_due(&self, kind: Kind) {
        if kind.takes_long() {
            // The threads that this one begins inherit it. Without that everything works as well, only not as smoothly.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "cannot lower the priority of a thread");
            }
        }
        while self.cancel.check().is_ok() {
            self.look_at_configuration();
            let now = Instant::now();
            let mut state = self.state();
            let Some(name) = state.agenda.begin(kind, now) else {
                // What is due and must wait for another job is woken by its end.
                let due = state.agenda.next_due(kind).filter(|due| *due > now);
                let wait = due.map_or(CANCEL_CHECK, |due| due.duration_since(now));
                drop(self.changed.wait_timeout(state, wait.min(CANCEL_CHECK)));
                continue;
            };
            drop(state);
            self.run(&(name, kind));
        }
    }

    fn run(&self, job: &Job) {
        let (name, kind) = (&job.0, job.1);
        let began = self.now();
        {
            let mut state = self.state();
            let record = state.records.entry(job.clone()).or_insert_with(|| Record::new(name.clone(), kind));
            record.running_since = Some(began.unwrap_or_default());
        }
        tracing::debug!(%name, job = kind.name(), "begins");
        let started = Instant::now();
        // A job that panics must not take the thread, and with it all jobs of its kind.
        let result = catch_unwind(AssertUnwindSafe(|| self.work.run(name, kind, &self.cancel)));
        let result =
            result.unwrap_or_else(|_| Err(Error::invalid(format!("{} of {name}", kind.name()), "it panicked")));
        let (seconds, ended) = (started.elapsed().as_secs_f64(), self.now());
        match &result {
            Ok(_) | Err(Error::Cancelled) => tracing::debug!(%name, job = kind.name(), seconds, "ends"),
            Err(error) => tracing::warn!(%name, job = kind.name(), %error, "failed"),
        }
        let mut state = self.state();
        if let Some(record) = state.records.get_mut(job) {
            record.end(ended, seconds, &result);
        }
        state.agenda.end(job, Instant::now(), result.is_ok(), self.spread());
        drop(state);
        self.changed.notify_all();
    }

    fn now(&self) -> Option<UnixSeconds> {
        (self.clock)().ok()
    }

    /// How much of an interval is waited, up to a quarter more or less: servers that started together must not stay
    /// together.
    fn spread(&self) -> f64 {
        let thousandths = u32::try_from(self.random.hash_one(Instant::now()) % 1001).unwrap_or_default();
        0.75 + f64::from(thousandths) / 2000.0
    }

    /// Looks now and then which jobs there are.
    fn look_at_configuration(&self) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if state.listed.is_some_and(|listed| now.duration_since(listed) < LIST_EVERY) {
                return;
            }
            state.listed = Some(now);
        }
        let jobs: BTreeMap<Job, Duration> = match self.work.jobs() {
            Ok(jobs) => jobs.into_iter().map(|(name, kind, every)| ((name, kind), every)).collect(),
            Err(error) => return tracing::warn!(%error, "cannot look which repositories there are"),
        };
        // Asked without the lock, because repositories may be far away.
        let new: Vec<&Job> = {
            let state = self.state();
            jobs.keys().filter(|job| !state.agenda.has(job)).collect()
        };
        let wall = self.now();
        let first: BTreeMap<&Job, Duration> =
            new.into_iter().map(|job| (job, first_wait(self.work.last(&job.0, job.1), wall, jobs[job]))).collect();
        let mut state = self.state();
        state.agenda.set(&jobs, now, &|job| first.get(job).copied().unwrap_or_default());
        let State { agenda, records, .. } = &mut *state;
        records.retain(|job, _| agenda.has(job));
        drop(state);
        self.changed.notify_all();
    }
}

/// The time to the first run: what is left of the interval since the last one.
fn first_wait(last: Option<UnixSeconds>, now: Option<UnixSeconds>, every: Duration) -> Duration {
    let Some((last, now)) = last.zip(now) else { return Duration::ZERO };
    // The clock was, or is, wrong: waiting for longer than the interval would be.
    let since = u64::try_from(now.0.saturating_sub(last.0)).unwrap_or(0);
    every.saturating_sub(Duration::from_secs(since))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Work that notes what goes on together.
    #[derive(Default)]
    struct Busy {
        running: [[AtomicUsize; 4]; 2],
        runs: [AtomicUsize; 4],
        broken: AtomicUsize,
    }

    const NAMES: [&str; 2] = ["a.x", "b.x"];

    impl Work for Arc<Busy> {
        fn jobs(&self) -> Result<Vec<(RepositoryName, Kind, Duration)>> {
            let jobs = |name: &str| Kind::ALL.map(|kind| (name.parse().unwrap(), kind, Duration::from_micros(200)));
            Ok(NAMES.into_iter().flat_map(jobs).collect())
        }

        fn last(&self, _name: &RepositoryName, _kind: Kind) -> Option<UnixSeconds> {
            None
        }

        fn run(&self, name: &RepositoryName, kind: Kind, _cancel: &Cancel) -> Result<Done> {
            let running = &self.running[usize::from(name.as_str() == NAMES[1])];
            running[kind as usize].fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(300));
            let now: Vec<usize> = running.iter().map(|count| count.load(Ordering::SeqCst)).collect();
            if now.iter().any(|&count| count > 1) || (now[Kind::Gc as usize] > 0 && now.iter().sum::<usize>() > 1) {
                self.broken.fetch_add(1, Ordering::SeqCst);
            }
            running[kind as usize].fetch_sub(1, Ordering::SeqCst);
            let runs = self.runs[kind as usize].fetch_add(1, Ordering::SeqCst);
            match (kind, runs % 3) {
                (Kind::Check, 0) => panic!("a job that panics"),
                (Kind::Check, 1) => Err(Error::not_found("this")),
                _ => Ok(Done { objects: 1, bytes: 10 }),
            }
        }
    }

    #[test]
    fn jobs_go_on_and_those_that_exclude_each_other_never_together() {
        let busy = Arc::new(Busy::default());
        let threads = Kind::ALL.map(|kind| (kind, 3));
        let clock = || Ok(UnixSeconds(1_800_000_000));
        let schedule = Schedule::start(Box::new(Arc::clone(&busy)), &threads, clock, Cancel::new()).unwrap();
        let started = Instant::now();
        let enough = || busy.runs.iter().all(|runs| runs.load(Ordering::SeqCst) >= 20);
        while !enough() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(enough(), "{:?}", busy.runs);
        schedule.cancel();
        schedule.wait();
        assert_eq!(busy.broken.load(Ordering::SeqCst), 0);
        let records = schedule.records();
        assert_eq!(records.len(), 8);
        for record in records {
            assert_eq!(record.done, Done { objects: record.successes, bytes: 10 * record.successes });
            assert_eq!((record.failures > 0, record.running_since), (record.kind == Kind::Check, None));
        }
    }

    #[test]
    fn what_was_done_before_a_restart_counts() {
        const DAY: Duration = Duration::from_hours(24);
        let now = Some(UnixSeconds(1_800_000_000));
        let ago = |seconds: i64| Some(UnixSeconds(1_800_000_000 - seconds));
        assert_eq!(first_wait(None, now, DAY), Duration::ZERO);
        assert_eq!(first_wait(ago(3600), now, DAY), Duration::from_hours(23));
        assert_eq!(first_wait(ago(86_400), now, DAY), Duration::ZERO);
        assert_eq!(first_wait(ago(1_000_000), now, DAY), Duration::ZERO);
        // A clock that was years ahead does not put it off for years.
        assert_eq!(first_wait(ago(-100_000_000), now, DAY), DAY);
        assert_eq!(first_wait(Some(UnixSeconds(i64::MIN)), now, DAY), Duration::ZERO);
    }
}
