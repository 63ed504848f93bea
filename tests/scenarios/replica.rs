//! Replicas: what a snapshot brings, what it asks for, and what it does when things go wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::fixture::{FQRN, NOW, unpacked};
use crate::support::replica::{Replica, Source, object_path};
use crate::support::{NAME, Site, make_tree, pack, run};

/// Two named revisions of a tree with nested catalogs and a file in chunks.
fn small_site(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(mkfs);
    let tree = site.path("source");
    for directory in ["a", "a/nested/below"] {
        fs::create_dir_all(tree.join(directory)).expect("mkdir");
        fs::write(tree.join(directory).join("file"), directory).expect("write");
    }
    fs::write(tree.join("a/nested/.cvmfscatalog"), "").expect("write");
    let noise: Vec<u8> = (0..10_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(tree.join("a/nested/large"), noise).expect("write");
    pack(&tree, &site.path("tree.tar"), &["."]);
    site.ingest_tar("tree.tar", &["--tag", "whole"]);
    site.ingest(&["--delete", "a/file", "--tag", "less"]).json();
    site
}

/// Adds one file, in a directory that is a nested catalog the first time.
fn add_file(site: &Site, name: &str) {
    let directory = site.path("more");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("mkdir");
    fs::write(directory.join(name), format!("content of {name}")).expect("write");
    pack(&directory, &site.path("more.tar"), &["."]);
    site.ingest_tar("more.tar", &["--base-dir", "more", "--catalog"]);
}

/// Paths of objects as they are asked for.
fn paths<'a>(objects: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    objects.into_iter().map(|object| object_path(object).to_str().expect("UTF-8").to_owned()).collect()
}

const DOCUMENTS: [&str; 3] = [".cvmfspublished", ".cvmfswhitelist", "HEAD .cvmfs_master_replica"];

#[test]
fn a_snapshot_brings_everything_once() {
    for options in [&[][..], &["--hash", "shake128", "--compression", "none"], &["--hash", "rmd160", "--volatile"]] {
        let original = small_site(options);
        // One of them with all kinds of entries.
        if options.is_empty() {
            make_tree("rich", &original.path("rich"), &[]);
            pack(&original.path("rich"), &original.path("rich.tar"), &["."]);
            original.ingest_tar("rich.tar", &["--base-dir", "rich", "--tag", "rich"]);
        }
        let mut source = Source::start(&original);
        let replica = Replica::of(&original, &source, &[]);
        source.requests();
        let outcome = replica.snapshot();
        let revision: u64 = original.manifest_field('S').parse().expect("a number");
        assert_eq!((outcome["ending"].as_str(), outcome["revision"].as_u64()), (Some("updated"), Some(revision)));
        let mut expected: Vec<String> = DOCUMENTS.map(str::to_owned).into();
        expected.extend(paths(&replica.site.objects()));
        expected.sort();
        assert_eq!(source.requests(), expected);
        // The first revision, which is empty, has no name any more.
        let left_out = original.objects().into_iter().filter(|object| !replica.site.objects().contains(object));
        assert_eq!(left_out.filter(|object| !object.ends_with('H')).count(), 1);
        replica.check(&[]);
        for tag in ["whole", "less", "trunk"] {
            replica.site.list(&["--tag", tag]).assert_is(&original.list(&["--tag", tag]));
        }
    }
}

#[test]
fn only_what_is_new_is_asked_for() {
    let original = small_site(&[]);
    let mut source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    replica.snapshot();
    source.requests();

    let unchanged = replica.snapshot();
    assert_eq!(unchanged["ending"].as_str(), Some("unchanged"));
    assert_eq!(source.requests(), [".cvmfspublished", ".cvmfswhitelist"]);

    for name in ["one", "two"] {
        let before: BTreeSet<String> = original.objects().into_iter().collect();
        add_file(&original, name);
        if name == "two" {
            // Two revisions at once: the one between is fetched as well.
            add_file(&original, "three");
        }
        let history = format!("{}H", original.manifest_field('H'));
        let new = original.objects().into_iter().filter(|object| !before.contains(object));
        let new: Vec<String> = new.filter(|object| !object.ends_with('H') || *object == history).collect();
        let mut expected: Vec<String> = DOCUMENTS.map(str::to_owned).into();
        expected.extend(paths(&new));
        expected.sort();
        let outcome = replica.snapshot();
        assert_eq!(source.requests(), expected);
        assert_eq!(outcome["counts"]["objects"].as_u64(), Some(new.len() as u64), "{outcome}");
        replica.check(&[]);
        replica.site.list(&[]).assert_is(&original.list(&[]));
    }

    // A new name for the newest revision is a change of the tag database alone.
    original.publish(&["tag", "add", "named"]).ok();
    replica.snapshot();
    let history = format!("{}H", original.manifest_field('H'));
    let mut expected: Vec<String> = DOCUMENTS.map(str::to_owned).into();
    expected.extend(paths([&history]));
    expected.sort();
    assert_eq!(source.requests(), expected);
    replica.check(&[]);
}

#[test]
fn the_repository_of_the_reference_is_replicated() {
    let original = unpacked();
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    run(&mut replica.snapshot_command(&["--history"])).json();
    replica.check(&["--now", &NOW.to_string(), "--allow", "symlink-size"]);
    for tag in ["v1", "v2", "v3", "v4"] {
        let arguments = ["--tag", tag, "--now", &NOW.to_string()];
        replica.site.list(&arguments).assert_is(&original.list(&arguments));
    }
    assert_eq!(replica.site.name, FQRN);
    // All that is there came along, but for tag databases of the past.
    replica.assert_equals(&original);
}

#[test]
fn what_the_source_lacks_keeps_the_old_revision_and_nothing_else() {
    let original = small_site(&[]);
    let mut source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    replica.snapshot();
    let (old, before) = (replica.site.manifest(), original.objects());
    add_file(&original, "one");
    add_file(&original, "two");
    let new: Vec<String> = original.objects().into_iter().filter(|object| !before.contains(object)).collect();
    let object = new.iter().find(|object| object.len() == 40).expect("a file");
    let (stored, away) = (original.storage().join(object_path(object)), original.path("away"));
    fs::rename(&stored, &away).expect("rename");
    source.requests();

    for _ in 0..2 {
        let done = run(&mut replica.snapshot_command(&[]));
        let printed: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert_eq!(printed[0]["ending"].as_str(), Some("incomplete"));
        assert_eq!(printed[0]["failures"]["count"].as_u64(), Some(1), "{printed}");
        let complaint = done.fails(1);
        assert!(complaint.contains(&format!("{}/{}", source.url, object_path(object).display())), "{complaint}");
        assert_eq!(replica.site.manifest(), old);
        replica.check(&[]);
    }
    let asked = source.requests();
    // The catalogs that have it are not stored; those are fetched once all the same.
    assert!(asked.iter().filter(|path| path.ends_with('C')).count() < 5, "{asked:?}");

    fs::rename(&away, &stored).expect("rename");
    replica.snapshot();
    let mut expected: Vec<String> = DOCUMENTS.map(str::to_owned).into();
    expected.extend(paths([object]));
    expected.sort();
    assert_eq!(source.requests(), expected);
    replica.check(&[]);
    replica.site.list(&[]).assert_is(&original.list(&[]));
}

#[test]
fn revisions_that_the_source_collected_are_left_out() {
    for collectable in [true, false] {
        let original = small_site(if collectable { &["--gc"] } else { &[] });
        // One time the revision has a name, one time it is only in the line of revisions.
        original.configure("CVMFS_AUTO_TAG", if collectable { "true" } else { "false" });
        let source = Source::start(&original);
        let replica = Replica::of(&original, &source, &[]);
        replica.snapshot();
        add_file(&original, "one");
        let between = original.manifest_field('C');
        add_file(&original, "two");
        add_file(&original, "three");
        fs::remove_file(original.storage().join(object_path(&format!("{between}C")))).expect("remove");
        let done = run(&mut replica.snapshot_command(&[]));
        if collectable {
            done.json();
        } else {
            assert!(done.fails(1).contains(&format!("{between}C")[2..]));
            run(&mut replica.snapshot_command(&["--no-history"])).json();
        }
        replica.site.list(&[]).assert_is(&original.list(&[]));
    }
}

#[test]
fn an_older_revision_is_refused() {
    let original = small_site(&[]);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    let older = original.manifest();
    add_file(&original, "one");
    replica.snapshot();
    let newer = original.manifest();
    fs::write(original.storage().join(".cvmfspublished"), &older).expect("write");
    let complaint = run(&mut replica.snapshot_command(&[])).fails(1);
    assert!(complaint.contains("revision 3 is older than 4"), "{complaint}");
    assert_eq!(replica.site.manifest(), newer);
    run(&mut replica.snapshot_command(&["--accept-older"])).json();
    assert_eq!(replica.site.manifest(), older);
    replica.check(&[]);
}

#[test]
fn damaged_objects_are_fetched_again_when_they_are_looked_at() {
    let original = small_site(&[]);
    let mut source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    replica.snapshot();
    let objects = replica.site.objects();
    let root = format!("{}C", original.manifest_field('C'));
    let nested = objects.iter().find(|object| object.ends_with('C') && **object != root).expect("a catalog");
    let file = objects.iter().find(|object| object.len() == 40).expect("a file");
    let chunk = objects.iter().find(|object| object.ends_with('P')).expect("a chunk");
    for object in [file, chunk] {
        fs::write(replica.site.storage().join(object_path(object)), "").expect("write");
    }
    // As long as before, and wrong.
    for object in [nested, &root] {
        let path = replica.site.storage().join(object_path(object));
        let mut bytes = fs::read(&path).expect("read");
        bytes[20] ^= 1;
        fs::write(&path, bytes).expect("write");
    }
    fs::remove_file(replica.site.spool().join("proven.db")).expect("remove");
    source.requests();
    replica.snapshot();
    let mut expected: Vec<String> = DOCUMENTS.map(str::to_owned).into();
    expected.extend(paths([file, chunk, nested, &root]));
    expected.sort();
    assert_eq!(source.requests(), expected);
    replica.check(&[]);
}

/// A system that went down takes with it what was not flushed: the next start has another boot id.
#[test]
fn after_a_crash_of_the_machine_young_objects_are_verified() {
    let original = small_site(&[]);
    let mut source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    fs::write(replica.site.spool().join("unfinished"), "another boot").expect("write");
    replica.snapshot();
    assert!(!replica.site.spool().join("unfinished").exists());
    add_file(&original, "one");
    let objects = replica.site.objects();
    let file = objects.iter().find(|object| object.len() == 40).expect("a file");
    let path = replica.site.storage().join(object_path(file));
    let whole = fs::read(&path).expect("read");
    fs::write(&path, vec![b'x'; whole.len()]).expect("write");
    let note = replica.site.spool().join("unfinished");
    fs::write(&note, "another boot").expect("write");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(1000);
    fs::File::open(&note).and_then(|file| file.set_modified(long_ago)).expect("time");
    fs::remove_file(replica.site.spool().join("proven.db")).expect("remove");
    source.requests();
    replica.snapshot();
    assert!(source.requests().contains(&paths([file])[0]));
    assert!(fs::read(&path).expect("read") == whole);
    replica.check(&[]);
}

#[test]
fn a_snapshot_that_is_killed_at_any_moment_goes_on() {
    let original = Site::with_repository(&[]);
    make_tree("many", &original.path("source"), &["300"]);
    pack(&original.path("source"), &original.path("many.tar"), &["."]);
    original.ingest_tar("many.tar", &["--base-dir", "first"]);
    let mut source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    let started = Instant::now();
    replica.snapshot();
    let seconds = started.elapsed();
    let mut asked = source.requests().len();
    for round in 0..2 {
        original.ingest_tar("many.tar", &["--base-dir", &format!("more {round}"), "--catalog"]);
        add_file(&original, &format!("file {round}"));
        for kill in 0..4_u32 {
            let old = replica.site.manifest();
            let mut command = replica.snapshot_command(&[]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("snapshot");
            thread::sleep(seconds.mul_f64(f64::from(kill + 1) / 6.0));
            let _ = child.kill();
            child.wait().expect("the end");
            assert!([old, original.manifest()].contains(&replica.site.manifest()));
            replica.check(&["--no-data"]);
        }
        replica.snapshot();
        replica.check(&[]);
        replica.site.list(&[]).assert_is(&original.list(&[]));
    }
    asked += source.requests().iter().filter(|path| path.starts_with("data/")).count();
    // What a killed run stored is not fetched again.
    let objects = replica.site.objects().len();
    assert!(asked < objects + 200, "{asked} requests for {objects} objects");
}

#[test]
fn replicas_come_and_go() {
    let original = small_site(&[]);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &["--group", "nightly"]);
    assert!(replica.add(&original, &source, &[]).fails(4).contains("--name"));
    let alias = "mirror.example.org";
    replica.add(&original, &source, &["--name", alias]).ok();
    replica.run(&["add-replica", "--stratum0", &source.url, "--pass-through", "--name", "pass.example.org"]).ok();
    let complaint = replica.add(&original, &source, &["--name", "s3.example.org", "--upstream", "s3"]).fails(1);
    assert!(complaint.contains("--s3 FILE"), "{complaint}");

    let done = run(&mut replica.snapshot_command(&["--group", "nightly"])).json();
    assert_eq!(done.as_array().map(Vec::len), Some(1), "{done}");
    let done = replica.run(&["--json", "snapshot"]).json();
    let ending =
        |alias: &str| done.as_array().and_then(|all| all.iter().find(|one| one["alias"] == alias)?["ending"].as_str());
    assert_eq!(ending(NAME), Some("unchanged"));
    assert_eq!(ending(alias), Some("updated"));
    assert_eq!(ending("pass.example.org"), Some("pass_through"));

    let list = replica.run(&["list"]).ok();
    assert!(list.contains("mirror.example.org (revision 3) from "), "{list}");
    let status = replica.run(&["--json", "status", alias]).json();
    assert_eq!((status[0]["name"].as_str(), status[0]["revision"].as_u64()), (Some(NAME), Some(3)));
    assert_eq!(status[0]["history"][0]["ending"].as_str(), Some("updated"));

    // The storage stays, is taken over again, and needs nothing but the documents.
    replica.run(&["remove", "--keep-storage", alias]).ok();
    let mut source = Source::start(&original);
    let key = replica.site.key_file("pub");
    let key = key.to_str().expect("UTF-8");
    replica.run(&["import", alias, "--stratum0", &source.url, "--public-key", key]).ok();
    source.requests();
    replica.run(&["snapshot", alias]).ok();
    let mut documents = DOCUMENTS;
    documents.sort_unstable();
    assert_eq!(source.requests(), documents);
    replica.run(&["remove", alias]).ok();
    assert!(!replica.site.root().join("srv/cvmfs").join(alias).exists());
    replica.run(&["status", alias]).fails(1);
}

#[test]
fn the_whitelist_is_that_of_the_source_though_there_is_no_new_revision() {
    let original = small_site(&[]);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    replica.snapshot();
    fs::remove_file(replica.site.storage().join(".cvmfswhitelist")).expect("removed");
    assert_eq!(replica.snapshot()["ending"].as_str(), Some("unchanged"));
    let [ours, theirs] = [&replica.site, &original].map(|site| site.storage().join(".cvmfswhitelist"));
    let read = |file: &Path| fs::read(file).expect("whitelist");
    let before = read(&ours);
    assert!(before == read(&theirs));
    original.publish(&["resign", "--days", "3"]).ok();
    assert_eq!(replica.snapshot()["ending"].as_str(), Some("unchanged"));
    assert!(read(&ours) != before && read(&ours) == read(&theirs));
}

#[test]
fn a_faulty_configuration_concerns_one_replica_only() {
    let original = small_site(&[]);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &["--group", "nightly"]);
    let complaint = replica.run(&["snapshot", "--group", "nope"]).fails(1);
    assert!(complaint.contains("group \"nope\""), "{complaint}");
    replica.add(&original, &source, &["--name", "broken.example.org"]).ok();
    let file = replica.site.root().join("etc/cvmfs/repositories.d/broken.example.org/replica.conf");
    fs::write(&file, "CVMFS_HTTP_TIMEOUT=soon\n").expect("replica.conf");
    for arguments in [&["snapshot"][..], &["gc"], &["status"]] {
        let done = replica.run(arguments);
        assert!(done.stdout.contains("broken.example.org") && done.stdout.contains(NAME), "{}", done.stdout);
        let complaint = done.fails(1);
        assert!(complaint.contains("broken.example.org"), "{complaint}");
    }
    assert!(replica.site.manifest() == original.manifest());
}

#[test]
fn another_source_and_another_key_are_tried() {
    let original = small_site(&[]);
    let other = small_site(&[]);
    let (source, stranger) = (Source::start(&original), Source::start(&other));
    let dead = source.url.replace("127.0.0.1", "127.0.0.2");

    // Keys in a directory, of which one is right; a dead source and one of a stranger before the good one.
    let replica = Replica { site: Site::empty(NAME) };
    let keys = replica.site.path("keys");
    fs::create_dir_all(&keys).expect("mkdir");
    fs::copy(other.key_file("masterkey"), keys.join("not-public")).expect("copy");
    let third = Site::with_repository(&[]);
    for (name, site) in [("a.pub", &third), ("b.pub", &original)] {
        fs::copy(site.key_file("pub"), keys.join(name)).expect("copy");
    }
    let mut arguments = vec!["add-replica", "--public-key", keys.to_str().expect("UTF-8")];
    for url in [&dead, &stranger.url, &source.url] {
        arguments.extend(["--stratum0", url]);
    }
    replica.run(&arguments).ok();
    replica.configure("CVMFS_HTTP_RETRIES", "0");
    replica.snapshot();
    assert_eq!(replica.site.manifest(), original.manifest());
    fs::create_dir_all(replica.site.key_file("pub").parent().expect("parent")).expect("mkdir");
    fs::copy(original.key_file("pub"), replica.site.key_file("pub")).expect("copy");
    replica.check(&[]);

    // Only the wrong key: not trusted.
    let wrong = Replica { site: Site::empty(NAME) };
    let complaint = wrong.add(&other, &source, &[]).fails(5);
    assert!(complaint.contains(&source.url), "{complaint}");
}

#[test]
fn two_snapshots_at_once_do_not_meet() {
    let original = small_site(&[]);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    let lock = replica.site.spool().join("is_updating.lock");
    let hold = |seconds: &str| {
        let holder = Command::new("flock").arg(&lock).args(["sleep", seconds]).spawn().expect("flock");
        while run(Command::new("flock").arg("-n").arg(&lock).arg("true")).status.success() {}
        holder
    };
    // Nobody waits for a first snapshot.
    let mut holder = hold("1");
    assert!(run(&mut replica.snapshot_command(&[])).fails(4).contains(NAME));
    holder.wait().expect("the end");
    replica.snapshot();

    let mut holder = hold("1");
    assert!(run(&mut replica.snapshot_command(&["--no-wait"])).fails(4).contains(NAME));
    assert_eq!(replica.snapshot()["ending"].as_str(), Some("unchanged"));
    holder.wait().expect("the end");
}

/// A repository without automatic tags, at a time of our choice.
fn dated_site() -> Site {
    let mut site = Site::empty(NAME);
    set_date(&mut site, 0);
    site.mkfs(&["--gc", "--whitelist-days", "3650"]);
    site.configure("CVMFS_AUTO_TAG", "false");
    site
}

fn set_date(site: &mut Site, days: i64) {
    site.environment = vec![("SOURCE_DATE_EPOCH", (NOW + days * 86_400).to_string())];
}

#[test]
fn old_revisions_are_left_out() {
    // Days of the source's revisions after the first snapshot, what the replica is told, and which of them it has then.
    for (more, expected) in [
        (&[][..], [false, true, true, true]),
        (&["--days", "1"], [false, false, true, true]),
        (&["--tags", "no*such"], [false, true, true, true]),
    ] {
        let mut original = dated_site();
        let source = Source::start(&original);
        let mut replica = Replica::of(&original, &source, more);
        replica.snapshot();
        let mut roots = Vec::new();
        for (number, day) in [10, 18, 19, 20].into_iter().enumerate() {
            set_date(&mut original, day);
            add_file(&original, &format!("file {number}"));
            roots.push(format!("{}C", original.manifest_field('C')));
        }
        set_date(&mut replica.site, 20);
        replica.snapshot();
        let objects = replica.site.objects();
        assert_eq!(roots.iter().map(|root| objects.contains(root)).collect::<Vec<_>>(), expected, "{more:?}");
        replica.site.list(&["--now", &(NOW + 20 * 86_400).to_string()]).0.get("more").expect("the directory");
    }
}

#[test]
fn tags_are_chosen_by_name_and_age() {
    for (more, expected) in [
        (&[][..], [true, true, true, true]),
        (&["--tags", "v2*"], [false, true, false, true]),
        (&["--tags", "v*", "--tags", "x", "--days", "5"], [false, false, true, true]),
    ] {
        let mut original = dated_site();
        let mut roots = Vec::new();
        for (day, tag) in [(1, "v1"), (2, "v2.0"), (9, "x"), (10, "v3")] {
            set_date(&mut original, day);
            add_file(&original, tag);
            original.publish(&["tag", "add", tag]).ok();
            roots.push(format!("{}C", original.manifest_field('C')));
        }
        let source = Source::start(&original);
        let mut replica = Replica::of(&original, &source, more);
        set_date(&mut replica.site, 10);
        replica.snapshot();
        let objects = replica.site.objects();
        assert_eq!(roots.iter().map(|root| objects.contains(root)).collect::<Vec<_>>(), expected, "{more:?}");
    }
}

#[test]
fn a_part_of_the_tree_is_replicated() {
    let original = Site::with_repository(&[]);
    let tree = original.path("tree");
    for directory in ["p", "p/q", "p/r", "x"] {
        fs::create_dir_all(tree.join(directory)).expect("mkdir");
        fs::write(tree.join(directory).join(".cvmfscatalog"), "").expect("write");
        fs::write(tree.join(directory).join("file"), directory).expect("write");
    }
    fs::write(tree.join("file"), "top").expect("write");
    pack(&tree, &original.path("tree.tar"), &["."]);
    original.ingest_tar("tree.tar", &["--tag", "all"]);
    let source = Source::start(&original);
    let specification = original.path("paths");
    fs::write(&specification, "/p/q\n").expect("write");
    let replica = Replica::of(&original, &source, &["--paths", specification.to_str().expect("UTF-8")]);
    let kinds = |replica: &Replica| {
        let objects = replica.site.objects();
        let catalogs = objects.iter().filter(|object| object.ends_with('C')).count();
        (catalogs, objects.iter().filter(|object| object.len() == 40).count())
    };
    replica.snapshot();
    // The catalogs of the root, p and p/q, with a file each, the empty marker, and the root of the revision before.
    assert_eq!(kinds(&replica), (4, 4));
    fs::write(&specification, "/p/q\n/x\n").expect("write");
    replica.snapshot();
    assert_eq!(kinds(&replica), (5, 5));
    fs::write(&specification, "/\n").expect("write");
    replica.snapshot();
    assert_eq!(kinds(&replica), (6, 6));
    replica.check(&[]);
}
