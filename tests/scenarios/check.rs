//! Checks: each kind of damage is found, and only that; what is whole is clean.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::history::Tag;
use cvmfs_core::progress::Cancel;
use cvmfs_core::server::ServerRoot;

use crate::support::fixture::unpacked;
use crate::support::replica::{Replica, Source};
use crate::support::{NAME, Site, binary, make_tree, pack, run, test_file};

/// The kinds of findings of a check, with the exit code that belongs to them.
#[track_caller]
fn kinds(site: &Site, more: &[&str]) -> BTreeSet<String> {
    let done = site.publish(&[&["--json", "check"], more].concat());
    let clean = done.status.success();
    let report = if clean { done.stdout } else { done.stdout.clone() };
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    assert_eq!(clean, findings.is_empty(), "{report}");
    findings.iter().map(|finding| finding["kind"].as_str().expect("kind").to_owned()).collect()
}

fn set(kinds: &[&str]) -> BTreeSet<String> {
    kinds.iter().map(|&kind| kind.to_owned()).collect()
}

fn rich_site(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(&[&["--gc", "--no-autotags"], mkfs].concat());
    make_tree("rich", &site.path("source"), &[]);
    pack(&site.path("source"), &site.path("rich.tar"), &["."]);
    site.ingest_tar("rich.tar", &["--tag", "whole"]);
    site
}

/// Copies of the reference's own repository, each damaged in one way, hashed and signed again where the damage would not be
/// reached otherwise. The table says what a check must find, nothing where it looks away as the reference's does.
#[test]
fn every_kind_of_damage_is_found_and_nothing_else() {
    let site = unpacked();
    let mut script = Command::new("python3");
    script.arg(test_file("support/damages.py")).arg(site.root()).arg(binary("cvmfs-publish"));
    script.args(["--json", "check", "--data", "--threads", "1"]).env("CVMFS_SERVER_ROOT", site.root());
    script.envs(site.environment.iter().map(|(key, value)| (key, value)));
    let printed = run(&mut script).ok();
    let found: Vec<String> = printed
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            [&fields[..1], &fields[2..]].concat().join(" ")
        })
        .collect();
    let expected = fs::read_to_string(test_file("fixtures/damages.txt")).expect("table");
    let differences: Vec<String> = expected
        .lines()
        .zip(&found)
        .filter(|(expected, found)| expected != found)
        .map(|(expected, found)| format!("expected {expected}, found {found}"))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(found.len(), expected.lines().count());
    assert!(found.len() > 150);
}

/// Tags of the newest revision and of an older one, of which another one is right.
#[test]
fn every_tag_of_a_revision_is_compared_with_it() {
    let site = rich_site(&[]);
    let root = ServerRoot::new(&site.root()).expect("root");
    let publisher = Publisher::open(&root, &NAME.parse().expect("name")).expect("publisher");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let now = UnixSeconds(now.as_secs().cast_signed());
    let wrong = publisher.edit_history(now, Duration::ZERO, &Cancel::new(), |_, history| {
        let right = history.tags()?.into_iter().find(|tag| tag.name == "whole").expect("tag");
        history.add(&Tag { name: "a-wrong-one".into(), revision: right.revision + 7, ..right.clone() })?;
        history.add(&Tag { name: "wrong".into(), revision: right.revision + 7, ..right })?;
        Ok(Some(()))
    });
    wrong.expect("edited");
    for _ in 0..2 {
        let printed = site.publish(&["check"]).stdout;
        for name in ["a-wrong-one", "wrong"] {
            assert!(printed.contains(&format!("tag {name}: its revision is ")), "{printed}");
        }
        assert_eq!(kinds(&site, &[]), set(&["tag"]));
        site.publish(&["mkdir", "/later"]);
    }
}

#[test]
fn what_is_whole_is_clean_in_every_form() {
    for (hash, compression) in [("sha1", "zlib"), ("rmd160", "zlib"), ("shake128", "none")] {
        let site = rich_site(&["--hash", hash, "--compression", compression]);
        site.publish(&["rm", "-r", "/names"]).ok();
        for options in [&[][..], &["--data"], &["--tag", "whole"], &["--path", "/nested"]] {
            assert_eq!(kinds(&site, options), set(&[]), "{hash} {compression} {options:?}");
        }
        let status = fs::read_to_string(site.storage().join(".cvmfs_status.json")).expect("status");
        assert!(status.contains("\"check_status\": \"succeeded\"") && status.contains("last_check"), "{status}");
    }
    let site = rich_site(&[]);
    site.publish(&["check", "--tag", "none"]).fails(1);
    site.publish(&["check", "--path", "/none"]).fails(1);
    assert!(site.publish(&["check"]).ok().starts_with("nothing is wrong: "));
}

/// The largest object of a file or chunk.
fn large_object(site: &Site) -> (String, PathBuf) {
    let path = |object: &String| site.storage().join("data").join(&object[..2]).join(&object[2..]);
    let data = site.objects().into_iter().filter(|object| !object.ends_with(['C', 'H', 'X', 'M']));
    let largest = data.max_by_key(|object| fs::metadata(path(object)).expect("object").len()).expect("an object");
    (largest.clone(), path(&largest))
}

#[test]
fn damaged_objects_are_found_with_the_path_that_needs_them() {
    let site = rich_site(&[]);
    let (object, path) = large_object(&site);
    let whole = fs::read(&path).expect("object");
    let middle = whole.len() / 2;
    let flipped = [&whole[..middle], &[!whole[middle]], &whole[middle + 1..]].concat();
    for (bytes, quick, thorough) in [
        (Some(Vec::new()), &["object-size"][..], &["object-size", "object-damaged"][..]),
        (Some([&whole[..], &whole[..]].concat()), &["object-size"], &["object-size", "object-damaged"]),
        (Some(flipped), &[], &["object-damaged"]),
        (None, &["object-missing"], &["object-missing"]),
    ] {
        match bytes {
            Some(bytes) => fs::write(&path, bytes).expect("damage"),
            None => fs::remove_file(&path).expect("damage"),
        }
        assert_eq!((kinds(&site, &[]), kinds(&site, &["--data"])), (set(quick), set(thorough)));
    }
    let done = site.publish(&["check"]);
    let text = done.stdout.clone();
    done.fails(3);
    let line = text.lines().next().expect("a finding");
    let needed = line.strip_prefix(&format!("object-missing: {object}: needed by /")).expect(line);
    assert!(site.path("source").join(needed).is_file(), "{line}");
    let status = fs::read_to_string(site.storage().join(".cvmfs_status.json")).expect("status");
    assert!(status.contains("\"check_status\": \"failed\""), "{status}");
    fs::write(&path, whole).expect("mend");
    assert_eq!(kinds(&site, &["--data"]), set(&[]));
}

#[test]
fn what_was_fine_before_is_left_out_on_request() {
    let site = rich_site(&[]);
    let check = |more: &[&str]| site.publish(&[&["--json", "check", "--incremental"], more].concat()).json();
    let counts = |report: &serde_json::Value| (report["catalogs"].as_u64(), report["catalogs_known"].as_u64());
    let first = check(&[]);
    let all = first["catalogs"].as_u64().expect("a number");
    assert!(all > 3 && first["catalogs_known"] == 0, "{first}");
    assert_eq!(counts(&check(&[])), (Some(0), Some(1)));
    // Bytes were not looked at.
    assert_eq!(counts(&check(&["--data"])), (Some(all), Some(0)));
    assert_eq!(counts(&check(&["--data"])), (Some(0), Some(1)));

    // A new root catalog, with those below as they were.
    site.publish(&["mkdir", "/new"]).ok();
    let next = check(&[]);
    assert_eq!(next["catalogs"], 1, "{next}");
    assert!(next["catalogs_known"].as_u64() > Some(0), "{next}");

    // What is damaged later is found by looking at everything, and not remembered as fine.
    let (_, path) = large_object(&site);
    let whole = fs::read(&path).expect("object");
    fs::write(&path, "").expect("damage");
    assert_eq!(kinds(&site, &["--incremental"]), set(&[]));
    assert_eq!(kinds(&site, &[]), set(&["object-size"]));
    site.publish(&["mkdir", "/newer"]).ok();
    fs::remove_file(site.spool().join("checked.db")).expect("forget");
    assert_eq!(kinds(&site, &["--incremental"]), set(&["object-size"]));
    assert_eq!(kinds(&site, &["--incremental"]), set(&["object-size"]));
    fs::write(&path, whole).expect("mend");
    assert_eq!(kinds(&site, &["--incremental"]), set(&[]));

    // Collected catalogs are forgotten, and what stays is clean.
    site.publish(&["gc", "-r", "0", "--grace-period", "0"]).ok();
    assert_eq!(kinds(&site, &[]), set(&[]));
}

#[test]
fn replicas_are_checked_as_what_they_are() {
    let site = rich_site(&[]);
    let source = Source::start(&site);
    let replica = Replica::of(&site, &source, &[]);
    replica.snapshot();
    let check = |more: &[&str]| replica.run(&[&["--json", "check"], more].concat());
    let report = check(&["--data"]).json();
    assert_eq!((report[0]["count"].as_u64(), report[0]["alias"].as_str()), (Some(0), Some(site.name.as_str())));
    assert!(report[0]["objects"].as_u64() > Some(50), "{report}");

    // A tag of which the replica does not have the revision is none of its business; an object of its newest is.
    site.publish(&["rm", "-r", "/sizes"]).ok();
    let part = Replica::of(&site, &source, &["--tags", "none"]);
    part.snapshot();
    assert_eq!(part.run(&["--json", "check"]).json()[0]["count"], 0);
    let (_, path) = large_object(&part.site);
    fs::remove_file(path).expect("damage");
    let text = part.run(&["check"]).fails(3);
    assert!(text.contains("1 things that are wrong"), "{text}");
}

/// A server with a copy of a site as it is now.
struct Mirror {
    site: Site,
    server: crate::support::Server,
}

impl Mirror {
    fn of(original: &Site) -> Self {
        let site = Site::empty(&original.name);
        run(Command::new("cp").arg("-a").args([original.root(), site.root()])).ok();
        let (here, there) = (original.root().display().to_string(), site.root().display().to_string());
        let configuration = fs::read_to_string(site.server_conf()).expect("server.conf");
        fs::write(site.server_conf(), configuration.replace(&here, &there)).expect("server.conf");
        let server = site.serve();
        Self { site, server }
    }

    fn url(&self) -> String {
        self.server.repository(&self.site.name)
    }
}

#[test]
fn objects_are_mended_from_another_copy() {
    let site = rich_site(&[]);
    let mirror = Mirror::of(&site);
    let before = site.objects();
    let path = |site: &Site, object: &str| site.storage().join("data").join(&object[..2]).join(&object[2..]);
    let named = ['X', 'H', 'M', 'C'].map(|key| format!("{}{key}", site.manifest_field(key)));
    // Tag databases of before are needed by nobody.
    let others = before.iter().filter(|object| !named.contains(object) && !object.ends_with('H'));
    let others: Vec<&String> = others.collect();
    // Every third object goes, catalogs among them, and every third is cut short; so does what the manifest names.
    for object in others.iter().step_by(3).copied().chain(&named) {
        fs::remove_file(path(&site, object)).expect("damage");
    }
    for object in others.iter().skip(1).step_by(3) {
        let bytes = fs::read(path(&site, object)).expect("object");
        fs::write(path(&site, object), &bytes[..bytes.len() - 1]).expect("damage");
    }
    assert!(!kinds(&site, &[]).is_empty());
    let mended = site.publish(&["--json", "check", "--data", "--repair", "--from", &mirror.url()]).json();
    assert_eq!(mended["count"], 0, "{mended}");
    assert!(mended["mended"]["objects"].as_u64() > Some(20), "{mended}");
    assert_eq!(kinds(&site, &["--data"]), set(&[]));
    site.check(&["--no-strict"]);

    // What the other copy does not have, or has not as it should be, stays as it is.
    let (object, here) = large_object(&site);
    fs::remove_file(&here).expect("damage");
    let there = path(&mirror.site, &object);
    let whole = fs::read(&there).expect("object");
    for bytes in [Some(&whole[1..]), None] {
        match bytes {
            Some(bytes) => fs::write(&there, bytes).expect("damage"),
            None => fs::remove_file(&there).expect("damage"),
        }
        // Another one: a server keeps small objects in memory for a while.
        let server = mirror.site.serve();
        let done = site.publish(&["check", "--repair", "--from", &server.repository(&site.name)]);
        assert!(done.stdout.contains("not mended: ") && done.stdout.contains("mended: 0 objects"), "{}", done.stdout);
        done.fails(3);
        assert!(!here.exists());
    }
}

#[test]
fn a_replica_is_mended_from_its_source() {
    let site = rich_site(&[]);
    let source = Source::start(&site);
    let replica = Replica::of(&site, &source, &[]);
    replica.snapshot();
    let (_, path) = large_object(&replica.site);
    fs::write(&path, "").expect("damage");
    replica.run(&["check"]).fails(3);
    let mended = replica.run(&["--json", "check", "--repair"]).json();
    assert_eq!((mended[0]["count"].as_u64(), mended[0]["mended"]["objects"].as_u64()), (Some(0), Some(1)), "{mended}");
    replica.check(&[]);
}

#[test]
fn a_lost_reflog_is_put_together_again() {
    let site = rich_site(&[]);
    site.publish(&["rm", "-r", "/names"]).ok();
    site.publish(&["tag", "add", "two"]).ok();
    let file = site.storage().join(".cvmfsreflog");
    let listed = |file: &std::path::Path| {
        let sql =
            "import sqlite3, sys; print(sorted(sqlite3.connect(sys.argv[1]).execute('SELECT hash, type FROM refs')))";
        run(Command::new("python3").args(["-c", sql]).arg(file)).ok()
    };
    let before = listed(&file);
    let whole = fs::read(&file).expect("reflog");
    for damaged in [None, Some(&whole[..whole.len() / 2])] {
        match damaged {
            None => fs::remove_file(&file).expect("damage"),
            Some(bytes) => fs::write(&file, bytes).expect("damage"),
        }
        assert_eq!(kinds(&site, &[]), set(&["reflog"]));
        let mended = site.publish(&["--json", "check", "--repair"]).json();
        assert_eq!((mended["count"].as_u64(), mended["mended"]["reflog"].as_bool()), (Some(0), Some(true)), "{mended}");
        assert_eq!(listed(&file), before);
        site.check(&["--stale-y", "--no-strict"]);
    }
    site.publish(&["mkdir", "/on"]).ok();
    site.check(&["--no-strict"]);
}

#[test]
fn counters_are_counted_again_in_a_new_revision() {
    let site = unpacked();
    let before = site.list(&[]);
    let damage = "import sys; sys.path.insert(0, sys.argv[1]); import fixture, test_verify; \
                  repo = fixture.Repo(sys.argv[2]); \
                  [function(repo) for function, _, _ in test_verify.DAMAGES if function.__name__ in sys.argv[3:]]; \
                  print(repo.value('Y'), end='')";
    let mut script = Command::new("python3");
    script.args(["-c", damage]).arg(test_file("verifier")).arg(site.storage());
    let checksum = run(script.args(["counter_self_xattr", "counter_subtree_file_size"])).ok();
    fs::write(site.spool().join("reflog.chksum"), checksum).expect("checksum");
    assert_eq!(kinds(&site, &[]), set(&["counters"]));
    let revision = site.manifest_field('S');
    let mended = site.publish(&["--json", "check", "--repair"]).json();
    assert_eq!((mended["count"].as_u64(), mended["mended"]["counters"].as_bool()), (Some(0), Some(true)), "{mended}");
    assert_ne!(site.manifest_field('S'), revision);
    site.list(&[]).assert_is(&before);
    assert_eq!(kinds(&site, &["--data"]), set(&[]));
}
