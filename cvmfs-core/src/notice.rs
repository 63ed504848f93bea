//! Change notices: a notification server is told of a new manifest, and tells the clients that listen.
//!
//! Source: `cvmfs/notify/messages.cc`, `gateway/internal/gateway/frontend/notifications.go`.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Response};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::fetch::client::{Client, SendError};
use crate::fetch::{Hop, HttpOptions, shown_url};
use crate::path::RepositoryName;
use crate::progress::Cancel;

/// How long a server may take. Nobody waits for notices: clients look for new revisions by themselves.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Debug, Serialize)]
struct Notice<'a> {
    version: u32,
    timestamp: String,
    #[serde(rename = "type")]
    kind: &'static str,
    repository: &'a str,
    /// The signed manifest in Base64.
    manifest: String,
}

/// What is received; the rest of it says nothing that the manifest does not say better.
#[derive(Debug, Deserialize)]
struct ReceivedNotice {
    #[serde(rename = "type")]
    kind: String,
    repository: String,
    manifest: String,
}

/// How often a subscriber looks whether it is to stop.
const CANCEL_CHECK: Duration = Duration::from_millis(200);
/// The longest message that a subscriber takes, in bytes.
const MESSAGE_MAX: usize = 1 << 20;

/// Words a notice: JSON in one line.
pub fn message(name: &RepositoryName, manifest: &[u8], now: UnixSeconds) -> Result<String> {
    let notice = Notice {
        version: 1,
        timestamp: now.date_and_time(),
        kind: "activity",
        repository: name.as_str(),
        manifest: openssl::base64::encode_block(manifest),
    };
    serde_json::to_string(&notice).map_err(|error| Error::invalid("JSON", error.to_string()))
}

/// Reads a notice: the repository, and its signed manifest, which nobody has verified.
///
/// # Errors
/// `Malformed` if it is something else.
pub fn parse(message: &[u8]) -> Result<(RepositoryName, Vec<u8>)> {
    let malformed = |reason: String| Error::malformed("notice", reason);
    let notice: ReceivedNotice = serde_json::from_slice(message).map_err(|error| malformed(error.to_string()))?;
    if notice.kind != "activity" {
        return Err(malformed("it is about no activity".to_owned()));
    }
    let manifest = openssl::base64::decode_block(&notice.manifest).map_err(|_| malformed("no Base64".to_owned()))?;
    Ok((notice.repository.parse()?, manifest))
}

/// Listens to a server, such as `http://gateway.example.org:4929/api/v1`, until it ends the connection. `told` gets
/// signed manifests of the repository, which nobody has verified.
///
/// # Errors
/// `Unavailable` if the server does not answer or the connection breaks; `Cancelled`.
pub fn subscribe(server: &Url, name: &RepositoryName, cancel: &Cancel, told: &mut dyn FnMut(Vec<u8>)) -> Result<()> {
    let url = address(server, "subscribe")?;
    let body = serde_json::json!({ "version": 1, "repository": name.as_str() }).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at("tokio runtime")?;
    runtime.block_on(async {
        let (client, headers) = (client()?, HeaderMap::new());
        // Upstream: a GET request with a body.
        let mut waiting = std::pin::pin!(client.send(&Method::GET, &url, &headers, body.into()));
        let answer = loop {
            cancel.check()?;
            if let Ok(answer) = tokio::time::timeout(CANCEL_CHECK, waiting.as_mut()).await {
                break answer;
            }
        };
        let mut body = accepted(&url, answer)?.into_body();
        let mut events = Events::default();
        loop {
            cancel.check()?;
            let Ok(frame) = tokio::time::timeout(CANCEL_CHECK, body.frame()).await else { continue };
            let Some(frame) = frame.transpose().map_err(|error| unavailable(&url, error.to_string()))? else {
                return Ok(());
            };
            for event in events.push(&frame.into_data().unwrap_or_default())? {
                match parse(&event) {
                    Ok((about, manifest)) if about == *name => told(manifest),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(url = shown_url(&url), %error, "not a notice"),
                }
            }
        }
    })
}

/// Cuts a stream of events into their data.
#[derive(Debug, Default)]
struct Events(Vec<u8>);

impl Events {
    /// Takes the next bytes, and returns the data of the events that they complete.
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.0.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some(end) = self.0.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            let data = event.split(|&byte| byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
            let data = data.collect::<Vec<_>>().join(&b'\n');
            if !data.is_empty() {
                found.push(data);
            }
        }
        if self.0.len() > MESSAGE_MAX {
            return Err(Error::malformed("notice", format!("longer than {MESSAGE_MAX} bytes")));
        }
        Ok(found)
    }
}

/// Tells a server, such as `http://gateway.example.org:4929/api/v1`, of a signed manifest.
///
/// # Errors
/// `Unavailable` if the server does not take it.
pub fn send(server: &Url, name: &RepositoryName, manifest: &[u8], now: UnixSeconds) -> Result<()> {
    let body = message(name, manifest, now)?;
    let url = address(server, "publish")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at("tokio runtime")?;
    runtime.block_on(async {
        let (client, headers) = (client()?, HeaderMap::new());
        let sent = client.send(&Method::POST, &url, &headers, body.into());
        let answer = tokio::time::timeout(TIMEOUT, sent).await;
        let answer = answer.map_err(|_| unavailable(&url, format!("no answer in {TIMEOUT:?}")))?;
        accepted(&url, answer).map(drop)
    })
}

fn address(server: &Url, call: &str) -> Result<Url> {
    let text = format!("{}/notifications/{call}", server.as_str().trim_end_matches('/'));
    text.parse().map_err(|_| Error::invalid("notification server", "is no URL"))
}

fn client() -> Result<Client> {
    Client::new(&Hop::Direct, &HttpOptions { connect_timeout: TIMEOUT, ..HttpOptions::default() })
}

fn unavailable(url: &Url, reason: String) -> Error {
    Error::Unavailable { what: shown_url(url), reason }
}

fn accepted(url: &Url, answer: Result<Response<Incoming>, SendError>) -> Result<Response<Incoming>> {
    let answer = answer.map_err(|error| unavailable(url, error.to_string()))?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status => Err(unavailable(url, format!("HTTP status {}", status.as_u16()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_as_it_was_worded() {
        let name: RepositoryName = "a.example.org".parse().unwrap();
        let text = message(&name, b"C0123\n--\n\xff", UnixSeconds(0)).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), (name, b"C0123\n--\n\xff".to_vec()));
        // As the reference words it; `QzAK` is `C0` and a line end.
        let text =
            br#"{ "version" : 1, "timestamp" : "x", "type" : "activity", "repository" : "a.b", "manifest" : "QzAK"}"#;
        assert_eq!(parse(text).unwrap(), ("a.b".parse().unwrap(), b"C0\n".to_vec()));
        for text in ["", "{}", r#"{"type":"other","repository":"a.b","manifest":""}"#] {
            assert!(matches!(parse(text.as_bytes()), Err(Error::Malformed { .. })), "{text}");
        }
        assert!(parse(br#"{"type":"activity","repository":"a/b","manifest":""}"#).is_err());
        assert!(parse(br#"{"type":"activity","repository":"a.b","manifest":"="}"#).is_err());
    }

    #[test]
    fn events_come_in_any_pieces() {
        let stream = b": hello\n\ndata: one\n\nevent: x\ndata:two\ndata: three\n\ndata: rest";
        for size in [1, 2, 5, 100] {
            let mut events = Events::default();
            let found: Vec<_> = stream.chunks(size).flat_map(|piece| events.push(piece).unwrap()).collect();
            assert_eq!(found, [&b" one"[..], b"two\n three"]);
        }
        assert!(Events::default().push(&vec![b'x'; MESSAGE_MAX + 1]).is_err());
    }
}
