//! podman's additional image store, used by podman.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::path::RepoPath;
use cvmfs_ingest::image::digest::Digest;
use cvmfs_ingest::image::layout::podman::{Addition, Content, Links, Store, images_file, layers_file};
use cvmfs_ingest::image::layout::thin::thin;
use cvmfs_ingest::image::layout::{FlatPlace, LayerPlace};
use cvmfs_ingest::image::{Descriptor, Document, Image, Layer, Platform, Settings};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use serde_json::{Value, json};

use super::support::mounted::{Driver, Podman};
use super::support::{on_disk, put};

/// A repository on disk for podman, in the making.
struct Site {
    podman: Podman,
    links: Links,
    now: i64,
}

impl Deref for Site {
    type Target = Podman;

    fn deref(&self) -> &Podman {
        &self.podman
    }
}

impl Site {
    /// `None`, with a note, if this process may not mount.
    fn new(driver: Driver) -> Option<Self> {
        let podman = Podman::new(driver)?;
        let links = Links::Absolute { mountpoint: format!("{}/client", podman.path().display()) };
        Some(Self { podman, links, now: 1_730_000_800 })
    }

    /// Unpacks a layer: makes what the script says in its directory.
    fn layer(&self, name: &str, fill: impl FnOnce(&Path)) -> Layer {
        let blob = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest: Digest::of(format!("blob of {name}").as_bytes()),
            size: 100,
            urls: Vec::new(),
        };
        let layer = Layer { blob, diff_id: Digest::of(name.as_bytes()) };
        let root = on_disk(&self.repository(), &LayerPlace::of(&layer).root());
        fs::create_dir_all(&root).unwrap();
        fill(&root);
        layer
    }

    fn read(&self, path: &RepoPath) -> Option<Vec<u8>> {
        fs::read(on_disk(&self.repository(), path)).ok()
    }

    /// Changes the store.
    fn change(&mut self, change: impl FnOnce(&mut Store, UnixSeconds)) {
        self.now += 1;
        let now = UnixSeconds(self.now);
        let (images, layers) = (self.read(&images_file()), self.read(&layers_file()));
        let mut store = Store::open(images.as_deref(), layers.as_deref(), self.links.clone()).unwrap();
        change(&mut store, now);
        put(&self.repository(), &store.finish(now));
    }

    fn add(&mut self, image: &Image, names: &[&str]) {
        let sizes = vec![4096; image.layers.len()];
        self.add_content(image, names, Content::Layers { sizes: &sizes });
    }

    fn add_content(&mut self, image: &Image, names: &[&str], content: Content<'_>) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        self.change(|store, now| store.add(&Addition { image, names: &names, content }, now).unwrap());
    }
}

fn image(name: &str, layers: &[&Layer]) -> Image {
    let document = |value: Value| {
        let bytes = value.to_string().into_bytes();
        Document { digest: Digest::of(&bytes), bytes }
    };
    let history: Vec<_> = layers.iter().map(|_| json!({ "created_by": name })).collect();
    let config = document(json!({
        "created": "2024-01-02T03:04:05Z",
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["/bin/sh", "-c", format!("echo {name}")], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>() },
        "history": history,
    }));
    let blobs = layers.iter().map(|layer| &layer.blob);
    let manifest = document(json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest.to_string(),
            "size": config.bytes.len(),
        },
        "layers": blobs
            .map(|blob| json!({ "mediaType": blob.media_type, "digest": blob.digest.to_string(), "size": blob.size }))
            .collect::<Vec<_>>(),
    }));
    Image {
        manifest,
        config,
        platform: Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() },
        settings: Settings { created: Some("2024-01-02T03:04:05Z".into()), ..Settings::default() },
        layers: layers.iter().copied().cloned().collect(),
    }
}

/// A system that can run, and files that say where they come from.
fn base(root: &Path, name: &str) {
    for directory in ["bin", "dev", "proc", "sys", "etc", "tmp", "data", "data/deep"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for program in ["sh", "cat", "ls", "echo"] {
        symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    for file in ["etc/name", "etc/deleted", "data/hidden", "data/deep/hidden"] {
        fs::write(root.join(file), format!("{name}\n")).unwrap();
    }
}

/// Deletes a file, and replaces a directory, as overlayfs has it.
fn changes(root: &Path) {
    for directory in ["etc", "data"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    mknodat(CWD, root.join("etc/deleted"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    for attribute in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        setxattr(root.join("data"), attribute, b"y", XattrFlags::empty()).unwrap();
    }
    fs::write(root.join("data/new"), "").unwrap();
}

/// The same, as archives have it: fuse-overlayfs reads it, the kernel does not.
fn archived_changes(root: &Path) {
    for directory in ["etc", "data"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    for file in ["etc/.wh.deleted", "data/.wh..wh..opq", "data/new"] {
        fs::write(root.join(file), "").unwrap();
    }
}

const LOOK: [&str; 3] = ["/bin/sh", "-c", "cat /etc/name; ls /etc /data"];

/// What [`LOOK`] prints in an image with [`base`] and [`changes`]: of `/etc` also what podman puts there.
#[track_caller]
fn assert_merged(seen: &str, name: &str) {
    let own = |line: &&str| !matches!(*line, "hosts" | "hostname" | "resolv.conf" | "mtab" | "");
    let lines: Vec<&str> = seen.lines().filter(own).collect();
    assert_eq!(lines, [name, "/data:", "new", "/etc:", "name"]);
}

#[test]
fn images_of_layers_are_listed_looked_at_and_run() {
    for driver in [Driver::Fuse, Driver::Kernel] {
        let Some(mut site) = Site::new(driver) else { return };
        let one = site.layer("one", |root| base(root, "one"));
        let two = site.layer("two", |root| base(root, "two"));
        let upper = site.layer("upper", changes);
        let top = site.layer("top", |root| fs::write(root.join("top"), "").unwrap());
        let (first, second) = (image("first", &[&one, &upper, &top]), image("second", &[&two, &upper]));
        site.add(&first, &["r.example.org/group/first:1"]);
        site.add(&second, &["r.example.org/group/second:1", "r.example.org/group/second:latest"]);
        let expected = [
            format!("r.example.org/group/first:1 {}", first.config.digest),
            format!("r.example.org/group/second:1 {}", second.config.digest),
            format!("r.example.org/group/second:latest {}", second.config.digest),
        ];
        assert_eq!(site.images(), expected, "{driver:?}");

        // By name, by a part of it, by id, by digest.
        let digest = format!("r.example.org/group/first@{}", first.manifest.digest);
        for name in ["r.example.org/group/first:1", "first:1", &first.config.digest.hex(), &digest] {
            let inspected: Value = serde_json::from_str(&site.ask(&["image", "inspect", name])).unwrap();
            assert_eq!(inspected[0]["Id"], first.config.digest.hex(), "{name}");
            assert_eq!(inspected[0]["Digest"], first.manifest.digest.to_string(), "{name}");
            let layers = inspected[0]["RootFS"]["Layers"].as_array().unwrap();
            assert_eq!(layers, &[&one, &upper, &top].map(|layer| layer.diff_id.to_string()), "{name}");
        }
        assert_eq!(site.run(&first.config.digest.hex(), &[]), "first\n");
        assert_merged(&site.run(&digest, &LOOK), "one");
        // The same layer on another one.
        assert_merged(&site.run("r.example.org/group/second:latest", &LOOK), "two");

        // What users do who build on an image.
        let diff = site.ask(&["image", "diff", "r.example.org/group/first:1"]);
        assert_eq!(diff, "A /top\n", "{driver:?}");
        let container = site.ask(&["create", "--network", "none", "r.example.org/group/first:1"]);
        site.ask(&["commit", "--quiet", container.trim(), "localhost/own:1"]);
        assert_merged(&site.run("localhost/own:1", &LOOK), "one");
    }
}

#[test]
fn trees_are_run_as_one_layer() {
    let Some(mut site) = Site::new(Driver::Kernel) else { return };
    let one = site.layer("one", |root| base(root, "one"));
    let upper = site.layer("upper", changes);
    let first = image("first", &[&one, &upper]);
    let root = on_disk(&site.repository(), FlatPlace::of(&first).root());
    fs::create_dir_all(&root).unwrap();
    base(&root, "flat");
    site.add_content(&first, &["r.example.org/first:1"], Content::Flat { size: 4096 });
    assert_eq!(site.images(), [format!("r.example.org/first:1 {}", first.config.digest)]);
    assert_eq!(site.run("r.example.org/first:1", &["/bin/cat", "/etc/name"]), "flat\n");

    // The other way to store it takes its place.
    site.add(&first, &[]);
    assert_merged(&site.run("r.example.org/first:1", &LOOK), "one");
    assert_eq!(fs::read_dir(site.repository().join("podmanStore/overlay/l")).unwrap().count(), 2);

    // Where nobody knows the mount point.
    site.links = Links::Relative;
    site.add(&first, &[]);
    site.mount("elsewhere");
    let conf = site.path().join("storage.conf");
    let text = fs::read_to_string(&conf).unwrap().replace("/client/", "/elsewhere/");
    fs::write(conf, text).unwrap();
    assert!(Command::new("umount").arg(site.path().join("client")).status().unwrap().success());
    assert_merged(&site.run("r.example.org/first:1", &LOOK), "one");
}

#[test]
fn names_move_and_images_go() {
    let Some(mut site) = Site::new(Driver::Fuse) else { return };
    let one = site.layer("one", |root| base(root, "one"));
    let two = site.layer("two", |root| base(root, "two"));
    let upper = site.layer("upper", archived_changes);
    let (old, new) = (image("old", &[&one, &upper]), image("new", &[&two]));
    site.add(&old, &["r.example.org/a:latest"]);
    // The second tag of an image, in another run.
    site.add(&old, &["r.example.org/a:1"]);
    site.add(&new, &["r.example.org/a:latest"]);
    let expected =
        [format!("r.example.org/a:1 {}", old.config.digest), format!("r.example.org/a:latest {}", new.config.digest)];
    assert_eq!(site.images(), expected);
    assert_eq!(site.run("r.example.org/a:latest", &[]), "new\n");

    site.change(|store, _| store.remove_names(&["r.example.org/a:1".to_owned()]));
    let expected =
        [format!("<none>:<none> {}", old.config.digest), format!("r.example.org/a:latest {}", new.config.digest)];
    assert_eq!(site.images(), expected);
    assert_merged(&site.run(&old.config.digest.hex(), &LOOK), "one");

    site.change(|store, _| store.remove(&[old.config.digest]));
    assert_eq!(site.images(), [format!("r.example.org/a:latest {}", new.config.digest)]);
    assert_eq!(site.run("r.example.org/a:latest", &[]), "new\n");
    assert!(!site.podman(&["image", "exists", &old.config.digest.hex()]).status.success());
    let overlay = site.repository().join("podmanStore/overlay");
    let mut left: Vec<_> = fs::read_dir(&overlay).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".cvmfscatalog", &two.diff_id.hex(), "l"]);
    assert_eq!(fs::read_dir(overlay.join("l")).unwrap().count(), 1);
}

/// podman takes a thin image for a common one, and finds in it what the graph driver reads.
#[test]
fn thin_images_can_be_pulled() {
    let Some(mut site) = Site::new(Driver::Fuse) else { return };
    let one = site.layer("one", |root| fs::write(root.join("x"), "").unwrap());
    let image = image("first", &[&one]);
    let repository = "images.example.org".parse().unwrap();
    let thin = thin(&repository, "https://r.example.org/first:1", &image).unwrap();
    // podman does nothing at all without its store.
    site.add(&image, &[]);
    let files = site.path().join("thin");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    fs::write(files.join("manifest.json"), &thin.manifest.bytes).unwrap();
    for document in [&thin.config, &thin.layer] {
        fs::write(files.join(document.digest.hex()), &document.bytes).unwrap();
    }
    let id = site.ask(&["pull", "--quiet", &format!("dir:{}", files.display())]);
    assert_eq!(id.trim(), thin.config.digest.hex());
    let inspected: Value = serde_json::from_str(&site.ask(&["image", "inspect", id.trim()])).unwrap();
    let config = &inspected[0]["Config"];
    assert_eq!(config["Cmd"], json!(["/bin/sh", "-c", "echo first"]));
    let container = site.ask(&["create", "--network", "none", id.trim()]);
    let copy = site.path().join("thin.json");
    site.ask(&["cp", &format!("{}:/thin.json", container.trim()), copy.to_str().unwrap()]);
    let copied: Value = serde_json::from_slice(&fs::read(copy).unwrap()).unwrap();
    let blob = one.blob.digest.hex();
    let url = format!("cvmfs://images.example.org/.layers/{}/{blob}/layerfs", &blob[..2]);
    assert_eq!(copied["layers"], json!([{ "digest": blob, "url": url }]));
}

/// A program that holds the lists in memory looks at the lock files to find out that it has to read them again.
#[test]
fn services_notice_new_images() {
    let Some(mut site) = Site::new(Driver::Kernel) else { return };
    let one = site.layer("one", |root| fs::write(root.join("x"), "").unwrap());
    let (old, new) = (image("old", &[&one]), image("new", &[&one]));
    site.add(&old, &["r.example.org/a:1"]);
    let socket = format!("unix://{}/socket", site.path().display());
    let service = Service(site.command(&["system", "service", "--time", "0", &socket]).spawn().unwrap());
    let remote = ["--remote", "--url", &socket];
    let mut answers = (0..500).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        site.podman(&[&remote[..], &["version"]].concat()).status.success()
    });
    assert!(answers.any(|answer| answer), "the service does not begin");
    let names = |site: &Site| -> Vec<String> {
        let lines = site.images_from(&remote);
        lines.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&site), ["r.example.org/a:1"]);
    site.add(&new, &["r.example.org/b:1"]);
    assert_eq!(names(&site), ["r.example.org/a:1", "r.example.org/b:1"]);
    site.change(|store, _| store.remove(&[old.config.digest]));
    assert_eq!(names(&site), ["r.example.org/b:1"]);
    drop(service);
}

/// A process that ends with the value.
struct Service(std::process::Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
