//! Tarballs as layers of an image: what hides what.

use super::support::{Repo, Tar};

const LAYERS: &[&str] = &["--whiteouts", "oci", "--base-dir", "image"];

/// Ingests layers in one run, the lowest first.
fn ingest(repo: &Repo, layers: &[Vec<u8>]) {
    let mut arguments: Vec<String> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = repo.root().join(format!("layer-{number}.tar"));
        std::fs::write(&path, layer).unwrap();
        arguments.extend(["--tar".into(), path.to_str().unwrap().into()]);
    }
    arguments.extend(LAYERS.iter().map(ToString::to_string));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    repo.run(&arguments).expect(0, &[]);
    repo.check();
}

fn base() -> Vec<u8> {
    Tar::new()
        .dir("etc")
        .file("etc/keep", b"base")
        .file("etc/gone", b"base")
        .dir("opt")
        .dir("opt/app")
        .file("opt/app/old", b"base")
        .dir("var")
        .dir("var/cache")
        .file("var/cache/old", b"base")
        .end()
}

fn update() -> Vec<u8> {
    Tar::new()
        .file("etc/.wh.gone", b"")
        .file("etc/.wh.never-there", b"")
        // Content before its marker, and after it.
        .file("opt/app/new", b"update")
        .file("opt/app/.wh..wh..opq", b"")
        .file("opt/app/newer", b"update")
        .file(".wh.var", b"")
        // Housekeeping of an old union file system.
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
        .end()
}

const EXPECTED: [&str; 8] = [
    "image",
    "image/etc",
    "image/etc/keep",
    "image/opt",
    "image/opt/app",
    "image/opt/app/new",
    "image/opt/app/newer",
    "next",
];

#[test]
fn layers_in_one_run_hide_what_is_below_them() {
    let repo = Repo::new();
    ingest(&repo, &[base(), update()]);
    assert_eq!(repo.paths(), EXPECTED[..7]);
}

#[test]
fn a_layer_hides_what_the_repository_has() {
    let repo = Repo::new();
    ingest(&repo, &[base()]);
    repo.accepts(&Tar::new().file("next", b"not of the image").end(), &[]);
    ingest(&repo, &[update()]);
    assert_eq!(repo.paths(), EXPECTED);
}

#[test]
fn what_was_hidden_can_come_back_in_the_same_or_a_later_layer() {
    let repo = Repo::new();
    let replaced = Tar::new().file(".wh.var", b"").dir("var").file("var/new", b"x").end();
    let file = Tar::new().file(".wh.opt", b"").file("opt", b"a file now").end();
    let again = Tar::new().file("etc/gone", b"again").dir("opt2").end();
    ingest(&repo, &[base(), update(), replaced, file, again]);
    let expected = [
        "image",
        "image/etc",
        "image/etc/gone",
        "image/etc/keep",
        "image/opt",
        "image/opt2",
        "image/var",
        "image/var/new",
    ];
    assert_eq!(repo.paths(), expected);
    assert_eq!(repo.list()["image/opt"].kind, "f");
}

#[test]
fn a_place_below_something_hidden_is_free() {
    let repo = Repo::new();
    let lower = Tar::new().dir("d").file("d/f", b"a file").end();
    let upper = Tar::new().file(".wh.d", b"").file("d/f/g", b"below").end();
    ingest(&repo, &[lower, upper]);
    assert_eq!(repo.paths(), ["image", "image/d", "image/d/f", "image/d/f/g"]);
}

/// The whiteout is about the repository, wherever in the layer it stands.
#[test]
fn a_file_makes_place_for_what_comes_before_its_whiteout() {
    let repo = Repo::new();
    ingest(&repo, &[Tar::new().file("d", b"a file").file("e", b"a file").end()]);
    ingest(&repo, &[Tar::new().file("d/new", b"x").file(".wh.d", b"").end()]);
    assert_eq!(repo.paths(), ["image", "image/d", "image/d/new", "image/e"]);
    let tar = Tar::new().file("e/new", b"x").file("e/.wh..wh..opq", b"").end();
    ingest(&repo, &[tar]);
    assert_eq!(repo.paths(), ["image", "image/d", "image/d/new", "image/e", "image/e/new"]);
}

/// Many links, each as long as links can be, in an archive that is small when compressed.
#[test]
fn links_of_layers_take_bounded_memory() {
    let repo = Repo::with_content();
    let link = |tar: Tar, name: &str, length| tar.pax(&[("linkpath", &vec![b'x'; length])]).symlink(name, "");
    let longest = link(Tar::new(), "a", 4095).end();
    repo.accepts(&longest, &["--base-dir", "image"]);
    for options in [&[][..], LAYERS] {
        let longer = link(Tar::new(), "a", 4096).end();
        repo.refuses(&longer, options, 1, &["byte 5120", "4096 bytes, more than 4095"]);
    }
    let many = |count: u32| (0..count).fold(Tar::new(), |tar, number| link(tar, &number.to_string(), 4000)).end();
    repo.accepts(&many(10_000), LAYERS);
    repo.refuses(&many(20_000), LAYERS, 1, &["too many symbolic links"]);
}

#[test]
fn a_plain_tarball_may_have_such_names() {
    let repo = Repo::new();
    repo.accepts(&update(), &[]);
    let paths = repo.paths();
    assert!(["etc/.wh.gone", "opt/app/.wh..wh..opq", ".wh.var"].iter().all(|name| paths.contains(&(*name).to_owned())));
}

#[test]
fn a_whiteout_of_nothing_is_refused() {
    let repo = Repo::new();
    for name in [".wh.", ".wh..", "d/.wh..."] {
        let tar = Tar::new().file("a", b"x").file(name, b"").end();
        repo.refuses(&tar, LAYERS, 1, &[&format!("entry \"{name}\" at byte 1024"), "whiteout"]);
    }
    let tar = Tar::new().file(".wh..cvmfs", b"").end();
    repo.refuses(&tar, &["--whiteouts", "oci"], 1, &["generated by publishing"]);
}
