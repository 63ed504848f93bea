//! A repository in a bucket of S3 or of a service that speaks its protocol, in the reference's layout.
//!
//! ```text
//! put, finish ─► Uploads ─► PUT If-None-Match, of small objects            many at a time; flush waits and tells
//!                 (bounded)    └─ there? ─► HEAD ─► copy to itself, or PUT    the first error
//! read, open ──► GET        list ─► LIST       prune ─► HEAD, then DELETE of many       write_if ─► GET, PUT If-Match
//! ```
//!
//! Keys are `<alias>/data/ff/049c…`, `<alias>/.cvmfspublished` and so on; there are no directories. Requests go through
//! `service`, which signs them and repeats what may pass.
//!
//! What is different from a local directory:
//! - *Put::New* is the answer for whatever was not put before by the same store: nobody waits to be told more.
//! - An object is made young by a copy to itself; that is not possible above 5 GB, so such an object is put again.
//! - Times have whole seconds. Those of the service are taken to be of one clock, its `Date`.
//! - S3 cannot remove an object under the condition that it is still old. [`prune`](PruneStore::prune) looks at its age
//!   right before it removes it; who reuses it in between is told so by their [`flush`](WriteStore::flush), which looks
//!   for all reused objects once more. What is left is a removal that was asked for before that look and is carried out
//!   after it.
//!
//! Source: `cvmfs/upload_s3.cc`.

mod config;
mod crypto;
mod download;
mod requests;
mod service;
mod uploads;

use std::io::{self, Read, Seek as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::{ObjectStoreExt as _, PutPayload, RetryConfig};
use tempfile::SpooledTempFile;

pub use self::config::S3Config;
pub use self::download::{S3Download, S3Facts};
use self::requests::{Content, Inner};
use self::service::Service;
use self::uploads::{Failures, Uploads};
use super::{Key, Listed, NamedFile, PruneStore, Put, ReadStore, StagedObject, WriteStore};
use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::fetch::Connections;
use crate::hash::ObjectId;
use crate::progress::{Cancel, Progress};

/// Bytes of an object that are in memory at a time, and go in one request.
const PART_SIZE: usize = 8 << 20;
/// Objects waiting or under way for each request that may be in flight.
const QUEUE_FACTOR: usize = 4;

/// A repository in a bucket. See the [module](self).
#[derive(Debug)]
pub struct S3Store {
    connections: Arc<Connections>,
    inner: Arc<Inner>,
    /// What was put through this value, and the objects staged by it, and failed.
    failures: Arc<Failures>,
}

/// Hands our service to the library.
#[derive(Debug)]
struct Connector(Mutex<Option<Service>>);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let service = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        service.map(HttpClient::new).ok_or_else(|| object_store::Error::NotSupported {
            source: "a second connection to the same bucket".into(),
        })
    }
}

impl S3Store {
    /// Uses a bucket, without asking whether it is there.
    ///
    /// # Errors
    /// `InvalidInput` for an address, proxy or name that cannot be.
    pub fn open(config: S3Config) -> Result<Self> {
        let (bucket_url, service) = (config.bucket_url()?, Service::new(&config)?);
        let bucket = AmazonS3Builder::new()
            .with_endpoint(if config.dns_buckets { bucket_url } else { config.endpoint.clone() })
            .with_bucket_name(&config.bucket)
            .with_virtual_hosted_style_request(config.dns_buckets)
            .with_allow_http(true)
            .with_region(&config.region)
            .with_access_key_id(&config.access_key)
            .with_secret_access_key(&config.secret_key)
            .with_crypto_provider(Arc::new(crypto::DigestsOnly))
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // The service repeats.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(Connector(Mutex::new(Some(service))))
            .build()
            .map_err(|error| Error::invalid(format!("{config:?}"), error.to_string()))?;
        let uploads = Uploads::new(config.max_requests * QUEUE_FACTOR);
        let inner = Arc::new(Inner { config, bucket, uploads, reused: Mutex::default() });
        Ok(Self { connections: Arc::new(Connections::new()?), inner, failures: Arc::default() })
    }

    /// Removes everything of the repository, and returns how much that was; fine if nothing is there.
    pub fn remove_all(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<u64> {
        self.inner.uploads.drain();
        let mut removed = 0;
        self.connections.block_on(self.inner.remove_all(&mut || {
            removed += 1;
            progress.advance(1);
            cancel.check()
        }))?;
        Ok(removed)
    }

    /// Sends an object that is in memory, or in a file, while the caller goes on.
    fn send(&self, id: ObjectId, size: u64, content: Content) -> Result<Put> {
        self.failures.check()?;
        let memory = match &content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(_) => 2 * PART_SIZE as u64,
        };
        if !self.inner.uploads.begin(id, size, memory) {
            return Ok(Put::Present);
        }
        let (inner, failures) = (Arc::clone(&self.inner), Arc::clone(&self.failures));
        self.connections.handle().spawn(async move {
            let outcome = inner.upload(id, size, content).await;
            inner.uploads.finish(id, size, outcome, &failures);
        });
        Ok(Put::New)
    }

    /// The same store, with somebody's failures.
    fn with(&self, failures: Arc<Failures>) -> Self {
        Self { connections: Arc::clone(&self.connections), inner: Arc::clone(&self.inner), failures }
    }

    /// Waits for an object that is under way.
    fn settle(&self, key: &Key) {
        if let Key::Object(id) | Key::Shortcut(id) = key {
            self.inner.uploads.settle(id);
        }
    }
}

impl ReadStore for S3Store {
    fn describe(&self, key: &Key) -> String {
        self.inner.describe(key)
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(key)?.read_to_end(&mut bytes).at(self.describe(key))?;
        Ok(bytes)
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        self.settle(key);
        Ok(Box::new(self.connections.block_on(self.inner.fetch(key))?))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.settle(key);
        Ok(self.connections.block_on(self.inner.look(key))?.map(|found| found.size))
    }

    /// Many requests at a time; none for what was put a while ago.
    fn sizes(&self, ids: &[ObjectId]) -> Result<Vec<Option<u64>>> {
        let sent: Vec<Option<u64>> = ids.iter().map(|id| self.inner.uploads.settle(id)).collect();
        self.connections.block_on(self.inner.sizes(ids, sent))
    }

    fn is_shared(&self) -> bool {
        true
    }
}

impl WriteStore for S3Store {
    fn for_operation(&self) -> Option<Arc<dyn WriteStore>> {
        Some(Arc::new(self.with(Arc::default())))
    }

    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        self.send(*id, stored.len() as u64, Content::Memory(Bytes::copy_from_slice(stored)))
    }

    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        match self.inner.uploads.settle(id) {
            Some(size) if size == stored_size => Ok(true),
            _ => self.connections.block_on(self.inner.reuse(*id, stored_size)),
        }
    }

    /// Many requests at a time.
    fn reuse_all(&self, objects: &[(ObjectId, u64)]) -> Result<Vec<bool>> {
        let sent: Vec<Option<u64>> = objects.iter().map(|(id, _)| self.inner.uploads.settle(id)).collect();
        let reuse = |(sent, &(id, stored_size)): (Option<u64>, &(ObjectId, u64))| async move {
            if sent == Some(stored_size) { Ok(true) } else { self.inner.reuse(id, stored_size).await }
        };
        let answers = stream::iter(sent.into_iter().zip(objects).map(reuse)).buffered(self.inner.config.max_requests);
        self.connections.block_on(answers.try_collect())
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        Ok(Box::new(Staged { file: self.inner.config.spool()?, size: 0, store: self.with(Arc::clone(&self.failures)) }))
    }

    fn discard(&self, id: &ObjectId) -> Result<()> {
        self.inner.uploads.settle(id);
        self.inner.uploads.forget();
        self.connections.block_on(self.inner.remove(&Key::Object(*id)))
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        let key = Key::Named(file);
        let payload = PutPayload::from(bytes.to_vec());
        let path = self.inner.path(&key)?;
        let written = self.connections.block_on(self.inner.bucket.put(&path, payload));
        written.map(drop).map_err(|error| self.inner.error(&key, &error))
    }

    fn write_if(
        &self,
        file: NamedFile,
        bytes: &[u8],
        is_expected: &(dyn Fn(Option<&[u8]>) -> bool + Sync),
    ) -> Result<bool> {
        self.connections.block_on(self.inner.replace(&file.into(), &Bytes::copy_from_slice(bytes), is_expected))
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        self.connections.block_on(self.inner.remove(&file.into()))
    }

    /// A copy: there are no links.
    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        self.inner.uploads.settle(id);
        let key = Key::Object(*id);
        let (from, to) = (self.inner.path(&key)?, self.inner.path(&Key::Shortcut(*id))?);
        let copied = self.connections.block_on(self.inner.bucket.copy(&from, &to));
        copied.map_err(|error| self.inner.error(&key, &error).of_referenced_object())
    }

    fn finish_puts(&self) -> Result<()> {
        self.inner.uploads.drain();
        self.failures.check()
    }

    fn flush(&self) -> Result<()> {
        self.finish_puts()?;
        self.inner.uploads.forget();
        self.connections.block_on(self.inner.check_reused())
    }

    /// There is nothing to see of an upload that was not completed; the bucket's own rules remove those.
    fn remove_abandoned(&self, _before: UnixSeconds) -> Result<u64> {
        Ok(0)
    }
}

impl PruneStore for S3Store {
    fn clock(&self) -> Result<Duration> {
        self.connections.block_on(self.inner.clock())
    }

    fn list(
        &self,
        first: u8,
        wanted: &mut dyn FnMut(&ObjectId) -> bool,
        visit: &mut dyn FnMut(Listed) -> Result<()>,
    ) -> Result<()> {
        self.inner.uploads.drain();
        let listed = self.connections.block_on(self.inner.list(first))?;
        listed.into_iter().filter(|object| wanted(&object.id)).try_for_each(visit)
    }

    fn prune(&self, objects: &[ObjectId], older_than: Duration) -> Result<Vec<ObjectId>> {
        self.inner.uploads.drain();
        self.inner.uploads.forget();
        self.connections.block_on(self.inner.prune(objects, older_than))
    }
}

/// An object in a temporary file until its name is known.
#[derive(Debug)]
struct Staged {
    file: SpooledTempFile,
    size: u64,
    store: S3Store,
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl StagedObject for Staged {
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put> {
        let Self { mut file, size, store } = *self;
        let place = &store.inner.config.temporary;
        file.rewind().at(place)?;
        if size > PART_SIZE as u64 {
            return store.send(*id, size, Content::File(file));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).at(place)?;
        store.send(*id, size, Content::Memory(bytes.into()))
    }
}
