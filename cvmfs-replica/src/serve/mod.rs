//! Read-only HTTP for repositories, in front of caches and clients.
//!
//! ```text
//! listener ─► connection ─┬─► direct ─┬─► answer ─┬─► route      path → what it names, if anything
//!  accepts     one client │   plain   │           ├─► file       what it names → an open file
//!                         └─► hyper ──┘           ├─► bucket     what it names → a stream from S3
//!                           the rest              ├─► respond    file and conditions → head, range
//!                                                 ├─► api, geo   functions
//!                                                 ├─► pull       what a replica lacks, from its source
//!                                                 └─► pages, metrics, info ─► state, librarian
//! ```
//!
//! A repository is served as it lies in its storage directory or bucket, and only those files of it that are meant for
//! the world; a request for anything else is 404 before a file is touched. Bodies are the stored bytes, never
//! encoded another way. HTTP/1.1 only, because that is what the client speaks.
//!
//! Large files go from the system's memory to the socket by `sendfile`, without being copied through ours; what is not in
//! memory is read by other threads first, because `sendfile` would wait for the disk. Small objects that are asked for
//! often are kept in memory for some seconds. hyper and TLS want to own the socket, so this holds for plain requests on plain
//! connections, which are nearly all; `./dev bench serve` compares it with nginx.
//!
//! | path | type | kept for |
//! | --- | --- | --- |
//! | `/cvmfs/<name>/data/…` | `application/octet-stream` | 3 days |
//! | `/cvmfs/<name>/.cvmfs…` | `application/x-cvmfs` | 61 s |
//! | `/cvmfs/<name>/stats/…` | by extension | 61 s |
//! | `/cvmfs/info/v1/{repositories,meta}.json` | `application/json` | 61 s |
//! | `/cvmfs/<name>/api/v1.0/geo/…` | order of servers by distance | 1 hour, refusals 300 s |
//! | `/cvmfs/<name>/api/v1.0/bundle` | `application/x-cvmfs-bundle` | not at all |
//! | `/api/v1/notifications/{publish,subscribe}` | JSON, a stream of events | not at all |
//! | `/metrics`, `/healthz`, `/healthz/<name>` | text | not at all |
//! | `/`, `/browse/…`, `/download/…` | pages for people | 10 s, 61 s |
//! | everything else | 404 | 10 s |
//!
//! Responses to one request are events with the target `access`, if [`ServeOptions::access_log`] is set.

mod access;
mod answer;
mod api;
mod bucket;
mod bundle;
mod cache;
mod connection;
mod direct;
mod file;
mod geo;
mod health;
mod info;
mod librarian;
mod listener;
mod metrics;
mod notices;
mod pages;
mod pull;
mod repositories;
mod respond;
mod route;
mod socket;
mod state;
mod tls;
mod watch;
mod workers;

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::schedule::Schedule;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

pub use listener::{Listener, listen};
pub use notices::Notices;
pub use repositories::Repositories;
pub use tls::TlsFiles;

use cache::ObjectCache;
use connection::Shared;
use geo::Geo;
use librarian::Librarian;
use listener::Accepted;
use metrics::Metrics;
use pull::Puller;
use state::States;
use tls::Tls;
use workers::Workers;

/// Limits and habits of the server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Connections served at the same time, over all addresses; more wait until one ends. At least 1. The process
    /// must be allowed two open files for each, see [`cvmfs_core::cli::raise_open_file_limit`].
    pub max_connections: usize,
    /// Within this time a connection must bring a complete request head, counted from its beginning or from the
    /// end of the response before. It bounds slow senders and unused connections alike.
    pub request_timeout: Duration,
    /// A client that takes no byte for this long is cut off. Until then the system's own buffers, up to some
    /// megabytes, may hide that it is slow.
    pub write_stall_timeout: Duration,
    /// How long running responses may take to finish after the server was asked to stop.
    pub shutdown_grace: Duration,
    /// Longest path and query in bytes; what is longer gets a 414.
    pub max_uri_length: usize,
    /// Longest request head in bytes, first line included; what is longer gets a 431.
    pub max_header_size: usize,
    /// Threads that answer requests; 0 for one a processor.
    pub threads: usize,
    /// Bytes of memory for small objects that are asked for often; 0 to read each from its file.
    pub object_cache_size: u64,
    /// Bundles that are answered at the same time; 0 to offer none. See [`cvmfs_core::fetch::bundle`].
    pub max_bundles: usize,
    /// Takes notices of new revisions, and tells of them; `None` for neither.
    pub notices: Option<Arc<Notices>>,
    /// Jobs whose results are told to monitors.
    pub schedule: Option<Arc<Schedule>>,
    /// Whether there are pages for people: the overview, and the browser of trees.
    pub pages: bool,
    /// Where catalogs are inflated for pages; a directory there is made, and removed at the end.
    pub scratch: PathBuf,
    /// A MaxMind database of cities, for the order of servers. It need not exist (yet).
    pub geo_database: Option<PathBuf>,
    /// Identity of the server for listeners with TLS.
    pub tls: Option<TlsFiles>,
    /// Whether all replicas fetch what clients miss, not only those that are configured to.
    pub pull_through: bool,
    /// Told to, the server reads again what it has read at the start: configuration, geographic database, certificate.
    pub reload: Arc<Notify>,
    /// Whether every response is an event with the target `access`, at level `INFO`.
    pub access_log: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            request_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_mins(1),
            shutdown_grace: Duration::from_secs(30),
            max_uri_length: 4096,
            max_header_size: 16 * 1024,
            threads: 0,
            object_cache_size: 128 << 20,
            max_bundles: 64,
            notices: None,
            schedule: None,
            pages: true,
            scratch: std::env::temp_dir(),
            geo_database: None,
            tls: None,
            pull_through: false,
            reload: Arc::default(),
            access_log: false,
        }
    }
}

/// What a server did in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ServeOutcome {
    /// Connections accepted.
    pub connections: u64,
    /// Requests answered, in whatever way.
    pub requests: u64,
    /// Connections cut off at the end because they did not finish in time.
    pub aborted: u64,
}

/// Serves `repositories` on `listeners` (see [`listen`]) until `shutdown` completes.
///
/// Then no connection is accepted any more, idle ones are closed, and running responses are finished for at most
/// [`ServeOptions::shutdown_grace`]. Problems with single connections or files never end the server. Dropping the
/// future stops at once.
///
/// ```no_run
/// # async fn example() -> cvmfs_core::error::Result<()> {
/// use cvmfs_replica::serve::{Repositories, ServeOptions, listen, serve};
///
/// let listeners = listen(&["[::]:8000".parse().expect("an address")])?;
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// serve(listeners, Repositories::scan("/"), ServeOptions::default(), stop).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// `InvalidInput` if there is no listener, or a certificate, key or geographic database cannot be used.
pub async fn serve(
    listeners: Vec<impl Into<Listener>>,
    repositories: Repositories,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<ServeOutcome> {
    if listeners.is_empty() {
        return Err(Error::invalid("server", "no address to listen on"));
    }
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let slots = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let shared = Arc::new(prepare(repositories, options)?);
    let workers = Arc::new(Workers::start(shared.options.threads)?);
    let mut running = JoinSet::new();
    for listener in listeners {
        let (slots, shared) = (Arc::clone(&slots), Arc::clone(&shared));
        running.spawn(listener::run(listener.into(), slots, shared, Arc::clone(&workers), stopping.clone()));
    }
    tokio::select! {
        () = shutdown => {}
        () = reload_when_told(&shared) => {}
        () = watch::keep_looking(&shared) => {}
    }
    stop.send_replace(true);
    if let Some(notices) = &shared.options.notices {
        notices.end();
    }
    let mut outcome = ServeOutcome { connections: 0, requests: 0, aborted: 0 };
    while let Some(finished) = running.join_next().await {
        let accepted = finished.unwrap_or_else(|failure| {
            tracing::error!(%failure, "a listener failed");
            Accepted::default()
        });
        outcome.connections += accepted.connections;
        outcome.aborted += accepted.aborted;
    }
    outcome.requests = shared.metrics.requests();
    Ok(outcome)
}

/// Downloads from pages at the same time; each has a thread.
const DOWNLOADS_MAX: usize = 16;

/// Opens everything that the server needs.
fn prepare(repositories: Repositories, options: ServeOptions) -> Result<Shared> {
    let geo = match &options.geo_database {
        Some(file) if file.exists() => Some(Arc::new(Geo::open(file)?)),
        _ => None,
    };
    let shared = Shared {
        objects: ObjectCache::new(options.object_cache_size),
        metrics: Metrics::default(),
        states: States::default(),
        librarian: options.pages.then(|| Librarian::start(&options.scratch)).transpose()?,
        bundles: Arc::new(Semaphore::new(options.max_bundles.min(Semaphore::MAX_PERMITS))),
        downloads: Arc::new(Semaphore::new(DOWNLOADS_MAX)),
        geo: RwLock::new(geo),
        tls: options.tls.clone().map(Tls::open).transpose()?,
        puller: Puller::new(),
        repositories: Arc::new(repositories),
        options,
    };
    shared.load_configuration();
    Ok(shared)
}

/// Reads everything again whenever that is asked for; never ends.
async fn reload_when_told(shared: &Arc<Shared>) {
    loop {
        shared.options.reload.notified().await;
        let shared = Arc::clone(shared);
        let reload = tokio::task::spawn_blocking(move || {
            shared.load_configuration();
            shared.load_geo();
            if let Some(tls) = &shared.tls {
                tls.reload();
            }
        });
        if let Err(failure) = reload.await {
            tracing::error!(%failure, "cannot reload");
        }
        tracing::info!("configuration, geographic database and certificate were read again");
    }
}

/// A number for a plot or gauge.
#[expect(clippy::cast_precision_loss, reason = "nobody reads more than 15 digits there")]
fn as_float(number: u64) -> f64 {
    number as f64
}

/// Seconds from one time to another, negative if that is before.
fn seconds_between(earlier: UnixSeconds, later: UnixSeconds) -> f64 {
    let seconds = later.0.saturating_sub(earlier.0);
    let size = as_float(seconds.unsigned_abs());
    if seconds < 0 { -size } else { size }
}

fn unix_seconds(time: SystemTime) -> UnixSeconds {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixSeconds(since_epoch.as_secs().cast_signed())
}

fn unix_now() -> UnixSeconds {
    unix_seconds(SystemTime::now())
}
