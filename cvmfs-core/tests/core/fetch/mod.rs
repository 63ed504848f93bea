//! Fetching from web servers that misbehave: every case states its result and the requests that were made. Here: what
//! requests look like, and how many there can be.

mod answers;
mod bundles;
mod proxies;
mod queue;
pub(crate) mod server;
mod servers;
mod tls;

use std::time::Duration;

use self::server::{Answer, Request, Server};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::{HttpOptions, HttpStore, Sink, parse_servers};
use cvmfs_core::hash::ObjectId;
use cvmfs_core::storage::{Key, NamedFile, ReadStore as _};

const CONTENT: &[u8] = b"stored bytes of an object, whatever they are";
const DAMAGED: &[u8] = b"stored bytes of an objecT, whatever they are";
/// Hash of `CONTENT`, from `sha1sum`.
const ID: &str = "c90c9f03b167e4a6afc40838ba05aaaad4d15159";
/// Hash of `DAMAGED`, from `sha1sum`.
const DAMAGED_HASH: &str = "346bb1f3d1bd63d2cf221e581973c29b57e8393a";
const OBJECT: &str = "GET /cvmfs/test.example.org/data/c9/0c9f03b167e4a6afc40838ba05aaaad4d15159";
const MANIFEST: &str = "GET /cvmfs/test.example.org/.cvmfspublished";

fn id() -> ObjectId {
    ID.parse().unwrap()
}

fn options() -> HttpOptions {
    HttpOptions {
        connect_timeout: Duration::from_secs(2),
        low_speed_limit: 1000,
        low_speed_time: Duration::from_millis(1500),
        retries: 2,
        backoff_initial: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        retry_after_max: Duration::from_millis(50),
        ..HttpOptions::default()
    }
}

fn store(servers: &[&str], options: HttpOptions) -> HttpStore {
    HttpStore::new(parse_servers(&servers.join(";")).unwrap(), options).unwrap()
}

fn store_at(servers: &[&Server]) -> HttpStore {
    let roots: Vec<_> = servers.iter().map(|server| server.root()).collect();
    store(&roots.iter().map(String::as_str).collect::<Vec<_>>(), options())
}

fn read_object(store: &HttpStore) -> Result<Vec<u8>> {
    store.read(&Key::Object(id()))
}

fn read_manifest(store: &HttpStore) -> Result<Vec<u8>> {
    store.read(&Key::Named(NamedFile::Manifest))
}

fn object_url(server: &Server) -> String {
    format!("{}/{}", server.root(), Key::Object(id()))
}

fn manifest_url(server: &Server) -> String {
    format!("{}/.cvmfspublished", server.root())
}

fn fresh(request: &Request) -> bool {
    request.has("cache-control: no-cache") && request.has("pragma: no-cache")
}

/// Reads the object from one server with this script; returns the result and how many requests were made.
fn read_from(script: impl Into<Vec<Answer>>) -> (Server, Result<Vec<u8>>, usize) {
    let server = Server::start(script);
    let result = read_object(&store_at(&[&server]));
    let lines = server.lines();
    assert!(lines.iter().all(|line| line == OBJECT), "{lines:?}");
    (server, result, lines.len())
}

/// Checks an error's text, and that it is of the class that callers repeat or not.
#[track_caller]
fn assert_unavailable(result: Result<Vec<u8>>, what: &str, reason: &str) {
    match result.unwrap_err() {
        Error::Unavailable { what: actual, reason: why } => {
            assert_eq!(actual, what);
            assert!(why.starts_with(reason), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_is_plain() {
    let (server, result, _) = read_from([Answer::ok(CONTENT)]);
    assert_eq!(result.unwrap(), CONTENT);
    let requests = server.requests();
    let mut headers = requests[0].headers.clone();
    headers.sort();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        headers,
        ["accept: */*".to_owned(), format!("host: {}", server.address), format!("user-agent: cvmfs-core/{version}")]
    );
}

#[test]
fn connections_are_kept() {
    let server = Server::start([Answer::keep_alive(CONTENT)]);
    let store = store_at(&[&server]);
    for _ in 0..5 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
        // A connection becomes free a moment after its answer was read.
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.lines().len(), 5);
    assert!(server.connections() < 5);
}

#[test]
fn passwords_are_sent_but_not_told() {
    let server = Server::start([Answer::ok(DAMAGED)]);
    let with_password = server.root().replace("http://", "http://user:secret@");
    let store = store(&[&with_password], options());
    let error = read_object(&store).unwrap_err();
    assert!(server.requests()[0].has("authorization: basic dxnlcjpzzwnyzxq="), "{:?}", server.requests());
    let told = format!("{error} {error:?} {store:?} {}", store.describe(&Key::Object(id())));
    assert!(!told.contains("secret"), "{told}");
    assert!(told.contains(&object_url(&server)), "{told}");
}

#[test]
fn works_on_and_off_runtimes() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let store = std::sync::Arc::new(store_at(&[&server]));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(read_object(&store).unwrap(), CONTENT));
        }
    });
    for mut builder in [tokio::runtime::Builder::new_multi_thread(), tokio::runtime::Builder::new_current_thread()] {
        let runtime = builder.enable_all().build().unwrap();
        let shared = std::sync::Arc::clone(&store);
        runtime.block_on(async {
            let worker = tokio::task::spawn_blocking(move || read_object(&shared));
            assert_eq!(worker.await.unwrap().unwrap(), CONTENT);
            assert_eq!(read_object(&store).unwrap(), CONTENT);
            let mut bytes = Vec::new();
            assert_eq!(store.fetch_object(&id(), &mut bytes).await.unwrap(), CONTENT.len() as u64);
            assert_eq!(bytes, CONTENT);
            drop(store_at(&[&server]));
        });
    }
}

#[test]
fn hundreds_of_requests_are_in_flight_at_once() {
    let server = Server::start([Answer::keep_alive(CONTENT)]);
    let store = std::sync::Arc::new(store_at(&[&server]));
    let sizes = store.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let store = std::sync::Arc::clone(&store);
            tasks.spawn(async move { store.fetch_object(&id(), &mut Vec::new()).await });
        }
        tasks.join_all().await
    });
    assert!(sizes.iter().all(|size| matches!(size, Ok(44))), "{sizes:?}");
    assert_eq!(server.lines().len(), 300);
}

#[test]
fn unusable_options_are_refused_at_the_start() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let servers = || parse_servers("http://localhost/cvmfs/r").unwrap();
    let options = HttpOptions { ca_bundle: Some(empty.path().to_owned()), ..options() };
    let error = HttpStore::new(servers(), options).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: holds no certificate", empty.path().display()));
    let error = HttpStore::new(Vec::new(), HttpOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "list of servers: is empty");
    let error =
        HttpStore::new(servers(), HttpOptions { user_agent: "a\nb".to_owned(), ..HttpOptions::default() }).unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
}

/// Has no room for more than ten bytes.
struct FullDisk(usize);

impl Sink for FullDisk {
    fn restart(&mut self) -> Result<()> {
        self.0 = 0;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0 += bytes.len();
        if self.0 > 10 { Err(Error::io("/full", std::io::ErrorKind::StorageFull.into())) } else { Ok(()) }
    }
}

#[test]
fn a_full_disk_is_no_reason_to_ask_again() {
    let servers = [Server::start([Answer::ok(CONTENT)]), Server::start([Answer::ok(CONTENT)])];
    let store = store_at(&[&servers[0], &servers[1]]);
    let error = store.block_on(store.fetch_object(&id(), &mut FullDisk(0))).unwrap_err();
    assert_eq!(error.to_string(), "/full: no storage space");
    assert_eq!((servers[0].lines().len(), servers[1].lines().len()), (1, 0));
}
