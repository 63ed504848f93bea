//! Images as OCI layouts, layer by layer, and their conversion.

use std::cell::RefCell;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use openssl::sha::sha256;
use serde_json::{Value, json};

use crate::support::{Done, Listing, NAME, Site, run};

/// A blob for a layer, and what images say of it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) diff_id: String,
    /// The size that is announced.
    pub(crate) size: usize,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

impl Layer {
    pub(crate) fn plain(tar: &[u8]) -> Self {
        Self::new(tar.to_vec(), "application/vnd.oci.image.layer.v1.tar", tar)
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Self::new(filter(&["gzip", "-1nc"], tar), "application/vnd.oci.image.layer.v1.tar+gzip", tar)
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        Self::new(filter(&["zstd", "-qc"], tar), "application/vnd.oci.image.layer.v1.tar+zstd", tar)
    }

    /// As eStargz has it: several members, and an empty one at the end that says where the list of files is.
    pub(crate) fn estargz(tar: &[u8]) -> Self {
        let mut blob: Vec<u8> = tar.chunks(64 << 10).flat_map(|part| filter(&["gzip", "-nc"], part)).collect();
        let place = format!("{:016x}STARGZ", blob.len());
        blob.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
        blob.extend(place.as_bytes());
        blob.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        Self::new(blob, "application/vnd.oci.image.layer.v1.tar+gzip", tar)
    }

    fn new(blob: Vec<u8>, media_type: &'static str, tar: &[u8]) -> Self {
        Self { size: blob.len(), blob, media_type, diff_id: digest(tar) }
    }

    /// The name of its directory.
    pub(crate) fn name(&self) -> String {
        hex(&self.blob)
    }

    /// Where the repository has it unpacked.
    pub(crate) fn root(&self) -> String {
        let name = self.name();
        format!(".layers/{}/{name}/layerfs", &name[..2])
    }
}

/// What a program makes of bytes.
fn filter(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command_ = Command::new(command[0]);
    let mut child =
        command_.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a filter");
    let (mut stdin, input) = (child.stdin.take().expect("piped"), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input).expect("it reads everything"));
    let output = child.wait_with_output().expect("a filter");
    writer.join().expect("no panic");
    assert!(output.status.success());
    output.stdout
}

/// A directory in the layout of OCI images.
pub(crate) struct Layout {
    pub(crate) directory: PathBuf,
    tags: RefCell<Vec<Value>>,
}

impl Layout {
    pub(crate) fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(directory.join("blobs/sha256")).expect("mkdir");
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout");
        Self { directory, tags: RefCell::default() }
    }

    pub(crate) fn blob_file(&self, blob: &[u8]) -> PathBuf {
        self.directory.join("blobs/sha256").join(hex(blob))
    }

    fn put(&self, bytes: &[u8], media_type: &str) -> Value {
        fs::write(self.blob_file(bytes), bytes).expect("a blob");
        json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
    }

    fn tag(&self, tag: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let mut tags = self.tags.borrow_mut();
        tags.retain(|other| other["annotations"] != descriptor["annotations"]);
        tags.push(descriptor);
        let index = json!({ "schemaVersion": 2, "manifests": *tags });
        fs::write(self.directory.join("index.json"), index.to_string()).expect("index");
    }

    /// An image of layers for an architecture, perhaps with `/variant`: the descriptor of its manifest, and the name of its tree.
    fn manifest(&self, architecture: &str, layers: &[Layer]) -> (Value, String) {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let history: Vec<_> = layers.iter().map(|_| json!({ "created_by": "test" })).collect();
        let config = json!({
            "created": "2026-01-31T12:00:00Z", "architecture": architecture, "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        });
        let config = config.to_string().into_bytes();
        let descriptor = |layer: &Layer| {
            let mut descriptor = self.put(&layer.blob, layer.media_type);
            descriptor["size"] = layer.size.into();
            descriptor
        };
        let descriptors: Vec<_> = layers.iter().map(descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.put(&config, "application/vnd.oci.image.config.v1+json"), "layers": descriptors,
        });
        let mut descriptor = self.put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        let (architecture, variant) = architecture.split_once('/').unwrap_or((architecture, ""));
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        if !variant.is_empty() {
            descriptor["platform"]["variant"] = variant.into();
        }
        (descriptor, flat(&config))
    }

    /// Tags an image; returns where the repository has its tree.
    pub(crate) fn image(&self, tag: &str, layers: &[Layer]) -> String {
        let (descriptor, flat) = self.manifest("amd64", layers);
        self.tag(tag, descriptor);
        flat
    }

    /// Tags an index; returns where the repository has the trees.
    pub(crate) fn index(&self, tag: &str, images: &[(&str, &[Layer])]) -> Vec<String> {
        let (manifests, flats): (Vec<_>, _) =
            images.iter().map(|(architecture, layers)| self.manifest(architecture, layers)).unzip();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        self.tag(tag, self.put(index.to_string().as_bytes(), media_type));
        flats
    }

    /// What a tag is called by this and by other programs.
    pub(crate) fn name(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.directory.display())
    }
}

/// Where a repository has the tree of the image with this configuration.
pub(crate) fn flat(config: &[u8]) -> String {
    let name = hex(config);
    format!(".flat/{}/{name}", &name[..2])
}

/// The command that converts an image.
pub(crate) fn command(site: &Site, image: &str, name: &str, more: &[&str]) -> Command {
    let mut command = site.command("cvmfs-ingest");
    command.args(["--json", "image", image, "--name", name]).args(more);
    command
}

/// Converts an image called `r.example.org/NAME`.
pub(crate) fn convert(site: &Site, image: &str, name: &str, more: &[&str]) -> Done {
    run(&mut command(site, image, &format!("r.example.org/{name}"), more))
}

/// A repository, and a layout beside it.
pub(crate) fn site() -> (Site, Layout) {
    let site = Site::with_repository(&[]);
    let layout = Layout::new(site.path("layout"));
    (site, layout)
}

/// A listing without the tree's own directory.
pub(crate) fn listing(site: &Site, directory: &str) -> Listing {
    let listing = site.list(&[]);
    assert!(listing.0.contains_key(directory), "{directory} is not in {NAME}");
    listing.below(directory)
}

/// Unpacks an image with umoci.
pub(crate) fn umoci(layout: &Layout, tag: &str, to: &Path) -> PathBuf {
    let image = format!("{}:{tag}", layout.directory.display());
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(to)).ok();
    to.join("rootfs")
}
