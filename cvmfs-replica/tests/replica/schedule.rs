//! Snapshots on their own: by the clock, by request, by notice, by subscription.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Result;
use cvmfs_core::fetch::parse_servers;
use cvmfs_core::hash::Algorithm;
use cvmfs_core::notice;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::Cancel;
use cvmfs_core::schedule::{Kind, Schedule};
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::NamedFile;
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::{SignedWhitelist, Whitelist};
use cvmfs_replica::replica::{AddOptions, Replica, add};
use cvmfs_replica::schedule::{self, ScheduleOptions};
use cvmfs_replica::serve::{Notices, Repositories, ServeOptions, listen, serve};
use cvmfs_replica::snapshot::{Ending, SnapshotOutcome};

use crate::harness::Client;
use crate::harness::evil::Source;
use crate::harness::original::{make, now, publish_files, scratch};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const MANIFEST: &str = ".cvmfspublished";

/// A repository, its server, and a replica.
struct World {
    original: ServerRoot,
    name: RepositoryName,
    source: Source,
    replica_root: ServerRoot,
    replica: Replica,
    _directory: tempfile::TempDir,
}

impl World {
    fn new(settings: &[(&str, &str)]) -> Self {
        let directory = scratch();
        let (original, name) = make(&directory.path().join("original"));
        let source = Source::start(&original.storage_dir(&name), |_, _| None);
        let replica_root = ServerRoot::new(&directory.path().join("replica")).expect("root");
        let urls = parse_servers(&source.url("")).expect("URL");
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = AddOptions { settings, ..AddOptions::new(now(), urls, vec![original.key_file(&name, "pub")]) };
        let replica = add(&replica_root, &options).expect("add-replica");
        Self { original, name, source, replica_root, replica, _directory: directory }
    }

    /// Begins a schedule; returns what ends it, and the outcomes.
    fn schedule(&self, every: Duration) -> (Arc<Schedule>, mpsc::Receiver<SnapshotOutcome>) {
        let (sender, outcomes) = mpsc::channel();
        let options = ScheduleOptions { snapshot_every: Some(every), ..ScheduleOptions::default() };
        let report = move |_: &Replica, result: &Result<SnapshotOutcome>| {
            let outcome = result.as_ref().expect("a snapshot").clone();
            drop(sender.send(outcome));
        };
        let clock = || Ok(now());
        let schedule = schedule::start(self.replica_root.clone(), options, clock, Cancel::new(), report);
        (schedule.expect("schedule"), outcomes)
    }

    fn manifest(&self) -> Vec<u8> {
        fs::read(self.original.storage_dir(&self.name).join(MANIFEST)).expect("manifest")
    }

    fn publish(&self, content: &str) {
        publish_files(&self.original, &self.name, content);
    }
}

/// The next outcome; its ending and revision.
#[track_caller]
fn next(outcomes: &mpsc::Receiver<SnapshotOutcome>) -> (Ending, Option<u64>) {
    let outcome = outcomes.recv_timeout(30 * SECOND).expect("a snapshot");
    (outcome.ending, outcome.revision)
}

/// Serves a root with notices until the test process ends.
fn start_server(root: &ServerRoot, notices: Arc<Notices>) -> SocketAddr {
    let repositories = Repositories::scan(root.path());
    let (started, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("runtime").block_on(async {
            let listeners = listen(&[SocketAddr::from(([127, 0, 0, 1], 0))]).expect("listener");
            started.send(listeners[0].local_addr().expect("address")).expect("the test waits");
            let options = ServeOptions { notices: Some(notices), pages: false, ..ServeOptions::default() };
            serve(listeners, repositories, options, std::future::pending()).await.expect("server")
        })
    });
    address.recv().expect("the server starts")
}

/// Listens to a server; what it tells comes out, once it is sure that somebody listens.
fn listener(address: SocketAddr, name: &RepositoryName) -> mpsc::Receiver<Vec<u8>> {
    let (sender, told) = mpsc::channel();
    let (url, name) = (format!("http://{address}/api/v1").parse().expect("URL"), name.clone());
    std::thread::spawn(move || {
        let mut tell = |manifest| drop(sender.send(manifest));
        drop(notice::subscribe(&url, &name, &Cancel::new(), &mut tell));
    });
    told
}

#[test]
fn snapshots_come_by_the_clock() {
    let world = World::new(&[]);
    let (_schedule, outcomes) = world.schedule(SECOND / 10);
    assert_eq!(next(&outcomes), (Ending::Updated, Some(1)));
    assert_eq!(next(&outcomes), (Ending::Unchanged, Some(1)));
    world.publish("a");
    let updated = std::iter::repeat_with(|| next(&outcomes)).find(|(ending, _)| *ending == Ending::Updated);
    assert_eq!(updated, Some((Ending::Updated, Some(2))));
}

#[test]
fn requests_that_come_together_are_joined() {
    let world = World::new(&[]);
    let (schedule, outcomes) = world.schedule(HOUR);
    assert_eq!(next(&outcomes), (Ending::Updated, Some(1)));
    world.publish("a");
    let before = world.source.requests(MANIFEST);
    for _ in 0..20 {
        assert!(schedule.request(&world.replica.alias, Kind::Snapshot));
    }
    assert!(!schedule.request(&"other.example.org".parse().expect("a name"), Kind::Snapshot));
    assert_eq!(next(&outcomes), (Ending::Updated, Some(2)));
    // Those that came during the run make one more.
    while let Ok(outcome) = outcomes.recv_timeout(SECOND / 2) {
        assert_eq!(outcome.ending, Ending::Unchanged);
    }
    assert!(world.source.requests(MANIFEST) - before <= 2);
}

#[test]
fn a_notice_brings_a_snapshot_and_is_told_when_that_is_there() {
    let world = World::new(&[]);
    world.publish("a");
    let (schedule, outcomes) = world.schedule(HOUR);
    assert_eq!(next(&outcomes), (Ending::Updated, Some(2)));
    let notices = Arc::new(Notices::new(world.replica_root.clone()));
    notices.attach(schedule);
    let address = start_server(&world.replica_root, Arc::clone(&notices));
    let server = format!("http://{address}/api/v1").parse().expect("URL");
    let send = |manifest: &[u8]| notice::send(&server, &world.name, manifest, now());

    // What is not newer, or not signed, brings nothing.
    send(&world.manifest()).expect("accepted");
    let mut wrong = world.manifest();
    let at = wrong.windows(2).position(|pair| pair == b"\nS").expect("a revision") + 2;
    wrong[at] = b'9';
    assert!(send(&wrong).is_err());
    assert!(send(b"nonsense").is_err());
    let other = "other.example.org".parse().expect("a name");
    assert!(notice::send(&server, &other, &world.manifest(), now()).is_err());
    assert!(outcomes.recv_timeout(SECOND / 2).is_err());

    world.publish("b");
    send(&world.manifest()).expect("accepted");
    assert_eq!(next(&outcomes), (Ending::Updated, Some(3)));
    assert!(
        fs::read(world.replica.storage.directory().expect("directory").join(MANIFEST)).expect("manifest")
            == world.manifest()
    );
}

#[test]
fn a_notice_whose_signer_is_not_trusted_any_more_brings_nothing() {
    let world = World::new(&[]);
    let (schedule, outcomes) = world.schedule(HOUR);
    assert_eq!(next(&outcomes), (Ending::Updated, Some(1)));
    let notices = Arc::new(Notices::new(world.replica_root.clone()));
    notices.attach(schedule);
    let address = start_server(&world.replica_root, notices);
    let server = format!("http://{address}/api/v1").parse().expect("URL");
    world.publish("a");
    let send = || notice::send(&server, &world.name, &world.manifest(), now());

    let master = fs::read(world.original.key_file(&world.name, "masterkey")).expect("master key");
    let [master, other] =
        [PrivateKey::from_pem("master key", &master), PrivateKey::generate()].map(|key| key.expect("key"));
    let file = world.replica.storage.directory().expect("directory").join(NamedFile::Whitelist.name());
    let trusted = fs::read(&file).expect("whitelist");
    let whitelist = SignedWhitelist::parse(&trusted).expect("whitelist").unverified().clone();
    let theirs = Certificate::create(&world.name, &other).expect("certificate").fingerprint(Algorithm::Sha1);
    let without = Whitelist { fingerprints: vec![theirs], ..whitelist.clone() };
    let expired = Whitelist { expires: UnixSeconds(whitelist.issued.0 - 1), ..whitelist.clone() };
    for (whitelist, key) in [(&without, &master), (&expired, &master), (&whitelist, &other)] {
        let whitelist = whitelist.sign(Algorithm::Sha1, key).expect("signed").to_bytes();
        fs::write(&file, whitelist).expect("whitelist");
        let error = send().expect_err("not trusted").to_string();
        assert!(error.ends_with("HTTP status 403"), "{error}");
    }
    fs::write(&file, trusted).expect("whitelist");
    send().expect("accepted");
    // What was refused brought no snapshot: this is the first one since.
    assert_eq!(next(&outcomes), (Ending::Updated, Some(2)));
}

#[test]
fn a_replica_that_subscribes_follows_at_once() {
    // The Stratum 0 tells of its revisions by itself.
    let directory = scratch();
    let settled = Mutex::new(directory);
    let notices_root = ServerRoot::new(settled.lock().expect("not poisoned").path()).expect("root");
    let notices = Arc::new(Notices::new(notices_root.clone()));
    let address = start_server(&notices_root, Arc::clone(&notices));
    let world = World::new(&[("CVMFS_REPLICA_SUBSCRIBE", &format!("http://{address}/api/v1"))]);
    let told = listener(address, &world.name);
    let (_schedule, outcomes) = world.schedule(HOUR);
    assert_eq!(next(&outcomes), (Ending::Updated, Some(1)));
    world.publish("a");
    // Whoever listens does so after a moment; until then nobody hears.
    let started = Instant::now();
    let outcome = loop {
        notices.announce(&world.name, &world.manifest(), now()).expect("announced");
        if let Ok(outcome) = outcomes.recv_timeout(SECOND / 5) {
            break outcome;
        }
        assert!(started.elapsed() < 30 * SECOND, "nobody listens");
    };
    assert_eq!((outcome.ending, outcome.revision), (Ending::Updated, Some(2)));
    assert!(told.recv_timeout(10 * SECOND).expect("told") == world.manifest());
    // Of another repository nobody is told.
    notices.announce(&"other.example.org".parse().expect("a name"), b"?", now()).expect("announced");
    while let Ok(manifest) = told.recv_timeout(SECOND / 5) {
        assert!(manifest == world.manifest());
    }
}

#[test]
fn an_old_notice_is_not_told_again() {
    let world = World::new(&[]);
    let notices = Arc::new(Notices::new(world.original.clone()));
    let address = start_server(&world.original, Arc::clone(&notices));
    let server = format!("http://{address}/api/v1").parse().expect("URL");
    let send = |manifest: &[u8]| notice::send(&server, &world.name, manifest, now()).expect("accepted");
    let told = listener(address, &world.name);
    world.publish("a");
    let old = world.manifest();
    let started = Instant::now();
    // Whoever listens does so after a moment; until then nobody hears.
    while told.recv_timeout(SECOND / 5).is_err() {
        notices.announce(&world.name, &old, now()).expect("announced");
        assert!(started.elapsed() < 30 * SECOND, "nobody listens");
    }
    world.publish("b");
    let new = world.manifest();
    send(&new);
    let deadline = Instant::now() + 10 * SECOND;
    while told.recv_timeout(deadline - Instant::now()).expect("told") != new {}
    // By the watch for other publishers, too, if that was faster.
    while told.recv_timeout(3 * SECOND / 2).is_ok() {}
    for manifest in [&old, &new] {
        send(manifest);
        assert!(told.recv_timeout(SECOND / 2).is_err());
    }
}

#[test]
fn a_listener_that_leaves_is_noticed() {
    let world = World::new(&[]);
    let address = start_server(&world.original, Arc::new(Notices::new(world.original.clone())));
    let open = || {
        let mut client = Client::connect(address);
        client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let page = client.reply().text();
        let line = page.lines().find(|line| line.starts_with("cvmfs_replica_connections_open "));
        line.expect("a metric").to_owned()
    };
    let mut listening = Client::connect(address);
    let body = format!("{{\"version\":1,\"repository\":\"{}\"}}", world.name);
    let length = body.len();
    listening.send(format!(
        "GET /api/v1/notifications/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    ));
    assert_eq!(listening.head().expect("an answer").status, 200);
    assert_eq!(open(), "cvmfs_replica_connections_open 2");
    drop(listening);
    let left = Instant::now();
    while open() != "cvmfs_replica_connections_open 1" {
        assert!(left.elapsed() < 10 * SECOND, "the connection stays");
        std::thread::sleep(SECOND / 10);
    }
}
