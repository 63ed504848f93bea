//! The unmodified reference implementation on what we wrote, and we on what it wrote; see `support/reference.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::reference::{Mount, Reference, StatisticsDirectory, scratch, text};
use crate::support::{Listing, NAME, Server, Site, make_tree, objects, pack, run, source_listing, verifier};

/// What the client makes of the variant symlinks of the rich tree.
pub(crate) fn expanded(mut listing: Listing) -> Listing {
    for (link, target) in [("11", "/home/tests/x"), ("12", "predefaultpost"), ("13", "")] {
        let line = listing.0.get_mut(&format!("symlinks/{link}")).expect("a symlink");
        let mut columns: Vec<&str> = line.split(' ').collect();
        let size = target.len().to_string();
        (columns[2], columns[6]) = (&size, target);
        *line = columns.join(" ");
    }
    listing
}

/// A repository with the rich tree: nested catalogs, chunked files, hard links.
fn rich_site(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(mkfs);
    make_tree("rich", &site.path("source"), &[]);
    pack(&site.path("source"), &site.path("rich.tar"), &["."]);
    site.ingest_tar("rich.tar", &["--tag", "whole"]);
    site
}

/// Removes files, directories, catalogs and markers from source and repository.
fn remove_some(site: &Site) {
    let mut arguments = vec!["--tag", "less"];
    for path in
        ["hard/b", "hard/two", "nested/a/large", "nested/d", "nested/.cvmfscatalog", "names/dirs", "sizes/65536"]
    {
        let full = site.path("source").join(path);
        let time = fs::metadata(full.parent().expect("parent")).expect("parent").modified().expect("time");
        if full.is_dir() { fs::remove_dir_all(&full) } else { fs::remove_file(&full) }.expect(path);
        // A removal leaves the time of the directory above as it is in the repository.
        fs::File::open(full.parent().expect("parent")).and_then(|parent| parent.set_modified(time)).expect("time");
        arguments.extend(["--delete", path]);
    }
    site.ingest(&arguments).json();
}

#[test]
fn check_and_client_find_everything_in_place() {
    let Some(reference) = Reference::find() else { return };
    let site = Site::with_repository(&[]);
    let server = site.serve();
    reference.check(&site, &server);
    drop((site, server));

    let site = rich_site(&[]);
    let server = site.serve();
    reference.check(&site, &server);
    let whole = expanded(source_listing(&site.path("source")));
    reference.mount(&site, &server, "").listing().assert_is(&whole);
    remove_some(&site);
    reference.check(&site, &server);
    reference.mount(&site, &server, "").listing().assert_is(&expanded(source_listing(&site.path("source"))));
    reference.mount(&site, &server, "CVMFS_REPOSITORY_TAG=whole\n").listing().assert_is(&whole);

    // Its tools tell the same about tags, reflog and manifest as the repository's files do.
    let (url, temp) = (server.repository(NAME), scratch(&site, "info"));
    let key = text(&site.key_file("pub"));
    let tags = reference.swissknife(&["tag_list", "-w", &url, "-t", &temp, "-p", &key, "-f", NAME, "-x"]);
    for (tag, revision) in [("less", "3"), ("whole", "2"), ("trunk", "3"), ("trunk-previous", "2")] {
        let line = tags.lines().find(|line| line.split_whitespace().next() == Some(tag));
        let line = line.unwrap_or_else(|| panic!("{tag}: {tags}"));
        assert!(line.split_whitespace().any(|word| word == revision), "{line}");
    }
    assert!(tags.contains(&site.manifest_field('C')), "{tags}");
    let checksum = text(&site.spool().join("reflog.chksum"));
    let logged =
        reference.swissknife(&["list_reflog", "-r", &url, "-n", NAME, "-k", &key, "-t", &temp, "-R", &checksum]);
    for object in
        [site.manifest_field('C'), site.manifest_field('H'), site.manifest_field('X'), site.manifest_field('M')]
    {
        assert!(logged.contains(&object), "{object}: {logged}");
    }
    let info = reference.swissknife(&["info", "-r", &url, "-n", "-c", "-v"]);
    assert_eq!(info.split_whitespace().collect::<Vec<_>>(), [&site.manifest_field('C'), NAME, "3"]);
}

#[test]
fn check_accepts_every_algorithm_and_compression() {
    let Some(reference) = Reference::find() else { return };
    for (hash, compression) in [("rmd160", "zlib"), ("shake128", "none")] {
        let site = rich_site(&["--hash", hash, "--compression", compression]);
        remove_some(&site);
        let server = site.serve();
        reference.check(&site, &server);
        let source = expanded(source_listing(&site.path("source")));
        reference.mount(&site, &server, "").listing().assert_is(&source);
    }
}

#[test]
fn check_finds_nothing_after_automatic_splitting() {
    let Some(reference) = Reference::find() else { return };
    let site = Site::with_repository(&["--autocatalogs"]);
    site.configure("CVMFS_AUTOCATALOGS_MAX_WEIGHT", "100");
    site.configure("CVMFS_AUTOCATALOGS_MIN_WEIGHT", "20");
    make_tree("many", &site.path("source"), &["800"]);
    pack(&site.path("source"), &site.path("many.tar"), &["."]);
    site.ingest_tar("many.tar", &["--base-dir", "a/b", "--catalog"]);
    let server = site.serve();
    reference.check(&site, &server);
    site.ingest(&["--delete", "a/b/08", "--delete", "a/b/01", "--delete", "a/b/large"]).json();
    reference.check(&site, &server);
}

impl Reference {
    /// What the reference's shell script does for `cvmfs_server ingest`: ingest, tag, sign.
    pub(super) fn ingest(&self, site: &Site, server: &Server, tag: &str, arguments: &[&str]) {
        let (url, temp) = (server.repository(NAME), scratch(site, "their"));
        let spooler = format!("local,{0}/data/txn,{0}", text(&site.storage()));
        let file = |name: &str| format!("{temp}/{name}");
        for name in ["union", "tmp"] {
            fs::create_dir(file(name)).expect("mkdir");
        }
        let (base, manifest, tmp) = (site.manifest_field('C'), file("manifest"), file("tmp"));
        let [public, certificate, private] = ["pub", "crt", "key"].map(|extension| text(&site.key_file(extension)));
        let checksum = text(&site.spool().join("reflog.chksum"));
        // There it looks for what exists.
        let mount = Mount::new(self, site, server, "");
        let (union, readonly) = (file("union"), text(&mount.point));
        let place = ["-t", &tmp, "-r", &spooler];
        let ingest = ["ingest", "-u", &union, "-c", &readonly, "-b", &base, "-w", &url, "-o", &manifest, "-K", &public];
        self.swissknife(&[&ingest[..], &["-N", NAME, "-U", "-1", "-G", "-1"], &place, arguments].concat());
        let edit =
            ["tag_edit", "-w", &url, "-m", &manifest, "-p", &public, "-f", NAME, "-b", &base, "-e", "sha1", "-x"];
        self.swissknife(&[&edit[..], &place, &["-a", tag, "-D", "theirs"]].concat());
        let sign =
            ["sign", "-c", &certificate, "-k", &private, "-n", NAME, "-u", &url, "-m", &manifest, "-R", &checksum];
        self.swissknife(&[&sign[..], &place, &["-g"]].concat());
    }
}

/// What the reference's ingest keeps of a file: neither nanoseconds nor hard links.
fn without_times_and_links(mut listing: Listing) -> Listing {
    for line in listing.0.values_mut() {
        let mut columns: Vec<&str> = line.split(' ').collect();
        (columns[4], columns[5]) = ("*", "*");
        *line = columns.join(" ");
    }
    listing
}

#[test]
fn both_continue_on_what_the_other_wrote() {
    let Some(reference) = Reference::find() else { return };
    let _statistics = StatisticsDirectory::make();
    let site = rich_site(&["--gc"]);
    let server = site.serve();
    let theirs = site.path("theirs");
    for directory in ["plain/sub/empty", "nested/below"] {
        fs::create_dir_all(theirs.join(directory)).expect("mkdir");
    }
    for (file, content) in
        [("plain/file", "a"), ("plain/sub/file", "b"), ("nested/.cvmfscatalog", ""), ("nested/below/c", "c")]
    {
        fs::write(theirs.join(file), content).expect("write");
    }
    pack(&theirs, &site.path("theirs.tar"), &["plain", "nested"]);
    let tarball = text(&site.path("theirs.tar"));
    let their_listing = without_times_and_links(source_listing(&theirs));
    let mut tags = vec![("whole".to_owned(), site.list(&["--tag", "whole"]))];
    for round in ["1", "2"] {
        // Theirs on ours: beside everything, and into a nested catalog of ours; something of ours goes.
        let before = site.list(&[]);
        let (below, gone) = (format!("nested/a/theirs {round}"), format!("nested/a/file 1{round}"));
        let tag = format!("theirs-{round}");
        reference.ingest(&site, &server, &tag, &["-T", &tarball, "-B", &below, "-D", &gone]);
        reference.check(&site, &server);
        site.check(&["--no-strict"]);
        site.publish(&["verify"]).ok();
        let after = site.list(&[]);
        without_times_and_links(after.below(&below.replace(' ', "%20"))).assert_is(&their_listing);
        let (gone, below) = (gone.replace(' ', "%20"), below.replace(' ', "%20"));
        assert!(!after.0.contains_key(&gone));
        let (mut rest, mut expected) = (after.clone(), before);
        rest.take(|path| path.starts_with(&below));
        for listing in [&mut rest, &mut expected] {
            // The directory has one more sub-directory.
            listing.take(|path| path == gone || path == "nested/a");
        }
        rest.assert_is(&expected);
        tags.push((tag, after));

        // Ours on theirs: into their new catalog, with a removal there.
        let below = format!("nested/a/theirs {round}/nested");
        let gone = format!("{below}/below/c");
        let tag = format!("ours-{round}");
        site.ingest_tar("rich.tar", &["--base-dir", &format!("{below}/rich"), "--delete", &gone, "--tag", &tag]);
        reference.check(&site, &server);
        site.check(&["--no-strict"]);
        let after = site.list(&[]);
        after.below(&format!("{}/rich", below.replace(' ', "%20"))).assert_is(&source_listing(&site.path("source")));
        assert!(!after.0.contains_key(&gone.replace(' ', "%20")));
        tags.push((tag, after));
    }
    for (tag, listing) in &tags {
        site.list(&["--tag", tag]).assert_is(listing);
    }
    reference.mount(&site, &server, "CVMFS_REPOSITORY_TAG=whole\n").listing().assert_is(&expanded(tags[0].1.below("")));
}

#[test]
fn pull_replicates_ours() {
    let Some(reference) = Reference::find() else { return };
    for options in [["--hash", "sha1"], ["--hash", "shake128"]] {
        let site = rich_site(&options);
        remove_some(&site);
        let server = site.serve();
        let replica = Site::empty(NAME);
        let (storage, temp) = (replica.storage(), scratch(&replica, "pull"));
        for number in 0..256 {
            fs::create_dir_all(storage.join(format!("data/{number:02x}"))).expect("mkdir");
        }
        fs::create_dir(storage.join("data/txn")).expect("mkdir");
        fs::create_dir_all(replica.key_file("pub").parent().expect("parent")).expect("mkdir");
        fs::copy(site.key_file("pub"), replica.key_file("pub")).expect("key");
        let mirror = replica.serve();
        let (url, mirror_url) = (server.repository(NAME), mirror.repository(NAME));
        let spooler = format!("local,{0}/data/txn,{0}", text(&storage));
        let (key, checksum) = (text(&replica.key_file("pub")), format!("{temp}/reflog.chksum"));
        reference.swissknife(&[
            "pull",
            "-m",
            NAME,
            "-u",
            &url,
            "-r",
            &spooler,
            "-k",
            &key,
            "-x",
            &temp,
            "-R",
            &checksum,
            "-w",
            &mirror_url,
            "-n",
            "4",
            "-p",
            "-i",
        ]);
        // All objects but tag databases of older revisions, which nothing refers to.
        let current = format!("{}H", site.manifest_field('H'));
        let expected: Vec<String> =
            site.objects().into_iter().filter(|object| !object.ends_with('H') || *object == current).collect();
        assert_eq!(objects(&storage), expected);
        for object in &expected {
            let path = Path::new("data").join(&object[..2]).join(&object[2..]);
            assert!(
                fs::read(storage.join(&path)).expect("replica") == fs::read(site.storage().join(&path)).expect("ours")
            );
        }
        let check = ["check", "--replica", "--all-tags", "--fqrn", NAME, "--pub", &key, "--store", &mirror_url];
        // The reflog of the replica is the reference's own.
        verifier(check.into_iter().chain(["--allow", "db-page-size"])).ok();
        reference.mount(&replica, &mirror, "").listing().assert_is(&expanded(source_listing(&site.path("source"))));
    }
}

#[test]
fn their_garbage_collection_keeps_what_is_in_use() {
    let Some(reference) = Reference::find() else { return };
    let _statistics = StatisticsDirectory::make();
    let site = rich_site(&["--gc", "--no-autotags"]);
    remove_some(&site);
    let kept = [site.list(&["--tag", "whole"]), site.list(&["--tag", "less"])];
    for number in ["1", "2", "3"] {
        fs::write(site.path("source/sizes/1"), format!("revision {number}")).expect("write");
        pack(&site.path("source"), &site.path("one.tar"), &["sizes/1"]);
        site.ingest_tar("one.tar", &[]);
    }
    let server = site.serve();
    let before = site.objects();
    let (url, temp) = (server.repository(NAME), scratch(&site, "gc"));
    let (key, checksum) = (text(&site.key_file("pub")), text(&site.spool().join("reflog.chksum")));
    let spooler = format!("local,{0}/data/txn,{0}", text(&site.storage()));
    reference.swissknife(&[
        "gc", "-r", &url, "-u", &spooler, "-n", NAME, "-k", &key, "-t", &temp, "-R", &checksum, "-h", "0",
    ]);
    // The first of the three revisions goes: its file, its root catalog. The two others are trunk and trunk-previous.
    let after = site.objects();
    let gone: Vec<&String> = before.iter().filter(|object| !after.contains(object)).collect();
    assert_eq!(gone.iter().filter(|object| object.ends_with('C')).count(), 2, "{gone:?}");
    assert_eq!(gone.iter().filter(|object| object.len() == 40).count(), 1, "{gone:?}");
    site.check(&["--stale-y"]);
    for (tag, listing) in ["whole", "less"].iter().zip(&kept) {
        site.list(&["--tag", tag]).assert_is(listing);
    }
    site.list(&[]).below("").assert_is(&source_listing(&site.path("source")));
    // And on it goes.
    site.ingest_tar("rich.tar", &["--base-dir", "again"]);
    site.check(&[]);
    reference.check(&site, &server);
}

/// Publishes a directory, or an overlay's upper directory, of the site.
#[track_caller]
fn publish(site: &Site, kind: &str, directory: &str, more: &[&str]) -> serde_json::Value {
    site.publish(&[&["--json", "publish", kind, &text(&site.path(directory))], more].concat()).json()
}

#[track_caller]
fn shell(site: &Site, directory: &str, script: &str) {
    run(Command::new("bash").args(["-euc", script]).current_dir(site.path(directory))).ok();
}

#[test]
fn directories_are_published_as_the_check_expects_them() {
    let Some(reference) = Reference::find() else { return };
    let site = Site::with_repository(&[]);
    let server = site.serve();
    make_tree("rich", &site.path("source"), &[]);
    publish(&site, "--from", "source", &["--revision", "20"]);
    reference.check(&site, &server);
    reference.mount(&site, &server, "").listing().assert_is(&expanded(source_listing(&site.path("source"))));
    shell(
        &site,
        "source",
        "rm -r deep nested/d hard/b nested/.cvmfscatalog; touch sizes/.cvmfscatalog; ln nested/a/large nested/a/again;
         mv names renamed; chmod 700 nested/a; rm -r times; echo file >times; truncate -s 70000 sizes/text; chown 1:1 hard/a",
    );
    publish(&site, "--from", "source", &[]);
    reference.check(&site, &server);
    reference.mount(&site, &server, "").listing().assert_is(&expanded(source_listing(&site.path("source"))));

    // Grafts that the reference makes.
    shell(&site, "", "mkdir grafts; head -c 3000000 /dev/zero >large; echo small >small");
    for name in ["large", "small"] {
        let (input, output) = (text(&site.path(name)), text(&site.path("grafts")));
        reference.swissknife(&["graft", "-i", &input, "-o", &output, "-c", "1"]);
    }
    assert!(site.path("grafts/.cvmfsgraft-large").exists());
    publish(&site, "--from", "grafts", &["--base-dir", "grafts", "--external"]);
    reference.check(&site, &server);
    let listed = site.publish(&["--json", "ls", "/grafts"]).json();
    let sizes: Vec<_> = listed.as_array().expect("a list").iter().map(|entry| entry["size"].as_u64()).collect();
    assert_eq!(sizes, [Some(3_000_000), Some(6)]);
    assert_eq!(listed[0]["objects"].as_array().map(Vec::len), Some(3));
}

#[test]
fn transactions_and_layers_are_as_the_check_expects_them() {
    let Some(reference) = Reference::find() else { return };
    let site = Site::with_repository(&[]);
    let server = site.serve();
    make_tree("rich", &site.path("source"), &[]);
    publish(&site, "--from", "source", &["--base-dir", "a"]);
    shell(&site, "", "mkdir layer; cd layer; mkdir nested; touch nested/.wh.a .wh.names; echo new >names-too");
    pack(&site.path("layer"), &site.path("layer.tar"), &["."]);
    site.publish(&["transaction"]).ok();
    for command in [
        "cp /a /b",
        "mv /a/sizes /a/moved",
        "mkdir -p /c/d/e",
        "ln -s ../a /c/link",
        "ln /b/hard/a /b/hard/new",
        "chmod -R go-w /b",
        "chown -R 3:4 /a/nested",
        "rm -r /b/nested/d /b/times",
        "cp /b/nested /c/nested",
    ] {
        site.publish(&command.split(' ').collect::<Vec<_>>()).ok();
    }
    site.ingest_tar("layer.tar", &["--base-dir", "b", "--whiteouts", "oci", "--transaction"]);
    site.publish(&["publish", "--tag", "edited"]).ok();
    site.check(&[]);
    reference.check(&site, &server);
    let shown = reference.mount(&site, &server, "").listing();
    assert!(
        shown.0.contains_key("b/names-too") && !shown.0.contains_key("b/names") && !shown.0.contains_key("b/nested/a")
    );
    site.publish(&["rm", "-r", "/c"]).ok();
    reference.check(&site, &server);
}

#[test]
fn an_overlay_over_the_client_is_published() {
    let Some(reference) = Reference::find() else { return };
    let site = rich_site(&[]);
    let server = site.serve();
    let lower = reference.mount(&site, &server, "");
    let script = format!(
        "mkdir o && mount -t tmpfs none o && mkdir o/upper o/work o/merged &&
         mount -t overlay overlay -o lowerdir={},upperdir=o/upper,workdir=o/work o/merged",
        lower.point.display()
    );
    shell(&site, "", &script);
    shell(
        &site,
        "o/merged",
        "rm -rf deep; mkdir deep; echo new >deep/new; mv nested nested2; rm hard/b; chmod 600 sizes/1; rm -r names
         echo more >>sizes/text; ln -s nowhere newlink; rm -r times; echo file >times; mkdir -p a/b; touch a/.cvmfscatalog",
    );
    let mut expected =
        Listing::parse(&verifier(["tree", "--no-dir-size", &text(&site.path("o/merged"))]).ok()).below("");
    let outcome = publish(&site, "--upper", "o/upper", &[]);
    shell(&site, "", "umount o/merged && umount o");
    drop(lower);
    assert_eq!(outcome["changed"].as_bool(), Some(true));
    reference.check(&site, &server);
    let mut found = reference.mount(&site, &server, "").listing();
    for line in expected.0.values_mut().chain(found.0.values_mut()) {
        // Overlays break hard links up, and count no links of directories.
        let mut columns: Vec<&str> = line.split(' ').collect();
        columns[5] = "-";
        *line = columns.join(" ");
    }
    found.assert_is(&expected);
}
