//! The unmodified reference implementation and our replicas: each replicates the other's, takes over the other's storage,
//! and finds nothing wrong with it; see `support/reference.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::reference::expanded;
use crate::support::reference::{Reference, scratch, text};
use crate::support::replica::{Replica, Source, object_path};
use crate::support::{NAME, Server, Site, make_tree, objects, pack, run, source_listing};

/// A repository with the rich tree, which has all kinds of entries.
fn rich_site(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(mkfs);
    make_tree("rich", &site.path("source"), &[]);
    pack(&site.path("source"), &site.path("rich.tar"), &["."]);
    site.ingest_tar("rich.tar", &["--tag", "whole"]);
    site
}

fn add_revision(site: &Site, name: &str) {
    let directory = site.path(name);
    fs::create_dir_all(&directory).expect("mkdir");
    fs::write(directory.join(name), name).expect("write");
    pack(&directory, &site.path("more.tar"), &["."]);
    site.ingest_tar("more.tar", &["--base-dir", "more", "--catalog"]);
}

impl Reference {
    /// What the reference's shell script does for `cvmfs_server snapshot`.
    fn snapshot(&self, url: &str, replica: &Site, mirror: &Server, checksum: &Path, more: &[&str]) {
        let (storage, temp) = (replica.storage(), scratch(replica, "pull"));
        for number in 0..256 {
            fs::create_dir_all(storage.join(format!("data/{number:02x}"))).expect("mkdir");
        }
        fs::create_dir_all(storage.join("data/txn")).expect("mkdir");
        let spooler = format!("local,{0}/data/txn,{0}", text(&storage));
        let (key, own, checksum) = (text(&replica.key_file("pub")), mirror.repository(NAME), text(checksum));
        let pull =
            ["pull", "-m", NAME, "-u", url, "-r", &spooler, "-k", &key, "-x", &temp, "-R", &checksum, "-w", &own];
        self.swissknife(&[&pull[..], &["-n", "4"], more].concat());
    }
}

fn copy_key(from: &Site, to: &Site) {
    let key = to.key_file("pub");
    fs::create_dir_all(key.parent().expect("parent")).expect("mkdir");
    fs::copy(from.key_file("pub"), key).expect("key");
}

#[test]
fn the_reference_finds_nothing_wrong_with_a_replica_and_replicates_it() {
    let Some(reference) = Reference::find() else { return };
    for options in [["--hash", "sha1"], ["--hash", "shake128"]] {
        let original = rich_site(&options);
        let source = Source::start(&original);
        let replica = Replica::of(&original, &source, &[]);
        replica.snapshot();
        add_revision(&original, "one");
        replica.snapshot();
        let server = replica.site.serve();
        reference.check(&replica.site, &server);

        fs::write(replica.site.storage().join(".cvmfs_master_replica"), "").expect("write");
        let second = Site::empty(NAME);
        copy_key(&original, &second);
        let mirror = second.serve();
        let checksum = second.path("reflog.chksum");
        reference.snapshot(&server.repository(NAME), &second, &mirror, &checksum, &["-p", "-i"]);
        let current = format!("{}H", original.manifest_field('H'));
        let without_histories = |site: &Site| {
            let all = objects(&site.storage()).into_iter();
            all.filter(|object| !object.ends_with('H') || *object == current).collect::<Vec<_>>()
        };
        assert_eq!(without_histories(&second), without_histories(&replica.site));
    }
}

#[test]
fn both_go_on_with_the_storage_of_the_other() {
    let Some(reference) = Reference::find() else { return };
    let original = rich_site(&[]);
    let source = Source::start(&original);
    let replica = Replica { site: Site::empty(NAME) };
    copy_key(&original, &replica.site);
    let mirror = replica.site.serve();
    let theirs = replica.site.path("reflog.chksum");

    // Theirs first, and taken over without the checksum of its reflog.
    reference.snapshot(&source.url, &replica.site, &mirror, &theirs, &["-i"]);
    let key = text(&replica.site.key_file("pub"));
    replica.run(&["import", NAME, "--stratum0", &source.url, "--public-key", &key]).ok();
    let ours = replica.site.spool().join("reflog.chksum");
    assert_eq!(
        fs::read_to_string(&ours).expect("checksum").trim(),
        fs::read_to_string(&theirs).expect("checksum").trim()
    );
    for round in ["one", "two"] {
        add_revision(&original, round);
        replica.snapshot();
        replica.assert_has_head_of(&original);
        reference.check(&replica.site, &mirror);

        add_revision(&original, &format!("their {round}").replace(' ', "-"));
        reference.snapshot(&source.url, &replica.site, &mirror, &ours, &["-p"]);
        replica.assert_has_head_of(&original);
        reference.check(&replica.site, &mirror);
    }
    // What they fetched counts as much as what we did: nothing is missing.
    let outcome = replica.snapshot();
    assert_eq!(outcome["counts"]["objects"].as_u64(), Some(0), "{outcome}");
}

impl Replica {
    #[track_caller]
    fn assert_has_head_of(&self, original: &Site) {
        assert_eq!(self.site.manifest(), original.manifest());
        self.site.list(&[]).assert_is(&original.list(&[]));
    }
}

/// The files of a cache by path, without what tells runs apart.
fn cache_files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(directory) {
        let entry = entry.expect("entry");
        let path = entry.path().strip_prefix(directory).expect("below").to_owned();
        let notes = ["uuid".to_owned(), format!("dirtab.{NAME}"), format!("preload.{NAME}")];
        if entry.file_type().is_file() && !notes.iter().any(|note| path.starts_with(note)) {
            files.insert(path, fs::read(entry.path()).expect("file"));
        }
    }
    files
}

#[test]
fn a_preloaded_cache_is_that_of_the_reference() {
    let Some(reference) = Reference::find() else { return };
    for compression in ["zlib", "none"] {
        let original = rich_site(&["--compression", compression]);
        let source = Source::start(&original);
        let replica = Site::empty(NAME);
        copy_key(&original, &replica);
        let key = text(&replica.key_file("pub"));
        let (ours, theirs) = (replica.path("ours"), replica.path("theirs"));
        let paths = replica.path("paths");
        // First a part, then all of it.
        for (round, specification) in ["/nested/a\n/hard\n! /nested/a/b\n", "/*\n"].into_iter().enumerate() {
            fs::write(&paths, specification).expect("write");
            let (ours, theirs, paths) = (text(&ours), text(&theirs), text(&paths));
            let place = ["--cache", &ours, "--stratum0", &source.url, "--public-key", &key, "--paths", &paths];
            run(replica.command("cvmfs-replica").args(["--json", "preload"]).args(place)).json();
            // What their `cvmfs_preload` does.
            for name in (0..256).map(|number| format!("{number:02x}")).chain(["txn".into(), "quarantaine".into()]) {
                fs::create_dir_all(Path::new(&theirs).join(name)).expect("mkdir");
            }
            let temp = format!("{theirs}/txn");
            let place = ["-r", &theirs, "-u", &source.url, "-k", &key, "-d", &paths, "-x", &temp];
            reference.swissknife(&[&["pull", "-c", "-z", "-m", NAME, "-n", "4"], &place[..]].concat());
            let (ours, theirs) = (cache_files(Path::new(&ours)), cache_files(Path::new(&theirs)));
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "round {round}");
            for (path, content) in &theirs {
                assert!(ours[path] == *content, "{}", path.display());
            }
        }
        // Nodes without network mount it and read every file.
        drop(source);
        let nowhere = "CVMFS_SERVER_URL=http://127.0.0.1:9/cvmfs/@fqrn@\nCVMFS_TIMEOUT_DIRECT=1\nCVMFS_MAX_RETRIES=0\n";
        let alien = format!("{nowhere}CVMFS_ALIEN_CACHE={}\nCVMFS_QUOTA_LIMIT=-1\n", ours.display());
        let shown = reference.mount(&replica, &replica.serve(), &alien).listing();
        shown.assert_is(&expanded(source_listing(&original.path("source"))));

        let catalog = original.manifest_field('C');
        assert!(ours.join(object_path(&catalog).strip_prefix("data").expect("data")).exists());
    }
}
