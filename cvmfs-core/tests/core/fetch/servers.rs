//! Several servers: which is asked first, which stands in, and what is said if all fail.

use std::time::Duration;

use super::server::{Answer, Server, root};
use super::{
    CONTENT, DAMAGED, DAMAGED_HASH, ID, MANIFEST, OBJECT, assert_unavailable, fresh, id, object_url, options,
    read_manifest, read_object, store, store_at,
};
use cvmfs_core::error::Error;
use cvmfs_core::fetch::HttpOptions;
use cvmfs_core::storage::{Key, ReadStore as _};

#[test]
fn a_missing_object_is_asked_for_once_per_server() {
    let (first, second) = (Server::start([Answer::status(404)]), Server::start([Answer::status(410)]));
    let error = read_object(&store_at(&[&first, &second])).unwrap_err();
    let expected = format!("file object {ID} ({}, {}) not found", object_url(&first), object_url(&second));
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), expected);
    assert_eq!((first.lines(), second.lines()), (vec![OBJECT.to_owned()], vec![OBJECT.to_owned()]));
}

#[test]
fn absence_needs_all_servers() {
    let (missing, broken) = (Server::start([Answer::status(404)]), Server::start([Answer::status(500)]));
    let reason = format!("HTTP status 500; {}: HTTP status 404", object_url(&missing));
    assert_unavailable(read_object(&store_at(&[&missing, &broken])), &object_url(&broken), &reason);
    let refusing = Server::start([Answer::status(403)]);
    match read_object(&store_at(&[&missing, &refusing])).unwrap_err() {
        Error::Refused { what, reason } => {
            assert_eq!(what, object_url(&refusing));
            assert_eq!(reason, format!("HTTP status 403; {}: HTTP status 404", object_url(&missing)));
        }
        other => panic!("{other:?}"),
    }
}

/// Damage is told before what may pass, that before what will not, and absence only if there is nothing else.
#[test]
fn the_failure_that_says_most_is_told() {
    let answers = [
        Answer::status(404),
        Answer::status(403),
        Answer::status(500),
        // Larger than any object may be.
        Answer::with_length(1 << 40, b"x"),
        Answer::ok(DAMAGED),
    ];
    let place = |error| match error {
        Error::NotFound { .. } => 0,
        Error::Refused { .. } => 1,
        Error::Unavailable { .. } => 2,
        Error::Malformed { .. } => 3,
        Error::HashMismatch { .. } => 4,
        other => panic!("{other:?}"),
    };
    for first in 0..answers.len() {
        for second in 0..answers.len() {
            let servers = [first, second].map(|index| Server::start([answers[index].clone()]));
            let error = read_object(&store_at(&servers.each_ref())).unwrap_err();
            assert_eq!(place(error), first.max(second), "{first} {second}");
        }
    }
}

#[test]
fn a_burst_of_server_errors_moves_to_the_next_server_and_back_after_a_while() {
    let reset = |server_reset| HttpOptions { server_reset, ..options() };
    let first = Server::start([Answer::status(500), Answer::status(503), Answer::ok(CONTENT)]);
    let second = Server::start([Answer::ok(CONTENT)]);
    let patient = store(&[&first.root(), &second.root()], reset(Duration::from_hours(1)));
    let hasty = store(&[&first.root(), &second.root()], reset(Duration::from_millis(1)));
    for (store, at_first, at_second) in [(&patient, 1, 1), (&patient, 1, 2), (&hasty, 2, 3), (&hasty, 3, 3)] {
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(read_object(store).unwrap(), CONTENT);
        assert_eq!((first.lines().len(), second.lines().len()), (at_first, at_second));
    }
}

#[test]
fn a_server_that_had_what_another_lacks_is_used_first() {
    let (first, second) = (Server::start([Answer::status(404)]), Server::start([Answer::ok(CONTENT)]));
    let store = store_at(&[&first, &second]);
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!((first.lines().len(), second.lines().len()), (1, 3));
    assert_eq!(store.describe(&Key::Object(id())), object_url(&second));
}

#[test]
fn a_dead_mirror_costs_its_retries_once() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let store = store(&[&root(Server::refused()), &server.root()], options());
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!(server.lines(), [OBJECT; 3]);
}

#[test]
fn the_caller_can_switch_servers() {
    let (first, second) = (Server::start([Answer::ok(b"bad signature")]), Server::start([Answer::ok(b"good")]));
    let store = store_at(&[&first, &second]);
    assert_eq!(read_manifest(&store).unwrap(), b"bad signature");
    store.switch_server();
    assert_eq!(read_manifest(&store).unwrap(), b"good");
    assert_eq!((first.lines(), second.lines()), (vec![MANIFEST.to_owned()], vec![MANIFEST.to_owned()]));
}

#[test]
fn an_object_that_stays_damaged_is_taken_from_the_next_server() {
    let (bad, good) = (Server::start([Answer::ok(DAMAGED)]), Server::start([Answer::ok(CONTENT)]));
    assert_eq!(read_object(&store_at(&[&bad, &good])).unwrap(), CONTENT);
    assert_eq!(bad.requests().iter().map(fresh).collect::<Vec<_>>(), [false, true]);
    assert_eq!(good.requests().iter().map(fresh).collect::<Vec<_>>(), [false]);
}

#[test]
fn an_object_that_is_damaged_everywhere_is_a_hash_mismatch() {
    let (bad, missing) = (Server::start([Answer::ok(DAMAGED)]), Server::start([Answer::status(404)]));
    match read_object(&store_at(&[&bad, &missing])).unwrap_err() {
        Error::HashMismatch { what, expected, actual } => {
            assert_eq!((what, &*expected, &*actual), (object_url(&bad), ID, DAMAGED_HASH));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((bad.lines().len(), missing.lines().len()), (2, 1));
}

#[test]
fn a_server_that_lacks_an_object_is_asked_before_those_that_were_never_needed_and_a_failing_one_after_them() {
    for (status, expected) in [(404, (2, 2, 0)), (500, (1, 2, 1))] {
        let first = Server::start([Answer::status(status), Answer::ok(CONTENT)]);
        let standing_in = Server::start([Answer::ok(CONTENT), Answer::status(500)]);
        let last = Server::start([Answer::ok(CONTENT)]);
        let store = store_at(&[&first, &standing_in, &last]);
        for _ in 0..2 {
            assert_eq!(read_object(&store).unwrap(), CONTENT);
        }
        assert_eq!((first.lines().len(), standing_in.lines().len(), last.lines().len()), expected, "{status}");
    }
}

/// A label of a name has at most 63 letters: no name server is asked.
const UNKNOWN_HOST: &str = "http://aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[test]
fn a_host_without_address_is_a_dead_one() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let unknown = format!("{UNKNOWN_HOST}/cvmfs/test.example.org");
    let (url, reason) =
        (format!("{unknown}/{}", Key::Object(id())), "cannot connect: failed to lookup address information");
    assert_unavailable(read_object(&store(&[&unknown], options())), &url, reason);
    let two = store(&[&unknown, &server.root()], options());
    for _ in 0..2 {
        assert_eq!(read_object(&two).unwrap(), CONTENT);
    }
    assert_eq!(two.describe(&Key::Object(id())), object_url(&server));

    let through = |chain: &str| store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..options() });
    assert_eq!(read_object(&through(&format!("{UNKNOWN_HOST}:3128;DIRECT"))).unwrap(), CONTENT);
    let what = format!("{} through proxy {UNKNOWN_HOST}:3128/", object_url(&server));
    assert_unavailable(read_object(&through(&format!("{UNKNOWN_HOST}:3128"))), &what, reason);
    assert_eq!(server.lines(), [OBJECT; 3]);
}

/// `localhost` has an IPv6 address as well on most machines, at which nobody listens here.
#[test]
fn a_host_is_tried_at_all_its_addresses() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let root = server.root().replace("127.0.0.1", "localhost");
    assert_eq!(read_object(&store(&[&root], HttpOptions { retries: 0, ..options() })).unwrap(), CONTENT);
}

#[test]
fn a_server_that_no_proxy_reaches_is_replaced() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::start_proxy();
    let chain = format!("http://{}", proxy.address).parse().unwrap();
    let store = store(&[&root(Server::refused()), &server.root()], HttpOptions { proxies: chain, ..options() });
    assert_eq!(read_object(&store).unwrap(), CONTENT);
    assert_eq!(proxy.lines().len(), 2);
}
