//! Looking at the past of a repository and changing it: tags, rollback, branches, differences, archives. The
//! independent verifier says what the trees are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::support::{Listing, NAME, Site, make_tree, pack, run, source_listing};
use serde_json::{Value, json};

/// A site with revisions 2, 3 and 4, tagged `v1`, `v2` and `v3`: a small tree with a nested catalog that grows.
fn site_with_past(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(&[mkfs, &["--no-autotags"]].concat());
    let source = site.path("source");
    fs::create_dir_all(source.join("nested/deep")).expect("mkdir");
    for (name, content) in [("nested/.cvmfscatalog", ""), ("nested/a", "a"), ("plain", "plain")] {
        fs::write(source.join(name), content).expect("write");
    }
    fs::hard_link(source.join("nested/a"), source.join("nested/b")).expect("link");
    for tag in ["v1", "v2", "v3"] {
        fs::write(source.join("nested/deep").join(tag), tag.repeat(5000)).expect("write");
        pack(&source, &site.path("source.tar"), &["."]);
        site.ingest_tar("source.tar", &["--tag", tag, "--message", &format!("as of {tag}")]);
    }
    site
}

#[track_caller]
fn tags(site: &Site) -> Vec<(String, u64)> {
    let tags = site.publish(&["tag", "--json"]).json();
    let pair =
        |tag: &Value| (tag["name"].as_str().expect("name").to_owned(), tag["revision"].as_u64().expect("number"));
    let mut pairs: Vec<_> = tags.as_array().expect("tags").iter().map(pair).collect();
    pairs.sort();
    pairs
}

#[track_caller]
fn assert_tags(site: &Site, expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(name, revision)| ((*name).to_owned(), *revision)).collect();
    assert_eq!(tags(site), expected);
}

#[test]
fn tags_come_move_and_go() {
    let site = site_with_past(&[]);
    let listings = ["v1", "v2", "v3"].map(|tag| site.list(&["--tag", tag]));
    let root_of = |tag: &str| site.publish(&["tag", "show", tag, "--json"]).json()["root_hash"].clone();
    let first = root_of("v1");
    let added = site.publish(&["tag", "add", "old", "2", "-m", "by number", "--json"]).json();
    assert_eq!((&added["changed"], &added["tags"][0]["root_hash"]), (&json!(true), &first));
    site.publish(&["tag", "add", "by-hash", first.as_str().expect("hash")]).ok();
    site.publish(&["tag", "add", "now"]).ok();
    let all =
        [("by-hash", 2), ("now", 4), ("old", 2), ("trunk", 4), ("trunk-previous", 3), ("v1", 2), ("v2", 3), ("v3", 4)];
    assert_tags(&site, &all);
    site.check(&[]);
    site.list(&["--tag", "old"]).assert_is(&listings[0]);

    // What is so already changes nothing, not even the signature.
    let manifest = site.manifest();
    for again in [["add", "old", "v1"], ["add", "now", "trunk"], ["move", "old", "2"]] {
        let done = site.publish(&[&["tag"], &again[..], &["--json"]].concat()).json();
        assert_eq!(done["changed"], json!(false), "{again:?}");
    }
    for (refused, code) in [
        (&["add", "old", "v2"][..], 4),
        (&["add", "trunk"], 2),
        (&["add", "a b"], 2),
        (&["add", "new", "nothing"], 1),
        (&["add", "new", "99"], 1),
        (&["move", "nothing", "v1"], 1),
        (&["remove", "v1", "nothing"], 1),
        (&["remove", "v1", "trunk-previous"], 1),
        (&["remove"], 2),
        (&["show", "nothing"], 1),
    ] {
        site.publish(&[&["tag"], refused].concat()).fails(code);
    }
    assert!(site.manifest() == manifest);

    site.publish(&["tag", "move", "old", "v2"]).ok();
    site.list(&["--tag", "old"]).assert_is(&listings[1]);
    let shown = site.publish(&["tag", "show", "old", "--json"]).json();
    assert_eq!((&shown["revision"], &shown["description"]), (&json!(3), &json!("by number")));
    let removed = site.publish(&["tag", "remove", "old", "by-hash", "v2", "--json"]).json();
    assert_eq!(removed["tags"].as_array().map(Vec::len), Some(3));
    assert_tags(&site, &[("now", 4), ("trunk", 4), ("trunk-previous", 3), ("v1", 2), ("v3", 4)]);
    site.check(&[]);
    site.list(&[]).assert_is(&listings[2]);
}

#[test]
fn automatic_tags_go_when_they_are_old_enough() {
    let mut site = Site::empty(NAME);
    // 2025-06-15T15:06:40Z
    let set_clock = |site: &mut Site, seconds: u64| {
        site.environment = vec![("SOURCE_DATE_EPOCH", (1_750_000_000 + seconds).to_string())];
    };
    set_clock(&mut site, 0);
    site.mkfs(&["--whitelist-days", "365"]);
    site.configure("CVMFS_AUTO_TAG_TIMESPAN", "\"4 weeks ago\"");
    let publish = |site: &Site, arguments: &[&str]| site.publish(&[&["mkdir"], arguments].concat()).ok();
    publish(&site, &["/a"]);
    publish(&site, &["/b", "--tag", "named"]);
    let (first, second, third) =
        ("generic-2025-06-15T15:06:40Z", "generic-2025-07-13T15:06:40Z", "generic-2025-07-13T15:06:41Z");
    set_clock(&mut site, 28 * 86_400);
    publish(&site, &["/c"]);
    let made = site.publish(&["ls", "-l", "--json", "/"]).json();
    let times: Vec<_> = made.as_array().expect("entries").iter().map(|entry| entry["mtime"].as_u64()).collect();
    assert_eq!(times, [0, 0, 28 * 86_400].map(|seconds| Some(1_750_000_000 + seconds)));
    assert_tags(&site, &[(first, 2), (second, 4), ("named", 3), ("trunk", 4), ("trunk-previous", 3)]);
    set_clock(&mut site, 28 * 86_400 + 1);
    publish(&site, &["/d"]);
    assert_tags(&site, &[(second, 4), (third, 5), ("named", 3), ("trunk", 5), ("trunk-previous", 4)]);
    site.configure("CVMFS_AUTO_TAG", "false");
    publish(&site, &["/e"]);
    assert_tags(&site, &[(second, 4), (third, 5), ("named", 3), ("trunk", 6), ("trunk-previous", 5)]);
}

#[test]
fn a_rollback_publishes_an_old_tree_again() {
    let site = site_with_past(&[]);
    let listings = ["v1", "v2", "v3"].map(|tag| site.list(&["--tag", tag]));
    site.publish(&["tag", "add", "also-v2", "v2"]).ok();
    for refused in ["trunk", "v3", "4"] {
        site.publish(&["rollback", refused]).fails(1);
    }
    let manifest = site.manifest();
    let plan = site.publish(&["rollback", "v2", "--dry-run", "--json"]).json();
    assert_eq!((&plan["target_revision"], &plan["removed_tags"][0]["name"]), (&json!(3), &json!("v3")));
    assert!(site.manifest() == manifest);

    let done = site.publish(&["rollback", "v2", "--json"]).json();
    assert_eq!((&done["revision"], &done["target_revision"]), (&json!(5), &json!(3)));
    assert_eq!(done["removed_tags"], plan["removed_tags"]);
    assert_tags(&site, &[("also-v2", 3), ("trunk", 5), ("v1", 2), ("v2", 5)]);
    site.check(&[]);
    for listing in [site.list(&[]), site.list(&["--tag", "also-v2"])] {
        listing.assert_is(&listings[1]);
    }
    // There is nothing to undo until something is published.
    site.publish(&["rollback"]).fails(1);
    site.ingest_tar("source.tar", &["--tag", "again"]);
    site.list(&[]).assert_is(&listings[2]);
    site.publish(&["rollback"]).ok();
    assert_tags(&site, &[("also-v2", 3), ("trunk", 7), ("v1", 2), ("v2", 5)]);
    site.list(&[]).assert_is(&listings[1]);
    // To a revision that only the hash of its root names.
    let log = site.publish(&["log", "--json"]).json();
    let revisions: Vec<u64> =
        log.as_array().expect("log").iter().filter_map(|entry| entry["revision"].as_u64()).collect();
    assert_eq!(revisions, [7, 6, 5, 4, 3, 2, 1]);
    let unnamed = log[3]["root_hash"].as_str().expect("hash");
    site.publish(&["rollback", unnamed]).ok();
    site.list(&[]).assert_is(&listings[2]);
    assert_tags(&site, &[("also-v2", 3), ("trunk", 8), ("v1", 2)]);
    site.check(&[]);
}

#[test]
fn a_branch_grows_beside_the_trunk() {
    let site = site_with_past(&[]);
    let (trunk, old) = (site.list(&[]), site.list(&["--tag", "v1"]));
    fs::create_dir_all(site.path("fix/nested")).expect("mkdir");
    fs::write(site.path("fix/nested/fix"), "fixed").expect("write");
    pack(&site.path("fix"), &site.path("fix.tar"), &["nested/fix"]);
    let expected = |base: &Listing, directory: &str| {
        let mut listing = base.clone();
        let fix = site.list(&["--tag", "fixed"]).take(|path| path.ends_with("/fix"));
        assert_eq!(fix, [format!("{directory}/fix")]);
        listing.take(|path| path == directory);
        listing
    };

    site.publish(&["checkout", "none", "-b", "fixes"]).fails(1);
    site.publish(&["checkout", "-b", "fixes"]).fails(1);
    site.publish(&["checkout", "v1", "-b", "no good"]).fails(1);
    site.publish(&["checkout", "v1", "-b", "fixes"]).ok();
    // Nothing else can be changed now, and a name is needed.
    for refused in [&["tag", "add", "x"][..], &["tag", "remove", "v2"], &["rollback"]] {
        site.publish(refused).fails(4);
    }
    let tarball = site.path("fix.tar");
    let tarball = tarball.to_str().expect("UTF-8");
    site.ingest(&["--tar", tarball]).fails(1);
    let (manifest, root) = (site.manifest(), site.manifest_field('C'));
    assert!(!manifest.is_empty());
    let done = site.ingest_tar("fix.tar", &["--tag", "fixed"]);
    assert_eq!((&done["changed"], &done["revision"], &done["tag"]), (&json!(true), &json!(3), &json!("fixed")));
    // Clients of the trunk see nothing of it.
    assert_eq!((site.manifest_field('C'), site.manifest_field('S')), (root.clone(), "4".into()));
    site.list(&[]).assert_is(&trunk);
    let mut branch = site.list(&["--tag", "fixed"]);
    let expected = expected(&old, "nested");
    branch.take(|path| path == "nested" || path == "nested/fix");
    branch.assert_is(&expected);
    site.check(&[]);
    let shown = site.publish(&["tag", "show", "fixed", "--json"]).json();
    assert_eq!((&shown["branch"], &shown["revision"]), (&json!("fixes"), &json!(3)));

    // The repository is back at the trunk; the branch goes on from its newest revision when it is checked out again.
    assert!(!site.spool().join("checkout").exists());
    site.publish(&["checkout", "v1", "-b", "fixes"]).fails(4);
    site.publish(&["checkout", "-b", "fixes"]).ok();
    site.ingest(&["--delete", "plain", "--tag", "fixed-more"]).json();
    let listing = site.list(&["--tag", "fixed-more"]);
    assert!(listing.0.contains_key("nested/fix") && !listing.0.contains_key("plain"));
    site.publish(&["checkout", "fixed", "-b", "other"]).ok();
    site.publish(&["checkout", "--trunk"]).ok();
    site.ingest(&["--delete", "plain", "--tag", "v4"]).json();
    assert_eq!((site.manifest_field('S'), site.catalogs()), ("5".into(), 2));
    site.check(&[]);

    // A marker from before a crash: the branch has moved on.
    let old = format!(
        "v1 {} fixes\n",
        site.publish(&["tag", "show", "v1", "--json"]).json()["root_hash"].as_str().expect("hash")
    );
    fs::write(site.spool().join("checkout"), old).expect("write");
    site.ingest(&["--delete", "nested/a", "--tag", "x"]).fails(4);
    fs::write(site.spool().join("checkout"), "nonsense\n").expect("write");
    site.ingest(&["--delete", "nested/a", "--tag", "x"]).fails(3);
    site.publish(&["checkout", "--trunk"]).ok();

    // A rollback leaves branches alone; a branch without tags goes.
    site.publish(&["rollback", "fixed"]).fails(1);
    site.publish(&["rollback", "v1"]).ok();
    assert_tags(&site, &[("fixed", 3), ("fixed-more", 4), ("trunk", 6), ("v1", 6)]);
    assert_eq!(site.publish(&["tag", "branches", "--json"]).json().as_array().map(Vec::len), Some(2));
    site.publish(&["tag", "remove", "fixed", "fixed-more"]).ok();
    assert_eq!(site.publish(&["tag", "branches", "-x"]).ok(), "[0] (default) @0\n");
    site.check(&[]);
}

#[test]
fn differences_are_told_in_every_form() {
    let site = site_with_past(&[]);
    let grown = "2 added, 0 removed, 0 changed (0 of them in metadata only); 20000 bytes came, 0 bytes went\n";
    let lines = site.publish(&["diff", "v1", "4", "--ignore", "mtime"]).ok();
    assert_eq!(lines, format!("+ /nested/deep/v2\n+ /nested/deep/v3\n{grown}"));
    let document = site.publish(&["diff", "v1", "--ignore", "mtime", "--json"]).json();
    assert_eq!(document["changes"][1]["path"], "/nested/deep/v3");
    assert_eq!((&document["from"]["revision"], &document["to"]["revision"]), (&json!(2), &json!(4)));
    assert_eq!(document["summary"]["bytes_added"], 20000);
    assert_eq!(site.publish(&["diff", "v1", "--ignore", "mtime", "--summary"]).ok(), grown);
    let back = site.publish(&["diff", "trunk", "v1", "--path", "/nested/deep", "--ignore", "mtime", "-m"]).ok();
    let expected = "S F -2\nS S 0\nS D 0\nS N 0\nR F /nested/deep/v2 -10000\nR F /nested/deep/v3 -10000\n";
    assert_eq!(back, expected);
    assert_eq!(site.publish(&["diff", "v2", "v2", "--json"]).json()["changes"], json!([]));
    assert!(site.publish(&["diff", "--header"]).ok().starts_with("from revision 3 of "));
    site.publish(&["diff", "v1", "nothing"]).fails(1);
    site.publish(&["diff", "--ignore", "type"]).fails(2);
    site.publish(&["chmod", "600", "/plain"]).ok();
    let summary = "0 added, 0 removed, 1 changed (1 of them in metadata only); 0 bytes came, 0 bytes went\n";
    assert_eq!(site.publish(&["diff", "--summary"]).ok(), summary);
}

#[test]
fn entries_and_catalogs_of_any_revision_are_found() {
    let site = site_with_past(&[]);
    let find = |more: &[&str]| site.publish(&[&["find"], more].concat()).ok();
    assert_eq!(find(&["--name", "v?"]), "/nested/deep/v1\n/nested/deep/v2\n/nested/deep/v3\n");
    assert_eq!(find(&["/nested", "--name", "v*", "--tag", "v1"]), "/nested/deep/v1\n");
    assert_eq!(find(&["--type", "d", "--max-depth", "1"]), "/\n/nested\n");
    assert_eq!(
        find(&["--path", "/nested/*", "--max-size", "1", "--print0"]),
        "/nested/.cvmfscatalog\0/nested/a\0/nested/b\0"
    );
    assert_eq!(find(&["--min-size", "9K", "--revision", "2"]), "/nested/deep/v1\n");
    assert_eq!(find(&["--older", "2001-01-01"]), "");
    assert_eq!(find(&["/plain", "--newer", "@0"]), "/plain\n");
    let listed = site.publish(&["find", "/nested", "--name", "a", "--json"]).json();
    assert_eq!((&listed[0]["path"], &listed[0]["links"]), (&json!("/nested/a"), &json!(2)));
    site.publish(&["find", "--newer", "yesterday"]).fails(2);
    site.publish(&["find", "/nothing"]).fails(1);

    assert_eq!(site.publish(&["list-catalogs", "-e"]).ok(), "3 /\n├─ 8 /nested\n");
    assert_eq!(site.publish(&["list-catalogs", "-e", "-x", "--tag", "v1"]).ok(), "3 /\n6 /nested\n");
    let catalogs = site.publish(&["list-catalogs", "--json"]).json();
    assert_eq!(catalogs[0]["hash"].as_str(), Some(&site.manifest_field('C')[..]));

    let log = site.publish(&["log", "-n", "2", "--json"]).json();
    assert_eq!(log.as_array().map(Vec::len), Some(2));
    assert_eq!(log[0]["change"], json!({ "entries": 1, "bytes": 10000, "catalogs": 0 }));
    let names: BTreeSet<_> =
        log[1]["tags"].as_array().expect("tags").iter().filter_map(|tag| tag["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["v2", "trunk-previous"]));
}

#[test]
fn an_export_is_ingested_as_the_same_tree() {
    let site = Site::with_repository(&[]);
    make_tree("rich", &site.path("source"), &[]);
    pack(&site.path("source"), &site.path("rich.tar"), &["."]);
    site.ingest_tar("rich.tar", &["--base-dir", "top/rich", "--tag", "rich"]);
    let expected = site.list(&[]).below("top/rich");
    let pipe = |arguments: &[&str], base_dir: &str| {
        let mut export = site.command("cvmfs-publish");
        let mut export = export.arg("export").args(arguments).stdout(Stdio::piped()).spawn().expect("export");
        let archive = export.stdout.take().expect("stdout");
        run(site.ingest_command(&["--tar", "-", "--base-dir", base_dir]).stdin(archive)).json();
        assert!(export.wait().expect("export").success());
    };
    pipe(&["/top/rich"], "copy");
    let all = site.list(&[]);
    all.below("copy").assert_is(&expected);
    pipe(&["/", "--tag", "rich"], "all");
    site.list(&[]).below("all/top/rich").assert_is(&expected);
    site.check(&[]);

    // GNU tar makes the same of it; twice the same bytes.
    let file = site.path("export.tar");
    let name = file.to_str().expect("UTF-8");
    site.publish(&["export", "/top/rich", "--output", name]).ok();
    let first = fs::read(&file).expect("archive");
    site.publish(&["export", "/copy", "--output", name]).ok();
    assert!(fs::read(&file).expect("archive") == first);
    let unpacked = site.path("unpacked");
    fs::create_dir(&unpacked).expect("mkdir");
    let options = [
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
        "--same-permissions",
        "--delay-directory-restore",
    ];
    run(Command::new("tar").args(options).arg("-C").arg(&unpacked).arg("-xf").arg(&file)).ok();
    // It takes access control lists in their text form only, and we keep them as the attributes that they are.
    let listings = [&unpacked, &site.path("source")].map(|directory| {
        let mut listing = source_listing(directory);
        assert_eq!(listing.take(|path| path.starts_with("xattrs/acl")).len(), 2);
        listing
    });
    listings[0].assert_is(&listings[1]);

    // One file; nothing; an archive that cannot be completed does not take the place of another.
    site.publish(&["export", "/top/rich/sizes/65536", "-o", name]).ok();
    assert_eq!(run(Command::new("tar").arg("-tf").arg(&file)).ok(), "65536\n");
    site.publish(&["export", "/nothing", "-o", name]).fails(1);
    let object = site.publish(&["find", "/top/rich/sizes/65536", "--json"]).json()[0]["objects"][0].clone();
    let object = object.as_str().expect("hash").to_owned();
    let path = site.storage().join("data").join(&object[..2]).join(&object[2..]);
    File::create(&path).expect("damage");
    site.publish(&["export", "/top", "-o", name]).fails(3);
    assert_eq!(run(Command::new("tar").arg("-tf").arg(&file)).ok(), "65536\n");
}
