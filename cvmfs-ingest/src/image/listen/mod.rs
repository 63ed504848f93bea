//! A service that takes notifications of registries, and keeps a repository as they are.
//!
//! ```text
//! POST ─► auth ─► payload ─► allowed ─► queue ─► worker ─► registry: what is there? ─► convert, or clean
//!                  hints      known      on disk   ▲                                       │
//! recipe, every so often ──────────────────────────┘         feed, metrics, listener ◄──────┘
//! ```
//!
//! A notification is a hint and nothing more: whatever it says, the registry is asked. So a lost one is made good by
//! the next look at the recipe, a false one costs a request, and a repeated one nothing.
//!
//! | request | is |
//! | --- | --- |
//! | `POST /`, `POST /notify` | a notification, see [`payload`]; 202 means that it will survive whatever comes |
//! | `GET /queue` | what is queued, running, and what failed, as JSON |
//! | `GET /events` | what happens, as it happens: a stream of [`Event`](super::notify::Event)s |
//! | `GET /metrics` | counters for Prometheus |
//! | `GET /healthz` | 200 |
//!
//! The first three need the [secret](auth), if there is one; the last two name no images.

mod allowed;
pub mod auth;
mod feed;
mod http;
mod metrics;
pub mod payload;
pub mod queue;
mod worker;

use std::fmt;
use std::net::TcpListener;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::progress::Cancel;

pub use allowed::{Allowed, Place};
pub use worker::{Plan, Service};

use self::auth::Secret;
use self::feed::Feed;
use self::metrics::Metrics;
use self::queue::Queue;
use super::reference::Reference;
use super::registry::Registries;
use super::source::ImageStore;

/// The directory of the queue, in the spool directory of a repository.
const QUEUE: &str = "image-queue";

/// Where images come from.
pub trait Registry: fmt::Debug + Send + Sync {
    /// Opens the repository of an image; whether there is one, is not asked yet.
    fn open(&self, image: &Reference) -> Result<Arc<dyn ImageStore>>;

    /// All tags of the repository of an image.
    fn tags(&self, image: &Reference) -> Result<Vec<String>>;
}

impl Registry for Registries {
    fn open(&self, image: &Reference) -> Result<Arc<dyn ImageStore>> {
        Ok(Arc::new(self.repository(image)?))
    }

    fn tags(&self, image: &Reference) -> Result<Vec<String>> {
        self.repository(image)?.tags()
    }
}

/// Limits and habits of the service.
#[derive(Debug, Clone)]
pub struct Options {
    /// What whoever notifies must know; `None` to trust everybody who can connect, which must be from this machine.
    pub secret: Option<Secret>,
    /// Limits of the queue.
    pub queue: queue::Options,
    /// Images that are worked on at once.
    pub jobs: usize,
    /// How often everything that is wanted is looked at without a notification.
    pub every: Duration,
    /// Connections at the same time; more wait until one ends.
    pub connections_max: usize,
    /// The largest notification, in bytes.
    pub body_max: usize,
    /// How long the head of a request may take to come, and its body, and each piece of an answer to go.
    pub request_timeout: Duration,
    /// How long answers may take when the service is to end.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            secret: None,
            queue: queue::Options::default(),
            jobs: 2,
            every: Duration::from_hours(1),
            connections_max: 256,
            body_max: 1 << 20,
            request_timeout: Duration::from_secs(15),
            grace: Duration::from_secs(5),
        }
    }
}

/// What all threads and connections share.
#[derive(Debug)]
struct Shared {
    options: Options,
    clock: fn() -> Result<UnixSeconds>,
    queue: Queue,
    allowed: RwLock<Arc<Allowed>>,
    metrics: Metrics,
    feed: Feed,
}

impl Shared {
    /// What is allowed now.
    fn allowed(&self) -> Arc<Allowed> {
        Arc::clone(&self.allowed.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn allow(&self, allowed: Arc<Allowed>) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = allowed;
    }
}

/// Serves until it is cancelled. What is being done then is given up, and is first in the queue the next time.
///
/// # Errors
/// `InvalidInput` if there is no secret and others than this machine could connect, or if nothing is allowed; `Conflict`
/// if another process does this for the repository; those of what is allowed.
pub fn listen(socket: TcpListener, service: &Service<'_>, options: Options, cancel: &Cancel) -> Result<()> {
    let address = socket.local_addr().at("listening address")?;
    if options.secret.is_none() && !address.ip().is_loopback() {
        return Err(Error::invalid(format!("listening on {address}"), "needs a secret: others can connect there"));
    }
    let allowed = (service.allowed)()?;
    if allowed.is_empty() {
        return Err(Error::invalid("notifications", "no registry and no image is allowed"));
    }
    let shared = Arc::new(Shared {
        queue: Queue::open(&service.publisher.config.spool.join(QUEUE), options.queue.clone())?,
        clock: service.clock,
        allowed: RwLock::new(Arc::new(allowed)),
        metrics: Metrics::default(),
        feed: Feed::new(),
        options,
    });
    (service.ready)(address);
    thread::scope(|scope| {
        for _ in 0..shared.options.jobs.max(1) {
            scope.spawn(|| worker::work(service, &shared, cancel));
        }
        scope.spawn(|| worker::watch(service, &shared, shared.options.every, cancel));
        let served = http::serve(socket, &shared, cancel);
        // Whatever ended it ends the others as well.
        cancel.cancel();
        served
    })
}
