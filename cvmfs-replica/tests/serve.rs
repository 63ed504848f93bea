//! The server as its clients see it, byte for byte.

mod harness;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use cvmfs_core::error::Error;
use cvmfs_core::hash::ObjectKind;
use cvmfs_replica::serve::{Repositories, ServeOptions, listen, serve};

use harness::{Client, REPOSITORY, Reply, Server, Site, noise};

/// More than the buffers of both sides of a connection can hide.
const LARGE: usize = 32 << 20;

fn patient() -> ServeOptions {
    ServeOptions { shutdown_grace: Duration::from_mins(1), ..ServeOptions::default() }
}

/// Seconds between the `Date` and the `Expires` of a response.
fn lifetime(reply: &Reply) -> u64 {
    let date = |name| httpdate::parse_http_date(reply.header(name)).expect("a date");
    date("expires").duration_since(date("date")).expect("not before").as_secs()
}

#[test]
fn every_published_file_has_its_type_and_lifetime() {
    let site = Site::new();
    let object = site.put_object(ObjectKind::Catalog, b"catalog");
    let empty = site.put_object(ObjectKind::File, b"");
    let name = object.replacen("data/", ".cvmfsalt-", 1).replace('/', "");
    symlink(&object, site.storage().join(&name)).unwrap();
    for file in [".cvmfswhitelist", ".cvmfswhitelist.pkcs7", ".cvmfsreflog", ".cvmfs_master_replica"] {
        site.put(file, file.as_bytes());
    }
    for file in [".cvmfs_status.json", ".cvmfs_last_snapshot", ".cvmfs_is_snapshotting", "stats/stats.db"] {
        site.put(file, file.as_bytes());
    }
    for file in ["repositories.json", "meta.json"] {
        site.put(&format!("../info/v1/{file}"), file.as_bytes());
    }
    let server = Server::start(&site);
    for (path, content_type, seconds, body) in [
        (".cvmfspublished", "application/x-cvmfs", 61, "manifest of revision 1\n"),
        (".cvmfswhitelist", "application/x-cvmfs", 61, ".cvmfswhitelist"),
        (".cvmfswhitelist.pkcs7", "application/x-cvmfs", 61, ".cvmfswhitelist.pkcs7"),
        (".cvmfsreflog", "application/x-cvmfs", 61, ".cvmfsreflog"),
        (".cvmfs_master_replica", "application/x-cvmfs", 61, ".cvmfs_master_replica"),
        (".cvmfs_status.json", "application/x-cvmfs", 61, ".cvmfs_status.json"),
        (".cvmfs_last_snapshot", "application/x-cvmfs", 61, ".cvmfs_last_snapshot"),
        (".cvmfs_is_snapshotting", "application/x-cvmfs", 61, ".cvmfs_is_snapshotting"),
        (&name, "application/x-cvmfs", 61, "catalog"),
        (&object, "application/octet-stream", 259_200, "catalog"),
        (&empty, "application/octet-stream", 259_200, ""),
        ("stats/stats.db", "application/octet-stream", 61, "stats/stats.db"),
        ("../info/v1/repositories.json", "application/json", 61, "repositories.json"),
        ("../info/v1/meta.json", "application/json", 61, "meta.json"),
        (".cvmfspublished?time=1", "application/x-cvmfs", 61, "manifest of revision 1\n"),
    ] {
        let target = match path.strip_prefix("../") {
            Some(path) => format!("/cvmfs/{path}"),
            None => format!("/cvmfs/{REPOSITORY}/{path}"),
        };
        let mut client = server.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let reply = client.reply();
        assert_eq!((reply.version.as_str(), reply.status), ("HTTP/1.1", 200), "{path}");
        assert_eq!(reply.text(), body, "{path}");
        assert_eq!(reply.header("content-type"), content_type, "{path}");
        assert_eq!(reply.header("content-length"), body.len().to_string(), "{path}");
        assert_eq!(reply.header("cache-control"), format!("max-age={seconds}"), "{path}");
        assert_eq!(lifetime(&reply), seconds, "{path}");
        assert_eq!(reply.header("server"), concat!("cvmfs-replica/", env!("CARGO_PKG_VERSION")));
        assert_eq!(reply.header("accept-ranges"), "bytes");
        assert_eq!(reply.header("content-encoding"), "");
        assert_eq!(reply.header("content-security-policy").contains("sandbox"), path.starts_with("stats/"));
        assert_eq!(reply.header("transfer-encoding"), "");
    }
    let tag = format!("\"{}\"", &name[".cvmfsalt-".len()..]);
    assert_eq!(server.get(&object).header("etag"), tag);
    assert_eq!(server.get(&name).header("etag"), tag);
}

#[test]
fn what_is_missing_is_not_missing_for_long() {
    let site = Site::new();
    let server = Server::start(&site);
    let object = "data/ff/049c626904064d641feca0e9936e5b211807c6";
    for path in [object, ".cvmfswhitelist", ".cvmfsempty", ".cvmfsalt-ff049c626904064d641feca0e9936e5b211807c6"] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.header("cache-control")), (404, "max-age=10"), "{path}");
        assert_eq!((lifetime(&reply), reply.text().as_str()), (10, "Not Found\n"), "{path}");
    }
    site.put(object, b"now it is here");
    assert_eq!(server.get(object).text(), "now it is here");
}

#[test]
fn nothing_outside_the_published_files_is_reachable() {
    let site = Site::new();
    let server = Server::start(&site);
    let object = site.put_object(ObjectKind::File, b"object");
    let (shard, rest) = (&object[5..7], &object[8..]);
    for secret in ["data/txn/upload", "keys.masterkey", ".htaccess", "data/ff/short", "stats/.hidden", "x/.cvmfsreflog"]
    {
        site.put(secret, b"secret");
    }
    std::fs::write(site.root().join("secret"), "secret").unwrap();
    std::fs::create_dir_all(site.root().join("srv/cvmfs/unpublished.org/data/ff")).unwrap();
    std::fs::write(site.root().join("srv/cvmfs/unpublished.org/.cvmfsreflog"), "secret").unwrap();
    std::fs::write(site.root().join("srv/cvmfs/.cvmfspublished"), "secret").unwrap();
    symlink(site.root().join("secret"), site.storage().join(".cvmfswhitelist")).unwrap();
    symlink("../../../secret", site.storage().join("stats/link.db")).unwrap();
    symlink("../../../../secret", site.storage().join(format!(".cvmfsalt-{shard}{rest}"))).unwrap();
    symlink("/", site.storage().join("stats/root")).unwrap();

    let repository = format!("/cvmfs/{REPOSITORY}");
    let below = [
        "",
        "/",
        "/.",
        "/..",
        "/data",
        "/data/",
        "/data/txn",
        "/data/txn/upload",
        "/data/ff/short",
        "/data/../.cvmfspublished",
        "/../../../secret",
        "/%2e%2e/%2e%2e/%2e%2e/secret",
        "/..%2f..%2f..%2fsecret",
        "/..%2F..%2F..%2Fsecret",
        "/%2e%2e%2f%2e%2e%2f%2e%2e%2fsecret",
        "/..%252f..%252f..%252fsecret",
        "/..%c0%af..%c0%afsecret",
        "/..\\..\\..\\secret",
        "/..%5c..%5c..%5csecret",
        "/....//....//....//secret",
        "/..;/..;/..;/secret",
        "/stats/../../../../secret",
        "/stats/..%2f..%2f..%2f..%2fsecret",
        "/stats/.hidden",
        "/stats/",
        "/stats",
        "/stats/link.db",
        "/stats/root/etc/passwd",
        "/stats//stats.db",
        "//.cvmfspublished",
        "/./.cvmfspublished",
        "/%2ecvmfspublished",
        "/.cvmfspublished%00",
        "/.cvmfspublished%00.json",
        "/.cvmfspublished/",
        "/.cvmfspublished/..",
        "/.cvmfspublished%20",
        "/.cvmfspublished;x",
        "/.cvmfswhitelist",
        "/.htaccess",
        "/keys.masterkey",
        "/x/.cvmfsreflog",
        "/data//ff/short",
        "/data/%66%66/short",
        "/.cvmfsalt-../../../secret",
        "/.cvmfsalt-",
    ];
    let mut targets: Vec<String> = below.iter().map(|path| format!("{repository}{path}")).collect();
    targets.push(format!("{repository}/.cvmfsalt-{shard}{rest}"));
    targets.push(format!("{repository}/data/{shard}/../{shard}/{rest}"));
    targets.push(format!("{repository}/data/{shard}/{rest}%00"));
    targets.push(format!("{repository}/data/{shard}%2f{rest}"));
    targets.extend(
        [
            "/secret",
            "//secret",
            "/cvmfs",
            "/cvmfs/",
            "/cvmfs/.cvmfspublished",
            "/cvmfs/./.cvmfspublished",
            "/cvmfs/../secret",
            "/cvmfs/%2e%2e/secret",
            "/cvmfs//.cvmfspublished",
            "/cvmfs/unpublished.org/.cvmfsreflog",
            "/cvmfs/info/v1/../../test.example.org/keys.masterkey",
            "/cvmfs/info/v1/other.json",
            "/cvmfs/info/v1",
            "/CVMFS/test.example.org/.cvmfspublished",
            "/cvmfs/TEST.example.org/.cvmfspublished",
            "secret",
            "../secret",
            "file:///etc/passwd",
            "http://localhost/secret",
            "http://localhost/../secret",
            "http://localhost/cvmfs/test.example.org/..%2f..%2f..%2fsecret",
            "/etc/passwd",
            "//etc/passwd",
            "*",
        ]
        .map(str::to_owned),
    );
    for raw in ["/.cvmfspublished\0", "/\0/../secret", "/.cvmfspublished\0.json", "/\x01", "/\u{7f}"] {
        targets.push(format!("{repository}{raw}"));
    }
    assert!(targets.len() > 70, "{}", targets.len());
    for target in targets {
        let mut client = server.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        let reply = client.head().unwrap_or_else(|| panic!("no answer to {target:?}"));
        let body = String::from_utf8(client.read(1000)).unwrap();
        assert!(matches!(reply.status, 400 | 404), "{target:?} got {} {body:?}", reply.status);
        assert!(matches!(body.as_str(), "" | "Not Found\n"), "{target:?} got {body:?}");
    }
    assert_eq!(server.get(&object).text(), "object");
}

#[test]
fn proxies_may_name_the_host_in_the_request_line() {
    let site = Site::new();
    let server = Server::start(&site);
    let mut client = server.connect();
    for host in ["localhost", "localhost:8000", "[::1]:80", "stratum1.example.org"] {
        client.send(format!("GET http://{host}/cvmfs/{REPOSITORY}/.cvmfspublished HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let reply = client.reply();
        assert_eq!((reply.status, reply.text().as_str()), (200, "manifest of revision 1\n"), "{host}");
    }
}

#[test]
fn only_reading_is_allowed() {
    let site = Site::new();
    let server = Server::start(&site);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get"] {
        let reply = server.ask(method, ".cvmfspublished", "");
        assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    assert_eq!(server.get(".cvmfspublished").text(), "manifest of revision 1\n");
}

#[test]
fn head_is_get_without_body() {
    let site = Site::new();
    let large = site.put_object(ObjectKind::File, &noise(300_000, 1));
    let server = Server::start(&site);
    // A range has no meaning for HEAD, and a condition the same as for GET.
    for (path, headers) in [
        (".cvmfspublished", ""),
        (&large, ""),
        (".cvmfsreflog", ""),
        ("api/v1.0/geo/p/a,b", ""),
        (&large, "If-None-Match: *\r\n"),
    ] {
        let undated = |mut reply: Reply| {
            reply.headers.retain(|(name, _)| name != "Date" && name != "Expires");
            reply.body.clear();
            reply
        };
        let head = server.ask("HEAD", path, headers);
        assert_eq!(undated(head), undated(server.ask("GET", path, headers)), "{path}");
    }
    let head = server.ask("HEAD", &large, "Range: bytes=0-9\r\n");
    assert_eq!((head.status, head.header("content-length")), (200, "300000"));

    let mut client = server.connect();
    let request = format!("HEAD /cvmfs/{REPOSITORY}/{large} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(2);
    client.send(request);
    assert_eq!((client.reply_to("HEAD").status, client.reply_to("HEAD").status), (200, 200));
}

#[test]
fn ranges_are_cut_out_exactly() {
    let site = Site::new();
    let (small, large) = (noise(1000, 2), noise(1_000_000, 3));
    let server = Server::start(&site);
    for content in [small, large] {
        let path = site.put_object(ObjectKind::Chunk, &content);
        let size = content.len();
        for (range, status, start, end) in [
            ("bytes=0-0".to_owned(), 206, 0, 1),
            ("bytes=10-19".to_owned(), 206, 10, 20),
            ("bytes=-10".to_owned(), 206, size - 10, size),
            ("bytes=500-".to_owned(), 206, 500, size),
            (format!("bytes=0-{size}"), 206, 0, size),
            (format!("bytes={}-{}", size - 1, size - 1), 206, size - 1, size),
            (format!("bytes=1-{}", size - 2), 206, 1, size - 1),
            (format!("bytes={size}-"), 416, 0, 0),
            ("bytes=-0".to_owned(), 416, 0, 0),
            ("bytes=0-1,5-6".to_owned(), 200, 0, size),
            ("bytes=5-4".to_owned(), 200, 0, size),
            ("chapters=1-2".to_owned(), 200, 0, size),
        ] {
            let reply = server.ask("GET", &path, &format!("Range: {range}\r\n"));
            assert_eq!(reply.status, status, "{range}");
            let content_range = match status {
                206 => format!("bytes {start}-{}/{size}", end - 1),
                416 => format!("bytes */{size}"),
                _ => String::new(),
            };
            assert_eq!(reply.header("content-range"), content_range, "{range}");
            assert!(reply.body == content[start..end], "{range}");
        }
        let tag = server.get(&path).header("etag").to_owned();
        for (validator, status) in [(tag.as_str(), 206), ("\"other\"", 200)] {
            let reply = server.ask("GET", &path, &format!("Range: bytes=0-9\r\nIf-Range: {validator}\r\n"));
            assert_eq!(reply.status, status, "{validator}");
        }
    }
}

#[test]
fn a_current_copy_is_confirmed_and_an_old_one_replaced() {
    let site = Site::new();
    let object = site.put_object(ObjectKind::File, b"object");
    let server = Server::start(&site);
    let yesterday = SystemTime::now() - Duration::from_hours(24);
    let manifest = std::fs::File::open(site.storage().join(".cvmfspublished")).unwrap();
    manifest.set_modified(yesterday).unwrap();
    for path in [".cvmfspublished", &object] {
        let first = server.get(path);
        for header in [
            format!("If-None-Match: {}\r\n", first.header("etag")),
            format!("If-None-Match: \"a\", W/{}\r\n", first.header("etag")),
            "If-None-Match: *\r\n".to_owned(),
            format!("If-Modified-Since: {}\r\n", first.header("last-modified")),
        ] {
            let reply = server.ask("GET", path, &header);
            assert_eq!((reply.status, reply.header("content-length")), (304, ""), "{header}");
            assert_eq!(reply.header("etag"), first.header("etag"));
            assert_eq!(reply.header("cache-control"), first.header("cache-control"));
        }
        for header in ["If-None-Match: \"a\"\r\n", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n"] {
            assert_eq!(server.ask("GET", path, header).body, first.body, "{header}");
        }
    }
    let (old_tag, old_date) = {
        let old = server.get(".cvmfspublished");
        (old.header("etag").to_owned(), old.header("last-modified").to_owned())
    };
    site.put(".cvmfspublished", b"manifest of revision 2\n");
    for header in [format!("If-None-Match: {old_tag}\r\n"), format!("If-Modified-Since: {old_date}\r\n")] {
        let reply = server.ask("GET", ".cvmfspublished", &header);
        assert_eq!((reply.status, reply.text().as_str()), (200, "manifest of revision 2\n"));
        // Another one may follow within this second.
        assert_eq!(reply.header("last-modified"), "");
    }
}

#[test]
fn a_connection_serves_many_requests_also_ahead_of_the_answers() {
    let site = Site::new();
    let objects: Vec<(String, Vec<u8>)> = [10, 1000, 70_000, 600_000, 0, 5]
        .into_iter()
        .map(|length| noise(length, length as u64))
        .map(|content| (site.put_object(ObjectKind::File, &content), content))
        .collect();
    let server = Server::start(&site);
    let mut client = server.connect();
    let request = |path: &str| format!("GET /cvmfs/{REPOSITORY}/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for (path, content) in &objects {
        client.send(request(path));
        assert!(client.reply().body == *content, "{path}");
    }
    let all: String = objects.iter().map(|(path, _)| request(path)).collect();
    client.send(all.repeat(5));
    for (path, content) in objects.iter().cycle().take(5 * objects.len()) {
        assert!(client.reply().body == *content, "{path}");
    }
    client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let reply = client.reply();
    assert_eq!((reply.text().as_str(), reply.header("connection")), ("ok", "close"));
    assert!(client.is_closed());
    drop(client);
    let mut server = server;
    server.begin_stop();
    let outcome = server.finish();
    assert_eq!((outcome.connections, outcome.requests, outcome.aborted), (1, 37, 0));
}

#[test]
fn http_1_0_is_spoken() {
    let site = Site::new();
    let server = Server::start(&site);
    let mut client = server.connect();
    client.send(format!("GET /cvmfs/{REPOSITORY}/.cvmfspublished HTTP/1.0\r\n\r\n"));
    client.close_half();
    let reply = client.reply();
    assert_eq!((reply.version.as_str(), reply.status), ("HTTP/1.0", 200));
    assert_eq!(reply.text(), "manifest of revision 1\n");
    assert!(client.is_closed());

    let mut client = server.connect();
    for _ in 0..2 {
        client.send("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let reply = client.reply();
        assert_eq!((reply.text().as_str(), reply.header("connection")), ("ok", "keep-alive"));
    }
}

#[test]
fn geo_requests_send_the_client_to_the_next_server() {
    let server = Server::start(&Site::new());
    let reply = server.get("api/v1.0/geo/proxy.example.org/a.example.org,b.example.org");
    assert_eq!((reply.status, reply.header("cache-control")), (400, "max-age=300"));
    assert!(reply.text().starts_with("Bad Request: "));
    let reply = server.get("api/v1.0/unknown");
    assert_eq!((reply.status, reply.text().as_str()), (400, "Bad Request: unrecognized api function\n"));
}

#[test]
fn requests_have_limits() {
    let site = Site::new();
    let server = Server::start(&site);
    let long = "a".repeat(4096);
    assert_eq!(server.get(&long).status, 414);
    assert_eq!(server.get(&format!(".cvmfspublished?{}", "a".repeat(1000))).status, 200);
    for head in [
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000)),
        format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(20_000)),
    ] {
        let mut client = server.connect();
        client.send(head);
        assert_eq!(client.head().unwrap().status, 431);
    }
    // A body is not read; the answer comes although it never arrives.
    let mut client = server.connect();
    client.send("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(client.reply().text(), "ok");
    let mut client = server.connect();
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 400);
}

#[test]
fn connections_without_requests_end() {
    let options = ServeOptions { request_timeout: Duration::from_millis(200), ..ServeOptions::default() };
    let server = Server::with(&Site::new(), options);
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.send("GET /healthz HTT");
    let mut idle = server.connect();
    idle.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(idle.reply().text(), "ok");
    assert!(silent.is_closed());
    assert!(slow.is_closed());
    assert!(idle.is_closed());
}

#[test]
fn a_client_that_takes_nothing_makes_room_for_others() {
    let site = Site::new();
    let object = site.put_object(ObjectKind::File, &noise(LARGE, 4));
    let options =
        ServeOptions { write_stall_timeout: Duration::from_millis(300), max_connections: 1, ..ServeOptions::default() };
    let server = Server::with(&site, options);
    let mut lazy = server.connect();
    lazy.send(format!("GET /cvmfs/{REPOSITORY}/{object} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(lazy.head().unwrap().status, 200);
    // There is one place, so this is answered when the other connection is cut off.
    assert_eq!(server.get(".cvmfspublished").status, 200);
    assert!(lazy.read(LARGE).len() < LARGE);
}

#[test]
fn stopping_lets_a_slow_download_finish() {
    let site = Site::new();
    let content = noise(LARGE, 5);
    let object = site.put_object(ObjectKind::File, &content);
    let mut server = Server::with(&site, patient());
    let mut idle = server.connect();
    idle.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(idle.reply().text(), "ok");
    let mut slow = server.connect();
    slow.send(format!("GET /cvmfs/{REPOSITORY}/{object} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(slow.head().unwrap().status, 200);
    let mut received = slow.read(1000);
    server.begin_stop();
    assert!(idle.is_closed());
    received.extend(slow.read(LARGE));
    assert!(received == content);
    assert!(slow.is_closed());
    assert_eq!(server.finish().aborted, 0);
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let site = Site::new();
    let object = site.put_object(ObjectKind::File, &noise(LARGE, 6));
    let options = ServeOptions { shutdown_grace: Duration::from_millis(200), ..ServeOptions::default() };
    let mut server = Server::with(&site, options);
    let mut lazy = server.connect();
    lazy.send(format!("GET /cvmfs/{REPOSITORY}/{object} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(lazy.head().unwrap().status, 200);
    let address = server.address;
    server.begin_stop();
    assert_eq!(server.finish().aborted, 1);
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_new_manifest_is_there_at_once_and_a_running_download_keeps_its_file() {
    let site = Site::new();
    let (old, new) = (noise(LARGE, 7), noise(LARGE, 8));
    site.put("stats/stats.db", &old);
    let server = Server::start(&site);
    let mut client = server.connect();
    client.send(format!("GET /cvmfs/{REPOSITORY}/stats/stats.db HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(client.head().unwrap().status, 200);
    site.put("stats/stats.db", &new);
    assert!(client.read(LARGE) == old);
    assert!(server.get("stats/stats.db").body == new);

    let mut tags = vec![server.get(".cvmfspublished").header("etag").to_owned()];
    for revision in 2..10 {
        let manifest = format!("manifest of revision {revision}\n");
        site.put(".cvmfspublished", manifest.as_bytes());
        let reply = server.get(".cvmfspublished");
        assert_eq!(reply.text(), manifest);
        tags.push(reply.header("etag").to_owned());
    }
    tags.dedup();
    assert_eq!(tags.len(), 9);
}

#[test]
fn repositories_come_and_go_without_a_restart() {
    let site = Site::new();
    let server = Server::start(&site);
    let ask = || {
        let mut client = server.connect();
        client.send("GET /cvmfs/new.example.org/.cvmfspublished HTTP/1.1\r\nHost: x\r\n\r\n");
        client.reply().status
    };
    assert_eq!(ask(), 404);
    site.put("../new.example.org/.cvmfspublished", b"manifest");
    assert_eq!(ask(), 200);
    std::fs::remove_dir_all(site.root().join("srv/cvmfs/new.example.org")).unwrap();
    assert_eq!(ask(), 404);
}

#[test]
fn a_file_that_shrinks_breaks_the_connection_instead_of_hanging_it() {
    let site = Site::new();
    let path = site.put_object(ObjectKind::File, &noise(LARGE, 9));
    let server = Server::start(&site);
    let mut client = server.connect();
    client.send(format!("GET /cvmfs/{REPOSITORY}/{path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(client.head().unwrap().header("content-length"), LARGE.to_string());
    let file = std::fs::OpenOptions::new().write(true).open(site.storage().join(&path)).unwrap();
    file.set_len(1000).unwrap();
    assert!(client.read(LARGE).len() < LARGE);
}

#[test]
fn a_hundred_clients_get_what_they_asked_for() {
    let site = Site::new();
    let objects: Vec<(String, Vec<u8>)> = (0..50)
        .map(|seed| noise(usize::try_from(seed * seed * 200).unwrap(), seed))
        .map(|content| (site.put_object(ObjectKind::File, &content), content))
        .collect();
    let server = Server::start(&site);
    std::thread::scope(|scope| {
        for first in 0..100 {
            let (objects, server) = (&objects, &server);
            scope.spawn(move || {
                let mut client = server.connect();
                for (path, content) in objects.iter().cycle().skip(first).take(20) {
                    client.send(format!("GET /cvmfs/{REPOSITORY}/{path} HTTP/1.1\r\nHost: x\r\n\r\n"));
                    assert!(client.reply().body == *content, "{path}");
                }
            });
        }
    });
}

#[test]
fn several_addresses_are_served_and_a_busy_one_is_reported() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let addresses = [SocketAddr::from(([0, 0, 0, 0], port)), format!("[::]:{port}").parse().unwrap()];
    let listeners = listen(&addresses).unwrap();
    let site = Site::new();
    let running = runtime.spawn(serve(
        listeners,
        Repositories::scan(site.root()),
        ServeOptions::default(),
        std::future::pending(),
    ));
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let mut client = Client::connect(address.parse().unwrap());
        client.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.reply().text(), "ok", "{address}");
    }
    let busy = listen(&addresses[..1]).unwrap_err();
    assert!(matches!(busy, Error::Conflict { .. }));
    assert_eq!(busy.to_string(), format!("cannot listen on 0.0.0.0:{port}: another program listens there"));
    running.abort();
    let foreign = listen(&["192.0.2.1:0".parse().unwrap()]).unwrap_err();
    assert_eq!(foreign.to_string(), "cannot listen on 192.0.2.1:0: this machine does not have that address");
    assert!(listen(&[]).is_err());
    // IPv6 alone takes IPv4 clients as well.
    let both = listen(&["[::]:0".parse().unwrap()]).unwrap();
    let port = both[0].local_addr().unwrap().port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
}

/// Where the log of the test below goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn responses_are_logged_with_what_was_really_sent() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter("access=info")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let site = Site::new();
    let object = site.put_object(ObjectKind::File, &noise(300_000, 10));
    let mut server = Server::with(&site, ServeOptions { access_log: true, ..ServeOptions::default() });
    let info = "cvmfs-info: /a%20b\r\nUser-Agent: cvmfs \"Fuse\"\r\n";
    // One after the other on one connection, so that they end in this order.
    let mut client = server.connect();
    let mut ask = |method: &str, path: &str, headers: &str| {
        client.send(format!("{method} /cvmfs/{REPOSITORY}/{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        client.reply_to(method).status
    };
    assert_eq!(ask("GET", &object, info), 200);
    assert_eq!(ask("GET", &object, "Range: bytes=0-9\r\n"), 206);
    assert_eq!(ask("HEAD", &object, ""), 200);
    assert_eq!(ask("GET", ".cvmfsreflog", ""), 404);
    server.begin_stop();
    server.finish();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let path = format!("path=\"/cvmfs/{REPOSITORY}/{object}\"");
    let expected = [
        ("method=GET", path.as_str(), "status=200 bytes=300000 "),
        ("method=GET", &path, "status=206 bytes=10 "),
        ("method=HEAD", &path, "status=200 bytes=0 "),
        ("method=GET", ".cvmfsreflog", "status=404 bytes=10 "),
    ];
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, (method, path, result)) in lines.iter().zip(expected) {
        assert!(line.contains(" access: client=127.0.0.1:"), "{line}");
        for part in [method, path, result] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    assert!(lines[0].contains(r#"agent="cvmfs \"Fuse\"" info="/a%20b""#), "{}", lines[0]);
}

#[test]
fn curl_agrees() {
    let site = Site::new();
    let content = noise(3_000_000, 11);
    let object = site.put_object(ObjectKind::Chunk, &content);
    let server = Server::start(&site);
    let url = |path: &str| format!("http://{}/cvmfs/{REPOSITORY}/{path}", server.address);
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl").args(["--silent", "--show-error"]).args(arguments).output();
        output.expect("this test needs curl: apt-get install curl").stdout
    };
    assert!(curl(&[&url(&object)]) == content);
    assert!(curl(&["--http1.0", &url(&object)]) == content);
    assert!(curl(&["--compressed", &url(&object)]) == content);
    assert!(curl(&["--range", "1000-1999", &url(&object)]) == content[1000..2000]);
    // As through a proxy, the way most clients come.
    assert!(curl(&["--proxy", &server.address.to_string(), &url(&object)]) == content);
    let status = ["--output", "/dev/null", "--write-out", "%{http_code}", "--path-as-is"];
    assert_eq!(curl(&[&status[..], &[&url("../../../../etc/passwd")]].concat()), b"404");
    assert_eq!(curl(&[&status[..], &["--data", "x", &url(".cvmfspublished")]].concat()), b"405");
    let head = String::from_utf8(curl(&["--head", &url(&object)])).unwrap();
    assert!(head.contains("\r\nContent-Length: 3000000\r\n"), "{head}");
}
