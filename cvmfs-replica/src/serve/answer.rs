//! One request in, one response out.
//!
//! 1. Refuse what is too long or not a plain read.
//! 2. Find what the path names ([`super::route`]).
//! 3. Open the file and decide what of it to send ([`super::file`], [`super::respond`]).
//! 4. Read it, if it is small; otherwise prepare to stream it.
//!
//! Steps 3 and 4 are tried with what the system has in memory; failing that, they run on a thread that may wait
//! for the disk.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use cvmfs_core::fetch::bundle::OFFER_HEADER;
use cvmfs_core::hash::{Algorithm, ObjectKind};
use cvmfs_core::storage::NamedFile;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc;

use super::access::Record;
use super::api;
use super::bucket;
use super::bundle;
use super::cache::CachedObject;
use super::connection::Shared;
use super::file::{self, Disk, FileBody, SMALL_FILE_MAX};
use super::health;
use super::metrics::{self, Label};
use super::repositories::MANIFEST;
use super::respond::{self, Caching, Facts, Representation, Selection};
use super::route::{Kind, Place, Resource, Target, route};
use super::{info, pages, pull};

/// The body of a response.
#[derive(Debug)]
pub(super) struct ResponseBody {
    content: Content,
    /// Written to the access log when the response is done with, one way or the other.
    record: Option<Record>,
    /// Who counts the bytes.
    meter: Option<Arc<Shared>>,
}

/// Where the bytes of a body come from.
#[derive(Debug)]
pub(super) enum Content {
    /// Memory.
    Bytes(Bytes),
    /// A large file.
    File(FileBody),
    /// A thread that makes them, block by block, with the number of bytes still to come if that is known.
    Stream(Stream),
}

/// Blocks from a thread.
#[derive(Debug)]
pub(super) struct Stream {
    /// Ends with the body; an error breaks the connection.
    pub(super) blocks: mpsc::Receiver<io::Result<Bytes>>,
    /// Bytes still to come, if known.
    pub(super) remaining: Option<u64>,
}

impl ResponseBody {
    pub(super) fn new(content: Content) -> Self {
        Self { content, record: None, meter: None }
    }

    /// Has its bytes counted.
    pub(super) fn metered(mut self, shared: Arc<Shared>) -> Self {
        self.meter = Some(shared);
        self
    }

    /// A body of blocks from a thread; without size it is sent in chunks.
    pub(super) fn stream(blocks: mpsc::Receiver<io::Result<Bytes>>, size: Option<u64>) -> Self {
        Self::new(Content::Stream(Stream { blocks, remaining: size }))
    }

    /// Takes the content out, for sending it another way.
    pub(super) fn take_content(&mut self) -> Content {
        std::mem::replace(&mut self.content, Content::Bytes(Bytes::new()))
    }

    /// Notes that bytes are handed to the connection.
    pub(super) fn count(&mut self, bytes: usize) {
        if let Some(shared) = &self.meter {
            shared.metrics.add_bytes(bytes);
        }
        if let Some(record) = &mut self.record {
            record.add(bytes);
        }
    }

    /// A body in memory.
    pub(super) fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Content::Bytes(bytes.into()))
    }

    /// Has the response logged.
    pub(super) fn logged(mut self, record: Record) -> Self {
        self.record = Some(record);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let block = match &mut self.content {
            Content::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Bytes(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Content::File(file) => file.poll_block(context),
            Content::Stream(stream) => stream.poll_block(context),
        };
        if let Poll::Ready(Some(Ok(block))) = &block {
            let size = block.len();
            self.count(size);
        }
        block.map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::File(file) => SizeHint::with_exact(file.remaining()),
            Content::Stream(stream) => stream.remaining.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Stream {
    /// Waits for the next block; fewer bytes than announced are an error.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        std::future::poll_fn(|context| self.poll_block(context)).await
    }

    fn poll_block(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let block = std::task::ready!(self.blocks.poll_recv(context));
        match (&block, &mut self.remaining) {
            (Some(Ok(block)), Some(remaining)) => *remaining = remaining.saturating_sub(block.len() as u64),
            (None, Some(remaining)) if *remaining > 0 => {
                *remaining = 0;
                return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
            }
            _ => {}
        }
        Poll::Ready(block)
    }
}

/// Answers `request`; every failure is an answer, too.
pub(super) async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    shared: &Arc<Shared>,
) -> Response<ResponseBody> {
    let now = SystemTime::now();
    // Files have no query; it is ignored, as every web server does.
    let uri_length = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let target = if uri_length > shared.options.max_uri_length { None } else { route(request.uri().path()) };
    let label = Label::of(target.as_ref());
    let response = match target {
        None if uri_length > shared.options.max_uri_length => error(StatusCode::URI_TOO_LONG, request.method(), now),
        Some(Target::Api(call)) => api::answer(call, request, client, shared, now).await,
        // Nobody reads the body of another request. hyper drops what has arrived with the head and closes if there is
        // more.
        target => answer_read(&request.map(drop), target, shared, now).await,
    };
    shared.metrics.count(label, response.status());
    response
}

/// Answers a plain request for what [`Target::File`] or [`Target::Health`] name.
pub(super) async fn plain_answer(
    request: &Request<()>,
    target: Target,
    shared: &Arc<Shared>,
) -> Response<ResponseBody> {
    let label = Label::of(Some(&target));
    let response = answer_read(request, Some(target), shared, SystemTime::now()).await;
    shared.metrics.count(label, response.status());
    response
}

/// Answers a request that can only read.
async fn answer_read(
    request: &Request<()>,
    target: Option<Target>,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let method = request.method();
    if method != Method::GET && method != Method::HEAD {
        return error(StatusCode::METHOD_NOT_ALLOWED, method, now);
    }
    match target {
        Some(Target::File(resource)) => file_answer(request, resource, shared, now).await,
        Some(Target::Health(repository)) => health::answer(repository.as_deref(), method, shared, now).await,
        Some(Target::Metrics) => match metrics::render(shared).await {
            Ok(page) => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                let head = |length, now| respond::content_head(StatusCode::OK, kind, Some(length), Caching::Never, now);
                text(page, head, method, now)
            }
            Err(failure) => {
                tracing::error!(%failure, "cannot look at the repositories");
                error(StatusCode::INTERNAL_SERVER_ERROR, method, now)
            }
        },
        // Pages take threads and memory, and some servers are for machines only.
        Some(Target::Page(page)) if shared.librarian.is_some() => pages::answer(page, request, shared, now).await,
        None | Some(Target::Page(_) | Target::Api(_)) => error(StatusCode::NOT_FOUND, method, now),
    }
}

/// Answers a request for a file from memory, or else on a thread that may wait for the disk.
async fn file_answer(
    request: &Request<()>,
    resource: Resource,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let asked = Instant::now();
    // A file of earlier days would miss what our own tools have added or removed since.
    if resource.path == info::REPOSITORIES
        && shared.states.configuration().is_any()
        && let Some(response) = instead(request, &resource, shared, asked, now).await
    {
        return response;
    }
    if let (Place::Repository(repository), Kind::Object(id)) = (&resource.place, resource.kind)
        && let Some(CachedObject { content, facts, .. }) = shared.objects.get(repository, &id, asked)
    {
        return respond_with(request, &resource, facts, now, |start, end| Ok(part_of(&content, start, end)))
            .unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, request.method(), now));
    }
    if let Place::Repository(repository) = &resource.place
        && let Some(bucket) = shared.repositories.bucket(repository)
    {
        return match bucket::answer(request, &resource, &bucket, shared, asked, now).await {
            Ok(response) => response,
            Err(failure) if failure.is_not_found() => match instead(request, &resource, shared, asked, now).await {
                Some(response) => response,
                None => error(StatusCode::NOT_FOUND, request.method(), now),
            },
            Err(failure) => {
                tracing::error!(path = %request.uri().path(), %failure, "cannot read from a bucket");
                error(StatusCode::BAD_GATEWAY, request.method(), now)
            }
        };
    }
    if let Ok(response) = try_file_response(request, &resource, shared, asked, now, Disk::CachedOnly) {
        return response;
    }
    let (working, asked_for, wanted) = (Arc::clone(shared), request.clone(), resource.clone());
    let work = move || try_file_response(&asked_for, &wanted, &working, asked, now, Disk::Wait);
    let failure = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(response)) => return response,
        Ok(Err(failure)) => failure,
        Err(failure) => io::Error::other(failure),
    };
    if failure.kind() != io::ErrorKind::NotFound {
        // Clients take any 5xx as "this host is in trouble" and ask the next one. (A 403 they would blame
        // on the proxy.)
        tracing::error!(path = %request.uri().path(), %failure, "cannot read a file");
        return error(StatusCode::INTERNAL_SERVER_ERROR, request.method(), now);
    }
    match instead(request, &resource, shared, asked, now).await {
        Some(response) => response,
        None => error(StatusCode::NOT_FOUND, request.method(), now),
    }
}

/// What to answer for a file that is not there: documents that can be made, and what a source has.
async fn instead(
    request: &Request<()>,
    resource: &Resource,
    shared: &Arc<Shared>,
    asked: Instant,
    now: SystemTime,
) -> Option<Response<ResponseBody>> {
    let name = match &resource.place {
        Place::Info => {
            let document = match resource.path.as_str() {
                "v1/meta.json" => cvmfs_core::info::meta_template(),
                _ => info::repositories_json(shared, &shared.states.all(shared).await.ok()?),
            };
            return Some(made(request, resource, &document.into(), now));
        }
        Place::Repository(name) => name,
    };
    let source = shared.states.source_to_pull_from(name);
    match resource.kind {
        // Monitors want the file, and without a snapshot, check or garbage collection it has nothing to say.
        Kind::Named if resource.path == NamedFile::Status.name() => {
            let is_served = source.is_some() || shared.states.one(name, shared).await.is_ok();
            is_served.then(|| made(request, resource, &Bytes::from_static(b"{}\n"), now))
        }
        Kind::Named => {
            let file =
                [NamedFile::Manifest, NamedFile::Whitelist].into_iter().find(|file| file.name() == resource.path)?;
            let content = shared.puller.document(&source?, file).await?;
            Some(made(request, resource, &content, now))
        }
        Kind::Object(id) => {
            let source = source?;
            let waiting = pull::waiting_catalogs(&source);
            let mut was_fetched = false;
            loop {
                let (working, asked_for, wanted) = (Arc::clone(shared), request.clone(), resource.clone());
                let waiting = (id.kind == ObjectKind::Catalog).then(|| waiting.clone());
                let look = move || match waiting {
                    // A catalog may be complete and in the storage by now.
                    Some(waiting) => {
                        try_file_response(&asked_for, &wanted, &working, asked, now, Disk::Wait).or_else(|_| {
                            let directory = file::open_directory(&waiting, Disk::Wait)?;
                            response_from(&directory, &asked_for, &wanted, &working, asked, now, Disk::Wait)
                        })
                    }
                    None => try_file_response(&asked_for, &wanted, &working, asked, now, Disk::Wait),
                };
                match tokio::task::spawn_blocking(look).await {
                    Ok(Ok(response)) => return Some(response),
                    _ if was_fetched => return None,
                    _ => {}
                }
                if !shared.puller.fetch(shared, name, &source, id).await {
                    return None;
                }
                was_fetched = true;
            }
        }
        Kind::Alternative(_) | Kind::Info | Kind::Statistics => None,
    }
}

/// Answers with content that has no file; it may change at any time.
fn made(request: &Request<()>, resource: &Resource, content: &Bytes, now: SystemTime) -> Response<ResponseBody> {
    let hash = Algorithm::Sha1.hash(content);
    let representation = Representation::made(resource.kind, content.len() as u64, &hash.to_string());
    respond_as(request, &representation, now, |start, end| Ok(part_of(content, start, end)))
        .unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, request.method(), now))
}

fn try_file_response(
    request: &Request<()>,
    resource: &Resource,
    shared: &Shared,
    asked: Instant,
    now: SystemTime,
    disk: Disk,
) -> io::Result<Response<ResponseBody>> {
    let directory = shared.repositories.open(&resource.place, disk, asked)?;
    response_from(&directory, request, resource, shared, asked, now, disk)
}

/// Answers with a file below a directory.
fn response_from(
    directory: &OwnedFd,
    request: &Request<()>,
    resource: &Resource,
    shared: &Shared,
    asked: Instant,
    now: SystemTime,
    disk: Disk,
) -> io::Result<Response<ResponseBody>> {
    let (file, facts) = file::open(directory, resource, disk)?;
    let mut response = respond_with(request, resource, facts, now, |start, end| {
        if end - start > SMALL_FILE_MAX {
            return Ok(Content::File(FileBody::new(file, start, end)));
        }
        let content = file::read_part(&file, start, end, disk)?;
        if let (Place::Repository(repository), Kind::Object(id), true) =
            (&resource.place, resource.kind, end - start == facts.size)
        {
            shared.objects.put(repository, &id, &content, facts, asked);
        }
        Ok(Content::Bytes(content))
    })?;
    if resource.path == MANIFEST && resource.kind == Kind::Named && shared.options.max_bundles > 0 {
        response.headers_mut().insert(OFFER_HEADER, bundle::offer());
    }
    Ok(response)
}

/// Decides what of a file to send, and gets it from `content`.
fn respond_with(
    request: &Request<()>,
    resource: &Resource,
    facts: Facts,
    now: SystemTime,
    content: impl FnOnce(u64, u64) -> io::Result<Content>,
) -> io::Result<Response<ResponseBody>> {
    respond_as(request, &Representation::new(resource.kind, &resource.path, facts, now), now, content)
}

fn respond_as(
    request: &Request<()>,
    representation: &Representation,
    now: SystemTime,
    content: impl FnOnce(u64, u64) -> io::Result<Content>,
) -> io::Result<Response<ResponseBody>> {
    let selection = respond::select(request.method(), request.headers(), representation);
    let head = respond::file_head(selection, representation, now);
    let (start, end) = match selection {
        _ if request.method() == Method::HEAD => (0, 0),
        Selection::NotModified | Selection::Unsatisfiable => (0, 0),
        Selection::Whole => (0, representation.size()),
        Selection::Part { start, end } => (start, end),
    };
    let content = if start == end { Content::Bytes(Bytes::new()) } else { content(start, end)? };
    Ok(head.map(|()| ResponseBody::new(content)))
}

/// The bytes of a whole file in memory from `start` up to `end`.
pub(super) fn part_of(content: &Bytes, start: u64, end: u64) -> Content {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    Content::Bytes(content.slice(at(start)..at(end)))
}

/// An error in plain text.
pub(super) fn error(status: StatusCode, method: &Method, now: SystemTime) -> Response<ResponseBody> {
    let message = format!("{}\n", status.canonical_reason().unwrap_or("error"));
    text(message, |length, now| respond::error_head(status, length, now), method, now)
}

/// A short text, which HEAD leaves out.
pub(super) fn text(
    message: impl Into<Bytes>,
    head: impl FnOnce(u64, SystemTime) -> Response<()>,
    method: &Method,
    now: SystemTime,
) -> Response<ResponseBody> {
    let message = message.into();
    let head = head(message.len() as u64, now);
    head.map(|()| ResponseBody::bytes(if method == Method::HEAD { Bytes::new() } else { message }))
}
