//! Connections to the server: how many requests they carry, how long they last, who listens where, what is logged.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cvmfs_core::error::Error;
use cvmfs_core::hash::ObjectKind;
use cvmfs_replica::serve::{Repositories, ServeOptions, listen, serve};

use crate::harness::{Client, LARGE, REPOSITORY, Server, Site, noise};
use crate::ports::free_port;

fn patient() -> ServeOptions {
    ServeOptions { shutdown_grace: Duration::from_mins(1), ..ServeOptions::default() }
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
    let options = ServeOptions { request_timeout: Duration::from_secs(1), ..ServeOptions::default() };
    let server = Server::with(&Site::new(), options);
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.send("GET /healthz HTT");
    let mut idle = server.connect();
    idle.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(idle.reply().text(), "ok");
    // These are not for files: connections that took the longer way.
    let mut other = server.connect();
    other.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(other.reply().status, 200);
    assert!(other.is_closed());
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
    let mut other = server.connect();
    other.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(other.reply().status, 200);
    let mut slow = server.connect();
    slow.send(format!("GET /cvmfs/{REPOSITORY}/{object} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(slow.head().unwrap().status, 200);
    let mut received = slow.read(1000);
    server.begin_stop();
    assert!(idle.is_closed());
    assert!(other.is_closed());
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
    let port = free_port();
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
