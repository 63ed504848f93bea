//! What the server does besides serving files: order of servers, documents about itself, metrics, TLS, reload.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs_core::hash::ObjectKind;
use cvmfs_replica::serve::{Listener, Repositories, ServeOptions, TlsFiles, listen, serve};
use openssl::asn1::Asn1Time;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::{X509, X509NameBuilder};
use tokio::sync::Notify;

use crate::harness::{Client, REPOSITORY, Reply, Server, Site, mmdb};

/// Addresses of the networks for documentation, and where they are in the test's database.
const GENEVA: &str = "192.0.2.1";
const CHICAGO: &str = "198.51.100.1";
const SYDNEY: &str = "203.0.113.1";
const TOKYO: &str = "2001:db8::1";

fn write_database(path: &Path, swap_geneva_and_sydney: bool) {
    let v4 = |a: u8, b: u8, c: u8| Ipv6Addr::from(u128::from(u32::from_be_bytes([a, b, c, 0])));
    let (mut geneva, mut sydney) = ([46.2, 6.15], [-33.87, 151.21]);
    if swap_geneva_and_sydney {
        std::mem::swap(&mut geneva, &mut sydney);
    }
    let networks = [
        (v4(192, 0, 2), 120, geneva),
        (v4(198, 51, 100), 120, [41.88, -87.63]),
        (v4(203, 0, 113), 120, sydney),
        ("2001:db8::".parse().expect("the test can go on"), 32, [35.68, 139.69]),
    ];
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, mmdb::database(&networks)).expect("the test can go on");
    std::fs::rename(temporary, path).expect("the test can go on");
}

fn with_geo() -> (Site, Server, PathBuf, Arc<Notify>) {
    let site = Site::new();
    let file = site.root().join("cities.mmdb");
    write_database(&file, false);
    let reload = Arc::new(Notify::new());
    let options =
        ServeOptions { geo_database: Some(file.clone()), reload: Arc::clone(&reload), ..ServeOptions::default() };
    let server = Server::with(&site, options);
    (site, server, file, reload)
}

fn order(server: &Server, argument: &str, headers: &str) -> String {
    let reply = server.ask("GET", &format!("api/v1.0/geo/{argument}"), headers);
    format!("{} {}", reply.status, reply.text().trim_end())
}

/// Great-circle distances in thousands of kilometres: Geneva-Chicago 7.0, Geneva-Sydney 16.8, Geneva-Tokyo 9.8,
/// Chicago-Sydney 14.9, Chicago-Tokyo 10.2, Sydney-Tokyo 7.8.
#[test]
fn servers_are_sorted_by_distance() {
    let (_site, server, ..) = with_geo();
    let all = format!("{SYDNEY},{TOKYO},{CHICAGO},{GENEVA}");
    let two = format!("{SYDNEY},{CHICAGO}");
    for (argument, headers, expected) in [
        // The proxy's name or address says where the client is.
        (format!("{GENEVA}/{all}"), "", "200 4,3,2,1"),
        (format!("{CHICAGO}/{all}"), "", "200 3,4,2,1"),
        (format!("{SYDNEY}/{all}"), "", "200 1,2,3,4"),
        (format!("{TOKYO}/{all}"), "", "200 2,1,4,3"),
        // Otherwise the addresses that proxies pass on do, the last one first.
        (format!("11111111-2222-3333-4444-555555555555/{two}"), "X-Forwarded-For: 203.0.113.9\r\n", "200 1,2"),
        (format!("x/{two}"), "X-Forwarded-For: 203.0.113.9, 192.0.2.7\r\n", "200 2,1"),
        (format!("x/{two}"), "X-Forwarded-For: 192.0.2.7,203.0.113.9\r\n", "200 1,2"),
        (format!("x/{two}"), "X-Forwarded-For: 192.0.2.7\r\nCF-Connecting-IP: 203.0.113.9\r\n", "200 1,2"),
        // Servers without place come last, in their order; doubles keep it, too.
        (format!("{GENEVA}/10.0.0.1,{SYDNEY},10.0.0.2,{CHICAGO}"), "", "200 4,2,1,3"),
        (format!("{GENEVA}/{CHICAGO},{CHICAGO},{GENEVA}"), "", "200 3,1,2"),
        // As clients encode names.
        (format!("{GENEVA}/{SYDNEY}%2C{CHICAGO}"), "", "200 2,1"),
        // Servers as seen from the proxy that is nearest to the client, then the proxies, then the separator.
        (format!("{GENEVA}/{GENEVA},{TOKYO},{SYDNEY},+PXYSEP+,{CHICAGO},{SYDNEY}"), "", "200 1,2,3,5,6,4"),
        (format!("{SYDNEY}/{GENEVA},{TOKYO},{SYDNEY},+PXYSEP+,{CHICAGO},{GENEVA}"), "", "200 1,2,3,5,6,4"),
        (format!("{SYDNEY}/{GENEVA},{TOKYO},{SYDNEY},+PXYSEP+,10.0.0.1"), "", "200 3,2,1,5,4"),
        (format!("{GENEVA}/10.0.0.1,10.0.0.2"), "", "400 Bad Request: no server addr found in database"),
        (format!("{GENEVA}/"), "", "400 Bad Request: no server addr found in database"),
        (format!("x/{two}"), "", "400 Bad Request: remote addr not found in database"),
        (format!("x/{two}"), "X-Forwarded-For: <script>\r\n", "400 Bad Request: remote addr not found in database"),
        ("x".to_owned(), "", "400 Bad Request: no slash in geo path"),
        ("%ff/x".to_owned(), "", "400 Bad Request: malformed geo path"),
    ] {
        assert_eq!(order(&server, &argument, headers), expected, "{argument} {headers}");
    }
    let good = server.get(&format!("api/v1.0/geo/{GENEVA}/{all}"));
    assert_eq!((good.header("content-type"), good.header("cache-control")), ("text/plain", "max-age=3600"));
    assert_eq!((good.header("content-length"), good.body.as_slice()), ("8", &b"4,3,2,1\n"[..]));
    let bad = server.get("api/v1.0/geo/x");
    assert_eq!(bad.header("cache-control"), "max-age=300");
    assert_eq!(server.ask("POST", &format!("api/v1.0/geo/{GENEVA}/{all}"), "Content-Length: 0\r\n").status, 405);
    // No name was looked up so far: all were addresses, or could not be names.
    assert_eq!(order(&server, "_namelookups_/x", ""), "200 0");
}

#[test]
fn a_name_is_looked_up_once() {
    let (_site, server, ..) = with_geo();
    // Of this machine, so nothing outside is asked; it has no place.
    for _ in 0..3 {
        assert_eq!(order(&server, &format!("{GENEVA}/localhost,{CHICAGO}"), ""), "200 2,1");
    }
    assert_eq!(order(&server, "_namelookups_/x", ""), "200 1");
}

/// Waits until an answer is as expected.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_new_database_is_loaded_on_demand_and_a_bad_one_is_not() {
    let (_site, server, file, reload) = with_geo();
    // From Sydney it is nearer to Tokyo, from Geneva to Chicago.
    let ask = || order(&server, &format!("{SYDNEY}/{TOKYO},{CHICAGO}"), "");
    assert_eq!(ask(), "200 1,2");
    // What a name was found to be is forgotten with the old database.
    let look_up = || {
        assert_eq!(order(&server, &format!("{GENEVA}/localhost,{CHICAGO}"), ""), "200 2,1");
        order(&server, "_namelookups_/x", "")
    };
    assert_eq!((look_up(), look_up()), ("200 1".to_owned(), "200 1".to_owned()));
    let written = std::fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("a time");
    write_database(&file, true);
    // As if both were written in one tick of the clock.
    let exchanged = std::fs::File::options().append(true).open(&file).expect("the new file");
    exchanged.set_modified(written).expect("the same time");
    assert_eq!(ask(), "200 1,2");
    reload.notify_one();
    eventually("the places have changed", || ask() == "200 2,1");
    assert_eq!(look_up(), "200 2");
    std::fs::write(&file, "nonsense").expect("the test can go on");
    reload.notify_one();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ask(), "200 2,1");
}

fn get(server: &Server, path: &str) -> Reply {
    let mut client = server.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    client.reply()
}

#[test]
fn documents_about_the_server_are_made_where_there_are_none() {
    let site = Site::new();
    let config = site.root().join("etc/cvmfs/repositories.d").join(REPOSITORY);
    std::fs::create_dir_all(&config).expect("the test can go on");
    std::fs::write(config.join("server.conf"), "CVMFS_REPOSITORY_TYPE=stratum0\n").expect("the test can go on");
    site.put("../copy.example.org/.cvmfspublished", b"C0\n");
    let replica = site.root().join("etc/cvmfs/repositories.d/b-replica.example.org");
    std::fs::create_dir_all(&replica).expect("the test can go on");
    let conf = "CVMFS_REPOSITORY_TYPE=stratum1\nCVMFS_REPOSITORY_NAME=b.example.org\n\
                CVMFS_STRATUM0=http://127.0.0.1:9/cvmfs/b.example.org\n";
    std::fs::write(replica.join("server.conf"), conf).expect("the test can go on");
    std::fs::write(replica.join("replica.conf"), "CVMFS_PASSTHROUGH=true\n").expect("the test can go on");
    std::fs::write(site.root().join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\nOTHER=x\n")
        .expect("the test can go on");
    let server = Server::start(&site);
    let reply = get(&server, "/cvmfs/info/v1/repositories.json");
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
    assert_eq!(reply.header("cache-control"), "max-age=61");
    let document: serde_json::Value = serde_json::from_slice(&reply.body).expect("the test can go on");
    let expected = serde_json::json!({
        "schema": 1, "os_id": "debian", "os_version_id": "12",
        "repositories": [{ "name": REPOSITORY, "url": format!("/cvmfs/{REPOSITORY}") }],
        "replicas": [
            { "name": "b.example.org", "alias": "b-replica.example.org", "pass-through": true,
              "url": "/cvmfs/b-replica.example.org" },
            { "name": "copy.example.org", "url": "/cvmfs/copy.example.org" },
        ],
    });
    assert_eq!(document, expected);
    let unchanged = server.connect_and(&format!(
        "GET /cvmfs/info/v1/repositories.json HTTP/1.1\r\nHost: x\r\nIf-None-Match: {}\r\n\r\n",
        reply.header("etag")
    ));
    assert_eq!(unchanged.status, 304);
    let meta: serde_json::Value =
        serde_json::from_slice(&get(&server, "/cvmfs/info/v1/meta.json").body).expect("the test can go on");
    assert_eq!(meta["custom"], serde_json::json!({}));
    // Of a repository that has no status yet there is nothing to say; of one that does not exist, not even that.
    assert_eq!(server.get(".cvmfs_status.json").text(), "{}\n");
    assert_eq!(get(&server, "/cvmfs/none.example.org/.cvmfs_status.json").status, 404);
    // A list of earlier days is of no use where there is a configuration; contacts are the administrator's.
    site.put("../info/v1/repositories.json", b"{\"old\": 1}");
    site.put("../info/v1/meta.json", b"{\"email\": \"a@example.org\"}");
    assert_eq!(get(&server, "/cvmfs/info/v1/repositories.json").body, reply.body);
    assert_eq!(get(&server, "/cvmfs/info/v1/meta.json").text(), "{\"email\": \"a@example.org\"}");
    let bare = Site::new();
    bare.put("../info/v1/repositories.json", b"{\"copied\": 1}");
    assert_eq!(get(&Server::start(&bare), "/cvmfs/info/v1/repositories.json").text(), "{\"copied\": 1}");
}

#[test]
fn requests_are_counted() {
    let site = Site::new();
    let object = site.put_object(ObjectKind::File, &[7; 1000]);
    site.put(".cvmfs_status.json", b"{\"last_gc\": \"Sun Oct 27 03:46:40 UTC 2024\"}");
    let server = Server::start(&site);
    for _ in 0..3 {
        assert_eq!(server.get(&object).status, 200);
    }
    assert_eq!(server.ask("HEAD", &object, "").status, 200);
    assert_eq!(server.ask("GET", &object, "Range: bytes=0-9\r\n").status, 206);
    assert_eq!(server.get(".cvmfswhitelist").status, 404);
    assert_eq!(get(&server, "/nonsense").status, 404);
    let reply = get(&server, "/metrics");
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(reply.header("cache-control"), "no-store");
    let text = reply.text();
    for line in [
        "cvmfs_replica_responses_total{kind=\"object\",status=\"200\"} 4",
        "cvmfs_replica_responses_total{kind=\"object\",status=\"206\"} 1",
        "cvmfs_replica_responses_total{kind=\"named\",status=\"404\"} 1",
        "cvmfs_replica_responses_total{kind=\"none\",status=\"404\"} 1",
        // Three objects, ten bytes, and two times "Not Found\n".
        "cvmfs_replica_sent_bytes_total 3030",
        "cvmfs_replica_connections_total 8",
        "cvmfs_repository_last_gc_timestamp_seconds{repository=\"test.example.org\"} 1730000800",
        "# TYPE cvmfs_replica_responses_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // Every sample belongs to a family, and looks like one.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        let family = name.split('{').next().expect("a name");
        assert!(value.parse::<f64>().is_ok() && text.contains(&format!("# TYPE {family} ")), "{line}");
    }
}

#[test]
fn pages_can_be_switched_off() {
    let site = Site::new();
    let server = Server::with(&site, ServeOptions { pages: false, ..ServeOptions::default() });
    for path in ["/", "/style.css", "/browse/test.example.org/", "/browse/test.example.org/trunk/x"] {
        assert_eq!(get(&server, path).status, 404, "{path}");
    }
    assert_eq!((get(&server, "/metrics").status, get(&server, "/healthz").status), (200, 200));
    let server = Server::start(&site);
    assert_eq!((get(&server, "/").status, get(&server, "/style.css").status), (200, 200));
}

/// A key and a certificate for itself.
fn identity(directory: &Path, name: &str) -> TlsFiles {
    let key = PKey::from_rsa(Rsa::generate(2048).expect("the test can go on")).expect("the test can go on");
    let mut subject = X509NameBuilder::new().expect("the test can go on");
    subject.append_entry_by_text("CN", name).expect("the test can go on");
    let subject = subject.build();
    let mut certificate = X509::builder().expect("the test can go on");
    certificate.set_version(2).expect("the test can go on");
    certificate.set_subject_name(&subject).expect("the test can go on");
    certificate.set_issuer_name(&subject).expect("the test can go on");
    certificate.set_not_before(&Asn1Time::days_from_now(0).expect("the test can go on")).expect("the test can go on");
    certificate.set_not_after(&Asn1Time::days_from_now(1).expect("the test can go on")).expect("the test can go on");
    certificate.set_pubkey(&key).expect("the test can go on");
    certificate.sign(&key, openssl::hash::MessageDigest::sha256()).expect("the test can go on");
    let files = TlsFiles { certificate: directory.join("server.pem"), key: directory.join("server.key") };
    std::fs::write(&files.certificate, certificate.build().to_pem().expect("the test can go on"))
        .expect("the test can go on");
    std::fs::write(&files.key, key.private_key_to_pem_pkcs8().expect("the test can go on"))
        .expect("the test can go on");
    files
}

/// The name in the certificate that a server shows, and its answer to a request for the manifest.
fn ask_with_tls(address: SocketAddr) -> (String, String) {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).expect("the test can go on");
    connector.set_verify(SslVerifyMode::NONE);
    let stream = TcpStream::connect(address).expect("the test can go on");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("the test can go on");
    let mut stream = connector.build().connect("localhost", stream).expect("the test can go on");
    let request = format!("GET /cvmfs/{REPOSITORY}/.cvmfspublished HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the test can go on");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the test can go on");
    let certificate = stream.ssl().peer_certificate().expect("the test can go on");
    let name = certificate.subject_name().entries().next().expect("the test can go on").data().as_slice().to_vec();
    (String::from_utf8(name).expect("the test can go on"), answer)
}

#[test]
fn tls_is_spoken_and_a_new_certificate_is_shown_after_a_reload() {
    let site = Site::new();
    let files = identity(site.root(), "first");
    let reload = Arc::new(Notify::new());
    let options = ServeOptions { tls: Some(files), reload: Arc::clone(&reload), ..ServeOptions::default() };
    let runtime = tokio::runtime::Runtime::new().expect("the test can go on");
    let inside = runtime.enter();
    let sockets = listen(&[SocketAddr::from(([127, 0, 0, 1], 0))]).expect("the test can go on");
    let address = sockets[0].local_addr().expect("the test can go on");
    let listeners: Vec<Listener> = sockets.into_iter().map(Listener::tls).collect();
    assert_eq!(listeners[0].url().expect("the test can go on"), format!("https://{address}"));
    runtime.spawn(serve(listeners, Repositories::scan(site.root()), options, std::future::pending()));
    drop(inside);
    let (name, answer) = ask_with_tls(address);
    assert_eq!(name, "first");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("manifest of revision 1\n"), "{answer}");
    // Whoever speaks plain HTTP there gets no answer, and harms nobody.
    let mut plain = Client::connect(address);
    plain.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(plain.head().is_none_or(|reply| reply.status != 200));
    identity(site.root(), "second");
    reload.notify_one();
    eventually("the new certificate", || ask_with_tls(address).0 == "second");
    std::fs::write(site.root().join("server.pem"), "nonsense").expect("the test can go on");
    reload.notify_one();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ask_with_tls(address).0, "second");
    // At the start it is an error.
    let files = TlsFiles { certificate: site.root().join("server.pem"), key: site.root().join("server.key") };
    let _inside = runtime.enter();
    let sockets = listen(&[SocketAddr::from(([127, 0, 0, 1], 0))]).expect("the test can go on");
    let options = ServeOptions { tls: Some(files), ..ServeOptions::default() };
    let failed = runtime.block_on(serve(sockets, Repositories::scan(site.root()), options, std::future::pending()));
    assert!(failed.unwrap_err().to_string().contains("server.pem"));
}

#[test]
fn with_tls_alone_nothing_is_spoken_in_the_clear() {
    let site = Site::new();
    let files = identity(site.root(), "first");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cvmfs-replica"));
    command.arg("--root").arg(site.root()).args(["serve", "--listen-tls", "127.0.0.1:0", "--tls-certificate"]);
    command.arg(files.certificate).arg("--tls-key").arg(files.key).stderr(std::process::Stdio::piped());
    let mut server = command.spawn().expect("a process");
    let mut line = String::new();
    let mut output = std::io::BufReader::new(server.stderr.take().expect("its output"));
    std::io::BufRead::read_line(&mut output, &mut line).expect("a line");
    server.kill().and_then(|()| server.wait()).expect("ended");
    assert!(line.starts_with("serving https://"), "{line}");
}
