//! What comes out of a bucket: block by block, and going on where it was when a connection breaks.

use std::io::{self, Seek as _, Write as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::{GetOptions, GetRange, ObjectStore as _};
use tempfile::SpooledTempFile;
use tokio::sync::{mpsc, oneshot};

use super::S3Store;
use super::requests::{Inner, modified, of_library};
use crate::error::{Error, IoContext as _, Result};
use crate::storage::Key;

/// How often a transfer goes on that broke off.
const CONTINUATIONS: u32 = 3;
/// Blocks that wait for whoever takes them.
const BLOCKS_AHEAD: usize = 2;

/// What is known of something in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Facts {
    /// Stored bytes of the whole.
    pub size: u64,
    /// When it was put or made young, since 1970; whole seconds.
    pub modified: Duration,
    /// Differs whenever the content does, as far as the server says; without quotes.
    pub version: String,
}

/// Something in a bucket, or a part of it, as it comes.
#[derive(Debug)]
pub struct S3Download {
    /// What it is a part of.
    pub facts: S3Facts,
    /// Its bytes in order; an error ends them.
    pub blocks: mpsc::Receiver<io::Result<Bytes>>,
}

impl S3Store {
    /// Looks at something; `None` if it is not there. For asynchronous code of any runtime.
    pub async fn facts(&self, key: Key) -> Result<Option<S3Facts>> {
        let inner = Arc::clone(&self.inner);
        let looking = self.connections.handle().spawn(async move {
            let options = GetOptions { head: true, ..GetOptions::default() };
            match inner.bucket.get_opts(&inner.path(&key)?, options).await {
                Ok(found) => Ok(Some(facts(&found.meta))),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(inner.error(&key, &error)),
            }
        });
        looking.await.unwrap_or_else(|failure| Err(Error::invalid("bucket", failure.to_string())))
    }

    /// Begins to fetch something, or a part of it that is not empty. For asynchronous code of any runtime.
    ///
    /// Not more is fetched than is taken, but for some blocks.
    ///
    /// # Errors
    /// `NotFound`; what goes wrong later comes with the blocks.
    pub async fn download(&self, key: Key, part: Option<Range<u64>>) -> Result<S3Download> {
        let inner = Arc::clone(&self.inner);
        let (begun, beginning) = oneshot::channel();
        let (sender, blocks) = mpsc::channel(BLOCKS_AHEAD);
        self.connections.handle().spawn(async move {
            let mut transfer = match Transfer::begin(&inner, &key, part).await {
                Ok(transfer) => transfer,
                Err(error) => return drop(begun.send(Err(error))),
            };
            if begun.send(Ok(transfer.facts.clone())).is_err() {
                return;
            }
            loop {
                let block = match transfer.next().await {
                    Ok(Some(block)) => Ok(block),
                    Ok(None) => return,
                    Err(error) => Err(io::Error::other(error)),
                };
                let failed = block.is_err();
                // Without a receiver nobody wants the rest.
                if sender.send(block).await.is_err() || failed {
                    return;
                }
            }
        });
        let facts = beginning.await.map_err(|failure| Error::invalid("bucket", failure.to_string()))??;
        Ok(S3Download { facts, blocks })
    }
}

/// Bytes on their way.
pub(super) struct Transfer<'a> {
    inner: &'a Inner,
    key: &'a Key,
    facts: S3Facts,
    pub(super) e_tag: Option<String>,
    content: BoxStream<'static, object_store::Result<Bytes>>,
    /// What is still to come.
    rest: Range<u64>,
    continuations: u32,
}

impl<'a> Transfer<'a> {
    /// Asks for something, or a part of it.
    pub(super) async fn begin(inner: &'a Inner, key: &'a Key, part: Option<Range<u64>>) -> Result<Self> {
        let options = GetOptions { range: part.map(GetRange::Bounded), ..GetOptions::default() };
        let answer =
            inner.bucket.get_opts(&inner.path(key)?, options).await.map_err(|error| inner.error(key, &error))?;
        Ok(Self {
            inner,
            key,
            facts: facts(&answer.meta),
            e_tag: answer.meta.e_tag.clone(),
            rest: answer.range.clone(),
            content: answer.into_stream(),
            continuations: 0,
        })
    }

    /// Waits for more; `None` at the end.
    ///
    /// # Errors
    /// `Unavailable` if it broke off too often, or was replaced meanwhile.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let reason = match self.content.next().await {
                Some(Ok(block)) if block.len() as u64 <= self.rest.end - self.rest.start => {
                    self.rest.start += block.len() as u64;
                    return Ok(Some(block));
                }
                None if self.rest.is_empty() => return Ok(None),
                Some(Ok(_)) => {
                    return Err(Error::malformed(self.inner.describe(self.key), "more came than was announced"));
                }
                None => format!("{} bytes did not come", self.rest.end - self.rest.start),
                Some(Err(error)) => of_library(String::new(), &error).to_string().trim_start_matches(": ").to_owned(),
            };
            if self.continuations == CONTINUATIONS {
                return Err(Error::Unavailable { what: self.inner.describe(self.key), reason });
            }
            self.continuations += 1;
            tracing::debug!(key = %self.key, reason, "a transfer from S3 goes on");
            let range = Some(GetRange::Bounded(self.rest.clone())).filter(|_| !self.rest.is_empty());
            let options = GetOptions { range, if_match: self.e_tag.clone(), ..GetOptions::default() };
            match self.inner.bucket.get_opts(&self.inner.path(self.key)?, options).await {
                Ok(answer) if answer.range == self.rest => self.content = answer.into_stream(),
                Ok(_) => {
                    return Err(Error::malformed(self.inner.describe(self.key), "another part came than asked for"));
                }
                Err(error) => return Err(self.inner.error(self.key, &error)),
            }
        }
    }
}

impl Inner {
    /// Fetches something whole: what is being read must not change, and a reader may be slow.
    pub(super) async fn fetch(&self, key: &Key) -> Result<SpooledTempFile> {
        let mut transfer = Transfer::begin(self, key, None).await?;
        let mut file = self.config.spool()?;
        while let Some(block) = transfer.next().await? {
            file.write_all(&block).at(&self.config.temporary)?;
        }
        file.rewind().at(&self.config.temporary)?;
        Ok(file)
    }
}

fn facts(meta: &object_store::ObjectMeta) -> S3Facts {
    let version = meta.e_tag.as_deref().unwrap_or_default();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_+/=.".contains(byte);
    S3Facts {
        size: meta.size,
        modified: modified(meta),
        version: version.bytes().filter(is_plain).map(char::from).collect(),
    }
}
