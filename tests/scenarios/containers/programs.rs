//! Images as programs make them, and the reference on what became of them.

use std::fs;
use std::process::Command;

use super::fidelity::{LINKS, MOUNT_POINTS, layers, set, without_apptainer};
use super::image::{Layer, Layout, convert, listing, site, umoci};
use super::odd;
use crate::support::reference::Reference;
use crate::support::{run, source_listing};

/// The compression of a layer is nothing that one can see.
#[test]
fn layers_are_the_same_in_all_compressions() {
    let (site, layout) = site();
    let tar = odd::base();
    let packed = [Layer::gzip(&tar), Layer::plain(&tar), Layer::zstd(&tar), Layer::estargz(&tar)];
    let tree = |layer: &Layer| {
        let mut tree = listing(&site, &layer.root());
        assert!(tree.0.remove(".cvmfscatalog").is_some());
        tree
    };
    for layer in &packed {
        layout.image("1", std::slice::from_ref(layer));
        convert(&site, &layout.name("1"), "a:1", &[]).json();
        tree(layer).assert_is(&tree(&packed[0]));
    }
    // With a list of the files in frames that are skipped.
    let chunked = Layout::new(site.path("chunked"));
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--dest-compress", "--dest-compress-format", "zstd:chunked"]);
    run(skopeo.args([layout.name("1"), chunked.name("1")])).ok();
    let large = |entry: &fs::DirEntry| entry.metadata().expect("metadata").len() > 1500;
    let mut blobs =
        fs::read_dir(chunked.directory.join("blobs/sha256")).expect("blobs").map(|entry| entry.expect("entry"));
    let blob = fs::read(blobs.find(large).expect("the layer").path()).expect("blob");
    assert_eq!(blob[..4], [0x28, 0xb5, 0x2f, 0xfd]);
    convert(&site, &chunked.name("1"), "a:chunked", &[]).json();
    tree(&Layer { blob, ..packed[0].clone() }).assert_is(&tree(&packed[0]));
    site.check(&[]);
}

/// Makes an image of three layers: `$1` is a place for everything.
const BUILDAH: &str = r#"
buildah="buildah --storage-driver vfs --root $1/storage --runroot $1/run"
mkdir -p "$1/system/bin" "$1/system/etc" "$1/system/data/deep" "$1/system/tmp" "$1/system/dev"
cp /bin/busybox "$1/system/bin/"
for name in sh rm ln chmod chown mkfifo mkdir touch; do ln -s busybox "$1/system/bin/$name"; done
echo below >"$1/system/etc/name"; echo gone >"$1/system/etc/gone"; echo x >"$1/system/data/deep/x"
chmod 1777 "$1/system/tmp"
one=$($buildah from scratch)
$buildah copy --quiet $one "$1/system" /
$buildah config --cmd /bin/sh --env PATH=/bin $one
$buildah commit --quiet $one first
two=$($buildah from first)
$buildah run --isolation chroot $two sh -c 'rm -r /data /etc/gone; touch /data; ln /etc/name /etc/same; chmod 4711 /bin/busybox'
$buildah commit --quiet $two second
three=$($buildah from second)
$buildah run --isolation chroot $three sh -c 'rm /data; mkdir /data; touch /data/new; mkfifo -m 640 /fifo; chown 5:6 /fifo /etc/name'
$buildah commit --quiet $three oci:$1/layout:1
"#;

#[test]
fn images_of_buildah_are_what_umoci_unpacks() {
    let (site, _) = site();
    let place = site.path("buildah");
    run(Command::new("bash").args(["-euc", BUILDAH, "bash"]).arg(&place)).ok();
    let layout = Layout::new(place.join("layout"));
    let converted = convert(&site, &layout.name("1"), "built:1", &[]).json();
    assert_eq!(converted["layers_fetched"], 3);
    let links = site.list(&[]).below("r.example.org");
    let flat = links.0["built:1"].split(' ').nth(6).expect("a target").trim_start_matches("../").to_owned();
    let mut expected = source_listing(&umoci(&layout, "1", &site.path("bundle")));
    for path in ["etc/hosts", "etc/resolv.conf"] {
        expected.0.remove(path);
    }
    let mut tree = without_apptainer(
        listing(&site, &flat),
        &MOUNT_POINTS.into_iter().filter(|path| !expected.0.contains_key(*path)).collect::<Vec<_>>(),
    );
    // Mount points that only some of both have.
    for path in ["proc", "sys", "root", "home"] {
        expected.0.remove(path);
        tree.0.remove(path);
    }
    set(&mut expected, "data", LINKS, "2");
    tree.assert_is(&expected);
    site.check(&[]);
}

/// Layers that are put on top by hand: `umoci insert` writes archives that end right after their last file.
#[test]
fn layers_that_umoci_inserts_are_read() {
    let (site, layout) = site();
    layout.image("1", &layers(&[odd::base()]));
    let files = site.path("files");
    fs::create_dir_all(files.join("deep")).expect("mkdir");
    fs::write(files.join("deep/one"), "of umoci").expect("a file");
    let image = format!("{}:1", layout.directory.display());
    run(Command::new("umoci").args(["insert", "--image", &image]).arg(&files).arg("/inserted")).ok();
    run(Command::new("umoci").args(["insert", "--image", &image, "--whiteout", "/merged/both"])).ok();
    let bundle = umoci(&layout, "1", &site.path("bundle"));
    assert!(bundle.join("inserted/deep/one").exists() && !bundle.join("merged/both").exists());
    convert(&site, &layout.name("1"), "a:1", &[]).json();
    let links = site.list(&[]).below("r.example.org");
    let flat = links.0["a:1"].split(' ').nth(6).expect("a target").trim_start_matches("../").to_owned();
    let (tree, expected) = (listing(&site, &flat), source_listing(&bundle));
    for path in ["inserted/deep/one", "merged/low", "bin/ping"] {
        assert_eq!(tree.0[path], expected.0[path], "{path}");
    }
    assert!(!tree.0.contains_key("merged/both"));
    site.check(&[]);
}

/// What Debian's packages unpack, and a layer on it as a build leaves it; `$1` is a place for everything.
const DEBIAN: &str = r#"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' | sed -n 's|^\(.*/debian/\) main$|\1|p' | head -n 1)
debootstrap --foreign --variant=minbase stable "$1/root" ${mirror:-http://deb.debian.org/debian/}
rm -r "$1/root/debootstrap" "$1/root/var/cache/apt/archives"
tar -C "$1/root" --xattrs --xattrs-include='*' --numeric-owner -cf "$1/base.tar" .
mkdir -p "$1/upper/etc" "$1/upper/usr/share/doc" "$1/upper/usr/share/man" "$1/upper/opt/software"
cp -a "$1/root/usr/bin/env" "$1/upper/opt/software/env"
ln "$1/upper/opt/software/env" "$1/upper/opt/software/same"
echo above >"$1/upper/etc/debian_version"; : >"$1/upper/usr/share/doc/.wh..wh..opq"; : >"$1/upper/usr/share/.wh.locale"
tar -C "$1/upper" --numeric-owner -cf "$1/upper.tar" etc/debian_version usr/share/doc usr/share/.wh.locale opt
"#;

#[test]
fn a_debian_system_is_what_umoci_unpacks() {
    let (site, layout) = site();
    let place = site.path("debian");
    fs::create_dir_all(&place).expect("mkdir");
    run(Command::new("bash").args(["-euc", DEBIAN, "bash"]).arg(&place)).ok();
    let tar = |name: &str| fs::read(place.join(name)).expect("archive");
    let flat = layout.image("1", &layers(&[tar("base.tar"), tar("upper.tar")]));
    let converted = convert(&site, &layout.name("1"), "debian:1", &[]).json();
    assert_eq!(converted["layers_fetched"], 2);
    let mut expected = source_listing(&umoci(&layout, "1", &site.path("bundle")));
    let tree = without_apptainer(listing(&site, &flat), &[]);
    // Made for Apptainer, whether the image has them or not.
    for path in ["etc/hosts", "etc/resolv.conf", "home", "proc"] {
        expected.0.remove(path);
    }
    assert!(expected.0.len() > 3000, "{} entries", expected.0.len());
    tree.assert_is(&expected);
    site.check(&[]);
}

#[test]
fn the_reference_finds_nothing_wrong() {
    let Some(reference) = Reference::find() else { return };
    for form in ["aufs", "overlay"] {
        let (site, layout) = site();
        for (key, value) in [("", "true"), ("_MIN_WEIGHT", "2"), ("_MAX_WEIGHT", "8")] {
            site.configure(&format!("CVMFS_AUTOCATALOGS{key}"), value);
        }
        let server = site.serve();
        let layers = layers(&odd::all());
        let first = layout.image("1", &layers[..2]);
        let whole = layout.image("2", &layers);
        for tag in ["1", "2"] {
            convert(&site, &layout.name(tag), &format!("a:{tag}"), &["--whiteouts", form, "--podman", "layers"]).json();
        }
        reference.check(&site, &server);
        let gone = ["--delete", &first, "--delete", &layers[5].root(), "--delete", "r.example.org/a:1"];
        run(site.command("cvmfs-ingest").args(gone)).ok();
        reference.check(&site, &server);
        // What the client shows is what the catalogs say.
        let mount = reference.mount(&site, &server, "");
        let shown = source_listing(&mount.point.join(&whole));
        shown.assert_is(&listing(&site, &whole));
    }
}
