//! Where images come from.

use std::fmt;
use std::io::Read;

use cvmfs_core::error::Result;

use super::digest::Digest;
use super::{Descriptor, Document};

/// Manifests and blobs of one image name: a repository of a registry, or a file.
///
/// Stores are dumb: what they give is verified by whoever asked. All methods may be called from many threads.
pub trait ImageStore: fmt::Debug + Send + Sync {
    /// Names the place for messages.
    fn describe(&self) -> String;

    /// The digest of the manifest or index that a tag or digest stands for now, as cheap as it can be had; `None` if only
    /// reading it would tell.
    fn digest(&self, reference: &str) -> Result<Option<Digest>>;

    /// The manifest or index that a tag or digest stands for, with the media type that came with it, if any.
    fn manifest(&self, reference: &str) -> Result<(Document, Option<String>)>;

    /// Opens a blob for reading from its start. A connection that breaks is taken up again where it broke.
    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>>;
}
