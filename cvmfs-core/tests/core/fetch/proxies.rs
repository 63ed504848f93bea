//! Proxies: which way requests take, and who is to blame for what comes back.

use std::time::Duration;

use super::server::{Answer, Server};
use super::{CONTENT, OBJECT, assert_unavailable, object_url, options, read_object, store};
use cvmfs_core::fetch::HttpOptions;

#[test]
fn a_proxy_gets_the_absolute_url_and_members_take_turns() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxies = [Server::start_proxy(), Server::start_proxy()];
    let chain = format!("http://{}|http://{};DIRECT", proxies[0].address, proxies[1].address);
    let store = store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..options() });
    for _ in 0..4 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    let line = format!("GET {}", object_url(&server));
    assert_eq!((proxies[0].lines(), proxies[1].lines()), (vec![line.clone(); 2], vec![line; 2]));
}

#[test]
fn a_dead_proxy_is_skipped_at_once_and_later_left_out() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::start_proxy();
    let chain = format!("http://{}|http://{}", Server::refused(), proxy.address);
    let patient =
        HttpOptions { backoff_initial: Duration::from_mins(1), backoff_max: Duration::from_mins(1), ..options() };
    let store = store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..patient });
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!(proxy.lines().len(), 3);
}

#[test]
fn a_proxy_that_failed_is_left_out_for_a_while() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::start([Answer::with_headers(502, &["X-Squid-Error: ERR_DNS_FAIL 0"], b"")]);
    let chain = format!("http://{};DIRECT", proxy.address).parse().unwrap();
    let store = store(&[&server.root()], HttpOptions { proxies: chain, ..options() });
    for _ in 0..3 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    assert_eq!((proxy.lines().len(), server.lines().len()), (1, 3));
}

#[test]
fn a_dead_group_is_followed_by_the_next() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let chain = format!("http://{}|http://{};DIRECT", Server::refused(), Server::refused());
    let store = store(&[&server.root()], HttpOptions { proxies: chain.parse().unwrap(), ..options() });
    assert_eq!(read_object(&store).unwrap(), CONTENT);
    assert_eq!(server.lines(), [OBJECT]);
}

#[test]
fn dead_proxies_are_named_without_their_password() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let proxy = Server::refused();
    let chain = format!("http://user:secret@{proxy}").parse().unwrap();
    let store = store(&[&server.root()], HttpOptions { proxies: chain, ..options() });
    let what = format!("{} through proxy http://{proxy}/", object_url(&server));
    assert_unavailable(read_object(&store), &what, "cannot connect: Connection refused");
    assert!(!format!("{store:?}").contains("secret"));
    assert!(server.lines().is_empty());
}

#[test]
fn what_a_proxy_says_of_itself_counts_against_it() {
    let server = Server::start([Answer::ok(CONTENT)]);
    for answer in [
        Answer::status(403),
        Answer::status(407),
        Answer::with_headers(502, &["X-Squid-Error: ERR_DNS_FAIL 0"], b""),
        Answer::with_headers(404, &["Proxy-Status: squid; error=dns_error"], b""),
    ] {
        let proxy = Server::start([answer]);
        let chain = format!("http://{};DIRECT", proxy.address).parse().unwrap();
        let store = store(&[&server.root()], HttpOptions { proxies: chain, ..options() });
        assert_eq!(read_object(&store).unwrap(), CONTENT);
        assert_eq!(proxy.lines(), [format!("GET {}", object_url(&server))]);
    }
}

#[test]
fn what_a_server_says_through_a_proxy_counts_against_the_server() {
    for status in [301, 400, 404, 410, 429, 500] {
        let (first, second) = (Server::start([Answer::status(status)]), Server::start([Answer::ok(CONTENT)]));
        let proxies = [Server::start_proxy(), Server::start_proxy()];
        let chain = format!("http://{};http://{}", proxies[0].address, proxies[1].address).parse().unwrap();
        let store = store(&[&first.root(), &second.root()], HttpOptions { proxies: chain, ..options() });
        assert_eq!(read_object(&store).unwrap(), CONTENT);
        // Who is asked for patience asks again.
        let asked = if status == 429 { 3 } else { 1 };
        assert_eq!((first.lines().len(), second.lines().len()), (asked, 1), "{status}");
        assert!(proxies[1].lines().is_empty(), "{status}");
    }
}

#[test]
fn what_a_proxy_says_of_itself_does_not_count_against_the_server() {
    let servers = ["a", "b", "c"].map(|host| format!("http://{host}.example.org/cvmfs/test.example.org"));
    let [ok, refused, missing] = [Answer::ok(CONTENT), Answer::status(403), Answer::status(404)];
    let proxy = Server::start([refused, ok.clone(), missing, ok]);
    let chain = format!("http://{}", proxy.address).parse().unwrap();
    let store = store(&servers.each_ref().map(String::as_str), HttpOptions { proxies: chain, ..options() });
    for _ in 0..2 {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
    }
    let hosts: Vec<_> = proxy.lines().iter().map(|line| line["GET http://".len()..].chars().next().unwrap()).collect();
    assert_eq!(hosts, ['a', 'b', 'b', 'a']);
}

#[test]
fn a_proxy_that_works_again_is_no_longer_left_out() {
    let server = Server::start([Answer::ok(CONTENT)]);
    let [ok, refused] = [Answer::ok(CONTENT), Answer::status(403)];
    let first = Server::start([refused.clone(), ok.clone(), refused.clone(), ok.clone()]);
    let second = Server::start([ok.clone(), refused, ok]);
    let chain = format!("http://{};http://{}", first.address, second.address).parse().unwrap();
    let store = store(&[&server.root()], HttpOptions { proxies: chain, ..options() });
    for (at_first, at_second) in [(1, 1), (2, 2), (3, 3), (3, 4)] {
        assert_eq!(read_object(&store).unwrap(), CONTENT);
        assert_eq!((first.lines().len(), second.lines().len()), (at_first, at_second));
    }
}
