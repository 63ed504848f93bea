//! OCI image layouts, in directories and archives.
//!
//! ```text
//! oci-layout                    the version
//! index.json                    manifests, with their tags
//! blobs/sha256/<hex>            everything
//! ```
//!
//! Source: OCI image specification, `image-layout.md`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use cvmfs_core::error::{Error, Result};
use serde::Deserialize;

use super::files::Files;
use crate::image::digest::Digest;
use crate::image::manifest::{DOCUMENT_SIZE_MAX, Index, IndexEntry, from_json, parse_index};
use crate::image::source::ImageStore;
use crate::image::{Descriptor, Document};

/// The tag of an entry.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name of an entry, as containerd and Docker write it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An OCI image layout.
#[derive(Debug)]
pub struct OciLayout {
    files: Files,
    index: Index,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutJson {
    image_layout_version: String,
}

impl OciLayout {
    /// Opens a directory.
    ///
    /// # Errors
    /// `NotFound` and `Malformed` if it is no layout, `Unsupported` for another version of the format.
    pub fn directory(path: &Path) -> Result<Self> {
        Self::new(Files::directory(path)?)
    }

    /// Opens a tar archive.
    ///
    /// # Errors
    /// As for a directory, and `InvalidInput` if it is compressed.
    pub fn archive(path: &Path) -> Result<Self> {
        Self::new(Files::archive(path)?)
    }

    pub(super) fn new(files: Files) -> Result<Self> {
        let place = files.describe("oci-layout");
        let layout: LayoutJson = from_json(&place, &files.read("oci-layout", DOCUMENT_SIZE_MAX)?)?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(Error::Unsupported { what: format!("{place}: version {}", layout.image_layout_version) });
        }
        let index = files.read("index.json", DOCUMENT_SIZE_MAX)?;
        Ok(Self { index: parse_index(&files.describe("index.json"), &index)?, files })
    }

    /// The tags and what they stand for; a tag may be a whole name.
    pub fn tags(&self) -> BTreeMap<&str, Digest> {
        let tags = self.index.entries.iter().filter_map(|entry| Some((tag(entry)?, entry.descriptor.digest)));
        tags.collect()
    }

    /// The digest of the image with this tag, or of the only one.
    ///
    /// # Errors
    /// `NotFound` if there is none, `InvalidInput` if there are several.
    pub fn find(&self, tag: Option<&str>) -> Result<Digest> {
        let is_meant = |entry: &&IndexEntry| match tag {
            Some(tag) => has_tag(entry, tag),
            None => true,
        };
        let mut digests: Vec<_> =
            self.index.entries.iter().filter(is_meant).map(|entry| entry.descriptor.digest).collect();
        digests.dedup();
        match (&digests[..], tag) {
            ([digest], _) => Ok(*digest),
            ([], Some(tag)) => {
                Err(Error::not_found(format!("{}: the tag {tag:?} ({})", self.describe(), self.known())))
            }
            ([], None) => Err(Error::not_found(format!("{}: an image", self.describe()))),
            (_, Some(tag)) => Err(Error::invalid(self.describe(), format!("several images have the tag {tag:?}"))),
            (_, None) => Err(Error::invalid(self.describe(), format!("name one of several images ({})", self.known()))),
        }
    }

    fn known(&self) -> String {
        let tags: Vec<_> = self.tags().into_keys().collect();
        if tags.is_empty() { "none has a tag".to_owned() } else { format!("there are: {}", tags.join(", ")) }
    }

    fn digest_of(&self, reference: &str) -> Result<Digest> {
        if reference.contains(':')
            && let Ok(digest) = reference.parse()
        {
            return Ok(digest);
        }
        self.find(Some(reference))
    }
}

fn tag(entry: &IndexEntry) -> Option<&str> {
    entry.annotations.get(REF_NAME).or_else(|| entry.annotations.get(IMAGE_NAME)).map(|tag| &tag[..])
}

fn has_tag(entry: &IndexEntry, tag: &str) -> bool {
    [REF_NAME, IMAGE_NAME].iter().any(|key| entry.annotations.get(*key).is_some_and(|value| value == tag))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl ImageStore for OciLayout {
    fn describe(&self) -> String {
        self.files.path().display().to_string()
    }

    fn digest(&self, reference: &str) -> Result<Option<Digest>> {
        self.digest_of(reference).map(Some)
    }

    fn manifest(&self, reference: &str) -> Result<(Document, Option<String>)> {
        let digest = self.digest_of(reference)?;
        let bytes = self.files.read(&blob_name(&digest), DOCUMENT_SIZE_MAX)?;
        let entry = self.index.entries.iter().find(|entry| entry.descriptor.digest == digest);
        let media_type = entry.map(|entry| entry.descriptor.media_type.clone());
        Ok((Document { digest, bytes }, media_type.filter(|media_type| !media_type.is_empty())))
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let name = blob_name(&blob.digest);
        self.files.open(&name).map(|(input, _)| input).map_err(|error| match blob.urls.first() {
            Some(url) if error.is_not_found() => {
                Error::not_found(format!("{}: a layer that is elsewhere ({url})", self.files.describe(&name)))
            }
            _ => error,
        })
    }
}
