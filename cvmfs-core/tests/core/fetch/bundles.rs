//! Servers that offer bundles and do not deliver them, and ways on which they are not asked for.

use std::sync::Arc;
use std::time::Duration;

use super::server::{Answer, Bundle, Server};
use cvmfs_core::fetch::queue::{ObjectQueue, QueueOptions};
use cvmfs_core::fetch::{Bundles, HttpOptions, HttpStore, parse_servers};
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::progress::Cancel;
use cvmfs_core::storage::{MemoryStore, NamedFile, ReadStore as _};

const COUNT: usize = 40;

fn contents(run: usize) -> Vec<Vec<u8>> {
    (0..COUNT).map(|number| format!("object {run} {number}").into_bytes()).collect()
}

fn http_options(proxies: &str, bundles: Bundles) -> HttpOptions {
    HttpOptions {
        proxies: proxies.parse().unwrap(),
        bundles,
        retries: 1,
        backoff_initial: Duration::from_millis(1),
        retry_after_max: Duration::ZERO,
        ..HttpOptions::default()
    }
}

/// Fetches objects, one request after the other, and returns how many bundles were asked for meanwhile.
fn fetch(server: &Server, source: &Arc<HttpStore>, contents: &[Vec<u8>]) -> usize {
    let bundles = || server.lines().iter().filter(|line| line.starts_with("POST ")).count();
    let before = bundles();
    let store = Arc::new(MemoryStore::new());
    let options =
        QueueOptions { initial_in_flight: 1, min_in_flight: 1, max_in_flight: 1, rounds: 0, ..QueueOptions::default() };
    let queue = ObjectQueue::new(Arc::clone(source), Arc::clone(&store) as _, options, Cancel::new()).unwrap();
    // What waits when the first answer comes is all the rest, however slow this thread is.
    let held = server.hold();
    for content in contents {
        queue.request(ObjectId::of(Algorithm::Sha1, ObjectKind::File, content), 0).unwrap();
    }
    drop(held);
    queue.close();
    while let Some(fetched) = queue.next_result() {
        fetched.result.unwrap();
    }
    for content in contents {
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, content);
        assert_eq!(store.read(&id.into()).unwrap(), *content);
    }
    bundles() - before
}

fn source(server: &Server, options: HttpOptions) -> Arc<HttpStore> {
    let source = HttpStore::new(parse_servers(&server.root()).unwrap(), options).unwrap();
    source.read(&NamedFile::Manifest.into()).unwrap();
    Arc::new(source)
}

#[test]
fn a_server_that_keeps_failing_is_not_asked_for_bundles_until_it_offers_them_again() {
    use Bundle::{Cut, Endless, Other, Whole};
    let other = |answer| Other(answer);
    let typed =
        |kind: &str, content: &[u8]| other(Answer::with_headers(200, &[&format!("Content-Type: {kind}")], content));
    let (broken, busy) = (other(Answer::status(500)), other(Answer::with_headers(503, &["Retry-After: 0"], b"")));
    let (gone, refused) = (other(Answer::status(404)), other(Answer::status(403)));
    for (script, expected) in [
        // Three in a row are enough, whatever is wrong with them.
        (vec![broken.clone()], 3),
        (vec![busy], 3),
        (vec![Cut], 3),
        (vec![Endless], 3),
        (vec![typed("text/html", b"")], 3),
        (vec![typed("application/x-cvmfs-bundle", b"nonsense\n")], 3),
        (vec![Cut, broken.clone(), Cut, Whole], 3),
        // One that comes makes up for those before it.
        (vec![Cut, broken.clone(), Whole, broken.clone(), Cut, Whole, Cut], 9),
        // Who says that there are none is believed.
        (vec![gone], 1),
        (vec![refused], 1),
        (vec![Whole, broken.clone(), other(Answer::status(405))], 3),
    ] {
        let objects = contents(0);
        let server = Server::start_bundles(&objects, script.clone());
        let source = source(&server, http_options("DIRECT", Bundles::Direct));
        assert_eq!(fetch(&server, &source, &objects), expected, "{script:?}");
    }
    // The next offer counts as a new one.
    let (first, second) = (contents(1), contents(2));
    let server = Server::start_bundles(first.iter().chain(&second), [broken.clone(), broken.clone(), broken, Whole]);
    let source = source(&server, http_options("DIRECT", Bundles::Direct));
    assert_eq!(fetch(&server, &source, &first), 3);
    assert_eq!(fetch(&server, &source, &second), 0);
    source.read(&NamedFile::Manifest.into()).unwrap();
    let asked = fetch(&server, &source, &second);
    // Two objects each; the first may be alone in the queue.
    assert!((COUNT / 2 - 1..=COUNT / 2).contains(&asked), "{asked}");
}

#[test]
fn proxies_are_asked_for_bundles_only_if_that_is_wanted() {
    let objects = contents(0);
    let proxy = Server::start_proxy();
    let dead = Server::refused();
    let all = COUNT / 2 - 1..=COUNT / 2;
    for (chain, bundles, expected) in [
        (format!("http://{}", proxy.address), Bundles::Always, all.clone()),
        (format!("http://{}", proxy.address), Bundles::Direct, 0..=0),
        (format!("http://{};DIRECT", proxy.address), Bundles::Direct, 0..=0),
        (format!("DIRECT;http://{}", proxy.address), Bundles::Direct, 0..=0),
        (format!("http://{};DIRECT", proxy.address), Bundles::Never, 0..=0),
        ("DIRECT".to_owned(), Bundles::Never, 0..=0),
        ("DIRECT".to_owned(), Bundles::Direct, all.clone()),
        // Bundles take the way that other requests have found.
        (format!("http://{dead};DIRECT"), Bundles::Always, all),
    ] {
        let server = Server::start_bundles(&objects, [Bundle::Whole]);
        let source = source(&server, http_options(&chain, bundles));
        let before = proxy.lines().len();
        let asked = fetch(&server, &source, &objects);
        assert!(expected.contains(&asked), "{chain} {bundles:?}: {asked}");
        let through = proxy.lines()[before..].iter().filter(|line| line.starts_with("POST http://")).count();
        assert_eq!(
            through,
            if chain.starts_with("http://127.0.0.1") && !chain.contains(&dead.to_string()) { asked } else { 0 }
        );
    }
}
