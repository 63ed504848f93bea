//! What one server can answer, and how often it is asked.

use std::io::Read as _;
use std::time::{Duration, Instant};

use super::server::{Answer, Server, root};
use super::{
    CONTENT, DAMAGED, DAMAGED_HASH, ID, MANIFEST, OBJECT, assert_unavailable, fresh, id, manifest_url, object_url,
    options, read_from, read_manifest, read_object, store, store_at,
};
use cvmfs_core::error::Error;
use cvmfs_core::fetch::{HttpOptions, Redirects};
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::storage::{Key, NamedFile, ReadStore as _};
use proptest::prelude::*;

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

/// At least 10 milliseconds, 20, 40, 80, 160; also for a proxy that is the only way.
#[test]
fn waits_between_repetitions_grow() {
    let dead = Server::refused();
    for proxies in ["DIRECT".to_owned(), format!("http://{dead}")] {
        let patient = HttpOptions {
            proxies: proxies.parse().unwrap(),
            retries: 5,
            backoff_initial: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            ..options()
        };
        let started = Instant::now();
        assert!(matches!(read_object(&store(&[&root(dead)], patient)), Err(Error::Unavailable { .. })));
        assert!(started.elapsed() >= Duration::from_millis(310), "{proxies}: {:?}", started.elapsed());
    }
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
    assert_unavailable(result, &object_url(&server), "less than 1000 bytes/s for 1.5s");
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
fn server_errors_everywhere_are_unavailable() {
    let (server, result, requests) = read_from([Answer::status(500)]);
    assert_unavailable(result, &object_url(&server), "HTTP status 500");
    assert_eq!(requests, 1);
}

#[test]
fn a_damaged_object_is_fetched_once_more_around_caches() {
    let (server, result, _) = read_from([Answer::ok(DAMAGED), Answer::ok(CONTENT)]);
    assert_eq!(result.unwrap(), CONTENT);
    assert_eq!(server.requests().iter().map(fresh).collect::<Vec<_>>(), [false, true]);
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

/// Certificates and meta info are read into memory.
#[test]
fn small_objects_are_small() {
    let server = Server::start([Answer::with_length((16 << 20) + 1, b"x")]);
    let store = store_at(&[&server]);
    for kind in [ObjectKind::Certificate, ObjectKind::Metainfo] {
        let error = store.read(&ObjectId { kind, ..id() }.into()).unwrap_err();
        assert!(error.to_string().ends_with("larger than 16777216 bytes"), "{error}");
    }
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
