//! The same input, keys and time give the same repository, bit for bit, on any number of threads.

use std::collections::BTreeMap;
use std::fs;

use crate::support::{NAME, Site, make_tree, pack, run};

/// All files of a storage with their bytes.
fn storage(site: &Site) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in [".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog", ".cvmfs_master_replica"] {
        files.insert(name.to_owned(), fs::read(site.storage().join(name)).expect(name));
    }
    for object in site.objects() {
        let path = site.storage().join("data").join(&object[..2]).join(&object[2..]);
        files.insert(object, fs::read(path).expect("object"));
    }
    files
}

/// Makes the repository with two revisions, always the same way but for the number of threads.
fn build(inputs: &Site, mkfs: &[&str], threads: &str) -> Site {
    let mut site = Site::empty(NAME);
    site.environment.push(("SOURCE_DATE_EPOCH", "1750000000".into()));
    let keys = inputs.path("keys");
    site.mkfs(&[mkfs, &["--autocatalogs", "--keys", keys.to_str().expect("UTF-8")]].concat());
    site.configure("CVMFS_AUTOCATALOGS_MAX_WEIGHT", "60");
    site.configure("CVMFS_AUTOCATALOGS_MIN_WEIGHT", "10");
    let rich = inputs.path("rich.tar");
    let many = inputs.path("many.tar");
    let (rich, many) = (rich.to_str().expect("UTF-8"), many.to_str().expect("UTF-8"));
    site.environment.push(("SOURCE_DATE_EPOCH", "1750000100".into()));
    site.ingest(&["--tar", many, "--base-dir", "many", "--threads", threads]).json();
    site.environment.push(("SOURCE_DATE_EPOCH", "1750000200".into()));
    site.ingest(&[
        "--tar",
        rich,
        "--tar",
        rich,
        "--delete",
        "many/03",
        "--catalog",
        "--base-dir",
        "rich",
        "--threads",
        threads,
    ])
    .json();
    site
}

#[test]
fn the_repository_does_not_depend_on_threads() {
    let inputs = Site::with_repository(&[]);
    fs::create_dir(inputs.path("keys")).expect("mkdir");
    for extension in ["masterkey", "pub", "key", "crt"] {
        let key = inputs.key_file(extension);
        fs::copy(&key, inputs.path("keys").join(key.file_name().expect("name"))).expect("copy");
    }
    make_tree("rich", &inputs.path("rich"), &[]);
    make_tree("many", &inputs.path("many"), &["300"]);
    pack(&inputs.path("rich"), &inputs.path("rich.tar"), &["."]);
    pack(&inputs.path("many"), &inputs.path("many.tar"), &["."]);
    for (mkfs, all_threads) in [
        (vec![], &["1", "2", "8"][..]),
        (vec!["--hash", "shake128", "--compression", "none", "--gc"], &["1", "8"]),
        (vec!["--hash", "rmd160", "--no-autotags"], &["8", "1"]),
    ] {
        let first = build(&inputs, &mkfs, all_threads[0]);
        first.check(&["--now", "1750000300"]);
        let expected = storage(&first);
        for threads in &all_threads[1..] {
            let other = build(&inputs, &mkfs, threads);
            assert_eq!(other.manifest_field('C'), first.manifest_field('C'), "{mkfs:?}, {threads} threads");
            let found = storage(&other);
            assert!(found.keys().eq(expected.keys()), "{mkfs:?}, {threads} threads: other objects");
            let different: Vec<&String> = expected.keys().filter(|name| found[*name] != expected[*name]).collect();
            assert!(different.is_empty(), "{mkfs:?}, {threads} threads: {different:?} differ");
        }
    }
}

/// The order of a tarball's entries makes no difference to the tree.
#[test]
fn root_hash_does_not_depend_on_the_order_of_a_tarball() {
    let inputs = Site::with_repository(&[]);
    make_tree("many", &inputs.path("many"), &["200"]);
    let mut roots = Vec::new();
    for sort in ["--sort=name", "--sort=inode"] {
        let mut tar = std::process::Command::new("tar");
        tar.args(["--format=posix", sort, "-C"]).arg(inputs.path("many")).arg("-cf").arg(inputs.path("sorted.tar"));
        run(tar.arg(".")).ok();
        let mut site = Site::empty(NAME);
        site.environment.push(("SOURCE_DATE_EPOCH", "1750000000".into()));
        site.mkfs(&[]);
        let tarball = inputs.path("sorted.tar");
        site.ingest(&["--tar", tarball.to_str().expect("UTF-8")]).json();
        roots.push(site.manifest_field('C'));
    }
    assert_eq!(roots[0], roots[1]);
}
