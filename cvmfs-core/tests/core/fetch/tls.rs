//! Servers and tunnels with TLS.

use std::time::Duration;

use super::server::{Answer, Server, root, start_http_2};
use super::{CONTENT, OBJECT, options, read_object, store};
use cvmfs_core::error::Error;
use cvmfs_core::fetch::HttpOptions;

#[test]
fn a_connection_has_its_time() {
    // Connections are taken, and nobody speaks TLS.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let root = root(listener.local_addr().unwrap()).replace("http:", "https:");
    let hurried = HttpOptions {
        connect_timeout: Duration::from_millis(20),
        low_speed_time: Duration::from_mins(2),
        retries: 0,
        ..options()
    };
    let error = read_object(&store(&[&root], hurried)).unwrap_err();
    assert!(error.to_string().contains("cannot connect: operation timed out"), "{error}");
}

#[test]
fn a_certificate_is_trusted_only_if_told_so() {
    let (server, pem) = Server::start_tls(Answer::ok(CONTENT)).unwrap();
    let root = server.root().replace("http://127.0.0.1", "https://localhost");
    let error = read_object(&store(&[&root], options())).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate verify failed"), "{error}");
    assert_eq!(server.connections(), 1);

    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), pem).unwrap();
    let trusting = HttpOptions { ca_bundle: Some(bundle.path().to_owned()), ..options() };
    assert_eq!(read_object(&store(&[&root], trusting)).unwrap(), CONTENT);
    assert_eq!(server.lines(), [OBJECT]);
}

#[test]
fn a_proxy_makes_tunnels_for_tls() {
    let (server, pem) = Server::start_tls(Answer::ok(CONTENT)).unwrap();
    let root = server.root().replace("http://127.0.0.1", "https://localhost");
    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), pem).unwrap();
    // `user:p@ss` in Base64, in the lower case of this server.
    let proxy = Server::start_tunnel("basic dxnlcjpwqhnz");
    let through = |user: &str| {
        let proxies = format!("http://{user}{}", proxy.address).parse().unwrap();
        store(&[&root], HttpOptions { proxies, ca_bundle: Some(bundle.path().to_owned()), ..options() })
    };
    assert_eq!(read_object(&through("user:p%40ss@")).unwrap(), CONTENT);
    assert_eq!(server.lines(), [OBJECT]);
    assert!(!server.requests()[0].headers.iter().any(|header| header.contains("authorization")));
    let port = server.address.port();
    assert_eq!(proxy.lines(), [format!("CONNECT localhost:{port}")]);
    assert!(matches!(read_object(&through("")).unwrap_err(), Error::Unavailable { .. }));
    assert_eq!(server.lines(), [OBJECT]);
}

#[test]
fn a_certificate_of_another_host_is_refused() {
    let (server, pem) = Server::start_tls(Answer::ok(CONTENT)).unwrap();
    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), pem).unwrap();
    let trusting = HttpOptions { ca_bundle: Some(bundle.path().to_owned()), ..options() };
    let error = read_object(&store(&[&server.root().replace("http:", "https:")], trusting)).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(server.lines().is_empty());
}

#[test]
fn a_proxy_without_trusted_certificate_is_named() {
    let (proxy, _pem) = Server::start_tls(Answer::ok(CONTENT)).unwrap();
    let server = Server::start([Answer::ok(CONTENT)]);
    let url = format!("https://localhost:{}", proxy.address.port());
    for root in [server.root(), server.root().replace("http:", "https:")] {
        let store = store(&[&root], HttpOptions { proxies: url.parse().unwrap(), ..options() });
        let error = read_object(&store).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("through proxy {url}/: TLS: ")), "{text}");
        assert!(text.contains("certificate verify failed"), "{text}");
    }
    assert!(server.lines().is_empty());
}

/// All requests share one connection, so a repetition on a frozen one would freeze, too.
#[test]
fn a_frozen_connection_is_not_used_again() {
    let (root, pem) = start_http_2(CONTENT).unwrap();
    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), pem).unwrap();
    let options = HttpOptions {
        ca_bundle: Some(bundle.path().to_owned()),
        connect_timeout: Duration::from_secs(2),
        low_speed_time: Duration::from_millis(600),
        retries: 1,
        ..options()
    };
    assert_eq!(read_object(&store(&[&root], options)).unwrap(), CONTENT);
}
