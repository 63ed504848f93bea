//! A registry that is slow, rude, broken or dishonest.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cvmfs_core::error::Error;
use cvmfs_ingest::image::Descriptor;
use cvmfs_ingest::image::digest::Digest;
use cvmfs_ingest::image::manifest::{Platforms, media_type, resolve};
use cvmfs_ingest::image::registry::{Proxies, Registries, RegistryOptions, Repository};
use cvmfs_ingest::image::source::ImageStore as _;
use serde_json::json;

use super::servers::{Reply, Request, Server, basic};
use super::support::read;

/// Options that do not wait for long.
fn hasty() -> RegistryOptions {
    RegistryOptions {
        backoff_initial: Duration::from_millis(2),
        backoff_max: Duration::from_millis(5),
        ..RegistryOptions::default()
    }
}

fn repository(server: &Server, options: RegistryOptions) -> Repository {
    let name = format!("http://{}/team/app:1", server.address);
    Registries::new(options).unwrap().repository(&name.parse().unwrap()).unwrap()
}

/// The sixteen times sixty-four KiB that blobs here are.
fn content() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect()
}

fn descriptor(content: &[u8]) -> Descriptor {
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    Descriptor { media_type, digest: Digest::of(content), size: content.len() as u64, urls: Vec::new() }
}

/// What follows the byte that a request begins at.
fn ranged(request: &Request, content: &[u8]) -> Reply {
    let Some(range) = request.header("range") else { return Reply::bytes(content) };
    let start: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    let last = content.len() - 1;
    Reply { status: 206, ..Reply::bytes(&content[start..]) }
        .with("Content-Range", format!("bytes {start}-{last}/{}", content.len()))
}

#[test]
fn broken_downloads_go_on_where_they_broke() {
    let server = Server::start(|request| ranged(request, &content()).cut(300_000));
    let store = repository(&server, hasty());
    assert!(read(&store, &descriptor(&content())) == content());
    let ranges: Vec<_> =
        server.requests().iter().map(|request| request.header("range").unwrap_or("-").to_owned()).collect();
    // 1 MiB in pieces of 300,000 bytes. The last bytes of a connection may be lost with it, so it may be some more.
    assert!((4..=6).contains(&ranges.len()) && ranges[0] == "-" && ranges[1].starts_with("bytes="), "{ranges:?}");
}

/// A connection that brought much is not held against the next one.
#[test]
fn downloads_that_get_on_may_break_often() {
    let long = content().repeat(8);
    let blob = descriptor(&long);
    let server = Server::start({
        let long = long.clone();
        move |request| ranged(request, &long).cut(3 << 20)
    });
    assert!(read(&repository(&server, RegistryOptions { retries: 1, ..hasty() }), &blob) == long);
    assert!(server.requests().len() > 2);
}

#[test]
fn downloads_without_ranges_begin_again() {
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |_| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::bytes(content()).cut(300_000),
        1 => Reply::bytes(content()).cut(600_000),
        _ => Reply::bytes(content()),
    });
    assert!(read(&repository(&server, hasty()), &descriptor(&content())) == content());
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn downloads_that_do_not_get_on_end() {
    let server = Server::start(|request| match request.header("range") {
        None => ranged(request, &content()).cut(300_000),
        Some(_) => ranged(request, &content()).cut(0),
    });
    let store = repository(&server, RegistryOptions { retries: 2, ..hasty() });
    let mut bytes = Vec::new();
    let error = store.blob(&descriptor(&content())).unwrap().read_to_end(&mut bytes).unwrap_err();
    let error = error.downcast::<Error>().unwrap();
    assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains("2 repetitions")), "{error}");
    assert_eq!(server.requests().len(), 3);
    // A range that is not the one that was asked for.
    let server = Server::start(|request| match request.header("range") {
        None => ranged(request, &content()).cut(300_000),
        Some(_) => Reply { status: 206, ..Reply::bytes(b"x") }.with("Content-Range", "bytes 5-5/6"),
    });
    let mut blob = repository(&server, hasty()).blob(&descriptor(&content())).unwrap();
    let error = blob.read_to_end(&mut Vec::new()).unwrap_err().downcast::<Error>().unwrap();
    assert!(matches!(&error, Error::Malformed { .. }), "{error}");
}

#[test]
fn a_blob_has_the_bytes_that_its_descriptor_says() {
    let server = Server::start(|_| Reply::bytes(content()));
    let store = repository(&server, RegistryOptions { retries: 1, ..hasty() });
    let whole = descriptor(&content());
    assert_eq!(read(&store, &Descriptor { size: 10, ..whole.clone() }), content()[..10]);
    let longer = store.blob(&Descriptor { size: whole.size + 1, ..whole.clone() });
    let error = longer.err().unwrap().to_string();
    assert!(error.contains("it has 1048576 bytes there, not 1048577"), "{error}");
    assert_eq!(server.requests().len(), 2);
    // The reason stays the same, however often somebody asks.
    let server = Server::start(|request| ranged(request, &content()).cut(10));
    let mut broken = repository(&server, RegistryOptions { retries: 0, ..hasty() }).blob(&whole).unwrap();
    let mut error = || broken.read_to_end(&mut Vec::new()).unwrap_err().to_string();
    let (first, second) = (error(), error());
    assert!(first == second && first.contains("also after 0 repetitions"), "{first}, then {second}");
}

#[test]
fn busy_registries_are_asked_later() {
    // 1. Two that are busy: one says for how long, the other does not. Where a machine is slow, it is slow for both.
    let told = Server::start(|_| Reply::status(429).with("Retry-After", "200"));
    let untold = Server::start(|_| Reply::status(503));
    let patient = RegistryOptions { retries: u32::MAX, ..hasty() };
    let cancel = patient.cancel.clone();
    let store = repository(&told, patient);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| store.tags());
        while told.requests().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        repository(&untold, RegistryOptions { retries: 50, ..hasty() }).tags().unwrap_err();
        let asked = (told.requests().len(), untold.requests().len());
        cancel.cancel();
        assert!(matches!(waits.join().unwrap().unwrap_err(), Error::Cancelled));
        assert_eq!(asked, (1, 51));
    });

    // 2. It is ready sooner than it would be asked on our own account, which is in half a day.
    let tries = AtomicUsize::new(0);
    let server =
        Server::start(move |_| match [429, 503, 408, 500, 502, 504].get(tries.fetch_add(1, Ordering::SeqCst)) {
            Some(status) => Reply::status(*status).with("Retry-After", "0"),
            None => Reply::json(&json!({"tags": ["b", "a"]})),
        });
    let day = Duration::from_hours(24);
    let slow = RegistryOptions { retries: 6, backoff_initial: day, backoff_max: day, ..RegistryOptions::default() };
    let cancel = slow.cancel.clone();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    // Whoever waits for that is stopped some time.
    std::thread::spawn(move || {
        let _ = is_done.recv_timeout(Duration::from_mins(5));
        cancel.cancel();
    });
    assert_eq!(repository(&server, slow).tags().unwrap(), ["a", "b"]);
    drop(done);
    assert_eq!(server.requests().len(), 7);

    let server = Server::start(|_| Reply::status(429).with("Retry-After", "3600"));
    let options = RegistryOptions { retries: 2, retry_after_max: Duration::from_millis(10), ..hasty() };
    let error = repository(&server, options).tags().unwrap_err();
    assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains("429")), "{error}");
    assert_eq!(server.requests().len(), 3);

    let server = Server::start(|_| Reply {
        status: 403,
        ..Reply::json(&json!({"errors": [{"code": "DENIED", "message": "no"}]}))
    });
    let error = repository(&server, hasty()).tags().unwrap_err();
    assert!(
        matches!(&error, Error::Refused { reason, .. } if reason == "HTTP status 403: DENIED no (without credentials)"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn whoever_waits_can_be_stopped() {
    let server = Server::start(|_| Reply::status(429).with("Retry-After", "60"));
    let options = hasty();
    let cancel = options.cancel.clone();
    let store = repository(&server, options);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| store.tags());
        while server.requests().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        cancel.cancel();
        assert!(matches!(waits.join().unwrap().unwrap_err(), Error::Cancelled));
    });
    assert!(started.elapsed() < Duration::from_secs(50));
}

#[test]
fn dishonest_digests_are_noticed() {
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}).to_string();
    let manifest = json!({
        "schemaVersion": 2, "layers": [],
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(config.as_bytes()).to_string(), "size": config.len()},
    })
    .to_string();
    let honest = Digest::of(manifest.as_bytes());
    // What is wrong, and the store that does it.
    let start = |config: String, said: Option<Digest>| {
        let manifest = manifest.clone();
        Server::start(move |request| {
            let manifest = || Reply::bytes(manifest.clone());
            match said {
                _ if request.target.contains("/blobs/") => Reply::bytes(config.clone()),
                Some(said) => manifest().with("Docker-Content-Digest", said.to_string()),
                None => manifest(),
            }
        })
    };
    let resolved =
        |server: &Server, reference: &str| resolve(&repository(server, hasty()), reference, &Platforms::default());
    let good = start(config.clone(), Some(honest));
    assert_eq!(resolved(&good, "1").unwrap()[0].manifest.digest, honest);
    assert_eq!(repository(&good, hasty()).digest("1").unwrap(), Some(honest));
    assert_eq!(repository(&start(config.clone(), None), hasty()).digest("1").unwrap(), None);

    let other = Digest::of(b"other");
    let is_mismatch = |error: &Error| matches!(error, Error::HashMismatch { .. });
    let error = resolved(&start(config.clone(), Some(other)), "1").unwrap_err();
    assert!(is_mismatch(&error), "{error}");
    let error = resolved(&good, &other.to_string()).unwrap_err();
    assert!(is_mismatch(&error), "{error}");
    let error = resolved(&start(config.replace("amd64", "AMD64"), None), "1").unwrap_err();
    assert!(is_mismatch(&error), "{error}");
}

#[test]
fn credentials_do_not_follow_redirections() {
    let elsewhere = Arc::new(Server::start(|request| match &request.target[..] {
        // Another host that would like to know.
        "/challenge" => {
            let realm = format!("http://{}/token", request.header("host").unwrap_or_default());
            Reply::status(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
        }
        _ => Reply::bytes(content()),
    }));
    let target = Arc::clone(&elsewhere);
    let server = Server::start(move |request| match request.header("authorization") {
        Some(value) if value == basic("robot", "secret") => {
            let path = if request.target.contains("/blobs/") { "/signed?key=1" } else { "/challenge" };
            Reply::status(307).with("Location", format!("http://{}{path}", target.address))
        }
        Some(_) => Reply::status(403),
        None => Reply::status(401).with("WWW-Authenticate", "Basic realm=\"here\""),
    });
    let variables = |name: &str| match name {
        "DUCC_AUTH_REGISTRIES" => Some("X".to_owned()),
        "DUCC_X_IDENT" => Some("127.0.0.1".to_owned()),
        "DUCC_X_USER" => Some("robot".to_owned()),
        "DUCC_X_PASS" => Some("secret".to_owned()),
        _ => None,
    };
    let store = repository(&server, RegistryOptions::from_environment(&variables).unwrap());
    assert!(read(&store, &descriptor(&content())) == content());
    let error = store.manifest("1").unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("401")), "{error}");
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
    // The registry did get them.
    assert!(server.requests().iter().any(|request| request.header("authorization").is_some()));

    // Layers that are elsewhere by their descriptor: neither credentials, nor a way through the registry.
    let before = server.requests().len();
    let urls = vec![
        format!("http://{}/missing-scheme", elsewhere.address).replace("http", "ftp"),
        format!("http://{}/layer", elsewhere.address),
    ];
    assert!(read(&store, &Descriptor { urls, ..descriptor(&content()) }) == content());
    assert_eq!(server.requests().len(), before);
    assert!(elsewhere.requests()[2].header("authorization").is_none());
}

#[test]
fn tokens_that_end_are_fetched_again() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let given = Arc::clone(&tokens);
    let service = Server::start(move |request| {
        assert_eq!(request.query("scope").collect::<Vec<_>>(), ["repository:team/app:pull", "other:x:y"]);
        assert_eq!(request.query("service").collect::<Vec<_>>(), ["a,b=c"]);
        let number = given.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::json(&json!({"token": format!("t{number}"), "expires_in": if number == 1 { 0 } else { 300 }}))
    });
    // Takes only the newest token.
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"a,b=c\",scope=\"repository:team/app:pull other:x:y\"",
        service.address
    );
    let newest = Arc::clone(&tokens);
    let server = Server::start(move |request| {
        let expected = format!("Bearer t{}", newest.load(Ordering::SeqCst));
        match request.header("authorization") {
            Some(value) if value == expected => Reply::json(&json!({"tags": null})),
            _ => Reply::status(401).with("WWW-Authenticate", challenge.clone()),
        }
    });
    let store = repository(&server, hasty());
    // The first token ends at once, the second lasts.
    for expected in [1, 2, 2] {
        assert!(store.tags().unwrap().is_empty());
        assert_eq!(tokens.load(Ordering::SeqCst), expected);
    }
    // It is taken back.
    tokens.fetch_add(1, Ordering::SeqCst);
    assert!(store.tags().unwrap().is_empty());
    assert_eq!(service.requests().len(), 3);

    // One that is taken back before it is used, of a service that is busy at first.
    let number = AtomicUsize::new(0);
    let service = Server::start(move |_| match number.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(503),
        number => Reply::json(&json!({"token": format!("t{}", number - 1)})),
    });
    let challenge = format!("Bearer realm=\"http://{}/token\"", service.address);
    let server = Server::start(move |request| match request.header("authorization") {
        Some("Bearer t1") => Reply::json(&json!({"tags": ["a"]})),
        _ => Reply::status(401).with("WWW-Authenticate", challenge.clone()),
    });
    assert_eq!(repository(&server, hasty()).tags().unwrap(), ["a"]);
    assert_eq!(service.requests().len(), 3);
}

#[test]
fn tags_come_in_pages() {
    let server = Server::start(|request| {
        let number = request.query("last").next().map_or(0, |last| last.parse().unwrap());
        let tags: Vec<_> = (number..number + 3).map(|number| format!("t{number:02}")).collect();
        let reply = Reply::json(&json!({"name": "team/app", "tags": tags}));
        match number + 3 {
            12 => reply,
            next => reply.with("Link", format!("</v2/team/app/tags/list?last={next}&n=3>; rel=\"next\"")),
        }
    });
    let expected: Vec<_> = (0..12).map(|number| format!("t{number:02}")).collect();
    assert_eq!(repository(&server, hasty()).tags().unwrap(), expected);
    assert_eq!(server.requests().len(), 4);

    let endless =
        Server::start(|_| Reply::json(&json!({"tags": []})).with("Link", "</v2/team/app/tags/list?x>; rel=\"next\""));
    assert!(matches!(repository(&endless, hasty()).tags().unwrap_err(), Error::Malformed { .. }));
    let away = Server::start(|_| Reply::json(&json!({"tags": []})).with("Link", "<http://127.0.0.2/x>; rel=\"next\""));
    assert!(
        matches!(repository(&away, hasty()).tags().unwrap_err(), Error::Malformed { reason, .. } if reason.contains("another host"))
    );
}

#[test]
fn requests_to_a_host_have_a_limit() {
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_millis(20));
        Reply::bytes(vec![7; 1000])
    });
    let store = repository(&server, RegistryOptions { requests_per_host: 2, ..hasty() });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| read(&store, &descriptor(&[7; 1000])));
        }
    });
    assert_eq!(server.requests().len(), 8);
    assert_eq!(server.busiest.load(Ordering::SeqCst), 2);
}

#[test]
fn proxies_are_gone_through() {
    let proxy = Server::start(|_| Reply::json(&json!({"tags": ["1"]})));
    let with = |none: Option<&str>| {
        let proxies =
            Proxies { http: Some(format!("http://{}", proxy.address)), https: None, none: none.map(Into::into) };
        let registries = Registries::new(RegistryOptions { proxies, retries: 0, ..hasty() }).unwrap();
        registries.repository(&"http://registry.invalid/team/app:1".parse().unwrap()).unwrap()
    };
    assert_eq!(with(None).tags().unwrap(), ["1"]);
    assert_eq!(proxy.requests()[0].target, "http://registry.invalid/v2/team/app/tags/list?n=1000");
    let error = with(Some("example.org,registry.invalid")).tags().unwrap_err();
    assert!(matches!(&error, Error::Unavailable { .. }), "{error}");
    assert_eq!(proxy.requests().len(), 1);
}

#[test]
fn answers_without_end_are_cut_short() {
    let server = Server::start(|_| Reply::bytes(vec![b' '; 5 << 20]));
    assert!(
        matches!(repository(&server, hasty()).manifest("1").unwrap_err(), Error::Malformed { reason, .. } if reason.contains("larger"))
    );
}

#[test]
fn a_registry_may_not_know_the_question_for_a_digest() {
    let server = Server::start(|_| Reply::status(405));
    assert_eq!(repository(&server, hasty()).digest("1").unwrap(), None);

    // Why it refuses, it says only to those who ask for more.
    let complaint = json!({"errors": [{"code": "DENIED", "message": "not yours"}]});
    let server = Server::start(move |request| match &request.method[..] {
        "HEAD" => Reply::status(403),
        _ => Reply { status: 403, ..Reply::json(&complaint) },
    });
    let store = repository(&server, hasty());
    assert_eq!(store.digest("1").unwrap(), None);
    let error = resolve(&store, "1", &Platforms::All).unwrap_err().to_string();
    assert!(error.contains("DENIED not yours"), "{error}");
    let server = Server::start(|_| Reply::bytes(*b"<html>"));
    let error = resolve(&repository(&server, hasty()), "1", &Platforms::All).unwrap_err().to_string();
    assert!(error.contains("it is no JSON: "), "{error}");
}
