//! Fetching from web servers that misbehave: every case states its result and the requests that were made.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[expect(dead_code, reason = "shared with other tests")]
mod fetch_server;

use std::io::Read as _;
use std::time::{Duration, Instant};

use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::{HttpOptions, HttpStore, Redirects, Sink, parse_servers};
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::storage::{Key, NamedFile, ReadStore as _};
use fetch_server::{Answer, Request, Server, root};
use proptest::prelude::*;

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
        connect_timeout: Duration::from_millis(500),
        low_speed_limit: 1000,
        low_speed_time: Duration::from_millis(200),
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
fn shortcuts_are_verified_too() {
    let server = Server::start([Answer::ok(DAMAGED), Answer::ok(CONTENT)]);
    assert_eq!(store_at(&[&server]).read(&Key::Shortcut(id())).unwrap(), CONTENT);
    assert_eq!(server.lines(), vec![format!("GET /cvmfs/test.example.org/.cvmfsalt-{ID}"); 2]);
}

#[test]
fn a_large_object_is_opened_only_when_it_is_verified() {
    let mut content = vec![b'x'; 3 << 20];
    let id = ObjectId::of(Algorithm::Shake128, ObjectKind::Catalog, &content);
    let whole = content.clone();
    content[5] ^= 1;
    let server =
        Server::start([Answer::ok(&content), Answer::with_length(whole.len(), &whole[..2 << 20]), Answer::ok(&whole)]);
    let mut opened = Vec::new();
    store_at(&[&server]).open(&id.into()).unwrap().read_to_end(&mut opened).unwrap();
    assert!(opened == whole);
    let server = Server::start([Answer::ok(&content)]);
    let error = store_at(&[&server]).open(&id.into()).map(drop).unwrap_err();
    assert!(matches!(error, Error::HashMismatch { .. }), "{error:?}");
}

#[test]
fn connection_refused_is_unavailable() {
    let address = Server::refused();
    let url = format!("{}/{}", root(address), Key::Object(id()));
    assert_unavailable(read_object(&store(&[&root(address)], options())), &url, "cannot connect: Connection refused");
}

#[test]
fn a_reset_in_the_middle_is_repeated() {
    let reset = || Answer::with_length(CONTENT.len(), &CONTENT[..10]).reset();
    let (_, result, requests) = read_from([reset(), reset(), Answer::ok(CONTENT)]);
    assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 3));
    let (server, result, requests) = read_from([reset()]);
    assert_unavailable(result, &object_url(&server), "transfer failed: Connection reset by peer");
    assert_eq!(requests, 3);
}

#[test]
fn a_truncated_body_is_repeated() {
    let short = Answer::with_length(CONTENT.len(), &CONTENT[..10]);
    let (_, result, requests) = read_from([short.clone(), Answer::ok(CONTENT)]);
    assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 2));
    let server = Server::start([short]);
    assert_unavailable(read_manifest(&store_at(&[&server])), &manifest_url(&server), "transfer failed: ");
    assert_eq!(server.lines(), [MANIFEST; 3]);
}

#[test]
fn a_slow_trickle_is_given_up_and_repeated() {
    let slow = Answer::with_length(100_000, b"x").trickle();
    let (server, result, requests) = read_from([slow]);
    assert_unavailable(result, &object_url(&server), "less than 1000 bytes/s for 200ms");
    assert_eq!(requests, 3);
}

#[test]
fn silence_is_given_up_and_repeated() {
    let (_, result, requests) = read_from([Answer::hang(), Answer::ok(CONTENT)]);
    assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 2));
}

#[test]
fn a_body_that_ends_with_the_connection_works() {
    let (_, result, requests) = read_from([Answer::raw(200, &[], CONTENT)]);
    assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 1));
}

#[test]
fn a_missing_object_is_asked_for_once_per_server() {
    let (first, second) = (Server::start([Answer::status(404)]), Server::start([Answer::status(404)]));
    let error = read_object(&store_at(&[&first, &second])).unwrap_err();
    let expected = format!("file object {ID} ({}, {}) not found", object_url(&first), object_url(&second));
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), expected);
    assert_eq!((first.lines(), second.lines()), (vec![OBJECT.to_owned()], vec![OBJECT.to_owned()]));
}

#[test]
fn absence_needs_all_servers() {
    let (missing, broken) = (Server::start([Answer::status(404)]), Server::start([Answer::status(500)]));
    let reason = format!("HTTP status 500; {}: HTTP status 404", object_url(&missing));
    assert_unavailable(read_object(&store_at(&[&missing, &broken])), &object_url(&broken), &reason);
    let refusing = Server::start([Answer::status(403)]);
    match read_object(&store_at(&[&missing, &refusing])).unwrap_err() {
        Error::Refused { what, reason } => {
            assert_eq!(what, object_url(&refusing));
            assert_eq!(reason, format!("HTTP status 403; {}: HTTP status 404", object_url(&missing)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refusal_is_final() {
    for status in [400, 401, 403, 418] {
        let (server, result, requests) = read_from([Answer::status(status)]);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && !error.is_retryable(), "{error:?}");
        assert_eq!(error.to_string(), format!("{}: HTTP status {status}", object_url(&server)));
        assert_eq!(requests, 1);
    }
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    for status in [429, 503] {
        let busy = Answer::with_headers(status, &["Retry-After: 3600"], b"");
        let started = Instant::now();
        let (_, result, requests) = read_from([busy.clone(), Answer::ok(CONTENT)]);
        assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 2));
        assert!(started.elapsed() >= options().retry_after_max);
        let (server, result, requests) = read_from([busy]);
        assert_unavailable(result, &object_url(&server), &format!("HTTP status {status}"));
        assert_eq!(requests, 3);
    }
    let (_, result, requests) = read_from([Answer::status(429), Answer::status(429), Answer::ok(CONTENT)]);
    assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 3));
}

#[test]
fn a_burst_of_server_errors_moves_to_the_next_server_and_back_after_a_while() {
    let first = Server::start([Answer::status(500), Answer::status(503), Answer::ok(CONTENT)]);
    let second = Server::start([Answer::ok(CONTENT)]);
    let options = HttpOptions { server_reset: Duration::from_millis(300), ..options() };
    let store = store(&[&first.root(), &second.root()], options);
    for (wait, at_first, at_second) in [(0, 1, 1), (0, 1, 2), (310, 2, 3), (310, 3, 3)] {
        std::thread::sleep(Duration::from_millis(wait));
        assert_eq!(read_object(&store).unwrap(), CONTENT);
        assert_eq!((first.lines().len(), second.lines().len()), (at_first, at_second));
    }
}

#[test]
fn server_errors_everywhere_are_unavailable() {
    let (server, result, requests) = read_from([Answer::status(500)]);
    assert_unavailable(result, &object_url(&server), "HTTP status 500");
    assert_eq!(requests, 1);
}

#[test]
fn a_server_that_had_what_another_lacks_is_used_first() {
    let (first, second) = (Server::start([Answer::status(404)]), Server::start([Answer::ok(CONTENT)]));
    let store = store_at(&[&first, &second]);
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!((first.lines().len(), second.lines().len()), (1, 3));
    assert_eq!(store.describe(&Key::Object(id())), object_url(&second));
}

#[test]
fn a_dead_mirror_costs_its_retries_once() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let store = store(&[&root(Server::refused()), &server.root()], options());
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!(server.lines(), [OBJECT; 3]);
}

#[test]
fn the_caller_can_switch_servers() {
    let (first, second) = (Server::start([Answer::ok(b"bad signature")]), Server::start([Answer::ok(b"good")]));
    let store = store_at(&[&first, &second]);
    assert_eq!(read_manifest(&store).unwrap(), b"bad signature");
    store.switch_server();
    assert_eq!(read_manifest(&store).unwrap(), b"good");
    assert_eq!((first.lines(), second.lines()), (vec![MANIFEST.to_owned()], vec![MANIFEST.to_owned()]));
}

#[test]
fn a_damaged_object_is_fetched_once_more_around_caches() {
    let (server, result, _) = read_from([Answer::ok(DAMAGED), Answer::ok(CONTENT)]);
    assert_eq!(result.unwrap(), CONTENT);
    assert_eq!(server.requests().iter().map(fresh).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn an_object_that_stays_damaged_is_taken_from_the_next_server() {
    let (bad, good) = (Server::start([Answer::ok(DAMAGED)]), Server::start([Answer::ok(CONTENT)]));
    assert_eq!(read_object(&store_at(&[&bad, &good])).unwrap(), CONTENT);
    assert_eq!(bad.requests().iter().map(fresh).collect::<Vec<_>>(), [false, true]);
    assert_eq!(good.requests().iter().map(fresh).collect::<Vec<_>>(), [false]);
}

#[test]
fn an_object_that_is_damaged_everywhere_is_a_hash_mismatch() {
    let (bad, missing) = (Server::start([Answer::ok(DAMAGED)]), Server::start([Answer::status(404)]));
    match read_object(&store_at(&[&bad, &missing])).unwrap_err() {
        Error::HashMismatch { what, expected, actual } => {
            assert_eq!((what, &*expected, &*actual), (object_url(&bad), ID, DAMAGED_HASH));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((bad.lines().len(), missing.lines().len()), (2, 1));
}

#[test]
fn a_content_length_that_is_too_small_yields_no_object() {
    let (_, result, requests) = read_from([Answer::with_length(10, CONTENT)]);
    assert!(matches!(result.unwrap_err(), Error::HashMismatch { .. }));
    assert_eq!(requests, 2);
}

#[test]
fn an_oversized_manifest_is_not_read() {
    let limit = 1 << 20;
    for (answer, expected) in [
        (Answer::ok(&vec![b'x'; limit]), None),
        (Answer::ok(&vec![b'x'; limit + 1]), Some(2)),
        (Answer::raw(200, &[], &vec![b'x'; limit + 1]), Some(2)),
        (Answer::with_length(1 << 40, b"x"), Some(2)),
    ] {
        let server = Server::start([answer]);
        let result = read_manifest(&store_at(&[&server]));
        match expected {
            None => assert_eq!(result.unwrap().len(), limit),
            Some(requests) => {
                let error = result.unwrap_err();
                assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
                assert_eq!(error.to_string(), format!("{}: larger than 1048576 bytes", manifest_url(&server)));
                assert_eq!(server.lines(), vec![MANIFEST; requests]);
            }
        }
    }
}

#[test]
fn an_endless_object_is_not_read() {
    let server = Server::start([Answer::raw(200, &[], &[b'x'; 5000])]);
    let store = store(&[&server.root()], HttpOptions { max_object_size: 4999, ..options() });
    let error = read_object(&store).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: larger than 4999 bytes", object_url(&server)));
}

#[test]
fn an_encoding_nobody_asked_for_is_not_decoded() {
    let encoded = |content| Answer::with_headers(200, &["Content-Encoding: gzip"], content);
    let server = Server::start([encoded(CONTENT)]);
    let error = read_manifest(&store_at(&[&server])).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: content encoding gzip was not asked for", manifest_url(&server)));
    assert_eq!(server.requests().iter().map(fresh).collect::<Vec<_>>(), [false, true]);

    // The hash of an object says more than a header.
    let (_, result, requests) = read_from([encoded(CONTENT)]);
    assert_eq!((result.unwrap().as_slice(), requests), (CONTENT, 1));
    let (server, result, _) = read_from([encoded(DAMAGED)]);
    let expected =
        format!("{} (content encoding gzip): content hash is {DAMAGED_HASH}, expected {ID}", object_url(&server));
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[test]
fn redirects_are_followed_only_when_wanted() {
    let target = Server::start([Answer::ok(CONTENT)]);
    let location = format!("Location: {}?secret=1", object_url(&target));
    let server = Server::start([Answer::with_headers(302, &[&location], b"")]);
    let error = read_object(&store_at(&[&server])).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("{}: HTTP status 302, an unwanted redirection", object_url(&server)));
    assert_eq!((server.lines().len(), target.lines().len()), (1, 0));

    let follow = HttpOptions { redirects: Redirects::Follow, ..options() };
    assert_eq!(read_object(&store(&[&server.root()], follow)).unwrap(), CONTENT);
    assert_eq!(target.lines(), [format!("{OBJECT}?secret=1")]);
}

#[test]
fn a_redirect_loop_ends_after_four() {
    let server = Server::start([Answer::with_headers(302, &["Location: ?secret=1"], b"")]);
    let follow = HttpOptions { redirects: Redirects::Follow, ..options() };
    let error = read_object(&store(&[&server.root()], follow)).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("{}: too many redirects", object_url(&server)));
    assert_eq!(server.lines().len(), 5);
}

#[test]
fn the_reflog_never_comes_from_a_cache() {
    let server = Server::start([Answer::ok(b"content")]);
    let store_ = store_at(&[&server]);
    for file in [NamedFile::Reflog, NamedFile::Manifest] {
        assert_eq!(store_.read(&file.into()).unwrap(), b"content");
    }
    let always = store(&[&server.root()], HttpOptions { fresh_named_files: true, ..options() });
    assert_eq!(read_manifest(&always).unwrap(), b"content");
    assert_eq!(server.requests().iter().map(fresh).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn sizes_are_asked_for_without_content() {
    let server =
        Server::start([Answer::ok(CONTENT), Answer::status(404), Answer::status(500), Answer::raw(200, &[], b"")]);
    let store = store_at(&[&server]);
    let size = || store.size(&Key::Object(id()));
    assert_eq!(size().unwrap(), Some(CONTENT.len() as u64));
    assert_eq!(size().unwrap(), None);
    assert!(matches!(size().unwrap_err(), Error::Unavailable { .. }));
    assert_eq!(size().unwrap_err().to_string(), format!("{}: the answer has no Content-Length", object_url(&server)));
    assert!(server.lines().iter().all(|line| *line == OBJECT.replace("GET", "HEAD")));
}

#[test]
fn a_proxy_gets_the_absolute_url_and_members_take_turns() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxies = [Server::start_proxy(), Server::start_proxy()];
    let chain = format!("http://{}|http://{};DIRECT", proxies[0].address, proxies[1].address);
    let store = store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..options() });
    for _ in 0..4 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    let line = format!("GET {}", object_url(&server));
    assert_eq!((proxies[0].lines(), proxies[1].lines()), (vec![line.clone(); 2], vec![line; 2]));
}

#[test]
fn a_dead_proxy_is_skipped_at_once_and_later_left_out() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::start_proxy();
    let chain = format!("http://{}|http://{}", Server::refused(), proxy.address);
    let patient =
        HttpOptions { backoff_initial: Duration::from_mins(1), backoff_max: Duration::from_mins(1), ..options() };
    let store = store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..patient });
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!(proxy.lines().len(), 3);
}

#[test]
fn a_dead_group_is_followed_by_the_next() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let chain = format!("http://{}|http://{};DIRECT", Server::refused(), Server::refused());
    let store = store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..options() });
    assert_eq!(read_object(&store).unwrap(), CONTENT);
    assert_eq!(server.lines(), [OBJECT]);
}

#[test]
fn dead_proxies_are_named_without_their_password() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::refused();
    let chain = format!("http://user:secret@{proxy}").parse().unwrap();
    let store = store(&[&server.root()], HttpOptions { proxies: chain, ..options() });
    let what = format!("{} through proxy http://{proxy}/", object_url(&server));
    assert_unavailable(read_object(&store), &what, "cannot connect: Connection refused");
    assert!(!format!("{store:?}").contains("secret"));
    assert!(server.lines().is_empty());
}

#[test]
fn what_a_proxy_says_of_itself_counts_against_it() {
    let server = Server::start([Answer::ok(CONTENT)]);
    for answer in [
        Answer::status(403),
        Answer::status(407),
        Answer::with_headers(502, &["X-Squid-Error: ERR_DNS_FAIL 0"], b""),
        Answer::with_headers(404, &["Proxy-Status: squid; error=dns_error"], b""),
    ] {
        let proxy = Server::start([answer]);
        let chain = format!("http://{};DIRECT", proxy.address).parse().unwrap();
        let store = store(&[&server.root()], HttpOptions { proxies: chain, ..options() });
        assert_eq!(read_object(&store).unwrap(), CONTENT);
        assert_eq!(proxy.lines(), [format!("GET {}", object_url(&server))]);
    }
}

#[test]
fn what_a_server_says_through_a_proxy_counts_against_the_server() {
    let (first, second) = (Server::start([Answer::status(500)]), Server::start([Answer::ok(CONTENT)]));
    let proxies = [Server::start_proxy(), Server::start_proxy()];
    let chain = format!("http://{};http://{}", proxies[0].address, proxies[1].address).parse().unwrap();
    let store = store(&[&first.root(), &second.root()], HttpOptions { proxies: chain, ..options() });
    assert_eq!(read_object(&store).unwrap(), CONTENT);
    assert_eq!((proxies[0].lines().len(), proxies[1].lines().len()), (2, 0));
}

#[test]
fn a_server_that_no_proxy_reaches_is_replaced() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::start_proxy();
    let chain = format!("http://{}", proxy.address).parse().unwrap();
    let store = store(&[&root(Server::refused()), &server.root()], HttpOptions { proxies: chain, ..options() });
    assert_eq!(read_object(&store).unwrap(), CONTENT);
    assert_eq!(proxy.lines().len(), 2);
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
fn a_certificate_is_trusted_only_if_told_so() {
    let (server, pem) = Server::start_tls(Answer::ok(CONTENT)).unwrap();
    let root = server.root().replace("http://127.0.0.1", "https://localhost");
    let error = read_object(&store(&[&root], options())).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate verify failed"), "{error}");
    assert_eq!(server.connections(), 1);

    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), pem).unwrap();
    let trusting = HttpOptions { ca_bundle: Some(bundle.path().to_owned()), ..options() };
    assert_eq!(read_object(&store(&[&root], trusting)).unwrap(), CONTENT);
    assert_eq!(server.lines(), [OBJECT]);
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

fn any_answer() -> impl Strategy<Value = Answer> {
    let cut = 0..CONTENT.len();
    prop_oneof![
        2 => Just(Answer::ok(CONTENT)),
        1 => cut.clone().prop_map(|at| Answer::with_length(CONTENT.len(), &CONTENT[..at])),
        1 => cut.clone().prop_map(|at| Answer::raw(200, &[], &CONTENT[..at])),
        1 => cut.clone().prop_map(|at| Answer::with_length(at, CONTENT)),
        1 => (cut, 0..8_u8).prop_map(|(at, bit)| {
            let mut content = CONTENT.to_vec();
            content[at] ^= 1 << bit;
            Answer::ok(&content)
        }),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| Answer::ok(&bytes)),
        1 => prop::sample::select(vec![301_u16, 400, 403, 404, 429, 500, 503]).prop_map(Answer::status),
        1 => Just(Answer::with_headers(200, &["Content-Encoding: gzip"], CONTENT)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_returned_has_the_hash_that_was_asked_for(
        first in prop::collection::vec(any_answer(), 1..5),
        second in prop::collection::vec(any_answer(), 1..5),
    ) {
        let servers = [Server::start(first), Server::start(second)];
        let store = store_at(&[&servers[0], &servers[1]]);
        for _ in 0..2 {
            if let Ok(bytes) = read_object(&store) {
                prop_assert_eq!(Algorithm::Sha1.hash(&bytes).to_string(), ID);
            }
            if let Ok(mut reader) = store.open(&Key::Object(id())) {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                prop_assert_eq!(Algorithm::Sha1.hash(&bytes).to_string(), ID);
            }
        }
    }
}
