//! Reads repositories over HTTP, from several mirrors, through proxies, with retries and hash checks.
//!
//! ```text
//! HttpStore ──► server ──► proxy ──► attempt ──► Sink
//!    ▲            │          │          │
//!    │         next one   next one   repeat with back-off, or once around caches
//!    └── one error out of all failures
//! ```
//!
//! Objects are returned only if their bytes have the hash that names them. Named files are limited in size and
//! unverified: their signatures are for others to check.
//!
//! ```no_run
//! use cvmfs_core::fetch::{HttpOptions, HttpStore, parse_servers};
//! use cvmfs_core::storage::{NamedFile, ReadStore};
//!
//! let servers = parse_servers("http://s1.example.org/cvmfs/sw.example.org;http://s2.example.org/cvmfs/sw.example.org")?;
//! let options = HttpOptions { proxies: "http://squid:3128;DIRECT".parse()?, ..HttpOptions::default() };
//! let store = HttpStore::new(servers, options)?;
//! let manifest = store.read(&NamedFile::Manifest.into())?;
//! # Ok::<(), cvmfs_core::error::Error>(())
//! ```
//!
//! Source: `cvmfs/network/download.cc`.

mod bandwidth;
pub mod bundle;
pub(crate) mod client;
mod failure;
mod options;
pub mod queue;
mod request;
mod retry;
mod route;
mod runtime;
mod sink;

use std::fmt;
use std::io::{Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::Method;
use hyper::header::HeaderMap;
use tokio::runtime::Handle;

use self::bundle::{Bundle, BundleOffer};
use self::client::Client;
use self::failure::{Blame, Failure, Failures, Kind, Remedy};
use self::request::{Delivered, Wanted};
use self::route::{ProxyRotation, Servers};
use self::sink::Spool;
use crate::error::Result;
use crate::hash::{ObjectId, ObjectKind};
use crate::storage::{Key, NamedFile, ReadStore};

pub use self::bandwidth::Bandwidth;
pub use self::client::certificates;
pub use self::failure::{is_final, root_cause};
pub use self::options::{Bundles, HttpOptions, Redirects};
pub use self::retry::{Backoff, parse_retry_after};
pub(crate) use self::route::Hop;
pub use self::route::{ProxyChain, parse_servers, shown as shown_url};
pub use self::runtime::Connections;
pub use self::sink::Sink;
pub use reqwest::Url;

/// After so many failures in a row a server is not asked for bundles any more.
const BUNDLE_FAILURES_MAX: u32 = 3;
/// The largest accepted certificate or meta info, in stored bytes.
const SMALL_OBJECT_MAX: u64 = 16 << 20;

/// A repository on web servers.
///
/// Connections are kept and shared by all threads; HTTP/2 is used where an `https` server offers it. The servers and
/// proxies that failed are remembered for a while.
///
/// The methods of [`ReadStore`] block. The asynchronous ones, for many requests in flight, run on any tokio runtime
/// with I/O and time; callers that have none use [`HttpStore::block_on`]. Dropping their futures cancels the request.
///
/// # Errors
/// - `NotFound`: all servers say so.
/// - `HashMismatch`: a server delivered an object with another content, also when caches were bypassed.
/// - `Malformed`: an answer is too large or has an encoding that was not asked for.
/// - `Unavailable`: at least one server failed in a way that may pass.
/// - `Refused`: at least one server refused for good, and none delivered.
///
/// Each names the URL and, if several servers were asked, how the others failed; never with credentials.
pub struct HttpStore {
    servers: Servers,
    proxies: ProxyRotation,
    hops: Vec<(Hop, Client)>,
    backoff: Backoff,
    options: Arc<HttpOptions>,
    /// The bundles that each server has.
    offers: Mutex<Vec<Option<Offered>>>,
    /// How often a server was overloaded or too slow.
    pushback: AtomicU64,
    connections: Connections,
}

/// The bundles of a server.
#[derive(Debug, Clone)]
struct Offered {
    offer: Arc<BundleOffer>,
    /// How often in a row it failed to deliver one.
    failures: u32,
}

impl HttpStore {
    /// Prepares to read a repository from `servers`, each the URL of the repository's root; no request is sent yet.
    ///
    /// # Errors
    /// `InvalidInput` if there is no server, or one with an unfit URL; `Malformed` or `Io` if the CA bundle cannot be
    /// used.
    pub fn new(servers: Vec<Url>, options: HttpOptions) -> Result<Self> {
        let hops = options.proxies.groups().iter().flatten();
        let hops = hops.map(|hop| Ok((hop.clone(), Client::new(hop, &options)?))).collect::<Result<_>>()?;
        Ok(Self {
            offers: Mutex::new(vec![None; servers.len()]),
            servers: Servers::new(servers, options.server_reset)?,
            proxies: ProxyRotation::new(&options.proxies, options.proxy_reset),
            hops,
            backoff: Backoff::new(options.backoff_initial, options.backoff_max),
            pushback: AtomicU64::new(0),
            connections: Connections::new()?,
            options: Arc::new(options),
        })
    }

    /// Fetches an object into `sink` and returns its stored size.
    ///
    /// What `sink` holds is the object only if this returns `Ok`.
    pub async fn fetch_object(&self, id: &ObjectId, sink: &mut dyn Sink) -> Result<u64> {
        self.fetch(&self.wanted(Key::Object(*id), Method::GET), sink).await
    }

    /// Fetches an object or named file into `sink` and returns its stored size.
    ///
    /// Objects and shortcuts to them are verified as in [`fetch_object`](Self::fetch_object).
    pub async fn fetch_key(&self, key: &Key, sink: &mut dyn Sink) -> Result<u64> {
        self.fetch(&self.wanted(*key, Method::GET), sink).await
    }

    /// Asks for the stored size of an object or named file, `None` if no server has it.
    pub async fn fetch_size(&self, key: &Key) -> Result<Option<u64>> {
        match self.fetch(&self.wanted(*key, Method::HEAD), &mut Vec::new()).await {
            Ok(size) => Ok(Some(size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uses the server that is asked first now only when all others fail, for a while.
    ///
    /// For callers that find a fault which is not visible here, such as a manifest with a wrong signature.
    pub fn switch_server(&self) {
        let now = Instant::now();
        if let Some(first) = self.servers.order(now).first() {
            self.servers.demote(*first, now);
        }
    }

    /// Runs a future to its end on the runtime of this store: the crossing from blocking to asynchronous code.
    ///
    /// May be called from any thread. One that runs asynchronous tasks is blocked meanwhile, like by any other wait;
    /// `spawn_blocking` is the better place.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send,
    {
        self.connections.block_on(future)
    }

    /// Where asynchronous tasks for this store run.
    fn handle(&self) -> Handle {
        self.connections.handle()
    }

    /// How often a server has asked for patience, or was too slow, so far.
    fn pushback(&self) -> u64 {
        self.pushback.load(Ordering::Relaxed)
    }

    fn offers(&self) -> MutexGuard<'_, Vec<Option<Offered>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bundles that are to be had of the server that is asked first.
    fn bundle_offer(&self) -> Option<(usize, Arc<BundleOffer>)> {
        let is_direct = self.hops.iter().all(|(hop, _)| *hop == Hop::Direct);
        if self.options.bundles == Bundles::Never || self.options.bundles == Bundles::Direct && !is_direct {
            return None;
        }
        let offers = self.offers();
        if offers.iter().all(Option::is_none) {
            return None;
        }
        let first = *self.servers.order(Instant::now()).first()?;
        offers[first].as_ref().map(|offered| (first, Arc::clone(&offered.offer)))
    }

    /// Asks for a bundle, once; what it lacks is to be fetched singly. `None` if there is none to be had.
    async fn fetch_bundle(&self, server: usize, offer: &BundleOffer, ids: &[ObjectId]) -> Option<Bundle> {
        let url = offer.url(&self.servers.urls()[server]);
        let (hop, client) = self.proxies.order(Instant::now()).first().map(|&proxy| &self.hops[proxy])?;
        let nearest = if *hop == Hop::Direct { Blame::Server } else { Blame::Proxy };
        let headers = HeaderMap::new();
        let sent = client.send(&Method::POST, &url, &headers, bundle::names(ids).into());
        let bundle = match request::head_of(sent, nearest, &self.options).await {
            Ok(response) => Bundle::begin(response, nearest, Arc::clone(&self.options), offer, ids),
            Err(failure) => Err(failure),
        };
        bundle.map_err(|failure| self.bundle_failed(server, &failure)).ok()
    }

    /// Remembers that a bundle came.
    fn bundle_arrived(&self, server: usize) {
        if let Some(offered) = &mut self.offers()[server] {
            offered.failures = 0;
        }
    }

    /// Remembers that a bundle did not come, or not to its end. A server that keeps failing is not asked for bundles
    /// any more, until it offers them again.
    fn bundle_failed(&self, server: usize, failure: &Failure) {
        tracing::debug!(url = route::shown(&self.servers.urls()[server]), reason = failure.reason(), "no bundle");
        if failure.is_pushback() {
            self.pushback.fetch_add(1, Ordering::Relaxed);
        }
        let mut offers = self.offers();
        if let Some(offered) = &mut offers[server] {
            offered.failures += 1;
            let final_answer = matches!(failure.kind, Kind::Missing | Kind::Refused(_));
            if final_answer || offered.failures >= BUNDLE_FAILURES_MAX {
                offers[server] = None;
            }
        }
    }

    fn wanted(&self, key: Key, method: Method) -> Wanted {
        match key {
            Key::Object(id) | Key::Shortcut(id) => {
                let max_object_size = self.options.max_object_size;
                let max_size = match id.kind {
                    // These are read into memory.
                    ObjectKind::Certificate | ObjectKind::Metainfo => max_object_size.min(SMALL_OBJECT_MAX),
                    _ => max_object_size,
                };
                Wanted { key, method, hash: Some(id.hash), max_size, fresh: false }
            }
            Key::Named(file) => {
                // Upstream: a reflog from a cache could lack what the last run added to it.
                let fresh = self.options.fresh_named_files || file == NamedFile::Reflog;
                Wanted { key, method, hash: None, max_size: self.options.max_named_size, fresh }
            }
        }
    }

    /// Asks one server after the other.
    async fn fetch(&self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<u64> {
        let mut failures = Failures::default();
        for (position, server) in self.servers.order(Instant::now()).into_iter().enumerate() {
            let url = self.servers.url(server, &wanted.key);
            let failure = match self.fetch_from(&url, wanted, sink).await {
                Ok(Delivered { size, offer }) => {
                    if position > 0 {
                        self.servers.prefer(server, Instant::now());
                    }
                    if wanted.key == Key::Named(NamedFile::Manifest) {
                        self.offers()[server] = offer.map(|offer| Offered { offer: Arc::new(offer), failures: 0 });
                    }
                    return Ok(size);
                }
                Err(failure) => failure,
            };
            let url = route::shown(&url);
            tracing::debug!(url, reason = failure.reason(), "server failed");
            if failure.blame == Blame::Server && failure.demotes() {
                self.servers.demote(server, Instant::now());
            }
            let is_local = matches!(failure.kind, Kind::Local(_));
            failures.add(url, failure);
            if is_local {
                break;
            }
        }
        Err(failures.into_error(&describe_wanted(&wanted.key)))
    }

    /// Asks one server through one proxy after the other.
    async fn fetch_from(&self, url: &Url, wanted: &Wanted, sink: &mut dyn Sink) -> Result<Delivered, Failure> {
        let order = self.proxies.order(Instant::now());
        for (position, proxy) in order.iter().enumerate() {
            let is_last = position + 1 == order.len();
            match self.repeat(url, *proxy, is_last, wanted, sink).await {
                Ok(delivered) => {
                    self.proxies.restore(*proxy);
                    return Ok(delivered);
                }
                Err(mut failure) if failure.blame == Blame::Proxy => {
                    let name = format!("{:?}", self.hops[*proxy].0);
                    tracing::debug!(proxy = name, reason = failure.reason(), "proxy failed");
                    failure.proxy = Some(name);
                    self.proxies.demote(*proxy, Instant::now());
                    if is_last {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        unreachable!("a chain has at least one member, and the last one returns")
    }

    /// Asks one server on one way until it answers, or asking again makes no sense.
    async fn repeat(
        &self,
        url: &Url,
        proxy: usize,
        is_last_proxy: bool,
        wanted: &Wanted,
        sink: &mut dyn Sink,
    ) -> Result<Delivered, Failure> {
        let (hop, client) = &self.hops[proxy];
        let nearest = if *hop == Hop::Direct { Blame::Server } else { Blame::Proxy };
        let mut wanted = wanted.clone();
        let (mut repetitions, mut bypassed) = (0, false);
        loop {
            let result = request::attempt(client, nearest, url, &wanted, &self.options, sink).await;
            let failure = match result {
                Ok(delivered) => return Ok(delivered),
                Err(failure) => failure,
            };
            if failure.is_pushback() {
                self.pushback.fetch_add(1, Ordering::Relaxed);
            }
            // While there is another way, waiting for a proxy that is down gains nothing.
            let skip = nearest == Blame::Proxy && !is_last_proxy && matches!(failure.kind, Kind::Connect(_));
            match failure.remedy() {
                Remedy::Repeat(wait) if repetitions < self.options.retries && !skip => {
                    let wait = wait.unwrap_or_else(|| self.backoff.delay(repetitions));
                    tracing::debug!(url = route::shown(url), reason = failure.reason(), ?wait, "repeating");
                    repetitions += 1;
                    tokio::time::sleep(wait).await;
                }
                Remedy::BypassCaches if !bypassed => {
                    tracing::debug!(url = route::shown(url), reason = failure.reason(), "repeating around caches");
                    bypassed = true;
                    wanted.fresh = true;
                }
                _ => return Err(failure),
            }
        }
    }
}

impl ReadStore for HttpStore {
    /// Names the URL of `key` at the server that is asked first.
    fn describe(&self, key: &Key) -> String {
        let first = self.servers.order(Instant::now()).first().copied().unwrap_or_default();
        route::shown(&self.servers.url(first, key))
    }

    /// Reads a named file, or an object that is verified.
    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.block_on(self.fetch_key(key, &mut bytes))?;
        Ok(bytes)
    }

    /// Fetches a named file, or an object that is verified; a large one is kept in a temporary file.
    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        if let Key::Named(_) = key {
            return Ok(Box::new(Cursor::new(self.read(key)?)));
        }
        let mut spool = Spool::new(self.options.temporary_directory.as_deref());
        self.block_on(self.fetch_key(key, &mut spool))?;
        Ok(Box::new(spool.into_reader()?))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.block_on(self.fetch_size(key))
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.urls().iter().map(route::shown).collect();
        f.debug_struct("HttpStore").field("servers", &servers).field("options", &self.options).finish_non_exhaustive()
    }
}

/// Names the thing itself, as opposed to its place.
fn describe_wanted(key: &Key) -> String {
    match key {
        Key::Object(id) => format!("{} {id}", id.kind.noun()),
        Key::Named(file) => file.name().to_owned(),
        Key::Shortcut(id) => format!("shortcut to {} {id}", id.kind.noun()),
    }
}
