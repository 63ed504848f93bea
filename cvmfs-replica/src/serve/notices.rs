//! Notices of new revisions: taken from publishers, and told to those who listen.
//!
//! | request | is |
//! | --- | --- |
//! | `POST /api/v1/notifications/publish` | a notice, see [`cvmfs_core::notice`]: the signed manifest of a repository |
//! | `GET /api/v1/notifications/subscribe` | `{"version":1,"repository":"<name>"}`, answered with a stream of events |
//!
//! Who publishes here need not send one: the manifest of a repository that somebody listens to is looked at every second
//! ([`super::watch`]), so everybody is told, whoever made the revision.
//!
//! Anybody may send a notice, for the manifest's signature must verify with the keys that this server has for the
//! repository. A replica is then brought to the new revision, and subscribers are told when it is there.
//!
//! Source: `gateway/internal/gateway/frontend/notifications.go`.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::manifest::SignedManifest;
use cvmfs_core::notice;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::schedule::{Kind, Schedule};
use cvmfs_core::server::{RepositoryConfig, ServerRoot, load_master_keys};
use cvmfs_core::storage::{NamedFile, ReadStore, StoragePlace};
use cvmfs_core::trust::keys::PublicKey;
use cvmfs_core::trust::whitelist::SignedWhitelist;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};

use super::answer::{ResponseBody, error, text};
use super::bundle::read_body;
use super::connection::Shared;
use super::repositories::Storage;
use super::respond::{self, Caching};
use super::socket::Socket;
use super::unix_seconds;
use crate::replica::Replica;
use crate::snapshot::source::stored_certificate;

/// Longest notice, and longest subscription, in bytes.
const BODY_MAX: usize = 64 * 1024;
/// Listeners at the same time.
const SUBSCRIBERS_MAX: usize = 1024;
/// Notices that a slow listener may be behind.
const BACKLOG: usize = 64;
/// How long a listener is kept without news. Source: `notificationTimeout` in `notifications.go`.
const SILENCE_MAX: Duration = Duration::from_hours(2);

/// Takes notices, and tells of new revisions.
pub struct Notices {
    root: ServerRoot,
    schedule: OnceLock<Arc<Schedule>>,
    news: broadcast::Sender<(RepositoryName, Arc<str>)>,
    subscribers: Arc<Semaphore>,
    ended: watch::Sender<bool>,
    watched: Mutex<BTreeMap<RepositoryName, Watched>>,
    /// The newest revision of each repository that a notice told of.
    noticed: Mutex<BTreeMap<RepositoryName, u64>>,
}

/// A repository that somebody listens to.
#[derive(Debug)]
struct Watched {
    listeners: usize,
    /// `None` if it is not served here.
    storage: Option<Storage>,
    /// What the manifest was when it was looked at.
    seen: Option<Sight>,
    /// What was told last, so that nobody is told twice.
    told: Option<Vec<u8>>,
}

/// What changes when a manifest is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sight {
    /// Of a file: its number, size, and time in nanoseconds.
    File(u64, u64, i64, i64),
    /// In a bucket: all of it.
    Content(Vec<u8>),
}

/// Looks at the manifest of a storage; waits for the disk or the bucket.
fn look(storage: &Storage) -> Option<Sight> {
    match storage {
        Storage::Directory(directory) => {
            let metadata = std::fs::metadata(directory.join(NamedFile::Manifest.name())).ok()?;
            Some(Sight::File(metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
        }
        Storage::Bucket(bucket) => bucket.store().read(&NamedFile::Manifest.into()).ok().map(Sight::Content),
    }
}

/// Has the manifest of a repository watched while it lives.
struct Listening {
    notices: Arc<Notices>,
    name: RepositoryName,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut watched = self.notices.watched();
        if let Some(entry) = watched.get_mut(&self.name) {
            entry.listeners -= 1;
            if entry.listeners == 0 {
                watched.remove(&self.name);
            }
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Notices {
    /// For the repositories of a server.
    pub fn new(root: ServerRoot) -> Self {
        Self {
            root,
            schedule: OnceLock::new(),
            news: broadcast::Sender::new(BACKLOG),
            subscribers: Arc::new(Semaphore::new(SUBSCRIBERS_MAX)),
            ended: watch::Sender::new(false),
            watched: Mutex::default(),
            noticed: Mutex::default(),
        }
    }

    /// Has replicas brought to a new revision by this schedule; only the first call counts.
    pub fn attach(&self, schedule: Arc<Schedule>) {
        drop(self.schedule.set(schedule));
    }

    /// Tells those who listen that a repository has a new revision here.
    ///
    /// # Errors
    /// `InvalidInput` if the message cannot be worded.
    pub fn announce(&self, name: &RepositoryName, manifest: &[u8], now: UnixSeconds) -> Result<()> {
        let message: Arc<str> = notice::message(name, manifest, now)?.into();
        if let Some(watched) = self.watched().get_mut(name) {
            watched.told = Some(manifest.to_owned());
        }
        // Without listeners nobody is told.
        drop(self.news.send((name.clone(), message)));
        Ok(())
    }

    /// Whether somebody listens.
    pub(super) fn is_watching(&self) -> bool {
        !self.watched().is_empty()
    }

    /// Tells of manifests that were replaced since they were looked at; waits for disks, and for buckets if these are asked.
    pub(super) fn look_at_manifests(&self, with_buckets: bool, now: UnixSeconds) {
        let watched = |(name, watched): (&RepositoryName, &Watched)| Some((name.clone(), watched.storage.clone()?));
        let watched: Vec<(RepositoryName, Storage)> = self.watched().iter().filter_map(watched).collect();
        for (name, storage) in watched {
            let is_asked = with_buckets || matches!(storage, Storage::Directory(_));
            let Some(seen) = is_asked.then(|| look(&storage)).flatten() else { continue };
            let told = match self.watched().get_mut(&name) {
                Some(watched) if watched.seen.as_ref() != Some(&seen) => {
                    watched.seen = Some(seen);
                    watched.told.clone()
                }
                _ => continue,
            };
            let manifest = match storage.open().and_then(|store| store.read(&NamedFile::Manifest.into())) {
                Ok(manifest) if told.as_ref() != Some(&manifest) && SignedManifest::parse(&manifest).is_ok() => {
                    manifest
                }
                _ => continue,
            };
            if let Err(error) = self.announce(&name, &manifest, now) {
                tracing::warn!(%name, %error, "cannot tell of a new revision");
            }
        }
    }

    /// Has a manifest watched from now on; waits for the disk or the bucket.
    fn listen(self: &Arc<Self>, name: &RepositoryName, storage: Option<Storage>) -> Listening {
        let seen = storage.as_ref().and_then(look);
        let mut watched = self.watched();
        let new = || Watched { listeners: 0, storage, seen, told: None };
        watched.entry(name.clone()).or_insert_with(new).listeners += 1;
        Listening { notices: Arc::clone(self), name: name.clone() }
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<RepositoryName, Watched>> {
        // Every change leaves the map whole.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all streams.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Whether there was a notice of a revision, or of a later one, before; if not, it is noted. Anybody may send an old
    /// notice again, whose signature is as good as ever.
    fn is_repeated(&self, name: &RepositoryName, revision: u64) -> bool {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = noticed.entry(name.clone()).or_default();
        let is_repeated = *newest >= revision;
        *newest = revision.max(*newest);
        is_repeated
    }

    /// Takes a notice; waits for the disk.
    fn take(&self, message: &[u8], now: UnixSeconds) -> Result<()> {
        let (name, manifest) = notice::parse(message)?;
        let signed = SignedManifest::parse(&manifest)?;
        let revision = signed.unverified().revision;
        let replica = Replica::all_readable(&self.root)?.into_iter().find(|replica| replica.name == name);
        let Some(replica) = replica else {
            let not_here = |_| Error::not_found(format!("repository {name}"));
            let place = match RepositoryConfig::load(&self.root, &name) {
                Ok(config) => config.storage,
                Err(_) => StoragePlace::Local(self.root.storage_dir(&name)),
            };
            let storage = place.open().map_err(not_here)?;
            verify(&signed, &name, &*storage, &load_master_keys(&self.root, &name)?, now)?;
            // The publisher's own revision is here when it tells of it.
            let is_old = stored_revision(&*storage)?.is_some_and(|ours| ours > revision);
            return if is_old || self.is_repeated(&name, revision) {
                Ok(())
            } else {
                self.announce(&name, &manifest, now)
            };
        };
        let storage = replica.storage.open()?;
        verify(&signed, &name, &*storage, &replica.master_keys()?, now)?;
        if stored_revision(&*storage)?.is_some_and(|ours| ours >= revision) {
            return Ok(());
        }
        match self.schedule.get() {
            Some(schedule) if schedule.request(&replica.alias, Kind::Snapshot) => Ok(()),
            _ if self.is_repeated(&name, revision) => Ok(()),
            // Somebody else makes the snapshots.
            _ => self.announce(&name, &manifest, now),
        }
    }
}

/// The revision that a storage has; `None` if it has none.
fn stored_revision(storage: &dyn ReadStore) -> Result<Option<u64>> {
    let manifest = crate::replica::stored_manifest(storage)?;
    manifest.map(|bytes| Ok(SignedManifest::parse(&bytes)?.unverified().revision)).transpose()
}

/// Verifies a manifest with what the storage has: whitelist and certificate.
fn verify(
    manifest: &SignedManifest,
    name: &RepositoryName,
    storage: &dyn ReadStore,
    keys: &[PublicKey],
    now: UnixSeconds,
) -> Result<()> {
    let certificate = stored_certificate(storage, manifest)?;
    let whitelist = SignedWhitelist::parse(&storage.read(&NamedFile::Whitelist.into())?)?;
    whitelist.verify(name, keys, now)?.check_certificate(&certificate)?;
    manifest.verify(name, &certificate).map(drop)
}

/// Answers a request for `function`.
pub(super) async fn answer(
    function: &str,
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let method = request.method().clone();
    let Some(notices) = shared.options.notices.clone() else { return error(StatusCode::NOT_FOUND, &method, now) };
    let wanted = match function {
        "publish" => Method::POST,
        "subscribe" => Method::GET,
        _ => return error(StatusCode::NOT_FOUND, &method, now),
    };
    if method != wanted {
        return error(StatusCode::METHOD_NOT_ALLOWED, &method, now);
    }
    let socket = request.extensions().get::<Socket>().cloned();
    let body = tokio::time::timeout(shared.options.request_timeout, read_body(request.into_body(), BODY_MAX)).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(status)) => return error(status, &method, now),
        Err(_timeout) => return error(StatusCode::REQUEST_TIMEOUT, &method, now),
    };
    if wanted == Method::GET {
        return subscribe(&notices, &body, socket, shared, now).await;
    }
    let taken = tokio::task::spawn_blocking(move || notices.take(&body, unix_seconds(now))).await;
    let (status, reason) = match taken {
        Ok(Ok(())) => (StatusCode::OK, None),
        Ok(Err(error)) => (status_of(&error), Some(error.to_string())),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, Some(failure.to_string())),
    };
    let reply = match reason {
        None => serde_json::json!({ "status": "ok" }),
        Some(reason) => {
            tracing::info!(reason, "a notice is not accepted");
            serde_json::json!({ "status": "error", "reason": reason })
        }
    };
    let head = |length, now| respond::content_head(status, "application/json", Some(length), Caching::Never, now);
    text(format!("{reply}\n"), head, &method, now)
}

fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::Malformed { .. } | Error::InvalidInput { .. } => StatusCode::BAD_REQUEST,
        Error::Untrusted { .. } | Error::Expired { .. } | Error::HashMismatch { .. } | Error::MissingObject { .. } => {
            StatusCode::FORBIDDEN
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Begins a stream of events.
async fn subscribe(
    notices: &Arc<Notices>,
    body: &[u8],
    socket: Option<Socket>,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let wanted: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let name = wanted.as_ref().and_then(|wanted| wanted["repository"].as_str()?.parse::<RepositoryName>().ok());
    let Some(name) = name else { return error(StatusCode::BAD_REQUEST, &Method::GET, now) };
    let Ok(permit) = Arc::clone(&notices.subscribers).try_acquire_owned() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, &Method::GET, now);
    };
    let (mut news, mut ended) = (notices.news.subscribe(), notices.ended.subscribe());
    let (watching, about) = (Arc::clone(notices), name.clone());
    let storage = shared.states.storage_of(&about, shared);
    let Ok(listening) = tokio::task::spawn_blocking(move || watching.listen(&about, storage)).await else {
        return error(StatusCode::INTERNAL_SERVER_ERROR, &Method::GET, now);
    };
    let (sender, blocks) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let (_permit, _listening) = (permit, listening);
        let mut left = std::pin::pin!(async {
            match socket {
                Some(socket) => socket.closed().await,
                None => std::future::pending().await,
            }
        });
        loop {
            let event = tokio::select! {
                () = left.as_mut() => return,
                event = tokio::time::timeout(SILENCE_MAX, news.recv()) => event,
                () = sender.closed() => return,
                _ = ended.wait_for(|ended| *ended) => return,
            };
            let message = match event {
                Ok(Ok((about, message))) if about == name => message,
                // Whoever is too slow misses something; the next notice says all there is to know.
                Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => continue,
                Ok(Err(broadcast::error::RecvError::Closed)) => return,
                Err(_timeout) => {
                    drop(sender.try_send(Ok(Bytes::from_static(b"{\"status\":\"timeout\"}\n"))));
                    return;
                }
            };
            if sender.try_send(Ok(Bytes::from(format!("data: {message}\n\n")))).is_err() {
                return;
            }
        }
    });
    let mut head = respond::content_head(StatusCode::OK, "text/event-stream", None, Caching::Never, now);
    head.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.map(|()| ResponseBody::stream(blocks, None))
}
