//! A bucket that fails at the n-th request, for every n of a publication and of a snapshot.
//!
//! Ways to fail take turns, for a publication in two rounds, for a snapshot at every third request; with
//! `CVMFS_S3_ALL_FAULTS` in the environment every request fails in all ways, as in `./dev soak`.
//!
//! What the bucket has is looked at in the directory of the server, which has the layout of a local storage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::entry::EntryKind;
use cvmfs_core::error::Result;
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::server::{ServerRoot, load_master_keys};
use cvmfs_core::storage::{LocalStore, S3Config, S3Store, StoragePlace};
use cvmfs_publish::publish::{From, Options, publish};
use cvmfs_replica::snapshot::{Ending, SnapshotOptions, snapshot};

use super::server::{Fault, Server};
use super::site;
use crate::support::replica::{Replica, Source};
use crate::support::{NAME, Site};

/// Requests to look at, more than there are.
const MANY: u64 = 200;

fn all_faults() -> bool {
    std::env::var_os("CVMFS_S3_ALL_FAULTS").is_some()
}

/// The ways in which requests fail in a round: that of request `number` is `round[number % round.len()]`.
fn rounds(count: usize) -> Vec<Vec<Fault>> {
    if all_faults() {
        return Fault::ALL.map(|fault| vec![fault]).to_vec();
    }
    let mut faults = Fault::ALL;
    let round = |_| {
        faults.rotate_left(3);
        faults.to_vec()
    };
    (0..count).map(round).collect()
}

fn fault_at(round: &[Fault], number: u64) -> Fault {
    round[usize::try_from(number).expect("a small number") % round.len()]
}

fn now() -> UnixSeconds {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixSeconds(elapsed.expect("a time after 1970").as_secs().cast_signed())
}

/// All files of the newest revision, each object verified on the way.
fn files(site: &Site, storage: &Path, root: &Path) -> Result<BTreeMap<String, String>> {
    let root = ServerRoot::new(root)?;
    let name = NAME.parse()?;
    let store = Arc::new(LocalStore::open(storage)?);
    let keys = load_master_keys(&root, &name)?;
    let repository = Repository::open(store, &name, &keys, now(), &site.path(""))?;
    let mut tree = repository.tree(&Selector::Head)?;
    let base: RepoPath = "d".parse()?;
    let mut files = BTreeMap::new();
    for row in tree.list(&base)?.into_iter().filter(|row| !row.name.starts_with(b".cvmfs")) {
        let name = String::from_utf8_lossy(&row.name).into_owned();
        if let EntryKind::File(file) = &row.entry.kind {
            let path = format!("d/{name}").parse()?;
            let mut content = String::new();
            std::io::Read::read_to_string(&mut tree.open_file(&path, file)?, &mut content).expect("an object");
            files.insert(name, content);
        }
    }
    Ok(files)
}

/// A publisher that repeats no request.
fn publisher(site: &Site, timeout: Duration) -> Result<Publisher> {
    let root = ServerRoot::new(&site.root())?;
    let mut publisher = Publisher::open(&root, &NAME.parse()?)?;
    let StoragePlace::S3 { config, alias, temporary } = &publisher.config.storage else { panic!("no bucket") };
    let config =
        S3Config { retries: 0, timeout, backoff_initial: Duration::ZERO, ..S3Config::load(config, alias, temporary)? };
    publisher.store = Arc::new(S3Store::open(config)?);
    Ok(publisher)
}

/// Publishes a directory; no request is repeated.
fn publish_directory(site: &Site, directory: &Path, timeout: Duration) -> Result<()> {
    publish_with(&publisher(site, timeout)?, directory)
}

fn publish_with(publisher: &Publisher, directory: &Path) -> Result<()> {
    let options = Options::new(publisher, From::directory(directory), "d".parse()?, now());
    publish(publisher, &options, &Silent, &Cancel::new()).map(drop)
}

fn write(directory: &Path, content: &str) -> BTreeMap<String, String> {
    fs::create_dir_all(directory).expect("directory");
    let files: BTreeMap<String, String> =
        (0..3).map(|number| (format!("file{number}"), format!("{content} {number}\n").repeat(50))).collect();
    for (name, content) in &files {
        fs::write(directory.join(name), content).expect("file");
    }
    files
}

/// The old revision is complete or the new one, and the same command succeeds then.
#[test]
fn every_request_of_a_publication_may_fail_in_every_way() {
    let server = Server::start();
    let site = site(&server, "");
    let directory = site.path("d");
    let mut old = write(&directory, "first");
    let patience = Duration::from_secs(20);
    publish_directory(&site, &directory, patience).expect("published");
    for round in rounds(2) {
        let mut number = 0;
        let mut failures = Vec::new();
        loop {
            let fault = fault_at(&round, number);
            let impatience = if fault == Fault::Hang { Duration::from_millis(300) } else { patience };
            let new = write(&directory, &format!("{fault:?} {number}"));
            let before = server.requests();
            server.spoil(number, 1, fault);
            let outcome = publish_directory(&site, &directory, impatience);
            let used = server.requests() - before;
            server.heal();
            let found = files(&site, &site.storage(), &site.root()).expect("a complete revision");
            match &outcome {
                Ok(()) => assert!(found == new, "{fault:?} at request {number}"),
                Err(_) => {
                    // An answer that is lost may be that to the very last request.
                    assert!(found == old || found == new, "{fault:?} at request {number}");
                    failures.push(fault);
                }
            }
            old = found;
            if outcome.is_ok() && used <= number {
                break;
            }
            // Now and then the next run has nothing in its way.
            if number % 4 == 0 {
                publish_directory(&site, &directory, patience).expect("published");
                old = files(&site, &site.storage(), &site.root()).expect("a complete revision");
                assert!(old == new, "{fault:?} at request {number}");
            }
            number += 1;
            assert!(number < MANY, "no end");
        }
        // Whoever asks for patience gets it.
        assert!(!failures.contains(&Fault::Throttled));
        // Bodies of answers are few, and most are asked for again.
        let can_pass = [Fault::Throttled, Fault::Half];
        assert!(failures.len() > 4 || round.iter().all(|fault| can_pass.contains(fault)), "{failures:?} of {number}");
        assert!(number > 10, "only {number} requests");
        site.check(&["--stale-y"]);
    }
}

/// Whoever keeps a publisher goes on after an upload was given up; the operation that it belonged to does not.
#[test]
fn a_publisher_outlives_uploads_that_were_given_up() {
    let server = Server::start();
    let site = site(&server, "");
    let directory = site.path("d");
    let publisher = publisher(&site, Duration::from_secs(20)).expect("publisher");
    let mut failures = 0;
    for number in 0..MANY {
        let new = write(&directory, &format!("number {number}"));
        let before = server.requests();
        server.spoil(number, 1, Fault::Denied);
        let outcome = publish_with(&publisher, &directory);
        let used = server.requests() - before;
        server.heal();
        if outcome.is_err() {
            failures += 1;
            publish_with(&publisher, &directory).expect("published");
        }
        assert!(files(&site, &site.storage(), &site.root()).expect("a complete revision") == new);
        if outcome.is_ok() && used <= number {
            break;
        }
    }
    assert!(failures > 4, "only {failures} failures");

    let store = publisher.store.for_operation().expect("one that tells later");
    let object = b"an object";
    server.spoil(0, MANY, Fault::Denied);
    let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, object);
    store.put(&id, object).expect("on its way");
    for _ in 0..2 {
        assert!(store.flush().is_err());
        server.heal();
    }
    assert!(store.put(&id, object).is_err());
    publisher.store.for_operation().expect("another one").flush().expect("flushed");
}

/// The same of a snapshot: the replica has its old revision or the new one, and the next snapshot ends well.
#[test]
fn every_request_of_a_snapshot_may_fail_in_every_way() {
    let original = Site::with_repository(&[]);
    let directory = original.path("d");
    let publish = |content: &str| {
        let written = write(&directory, content);
        let from = directory.to_str().expect("UTF-8");
        original.publish(&["publish", "--from", from, "--base-dir", "d", "--catalog"]).ok();
        written
    };
    let old = publish("old");
    let source = Source::start(&original);
    // A replica of its own for each round: some of the time goes by waiting.
    let replicas: Vec<(Vec<Fault>, Server, Replica)> = rounds(1)
        .into_iter()
        .map(|round| {
            let (server, replica) = super::replica::replica(&original, &source, "CVMFS_S3_MAX_RETRIES=0\n");
            replica.snapshot();
            (round, server, replica)
        })
        .collect();
    let new = publish("new");
    thread::scope(|scope| {
        for (round, server, replica) in &replicas {
            let (old, new) = (&old, &new);
            scope.spawn(move || fail_snapshots(round, server, replica, old, new));
        }
    });
}

fn fail_snapshots(
    round: &[Fault],
    server: &Server,
    replica: &Replica,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) {
    let site = &replica.site;
    let loaded = cvmfs_replica::replica::Replica::load(
        &ServerRoot::new(&site.root()).expect("root"),
        &NAME.parse().expect("a name"),
    );
    let loaded = loaded.expect("replica");
    let run = || snapshot(&loaded, &SnapshotOptions::new(now()), &Silent, &Cancel::new());
    // Every run begins where the first one did.
    let (bucket, spool) = (server.directory().to_owned(), site.spool());
    let keep = [(&bucket, site.path("bucket-before")), (&spool, site.path("spool-before"))];
    for (place, copy) in &keep {
        copy_tree(place, copy);
    }
    let found = || files(site, &site.storage(), &site.root()).expect("a complete revision");
    assert!(found() == *old);
    let (mut failures, mut number) = (Vec::new(), 0);
    loop {
        let fault = fault_at(round, number);
        for (place, copy) in &keep {
            fs::remove_dir_all(place).expect("removed");
            copy_tree(copy, place);
        }
        set_timeout(site, if fault == Fault::Hang { 1 } else { 20 });
        let before = server.requests();
        server.spoil(number, 1, fault);
        let outcome = run();
        let used = server.requests() - before;
        server.heal();
        let ended_well = matches!(&outcome, Ok(outcome) if outcome.ending == Ending::Updated);
        let there = found();
        assert!(there == *new || (!ended_well && there == *old), "{fault:?} at request {number}");
        if !ended_well {
            failures.push(fault);
            set_timeout(site, 20);
            let again = run().unwrap_or_else(|error| panic!("{fault:?} at request {number}: {error}"));
            assert!(matches!(again.ending, Ending::Updated | Ending::Unchanged), "{fault:?} at request {number}");
            assert!(found() == *new, "{fault:?} at request {number}");
        }
        if ended_well && used <= number {
            break;
        }
        number += if all_faults() { 1 } else { 3 };
        assert!(number < MANY, "no end");
    }
    assert!(number > 10, "only {number} requests");
    assert!(!failures.contains(&Fault::Throttled));
    let can_pass = [Fault::Throttled, Fault::Half];
    assert!(failures.len() > 3 || round.iter().all(|fault| can_pass.contains(fault)), "{failures:?} of {number}");
    replica.check(&[]);
}

/// How many seconds the replica waits for its bucket.
fn set_timeout(site: &Site, seconds: u64) {
    let file = site.path("s3.conf");
    let text = fs::read_to_string(&file).expect("configuration");
    let kept = text.lines().filter(|line| !line.starts_with("CVMFS_S3_TIMEOUT="));
    let text: String = kept.map(|line| format!("{line}\n")).collect();
    fs::write(&file, format!("{text}CVMFS_S3_TIMEOUT={seconds}\n")).expect("configuration");
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("directory");
    for entry in fs::read_dir(from).expect("directory") {
        let entry = entry.expect("entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("type");
        if kind.is_dir() {
            copy_tree(&from, &to);
        } else if kind.is_file() {
            fs::copy(from, to).expect("copy");
        }
    }
}
