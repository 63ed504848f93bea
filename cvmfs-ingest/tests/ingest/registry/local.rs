//! Layouts and archives.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use cvmfs_core::error::Error;
use cvmfs_ingest::image::digest::Digest;
use cvmfs_ingest::image::local::{self, DockerArchive, OciLayout};
use cvmfs_ingest::image::manifest::{Platforms, resolve};
use cvmfs_ingest::image::source::ImageStore as _;

use super::support::{MULTI, SAMPLE, SCRATCH, as_json, assert_layers, read, skopeo, zstd_sample};

/// Resolves the name of an image in a file to exactly one, and checks its layers against the sample's.
fn assert_sample(name: &str) -> cvmfs_ingest::image::Image {
    let (store, reference) = local::open(&name.parse().unwrap()).unwrap().unwrap();
    let mut images = resolve(&*store, &reference, &Platforms::default()).unwrap();
    assert_eq!(images.len(), 1);
    assert_layers(&*store, &images[0], &SAMPLE.tars);
    images.remove(0)
}

fn failure(name: &str) -> Error {
    local::open(&name.parse().unwrap()).expect_err(name)
}

#[test]
fn a_layout_of_ours() {
    let image = assert_sample(&SAMPLE.name());
    assert_eq!(image.manifest.digest, SAMPLE.manifest);
    assert_eq!(image.config.bytes, SAMPLE.config);
    assert_eq!(image.settings.command, ["-c", "id"]);
    // The only image needs no name.
    assert_sample(&format!("oci:{}", SAMPLE.directory.display()));
}

#[test]
fn layouts_of_skopeo_in_directories_and_archives() {
    let copy = |form: &str| {
        let name = format!("{form}:{}:new", SCRATCH.path().join(format!("copy-{form}")).display());
        skopeo(&["copy", "-q", &SAMPLE.name(), &name]);
        name
    };
    for (name, kind) in [(copy("oci"), "gzip"), (copy("oci-archive"), "gzip"), (zstd_sample("copy-zstd"), "zstd")] {
        let image = assert_sample(&name);
        assert_eq!(image.manifest.bytes, skopeo(&["inspect", "--raw", &name]));
        assert!(image.layers[0].blob.media_type.ends_with(kind), "{image:?}");
        assert_eq!(image.settings.labels["a"], "b");
    }
}

#[test]
fn several_images_in_a_layout() {
    let directory = SCRATCH.path().join("several");
    let place = format!("oci:{}", directory.display());
    for tag in ["one", "two"] {
        skopeo(&["copy", "-q", &SAMPLE.name(), &format!("{place}:{tag}")]);
    }
    // The same image twice is still one.
    assert_sample(&place);
    skopeo(&["copy", "-q", "--all", &MULTI[0].name(), &format!("{place}:multi")]);
    assert_sample(&format!("{place}:two"));
    assert!(matches!(failure(&place), Error::InvalidInput { reason, .. } if reason.contains("multi, one, two")));
    assert!(matches!(failure(&format!("{place}:three")), Error::NotFound { what } if what.contains("multi, one, two")));

    let layout = OciLayout::directory(&directory).unwrap();
    assert_eq!(layout.digest("one").unwrap(), Some(SAMPLE.manifest));
    let all = resolve(&layout, "multi", &Platforms::All).unwrap();
    for (image, sample) in all.iter().zip(MULTI.iter()) {
        assert_eq!(image.manifest.digest, sample.manifest);
        assert_layers(&layout, image, &sample.tars);
    }
    let arm = resolve(&layout, "multi", &Platforms::One("arm64".parse().unwrap())).unwrap();
    assert_eq!(arm, all[1..]);
}

#[test]
fn archives_of_docker_as_skopeo_writes_and_reads_them() {
    let file = SCRATCH.path().join("docker.tar");
    let place = format!("docker-archive:{}", file.display());
    skopeo(&["copy", "-q", &SAMPLE.name(), &format!("{place}:example.org/sample:1.0")]);
    let image = assert_sample(&place);
    assert_eq!(image.manifest.bytes, skopeo(&["inspect", "--raw", &place]));
    assert_eq!(image.manifest.digest, Digest::of(&image.manifest.bytes));
    assert_eq!(assert_sample(&format!("{place}:example.org/sample:1.0")), image);
    assert_eq!(assert_sample(&format!("{place}:@0")), image);
    assert!(
        matches!(failure(&format!("{place}:other")), Error::NotFound { what } if what.contains("example.org/sample:1.0"))
    );
    let archive = DockerArchive::open(&file).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["example.org/sample:1.0"]);
    let blob = &image.layers[0].blob;
    assert_eq!((blob.digest, blob.size), (image.layers[0].diff_id, SAMPLE.tars[0].len() as u64));
}

/// Writes a `docker save` archive with a member for each layer: its content, or a link.
fn docker_archive(file: &Path, layers: &[(&str, Result<&[u8], &str>)], link: tar::EntryType) {
    let mut archive = tar::Builder::new(File::create(file).unwrap());
    let names: Vec<_> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["debian:stable"], "Layers": names}]);
    let mut add = |name: &str, content: Result<&[u8], &str>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match content {
            Ok(bytes) => {
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, name, bytes).unwrap();
            }
            Err(target) => {
                header.set_size(0);
                header.set_entry_type(link);
                archive.append_link(&mut header, name, target).unwrap();
            }
        }
    };
    for (name, content) in layers {
        add(name, *content);
    }
    // As when it is unpacked, the last of several members of one name counts.
    add("manifest.json", Ok(b"[]"));
    add("config.json", Ok(&SAMPLE.config));
    add("manifest.json", Ok(manifest.to_string().as_bytes()));
    archive.finish().unwrap();
}

#[test]
fn layers_that_are_links_or_compressed() {
    let [large, small, _] = &SAMPLE.tars[..] else { panic!() };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, large).unwrap();
    let gzip = gzip.finish().unwrap();
    let file = SCRATCH.path().join("links.tar");
    let name = format!("docker-archive:{}:docker.io/library/debian:stable", file.display());
    let mut manifests = Vec::new();
    for (large, target, link) in
        [(&large[..], "../b/layer.tar", tar::EntryType::Symlink), (&gzip, "b/layer.tar", tar::EntryType::Link)]
    {
        let layers = [("a/layer.tar", Ok(large)), ("b/layer.tar", Ok(&small[..])), ("c/layer.tar", Err(target))];
        docker_archive(&file, &layers, link);
        manifests.push(assert_sample(&name).manifest);
    }
    // Compression within the archive makes no difference.
    assert_eq!(manifests[0], manifests[1]);
    assert_eq!(as_json(&manifests[0].bytes)["layers"][0]["size"], large.len());
}

#[test]
fn damaged_files_are_refused() {
    let scratch = SCRATCH.path();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(scratch.join(name), bytes).unwrap();
        scratch.join(name).display().to_string()
    };
    let file = write("compressed.tar", &[0x1f, 0x8b, 8, 0, 0, 0]);
    assert!(
        matches!(failure(&format!("oci-archive:{file}")), Error::InvalidInput { reason, .. } if reason.contains("decompress"))
    );
    let file = write("noise.tar", &[7; 2048]);
    assert!(matches!(failure(&format!("docker-archive:{file}")), Error::Malformed { .. }));
    let file = write("empty.tar", &[0; 1024]);
    assert!(matches!(failure(&format!("docker-archive:{file}")), Error::NotFound { .. }));
    assert!(matches!(failure(&format!("oci:{}", scratch.join("nowhere").display())), Error::Io { .. }));

    // Layers in another order than the configuration has them: opening works, their digests tell.
    let file = scratch.join("order.tar");
    let [large, small, _] = &SAMPLE.tars[..] else { panic!() };
    docker_archive(&file, &[("b", Ok(&small[..])), ("c", Err("b")), ("a", Ok(&large[..]))], tar::EntryType::Link);
    let (store, reference) =
        local::open(&format!("docker-archive:{}", file.display()).parse().unwrap()).unwrap().unwrap();
    let image = resolve(&*store, &reference, &Platforms::default()).unwrap().remove(0);
    assert_ne!(Digest::of(&read(&*store, &image.layers[0].blob)), image.layers[0].diff_id);

    // An archive that ends within a member, once it is known where that is.
    File::options().write(true).open(&file).unwrap().set_len(1024).unwrap();
    let mut bytes = Vec::new();
    let error = store.blob(&image.layers[0].blob).unwrap().read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}
