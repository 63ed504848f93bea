//! What is written down about layers and images.
//!
//! | file | of | for |
//! | --- | --- | --- |
//! | `.layers/<xx>/<blob>/.metadata/layers.json` | a layer | programs of the reference |
//! | `.layers/<xx>/<blob>/.metadata/origin.json` | a layer | programs of the reference |
//! | `.metadata/<name>/manifest.json` | a name | the reference's garbage collection; anybody |
//! | `.metadata/<name>/image.json` | a name | us: what was done, for whom, and how |
//!
//! Source: `ducc/lib/conversion.go`, `ducc/lib/image.go`.

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Generated, LayerPlace, NamePlace, indented};
use crate::image::digest::Digest;
use crate::image::manifest::Platforms;
use crate::image::{Image, Layer, Platform};

/// The description of a layer whose archive has `size` bytes without compression.
pub fn layer_description(layer: &Layer, size: u64, converted: UnixSeconds) -> Generated {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Description {
        id: String,
        created: String,
        compressed_diff_digest: String,
        diff_digest: String,
        diff_size: u64,
    }
    let description = [Description {
        id: layer.diff_id.hex(),
        created: converted.iso(),
        compressed_diff_digest: layer.blob.digest.to_string(),
        diff_digest: layer.diff_id.to_string(),
        diff_size: size,
    }];
    Generated::file(LayerPlace::of(layer).description(), indented(&description))
}

/// The back links of a layer, with those to `images` (digests of configurations) added to the `present` file; `None` if
/// they are all in it. Programs of the reference write the file and never rely on it, so a damaged one is replaced.
pub fn layer_origin(layer: &Layer, present: Option<&[u8]>, images: &[Digest]) -> Option<Generated> {
    #[derive(Serialize, Deserialize, Default)]
    struct Origins {
        origin: Vec<String>,
    }
    let before: Origins = present.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    let mut after: Vec<String> = Vec::new();
    for image in before.origin.iter().cloned().chain(images.iter().map(ToString::to_string)) {
        if !after.contains(&image) {
            after.push(image);
        }
    }
    let bytes = serde_json::to_vec(&Origins { origin: after }).expect("strings can be written as JSON");
    (present != Some(&bytes)).then(|| Generated::file(LayerPlace::of(layer).origin(), bytes))
}

/// The manifest of an image under one of its names, as it was received.
pub fn manifest(place: &NamePlace, image: &Image) -> Generated {
    Generated::file(place.manifest(), image.manifest.bytes.clone())
}

/// The only version of records.
const VERSION: u32 = 1;

/// What was done for one name (and platform), and how: `image.json`.
///
/// Whether anything is to do for the name is answered by this and the digest that its reference resolves to now. All
/// that belongs to the name and to nobody else can be found from it, to be taken away with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this format.
    version: u32,
    /// The reference as it was asked for.
    pub name: String,
    /// What the reference resolved to: the digest of the manifest, or of the index that it was chosen from.
    #[serde(with = "text")]
    pub resolved: Digest,
    /// The digest of the manifest.
    #[serde(with = "text")]
    pub manifest: Digest,
    /// The digest of the configuration: what the image is called by programs.
    #[serde(with = "text")]
    pub config: Digest,
    /// Where it runs.
    #[serde(with = "PlatformFields")]
    pub platform: Platform,
    /// Its layers, the lowest first.
    pub layers: Vec<RecordedLayer>,
    /// How it was converted.
    pub policy: Policy,
    /// When.
    #[serde(with = "text")]
    pub converted: UnixSeconds,
}

/// A layer in a [`Record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLayer {
    /// The digest of the blob as it was transferred.
    #[serde(with = "text")]
    pub blob: Digest,
    /// The digest of the archive.
    #[serde(with = "text")]
    pub diff_id: Digest,
    /// Bytes of the blob.
    pub compressed_size: u64,
    /// Bytes of the archive.
    pub size: u64,
}

/// The choices that decide what an image looks like in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Which images of an index are taken.
    #[serde(with = "text")]
    pub platforms: Platforms,
    /// What becomes of permissions.
    pub permissions: Permissions,
    /// How unpacked layers say what is deleted; `None` if there are none.
    pub layers: Option<Whiteouts>,
    /// Whether there is a merged tree.
    pub flat: bool,
    /// How the image is in podman's store, if it is.
    pub podman: Option<PodmanMode>,
    /// The name of the thin image, if one was pushed.
    pub thin: Option<String>,
}

/// What becomes of the permissions of images' files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Permissions {
    /// They stay.
    #[default]
    Keep,
    /// Everybody may read and search what the owner may.
    WorldReadable,
}

/// How unpacked layers say what is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Whiteouts {
    /// Files that begin with `.wh.`, as in archives.
    #[default]
    Aufs,
    /// Devices 0:0 and attributes, as overlayfs reads them.
    Overlay,
}

impl Whiteouts {
    /// Its name, in options and in the repository.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aufs => "aufs",
            Self::Overlay => "overlay",
        }
    }
}

/// How all layers of a repository say what they remove, written down for those who come later.
pub fn layer_form(form: Whiteouts) -> Generated {
    Generated::file(LayerPlace::form(), format!("{}\n", form.name()))
}

/// How images are in podman's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodmanMode {
    /// As their layers.
    Layers,
    /// As one layer, their merged tree.
    Flat,
}

impl Record {
    /// The record of an image; `sizes` are those of the uncompressed layers, in their order.
    ///
    /// # Panics
    /// If there are not as many sizes as layers.
    pub fn new(
        name: impl Into<String>,
        resolved: Digest,
        image: &Image,
        sizes: &[u64],
        policy: Policy,
        converted: UnixSeconds,
    ) -> Self {
        assert_eq!(image.layers.len(), sizes.len(), "each layer has a size");
        let layer = |(layer, &size): (&Layer, &u64)| RecordedLayer {
            blob: layer.blob.digest,
            diff_id: layer.diff_id,
            compressed_size: layer.blob.size,
            size,
        };
        Self {
            version: VERSION,
            name: name.into(),
            resolved,
            manifest: image.manifest.digest,
            config: image.config.digest,
            platform: image.platform.clone(),
            layers: image.layers.iter().zip(sizes).map(layer).collect(),
            policy,
            converted,
        }
    }

    /// Reads a record; `what` names it in errors.
    ///
    /// # Errors
    /// `Malformed` if it is none, `Unsupported` if a later version wrote it.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let malformed = |error: serde_json::Error| Error::malformed(what, error.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != VERSION {
            return Err(Error::Unsupported { what: format!("{what}: version {version} of image records") });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The file of the record.
    pub fn generate(&self, place: &NamePlace) -> Generated {
        Generated::file(place.record(), indented(self))
    }

    /// Whether there is nothing to do for a reference that resolves to this digest now and is wanted this way. Whoever wants
    /// no thin image leaves the one that was pushed.
    pub fn is_current(&self, resolved: &Digest, policy: &Policy) -> bool {
        let thin = policy.thin.clone().or_else(|| self.policy.thin.clone());
        self.resolved == *resolved && self.policy == Policy { thin, ..policy.clone() }
    }
}

/// [`Platform`], in records.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Platform")]
struct PlatformFields {
    os: String,
    architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    variant: String,
}

/// Values that are written as their text.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'d, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'d>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layout::Reference;
    use crate::image::{Descriptor, Document, Settings};

    fn document(bytes: &[u8]) -> Document {
        Document { digest: Digest::of(bytes), bytes: bytes.to_vec() }
    }

    fn layer(blob: &[u8], diff: &[u8]) -> Layer {
        let blob = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest: Digest::of(blob),
            size: 29_126_232,
            urls: Vec::new(),
        };
        Layer { blob, diff_id: Digest::of(diff) }
    }

    fn image() -> Image {
        Image {
            manifest: document(b"{ \"manifest\": 1 }"),
            config: document(b"{}"),
            platform: Platform { os: "linux".into(), architecture: "arm".into(), variant: "v6".into() },
            settings: Settings::default(),
            layers: vec![layer(b"abc", b"diff-one")],
        }
    }

    fn content(entry: Option<Generated>) -> (String, String) {
        match entry {
            Some(Generated::File { path, bytes, permissions: 0o644 }) => {
                (path.to_string(), String::from_utf8(bytes).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    /// `printf abc | sha256sum`, `printf diff-one | sha256sum`
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ONE: &str = "217564a4e62060d2b6ebae8032e8d492174a25802b17df7666b4c90886e6fd8b";

    #[test]
    fn layers_are_described_as_the_reference_does() {
        let expected = format!(
            "[\n {{\n  \"id\": \"{ONE}\",\n  \"created\": \"2024-10-27T03:46:40Z\",\n  \"compressed-diff-digest\": \
             \"sha256:{ABC}\",\n  \"diff-digest\": \"sha256:{ONE}\",\n  \"diff-size\": 77836800\n }}\n]\n"
        );
        let entry = layer_description(&layer(b"abc", b"diff-one"), 77_836_800, UnixSeconds(1_730_000_800));
        assert_eq!(content(Some(entry)), (format!("/.layers/ba/{ABC}/.metadata/layers.json"), expected));
    }

    #[test]
    fn back_links_are_added_once() {
        let layer = layer(b"abc", b"diff-one");
        let [first, second] = [Digest::of(b"abc"), Digest::of(b"diff-one")];
        let origin =
            |present: Option<&str>, images: &[Digest]| layer_origin(&layer, present.map(str::as_bytes), images);
        let one = format!("{{\"origin\":[\"sha256:{ABC}\"]}}");
        let both = format!("{{\"origin\":[\"sha256:{ABC}\",\"sha256:{ONE}\"]}}");
        let file = |text: &str| (format!("/.layers/ba/{ABC}/.metadata/origin.json"), text.to_owned());
        assert_eq!(content(origin(None, &[first])), file(&one));
        assert_eq!(content(origin(Some(&one), &[second, first])), file(&both));
        assert_eq!(origin(Some(&both), &[first]), None);
        let repeated = format!("{{\"origin\":[\"sha256:{ABC}\",\"sha256:{ABC}\"]}}");
        assert_eq!(content(origin(Some(&repeated), &[first])), file(&one));
        assert_eq!(content(origin(Some("{\"origin\":"), &[first])), file(&one));
    }

    #[test]
    fn manifests_are_kept_as_they_were_received() {
        let place = NamePlace::new("r.org", "a/b", Reference::Tag("1")).unwrap();
        let expected = ("/.metadata/r.org/a/b:1/manifest.json".to_owned(), "{ \"manifest\": 1 }".to_owned());
        assert_eq!(content(Some(manifest(&place, &image()))), expected);
    }

    fn record() -> Record {
        let policy = Policy {
            platforms: Platforms::default(),
            permissions: Permissions::WorldReadable,
            layers: Some(Whiteouts::Overlay),
            flat: true,
            podman: Some(PodmanMode::Flat),
            thin: None,
        };
        Record::new("https://r.org/a/b:1", Digest::of(b"index"), &image(), &[4096], policy, UnixSeconds(1_730_000_800))
    }

    #[test]
    fn records_say_what_was_done() {
        let place = NamePlace::new("r.org", "a/b", Reference::Tag("1")).unwrap();
        let (path, text) = content(Some(record().generate(&place)));
        assert_eq!(path, "/.metadata/r.org/a/b:1/image.json");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        // sha256sum of `index`, `{ "manifest": 1 }` and `{}`.
        let expected = serde_json::json!({
            "version": 1,
            "name": "https://r.org/a/b:1",
            "resolved": "sha256:1bc04b5291c26a46d918139138b992d2de976d6851d0893b0476b85bfbdfc6e6",
            "manifest": "sha256:033eaeb05eecb39db8fe6dbf42014474e94a0f69e13c83a41971d80170e54818",
            "config": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "platform": { "os": "linux", "architecture": "arm", "variant": "v6" },
            "layers": [{
                "blob": format!("sha256:{ABC}"),
                "diff_id": format!("sha256:{ONE}"),
                "compressed_size": 29_126_232,
                "size": 4096,
            }],
            "policy": {
                "platforms": "linux/amd64",
                "permissions": "world-readable",
                "layers": "overlay",
                "flat": true,
                "podman": "flat",
                "thin": null,
            },
            "converted": "2024-10-27T03:46:40Z",
        });
        assert_eq!(json, expected);
        assert_eq!(Record::parse("image.json", text.as_bytes()).unwrap(), record());
    }

    #[test]
    fn a_record_tells_whether_anything_is_to_do() {
        let record = record();
        assert!(record.is_current(&Digest::of(b"index"), &record.policy));
        assert!(!record.is_current(&record.manifest, &record.policy));
        assert!(!record.is_current(&record.resolved, &Policy { podman: None, ..record.policy.clone() }));
        // A thin image stays, whoever comes without a wish for one; another name or the first one is something to do.
        let wish = |thin: Option<&str>| Policy { thin: thin.map(str::to_owned), ..record.policy.clone() };
        let mut with_thin = record.clone();
        with_thin.policy = wish(Some("r/thin:1"));
        let does = |record: &Record, thin| record.is_current(&record.resolved, &wish(thin));
        assert!(does(&with_thin, None) && does(&with_thin, Some("r/thin:1")) && !does(&with_thin, Some("r/thin:2")));
        assert!(does(&record, None) && !does(&record, Some("r/thin:1")));
    }

    #[test]
    fn records_of_later_versions_are_not_guessed_at() {
        let error = Record::parse("image.json", br#"{"version":2,"all":"new"}"#).unwrap_err();
        assert_eq!(error.to_string(), "image.json: version 2 of image records is not supported");
        assert!(matches!(Record::parse("image.json", b"{}"), Err(Error::Malformed { .. })));
        assert!(matches!(Record::parse("image.json", br#"{"version":1}"#), Err(Error::Malformed { .. })));
    }
}
