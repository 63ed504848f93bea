//! Archives that `docker save` writes, and other programs after it.
//!
//! ```text
//! manifest.json                 [{"Config": NAME, "RepoTags": [...], "Layers": [NAME, ...]}, ...]
//! <config>.json                 the configuration
//! <id>/layer.tar                a layer, mostly uncompressed; the same may have several names
//! ```
//!
//! The manifest of the registry is lost in them. The one that is made up here has the bytes that `skopeo` makes up: layers
//! have the digests and sizes of their uncompressed archives. So its digest is computed, and not one that a registry knows.
//! Newer programs write an OCI layout into the same archive; it can be read as [such](super::OciLayout) as well.
//!
//! Source: Moby, "Image specification v1.2", "Combined Image JSON + Filesystem Changeset Format"; `containers/image`,
//! `docker/internal/tarfile`.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use cvmfs_core::error::{Error, IoContext as _, Result};
use serde::{Deserialize, Serialize};

use super::files::Files;
use crate::archive::decompress;
use crate::image::digest::Digest;
use crate::image::manifest::{DOCUMENT_SIZE_MAX, from_json, media_type, parse_config};
use crate::image::source::ImageStore;
use crate::image::{Descriptor, Document};

/// A `docker save` archive.
#[derive(Debug)]
pub struct DockerArchive {
    files: Files,
    images: Vec<SavedImage>,
    /// The names of the blobs in the archive.
    blobs: HashMap<Digest, String>,
}

/// An image of an archive.
#[derive(Debug)]
struct SavedImage {
    names: Vec<String>,
    /// Made up.
    manifest: Document,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedJson {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    schema_version: u64,
    media_type: &'static str,
    config: DescriptorJson,
    layers: Vec<DescriptorJson>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorJson {
    media_type: &'static str,
    size: u64,
    digest: String,
}

impl DockerArchive {
    /// Opens an archive. Layers that are compressed in it are read once, to learn their size.
    ///
    /// # Errors
    /// `NotFound` and `Malformed` if it is no such archive, `InvalidInput` if it is compressed as a whole.
    pub fn open(path: &Path) -> Result<Self> {
        let files = Files::archive(path)?;
        let place = files.describe("manifest.json");
        let saved: Vec<SavedJson> = from_json(&place, &files.read("manifest.json", DOCUMENT_SIZE_MAX)?)?;
        let mut blobs = HashMap::new();
        let mut images = Vec::new();
        for image in saved {
            let manifest = make_manifest(&files, &image, &mut blobs)?;
            images.push(SavedImage { names: image.repo_tags.unwrap_or_default(), manifest });
        }
        Ok(Self { files, images, blobs })
    }

    /// The names that the images were saved under.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.images.iter().flat_map(|image| image.names.iter().map(|name| &name[..]))
    }

    /// The made-up digest of the image with this name, of the one at a position (`@0`), or of the only one.
    ///
    /// # Errors
    /// `NotFound` if there is none, `InvalidInput` if there are several.
    pub fn find(&self, name: Option<&str>) -> Result<Digest> {
        let known = || self.names().collect::<Vec<_>>().join(", ");
        let found = match name {
            Some(name) => {
                let position = name.strip_prefix('@').and_then(|position| position.parse::<usize>().ok());
                let named = |image: &&SavedImage| image.names.iter().any(|other| is_same_name(other, name));
                position.map_or_else(|| self.images.iter().find(named), |position| self.images.get(position))
            }
            None if self.images.len() > 1 => {
                return Err(Error::invalid(self.describe(), format!("name one of several images ({})", known())));
            }
            None => self.images.first(),
        };
        let what = || format!("{}: the image {:?} (there are: {})", self.describe(), name.unwrap_or_default(), known());
        found.map(|image| image.manifest.digest).ok_or_else(|| Error::not_found(what()))
    }

    fn image(&self, reference: &str) -> Result<&SavedImage> {
        let digest = match reference.parse() {
            Ok(digest) => digest,
            Err(_) => self.find(Some(reference))?,
        };
        let found = self.images.iter().find(|image| image.manifest.digest == digest);
        found.ok_or_else(|| Error::not_found(format!("{}: {reference}", self.describe())))
    }
}

/// Whether two names mean the same image once Docker has completed them.
fn is_same_name(one: &str, other: &str) -> bool {
    use crate::image::reference::docker_name;
    one == other || docker_name(one).is_ok_and(|one| docker_name(other).is_ok_and(|other| one == other))
}

/// Makes up the manifest of an image, and notes where its blobs are.
fn make_manifest(files: &Files, image: &SavedJson, blobs: &mut HashMap<Digest, String>) -> Result<Document> {
    let config = files.read(&image.config, DOCUMENT_SIZE_MAX)?;
    let place = files.describe(&image.config);
    let diff_ids = parse_config(&place, &config)?.diff_ids;
    let names = image.layers.as_deref().unwrap_or_default();
    if diff_ids.len() != names.len() {
        let reason = format!("{} layers in the archive, {} in the configuration", names.len(), diff_ids.len());
        return Err(Error::malformed(place, reason));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let size = uncompressed_size(files, name)?;
        layers.push(DescriptorJson { media_type: media_type::DOCKER_LAYER, size, digest: diff_id.to_string() });
        blobs.insert(diff_id, name.clone());
    }
    let digest = Digest::of(&config);
    blobs.insert(digest, image.config.clone());
    let (size, digest) = (config.len() as u64, digest.to_string());
    let manifest = ManifestJson {
        schema_version: 2,
        media_type: media_type::DOCKER_MANIFEST,
        config: DescriptorJson { media_type: media_type::DOCKER_CONFIG, size, digest },
        layers,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::malformed(place, error.to_string()))?;
    Ok(Document { digest: Digest::of(&bytes), bytes })
}

/// The size of a layer's tar archive. Only one that is compressed has to be read for that.
fn uncompressed_size(files: &Files, name: &str) -> Result<u64> {
    let (input, size) = files.open(name)?;
    let malformed = |error: String| Error::malformed(files.describe(name), error);
    match decompress(input).map_err(|error| malformed(error.to_string()))? {
        (crate::archive::Format::Plain, _) => Ok(size),
        (_, mut tar) => io::copy(&mut tar, &mut io::sink()).map_err(|error| malformed(error.to_string())),
    }
}

impl ImageStore for DockerArchive {
    fn describe(&self) -> String {
        self.files.path().display().to_string()
    }

    fn digest(&self, reference: &str) -> Result<Option<Digest>> {
        Ok(Some(self.image(reference)?.manifest.digest))
    }

    fn manifest(&self, reference: &str) -> Result<(Document, Option<String>)> {
        Ok((self.image(reference)?.manifest.clone(), Some(media_type::DOCKER_MANIFEST.to_owned())))
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let missing = || Error::not_found(format!("{}: {}", self.describe(), blob.digest));
        let (input, _) = self.files.open(self.blobs.get(&blob.digest).ok_or_else(missing)?)?;
        let failed = |error: crate::archive::ArchiveError| io::Error::other(error);
        let (_, content) = decompress(input).map_err(failed).at(self.files.path())?;
        Ok(content)
    }
}
