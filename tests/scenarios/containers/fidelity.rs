//! The tree of an image beside what other programs unpack.

use super::image::{Layer, convert, listing, site, umoci};
use super::odd;
use crate::support::{Listing, source_listing};
use crate::tarball::Tar;

/// What is put into the tree for Apptainer, where an image has no such directories of its own.
const FOR_APPTAINER: [&str; 29] = [
    ".cvmfscatalog",
    ".exec",
    ".run",
    ".shell",
    ".singularity.d",
    ".singularity.d/actions",
    ".singularity.d/actions/exec",
    ".singularity.d/actions/run",
    ".singularity.d/actions/shell",
    ".singularity.d/actions/start",
    ".singularity.d/actions/test",
    ".singularity.d/env",
    ".singularity.d/env/01-base.sh",
    ".singularity.d/env/10-docker2singularity.sh",
    ".singularity.d/env/90-environment.sh",
    ".singularity.d/env/95-apps.sh",
    ".singularity.d/env/99-base.sh",
    ".singularity.d/env/99-runtimevars.sh",
    ".singularity.d/labels.json",
    ".singularity.d/libs",
    ".singularity.d/runscript",
    ".singularity.d/startscript",
    ".test",
    "environment",
    "etc/hosts",
    "etc/resolv.conf",
    "home",
    "proc",
    "singularity",
];
pub(crate) const MOUNT_POINTS: [&str; 3] = ["sys", "var", "var/tmp"];
/// In an image that has none of these.
pub(crate) const MOUNT_POINTS_OF_NOTHING: [&str; 7] = ["dev", "etc", "root", "sys", "tmp", "var", "var/tmp"];

/// Takes out what is there for Apptainer, all of which has to be there.
pub(crate) fn without_apptainer(mut tree: Listing, mount_points: &[&str]) -> Listing {
    for path in FOR_APPTAINER.iter().chain(mount_points) {
        assert!(tree.0.remove(*path).is_some(), "{path} is missing");
    }
    tree
}

/// Columns of a listing.
pub(crate) const LINKS: usize = 5;
pub(crate) const XATTRS: usize = 10;

/// Replaces a column of a line.
pub(crate) fn set(tree: &mut Listing, path: &str, column: usize, value: &str) {
    let line = tree.0.get_mut(path).unwrap_or_else(|| panic!("no {path}"));
    let mut columns: Vec<&str> = line.split(' ').collect();
    columns[column] = value;
    *line = columns.join(" ");
}

/// Layers of archives, compressed as most are.
pub(crate) fn layers(tars: &[Vec<u8>]) -> Vec<Layer> {
    tars.iter().map(|tar| Layer::gzip(tar)).collect()
}

/// What directories are that no layer names.
const IMPLIED: &str = "d 0755 * - 0.000000000 2 - 0 0 - -";

#[test]
fn trees_are_what_umoci_unpacks() {
    let (site, layout) = site();
    let flat = layout.image("1", &layers(&odd::all()));
    let converted = convert(&site, &layout.name("1"), "odd:1", &[]).json();
    assert_eq!((&converted["layers"], &converted["layers_fetched"]), (&6.into(), &6.into()));
    let mut expected = source_listing(&umoci(&layout, "1", &site.path("bundle")));
    let tree = without_apptainer(listing(&site, &flat), &MOUNT_POINTS);

    // Replaced for Apptainer.
    expected.0.remove("etc/hosts");
    set(&mut expected, "etc/hosts.same", LINKS, "1");
    // A link to another layer's file is a file of its own.
    set(&mut expected, "hard/one", LINKS, "1");
    set(&mut expected, "hard/five", LINKS, "1");
    for file in ["usr/lib/libc.so", "libc.so", "bin/ping", "ping"] {
        set(&mut expected, file, LINKS, "1");
    }
    // umoci leaves out attributes without value.
    set(&mut expected, "bin/noted", XATTRS, "user.comment=61203d202262220a01,user.empty=");
    // It puts entries where links of lower layers lead; overlay mounts have a directory in the place of such a link.
    let below_link = expected.0.remove("usr/lib/in-the-place-of-a-link").expect("umoci follows the link");
    expected.0.insert("lib/in-the-place-of-a-link".into(), below_link);
    expected.0.insert("lib".into(), IMPLIED.into());
    // umoci gives them the time of the day.
    expected.0.insert("outside".into(), IMPLIED.into());
    expected.0.insert("new".into(), IMPLIED.replace(" 2 -", " 3 -"));
    expected.0.insert("new/directories".into(), IMPLIED.into());
    tree.assert_is(&expected);
    site.check(&[]);
}

/// What other programs made of layers from before the format was written down.
#[test]
fn housekeeping_of_aufs_is_no_content() {
    let (site, layout) = site();
    let upper = Tar::new()
        .file(".wh..wh.aufs", b"")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"")
        .dir(".wh..wh.orph")
        .file("a/.wh..wh.other", b"")
        .file("a/c", b"c")
        .end();
    let flat = layout.image("1", &layers(&[Tar::new().dir("a").file("a/b", b"b").end(), upper]));
    convert(&site, &layout.name("1"), "aufs:1", &[]).json();
    let tree = without_apptainer(listing(&site, &flat), &MOUNT_POINTS_OF_NOTHING);
    assert_eq!(tree.0.keys().collect::<Vec<_>>(), ["a", "a/b", "a/c"]);
    site.check(&[]);
}

/// Marks of nested catalogs that are in an image: content where they can be, and never in the way of ours.
#[test]
fn marks_of_catalogs_in_images_do_no_harm() {
    for form in ["aufs", "overlay"] {
        let (site, layout) = site();
        let lower = Tar::new()
            .file(".cvmfscatalog", b"of the image")
            .dir("a")
            .file("a/.cvmfscatalog", b"")
            .file("a/x", b"x")
            .dir("b")
            .file("b/.cvmfscatalog", b"")
            .file("b/.cvmfsautocatalog", b"")
            .file("b/x", form.as_bytes())
            .end();
        let upper = Tar::new().file(".wh..cvmfscatalog", b"").dir("a").file("a/.wh..cvmfscatalog", b"").file("y", b"y");
        let flat = layout.image("1", &layers(&[lower, upper.end()]));
        convert(&site, &layout.name("1"), "marks:1", &["--whiteouts", form]).json();
        let tree = without_apptainer(listing(&site, &flat), &MOUNT_POINTS_OF_NOTHING);
        assert_eq!(tree.0.keys().collect::<Vec<_>>(), ["a", "a/.cvmfscatalog", "a/x", "b", "b/x", "y"], "{form}");
        let root = listing(&site, &flat).0[".cvmfscatalog"].clone();
        assert!(root.starts_with("f 0644 0 "), "{root}");
        site.check(&[]);
    }
}

/// Archives with what overlay mounts read are layers as well.
#[test]
fn archives_may_have_removals_of_overlay_mounts() {
    let (site, layout) = site();
    let lower = Tar::new().dir("a").file("a/x", b"x").file("a/y", b"y").dir("b").file("b/x", b"x").end();
    let upper = Tar::new()
        .dir("a")
        .entry(b'3', "a/x", "", b"", odd::device(0, 0))
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.kept", b"1")])
        .dir("b")
        .pax(&[("SCHILY.xattr.user.overlay.redirect", b"/a")])
        .file("b/y", b"y")
        .end();
    let layers = layers(&[lower, upper]);
    let flat = layout.image("1", &layers);
    convert(&site, &layout.name("1"), "overlay:1", &["--whiteouts", "overlay"]).json();
    let tree = without_apptainer(listing(&site, &flat), &MOUNT_POINTS_OF_NOTHING);
    assert_eq!(tree.0.keys().collect::<Vec<_>>(), ["a", "a/y", "b", "b/y"]);
    assert!(tree.0["b"].ends_with(" user.kept=31") && tree.0["b/y"].ends_with(" -"), "{:?}", tree.0);
    let upper = listing(&site, &layers[1].root());
    assert!(upper.0["a/x"].starts_with("c 0000 0 ") && upper.0["a/x"].ends_with(" 0:0 -"), "{}", upper.0["a/x"]);
    let attributes = "trusted.overlay.opaque=79,user.kept=31,user.overlay.opaque=79";
    assert!(upper.0["b"].ends_with(attributes), "{}", upper.0["b"]);
    site.check(&[]);
}
