//! Snapshots from sources that misbehave on purpose. Whatever they do: the old revision stays complete or the new one
//! is, nothing is stored that is not what its name promises, and errors name the URL.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::compression::{Compressor, Effort};
use cvmfs_core::error::Error;
use cvmfs_core::fetch::parse_servers;
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::manifest::{Manifest, SignedManifest};
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::StoragePlace;
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::{SignedWhitelist, Whitelist};
use cvmfs_replica::replica::{AddOptions, Replica, add};
use cvmfs_replica::snapshot::{Ending, SnapshotOptions, SnapshotOutcome, snapshot};

use crate::harness::evil::{Fault, Source};
use crate::harness::original::{make, now, publish_files, scratch};
use crate::harness::{REPOSITORY, noise};

const MANIFEST: &str = ".cvmfspublished";
const WHITELIST: &str = ".cvmfswhitelist";

/// A repository in two revisions, and a replica of the first one.
struct Fixture {
    directory: tempfile::TempDir,
    replica: Replica,
    now: UnixSeconds,
    /// The manifest of the first revision.
    first: Vec<u8>,
    /// Objects of the first revision, and those that came with the second.
    old: BTreeSet<String>,
    new: BTreeSet<String>,
    key: PrivateKey,
    master: PrivateKey,
}

/// The fixture, made once for all tests that run at the same time.
fn fixture() -> Arc<Fixture> {
    static FIXTURE: Mutex<Weak<Fixture>> = Mutex::new(Weak::new());
    let mut known = FIXTURE.lock().unwrap_or_else(PoisonError::into_inner);
    known.upgrade().unwrap_or_else(|| {
        let made = Arc::new(make_fixture());
        *known = Arc::downgrade(&made);
        made
    })
}

fn make_fixture() -> Fixture {
    let directory = scratch();
    let now = now();
    let (root, name) = make(&directory.path().join("original"));
    let storage = root.storage_dir(&name);

    publish_files(&root, &name, "a");
    let first = fs::read(storage.join(MANIFEST)).expect("manifest");
    let source = Source::start(&storage, |_, _| None);
    let replica_root = ServerRoot::new(&directory.path().join("replica")).expect("root");
    let urls = parse_servers(&source.url("")).expect("URL");
    let options = AddOptions::new(now, urls, vec![root.key_file(&name, "pub")]);
    let replica = add(&replica_root, &options).expect("add-replica");
    let outcome = snapshot(&replica, &SnapshotOptions::new(now), &Silent, &Cancel::new()).expect("snapshot");
    assert_eq!((outcome.ending, outcome.revision), (Ending::Updated, Some(2)));
    let old = objects(replica.storage.directory().expect("directory"));

    publish_files(&root, &name, "b");
    let all = objects(&storage);
    let new = all.difference(&old).filter(|object| !is_superseded(&storage, object)).cloned().collect();
    let key = |extension| {
        let file = root.key_file(&name, extension);
        PrivateKey::from_pem(extension, &fs::read(file).expect("key")).expect("key")
    };
    Fixture { replica, now, first, old, new, key: key("key"), master: key("masterkey"), directory }
}

/// A tag database that is not the newest one.
fn is_superseded(storage: &Path, object: &str) -> bool {
    let manifest = SignedManifest::parse(&fs::read(storage.join(MANIFEST)).expect("manifest")).expect("manifest");
    let history = manifest.unverified().history_object().map(|id| id.to_string());
    object.ends_with('H') && history.is_none_or(|history| history != object)
}

/// The names of the objects in a storage, each verified.
fn objects(storage: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for directory in fs::read_dir(storage.join("data")).expect("data") {
        let directory = directory.expect("entry").path();
        let first = directory.file_name().expect("a name").to_str().expect("text").to_owned();
        if first == "txn" {
            continue;
        }
        for file in fs::read_dir(&directory).expect("directory") {
            let file = file.expect("entry").path();
            let name = format!("{first}{}", file.file_name().expect("a name").to_str().expect("text"));
            let id: ObjectId = name.parse().expect("an object");
            assert_eq!(id.hash.algorithm().hash(&fs::read(&file).expect("object")), id.hash, "{name}");
            names.insert(name);
        }
    }
    names
}

fn path_of(object: &str) -> String {
    format!("data/{}/{}", &object[..2], &object[2..])
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("directory");
    for entry in fs::read_dir(from).expect("directory") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy_tree(&path, &target) } else { fs::copy(&path, &target).map(drop).expect("copy") }
    }
}

/// A replica of the first revision, to be led astray.
struct Victim {
    fixture: Arc<Fixture>,
    replica: Replica,
    _directory: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let fixture = fixture();
        let directory = scratch();
        let mut replica = fixture.replica.clone();
        let copy = |place: &Path| {
            let copy = directory.path().join(place.strip_prefix(fixture.directory.path()).expect("below"));
            copy_tree(place, &copy);
            copy
        };
        replica.storage = StoragePlace::Local(copy(replica.storage.directory().expect("directory")));
        replica.spool = copy(&replica.spool);
        replica.transfer.timeout = Duration::from_millis(1200);
        replica.transfer.pause = Duration::from_millis(5);
        replica.transfer.retries = 1;
        Self { fixture, replica, _directory: directory }
    }

    fn storage(&self) -> &Path {
        self.replica.storage.directory().expect("directory")
    }

    /// The storage of the repository, which has both revisions.
    fn original(&self) -> PathBuf {
        self.fixture.directory.path().join("original/srv/cvmfs").join(REPOSITORY)
    }

    /// Starts a source of the second revision that does as `mind` says.
    fn source(&mut self, mind: impl Fn(&str, usize) -> Option<Fault> + Send + Sync + 'static) -> Source {
        let source = Source::start(&self.original(), mind);
        self.replica.sources = parse_servers(&source.url("")).expect("URL");
        source
    }

    fn options(&self) -> SnapshotOptions {
        SnapshotOptions::new(self.fixture.now)
    }

    /// A snapshot; within a second or two, whatever the source does.
    fn snapshot(&self) -> Result<SnapshotOutcome, Error> {
        let started = Instant::now();
        let result = snapshot(&self.replica, &self.options(), &Silent, &Cancel::new());
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        result
    }

    /// What is published is the first revision, and complete.
    #[track_caller]
    fn assert_old(&self) {
        assert!(fs::read(self.storage().join(MANIFEST)).expect("manifest") == self.fixture.first);
        let stored = objects(self.storage());
        assert!(stored.is_superset(&self.fixture.old));
        assert_eq!(fs::read_dir(self.storage().join("data/txn")).expect("txn").count(), 0);
    }

    /// What is published is the second revision, and complete.
    #[track_caller]
    fn assert_new(&self) {
        for file in [MANIFEST, WHITELIST] {
            let read = |storage: &Path| fs::read(storage.join(file)).expect("a named file");
            assert!(read(self.storage()) == read(&self.original()), "{file}");
        }
        let stored = objects(self.storage());
        let lacking: Vec<_> = self.fixture.new.difference(&stored).collect();
        assert!(lacking.is_empty(), "{lacking:?}");
    }

    /// The snapshot fails, and says which URL it was; a better source then has everything.
    #[track_caller]
    fn assert_fails(&mut self, url: &str, reason: &str) {
        let text = match self.snapshot() {
            Err(error) => error.to_string(),
            Ok(outcome) => {
                assert_eq!(outcome.ending, Ending::Incomplete);
                outcome.failures.to_string()
            }
        };
        assert!(text.contains(url) && text.contains(reason), "{text}\nhas no {reason:?} of {url}");
        self.assert_old();
        self.source(|_, _| None);
        assert_eq!(self.snapshot().expect("snapshot").ending, Ending::Updated);
        self.assert_new();
    }

    /// The snapshot ends well all the same.
    #[track_caller]
    fn assert_succeeds(&self) {
        let outcome = self.snapshot().expect("snapshot");
        assert_eq!(outcome.ending, Ending::Updated, "{}", outcome.failures);
        self.assert_new();
    }

    /// One object of each kind that a source has, and the documents: everything that can be asked for.
    fn victims(&self) -> Vec<String> {
        let mut paths = vec![MANIFEST.to_owned(), WHITELIST.to_owned()];
        for suffix in ['C', 'P', 'H'] {
            paths.extend(self.fixture.new.iter().find(|object| object.ends_with(suffix)).map(|object| path_of(object)));
        }
        paths.extend(self.fixture.new.iter().find(|object| object.len() == 40).map(|object| path_of(object)));
        assert!(paths.len() >= 5, "{paths:?}");
        paths
    }

    fn manifest(&self) -> Manifest {
        let bytes = fs::read(self.original().join(MANIFEST)).expect("manifest");
        SignedManifest::parse(&bytes).expect("manifest").unverified().clone()
    }

    fn whitelist(&self) -> Whitelist {
        let bytes = fs::read(self.original().join(WHITELIST)).expect("whitelist");
        SignedWhitelist::parse(&bytes).expect("whitelist").unverified().clone()
    }

    /// A source of a third revision whose root catalog has these bytes.
    fn source_of_catalog(&mut self, plain: &[u8]) -> (Source, String) {
        let stored = Compressor::new(Effort::default()).compress(plain).to_vec();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::Catalog, &stored);
        let manifest = Manifest {
            root_catalog: id.hash,
            root_catalog_size: Some(4096),
            revision: self.manifest().revision + 1,
            ..self.manifest()
        };
        let manifest = manifest.sign(&self.fixture.key).expect("signed").bytes().to_vec();
        let path = path_of(&id.to_string());
        let asked = path.clone();
        let source = self.source(move |path, _| match path {
            MANIFEST => Some(Fault::Content(manifest.clone())),
            path if path == asked => Some(Fault::Content(stored.clone())),
            _ => None,
        });
        (source, path)
    }
}

/// Does the same to each path in turn, every time it is asked for.
#[track_caller]
fn each_fails(fault: &Fault, reason: &str) {
    for path in Victim::new().victims() {
        let mut victim = Victim::new();
        let (wanted, fault) = (path.clone(), fault.clone());
        let source = victim.source(move |path, _| (path == wanted).then(|| fault.clone()));
        victim.assert_fails(&source.url(&path), reason);
    }
}

/// Does the same to each path in turn, the first `times`.
#[track_caller]
fn each_recovers(fault: &Fault, times: usize) {
    for path in Victim::new().victims() {
        let mut victim = Victim::new();
        let (wanted, fault) = (path.clone(), fault.clone());
        let source = victim.source(move |path, nth| (path == wanted && nth < times).then(|| fault.clone()));
        victim.assert_succeeds();
        assert!(source.requests(&path) > times);
    }
}

#[test]
fn connection_refused() {
    let mut victim = Victim::new();
    // Bound, so that nobody else gets the address, and nobody listens.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let nobody = socket.local_addr().expect("an address");
    let url = format!("http://{nobody}/cvmfs/{REPOSITORY}");
    victim.replica.sources = parse_servers(&url).expect("URL");
    victim.assert_fails(&format!("{url}/{MANIFEST}"), "Connection refused");
}

#[test]
fn a_source_that_goes_away_in_the_middle() {
    let mut victim = Victim::new();
    // Everything but the documents and catalogs is refused from some point on.
    let source = victim.source(|path, _| {
        let is_file = path.starts_with("data/") && !path.ends_with(['C', 'X', 'M', 'H']);
        is_file.then_some(Fault::Reset)
    });
    let file = victim.fixture.new.iter().find(|object| object.len() == 40).map(|object| path_of(object));
    victim.assert_fails(&source.url(&file.expect("a file")), "");
}

#[test]
fn reset_in_the_middle() {
    each_recovers(&Fault::Reset, 1);
    each_fails(&Fault::Reset, "transfer failed");
}

#[test]
fn slow_trickle() {
    let mut victim = Victim::new();
    let path = victim.victims().pop().expect("a file");
    let wanted = path.clone();
    let source = victim.source(move |path, _| (path == wanted).then_some(Fault::Trickle));
    victim.assert_fails(&source.url(&path), "less than 1024 bytes/s");
}

#[test]
fn not_found() {
    each_fails(&Fault::Status(404, ""), "not found");
}

#[test]
fn forbidden() {
    each_fails(&Fault::Status(403, ""), "HTTP status 403");
}

#[test]
fn too_many_requests_with_retry_after() {
    each_recovers(&Fault::Status(429, "Retry-After: 0\r\n"), 1);
    each_fails(&Fault::Status(429, "Retry-After: 0\r\n"), "HTTP status 429");
}

#[test]
fn bursts_of_server_errors() {
    // Objects are asked for again in later rounds; documents with the next run, which comes soon.
    let mut victim = Victim::new();
    victim.source(|path, nth| {
        (path.starts_with("data/") && !path.ends_with('H') && nth < 2).then_some(Fault::Status(500, ""))
    });
    victim.assert_succeeds();
    each_fails(&Fault::Status(500, ""), "HTTP status 500");
}

#[test]
fn truncated_body() {
    each_recovers(&Fault::Truncate, 1);
    each_fails(&Fault::Truncate, "transfer failed");
}

#[test]
fn flipped_bit() {
    each_fails(&Fault::Flip, "");
    // A cache on the way that has it wrong: asked again around it, all is well.
    let mut victim = Victim::new();
    victim.source(|path, nth| (path.starts_with("data/") && nth == 0).then_some(Fault::Flip));
    victim.assert_succeeds();
}

#[test]
fn wrong_content_length() {
    each_fails(&Fault::WrongLength(7), "");
    each_fails(&Fault::WrongLength(-7), "");
}

#[test]
fn another_source_has_what_the_first_one_lacks() {
    for fault in [Fault::Status(404, ""), Fault::Status(500, ""), Fault::Flip, Fault::Truncate] {
        let mut victim = Victim::new();
        let evil = victim.source(move |path, _| path.starts_with("data/").then(|| fault.clone()));
        let good = victim.source(|_, _| None);
        victim.replica.sources = parse_servers(&format!("{};{}", evil.url(""), good.url(""))).expect("URLs");
        victim.assert_succeeds();
    }
}

#[test]
fn stale_manifest() {
    let mut victim = Victim::new();
    victim.source(|_, _| None);
    victim.assert_succeeds();
    let first = victim.fixture.first.clone();
    let source = victim.source(move |path, _| (path == MANIFEST).then(|| Fault::Content(first.clone())));
    let error = victim.snapshot().expect_err("an older revision");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains(&source.url(MANIFEST)), "{error}");
    victim.assert_new();
}

#[test]
fn manifest_that_changes_during_the_run() {
    let mut victim = Victim::new();
    let third = Manifest { revision: victim.manifest().revision + 1, ..victim.manifest() };
    let third = third.sign(&victim.fixture.key).expect("signed").bytes().to_vec();
    let later = third.clone();
    victim.source(move |path, nth| (path == MANIFEST && nth > 0).then(|| Fault::Content(later.clone())));
    victim.assert_succeeds();
    assert_eq!(victim.snapshot().expect("snapshot").revision, Some(4));
    assert!(fs::read(victim.storage().join(MANIFEST)).expect("manifest") == third);
}

#[test]
fn whitelist_that_changes_during_the_run() {
    // Between two requests the certificate was replaced: the first whitelist does not know it yet.
    let mut victim = Victim::new();
    let other =
        Certificate::create(&victim.manifest().name, &PrivateKey::generate().expect("key")).expect("certificate");
    let early = Whitelist { fingerprints: vec![other.fingerprint(Algorithm::Sha1)], ..victim.whitelist() };
    let early = early.sign(Algorithm::Sha1, &victim.fixture.master).expect("signed").to_bytes();
    let before = early.clone();
    victim.source(move |path, nth| (path == WHITELIST && nth == 0).then(|| Fault::Content(before.clone())));
    victim.assert_succeeds();

    let mut victim = Victim::new();
    let source = victim.source(move |path, _| (path == WHITELIST).then(|| Fault::Content(early.clone())));
    victim.assert_fails(&source.url(MANIFEST), "");
}

#[test]
fn wrong_key() {
    let mut victim = Victim::new();
    let stranger = PrivateKey::generate().expect("key");
    let whitelist = victim.whitelist().sign(Algorithm::Sha1, &stranger).expect("signed").to_bytes();
    let source = victim.source(move |path, _| (path == WHITELIST).then(|| Fault::Content(whitelist.clone())));
    victim.assert_fails(&source.url(WHITELIST), "not trusted");

    let mut victim = Victim::new();
    let manifest = victim.manifest().sign(&stranger).expect("signed").bytes().to_vec();
    let source = victim.source(move |path, _| (path == MANIFEST).then(|| Fault::Content(manifest.clone())));
    victim.assert_fails(&source.url(MANIFEST), "not trusted");
}

#[test]
fn expired_whitelist() {
    let mut victim = Victim::new();
    let past = UnixSeconds(victim.fixture.now.0 - 1);
    let whitelist = Whitelist { expires: past, ..victim.whitelist() };
    let whitelist = whitelist.sign(Algorithm::Sha1, &victim.fixture.master).expect("signed").to_bytes();
    let source = victim.source(move |path, _| (path == WHITELIST).then(|| Fault::Content(whitelist.clone())));
    victim.assert_fails(&source.url(WHITELIST), "expired");
}

#[test]
fn documents_that_are_something_else() {
    for document in [MANIFEST, WHITELIST] {
        let large = vec![b'x'; 2_000_000];
        for content in [&b""[..], b"<html>It works!</html>", &[0; 5000], b"C\nB\nS\n--\n", &large] {
            let content = content.to_vec();
            let mut victim = Victim::new();
            let source = victim.source(move |path, _| (path == document).then(|| Fault::Content(content.clone())));
            victim.assert_fails(&source.url(document), "");
        }
    }
}

#[test]
fn a_catalog_that_is_no_database() {
    for content in [&b""[..], b"no database", &noise(50_000, 7), b"SQLite format 3\0 and nothing else"] {
        let mut victim = Victim::new();
        let (source, path) = victim.source_of_catalog(content);
        victim.assert_fails(&source.url(&path), "");
    }
}

#[test]
fn a_decompression_bomb() {
    let mut victim = Victim::new();
    let (source, path) = victim.source_of_catalog(&vec![0; 64 << 20]);
    victim.assert_fails(&source.url(&path), "");
}

#[test]
fn redirect_loops() {
    for path in Victim::new().victims() {
        let mut victim = Victim::new();
        let wanted = path.clone();
        let source = victim.source(move |path, _| (path == wanted).then_some(Fault::Status(302, "Location: .\r\n")));
        victim.assert_fails(&source.url(&path), "302");
        assert_eq!(source.requests(""), 0);
    }
}

#[test]
fn not_open_for_replication() {
    let mut victim = Victim::new();
    let source = victim.source(|path, _| (path == ".cvmfs_master_replica").then_some(Fault::Status(404, "")));
    victim.assert_fails(&source.url(".cvmfs_master_replica"), "not open for replication");
}

#[test]
fn bundles_that_lie() {
    let offer = "X-CVMFS-Bundle: api/v1.0/bundle; max-objects=100; max-bytes=1000000\r\n";
    for bundle in ["", "nonsense", "da39a3ee5e6b4b0d3255bfef95601890afd80709 0\n"] {
        let mut victim = Victim::new();
        let manifest = fs::read(victim.original().join(MANIFEST)).expect("manifest");
        let source = victim.source(move |path, _| match path {
            MANIFEST => Some(Fault::Headed(offer, manifest.clone())),
            "api/v1.0/bundle" => {
                Some(Fault::Headed("Content-Type: application/x-cvmfs-bundle\r\n", bundle.as_bytes().to_vec()))
            }
            _ => None,
        });
        victim.assert_succeeds();
        assert!(source.requests("api/v1.0/bundle") > 0);
    }
}
