//! Images made on the spot, and the programs that copy them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use cvmfs_ingest::image::digest::Digest;
use cvmfs_ingest::image::source::ImageStore;
use cvmfs_ingest::image::{Descriptor, Image};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::servers::{PASSWORD, PLAIN, USER};

/// An image in an OCI layout, and what went into it.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) directory: PathBuf,
    pub(crate) tag: &'static str,
    /// The uncompressed archives of the layers.
    pub(crate) tars: Vec<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Digest,
}

impl Sample {
    /// What `skopeo` calls it.
    pub(crate) fn name(&self) -> String {
        format!("oci:{}:{}", self.directory.display(), self.tag)
    }
}

/// The directory that everything of this test binary is in. Statics are never dropped: a process that notices the end of
/// this one removes it.
pub(crate) static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let directory = tempfile::Builder::new().prefix("cvmfs-registry.").tempdir().expect("a temporary directory").keep();
    let remover = Command::new("sh")
        .args(["-c", "cat >/dev/null; rm -rf \"$1\"", "remover"])
        .arg(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Scratch { directory, _remover: remover.expect("a shell") }
});

/// A directory, and who removes it.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    _remover: Child,
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }
}

/// An image of three layers for linux/amd64: a large one, a small one, and the small one again.
pub(crate) static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let directory = SCRATCH.path().join("sample");
    // Nothing that compresses well, so that the blob is large as well.
    let noise: String = (0..32_768_u32).map(|number| Digest::of(&number.to_le_bytes()).hex()).collect();
    let large = tar_of(&[("etc/os-release", b"ID=sample\n"), ("usr/noise", noise.as_bytes())]);
    let small = tar_of(&[("etc/.wh.os-release", b""), ("etc/motd", b"hello\n")]);
    make_layout(&directory, "v1", &[("amd64", &[large, small.clone(), small])]).remove(0)
});

/// A layout with an index for two platforms, tagged `multi`.
pub(crate) static MULTI: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let layer = |name: &str| vec![tar_of(&[("etc/architecture", name.as_bytes())])];
    let (amd64, arm64) = (layer("amd64"), layer("arm64"));
    make_layout(&SCRATCH.path().join("multi"), "multi", &[("amd64", &amd64), ("arm64", &arm64)])
});

pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *content).expect("a tar archive");
    }
    archive.into_inner().expect("a tar archive")
}

/// Writes an OCI layout with an image an architecture, under one tag: the image, or an index of several.
fn make_layout(directory: &Path, tag: &'static str, images: &[(&str, &[Vec<u8>])]) -> Vec<Sample> {
    fs::create_dir_all(directory.join("blobs/sha256")).expect("a layout");
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::of(bytes);
        fs::write(directory.join("blobs/sha256").join(digest.hex()), bytes).expect("a blob");
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    };
    let mut samples = Vec::new();
    let mut entries = Vec::new();
    for (architecture, tars) in images {
        let mut layers = Vec::new();
        for tar in *tars {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(tar).expect("gzip");
            layers.push(put(&gzip.finish().expect("gzip"), "application/vnd.oci.image.layer.v1.tar+gzip"));
        }
        let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let config = serde_json::to_vec(&json!({
            "created": "2026-01-31T12:00:00Z", "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "id"], "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .expect("JSON");
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put(&config, "application/vnd.oci.image.config.v1+json"), "layers": layers,
        }))
        .expect("JSON");
        let mut entry = put(&manifest, "application/vnd.oci.image.manifest.v1+json");
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
        let (tars, manifest) = (tars.to_vec(), Digest::of(&manifest));
        samples.push(Sample { directory: directory.to_owned(), tag, tars, config, manifest });
    }
    let mut top = match &entries[..] {
        [entry] => entry.clone(),
        _ => {
            let index = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
            });
            put(&serde_json::to_vec(&index).expect("JSON"), "application/vnd.oci.image.index.v1+json")
        }
    };
    top["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "manifests": [top]});
    fs::write(directory.join("index.json"), index.to_string()).expect("an index");
    fs::write(directory.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").expect("a layout");
    samples
}

/// Runs `skopeo`, which must succeed; gives its output.
pub(crate) fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output().expect("skopeo is installed");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Copies an image into a registry.
pub(crate) fn push(source: &str, address: &str, name: &str, more: &[&str]) {
    let target = format!("docker://{address}/{name}");
    let credentials = format!("{USER}:{PASSWORD}");
    let mut arguments = vec!["copy", "-q", "--dest-tls-verify=false"];
    if address != PLAIN.address {
        arguments.extend(["--dest-creds", &credentials]);
    }
    skopeo(&[&arguments[..], more, &[source, &target]].concat());
}

/// The sample with layers that are compressed with Zstandard, in a layout of its own.
pub(crate) fn zstd_sample(name: &str) -> String {
    let target = format!("oci:{}:new", SCRATCH.path().join(name).display());
    skopeo(&["copy", "-q", "--dest-compress", "--dest-compress-format", "zstd", &SAMPLE.name(), &target]);
    target
}

/// Reads a blob to its end.
pub(crate) fn read(store: &dyn ImageStore, blob: &Descriptor) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.blob(blob).expect("the blob opens").read_to_end(&mut bytes).expect("the blob is read");
    bytes
}

/// Checks an image's layers, whose blobs may be compressed, against the archives that went into it.
pub(crate) fn assert_layers(store: &dyn ImageStore, image: &Image, tars: &[Vec<u8>]) {
    assert_eq!(image.layers.len(), tars.len());
    for (layer, tar) in image.layers.iter().zip(tars) {
        let blob = read(store, &layer.blob);
        assert_eq!((Digest::of(&blob), blob.len() as u64), (layer.blob.digest, layer.blob.size));
        let (_, mut plain) = cvmfs_ingest::archive::decompress(Box::new(std::io::Cursor::new(blob))).expect("a format");
        let mut bytes = Vec::new();
        plain.read_to_end(&mut bytes).expect("decompression");
        assert!(bytes == *tar, "a layer has other content");
        assert_eq!(Digest::of(&bytes), layer.diff_id);
    }
}

/// A manifest as JSON.
pub(crate) fn as_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}
