//! The way up: blobs in one piece, and manifests.

use bytes::Bytes;
use cvmfs_core::error::{Error, Result};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, LOCATION};

use super::Repository;
use super::authorization::shown;
use super::request::Ask;
use crate::image::digest::Digest;

impl Repository {
    /// Whether the registry has a blob.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let ask = Ask::new(Method::HEAD, self.url(&format!("blobs/{digest}")));
        match self.shared.connections.block_on(self.ask(&ask)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob, unless it is there.
    ///
    /// # Errors
    /// `Refused` without the right to, and others as of any request.
    pub fn put_blob(&self, bytes: Bytes) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        if !self.has_blob(&digest)? {
            self.shared.connections.block_on(self.send_blob(&digest, bytes))?;
        }
        Ok(digest)
    }

    async fn send_blob(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        let start = Ask::new(Method::POST, self.url("blobs/uploads/"));
        let answer = self.ask(&start).await?;
        let location = answer.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|location| answer.response.url().join(location).ok());
        let location = location.map(|location| self.encrypted(location));
        let mut location =
            location.ok_or_else(|| Error::malformed(shown(&start.url), "the registry names no place to upload to"))?;
        drop(answer);
        location.query_pairs_mut().append_pair("digest", &digest.to_string());
        let put = Ask::new(Method::PUT, location).header(CONTENT_TYPE, "application/octet-stream").body(bytes);
        self.ask(&put).await.map(drop)
    }

    /// Uploads a manifest or index under a tag or its digest; what it names must be there.
    ///
    /// # Errors
    /// `HashMismatch` if the registry has noted another digest, and others as of any request.
    pub fn put_manifest(&self, reference: &str, media_type: &str, bytes: Bytes) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        let url = self.url(&format!("manifests/{reference}"));
        let ask = Ask::new(Method::PUT, url).header(CONTENT_TYPE, media_type).body(bytes);
        let answer = self.shared.connections.block_on(self.ask(&ask))?;
        match super::said_digest(answer.response.headers()) {
            Some(said) if said != digest => {
                let (expected, actual) = (digest.to_string(), said.to_string());
                Err(Error::HashMismatch { what: shown(&ask.url), expected, actual })
            }
            _ => Ok(digest),
        }
    }
}
