//! `--from`: a path of the repository becomes equal to a directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use serde_json::{Value, json};

use super::support::{Site, make_tree, run, source_listing};
use super::{publish, shell};

/// Numbers of entries added, changed and removed.
fn entries(outcome: &Value) -> [u64; 3] {
    ["added", "changed", "removed"].map(|key| outcome["entries"][key].as_u64().expect("a number"))
}

/// Plain bytes read.
fn read(outcome: &Value) -> u64 {
    outcome["content"]["bytes_read"].as_u64().expect("a number")
}

/// Checks the repository, and that it lists what the directory has.
#[track_caller]
fn assert_equal(site: &Site, base_dir: &str, directory: &str) {
    site.check_chunks();
    site.list(&[]).below(base_dir).assert_is(&source_listing(&site.path(directory)));
}

#[test]
fn a_rich_tree_arrives_whole_and_is_not_read_again() {
    let site = Site::with_repository(&[]);
    make_tree("rich", &site.path("source"), &[]);
    let expected = source_listing(&site.path("source"));
    let first = publish(&site, "source", &[]);
    assert_eq!((first["changed"].as_bool(), first["revision"].as_u64()), (Some(true), Some(2)), "{first}");
    assert_eq!(first["warnings"], json!([]));
    assert_eq!(entries(&first), [expected.0.len() as u64, 0, 0]);
    assert_equal(&site, "", "source");
    assert_eq!(site.catalogs(), 1 + expected.directories_with(".cvmfscatalog").len());

    // Reading would set the access times, which are older than the files.
    shell(&site, "source", "find . -type f -exec touch -a -d 1980-01-01 {} +");
    let manifest = site.manifest();
    for threads in ["1", "4"] {
        let again = publish(&site, "source", &["--threads", threads]);
        assert_eq!((again["changed"].as_bool(), again["revision"].as_u64()), (Some(false), Some(2)), "{again}");
        assert_eq!(again["content"]["changes"].as_u64(), Some(0), "{again}");
    }
    assert!(site.manifest() == manifest);
    for entry in fs::read_dir(site.path("source/sizes")).expect("directory") {
        let entry = entry.expect("entry");
        assert_eq!(entry.metadata().expect("metadata").atime(), 315_532_800, "{:?} was read", entry.path());
    }

    // Below another directory: no new data; with its own owner, times and all.
    let copy = publish(&site, "source", &["--base-dir", "copy/of it", "--catalog"]);
    assert_eq!(copy["content"]["objects_new"].as_u64(), Some(0));
    let all = site.list(&[]);
    let mut copied = all.below("copy/of%20it");
    assert_eq!(copied.take(|path| path == ".cvmfscatalog"), [".cvmfscatalog"]);
    copied.assert_is(&expected);
    // That catalog stays without being asked for again.
    let again = publish(&site, "source", &["--base-dir", "copy/of it"]);
    assert_eq!(again["changed"].as_bool(), Some(false), "{again}");

    // And the rest of the tree is not its business, but the root's when it comes again.
    let gone = publish(&site, "source", &[]);
    assert_eq!(entries(&gone)[..2], [0, 0], "{gone}");
    assert_equal(&site, "", "source");
}

#[test]
fn what_changed_is_changed_and_nothing_else() {
    let site = Site::with_repository(&[]);
    shell(
        &site,
        "",
        "mkdir -p s/d/e s/x && cd s && for n in 1 2 3 4 5 6; do echo $n >d/$n; done; ln -s 1 d/l; mkfifo d/p;
         echo deep >d/e/f; ln d/1 d/one; touch x/y",
    );
    publish(&site, "s", &[]);
    for (script, expected, bytes) in [
        ("echo longer than before >d/2", [0, 1, 0], 19),
        // The time of the directory changes, too.
        ("rm d/3", [0, 1, 1], 0),
        ("touch -d 2001-01-01 d/4", [0, 1, 0], 2),
        ("chmod 600 d/5", [0, 1, 0], 0),
        ("setfattr -n user.a -v b d/5", [0, 1, 0], 0),
        ("chown 7 d/5", [0, 1, 0], 0),
        ("chgrp 8 d/5", [0, 1, 0], 0),
        ("ln -sfn 2 d/l", [0, 2, 0], 0),
        ("chmod 4711 d/e", [0, 1, 0], 0),
        // One more name, one less, another group: known content is not read.
        ("ln d/6 d/six", [1, 2, 0], 0),
        ("rm d/one", [0, 2, 1], 0),
        ("ln -f d/1 d/six", [0, 3, 0], 0),
        ("ln d/1 x/one", [1, 1, 0], 0),
        ("rm d/p; mkdir d/p; echo in >d/p/in", [2, 1, 1], 3),
        ("rm -r d/p; ln -s in d/p", [1, 1, 2], 0),
        ("rm -r x; echo file >x", [1, 0, 3], 5),
        ("rm -r d", [0, 0, 11], 0),
    ] {
        shell(&site, "s", script);
        let outcome = publish(&site, "s", &[]);
        assert_eq!(read(&outcome), bytes, "read after {script}: {outcome}");
        assert_equal(&site, "", "s");
        let [added, changed, removed] = entries(&outcome);
        assert!(
            [added, removed] == [expected[0], expected[2]] && changed <= expected[1],
            "{script}: {:?}, not {expected:?}",
            entries(&outcome)
        );
        assert_eq!(publish(&site, "s", &[])["changed"].as_bool(), Some(false), "{script}");
    }
}

#[test]
fn names_of_one_file_in_several_directories_are_read_once() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir -p s/a s/b && head -c 50000 /dev/urandom >s/a/1 && ln s/a/1 s/a/2 && ln s/a/1 s/b/3");
    let outcome = publish(&site, "s", &[]);
    assert_eq!(read(&outcome), 50_000);
    assert_equal(&site, "", "s");
    // A copy of hard links is no copy of bytes.
    shell(&site, "s", "cp -al a c");
    assert_eq!(read(&publish(&site, "s", &[])), 0);
    assert_equal(&site, "", "s");
}

#[test]
fn contents_are_compared_if_asked_for() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir s && echo one >s/a && head -c 100000 /dev/urandom >s/big && touch -d 2020-01-01 s/*");
    publish(&site, "s", &[]);
    // Same size and time, other bytes.
    shell(&site, "s", "echo two >a && touch -d 2020-01-01 a");
    assert_eq!(publish(&site, "s", &[])["changed"].as_bool(), Some(false));
    let outcome = publish(&site, "s", &["--checksum"]);
    assert_eq!((entries(&outcome), read(&outcome)), ([0, 1, 0], 4));
    assert_equal(&site, "", "s");
    // Other time, same bytes: only the time changes.
    shell(&site, "s", "touch -d 2021-01-01 big");
    let outcome = publish(&site, "s", &["--checksum"]);
    assert_eq!((entries(&outcome), read(&outcome)), ([0, 1, 0], 0));
    assert_equal(&site, "", "s");
    assert_eq!(publish(&site, "s", &["--checksum"])["changed"].as_bool(), Some(false));
}

#[test]
fn what_is_excluded_is_neither_published_nor_removed() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir -p s/d/cache s/cache && touch s/a.tmp s/d/b.tmp s/d/cache/x s/cache/y s/k");
    publish(&site, "s", &[]);
    shell(&site, "s", "rm -r a.tmp d/cache k; touch d/new.tmp cache/z");
    publish(&site, "s", &["--exclude", "*.tmp", "-x", "/d/cache"]);
    let paths = |site: &Site| site.list(&[]).below("").0.into_keys().collect::<Vec<_>>();
    let expected = ["a.tmp", "cache", "cache/y", "cache/z", "d", "d/b.tmp", "d/cache", "d/cache/x"];
    assert_eq!(paths(&site), expected);
    publish(&site, "s", &["--no-delete"]);
    assert_eq!(paths(&site), [&expected[..], &["d/new.tmp"]].concat());
    publish(&site, "s", &["-x", "cache"]);
    assert_eq!(paths(&site), ["cache", "cache/y", "cache/z", "d", "d/b.tmp", "d/cache", "d/cache/x", "d/new.tmp"]);
    site.check(&[]);

    // A directory does not go for a file if nothing is to be removed.
    shell(&site, "s", "rm -r cache; touch cache");
    let path = site.path("s");
    let arguments = ["publish", "--no-delete", "--from", path.to_str().expect("UTF-8")];
    assert!(site.publish(&arguments).fails(1).contains("/cache"));
    assert!(site.publish(&["publish", "--from", "/nowhere/at all"]).fails(1).contains("/nowhere/at all"));
    assert!(site.publish(&["publish", "--from", path.join("k").to_str().expect("UTF-8")]).fails(1).contains("s/k"));
}

#[test]
fn other_file_systems_are_left_alone_if_asked_for() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir -p s/mnt s/d; touch s/mnt/before s/d/f");
    publish(&site, "s", &[]);
    let mounted = run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(site.path("s/mnt")));
    if !mounted.status.success() {
        return;
    }
    shell(&site, "s", "touch mnt/inside; rm d/f; chmod 700 mnt");
    let alone = run(&mut {
        let mut command = site.command("cvmfs-publish");
        command.args(["--json", "publish", "--one-file-system", "--from"]).arg(site.path("s"));
        command
    });
    let left_alone = site.list(&[]).below("");
    let followed = site.publish(&["--json", "publish", "--from", site.path("s").to_str().expect("UTF-8")]);
    let expected = source_listing(&site.path("s"));
    run(Command::new("umount").arg(site.path("s/mnt")));
    alone.ok();
    followed.ok();
    assert_eq!(left_alone.0.keys().collect::<Vec<_>>(), ["d", "mnt", "mnt/before"]);
    assert!(left_alone.0["mnt"].starts_with("d 0700"), "{}", left_alone.0["mnt"]);
    site.list(&[]).below("").assert_is(&expected);
}

#[test]
fn owners_are_kept_unless_others_are_named() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir -p s/d && touch s/d/f && chown -h 12:34 s/d s/d/f");
    publish(&site, "s", &[]);
    assert_equal(&site, "", "s");
    let outcome = publish(&site, "s", &["--uid", "5", "--gid", "6"]);
    assert_eq!((entries(&outcome), read(&outcome)), ([0, 2, 0], 0));
    assert!(site.list(&[]).0["d/f"].contains(" 5 6 "));
    let again = publish(&site, "s", &["--uid", "5", "--gid", "6"]);
    assert_eq!(again["changed"].as_bool(), Some(false));
}

/// Directories of the repository that are nested catalogs.
fn nested(site: &Site) -> BTreeSet<String> {
    let listed = site.publish(&["--json", "ls", "-R"]).json();
    let listed = listed.as_array().expect("a list").iter();
    let nested = listed.filter(|entry| entry["nested_catalog"] == true);
    nested.filter_map(|entry| entry["path"].as_str().map(str::to_owned)).collect()
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(ToString::to_string).collect()
}

#[test]
fn markers_that_the_commit_made_stay() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir -p s/sw/1/x s/sw/2/y s/own && touch s/sw/1/x/f s/own/.cvmfscatalog s/own/f");
    shell(&site, "s", "echo '/sw/*' >.cvmfsdirtab");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), set(&["/sw/1", "/sw/2", "/own"]));
    assert_eq!(publish(&site, "s", &[])["changed"].as_bool(), Some(false));
    // A source for a part of the tree follows the same rules.
    assert_eq!(publish(&site, "s/sw", &["--base-dir", "sw"])["changed"].as_bool(), Some(false));
    // A marker of the user's own stays as it is, also where a rule asks for one.
    shell(&site, "s", "mkdir sw/3; echo mine >sw/3/.cvmfscatalog");
    publish(&site, "s", &[]);
    assert_eq!(site.publish(&["cat", "/sw/3/.cvmfscatalog"]).ok(), "mine\n");
    shell(&site, "s", "rm -r sw/3");
    // It goes when the user removes it.
    shell(&site, "s", "rm own/.cvmfscatalog");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), set(&["/sw/1", "/sw/2"]));
    site.check(&[]);
    // And so do those of a rule that is no more.
    shell(&site, "s", "echo '/sw/2' >.cvmfsdirtab");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), set(&["/sw/2"]));
    shell(&site, "s", "rm .cvmfsdirtab");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), set(&[]));
    assert_equal(&site, "", "s");
    // New rules are for directories that are there, too.
    shell(&site, "s", "echo '/sw/*' >.cvmfsdirtab");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), set(&["/sw/1", "/sw/2"]));
}

#[test]
fn automatic_catalogs_stay_until_they_are_small() {
    let site = Site::with_repository(&["--autocatalogs"]);
    site.configure("CVMFS_AUTOCATALOGS_MAX_WEIGHT", "40");
    site.configure("CVMFS_AUTOCATALOGS_MIN_WEIGHT", "10");
    shell(&site, "", "for d in a b c; do mkdir -p s/$d; for n in {1..30}; do echo $d$n >s/$d/$n; done; done");
    publish(&site, "s", &[]);
    let split = nested(&site);
    assert!(split.len() > 2, "{split:?}");
    assert_eq!(publish(&site, "s", &[])["changed"].as_bool(), Some(false));
    shell(&site, "s", "echo more >a/31; rm a/1");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), split);
    site.check(&[]);
    shell(&site, "s", "rm [abc]/1* [abc]/2* [abc]/3*");
    publish(&site, "s", &[]);
    assert_eq!(nested(&site), set(&[]));
    assert_equal(&site, "", "s");
}

#[test]
fn grafts_are_files_whose_bytes_are_elsewhere() {
    let site = Site::with_repository(&[]);
    let hash = "0123456789012345678901234567890123456789";
    let graft = format!(
        "size=10\nchecksum=0000000000000000000000000000000000000000\ncompression=none\nchunk_offsets=0,4\nchunk_checksums={hash},{hash}\n"
    );
    shell(
        &site,
        "",
        "mkdir s && touch s/whole s/chunked s/plain && chmod 751 s/whole && setfattr -n user.a -v b s/whole",
    );
    let whole = format!("# comment\nsize=12\nchecksum={hash}\n");
    fs::write(site.path("s/.cvmfsgraft-whole"), &whole).expect("write");
    fs::write(site.path("s/.cvmfsgraft-chunked"), graft).expect("write");
    fs::write(site.path("s/.cvmfsgraft-nothing"), &whole).expect("write");
    let arguments = ["publish", "--from", site.path("s").to_str().expect("UTF-8")].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // What is in the storage must be there.
    assert!(site.publish(&arguments).fails(1).contains(".cvmfsgraft-"));
    let outcome = publish(&site, "s", &["--external"]);
    assert_eq!(entries(&outcome), [3, 0, 0]);
    let listed = site.publish(&["--json", "ls"]).json();
    let find = |name: &str| listed.as_array().expect("a list").iter().find(|entry| entry["path"] == name).cloned();
    let entry = find("/whole").expect("the file");
    assert_eq!((&entry["size"], &entry["mode"], &entry["objects"]), (&json!(12), &json!("0751"), &json!([hash])));
    assert_eq!(entry["xattrs"], json!([]));
    let chunk = format!("{hash}P");
    assert_eq!(find("/chunked").expect("the file")["objects"], json!([chunk, chunk]));
    assert_eq!(find("/.cvmfsgraft-nothing"), None);
    assert_eq!(publish(&site, "s", &["--external"])["changed"].as_bool(), Some(false));
    site.check(&[]);
    fs::write(site.path("s/.cvmfsgraft-whole"), "size=3\n").expect("write");
    assert!(site.publish(&[&arguments[..], &["--external"]].concat()).fails(1).contains("it has no checksum"));
}

#[test]
fn what_no_repository_can_have_is_refused_before_anything_is_stored() {
    let site = Site::with_repository(&[]);
    for (script, base_dir, named) in [
        ("mkdir -p s/.cvmfs; touch s/.cvmfs/x", "", "/.cvmfs"),
        ("mkdir s; touch s/.cvmfscatalog", "", "/.cvmfscatalog"),
        ("mkdir -p s/d/.cvmfscatalog", "", "/d/.cvmfscatalog"),
        ("mkdir -p s; touch s/f", ".cvmfs/x", "/.cvmfs/x"),
        ("mkdir s; head -c 1100000 /dev/zero >s/large", "", "/large has 1100000 bytes"),
    ] {
        site.configure("CVMFS_FILE_MBYTE_LIMIT", "1");
        site.configure("CVMFS_ENFORCE_LIMITS", "true");
        shell(&site, "", &format!("rm -rf s; {script}"));
        let objects = site.objects();
        let path = site.path("s");
        let arguments = ["publish", "--from", path.to_str().expect("UTF-8"), "--base-dir", base_dir];
        let message = site.publish(&arguments).fails(1);
        assert!(message.contains(named), "{message}");
        assert_eq!(site.objects(), objects, "{script}");
    }
}

#[test]
fn a_catalog_that_would_be_too_large_is_refused_before_anything_is_stored() {
    let site = Site::with_repository(&[]);
    for limit in ["CVMFS_ROOT_KCATALOG_LIMIT", "CVMFS_NESTED_KCATALOG_LIMIT"] {
        site.configure(limit, "1");
    }
    site.configure("CVMFS_ENFORCE_LIMITS", "true");
    let path = site.path("s");
    let arguments = ["publish", "--from", path.to_str().expect("UTF-8")];
    let refused = |more: &[&str], named: &str| {
        let (objects, manifest) = (site.objects(), site.manifest());
        let message = site.publish(&[&arguments[..], more].concat()).fails(1);
        assert!(message.contains(named), "{message}");
        assert_eq!((site.objects(), site.manifest()), (objects, manifest));
    };
    shell(&site, "", "mkdir -p s/a s/b; for n in {1..500}; do echo a$n >s/a/$n; echo b$n >s/b/$n; done");
    refused(&[], "the catalog at / has 1003 entries");
    // What is kept counts, what is excluded or goes does not, and the marker of a nested catalog makes one.
    publish(&site, "s", &["--exclude", "/b"]);
    shell(&site, "s", "mv a c");
    refused(&["--exclude", "/b", "--no-delete"], "the catalog at / has 1003 entries");
    publish(&site, "s", &["--exclude", "/b"]);
    shell(&site, "s", "touch b/.cvmfscatalog");
    publish(&site, "s", &[]);
    site.check(&[]);
    // So does what waits in the open transaction.
    site.publish(&["transaction"]).ok();
    shell(&site, "s", "for n in {1..300}; do echo c$n >c/more$n; done");
    publish(&site, "s", &["--transaction"]);
    shell(&site, "s", "for n in {1..300}; do echo d$n >d$n; done");
    refused(&["--transaction"], "the catalog at / has 1103 entries");
    site.publish(&["publish"]).ok();
    site.check(&[]);
    // Edits are refused before the catalogs below the one that would be too large are stored.
    shell(&site, "s", "mkdir -p c/n; touch c/n/.cvmfscatalog c/n/x");
    publish(&site, "s", &["--base-dir", "e", "--exclude", "/b", "--exclude", "/d*", "--catalog"]);
    let (objects, manifest) = (site.objects(), site.manifest());
    let message = site.publish(&["cp", "/e/c", "/d"]).fails(1);
    assert!(message.contains("the catalog at / has"), "{message}");
    assert_eq!((site.objects(), site.manifest()), (objects, manifest));
}

#[test]
fn revisions_tags_and_time_to_live() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir s; echo 1 >s/a");
    let outcome = publish(&site, "s", &["--revision", "70", "--tag", "seventy", "--message", "so many", "--ttl", "61"]);
    assert_eq!((outcome["revision"].as_u64(), outcome["tag"].as_str()), (Some(70), Some("seventy")));
    assert_eq!((site.manifest_field('S'), site.manifest_field('D')), ("70".into(), "61".into()));
    site.check(&[]);
    // Once more is no error, as nothing changes; a change is.
    let repeated = publish(&site, "s", &["--revision", "70", "--ttl", "61"]);
    assert_eq!(repeated["changed"].as_bool(), Some(false));
    shell(&site, "s", "echo 2 >b");
    let path = site.path("s");
    for taken in ["70", "69"] {
        let arguments = ["publish", "--from", path.to_str().expect("UTF-8"), "--revision", taken];
        assert!(site.publish(&arguments).fails(4).contains("revision 70"), "{taken}");
    }
    let next = publish(&site, "s", &[]);
    assert_eq!((next["revision"].as_u64(), site.manifest_field('D').as_str()), (Some(71), "61"));
    site.check(&[]);
}

#[test]
fn compression_and_place_of_new_files() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir s; printf 'stored as it is' >s/a");
    publish(&site, "s", &["--compression", "none"]);
    // Stored as it is, it is named by its own hash.
    let object = run(Command::new("sha1sum").arg(site.path("s/a"))).ok()[..40].to_owned();
    assert!(site.objects().contains(&object));
    assert_equal(&site, "", "s");
    // What is there stays as it is stored; new files are as the options say.
    shell(&site, "s", "echo external >b");
    publish(&site, "s", &["--external"]);
    site.check(&[]);
    assert!(site.publish(&["cat", "/b"]).fails(1).contains("external"));
    assert_eq!(site.publish(&["cat", "/a"]).ok(), "stored as it is");
}
