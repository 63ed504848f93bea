//! Many objects at once, from web servers that misbehave as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::server::{Answer, Server, root};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::queue::{Fetched, ObjectQueue, QueueOptions};
use cvmfs_core::fetch::{HttpOptions, HttpStore, parse_servers};
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::progress::Cancel;
use cvmfs_core::storage::{MemoryStore, ReadStore as _};

fn object(content: &[u8]) -> ObjectId {
    ObjectId::of(Algorithm::Sha1, ObjectKind::File, content)
}

fn content(number: usize) -> Vec<u8> {
    format!("object {number} ").repeat(1 + number % 50).into_bytes()
}

fn http_options() -> HttpOptions {
    HttpOptions {
        connect_timeout: Duration::from_secs(2),
        low_speed_limit: 1000,
        low_speed_time: Duration::from_millis(1500),
        retries: 1,
        backoff_initial: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        retry_after_max: Duration::from_millis(50),
        ..HttpOptions::default()
    }
}

fn queue_options() -> QueueOptions {
    QueueOptions { round_pause: Duration::from_millis(20), ..QueueOptions::default() }
}

fn source(url: &str) -> Arc<HttpStore> {
    Arc::new(HttpStore::new(parse_servers(url).unwrap(), http_options()).unwrap())
}

fn queue(url: &str, destination: &Arc<MemoryStore>, options: QueueOptions) -> ObjectQueue {
    ObjectQueue::new(source(url), Arc::clone(destination) as _, options, Cancel::new()).unwrap()
}

fn results(queue: &ObjectQueue) -> BTreeMap<u64, (ObjectId, Result<u64>)> {
    queue.close();
    std::iter::from_fn(|| queue.next_result()).map(|Fetched { id, token, result }| (token, (id, result))).collect()
}

#[test]
fn every_object_arrives_and_has_one_result() {
    let objects: BTreeMap<_, _> = (0..500).map(content).map(|content| (object(&content), content)).collect();
    let server = Server::start_objects(objects.values());
    let store = Arc::new(MemoryStore::new());
    let options = QueueOptions { max_waiting: 20, memory: 2000, memory_per_object: 300, ..queue_options() };
    let queue = queue(&server.root(), &store, options);
    for (token, id) in (0..).zip(objects.keys()) {
        queue.request(*id, token).unwrap();
    }
    let results = results(&queue);
    assert_eq!(results.len(), objects.len());
    for ((token, (id, result)), (expected, content)) in results.into_iter().zip(&objects) {
        assert_eq!((id, result.unwrap()), (*expected, content.len() as u64), "{token}");
        assert_eq!(store.read(&id.into()).unwrap(), *content);
    }
    assert!(server.connections() < objects.len() / 2, "{}", server.connections());
    assert_eq!(server.lines().len(), objects.len());
}

#[test]
fn an_object_requested_again_meanwhile_is_fetched_once() {
    let server = Server::start([Answer::ok(&content(1))]);
    let store = Arc::new(MemoryStore::new());
    let queue = queue(&server.root(), &store, queue_options());
    let id = object(&content(1));
    // The first task cannot be done before all are requested: it has to connect.
    for token in 0..20 {
        queue.request(id, token).unwrap();
    }
    let results = results(&queue);
    let sizes: Vec<_> = results.into_values().map(|(_, result)| result.unwrap()).collect();
    assert_eq!(sizes.len(), 20);
    assert_eq!(sizes.iter().sum::<u64>(), content(1).len() as u64 * server.lines().len() as u64);
    assert!(server.lines().len() < 20);
}

#[test]
fn a_wrong_object_fails_and_the_others_arrive() {
    let contents: Vec<_> = (0..20).map(content).collect();
    let server = Server::start_objects(&contents);
    let store = Arc::new(MemoryStore::new());
    let queue = queue(&server.root(), &store, queue_options());
    for (token, content) in (0..).zip(&contents) {
        queue.request(object(content), token).unwrap();
    }
    let (missing, damaged) = (object(b"not there"), object(b"promised"));
    server.replace(&damaged, b"delivered");
    queue.request(missing, 100).unwrap();
    queue.request(damaged, 101).unwrap();
    let results = results(&queue);
    assert_eq!(results.len(), 22);
    for (token, (id, result)) in results {
        match (token, result) {
            (100, Err(error @ Error::NotFound { .. })) | (101, Err(error @ Error::HashMismatch { .. })) => {
                assert!(error.to_string().contains(&server.root()));
            }
            (0..20, Ok(_)) => assert!(store.size(&id.into()).unwrap().is_some()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.size(&missing.into()).unwrap(), None);
    assert_eq!(store.size(&damaged.into()).unwrap(), None);
}

#[test]
fn what_may_pass_is_tried_again_later() {
    let content = content(7);
    for failures in [1, 2] {
        let script: Vec<_> = std::iter::repeat_n(Answer::status(500), failures).chain([Answer::ok(&content)]).collect();
        let server = Server::start(script);
        let store = Arc::new(MemoryStore::new());
        let queue = queue(&server.root(), &store, queue_options());
        queue.request(object(&content), 5).unwrap();
        let started = Instant::now();
        assert!(results(&queue).remove(&5).unwrap().1.is_ok());
        assert!(started.elapsed() >= queue_options().round_pause);
        assert_eq!(server.lines().len(), failures + 1);
    }
    let server = Server::start([Answer::status(500)]);
    let queue = queue(&server.root(), &Arc::new(MemoryStore::new()), queue_options());
    queue.request(object(&content), 5).unwrap();
    let error = results(&queue).remove(&5).unwrap().1.unwrap_err();
    assert!(error.to_string().ends_with(": HTTP status 500") && error.to_string().contains(&server.root()), "{error}");
    assert_eq!(server.lines().len(), 3);
}

#[test]
fn a_source_that_is_gone_is_not_asked_for_everything() {
    let address = Server::refused();
    let queue =
        queue(&root(address), &Arc::new(MemoryStore::new()), QueueOptions { max_waiting: 10, ..queue_options() });
    let started = Instant::now();
    for token in 0..3000 {
        queue.request(object(&token.to_string().into_bytes()), token).unwrap();
    }
    let results = results(&queue);
    assert!(started.elapsed() < Duration::from_mins(1));
    assert_eq!(results.len(), 3000);
    for (id, result) in results.into_values() {
        let error = result.unwrap_err();
        assert!(error.is_retryable());
        let text = error.to_string();
        assert!(text.contains(&id.to_string()[2..]) && text.contains("Connection refused"), "{text}");
    }
}

#[test]
fn cancelling_ends_what_is_under_way() {
    let server = Server::start([Answer::hang()]);
    let cancel = Cancel::new();
    let options = QueueOptions { max_waiting: 5, ..queue_options() };
    let http = HttpOptions { low_speed_time: Duration::from_mins(1), ..http_options() };
    let source = Arc::new(HttpStore::new(parse_servers(&server.root()).unwrap(), http).unwrap());
    let store = Arc::new(MemoryStore::new());
    let queue = ObjectQueue::new(source, store, options, cancel.clone()).unwrap();
    let started = Instant::now();
    let requested = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Blocks when 5 objects wait for the 32 at which the server hangs.
            for token in 0..1000_u64 {
                if queue.request(object(&token.to_le_bytes()), token).is_err() {
                    break;
                }
                requested.fetch_add(1, Ordering::SeqCst);
            }
        });
        while requested.load(Ordering::SeqCst) < 30 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        cancel.cancel();
    });
    let requested = requested.into_inner();
    assert!((30..=40).contains(&requested), "{requested}");
    let results = results(&queue);
    assert_eq!(results.len(), requested);
    assert!(results.values().all(|(_, result)| matches!(result, Err(Error::Cancelled))));
    drop(queue);
    assert!(started.elapsed() < Duration::from_secs(50));
}

#[test]
fn a_busy_source_is_asked_less() {
    let contents: Vec<_> = (0..300).map(content).collect();
    let server = Server::start_objects(&contents);
    server.be_busy(200);
    let store = Arc::new(MemoryStore::new());
    let queue = queue(&server.root(), &store, QueueOptions { rounds: 20, give_up_after: 1000, ..queue_options() });
    let mut lowest = queue.in_flight_limit();
    for (token, content) in (0..).zip(&contents) {
        queue.request(object(content), token).unwrap();
    }
    queue.close();
    while let Some(fetched) = queue.next_result() {
        fetched.result.unwrap();
        lowest = lowest.min(queue.in_flight_limit());
    }
    // How often it is halved depends on how fast the answers come; 32 is what it begins with.
    assert!(lowest <= 16, "{lowest}");
}

#[test]
fn an_object_that_rests_is_not_forgotten_when_fewer_are_fetched_at_a_time() {
    let contents: Vec<_> = (0..100).map(content).collect();
    let server = Server::start_objects(&contents);
    let store = Arc::new(MemoryStore::new());
    let options = QueueOptions { min_in_flight: 1, round_pause: Duration::from_millis(200), ..queue_options() };
    let queue = queue(&server.root(), &store, options);
    for content in &contents {
        queue.request(object(content), 0).unwrap();
    }
    for _ in &contents {
        queue.next_result().unwrap().result.unwrap();
    }
    // 32 tasks have nothing to do now. The server pushes back until there is to be one, while the object rests.
    let last = content(100);
    server.replace(&object(&last), &last);
    server.be_busy(5);
    let started = Instant::now();
    queue.request(object(&last), 1).unwrap();
    assert!(results(&queue).remove(&1).unwrap().1.is_ok());
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
}
