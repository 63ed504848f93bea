//! Many small objects in one answer: what the server gives away, and what the client makes of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs_core::fetch::queue::{ObjectQueue, QueueOptions};
use cvmfs_core::fetch::{Bundles, HttpOptions, HttpStore, parse_servers};
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::progress::Cancel;
use cvmfs_core::storage::{MemoryStore, NamedFile, ReadStore as _};
use cvmfs_replica::serve::ServeOptions;

use crate::harness::{Client, REPOSITORY, Reply, Server, Site, noise, slow_line};

const MILLISECOND: Duration = Duration::from_millis(1);

fn put(site: &Site, content: &[u8]) -> ObjectId {
    site.put_object(ObjectKind::File, content);
    ObjectId::of(Algorithm::Sha1, ObjectKind::File, content)
}

/// Sizes as those of source code: most are small.
fn objects(site: &Site, count: u64) -> BTreeMap<ObjectId, Vec<u8>> {
    let contents = (0..count).map(|number| noise(usize::try_from(number * number % 6000).expect("small"), number));
    contents.map(|content| (put(site, &content), content)).collect()
}

/// Fetches objects, and returns how long that took after the manifest was there.
fn fetch(address: SocketAddr, bundles: Bundles, objects: &BTreeMap<ObjectId, Vec<u8>>) -> Duration {
    let servers = parse_servers(&format!("http://{address}/cvmfs/{REPOSITORY}")).expect("URL");
    let source = Arc::new(HttpStore::new(servers, HttpOptions { bundles, ..HttpOptions::default() }).expect("store"));
    source.read(&NamedFile::Manifest.into()).expect("manifest");
    let store = Arc::new(MemoryStore::new());
    let started = Instant::now();
    let queue = ObjectQueue::new(source, Arc::clone(&store) as _, QueueOptions::default(), Cancel::new());
    let queue = queue.expect("queue");
    for id in objects.keys() {
        queue.request(*id, 0).expect("not cancelled");
    }
    queue.close();
    let mut fetched = 0;
    while let Some(result) = queue.next_result() {
        result.result.expect("an object");
        fetched += 1;
    }
    let elapsed = started.elapsed();
    assert_eq!(fetched, objects.len());
    for (id, content) in objects {
        assert!(store.read(&(*id).into()).expect("stored") == *content);
    }
    elapsed
}

fn post(server: &Server, body: &[u8]) -> Reply {
    let mut client = server.connect();
    client.send(format!(
        "POST /cvmfs/{REPOSITORY}/api/v1.0/bundle HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    client.send(body);
    read_to_end(&mut client)
}

/// Reads a response without a length, as HTTP/1.0 has it.
fn read_to_end(client: &mut Client) -> Reply {
    let mut reply = client.head().expect("a response");
    reply.body = client.read(usize::MAX);
    reply
}

#[test]
fn eight_hundred_objects_take_a_few_round_trips() {
    let site = Site::new();
    let objects = objects(&site, 800);
    let server = Server::start(&site);
    let line = slow_line::start(server.address, 50 * MILLISECOND).expect("line");
    let elapsed = fetch(line, Bundles::Direct, &objects);
    let requests = server.finish().requests;
    // One for the manifest, one that was alone in the queue, and the bundles, each a part of what waits.
    assert!(requests <= 20, "{requests}");
    // Two round trips are 100 ms; single requests, 32 at a time and then more, would take 400 ms at least.
    assert!(elapsed >= 50 * MILLISECOND);
    eprintln!("{requests} requests, {elapsed:?}");
    assert!(elapsed < 2000 * MILLISECOND, "{elapsed:?}");
}

#[test]
fn without_bundles_everything_comes_singly() {
    let site = Site::new();
    let objects = objects(&site, 100);
    for (bundles, max_bundles) in [(Bundles::Never, 4), (Bundles::Always, 0)] {
        let server = Server::with(&site, ServeOptions { max_bundles, ..ServeOptions::default() });
        fetch(server.address, bundles, &objects);
        assert_eq!(server.finish().requests, 101);
    }
}

#[test]
fn what_a_bundle_lacks_is_fetched_singly() {
    let site = Site::new();
    let mut objects = objects(&site, 200);
    for number in 0..3 {
        let large = noise(65_537, number);
        objects.insert(put(&site, &large), large);
    }
    let server = Server::with(&site, ServeOptions { max_bundles: 1, ..ServeOptions::default() });
    fetch(server.address, Bundles::Direct, &objects);
    let requests = server.finish().requests;
    assert!((5..150).contains(&requests), "{requests}");
}

#[test]
fn a_bundle_has_what_was_asked_for_and_nothing_else() {
    let site = Site::new();
    let (small, largest, large) = (noise(100, 1), noise(65_536, 2), noise(65_537, 3));
    let [small_id, largest_id, large_id] = [&small, &largest, &large].map(|content| put(&site, content));
    let catalog = put(&site, b"as a file");
    let missing = ObjectId::of(Algorithm::Rmd160, ObjectKind::Catalog, b"not there");
    let server = Server::start(&site);
    let offer = server.get(".cvmfspublished");
    assert_eq!(offer.header("x-cvmfs-bundle"), "api/v1.0/bundle; max-objects=1000; max-bytes=16777216");
    assert_eq!(server.get(".cvmfswhitelist").header("x-cvmfs-bundle"), "");

    let reply = post(&server, format!("{small_id}\n{missing}\n{large_id}\n{catalog}C\n{largest_id}\n").as_bytes());
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/x-cvmfs-bundle"));
    assert_eq!(reply.header("cache-control"), "no-store");
    let mut expected = format!("{small_id} 100\n").into_bytes();
    expected.extend(small);
    expected.extend(format!("{missing} -\n{large_id} +\n{catalog}C -\n{largest_id} 65536\n").into_bytes());
    expected.extend(largest);
    assert!(reply.body == expected);
}

#[test]
fn a_bundle_is_bounded() {
    let site = Site::new();
    let ids: Vec<_> = (0..300).map(|number| put(&site, &noise(60_000, number))).collect();
    let server = Server::start(&site);
    let body: String = ids.iter().map(|id| format!("{id}\n")).collect();
    let reply = post(&server, body.as_bytes());
    // 279 of them are the most that 16 MiB hold.
    assert_eq!(reply.body.len(), 279 * (60_000 + 47) + 21 * 43);
    let tail = String::from_utf8_lossy(&reply.body[reply.body.len() - 43..]).into_owned();
    assert_eq!(tail, format!("{} +\n", ids[299]));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let site = Site::new();
    let id = put(&site, b"content");
    let server = Server::start(&site);
    let many = |count| format!("{id}\n").repeat(count);
    for (body, status) in [
        (String::new(), 400),
        ("\n".to_owned(), 400),
        (".cvmfspublished\n".to_owned(), 400),
        ("../../../../etc/passwd\n".to_owned(), 400),
        (format!("{id}\n\u{fc}\n"), 400),
        (format!("{}\n", id.to_string().to_uppercase()), 400),
        (many(1001), 400),
        ("x".repeat(60_000), 413),
    ] {
        assert_eq!(post(&server, body.as_bytes()).status, status, "{}", body.len());
    }
    assert_eq!(post(&server, many(1000).as_bytes()).status, 200);
    let path = "api/v1.0/bundle";
    let reply = server.get(path);
    assert_eq!((reply.status, reply.header("allow")), (405, "POST"));
    let mut client = server.connect();
    client.send(format!("POST /cvmfs/other.example.org/{path} HTTP/1.0\r\nContent-Length: 41\r\n\r\n{id}\n"));
    assert_eq!(read_to_end(&mut client).status, 404);
    assert_eq!(server.get(".cvmfspublished").status, 200);

    // Somebody who does not send what he promised does not keep others from it for long.
    let options = ServeOptions { max_bundles: 1, request_timeout: 100 * MILLISECOND, ..ServeOptions::default() };
    let server = Server::with(&site, options);
    let mut slow = server.connect();
    slow.send(format!("POST /cvmfs/{REPOSITORY}/{path} HTTP/1.1\r\nHost: h\r\nContent-Length: 41\r\n\r\n12"));
    std::thread::sleep(20 * MILLISECOND);
    let busy = post(&server, many(1).as_bytes());
    assert_eq!((busy.status, busy.header("retry-after")), (503, "1"));
    assert_eq!(slow.reply().status, 408);
    assert_eq!(post(&server, many(1).as_bytes()).status, 200);
}
