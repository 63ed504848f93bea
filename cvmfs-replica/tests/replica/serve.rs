//! What the server answers, byte for byte.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, SystemTime};

use cvmfs_core::hash::ObjectKind;

use crate::harness::{LARGE, REPOSITORY, Reply, Server, Site, noise};

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
