//! From what a reference stands for to verified images: index, manifest, configuration.
//!
//! ```text
//! reference ─► index ─► choice of platforms ─► manifest ─► configuration ─► Image
//! ```
//!
//! The types are our own: of each document a handful of fields matters, with all that Docker and old tools leave out or set
//! to null. Unknown fields are nobody's business, since documents are kept as the bytes that were received.
//!
//! Source: OCI image specification, `manifest.md`, `image-index.md`, `config.md`; Docker "Image Manifest V 2, Schema 2".

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::str::FromStr;

use cvmfs_core::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;
use super::source::ImageStore;
use super::{Descriptor, Document, Image, Layer, Platform, Settings};

/// Media types of manifests, as answers and documents have them.
pub mod media_type {
    /// An index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// The manifest of one image.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// The configuration of an image.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's layer. It says gzip whatever it is.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker's layer that registries do not distribute.
    pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

    /// What a registry is to be asked for.
    pub const MANIFESTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
}

/// The largest index, manifest or configuration that is accepted, in bytes; registries refuse larger manifests.
pub const DOCUMENT_SIZE_MAX: u64 = 4 << 20;

/// How deep an index may be within others.
const DEPTH_MAX: usize = 3;

/// Types that configurations of images have. Old registries and clients lost the type on the way.
///
/// Source: Docker's `distribution/pull_v2.go`, which accepts the same.
const CONFIG_TYPES: [&str; 7] = [
    media_type::OCI_CONFIG,
    media_type::DOCKER_CONFIG,
    "application/octet-stream",
    "application/json",
    "text/html",
    "text/plain",
    "",
];

/// Types of layers, up to the `+` or `.` of their compression, which is found out from their bytes.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// Which images of an index are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// The one for this platform. Without variant: for the plainest processor of the architecture.
    One(Platform),
    /// All that are for Linux.
    All,
}

impl Default for Platforms {
    fn default() -> Self {
        Self::One(Platform::linux_amd64())
    }
}

impl fmt::Display for Platforms {
    /// `all`, or the platform.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(platform) => platform.fmt(f),
            Self::All => f.write_str("all"),
        }
    }
}

impl FromStr for Platforms {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" { Ok(Self::All) } else { Ok(Self::One(text.parse()?)) }
    }
}

/// The manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Several images, or further indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The entries in their order.
    pub entries: Vec<IndexEntry>,
}

/// One of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// Where it runs, if the index says so.
    pub platform: Option<Platform>,
    /// Notes, such as the tag in an OCI layout.
    pub annotations: BTreeMap<String, String>,
    /// What it is if it is no image.
    pub artifact_type: Option<String>,
}

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// The configuration of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it runs; parts may be empty in old images.
    pub platform: Platform,
    /// How it runs.
    pub settings: Settings,
    /// The digests of its layers, uncompressed.
    pub diff_ids: Vec<Digest>,
}

/// Fetches and verifies what `reference`, a tag or digest, stands for: one image, or with [`Platforms::All`] at least one,
/// in the order of the index.
///
/// # Errors
/// `NotFound` if there is no such image, or none for the platform, `HashMismatch` and `Malformed` for what cannot be
/// trusted, `Unsupported` for what is no image or an obsolete one, and whatever the store fails with.
pub fn resolve(store: &dyn ImageStore, reference: &str, platforms: &Platforms) -> Result<Vec<Image>> {
    let place = format!("{} {reference}", store.describe());
    let (document, content_type) = store.manifest(reference)?;
    let digest = Digest::of(&document.bytes);
    if reference.contains(':') && digest != reference.parse()? {
        return Err(mismatch(&place, reference, &digest.to_string()));
    }
    let document = Document { digest, ..document };
    match parse(&place, &document.bytes, content_type.as_deref())? {
        Content::Manifest(manifest) => {
            let image = complete(store, &place, document, &manifest)?;
            if choose(platforms, &[&image.platform]).is_empty() {
                return Err(no_platform(&place, platforms, &[image.platform.to_string()]));
            }
            Ok(vec![image])
        }
        Content::Index(index) => {
            let mut candidates = Vec::new();
            collect(store, &place, &index, 0, &mut candidates)?;
            let chosen = choose(platforms, &candidates.iter().map(|candidate| &candidate.platform).collect::<Vec<_>>());
            if chosen.is_empty() {
                let found: Vec<_> = candidates.iter().map(|candidate| candidate.platform.to_string()).collect();
                return Err(no_platform(&place, platforms, &found));
            }
            let image = |&index: &usize| candidates[index].image(store, &place);
            chosen.iter().map(image).collect()
        }
    }
}

/// An image of an index.
struct Candidate {
    descriptor: Descriptor,
    platform: Platform,
}

impl Candidate {
    fn image(&self, store: &dyn ImageStore, place: &str) -> Result<Image> {
        let (document, content) = fetch(store, place, &self.descriptor)?;
        let Content::Manifest(manifest) = content else {
            return Err(Error::malformed(place, format!("{} is an index, not a manifest", self.descriptor.digest)));
        };
        let image = complete(store, place, document, &manifest)?;
        // What the index says decides, because it is what was chosen by; old configurations lack the variant.
        Ok(Image { platform: self.platform.clone(), ..image })
    }
}

/// Lists the images of an index, and of those in it. Attestations and other artifacts are none.
fn collect(
    store: &dyn ImageStore,
    place: &str,
    index: &Index,
    depth: usize,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    for entry in index.entries.iter().filter(|entry| entry.is_image()) {
        let descriptor = entry.descriptor.clone();
        if let Some(platform) = &entry.platform {
            candidates.push(Candidate { descriptor, platform: platform.clone() });
            continue;
        }
        // Without a platform only the thing itself tells.
        match fetch(store, place, &descriptor)? {
            (_, Content::Index(_)) if depth + 1 == DEPTH_MAX => {
                return Err(Error::malformed(place, format!("indexes are nested more than {DEPTH_MAX} deep")));
            }
            (_, Content::Index(inner)) => collect(store, place, &inner, depth + 1, candidates)?,
            (document, Content::Manifest(manifest)) => {
                let platform = complete(store, place, document, &manifest)?.platform;
                candidates.push(Candidate { descriptor, platform });
            }
        }
    }
    Ok(())
}

/// Fetches a manifest or index that a descriptor names.
fn fetch(store: &dyn ImageStore, place: &str, descriptor: &Descriptor) -> Result<(Document, Content)> {
    let place = format!("{place}: {}", descriptor.digest);
    let (document, content_type) = store.manifest(&descriptor.digest.to_string())?;
    let actual = Digest::of(&document.bytes);
    if actual != descriptor.digest {
        return Err(mismatch(&place, &descriptor.digest.to_string(), &actual.to_string()));
    }
    if document.bytes.len() as u64 != descriptor.size {
        let reason = format!("it has {} bytes, where its index says {}", document.bytes.len(), descriptor.size);
        return Err(Error::malformed(place, reason));
    }
    let content_type = content_type.or_else(|| Some(descriptor.media_type.clone()));
    let content = parse(&place, &document.bytes, content_type.as_deref())?;
    Ok((Document { digest: actual, ..document }, content))
}

/// Fetches the configuration of a manifest, and joins both.
fn complete(store: &dyn ImageStore, place: &str, document: Document, manifest: &Manifest) -> Result<Image> {
    let config_document = read_config(store, place, &manifest.config)?;
    let config = parse_config(&format!("{place}: configuration"), &config_document.bytes)?;
    let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    if layers != diff_ids {
        let reason = format!("{layers} layers in the manifest, {diff_ids} in the configuration");
        return Err(Error::malformed(place, reason));
    }
    let layers = manifest.layers.iter().cloned().zip(config.diff_ids);
    Ok(Image {
        manifest: document,
        config: config_document,
        platform: config.platform,
        settings: config.settings,
        layers: layers.map(|(blob, diff_id)| Layer { blob, diff_id }).collect(),
    })
}

fn read_config(store: &dyn ImageStore, place: &str, descriptor: &Descriptor) -> Result<Document> {
    let place = format!("{place}: configuration {}", descriptor.digest);
    if descriptor.size > DOCUMENT_SIZE_MAX {
        return Err(Error::malformed(place, format!("larger than {DOCUMENT_SIZE_MAX} bytes")));
    }
    let mut bytes = Vec::new();
    let read = store.blob(descriptor)?.take(descriptor.size + 1).read_to_end(&mut bytes);
    read.map_err(|error| from_reader(&place, error))?;
    let actual = Digest::of(&bytes);
    if bytes.len() as u64 != descriptor.size {
        let reason = format!("it has not the {} bytes that its manifest says", descriptor.size);
        return Err(Error::malformed(place, reason));
    }
    if actual != descriptor.digest {
        return Err(mismatch(&place, &descriptor.digest.to_string(), &actual.to_string()));
    }
    Ok(Document { digest: actual, bytes })
}

/// The error that a reader of a store packed into one of the system's, or else that one.
pub fn from_reader(place: &str, error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::Unavailable { what: place.to_owned(), reason: error.to_string() },
    }
}

fn mismatch(place: &str, expected: &str, actual: &str) -> Error {
    Error::HashMismatch { what: place.to_owned(), expected: expected.to_owned(), actual: actual.to_owned() }
}

fn no_platform(place: &str, platforms: &Platforms, found: &[String]) -> Error {
    let wanted = match platforms {
        Platforms::One(platform) => platform.to_string(),
        Platforms::All => "linux".to_owned(),
    };
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    Error::not_found(format!("{place}: an image for {wanted} (there are: {found})"))
}

/// Picks the positions of what is wanted among platforms.
fn choose(wanted: &Platforms, found: &[&Platform]) -> Vec<usize> {
    // Old images do not say.
    let is_linux = |platform: &Platform| matches!(&platform.os[..], "linux" | "");
    let linux = found.iter().enumerate().filter(|(_, platform)| is_linux(platform));
    match wanted {
        Platforms::All => linux.map(|(index, _)| index).collect(),
        Platforms::One(wanted) => {
            let ranked = linux.filter_map(|(index, platform)| Some((rank(platform, wanted)?, index)));
            // The first of those that fit equally well.
            let best = ranked.min_by_key(|(rank, index)| (std::cmp::Reverse(*rank), *index));
            best.map(|(_, index)| index).into_iter().collect()
        }
    }
}

/// How well an image's architecture fits: the generation of processors that it makes use of, `None` if it does not run.
fn rank(platform: &Platform, wanted: &Platform) -> Option<u32> {
    if platform.architecture.is_empty() {
        return Some(0);
    }
    if platform.architecture != wanted.architecture {
        return None;
    }
    let generation = |variant: &str| variant.strip_prefix('v')?.parse::<u32>().ok();
    let (has, can) = (plain_variant(platform), plain_variant(wanted));
    match (generation(has), generation(can)) {
        (Some(has), Some(can)) => (has <= can).then_some(has),
        _ => (has == can).then_some(0),
    }
}

/// The variant, or the one that its architecture has without saying.
///
/// Source: containerd's `platforms` package.
fn plain_variant(platform: &Platform) -> &str {
    match (&platform.architecture[..], &platform.variant[..]) {
        ("amd64", "") => "v1",
        ("arm64", "") => "v8",
        ("arm", "") => "v7",
        (_, variant) => variant,
    }
}

impl IndexEntry {
    /// Whether this may be an image, or an index of some; not if it tells about one, as attestations do.
    fn is_image(&self) -> bool {
        let is_unknown = self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        let media_type = &self.descriptor.media_type[..];
        self.artifact_type.is_none()
            && !is_unknown
            && !self.annotations.contains_key("vnd.docker.reference.type")
            && (media_type.is_empty() || media_type::MANIFESTS.contains(&media_type))
    }
}

/// Reads an index or manifest. What it is decides the type that came with it, then the one in it, then its fields.
///
/// # Errors
/// `Malformed` for no such document, or one that can be taken for both; `Unsupported` for what is no image, or obsolete.
pub fn parse(place: &str, bytes: &[u8], content_type: Option<&str>) -> Result<Content> {
    let json: ManifestJson = from_json(place, bytes)?;
    let unsupported = |what: String| Err(Error::Unsupported { what: format!("{place}: {what}") });
    // Parameters, such as a character set, say nothing here.
    let given = content_type.map(|text| text.split(';').next().unwrap_or_default().trim()).unwrap_or_default();
    let own = json.media_type.as_deref().unwrap_or_default();
    let is_schema_1 = |text: &str| text.starts_with("application/vnd.docker.distribution.manifest.v1+");
    if is_schema_1(given) || is_schema_1(own) || json.schema_version == Some(1) {
        return unsupported("Docker's obsolete schema 1 (push the image again with a current program), which".into());
    }
    if json.manifests.is_some() && json.layers.is_some() {
        return Err(Error::malformed(place, "it can be taken for an index and for a manifest"));
    }
    let kind = |text: &str| match text {
        media_type::OCI_INDEX | media_type::DOCKER_LIST => Some(true),
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Some(false),
        _ => None,
    };
    if let (Some(given), Some(own)) = (kind(given), kind(own))
        && given != own
    {
        return Err(Error::malformed(place, "it is of another type than the one it came with"));
    }
    let is_index = kind(given).or_else(|| kind(own)).unwrap_or(json.manifests.is_some());
    if is_index {
        let entries = json.manifests.ok_or_else(|| Error::malformed(place, "an index without manifests"))?;
        let entries = entries.into_iter().map(|entry| entry.into_entry(place)).collect::<Result<_>>()?;
        return Ok(Content::Index(Index { entries }));
    }
    let (Some(config), Some(layers)) = (json.config, json.layers) else {
        return match json.artifact_type.or(json.media_type) {
            Some(kind) => unsupported(format!("{kind}, which is no image, and")),
            None => Err(Error::malformed(place, "neither an index nor a manifest of an image")),
        };
    };
    let config_type = config.media_type.as_deref().unwrap_or_default();
    if !CONFIG_TYPES.contains(&config_type) {
        let kind = json.artifact_type.as_deref().unwrap_or(config_type);
        return unsupported(format!("{kind}, an artifact and no image,"));
    }
    let config = config.into_descriptor(place)?;
    let layers = layers.into_iter().map(|layer| layer.into_descriptor(place)).collect::<Result<Vec<_>>>()?;
    for layer in &layers {
        if layer.media_type.ends_with("+encrypted") {
            return unsupported(format!("the encrypted layer {}", layer.digest));
        }
        let plain = layer.media_type.strip_suffix(".gzip").or_else(|| layer.media_type.strip_suffix(".zstd"));
        let plain = plain.unwrap_or(&layer.media_type).split('+').next().unwrap_or_default();
        if !LAYER_TYPES.contains(&plain) {
            return unsupported(format!("the layer {} of type {:?}", layer.digest, layer.media_type));
        }
    }
    Ok(Content::Manifest(Manifest { config, layers }))
}

/// Reads an index; for files that hold one whatever they say.
pub fn parse_index(place: &str, bytes: &[u8]) -> Result<Index> {
    match parse(place, bytes, Some(media_type::OCI_INDEX))? {
        Content::Index(index) => Ok(index),
        Content::Manifest(_) => Err(Error::malformed(place, "no index")),
    }
}

/// Reads the configuration of an image.
///
/// # Errors
/// `Malformed` if it is none, `Unsupported` for digests of another algorithm.
pub fn parse_config(place: &str, bytes: &[u8]) -> Result<Config> {
    let json: ConfigJson = from_json(place, bytes)?;
    let rootfs = json.rootfs.ok_or_else(|| Error::malformed(place, "it lists no layers"))?;
    let diff_ids = rootfs.diff_ids.unwrap_or_default();
    let run = json.config.unwrap_or_default();
    Ok(Config {
        platform: Platform {
            os: json.os.unwrap_or_default(),
            architecture: json.architecture.unwrap_or_default(),
            variant: json.variant.unwrap_or_default(),
        },
        settings: Settings {
            entrypoint: run.entrypoint.unwrap_or_default(),
            command: run.command.unwrap_or_default(),
            environment: run.environment.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
            created: json.created,
        },
        diff_ids: diff_ids.iter().map(|text| digest(place, text)).collect::<Result<_>>()?,
    })
}

/// Reads a document.
pub(super) fn from_json<T: DeserializeOwned>(place: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = if error.is_syntax() { format!("it is no JSON: {error}") } else { error.to_string() };
        Error::malformed(place, reason)
    })
}

/// Reads a digest of a document; what is none makes the document malformed.
fn digest(place: &str, text: &str) -> Result<Digest> {
    text.parse().map_err(|error| match error {
        Error::InvalidInput { reason, .. } => Error::malformed(place, format!("the digest {text:?}: {reason}")),
        other => other,
    })
}

// The second names are those that the reference writes into repositories.

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    #[serde(alias = "SchemaVersion")]
    schema_version: Option<u64>,
    #[serde(alias = "MediaType")]
    media_type: Option<String>,
    artifact_type: Option<String>,
    #[serde(alias = "Config")]
    config: Option<DescriptorJson>,
    #[serde(alias = "Layers")]
    layers: Option<Vec<DescriptorJson>>,
    #[serde(alias = "Manifests")]
    manifests: Option<Vec<EntryJson>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorJson {
    #[serde(alias = "MediaType")]
    media_type: Option<String>,
    #[serde(alias = "Digest")]
    digest: String,
    #[serde(alias = "Size")]
    size: u64,
    urls: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryJson {
    #[serde(flatten)]
    descriptor: DescriptorJson,
    platform: Option<PlatformJson>,
    annotations: Option<BTreeMap<String, String>>,
    artifact_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct PlatformJson {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ConfigJson {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RunJson>,
    rootfs: Option<RootfsJson>,
}

#[derive(Debug, Deserialize)]
struct RootfsJson {
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct RunJson {
    #[serde(rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(rename = "Cmd")]
    command: Option<Vec<String>>,
    #[serde(rename = "Env")]
    environment: Option<Vec<String>>,
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

impl DescriptorJson {
    fn into_descriptor(self, place: &str) -> Result<Descriptor> {
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest: digest(place, &self.digest)?,
            size: self.size,
            urls: self.urls.unwrap_or_default(),
        })
    }
}

impl EntryJson {
    fn into_entry(self, place: &str) -> Result<IndexEntry> {
        let platform = self.platform.map(|platform| Platform {
            os: platform.os.unwrap_or_default(),
            architecture: platform.architecture.unwrap_or_default(),
            variant: platform.variant.unwrap_or_default(),
        });
        Ok(IndexEntry {
            descriptor: self.descriptor.into_descriptor(place)?,
            platform: platform.filter(|platform| *platform != Platform::default()),
            annotations: self.annotations.unwrap_or_default(),
            artifact_type: self.artifact_type,
        })
    }
}

#[cfg(test)]
mod tests;
