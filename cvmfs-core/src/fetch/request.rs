//! One attempt: a single request to a single server, its answer checked while it streams.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, PRAGMA};
use hyper::{Method, Response};
use reqwest::Url;

use super::HttpOptions;
use super::bundle::{BundleOffer, OFFER_HEADER};
use super::client::{Client, SendError};
use super::failure::{Blame, Failure, Kind};
use super::sink::Sink;
use crate::hash::{ContentHash, Hasher};
use crate::storage::Key;

/// What is wanted of a server.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) key: Key,
    pub(super) method: Method,
    /// The hash that the content must have.
    pub(super) hash: Option<ContentHash>,
    /// The largest accepted content in bytes.
    pub(super) max_size: u64,
    /// Whether caches must ask the server.
    pub(super) fresh: bool,
}

/// What came.
#[derive(Debug)]
pub(super) struct Delivered {
    /// The size of the content.
    pub(super) size: u64,
    /// The bundles that the server has.
    pub(super) offer: Option<BundleOffer>,
}

/// Sends one request and writes its answer to `sink`.
///
/// 1. Send, and wait for the head of the answer.
/// 2. Judge status and headers.
/// 3. Receive the content, watching its size and speed; hash it.
/// 4. Compare the hash.
pub(super) async fn attempt(
    client: &Client,
    nearest: Blame,
    url: &Url,
    wanted: &Wanted,
    options: &HttpOptions,
    sink: &mut dyn Sink,
) -> Result<Delivered, Failure> {
    sink.restart().map_err(|error| Failure::server(Kind::Local(error)))?;
    let headers = if wanted.fresh { around_caches() } else { HeaderMap::new() };
    let sent = client.send(&wanted.method, url, &headers, Bytes::new());
    let response = head_of(sent, nearest, options).await?;
    if let Some(failure) = Failure::of_answer(response.status(), response.headers(), nearest, options.retry_after_max) {
        return Err(failure);
    }
    let offer = response.headers().get(OFFER_HEADER).and_then(|value| BundleOffer::parse(value.to_str().ok()?));
    let length = content_length(response.headers());
    if wanted.method == Method::HEAD {
        let size =
            length.ok_or_else(|| Failure::server(Kind::BadAnswer("the answer has no Content-Length".to_owned())))?;
        return Ok(Delivered { size, offer });
    }
    if length.is_some_and(|length| length > wanted.max_size) {
        return Err(too_large(wanted));
    }
    let encoding = content_encoding(response.headers());
    match (wanted.hash, encoding) {
        // Without a hash nothing else would tell that these are not the bytes of the file.
        (None, Some(encoding)) => {
            Err(Failure::server(Kind::BadAnswer(format!("content encoding {encoding} was not asked for"))))
        }
        (None, None) => {
            let size = receive(response, nearest, wanted, options, sink, &mut |_| ()).await?;
            Ok(Delivered { size, offer })
        }
        (Some(expected), encoding) => {
            let mut hasher = Hasher::new(expected.algorithm());
            let size = receive(response, nearest, wanted, options, sink, &mut |bytes| hasher.update(bytes)).await?;
            let actual = hasher.finish();
            if actual == expected {
                return Ok(Delivered { size, offer });
            }
            let note = encoding.map_or_else(String::new, |encoding| format!(" (content encoding {encoding})"));
            Err(Failure::server(Kind::BadHash { expected, actual, note }))
        }
    }
}

/// What has caches ask the server.
fn around_caches() -> HeaderMap {
    let no_cache = HeaderValue::from_static("no-cache");
    HeaderMap::from_iter([(CACHE_CONTROL, no_cache.clone()), (PRAGMA, no_cache)])
}

/// Waits for the head of an answer.
pub(super) async fn head_of(
    sent: impl Future<Output = Result<Response<Incoming>, SendError>>,
    nearest: Blame,
    options: &HttpOptions,
) -> Result<Response<Incoming>, Failure> {
    // The client itself limits only the time to connect.
    let patience = options.connect_timeout.saturating_add(options.low_speed_time);
    match tokio::time::timeout(patience, sent).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(Failure::of_request(&error, nearest)),
        Err(_) => Err(Failure::new(Kind::Transfer(format!("no answer in {patience:?}")), nearest)),
    }
}

/// Receives the content, handing it to `sink` and `watch` piece by piece.
async fn receive(
    response: Response<Incoming>,
    nearest: Blame,
    wanted: &Wanted,
    options: &HttpOptions,
    sink: &mut dyn Sink,
    watch: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<u64, Failure> {
    let mut body = response.into_body();
    let mut size = 0_u64;
    let mut speed = SpeedGauge::new(options);
    while let Some(bytes) = next_chunk(&mut body, nearest, &mut speed, options).await? {
        size += bytes.len() as u64;
        if size > wanted.max_size {
            return Err(too_large(wanted));
        }
        watch(&bytes);
        sink.write(&bytes).map_err(|error| Failure::server(Kind::Local(error)))?;
    }
    Ok(size)
}

/// Waits for the next piece of a content; `None` at its end.
pub(super) async fn next_chunk(
    body: &mut Incoming,
    nearest: Blame,
    speed: &mut SpeedGauge,
    options: &HttpOptions,
) -> Result<Option<Bytes>, Failure> {
    loop {
        let started = Instant::now();
        // A body shorter than its Content-Length is an error of the library, not an end.
        let received = match tokio::time::timeout(speed.patience(), body.frame()).await {
            // Trailers say nothing that matters.
            Ok(Some(Ok(frame))) => Some(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(error))) => return Err(Failure::of_body(&error, nearest)),
            Ok(None) => return Ok(None),
            Err(_timeout) => None,
        };
        let size = received.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if !speed.is_acceptable(size, started.elapsed()) {
            let reason = format!("less than {} bytes/s for {:?}", options.low_speed_limit, options.low_speed_time);
            return Err(Failure::new(Kind::Transfer(reason), nearest));
        }
        if let Some(bytes) = received {
            options.bandwidth.take(size).await;
            return Ok(Some(bytes));
        }
    }
}

/// Measures how fast bytes arrive, in windows of the time that a transfer may be slow.
///
/// Only the time spent waiting for the network counts, not that of writing to the sink.
#[derive(Debug)]
pub(super) struct SpeedGauge {
    window: Duration,
    bytes_per_window: u64,
    waited: Duration,
    received: u64,
}

impl SpeedGauge {
    pub(super) fn new(options: &HttpOptions) -> Self {
        let milliseconds = u64::try_from(options.low_speed_time.as_millis()).unwrap_or(u64::MAX);
        let bytes_per_window = options.low_speed_limit.saturating_mul(milliseconds) / 1000;
        Self { window: options.low_speed_time, bytes_per_window, waited: Duration::ZERO, received: 0 }
    }

    /// How long to wait for the next bytes before the window ends.
    fn patience(&self) -> Duration {
        self.window.saturating_sub(self.waited)
    }

    /// Counts `bytes` that came after waiting; false if the window that ends with them brought too few.
    fn is_acceptable(&mut self, bytes: u64, waited: Duration) -> bool {
        self.received += bytes;
        self.waited += waited;
        if self.waited < self.window {
            return true;
        }
        let enough = self.received > 0 && self.received >= self.bytes_per_window;
        (self.waited, self.received) = (Duration::ZERO, 0);
        enough
    }
}

fn too_large(wanted: &Wanted) -> Failure {
    Failure::server(Kind::BadAnswer(format!("larger than {} bytes", wanted.max_size)))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = String::from_utf8_lossy(headers.get(CONTENT_ENCODING)?.as_bytes()).into_owned();
    (!encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_window_is_noticed_and_a_fast_one_forgotten() {
        let options =
            HttpOptions { low_speed_limit: 100, low_speed_time: Duration::from_secs(2), ..HttpOptions::default() };
        let half = Duration::from_secs(1);
        let mut speed = SpeedGauge::new(&options);
        assert!(speed.is_acceptable(1, half));
        assert_eq!(speed.patience(), half);
        assert!(speed.is_acceptable(199, half));
        assert_eq!(speed.patience(), half * 2);
        assert!(speed.is_acceptable(0, half));
        assert!(!speed.is_acceptable(199, half));
        assert!(!SpeedGauge::new(&HttpOptions { low_speed_limit: 0, ..options }).is_acceptable(0, half * 2));
    }
}
