//! What each operation of the store asks the service for.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    GetOptions, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, UpdateVersion,
};
use tempfile::SpooledTempFile;

use super::download::Transfer;
use super::service::{AnsweredAt, Failed};
use super::uploads::Uploads;
use super::{PART_SIZE, S3Config};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{ObjectId, ObjectKind};
use crate::storage::{Key, Listed, NamedFile};

/// Stored bytes up to which an object is sent before it is known whether it is there: most are not, and to look takes a
/// request of its own.
const SMALL_OBJECT: u64 = 64 << 10;
/// Most parts of an object.
const MAX_PARTS: u64 = 10_000;
/// Stored bytes above which S3 does not copy an object.
const MAX_COPY: u64 = 5 << 30;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: S3Config,
    pub(super) bucket: AmazonS3,
    pub(super) uploads: Uploads,
    /// Objects that were there already, with their sizes: they must be there still when all is flushed.
    pub(super) reused: Mutex<HashMap<ObjectId, u64>>,
}

/// What a look at an object showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) size: u64,
    modified: Duration,
    /// The time of the answer.
    now: Option<Duration>,
}

/// What is to be sent.
pub(super) enum Content {
    Memory(Bytes),
    File(SpooledTempFile),
}

impl Inner {
    pub(super) fn path(&self, key: &Key) -> Result<Path> {
        parse_key(&format!("{}/{key}", self.config.alias))
    }

    pub(super) fn describe(&self, key: &Key) -> String {
        format!("s3://{}/{}/{key}", self.config.bucket, self.config.alias)
    }

    pub(super) fn error(&self, key: &Key, error: &object_store::Error) -> Error {
        if matches!(error, object_store::Error::NotFound { .. }) {
            return Error::not_found(self.describe(key));
        }
        of_library(self.describe(key), error)
    }

    pub(super) async fn look(&self, key: &Key) -> Result<Option<Found>> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.bucket.get_opts(&self.path(key)?, options).await {
            Ok(found) => {
                let now = found.extensions.get::<AnsweredAt>().map(|answered| answered.0);
                Ok(Some(Found { size: found.meta.size, modified: modified(&found.meta), now }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(key, &error)),
        }
    }

    /// Looks for those of which no size is known.
    pub(super) async fn sizes(&self, ids: &[ObjectId], known: Vec<Option<u64>>) -> Result<Vec<Option<u64>>> {
        let look = |(id, known): (&ObjectId, Option<u64>)| {
            let key = Key::Object(*id);
            async move {
                match known {
                    Some(size) => Ok(Some(size)),
                    None => Ok(self.look(&key).await?.map(|found| found.size)),
                }
            }
        };
        stream::iter(ids.iter().zip(known).map(look)).buffered(self.config.max_requests).try_collect().await
    }

    /// Looks whether a whole object is in place; if so, makes it young.
    pub(super) async fn reuse(&self, id: ObjectId, size: u64) -> Result<bool> {
        let key = Key::Object(id);
        let found = match self.look(&key).await? {
            Some(found) if found.size == size => found,
            Some(found) => {
                let path = self.describe(&key);
                tracing::warn!(path, found = found.size, expected = size, "replacing a damaged object");
                return Ok(false);
            }
            None => return Ok(false),
        };
        if found.now.is_none_or(|now| found.modified < now) {
            if size > MAX_COPY {
                return Ok(false);
            }
            let path = self.path(&key)?;
            match self.bucket.copy(&path, &path).await {
                Ok(()) => {}
                // Collected between the two requests.
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(self.error(&key, &error)),
            }
        }
        self.reused.lock().unwrap_or_else(PoisonError::into_inner).insert(id, size);
        Ok(true)
    }

    pub(super) async fn upload(&self, id: ObjectId, size: u64, content: Content) -> Result<()> {
        let key = Key::Object(id);
        let path = self.path(&key)?;
        if self.config.peek {
            if let Content::Memory(bytes) = &content
                && self.config.conditional_put
                && size <= SMALL_OBJECT
            {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match self.bucket.put_opts(&path, PutPayload::from_bytes(bytes.clone()), options).await {
                    Ok(_) => return Ok(()),
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
                    Err(error) => return Err(self.error(&key, &error)),
                }
            }
            if self.reuse(id, size).await? {
                return Ok(());
            }
        }
        match content {
            Content::Memory(bytes) => self
                .bucket
                .put(&path, PutPayload::from_bytes(bytes))
                .await
                .map(drop)
                .map_err(|error| self.error(&key, &error)),
            Content::File(file) => self.upload_parts(&key, &path, size, file).await,
        }
    }

    async fn upload_parts(&self, key: &Key, path: &Path, size: u64, mut file: SpooledTempFile) -> Result<()> {
        let part_size = (PART_SIZE as u64).max(size.div_ceil(MAX_PARTS));
        let failed = |error: object_store::Error| self.error(key, &error);
        let mut upload = self.bucket.put_multipart_opts(path, PutMultipartOptions::default()).await.map_err(failed)?;
        let outcome = async {
            loop {
                let mut part = Vec::new();
                Read::by_ref(&mut file).take(part_size).read_to_end(&mut part).at(&self.config.temporary)?;
                if part.is_empty() {
                    break;
                }
                upload.put_part(PutPayload::from(part)).await.map_err(failed)?;
            }
            upload.complete().await.map(drop).map_err(failed)
        };
        let outcome = outcome.await;
        if outcome.is_err() {
            // The parts cost money until somebody removes them; more than to try cannot be done now.
            let _ = upload.abort().await;
        }
        outcome
    }

    /// What is in place under a fixed name, with the tag that conditions refer to.
    async fn current(&self, key: &Key) -> Result<Option<(Bytes, UpdateVersion)>> {
        let mut transfer = match Transfer::begin(self, key, None).await {
            Ok(transfer) => transfer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        while let Some(block) = transfer.next().await? {
            content.extend_from_slice(&block);
        }
        Ok(Some((content.into(), UpdateVersion { e_tag: transfer.e_tag, version: None })))
    }

    pub(super) async fn replace(
        &self,
        key: &Key,
        bytes: &Bytes,
        is_expected: &(dyn Fn(Option<&[u8]>) -> bool + Sync),
    ) -> Result<bool> {
        let current = self.current(key).await?;
        if !is_expected(current.as_ref().map(|(bytes, _)| &bytes[..])) {
            return Ok(false);
        }
        let mode = match current {
            _ if !self.config.conditional_put => PutMode::Overwrite,
            Some((_, version)) => PutMode::Update(version),
            None => PutMode::Create,
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.bucket.put_opts(&self.path(key)?, PutPayload::from_bytes(bytes.clone()), options).await {
            Ok(_) => Ok(true),
            // Unless it was this very request that was carried out before, and its answer was lost.
            Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => {
                Ok(self.current(key).await?.is_some_and(|(current, _)| current == bytes))
            }
            Err(error) => Err(self.error(key, &error)),
        }
    }

    pub(super) async fn remove(&self, key: &Key) -> Result<()> {
        match self.bucket.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error(key, &error)),
        }
    }

    /// The time by the clock of the service.
    pub(super) async fn clock(&self) -> Result<Duration> {
        // Nothing is there: an answer costs little, and is never an error.
        let nowhere = parse_key(&format!("{}/data/clock", self.config.alias))?;
        let what = || format!("bucket {}", self.config.bucket);
        let answer = self.bucket.list_with_delimiter(Some(&nowhere)).await;
        let answer = answer.map_err(|error| of_library(what(), &error))?;
        let time = answer.extensions.get::<AnsweredAt>().map(|answered| answered.0);
        time.ok_or_else(|| Error::malformed(what(), "answers without a usable date"))
    }

    /// The objects in a directory of the usual layout.
    pub(super) async fn list(&self, first: u8) -> Result<Vec<Listed>> {
        let prefix = parse_key(&format!("{}/data/{first:02x}", self.config.alias))?;
        let mut found = self.bucket.list(Some(&prefix));
        let mut listed = Vec::new();
        while let Some(object) = found.next().await {
            let object = object.map_err(|error| of_library(format!("{}/{prefix}", self.config.bucket), &error))?;
            let Some(rest) = object.location.filename() else { continue };
            if let Ok(id) = format!("{first:02x}{rest}").parse() {
                listed.push(Listed { id, stored_size: object.size, modified: modified(&object) });
            }
        }
        Ok(listed)
    }

    /// Removes those that are old, and returns the others.
    pub(super) async fn prune(&self, objects: &[ObjectId], older_than: Duration) -> Result<Vec<ObjectId>> {
        let look = |id: ObjectId| async move { Ok::<_, Error>((id, self.look(&Key::Object(id)).await?)) };
        let mut looks = stream::iter(objects.iter().copied().map(look)).buffer_unordered(self.config.max_requests);
        let (mut kept, mut old) = (Vec::new(), Vec::new());
        while let Some(looked) = looks.next().await {
            let (id, found) = looked?;
            if found.is_some_and(|found| found.modified >= older_than) {
                kept.push(id);
                continue;
            }
            old.push(self.path(&Key::Object(id))?);
            if !matches!(id.kind, ObjectKind::File | ObjectKind::Chunk) {
                old.push(self.path(&Key::Shortcut(id))?);
            }
        }
        self.delete(stream::iter(old.into_iter().map(Ok)).boxed(), &mut || Ok(())).await?;
        kept.sort_by_key(|id| objects.iter().position(|object| object == id));
        Ok(kept)
    }

    pub(super) async fn remove_all(&self, each: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()> {
        // From here on nobody expects the rest to be there.
        self.remove(&Key::Named(NamedFile::Manifest)).await?;
        let prefix = parse_key(&self.config.alias)?;
        self.delete(self.bucket.list(Some(&prefix)).map_ok(|object| object.location).boxed(), each).await
    }

    /// Removes many at a time; fine for what does not exist. `each` is called for each that has gone.
    async fn delete(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
        each: &mut (dyn FnMut() -> Result<()> + Send),
    ) -> Result<()> {
        let mut removed = self.bucket.delete_stream(paths);
        while let Some(outcome) = removed.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => each()?,
                Err(error) => return Err(of_library(format!("bucket {}", self.config.bucket), &error)),
            }
        }
        Ok(())
    }

    /// Looks for the objects that were there already.
    pub(super) async fn check_reused(&self) -> Result<()> {
        let reused = std::mem::take(&mut *self.reused.lock().unwrap_or_else(PoisonError::into_inner));
        let look = |(id, size)| async move {
            let found = self.look(&Key::Object(id)).await?;
            Ok::<_, Error>((id, found.is_some_and(|found| found.size == size)))
        };
        let mut looks = stream::iter(reused.into_iter().map(look)).buffer_unordered(self.config.max_requests);
        while let Some(looked) = looks.next().await {
            let (id, is_there) = looked?;
            if !is_there {
                let what = self.describe(&Key::Object(id));
                return Err(Error::conflict(what, "it was there, and was collected meanwhile; run again"));
            }
        }
        Ok(())
    }
}

/// When an object was put or made young, in whole seconds.
pub(super) fn modified(meta: &ObjectMeta) -> Duration {
    Duration::from_secs(u64::try_from(meta.last_modified.timestamp()).unwrap_or(0))
}

fn parse_key(path: &str) -> Result<Path> {
    Path::parse(path).map_err(|error| Error::invalid(format!("key {path:?}"), error.to_string()))
}

/// An error of the library as one of ours: what our service said, if it did.
pub(super) fn of_library(what: String, error: &object_store::Error) -> Error {
    let causes = std::iter::successors(error.source(), |cause| StdError::source(*cause));
    for cause in causes {
        if let Some(failed) = cause.downcast_ref::<Failed>() {
            let reason = failed.reason.clone();
            return if failed.may_pass { Error::Unavailable { what, reason } } else { Error::Refused { what, reason } };
        }
    }
    Error::Unavailable { what, reason: error.to_string() }
}
