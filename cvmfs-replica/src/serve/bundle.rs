//! Bundles: many small objects in one answer, see [`cvmfs_core::fetch::bundle`].
//!
//! Nothing but objects of the repository comes out of it, read like single ones. A request costs the memory of a few
//! blocks, however large its bundle is, and only so many are answered at a time: whoever is refused, or leaves out a
//! large object, fetches singly.

use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use cvmfs_core::fetch::bundle::{BundleOffer, CONTENT_TYPE};
use cvmfs_core::hash::ObjectId;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::answer::{ResponseBody, error};
use super::connection::Shared;
use super::file::{self, Disk, SMALL_FILE_MAX};
use super::respond::{self, Caching};
use super::route::{Kind, Place, Resource, object_path};

/// Most names in a request.
const OBJECTS_MAX: usize = 1000;
/// Most bytes of objects in an answer.
const BYTES_MAX: u64 = 16 << 20;
/// Longest body of a request: the names, each with its line end.
const BODY_MAX: usize = OBJECTS_MAX * 52;
/// Bytes that are read before they are sent.
const BLOCK_SIZE: usize = 128 * 1024;

/// The value of the header that offers bundles.
pub(super) fn offer() -> HeaderValue {
    let offer = BundleOffer { path: "api/v1.0/bundle".to_owned(), max_objects: OBJECTS_MAX, max_bytes: BYTES_MAX };
    HeaderValue::try_from(offer.to_string()).expect("an offer is visible ASCII")
}

/// Answers a request for a bundle of `repository`.
pub(super) async fn answer(
    repository: &str,
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let method = request.method().clone();
    if shared.options.max_bundles == 0 {
        return error(StatusCode::NOT_FOUND, &method, now);
    }
    if method != Method::POST {
        let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, &method, now);
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    let Ok(permit) = Arc::clone(&shared.bundles).try_acquire_owned() else {
        let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, &method, now);
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return answer;
    };
    let body = tokio::time::timeout(shared.options.request_timeout, read_body(request.into_body(), BODY_MAX)).await;
    let ids = match body {
        Ok(Ok(body)) => match parse_names(&body) {
            Some(ids) => ids,
            None => return error(StatusCode::BAD_REQUEST, &method, now),
        },
        Ok(Err(status)) => return error(status, &method, now),
        Err(_timeout) => return error(StatusCode::REQUEST_TIMEOUT, &method, now),
    };
    let place = Place::Repository(repository.to_owned());
    let (directory, opened) = (Arc::clone(shared), place.clone());
    let found = tokio::task::spawn_blocking(move || directory.repositories.open(&opened, Disk::Wait, Instant::now()));
    if !matches!(found.await, Ok(Ok(_))) {
        return error(StatusCode::NOT_FOUND, &method, now);
    }
    let (sender, blocks) = mpsc::channel(2);
    tokio::spawn(send(Bundle { shared: Arc::clone(shared), place, ids: ids.into_iter(), bytes: 0 }, sender, permit));
    let head = respond::content_head(StatusCode::OK, CONTENT_TYPE, None, Caching::Never, now);
    head.map(|()| ResponseBody::stream(blocks, None))
}

/// Receives the body of a request, unless it is too long.
pub(super) async fn read_body(body: Incoming, max: usize) -> Result<Vec<u8>, StatusCode> {
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let data = frame.into_data().unwrap_or_default();
        if bytes.len() + data.len() > max {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Reads object names, one a line; `None` if there is anything else, or too much.
fn parse_names(body: &[u8]) -> Option<Vec<ObjectId>> {
    let lines = str::from_utf8(body).ok()?.lines();
    let ids: Vec<_> = lines.map(|line| line.parse().ok()).collect::<Option<_>>()?;
    (1..=OBJECTS_MAX).contains(&ids.len()).then_some(ids)
}

/// A bundle that is being put together.
struct Bundle {
    shared: Arc<Shared>,
    place: Place,
    ids: std::vec::IntoIter<ObjectId>,
    /// Bytes of objects so far.
    bytes: u64,
}

/// Reads block by block, on threads that may wait for the disk, as the client takes them.
async fn send(mut bundle: Bundle, blocks: mpsc::Sender<io::Result<Bytes>>, _permit: OwnedSemaphorePermit) {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let block = bundle.next_block();
            (bundle, block)
        });
        let Ok((rest, block)) = read.await else { return };
        bundle = rest;
        let block = match block {
            Ok(block) if block.is_empty() => return,
            block => block,
        };
        let failed = block.is_err();
        // Without a receiver the client is gone.
        if blocks.send(block).await.is_err() || failed {
            return;
        }
    }
}

impl Bundle {
    /// Reads the next objects; empty at the end.
    fn next_block(&mut self) -> io::Result<Bytes> {
        let mut block = BytesMut::with_capacity(BLOCK_SIZE);
        while block.len() < BLOCK_SIZE
            && let Some(id) = self.ids.next()
        {
            match self.read(id) {
                Ok(Some(content)) => {
                    block.put_slice(format!("{id} {}\n", content.len()).as_bytes());
                    block.put_slice(&content);
                }
                Ok(None) => block.put_slice(format!("{id} +\n").as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    block.put_slice(format!("{id} -\n").as_bytes());
                }
                Err(error) => {
                    tracing::error!(%id, %error, "cannot read an object");
                    return Err(error);
                }
            }
        }
        Ok(block.freeze())
    }

    /// Reads an object; `None` if it is too large for a bundle, or for this one.
    fn read(&mut self, id: ObjectId) -> io::Result<Option<Bytes>> {
        let now = Instant::now();
        if let Place::Repository(name) = &self.place
            && let Some(cached) = self.shared.objects.get(name, &id, now)
        {
            return Ok(self.count(cached.content.len() as u64).then_some(cached.content));
        }
        let directory = self.shared.repositories.open(&self.place, Disk::Wait, now)?;
        let resource = Resource { place: self.place.clone(), path: object_path(id), kind: Kind::Object(id) };
        let (file, facts) = file::open(&directory, &resource, Disk::Wait)?;
        if facts.size > SMALL_FILE_MAX || !self.count(facts.size) {
            return Ok(None);
        }
        file::read_part(&file, 0, facts.size, Disk::Wait).map(Some)
    }

    /// Counts an object of `size` bytes, if there is room for it.
    fn count(&mut self, size: u64) -> bool {
        let fits = self.bytes + size <= BYTES_MAX;
        if fits {
            self.bytes += size;
        }
        fits
    }
}
