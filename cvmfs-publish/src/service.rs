//! What a Stratum 0 does on its own: collections of garbage, checks, and signing the whitelist before it expires.
//!
//! ```text
//! every so often ─► cvmfs_core::schedule ─► gc, check, resign
//! ```
//!
//! Others publish meanwhile, in other processes: each job takes the locks that its command takes.

use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::check;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::gc::{self, DeletionLog, Place as _, Stratum0};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::schedule::{Clock, Done, Kind, Schedule, Work};
use cvmfs_core::server::{RepositoryConfig, ServerRoot, load_master_keys};
use cvmfs_core::status;
use cvmfs_core::storage::WriteStore;

use crate::resign::{self, Renewal, Renewed};

/// How often the whitelist is looked at.
const WHITELIST_EVERY: Duration = Duration::from_hours(6);

/// Choices for a service: nothing is done that is not asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Time from the end of a collection of garbage to the next one, up to a quarter more or less, where the configuration
    /// allows it.
    pub gc_every: Option<Duration>,
    /// The same for checks.
    pub check_every: Option<Duration>,
    /// Whether checks read all objects.
    pub check_data: bool,
    /// When and for how long whitelists are signed again, where the master key is.
    pub renewal: Option<Renewal>,
}

impl Options {
    /// Whether there is anything to do.
    pub fn is_any(&self) -> bool {
        self.gc_every.or(self.check_every).is_some() || self.renewal.is_some()
    }
}

/// Begins; what was never done is due at once. `cancel` is the schedule's own: dropping the schedule cancels it.
///
/// # Errors
/// `Io` if the configuration cannot be listed, or the system gives no threads.
pub fn start(root: ServerRoot, options: Options, clock: Clock, cancel: Cancel) -> Result<Arc<Schedule>> {
    let threads = [
        (Kind::Gc, usize::from(options.gc_every.is_some())),
        (Kind::Check, usize::from(options.check_every.is_some())),
        (Kind::Resign, usize::from(options.renewal.is_some())),
    ];
    Schedule::start(Box::new(Jobs { root, options, clock }), &threads, clock, cancel).map(Arc::new)
}

/// What there is to do for the repositories that are published here.
struct Jobs {
    root: ServerRoot,
    options: Options,
    clock: Clock,
}

impl Work for Jobs {
    fn jobs(&self) -> Result<Vec<(RepositoryName, Kind, Duration)>> {
        let mut jobs = Vec::new();
        for name in self.root.repositories()? {
            if self.root.config_dir(&name).join("replica.conf").is_file() {
                continue;
            }
            // A job of which the configuration cannot be read fails, where monitors see it.
            let gc_every = self.options.gc_every.and_then(|every| match RepositoryConfig::load(&self.root, &name) {
                Ok(config) => config.auto_gc.interval(every).filter(|_| config.garbage_collectable),
                Err(_) => Some(every),
            });
            for (kind, every) in [
                (Kind::Gc, gc_every),
                (Kind::Check, self.options.check_every),
                (Kind::Resign, self.options.renewal.as_ref().map(|_| WHITELIST_EVERY)),
            ] {
                jobs.extend(every.map(|every| (name.clone(), kind, every)));
            }
        }
        Ok(jobs)
    }

    fn last(&self, name: &RepositoryName, kind: Kind) -> Option<UnixSeconds> {
        let key = match kind {
            Kind::Gc => status::LAST_GC,
            Kind::Check => status::LAST_CHECK,
            // The whitelist has its own dates.
            Kind::Resign | Kind::Snapshot => return None,
        };
        let store = RepositoryConfig::load(&self.root, name).and_then(|config| config.storage.open()).ok()?;
        status::time(&*store, key).ok()?
    }

    fn run(&self, name: &RepositoryName, kind: Kind, cancel: &Cancel) -> Result<Done> {
        let now = (self.clock)()?;
        match kind {
            Kind::Gc => self.collect_garbage(name, now, cancel),
            Kind::Check => self.check(name, now, cancel),
            Kind::Resign => self.renew_whitelist(name, now),
            Kind::Snapshot => Ok(Done::default()),
        }
    }
}

impl Jobs {
    fn collect_garbage(&self, name: &RepositoryName, now: UnixSeconds, cancel: &Cancel) -> Result<Done> {
        let publisher = Publisher::open(&self.root, name)?;
        let config = publisher.config.clone();
        let place = Stratum0::new(publisher, config.storage.open()?, now);
        // What the configuration allows holds from the next revision on.
        if !place.manifest()?.garbage_collectable {
            return Ok(Done::default());
        }
        let options = gc::Options { keep: config.auto_gc.keep(now), ..gc::Options::new(now) };
        let outcome = DeletionLog::around(config.deletion_log.as_deref(), now, |log| {
            gc::collect(&place, &options, log, &Silent, cancel)
        })?;
        for warning in &outcome.warnings {
            tracing::warn!(%name, warning, "gc");
        }
        let (objects, bytes) = (outcome.condemned.objects, outcome.condemned.bytes);
        tracing::info!(%name, objects, bytes, seconds = outcome.seconds, "garbage was collected");
        Ok(Done { objects, bytes })
    }

    fn check(&self, name: &RepositoryName, now: UnixSeconds, cancel: &Cancel) -> Result<Done> {
        let config = RepositoryConfig::load(&self.root, name)?;
        let master_keys = load_master_keys(&self.root, name)?;
        let subject = check::Subject {
            store: config.storage.open()? as Arc<dyn WriteStore>,
            spool: &config.spool,
            name,
            master_keys: &master_keys,
            is_replica: false,
            has_catalog: &|_| true,
        };
        let options = check::Options { data: self.options.check_data, ..check::Options::new(now) };
        let report = check::watch(&subject, &options, &Silent, cancel)?;
        Ok(Done { objects: report.objects, bytes: report.bytes_read })
    }

    fn renew_whitelist(&self, name: &RepositoryName, now: UnixSeconds) -> Result<Done> {
        let Some(renewal) = &self.options.renewal else { return Ok(Done::default()) };
        match resign::renew(&self.root, name, renewal, now)? {
            Renewed::NotYet => {}
            Renewed::Signed(signed) => {
                tracing::info!(%name, expires = signed.whitelist_expires, "the whitelist was signed again");
            }
            Renewed::NoKey { expires } => {
                tracing::warn!(%name, %expires, "the whitelist is about to expire, and the master key is not here");
            }
            Renewed::WrongClock { issued } => {
                tracing::warn!(%name, %issued, "the whitelist was signed in the future: the clock is, or was, wrong");
            }
        }
        Ok(Done::default())
    }
}
