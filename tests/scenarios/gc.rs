//! Collection of garbage: what goes is exactly what nothing needs, whoever publishes meanwhile and wherever it is killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cvmfs_core::lock::FileLock;
use cvmfs_core::progress::Cancel;

use crate::support::replica::{Replica, Source};
use crate::support::{Done, Site, make_tree, objects, pack, run, test_file};

/// What a collection of everything that can go is called with.
const ALL: [&str; 5] = ["gc", "--keep-revisions", "0", "--grace-period", "0"];

/// The objects that revisions need, as a script sees them that shares nothing with us.
fn reach(storage: &Path, roots: &[String]) -> BTreeSet<String> {
    let mut script = Command::new("python3");
    run(script.arg(test_file("support/reach.py")).arg(storage).args(roots)).ok().lines().map(str::to_owned).collect()
}

fn set(objects: Vec<String>) -> BTreeSet<String> {
    objects.into_iter().collect()
}

/// The root catalog of a revision.
fn root(site: &Site, revision: &str) -> String {
    let log = site.publish(&["log", "--json"]).json();
    let is_it = |entry: &&serde_json::Value| entry["revision"].as_u64() == revision.parse().ok();
    log.as_array().expect("revisions").iter().find(is_it).expect("revision")["root_hash"]
        .as_str()
        .expect("hash")
        .to_owned()
}

/// Certificate, history and meta info of the newest revision.
fn named(site: &Site) -> BTreeSet<String> {
    ['X', 'H', 'M'].iter().map(|&key| format!("{}{key}", site.manifest_field(key))).collect()
}

/// Six revisions: 1 is empty, 2 has a tag, 3 has a large tree that is gone in 4; 5 and 6 take more away.
fn site_with_past(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(&[&["--gc", "--no-autotags"], mkfs].concat());
    make_tree("rich", &site.path("rich"), &[]);
    make_tree("many", &site.path("many"), &["200"]);
    for tree in ["rich", "many"] {
        pack(&site.path(tree), &site.path(&format!("{tree}.tar")), &["."]);
    }
    site.ingest_tar("rich.tar", &["--base-dir", "rich", "--tag", "tagged"]);
    site.ingest_tar("many.tar", &["--base-dir", "many", "--catalog"]);
    for path in ["/many", "/rich/names", "/rich/nested"] {
        site.publish(&["rm", "-r", path]).ok();
    }
    site
}

/// Objects of a run that was killed: nothing knows them.
fn add_orphans(site: &Site) -> BTreeSet<String> {
    let orphans = ["0".repeat(40), format!("{}P", "a".repeat(40)), format!("{}-shake128C", "b".repeat(40))];
    for orphan in &orphans {
        fs::write(site.storage().join("data").join(&orphan[..2]).join(&orphan[2..]), "junk").expect("orphan");
    }
    orphans.into()
}

#[test]
fn what_is_too_young_to_go_stays_in_the_reflog() {
    let site = Site::with_repository(&["--gc"]);
    for path in ["/a", "/b", "/c"] {
        site.publish(&["mkdir", path]).ok();
    }
    let collected = site.publish(&["--json", "gc", "--keep-revisions", "0"]).json();
    assert!(collected["young"]["objects"].as_u64().expect("a number") > 0, "{collected}");
    // The script wants every history that is there in the reflog.
    site.check(&["--stale-y"]);
}

#[test]
fn exactly_what_nothing_needs_goes() {
    for (hash, compression) in [("sha1", "zlib"), ("shake128", "none")] {
        let site = site_with_past(&["--hash", hash, "--compression", compression]);
        let orphans = add_orphans(&site);
        let before = set(site.objects());
        let [head, previous, tagged, young] = ["6", "5", "2", "4"].map(|revision| root(&site, revision));
        let keeping = |roots: &[&String]| {
            let roots: Vec<String> = roots.iter().map(|&root| root.clone()).collect();
            let mut kept = reach(&site.storage(), &roots);
            kept.extend(named(&site));
            kept
        };
        // What would go is what does not stay. Tag databases since the oldest revision that stays do.
        let listed = |options: &[&str]| -> BTreeSet<String> {
            let text = site.publish(&[&["gc", "--dry-run", "--list"], options].concat()).ok();
            text.lines().filter(|line| !line.contains(' ')).map(str::to_owned).collect()
        };
        let without_histories = |objects: BTreeSet<String>| -> BTreeSet<String> {
            objects.into_iter().filter(|object| !object.ends_with('H')).collect()
        };
        let gone = |roots: &[&String]| without_histories(before.difference(&keeping(roots)).cloned().collect());
        let now = ["--grace-period", "0"];
        // trunk-previous is revision 5.
        for (keep, roots) in [
            ("0", vec![&head, &previous, &tagged]),
            ("1", vec![&head, &previous, &tagged]),
            ("2", vec![&head, &previous, &young, &tagged]),
        ] {
            assert_eq!(without_histories(listed(&[&["-r", keep], &now[..]].concat())), gone(&roots), "{keep}");
        }
        assert_eq!(without_histories(listed(&now)), orphans);
        assert_eq!(listed(&["--keep-since", "1 hour ago"]), BTreeSet::new());
        assert_eq!(set(site.objects()), before);

        // Nothing is old enough but root catalogs that were superseded.
        let log = site.path("removed.log");
        let young = site.publish(&["gc", "-r", "0", "--json"]).json();
        assert_eq!((young["condemned"]["objects"].as_u64(), young["revisions_condemned"].as_u64()), (Some(3), Some(3)));
        assert!(young["young"]["objects"].as_u64() > Some(100), "{young}");
        let rest = set(site.objects());
        assert_eq!(before.difference(&rest).filter(|object| object.ends_with('C')).count(), 3);

        let outcome = site.publish(&[&ALL[..], &["--json", "--log", log.to_str().expect("UTF-8")]].concat()).json();
        let after = set(site.objects());
        assert_eq!(without_histories(after.clone()), without_histories(keeping(&[&head, &previous, &tagged])));
        assert!(after.contains(&format!("{}H", site.manifest_field('H'))));
        assert_eq!(outcome["condemned"]["objects"].as_u64(), Some((rest.len() - after.len()) as u64));
        assert_eq!((outcome["dry_run"].as_bool(), outcome["revived"].as_u64()), (Some(false), Some(0)));
        let log = fs::read_to_string(log).expect("log");
        let logged: BTreeSet<String> = log.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let expected: BTreeSet<String> = rest.difference(&after).cloned().chain([String::new()]).collect();
        assert_eq!(logged, expected);
        assert!(log.starts_with("# Garbage Collection started at ") && log.ends_with("\n\n"), "{log}");

        site.check(&["--stale-y"]);
        assert_eq!(site.publish(&[&ALL[..], &["--json"]].concat()).json()["condemned"]["objects"], 0);
        let status = fs::read_to_string(site.storage().join(".cvmfs_status.json")).expect("status");
        assert!(status.contains("\"last_gc\": \""), "{status}");
        // Publishing goes on, also with what was collected.
        site.ingest_tar("many.tar", &["--base-dir", "many", "--catalog"]);
        site.publish(&["rollback", "tagged"]).ok();
        site.check(&[]);
    }
}

/// The path of an object.
fn file(site: &Site, object: &str) -> PathBuf {
    site.storage().join("data").join(&object[..2]).join(&object[2..])
}

#[test]
fn what_cannot_be_read_ends_it_before_anything_goes() {
    let site = site_with_past(&[]);
    add_orphans(&site);
    let tagged = root(&site, "2");
    let nested = reach(&site.storage(), std::slice::from_ref(&tagged));
    let is_nested = |object: &&String| object.ends_with('C') && !object.starts_with(&tagged);
    let nested = nested.iter().find(is_nested).expect("a nested catalog").clone();
    let before = set(site.objects());
    let refuses = |code: i32, reason: &str| {
        let error = site.publish(&ALL).fails(code);
        assert!(error.contains(reason), "{error}");
        assert_eq!(set(site.objects()), before);
    };
    for object in [format!("{}C", site.manifest_field('C')), format!("{tagged}C"), nested] {
        let path = file(&site, &object);
        let whole = fs::read(&path).expect("catalog");
        for damaged in [&b""[..], &whole[..whole.len() - 1], &[&whole[..], &whole[..]].concat()] {
            fs::write(&path, damaged).expect("damage");
            refuses(3, &object[2..]);
        }
        let aside = site.path("aside");
        fs::rename(&path, &aside).expect("move");
        let error = site.publish(&ALL).fails(3);
        assert!(error.contains("missing"), "{error}");
        fs::rename(&aside, &path).expect("move");
        fs::write(&path, whole).expect("mend");
        assert_eq!(set(site.objects()), before);
    }

    let reflog = site.storage().join(".cvmfsreflog");
    let whole = fs::read(&reflog).expect("reflog");
    fs::write(&reflog, &whole[..whole.len() - 1]).expect("damage");
    refuses(3, "reflog");
    fs::write(&reflog, whole).expect("mend");
    let marker = site.spool().join("in_transaction.lock");
    fs::write(&marker, "").expect("marker");
    refuses(4, "transaction of cvmfs_server");
    fs::remove_file(&marker).expect("marker");
    site.publish(&ALL).ok();
    site.check(&["--stale-y"]);

    let site = Site::with_repository(&[]);
    let error = site.publish(&ALL).fails(1);
    assert!(error.contains("does not allow"), "{error}");
    site.publish(&["gc", "-r", "1", "-t", "yesterday"]).fails(2);
    site.publish(&["gc", "-t", "some time"]).fails(1);
}

#[test]
fn what_is_being_worked_on_stays() {
    let site = site_with_past(&[]);
    let [empty, many] = ["1", "3"].map(|revision| root(&site, revision));
    // What the open transaction has copied from an old revision is nowhere else.
    site.publish(&["tag", "add", "many", &many]).ok();
    site.publish(&["transaction"]).ok();
    site.publish(&["cp", "--from-tag", "many", "/many", "/again"]).ok();
    site.publish(&["tag", "remove", "many"]).ok();
    site.publish(&["rm", "-r", "/rich"]).ok();
    site.publish(&ALL).ok();
    // So does the revision, which nothing else names any more.
    assert!(site.storage().join("data").join(&many[..2]).join(format!("{}C", &many[2..])).exists());
    site.publish(&["publish"]).ok();
    site.check(&["--stale-y"]);
    assert!(site.list(&[]).0.keys().any(|path| path.starts_with("again/")));

    // What is checked out by its hash has no tag.
    site.publish(&["rollback", "tagged"]).ok();
    let checked_out = root(&site, "7");
    site.publish(&["checkout", &checked_out, "--branch", "side"]).ok();
    site.publish(&["tag", "list"]).ok();
    site.publish(&ALL).ok();
    site.ingest(&["--delete", "again/01", "--tag", "side1"]).json();
    site.check(&["--stale-y", "--no-strict"]);

    // Revisions that went cannot be gone back to, and say so.
    site.publish(&["rollback", &empty]).fails(3);
    site.publish(&["tag", "add", "old", &many]).fails(3);
    site.check(&["--stale-y", "--no-strict"]);
}

/// Two publishers and a collector in a loop: every acknowledged path is there, whole, at every end.
#[test]
fn others_publish_meanwhile() {
    let site = Site::with_repository(&["--gc", "--no-autotags"]);
    for number in 0..3_u32 {
        let source = site.path(&format!("source-{number}"));
        make_tree("many", &source, &[&(20 + number * 10).to_string()]);
        pack(&source, &site.path(&format!("{number}.tar")), &["."]);
    }
    let is_over = AtomicBool::new(false);
    let (site, is_over) = (&site, &is_over);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..2)
            .map(|number| {
                scope.spawn(move || {
                    // Content that comes and goes: objects are condemned, and needed again by the next run.
                    for round in 0..3 {
                        let base = format!("p{number}");
                        site.ingest_tar(&format!("{}.tar", (number + round) % 3), &["--base-dir", &base, "--catalog"]);
                        if round < 2 {
                            site.publish(&["rm", "-r", &format!("/{base}")]).ok();
                        }
                    }
                })
            })
            .collect();
        let collector = scope.spawn(move || {
            let mut runs = 0;
            while !is_over.load(Ordering::Relaxed) {
                site.publish(&ALL).ok();
                runs += 1;
            }
            runs
        });
        for publisher in publishers {
            publisher.join().expect("publisher");
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(collector.join().expect("collector") > 0);
    });
    site.check(&["--stale-y"]);
    site.publish(&ALL).ok();
    site.check(&["--stale-y"]);
    let listing = site.list(&[]);
    for number in 0..2 {
        assert!(listing.below(&format!("p{number}")).0.len() >= 20, "{number}");
    }
}

/// The directories below `data` in which a killed collection left what it had moved aside.
fn aside(site: &Site) -> BTreeSet<String> {
    let list = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry").path()).collect()
    };
    let name = |path: &Path| path.file_name().expect("name").to_string_lossy().into_owned();
    let is_aside = |directory: &PathBuf| list(directory).iter().any(|file| name(file).starts_with("removed-"));
    list(&site.storage().join("data")).into_iter().filter(is_aside).map(|directory| name(&directory)).collect()
}

#[test]
fn a_killed_collection_leaves_everything_that_is_needed_and_is_repeated() {
    let site = site_with_past(&[]);
    add_orphans(&site);
    let copy = |from: PathBuf, to: PathBuf| {
        drop(fs::remove_dir_all(&to));
        run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
    };
    copy(site.root(), site.path("snapshot"));
    let start = Instant::now();
    site.publish(&ALL).ok();
    let duration = start.elapsed();
    let expected = set(site.objects());
    for moment in [0.5, 0.7, 0.85] {
        copy(site.path("snapshot"), site.root());
        let mut command = site.command("cvmfs-publish");
        let mut child = command.args(ALL).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("gc");
        thread::sleep(duration.mul_f64(moment));
        child.kill().expect("kill");
        child.wait().expect("gc");
        // Revisions that are gone, or half gone, are not among those that are checked. What it had just moved aside is no
        // object; the mark that it left has the next run look there.
        let after_a_kill = ["--stale-y", "--no-strict", "--allow", "reflog-incomplete"];
        let aside = aside(&site);
        let unexpected: &[_] = if aside.is_empty() { &[] } else { &["--allow", "data-unexpected"] };
        site.check(&[&after_a_kill, unexpected].concat());
        for directory in aside {
            let mark = format!("removing-{directory}-");
            let marks = fs::read_dir(site.storage().join("data/txn")).expect("marks");
            let names: Vec<_> = marks.map(|entry| entry.expect("mark").file_name()).collect();
            assert!(names.iter().any(|name| name.to_string_lossy().starts_with(&mark)), "{mark}: {names:?}");
        }
        site.publish(&ALL).ok();
        site.check(&after_a_kill);
        assert_eq!(set(site.objects()), expected, "killed at {moment}");
    }
}

#[test]
fn what_a_killed_collection_moved_aside_goes_with_the_next() {
    let site = Site::with_repository(&["--gc"]);
    let orphans = add_orphans(&site);
    for orphan in &orphans {
        let (directory, name) = orphan.split_at(2);
        let data = site.storage().join("data");
        fs::rename(data.join(directory).join(name), data.join(directory).join(format!("removed-{name}")))
            .expect("aside");
        fs::write(data.join(format!("txn/removing-{directory}-1")), "").expect("mark");
    }
    assert_eq!(aside(&site).len(), orphans.len());
    site.publish(&ALL).ok();
    assert!(aside(&site).is_empty() && set(site.objects()).is_disjoint(&orphans));
}

#[test]
fn a_replica_collects_when_its_source_has() {
    let site = site_with_past(&[]);
    let mut source = Source::start(&site);
    let replica = Replica::of(&site, &source, &[]);
    replica.snapshot_command(&["--history"]).output().expect("snapshot");
    let collect = |more: &[&str]| -> Done { replica.run(&[&["--json"], &ALL[..], more].concat()) };
    let objects_of = |site: &Site| set(objects(&site.storage()));
    assert!(objects_of(&replica.site).len() > 200);

    // Once, because the source does not say that it ever did.
    assert_eq!(collect(&["--dry-run"]).json()[0]["revisions_condemned"], 3);
    assert!(collect(&[]).json()[0]["condemned"]["objects"].as_u64() > Some(100));
    replica.check(&["--no-strict"]);
    site.publish(&ALL).ok();
    let only_histories = |site: &Site| -> BTreeSet<String> {
        objects_of(site).into_iter().filter(|object| !object.ends_with('H')).collect()
    };
    assert_eq!(only_histories(&replica.site), only_histories(&site));
    // The source has after that, or so it may be: its time is of the same second.
    let status = replica.site.storage().join(".cvmfs_status.json");
    let mut ours: serde_json::Value = serde_json::from_slice(&fs::read(&status).expect("status")).expect("JSON");
    let theirs = fs::read(site.storage().join(".cvmfs_status.json")).expect("status");
    let theirs: serde_json::Value = serde_json::from_slice(&theirs).expect("JSON");
    ours["last_gc"] = theirs["last_gc"].clone();
    fs::write(&status, ours.to_string()).expect("status");
    thread::sleep(Duration::from_millis(1100));
    assert!(collect(&[]).json()[0]["skipped"].is_null());

    // Both have: only the source's next time is a reason.
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(collect(&[]).json()[0]["skipped"], "source_unchanged");
    assert!(collect(&["--always"]).json()[0]["skipped"].is_null());
    // Each that ran has its row in the statistics; neither the dry run nor the one that was needless has.
    let rows = replica.run(&["print-stats", "-t", "gc", "--json"]).json();
    let numbers: Vec<_> =
        rows.as_array().expect("rows").iter().map(|row| row["n_condemned_objects"].as_u64()).collect();
    assert_eq!((numbers.len(), numbers[0] > Some(100), &numbers[1..]), (3, true, &[Some(0), Some(0)][..]));

    // What went is brought again when the source has it again, although an earlier run had proven that it was there.
    source.requests();
    site.ingest_tar("many.tar", &["--base-dir", "many", "--catalog"]);
    replica.snapshot();
    site.publish(&["rm", "-r", "/many"]).ok();
    let many = root(&site, "7");
    site.publish(&["tag", "add", "many", &many]).ok();
    site.publish(&["mkdir", "/one"]).ok();
    site.publish(&["mkdir", "/two"]).ok();
    replica.snapshot();
    site.publish(&["tag", "remove", "many"]).ok();
    replica.snapshot();
    collect(&["--always"]).json();
    site.publish(&["rollback", &many]).ok();
    replica.snapshot();
    replica.check(&["--no-strict"]);
    assert!(replica.site.list(&[]).0.contains_key("many"));
}

#[test]
fn a_check_and_a_collection_do_not_meet() {
    let site = site_with_past(&[]);
    let (lock, cancel) = (site.spool().join("is_collecting.lock"), Cancel::new());
    // Checks run together, and no collection beside them.
    let shared = FileLock::share(&lock, Duration::ZERO, &cancel).expect("a lock").expect("free");
    site.publish(&ALL).fails(4);
    site.publish(&["check"]).ok();
    drop(shared);
    // A check waits for a collection.
    let alone = FileLock::acquire(&lock, Duration::ZERO, &cancel).expect("a lock").expect("free");
    let mut command = site.command("cvmfs-publish");
    let mut check = command.arg("check").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cvmfs-publish");
    thread::sleep(Duration::from_millis(300));
    assert!(check.try_wait().expect("a child").is_none());
    drop(alone);
    assert!(check.wait().expect("a child").success());
    assert!(!lock.exists());
    site.publish(&ALL).ok();
}
