//! What a Stratum 1 does on its own: snapshots every so often and as soon as a source says that it has something new,
//! collections of garbage, checks.
//!
//! ```text
//! every so often ─────┐
//! notices (serve) ────┼─► cvmfs_core::schedule ─► snapshot, gc, check
//! subscriptions ──────┘
//! ```

mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::check;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::gc::{self, DeletionLog};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::schedule::{Clock, Done, Kind, Schedule, Work};
use cvmfs_core::server::ServerRoot;
use cvmfs_core::status;

use crate::check::with_subject;
use crate::gc::{collect, is_needless};
use crate::replica::Replica;
use crate::snapshot::{Ending, SnapshotOptions, SnapshotOutcome, snapshot};

/// Choices for a schedule: nothing is done that has no interval.
#[derive(Debug, Clone)]
pub struct ScheduleOptions {
    /// Time from the end of a snapshot to the next one; each time up to a quarter more or less.
    pub snapshot_every: Option<Duration>,
    /// The same for collections of garbage, where the configuration allows them.
    pub gc_every: Option<Duration>,
    /// The same for checks.
    pub check_every: Option<Duration>,
    /// Whether checks read all objects.
    pub check_data: bool,
    /// Snapshots at the same time, of different replicas.
    pub concurrent: usize,
    /// Only these replicas; all that are active if there is none.
    pub names: Vec<RepositoryName>,
    /// Only replicas of this group.
    pub group: Option<String>,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self {
            snapshot_every: None,
            gc_every: None,
            check_every: None,
            check_data: false,
            concurrent: 2,
            names: Vec::new(),
            group: None,
        }
    }
}

impl ScheduleOptions {
    /// Whether there is anything to do.
    pub fn is_any(&self) -> bool {
        self.snapshot_every.or(self.gc_every).or(self.check_every).is_some()
    }
}

/// Gets what became of each snapshot.
pub type Report = dyn Fn(&Replica, &Result<SnapshotOutcome>) + Send + Sync;

/// Begins; what was never done is due at once. `cancel` is the schedule's own: dropping the schedule cancels it.
///
/// # Errors
/// Those of the configuration; `Io` if the system gives no threads.
pub fn start(
    root: ServerRoot,
    options: ScheduleOptions,
    clock: Clock,
    cancel: Cancel,
    report: impl Fn(&Replica, &Result<SnapshotOutcome>) + Send + Sync + 'static,
) -> Result<Arc<Schedule>> {
    let threads = [
        (Kind::Snapshot, options.snapshot_every.map_or(0, |_| options.concurrent.max(1))),
        (Kind::Gc, options.gc_every.map_or(0, |_| 1)),
        (Kind::Check, options.check_every.map_or(0, |_| 1)),
    ];
    let replicas = Replicas { root, options };
    let jobs = Jobs { replicas: replicas.clone(), clock, report: Box::new(report) };
    let schedule = Arc::new(Schedule::start(Box::new(jobs), &threads, clock, cancel.clone())?);
    if replicas.options.snapshot_every.is_some() {
        subscriptions::start(replicas, Arc::downgrade(&schedule), cancel)?;
    }
    Ok(schedule)
}

/// The replicas that a schedule is for.
#[derive(Debug, Clone)]
struct Replicas {
    root: ServerRoot,
    options: ScheduleOptions,
}

impl Replicas {
    /// Those that are meant and whose configuration can be read.
    fn meant(&self) -> Result<Vec<Replica>> {
        let mut replicas = Replica::all_readable(&self.root)?;
        replicas.retain(|replica| self.are_meant(replica));
        Ok(replicas)
    }

    fn are_meant(&self, replica: &Replica) -> bool {
        let ScheduleOptions { names, group, .. } = &self.options;
        let is_named = if names.is_empty() { replica.is_active } else { names.contains(&replica.alias) };
        is_named && group.as_ref().is_none_or(|group| replica.group == *group)
    }
}

/// What there is to do for the replicas of a server.
struct Jobs {
    replicas: Replicas,
    clock: Clock,
    report: Box<Report>,
}

impl Work for Jobs {
    fn jobs(&self) -> Result<Vec<(RepositoryName, Kind, Duration)>> {
        let options = &self.replicas.options;
        let mut jobs = Vec::new();
        for alias in Replica::aliases(&self.replicas.root)? {
            let replica = match Replica::load(&self.replicas.root, &alias) {
                Ok(replica) if !self.replicas.are_meant(&replica) => continue,
                // A job of which the configuration cannot be read fails, where monitors see it.
                replica => replica.ok(),
            };
            let is_kept = replica.as_ref().is_none_or(|replica| !replica.is_pass_through);
            let gc_every = options.gc_every.and_then(|every| match &replica {
                Some(replica) => replica.auto_gc.interval(every),
                None => Some(every),
            });
            for (kind, every) in [
                (Kind::Snapshot, options.snapshot_every),
                (Kind::Gc, gc_every.filter(|_| is_kept)),
                (Kind::Check, options.check_every.filter(|_| is_kept)),
            ] {
                jobs.extend(every.map(|every| (alias.clone(), kind, every)));
            }
        }
        Ok(jobs)
    }

    fn last(&self, alias: &RepositoryName, kind: Kind) -> Option<UnixSeconds> {
        let key = match kind {
            Kind::Gc => status::LAST_GC,
            Kind::Check => status::LAST_CHECK,
            Kind::Snapshot | Kind::Resign => return None,
        };
        let replica = Replica::load(&self.replicas.root, alias).ok()?;
        status::time(&*replica.storage.open().ok()?, key).ok()?
    }

    fn run(&self, alias: &RepositoryName, kind: Kind, cancel: &Cancel) -> Result<Done> {
        // It may have been configured another way meanwhile.
        let replica = Replica::load(&self.replicas.root, alias)?;
        let now = (self.clock)()?;
        match kind {
            Kind::Snapshot => self.take_snapshot(&replica, now, cancel),
            Kind::Gc => collect_garbage(&replica, now, cancel),
            Kind::Check => self.check(&replica, now, cancel),
            // The whitelist of a replica is that of its source.
            Kind::Resign => Ok(Done::default()),
        }
    }
}

impl Jobs {
    fn take_snapshot(&self, replica: &Replica, now: UnixSeconds, cancel: &Cancel) -> Result<Done> {
        // Somebody else's run is as good as ours.
        let options = SnapshotOptions { patience: Duration::ZERO, ..SnapshotOptions::new(now) };
        let result = snapshot(replica, &options, &Silent, cancel);
        if !matches!(result, Err(Error::Cancelled)) {
            (self.report)(replica, &result);
        }
        let outcome = result?;
        if outcome.ending == Ending::Incomplete {
            let reason = format!("it is incomplete: {}", outcome.failures);
            return Err(Error::Unavailable { what: format!("snapshot of {}", replica.alias), reason });
        }
        Ok(Done { objects: outcome.counts.objects, bytes: outcome.counts.bytes })
    }

    fn check(&self, replica: &Replica, now: UnixSeconds, cancel: &Cancel) -> Result<Done> {
        // Before the first snapshot there is nothing to check.
        if !replica.is_complete()? {
            return Ok(Done::default());
        }
        let options = check::Options { data: self.replicas.options.check_data, ..check::Options::new(now) };
        let report = with_subject(replica, |subject| check::watch(subject, &options, &Silent, cancel))?;
        Ok(Done { objects: report.objects, bytes: report.bytes_read })
    }
}

fn collect_garbage(replica: &Replica, now: UnixSeconds, cancel: &Cancel) -> Result<Done> {
    if let Some(reason) = is_needless(replica, cancel)? {
        tracing::debug!(alias = %replica.alias, ?reason, "no garbage to collect");
        return Ok(Done::default());
    }
    let options = gc::Options { keep: replica.auto_gc.keep(now), ..gc::Options::new(now) };
    let outcome = DeletionLog::around(replica.deletion_log.as_deref(), now, |log| {
        collect(replica, &options, false, log, &Silent, cancel)
    })?;
    Ok(Done { objects: outcome.condemned.objects, bytes: outcome.condemned.bytes })
}
