//! Listening to sources that tell of new revisions.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::Url;
use cvmfs_core::manifest::SignedManifest;
use cvmfs_core::notice;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::Cancel;
use cvmfs_core::schedule::{Kind, Schedule};

use super::Replicas;
use crate::replica::Replica;

/// How often the configuration is looked at for subscriptions that came.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// How often somebody looks whether everything is to end.
const CANCEL_CHECK: Duration = Duration::from_millis(200);
/// The wait before a broken subscription is renewed; it doubles up to the maximum.
const RENEW_FIRST: Duration = Duration::from_secs(1);
const RENEW_MAX: Duration = Duration::from_mins(2);

/// Listens to all sources that replicas subscribe to, each on a thread, until `cancel` is asked or the schedule is gone.
pub(super) fn start(replicas: Replicas, schedule: Weak<Schedule>, cancel: Cancel) -> Result<()> {
    let subscriptions = Arc::new(Subscriptions { replicas, schedule, cancel, open: Mutex::default() });
    let thread = std::thread::Builder::new().name("subscriptions".to_owned());
    thread.spawn(move || subscriptions.keep()).at("thread").map(drop)
}

struct Subscriptions {
    replicas: Replicas,
    schedule: Weak<Schedule>,
    cancel: Cancel,
    /// Aliases and servers that are listened to.
    open: Mutex<HashSet<(RepositoryName, Url)>>,
}

impl Subscriptions {
    /// Opens what is configured, again and again.
    fn keep(self: &Arc<Self>) {
        while !self.is_over() {
            match self.replicas.meant() {
                Ok(replicas) => replicas.into_iter().for_each(|replica| self.open(replica)),
                Err(error) => tracing::warn!(%error, "cannot look for subscriptions"),
            }
            self.pause(LIST_EVERY);
        }
    }

    fn open(self: &Arc<Self>, replica: Replica) {
        let Some(server) = replica.subscription.clone() else { return };
        let subscription = (replica.alias.clone(), server.clone());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains(&subscription) {
            return;
        }
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("subscription".to_owned());
        match thread.spawn(move || shared.listen(&replica, &server)) {
            Ok(_) => drop(open.insert(subscription)),
            Err(error) => tracing::warn!(%error, "cannot listen to a source"),
        }
    }

    /// Listens to the source of a replica, for as long as it is configured so.
    fn listen(&self, replica: &Replica, server: &Url) {
        let mut pause = RENEW_FIRST;
        while self.is_subscribed(replica, server) {
            let mut told = |manifest: Vec<u8>| {
                pause = RENEW_FIRST;
                if let (true, Some(schedule)) = (is_news(replica, &manifest), self.schedule.upgrade()) {
                    schedule.request(&replica.alias, Kind::Snapshot);
                }
            };
            match notice::subscribe(server, &replica.name, &self.cancel, &mut told) {
                Err(Error::Cancelled) => return,
                Err(error) => tracing::debug!(alias = %replica.alias, %error, "subscription"),
                Ok(()) => {}
            }
            // Something may have been missed.
            self.pause(pause);
            pause = (pause * 2).min(RENEW_MAX);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&(replica.alias.clone(), server.clone()));
    }

    fn is_subscribed(&self, replica: &Replica, server: &Url) -> bool {
        let configured = Replica::load(&self.replicas.root, &replica.alias);
        !self.is_over() && configured.is_ok_and(|replica| replica.subscription.as_ref() == Some(server))
    }

    fn is_over(&self) -> bool {
        self.cancel.check().is_err() || self.schedule.strong_count() == 0
    }

    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_over() {
            std::thread::sleep(CANCEL_CHECK.min(pause));
        }
    }
}

/// Whether a manifest is another one than the replica has. It is not verified here: the snapshot fetches its own.
fn is_news(replica: &Replica, manifest: &[u8]) -> bool {
    SignedManifest::parse(manifest).is_ok() && replica.manifest().map_or(true, |ours| ours.as_deref() != Some(manifest))
}
