//! The line between a replica and its source: limits, proxies, certificates, and the wait for something new.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::ports::free_port;
use crate::support::replica::{Replica, Source};
use crate::support::{NAME, Site, make_tree, pack, run};

/// A repository with one file of this many bytes that do not shrink, and some small ones.
fn site(size: u32) -> Site {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    make_tree("many", &tree, &["40"]);
    let noise: Vec<u8> = (0..size / 4).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(tree.join("large"), noise).expect("write");
    publish(&site, "tree");
    site
}

/// Adds the content of a directory to the repository.
fn publish(site: &Site, directory: &str) {
    pack(&site.path(directory), &site.path("next.tar"), &["."]);
    site.ingest_tar("next.tar", &["--base-dir", directory]);
}

/// A program that is ended with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition, far longer than it should take.
#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_mins(1), "{what} did not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_more_than_the_bandwidth_is_used() {
    let original = site(600_000);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &["--bandwidth", "300K"]);
    let started = Instant::now();
    replica.snapshot();
    // One second's worth may come at once.
    assert!(started.elapsed() > Duration::from_millis(900), "{:?}", started.elapsed());
    replica.assert_equals(&original);
}

#[test]
fn certificates_are_not_read_for_a_source_in_the_clear() {
    let original = site(1000);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    // Whoever reads this file waits for a writer, and there is none.
    let pipe = replica.site.path("certificates");
    run(Command::new("mkfifo").arg(&pipe)).ok();
    let mut command = replica.snapshot_command(&[]);
    command.env("SSL_CERT_FILE", &pipe).env("SSL_CERT_DIR", "/nonexistent").stdout(Stdio::null());
    let mut snapshot = Running(command.spawn().expect("cvmfs-replica"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = snapshot.0.try_wait().expect("a child") {
            break status;
        }
        assert!(started.elapsed() < Duration::from_mins(1), "it waits for certificates");
        thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success());
    replica.assert_equals(&original);
}

#[test]
fn proxies_are_tried_in_their_order() {
    let original = site(1000);
    let mut source = Source::start(&original);
    // Nobody listens at the first two; the group after them needs none.
    let proxies = "http://127.0.0.2:9|http://127.0.0.3:9;DIRECT";
    let replica = Replica::of(&original, &source, &["--proxy", proxies]);
    replica.snapshot();
    replica.assert_equals(&original);

    // No way around dead proxies is taken that was not named.
    source.requests();
    let alone = Replica { site: Site::empty(NAME) };
    let complaint = alone.add(&original, &source, &["--proxy", "http://127.0.0.2:9"]).fails(1);
    assert!(complaint.contains("127.0.0.2:9"), "{complaint}");
    assert_eq!(source.requests(), Vec::<String>::new());
}

#[test]
fn watching_brings_each_new_revision() {
    let original = site(1000);
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    let log = replica.site.path("watch.log");
    let mut command = replica.snapshot_command(&["--watch", "1"]);
    command.stdout(File::create(&log).expect("log"));
    let mut watch = Running(command.spawn().expect("cvmfs-replica"));
    let is_current =
        || fs::read(replica.site.storage().join(".cvmfspublished")).is_ok_and(|bytes| bytes == original.manifest());
    wait_until("the first snapshot", is_current);
    for round in ["second", "third"] {
        make_tree("many", &original.path(round), &["3"]);
        publish(&original, round);
        wait_until(round, is_current);
    }
    run(Command::new("kill").args(["-TERM", &watch.0.id().to_string()])).ok();
    watch.0.wait().expect("its end");
    replica.assert_equals(&original);
    // What changed nothing is not told.
    assert_eq!(fs::read_to_string(&log).expect("log").matches(r#""ending": "updated""#).count(), 3);
}

/// Serves a storage over TLS with HTTP/2, as sites do that put nginx in front of it.
struct Nginx {
    url: String,
    certificate: PathBuf,
    log: PathBuf,
    _process: Running,
}

impl Nginx {
    fn start(original: &Site) -> Self {
        let (certificate, key) = (original.path("tls.pem"), original.path("tls.key"));
        let subject = ["-subj", "/CN=source", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"];
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"]).args(subject);
        run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate)).ok();

        let address = format!("127.0.0.1:{}", free_port());
        let (log, configuration) = (original.path("nginx.log"), original.path("nginx.conf"));
        let text = format!(
            "user root; daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.err;
             events {{}}
             http {{
                 log_format protocol $server_protocol;
                 access_log {log} protocol;
                 client_body_temp_path {directory}/nginx-body;
                 proxy_temp_path {directory}/nginx-proxy;
                 fastcgi_temp_path {directory}/nginx-fastcgi;
                 uwsgi_temp_path {directory}/nginx-uwsgi;
                 scgi_temp_path {directory}/nginx-scgi;
                 server {{
                     listen {address} ssl http2;
                     ssl_certificate {certificate};
                     ssl_certificate_key {key};
                     location /cvmfs/{NAME}/ {{ alias {storage}/; }}
                 }}
             }}",
            directory = original.path("").display(),
            log = log.display(),
            certificate = certificate.display(),
            key = key.display(),
            storage = original.storage().display(),
        );
        fs::write(&configuration, text).expect("configuration");
        let mut nginx = Command::new("/usr/sbin/nginx");
        nginx.arg("-c").arg(&configuration).stderr(Stdio::null());
        let process = Running(nginx.spawn().expect("this test needs nginx: apt-get install nginx-light"));
        wait_until("nginx", || TcpStream::connect(&address).is_ok());
        Self { url: format!("https://{address}/cvmfs/{NAME}"), certificate, log, _process: process }
    }
}

#[test]
fn a_source_behind_nginx_speaks_http_2() {
    let original = site(200_000);
    let mut source = Source::start(&original);
    let nginx = Nginx::start(&original);
    source.url.clone_from(&nginx.url);

    // A certificate that nobody vouches for is not believed.
    let stranger = Replica { site: Site::empty(NAME) };
    let complaint = stranger.add(&original, &source, &[]).fails(1);
    assert!(complaint.contains("certificate"), "{complaint}");

    let replica = Replica::of(&original, &source, &["--ca-bundle", nginx.certificate.to_str().expect("UTF-8")]);
    replica.snapshot();
    replica.assert_equals(&original);
    let log = fs::read_to_string(&nginx.log).expect("log");
    assert!(log.lines().count() > original.objects().len(), "{log}");
    assert!(log.lines().all(|protocol| protocol == "HTTP/2.0"), "{log}");
}
