//! Repositories in buckets of S3: what clients ask for is streamed from there, so the bucket need not be public.
//!
//! An object costs one request to the bucket, or none while it is in memory; a part of one, or a look at it, one more.
//! Small documents are kept for a second, because all clients ask for the same.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::storage::{Key, NamedFile, ReadStore, S3Download, S3Facts, S3Store, StoragePlace};
use hyper::header;
use hyper::{Method, Request, Response};

use super::answer::{Content, ResponseBody, Stream, part_of};
use super::connection::Shared;
use super::file::SMALL_FILE_MAX;
use super::respond::{self, Facts, Representation, Selection};
use super::route::{Kind, Place, Resource};

/// How long a document is believed to be the one in the bucket.
const DOCUMENT_KEPT: Duration = Duration::from_secs(1);

/// The storage of one repository in a bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    place: StoragePlace,
    store: Arc<S3Store>,
    documents: Mutex<HashMap<NamedFile, (Instant, S3Facts, Bytes)>>,
}

impl PartialEq for Bucket {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Bucket {}

impl Hash for Bucket {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.place.hash(state);
    }
}

impl Bucket {
    pub(super) fn new(place: StoragePlace, store: S3Store) -> Self {
        Self { place, store: Arc::new(store), documents: Mutex::default() }
    }

    /// For whoever can wait.
    pub(super) fn store(&self) -> Arc<dyn ReadStore> {
        Arc::clone(&self.store) as _
    }

    fn document(&self, key: &Key, now: Instant) -> Option<(S3Facts, Bytes)> {
        let Key::Named(file) = key else { return None };
        let documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let (read, facts, content) = documents.get(file)?;
        (now.duration_since(*read) < DOCUMENT_KEPT).then(|| (facts.clone(), content.clone()))
    }
}

/// Answers a request for something in a bucket.
///
/// # Errors
/// `NotFound`; `Unavailable` and `Refused` by the bucket.
pub(super) async fn answer(
    request: &Request<()>,
    resource: &Resource,
    bucket: &Bucket,
    shared: &Shared,
    asked: Instant,
    now: SystemTime,
) -> Result<Response<ResponseBody>> {
    let missing = || Error::not_found(resource.path.clone());
    let key = key_of(resource).ok_or_else(missing)?;
    let respond = |facts: &S3Facts| {
        let file = representation(resource, facts, now);
        let selection = respond::select(request.method(), request.headers(), &file);
        (selection, respond::file_head(selection, &file, now))
    };
    if let Some((facts, content)) = bucket.document(&key, asked) {
        let (selection, head) = respond(&facts);
        let content = match selection {
            Selection::Whole if request.method() == Method::GET => Content::Bytes(content),
            Selection::Part { start, end } => part_of(&content, start, end),
            _ => Content::Bytes(Bytes::new()),
        };
        return Ok(head.map(|()| ResponseBody::new(content)));
    }
    if request.method() == Method::HEAD || request.headers().contains_key(header::RANGE) {
        let facts = bucket.store.facts(key).await?.ok_or_else(missing)?;
        let (selection, head) = respond(&facts);
        let content = match selection {
            Selection::Part { start, end } => Some({
                let S3Download { facts: of_part, blocks } = bucket.store.download(key, Some(start..end)).await?;
                if of_part.version != facts.version {
                    return Err(replaced(resource));
                }
                Content::Stream(Stream { blocks, remaining: Some(end - start) })
            }),
            // It may be replaced meanwhile: head and body must be of one answer.
            Selection::Whole if request.method() == Method::GET => None,
            _ => Some(Content::Bytes(Bytes::new())),
        };
        if let Some(content) = content {
            return Ok(head.map(|()| ResponseBody::new(content)));
        }
    }
    let download = bucket.store.download(key, None).await?;
    let (selection, head) = respond(&download.facts);
    let content = match selection {
        Selection::Whole if download.facts.size <= SMALL_FILE_MAX => {
            let facts = download.facts.clone();
            let content = whole(download).await?;
            keep(resource, key, bucket, shared, &facts, &content, asked);
            Content::Bytes(content)
        }
        Selection::Whole => stream(download),
        Selection::Part { .. } => return Err(replaced(resource)),
        _ => Content::Bytes(Bytes::new()),
    };
    Ok(head.map(|()| ResponseBody::new(content)))
}

fn replaced(resource: &Resource) -> Error {
    let reason = "it was replaced between two requests".to_owned();
    Error::Unavailable { what: resource.path.clone(), reason }
}

/// What a path names in the bucket. Statistics are not looked for there.
fn key_of(resource: &Resource) -> Option<Key> {
    match resource.kind {
        Kind::Object(id) => Some(Key::Object(id)),
        Kind::Alternative(id) => Some(Key::Shortcut(id)),
        Kind::Named => NamedFile::ALL.into_iter().find(|file| file.name() == resource.path).map(Key::Named),
        Kind::Info | Kind::Statistics => None,
    }
}

fn representation(resource: &Resource, facts: &S3Facts, now: SystemTime) -> Representation {
    match resource.kind {
        // Its times have whole seconds, in which a document may be replaced twice.
        Kind::Named => Representation::made(resource.kind, facts.size, &facts.version),
        kind => Representation::new(kind, &resource.path, of_object(facts), now),
    }
}

fn of_object(facts: &S3Facts) -> Facts {
    Facts { size: facts.size, modified: SystemTime::UNIX_EPOCH + facts.modified, inode: 0 }
}

fn stream(download: S3Download) -> Content {
    Content::Stream(Stream { blocks: download.blocks, remaining: Some(download.facts.size) })
}

/// All of something small.
async fn whole(mut download: S3Download) -> Result<Bytes> {
    let mut content = Vec::new();
    while let Some(block) = download.blocks.recv().await {
        let block =
            block.map_err(|error| Error::Unavailable { what: "bucket".to_owned(), reason: error.to_string() })?;
        content.extend_from_slice(&block);
    }
    if content.len() as u64 == download.facts.size {
        return Ok(content.into());
    }
    let reason = format!("{} of {} bytes came", content.len(), download.facts.size);
    Err(Error::Unavailable { what: "bucket".to_owned(), reason })
}

fn keep(
    resource: &Resource,
    key: Key,
    bucket: &Bucket,
    shared: &Shared,
    facts: &S3Facts,
    content: &Bytes,
    asked: Instant,
) {
    match (&resource.place, key) {
        (Place::Repository(name), Key::Object(id)) => {
            shared.objects.put(name, &id, content, of_object(facts), asked);
        }
        (_, Key::Named(file)) => {
            let mut documents = bucket.documents.lock().unwrap_or_else(PoisonError::into_inner);
            documents.insert(file, (asked, facts.clone(), content.clone()));
        }
        _ => {}
    }
}
