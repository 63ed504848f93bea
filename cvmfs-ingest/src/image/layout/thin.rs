//! Thin images: what old Docker daemons with the CernVM-FS graph driver pull instead of the layers.
//!
//! A thin image has one layer with one file, `thin.json`, that names the unpacked layers. Everything else is as in the
//! image that it stands for, so it runs in the same way.
//!
//! Source: `ducc/docker-api/util.go`; `plugins/util/cvmfs.go` of `docker-graphdriver`.

use std::io::Write;

use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepositoryName;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{FILE_PERMISSIONS, LayerPlace, indented};
use crate::image::digest::Digest;
use crate::image::{Document, Image};

/// What a thin image consists of, to be pushed in this order. The same image gives the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thin {
    /// The layer: a tar archive, compressed with gzip.
    pub layer: Document,
    /// The configuration.
    pub config: Document,
    /// The manifest, of type [`MANIFEST_TYPE`].
    pub manifest: Document,
}

/// The media type of the manifest: those of Docker, which daemons have known for longest.
pub const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What tells the driver's users that an image is thin.
const VARIABLE: &str = "CVMFS_IMAGE";

/// The thin image for an image whose layers are in `repository`; `origin` is the name under which that was converted.
///
/// # Errors
/// `Malformed` if the image's configuration is none.
pub fn thin(repository: &RepositoryName, origin: &str, image: &Image) -> Result<Thin> {
    let archive = archive(&description(repository, origin, image));
    let config = document(config(image, &Digest::of(&archive))?);
    let layer = document(compress(&archive));
    let descriptor = |media_type: &str, document: &Document| json!({ "mediaType": media_type, "size": document.bytes.len(), "digest": document.digest.to_string() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config),
        "layers": [descriptor(LAYER_TYPE, &layer)],
    });
    let manifest = document(indented(&manifest));
    Ok(Thin { layer, config, manifest })
}

fn document(bytes: Vec<u8>) -> Document {
    Document { digest: Digest::of(&bytes), bytes }
}

/// `thin.json`.
fn description(repository: &RepositoryName, origin: &str, image: &Image) -> Vec<u8> {
    #[derive(Serialize)]
    struct Description<'a> {
        version: &'a str,
        origin: &'a str,
        layers: Vec<Layer>,
    }
    #[derive(Serialize)]
    struct Layer {
        digest: String,
        url: String,
    }
    let layer = |layer: &crate::image::Layer| Layer {
        digest: layer.blob.digest.hex(),
        url: format!("cvmfs://{repository}{}", LayerPlace::of(layer).root()),
    };
    // The lowest first; the driver turns them round.
    let layers = image.layers.iter().map(layer).collect();
    indented(&Description { version: "1.0", origin, layers })
}

/// A tar archive with the file.
fn archive(description: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(FILE_PERMISSIONS);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(description.len() as u64);
    let mut builder = tar::Builder::new(Vec::new());
    let written = builder.append_data(&mut header, "thin.json", description).and_then(|()| builder.into_inner());
    written.expect("memory can be written to, and the name is short")
}

fn compress(archive: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let written = encoder.write_all(archive).and_then(|()| encoder.finish());
    written.expect("memory can be written to")
}

/// The configuration of the image, for its only layer.
fn config(image: &Image, diff_id: &Digest) -> Result<Vec<u8>> {
    let malformed = |reason: String| Error::malformed(format!("image configuration {}", image.config.digest), reason);
    let mut config: Map<String, Value> =
        serde_json::from_slice(&image.config.bytes).map_err(|error| malformed(error.to_string()))?;
    let mut step = json!({ "created_by": "thin.json" });
    if let Some(created) = config.get("created") {
        step["created"] = created.clone();
    }
    config.insert("history".to_owned(), json!([step]));
    config.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": [diff_id.to_string()] }));

    let settings = match config.entry("config").or_insert(Value::Null) {
        Value::Object(settings) => settings,
        other => {
            *other = json!({});
            other.as_object_mut().expect("it was made one")
        }
    };
    let prefix = format!("{VARIABLE}=");
    let mut variables = image.settings.environment.clone();
    variables.retain(|variable| !variable.starts_with(&prefix));
    variables.push(format!("{prefix}true"));
    settings.insert("Env".to_owned(), json!(variables));
    Ok(indented(&config))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::image::{Descriptor, Layer, Platform, Settings};

    fn image(config: &Value, environment: &[&str]) -> Image {
        let blob = |name: &str| {
            let digest = Digest::of(name.as_bytes());
            Descriptor { media_type: String::new(), digest, size: 1, urls: Vec::new() }
        };
        let layer = |name: &str| Layer { blob: blob(name), diff_id: Digest::of(b"unpacked") };
        Image {
            manifest: document(b"{}".to_vec()),
            config: document(config.to_string().into_bytes()),
            platform: Platform::default(),
            settings: Settings {
                environment: environment.iter().map(ToString::to_string).collect(),
                ..Settings::default()
            },
            layers: vec![layer("diff-one"), layer("diff-two")],
        }
    }

    fn make(config: &Value, environment: &[&str]) -> Thin {
        let repository = "images.example.org".parse().unwrap();
        thin(&repository, "https://r.org/a:1", &image(config, environment)).unwrap()
    }

    fn parsed(document: &Document) -> Value {
        assert_eq!(Digest::of(&document.bytes), document.digest);
        serde_json::from_slice(&document.bytes).unwrap()
    }

    #[test]
    fn the_only_file_names_the_layers_from_the_lowest() {
        let thin = make(&json!({}), &[]);
        let mut archive = Vec::new();
        flate2::read::GzDecoder::new(&thin.layer.bytes[..]).read_to_end(&mut archive).unwrap();
        let mut members = tar::Archive::new(&archive[..]);
        let mut members = members.entries().unwrap();
        let mut member = members.next().unwrap().unwrap();
        assert_eq!(member.path_bytes(), &b"thin.json"[..]);
        assert_eq!(member.header().mode().unwrap(), 0o644);
        let mut text = String::new();
        member.read_to_string(&mut text).unwrap();
        // `printf diff-one | sha256sum`, and so on.
        let [one, two] = [
            "217564a4e62060d2b6ebae8032e8d492174a25802b17df7666b4c90886e6fd8b",
            "013aff479bd81915831c604db515a4c23184a664028a9d66cdb3c6e1ff6e8196",
        ];
        let expected = json!({
            "version": "1.0",
            "origin": "https://r.org/a:1",
            "layers": [
                { "digest": one, "url": format!("cvmfs://images.example.org/.layers/21/{one}/layerfs") },
                { "digest": two, "url": format!("cvmfs://images.example.org/.layers/01/{two}/layerfs") },
            ],
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert!(members.next().is_none());
        assert_eq!(parsed(&thin.config)["rootfs"]["diff_ids"], json!([Digest::of(&archive).to_string()]));
    }

    #[test]
    fn the_manifest_is_one_that_old_daemons_know() {
        let thin = make(&json!({}), &[]);
        let expected = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": thin.config.digest.to_string(),
                "size": thin.config.bytes.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "digest": thin.layer.digest.to_string(),
                "size": thin.layer.bytes.len(),
            }],
        });
        assert_eq!(parsed(&thin.manifest), expected);
        assert_eq!(make(&json!({}), &[]), thin);
    }

    #[test]
    fn what_runs_is_what_ran() {
        let before = json!({
            "created": "2024-01-02T03:04:05Z",
            "os": "linux",
            "config": { "Entrypoint": ["/bin/x", "a b"], "User": "1000", "Env": ["A=1", "CVMFS_IMAGE=no"] },
            "rootfs": { "type": "layers", "diff_ids": ["x", "y"] },
            "history": [{}, { "empty_layer": true }, {}],
        });
        let config = parsed(&make(&before, &["A=1", "CVMFS_IMAGE=no"]).config);
        let env = json!(["A=1", "CVMFS_IMAGE=true"]);
        assert_eq!(config["config"], json!({ "Entrypoint": ["/bin/x", "a b"], "User": "1000", "Env": env }));
        assert_eq!(config["os"], "linux");
        assert_eq!(config["history"], json!([{ "created": "2024-01-02T03:04:05Z", "created_by": "thin.json" }]));
        for before in [json!({}), json!({ "config": null })] {
            assert_eq!(parsed(&make(&before, &[]).config)["config"], json!({ "Env": ["CVMFS_IMAGE=true"] }));
        }
    }

    #[test]
    fn a_configuration_that_is_none_is_refused() {
        let repository = "images.example.org".parse().unwrap();
        let error = thin(&repository, "", &image(&json!([]), &[])).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
}
