//! Commands that write all catalogs anew: migration of older schemas, maps of owners, hard links, objects of whole files.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{self, Publisher, Rewrite};
use cvmfs_core::idmap::IdMap;
use cvmfs_core::progress::{Cancel, Progress, Unit};
use cvmfs_core::server::ServerRoot;
use serde_json::Value;

use crate::support::replica::{Replica, Source};
use crate::support::{Done, Listing, NAME, Site, run, test_file};

/// What catalogs are made older with.
pub(crate) fn older(site: &Site, arguments: &[&str]) -> String {
    let mut command = Command::new("python3");
    run(command.arg(test_file("support/older.py")).arg(site.root()).arg(NAME).args(arguments)).ok()
}

/// Nested catalogs, one in another; hard links, also across directories; a FIFO; owners. Chunks, if asked for.
pub(crate) fn site(with_chunks: bool) -> Site {
    let site = Site::with_repository(&["--gc", "--no-autotags"]);
    let script = "
        mkdir -p src/a/b/c/q src/a/d src/e/f; cd src
        echo one >a/one; ln a/one a/uno; ln a/one a/ein; ln -s ../one a/d/link; mkfifo e/pipe
        echo two >a/b/two; echo deep >a/b/c/deep; echo p >e/p; ln e/p e/p2
        echo x >a/d/across1; ln a/d/across1 e/f/across2
        touch a/b/.cvmfscatalog a/b/c/.cvmfscatalog e/.cvmfscatalog";
    run(Command::new("bash").args(["-euc", script]).current_dir(site.path(""))).ok();
    if with_chunks {
        fs::write(site.path("src/e/f/large"), "chunks ".repeat(9000)).expect("large");
    }
    let from = site.path("src");
    site.publish(&["publish", "--from", from.to_str().expect("UTF-8"), "--tag", "new"]).ok();
    if Path::new("/proc/self").metadata().is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0) {
        // The owners of sources are not always ours to choose; these are.
        site.publish(&["chown", "-R", "7:8", "/e"]).ok();
    }
    site
}

/// What the oldest catalogs cannot say: nanoseconds, and for those before 2.1 also owners.
fn without(listing: &Listing, owner: Option<&str>) -> Listing {
    let mut plain = listing.clone();
    for (path, line) in &mut plain.0 {
        // type, mode, size, hash, time, links, target, owner, group, ...
        let mut fields: Vec<&str> = line.split(' ').collect();
        fields[4] = fields[4].split('.').next().unwrap_or_default();
        if owner.is_some() && path.ends_with(".cvmfscatalog") {
            fields[4] = "any";
        }
        if let Some(owner) = owner {
            (fields[7], fields[8]) = (owner, owner);
        }
        *line = fields.join(" ");
    }
    plain
}

fn rewritten(done: Done) -> (bool, u64, u64, u64) {
    let outcome = done.json();
    let number = |key: &str| outcome[key].as_u64().expect("a number");
    let changed = outcome["changed"].as_bool().expect("a boolean");
    (changed, number("catalogs"), number("catalogs_written"), number("entries"))
}

#[test]
fn catalogs_of_every_schema_are_read_and_migrated() {
    let site = site(false);
    let before = site.list(&[]);
    run(Command::new("cp").arg("-a").args([site.root(), site.path("pristine")])).ok();
    for (schema, options) in [
        ("0.9", &[][..]),
        ("1.0", &["dangling", "no-revision"]),
        ("2.1", &["no-statistics"]),
        ("2.4", &[]),
        ("2.5.3", &["no-revision"]),
        ("2.5.7", &[]),
    ] {
        run(Command::new("bash").args(["-euc", "rm -rf site; cp -a pristine site"]).current_dir(site.path(""))).ok();
        older(&site, &[&["make", schema], options].concat());
        let is_oldest = ["0.9", "1.0"].contains(&schema);
        let has_dangling = options.contains(&"dangling");

        // What is there is read.
        assert_eq!(site.publish(&["check"]).status.success(), !has_dangling, "{schema}");
        let listed = site.publish(&["ls", "-l", "/a"]).ok();
        assert!(listed.contains("one") && listed.contains("uno"), "{schema}: {listed}");
        site.publish(&["verify"]).ok();
        assert_eq!(site.publish(&["cat", "/a/b/c/deep"]).ok(), "deep\n");
        let differences = site.publish(&["diff", "new", "trunk"]);
        assert_eq!(differences.status.success(), !has_dangling, "{schema}");
        site.publish(&["gc", "--dry-run"]).ok();
        if !has_dangling {
            let source = Source::start(&site);
            let replica = Replica::of(&site, &source, &[]);
            replica.snapshot();
            replica.run(&["check"]).ok();
        }
        if !schema.starts_with("2.5") {
            let refused = site.publish(&["eliminate-hardlinks"]).fails(1);
            assert!(refused.contains("cvmfs-publish migrate"), "{refused}");
        }

        // Nothing changes without being asked for.
        let manifest = site.manifest();
        let rehearsed = site.publish(&["--json", "migrate", "--owner", "3:3", "--dry-run"]).json();
        assert_eq!(rehearsed["outcome"]["catalogs_written"], 4, "{schema}");
        assert!(site.manifest() == manifest);

        let (changed, catalogs, written, entries) =
            rewritten(site.publish(&["--json", "migrate", "--owner", "3:3", "--tag", "migrated"]));
        assert_eq!((changed, catalogs, written, entries > 20), (true, 4, 4, true), "{schema}");
        site.publish(&["check", "--data"]).ok();
        let mut now = site.list(&[]);
        assert_eq!(now.take(|path| path == "dangling").len(), usize::from(has_dangling));
        let mut expected = before.clone();
        if has_dangling {
            // One more directory in the root.
            expected.0.entry(".".into()).and_modify(|line| *line = line.replace(" 4 - ", " 5 - "));
        }
        if schema == "2.5.7" {
            now.assert_is(&expected);
        } else {
            let owner = is_oldest.then_some("3");
            without(&now, owner).assert_is(&without(&expected, owner));
        }
        let rows = older(&site, &["rows"]);
        let headings: Vec<Value> =
            rows.lines().filter(|line| line.starts_with('[')).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(headings.len(), 4);
        for heading in headings {
            assert_eq!((&heading[1], &heading[2]), (&"2.5".into(), &"7".into()), "{schema}");
            let columns = "md5path_1,md5path_2,parent_1,parent_2,hardlinks,hash,size,mode,mtime,mtimens,flags,name,\
                           symlink,uid,gid,xattr";
            assert_eq!(heading[3], columns, "{schema}");
            assert_eq!(heading[4].as_array().map(Vec::len), Some(7), "{schema}: {heading}");
        }
        assert!(rows.contains("\"flags\": 20"), "{schema}: the FIFO has no flag");

        // Once is enough, and there are no traces.
        let manifest = site.manifest();
        assert_eq!(rewritten(site.publish(&["--json", "migrate"])), (false, 4, 0, 0));
        assert!(site.manifest() == manifest);
        assert_eq!(fs::read_dir(site.spool().join("tmp")).map_or(0, Iterator::count), 0, "{schema}");
        assert_eq!(fs::read_dir(site.spool().join("changes")).map_or(0, Iterator::count), 0, "{schema}");
        assert!(!site.publish(&["ls", "--tag", "new", "/a"]).ok().is_empty());
        site.publish(&["mkdir", "/a/b/more"]).ok();
        site.publish(&["check"]).ok();
    }
}

#[test]
fn a_catalog_that_nothing_leads_to_is_named() {
    let site = site(false);
    older(&site, &["make", "1.0", "no-nested-hash"]);
    let manifest = site.manifest();
    let message = site.publish(&["migrate"]).fails(3);
    assert!(message.contains("has no hash") && message.contains("/a/b"), "{message}");
    site.publish(&["check"]).fails(3);
    site.publish(&["ls", "/a/b"]).fails(3);
    assert!(site.manifest() == manifest);
}

#[test]
fn owners_are_mapped_everywhere() {
    let site = site(true);
    let map = |name: &str, text: &str| {
        fs::write(site.path(name), text).expect("map");
        site.path(name).to_str().expect("UTF-8").to_owned()
    };
    let (users, groups) = (map("uid.map", "# some\n7 1007\n1007 9\n\n"), map("gid.map", "8 88\n* 4294967295\n"));
    let before = site.list(&[]);
    let mut expected = before.clone();
    let mut entries = 0;
    for line in expected.0.values_mut() {
        let mut fields: Vec<&str> = line.split(' ').collect();
        fields[7] = if fields[7] == "7" { "1007" } else { fields[7] };
        fields[8] = if fields[8] == "8" { "88" } else { "4294967295" };
        entries += 1;
        *line = fields.join(" ");
    }
    let arguments = ["--json", "catalog-chown", "-u", &users, "-g", &groups];
    let rehearsed = site.publish(&[&arguments[..], &["-n", "--list"]].concat()).json();
    assert_eq!(rehearsed["changes"].as_array().map(Vec::len), Some(entries));
    site.list(&[]).assert_is(&before);
    // Mountpoints have two rows.
    assert_eq!(rewritten(site.publish(&arguments)), (true, 4, 4, entries as u64 + 3));
    site.list(&[]).assert_is(&expected);
    site.list(&["--tag", "new"]).below("a").assert_is(&before.below("a"));
    site.check(&[]);
    site.publish(&["check", "--data"]).ok();
    // What is mapped is mapped: 1007 becomes 9, and only below /e; the root catalog follows.
    let users = ["--json", "catalog-chown", "-u", &users];
    let (changed, catalogs, written, _) = rewritten(site.publish(&users));
    assert_eq!((changed, catalogs, written), (true, 4, 2));
    assert_eq!(rewritten(site.publish(&users)), (false, 4, 0, 0));
    site.publish(&["check", "--data"]).ok();

    for bad in ["7", "7 x", "-1 2", "4294967296 1", "7 8 9", "", "# nothing\n"] {
        let bad = map("bad.map", bad);
        let message = site.publish(&["catalog-chown", "-u", &bad]).fails(1);
        assert!(message.contains("bad.map"), "{message}");
    }
    site.publish(&["catalog-chown"]).fails(2);
    assert!(site.publish(&["catalog-chown", "-g", "/nowhere"]).fails(1).contains("/nowhere"));
}

#[test]
fn hard_links_and_objects_of_whole_files_are_given_up() {
    let site = site(true);
    older(&site, &["make", "2.5.7", "bulk"]);
    site.publish(&["check", "--data"]).ok();
    let before = site.list(&[]);
    let mut expected = before.clone();
    for line in expected.0.values_mut().filter(|line| !line.starts_with("d ")) {
        let mut fields: Vec<&str> = line.split(' ').collect();
        fields[5] = "1";
        *line = fields.join(" ");
    }
    // Three names of one file, two of another.
    assert_eq!(rewritten(site.publish(&["--json", "eliminate-hardlinks"])), (true, 4, 2, 5));
    site.list(&[]).assert_is(&expected);
    site.publish(&["check", "--data"]).ok();
    assert_eq!(rewritten(site.publish(&["--json", "eliminate-hardlinks"])), (false, 4, 0, 0));

    assert_eq!(rewritten(site.publish(&["--json", "eliminate-bulk-hashes"])), (true, 4, 2, 1));
    site.list(&[]).assert_is(&expected);
    site.publish(&["check", "--data"]).ok();
    assert_eq!(rewritten(site.publish(&["--json", "eliminate-bulk-hashes"])), (false, 4, 0, 0));
    let objects = site.objects().len();
    site.publish(&["tag", "remove", "new"]).ok();
    site.publish(&["gc", "-r", "0", "--grace-period", "0"]).ok();
    assert!(site.objects().len() < objects);
    site.publish(&["check", "--data"]).ok();
    assert!(site.publish(&["cat", "/e/f/large"]).ok() == "chunks ".repeat(9000));
}

#[test]
fn what_others_do_meanwhile_is_respected() {
    let site = site(false);
    site.publish(&["transaction"]).ok();
    let manifest = site.manifest();
    let message = site.publish(&["eliminate-hardlinks"]).fails(4);
    assert!(message.contains("transaction") && message.contains("abort"), "{message}");
    site.publish(&["abort"]).ok();
    site.publish(&["checkout", "new", "--branch", "side"]).ok();
    assert!(site.publish(&["eliminate-hardlinks"]).fails(4).contains("checkout --trunk"));
    site.publish(&["checkout", "--trunk"]).ok();
    assert!(site.publish(&["eliminate-hardlinks", "--tag", "new"]).fails(4).contains("exists already"));
    assert!(site.manifest() == manifest);

    // A catalog that is gone.
    let catalogs = site.publish(&["list-catalogs", "-d", "-x"]).ok();
    let hash = catalogs.lines().find_map(|line| line.strip_suffix(" /a/b/c")).expect("a catalog");
    let object = site.storage().join("data").join(&hash[..2]).join(format!("{}C", &hash[2..]));
    fs::rename(&object, site.path("aside")).expect("rename");
    assert!(site.publish(&["eliminate-hardlinks"]).fails(3).contains("missing"));
    assert!(site.manifest() == manifest);
    fs::rename(site.path("aside"), &object).expect("rename");

    // Somebody publishes after all catalogs were looked at, before the lock is taken.
    let publisher = Publisher::open(&ServerRoot::new(&site.root()).unwrap(), &NAME.parse().unwrap()).unwrap();
    let what = Rewrite::Owners { users: IdMap::constant(77), groups: IdMap::default() };
    let meddler = Meddler { site: &site, done: AtomicBool::new(false) };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let options = commit::Options::new(UnixSeconds(now.as_secs().cast_signed()));
    let outcome = publisher.rewrite(&what, &options, &meddler, &Cancel::new()).unwrap();
    assert!(meddler.done.load(Ordering::Relaxed) && outcome.changed);
    let listing = site.list(&[]);
    assert!(listing.0.contains_key("a/b/c/meanwhile"), "lost");
    assert!(listing.0.values().all(|line| line.split(' ').nth(7) == Some("77")));
    site.check(&[]);
    site.publish(&["check", "--data"]).ok();
}

/// Makes a directory while a command looks at catalogs.
struct Meddler<'a> {
    site: &'a Site,
    done: AtomicBool,
}

impl std::fmt::Debug for Meddler<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddler")
    }
}

impl Progress for Meddler<'_> {
    fn phase(&self, _name: &'static str, _unit: Unit, _total: Option<u64>) {}

    fn advance(&self, _amount: u64) {
        if !self.done.swap(true, Ordering::Relaxed) {
            self.site.publish(&["mkdir", "/a/b/c/meanwhile"]).ok();
        }
    }
}
