//! One request: its turn, its signature, and when it is repeated.
//!
//! | outcome | what follows |
//! | --- | --- |
//! | connection, reset, too slow | again with back-off, `CVMFS_S3_MAX_RETRIES` times |
//! | 408, 409, 500, 502, 503, 504 | the same; when the server says, if it does |
//! | 429 | again when the server says; that may happen more often |
//! | 404, 412, 304 | an answer |
//! | TLS; any other status, 403 and 507 among them | nothing: it would be the same again |
//!
//! Every attempt is signed anew, so long waits do not let signatures expire.
//!
//! Source: `cvmfs/network/s3fanout.cc`.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use object_store::HeaderValue;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};
use reqwest::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use tokio::sync::Semaphore;

use super::S3Config;
use super::crypto::OpenSsl;
use crate::error::Result;
use crate::fetch::{Backoff, is_final, parse_retry_after, root_cause};

/// The longest wait that a server can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// How often a server may ask for patience.
const MAX_THROTTLES: u32 = 30;
/// Bytes per second below which an upload is too slow.
const LOW_SPEED: u64 = 16 * 1024;
/// Most of an error message that is kept, in characters.
const MESSAGE_LENGTH: usize = 300;

const ACL: HeaderName = HeaderName::from_static("x-amz-acl");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-amz-metadata-directive");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// When an answer was made, by the clock of the server that made it; in whole seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnsweredAt(pub(super) Duration);

/// A request that failed for good, as the cause of the library's error.
#[derive(Debug)]
pub(super) struct Failed {
    /// Whether the same request may succeed later.
    pub(super) may_pass: bool,
    pub(super) reason: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for Failed {}

/// Sends the library's requests.
#[derive(Debug)]
pub(super) struct Service {
    client: reqwest::Client,
    credential: AwsCredential,
    region: String,
    acl: Option<HeaderValue>,
    timeout: Duration,
    retries: u32,
    backoff: Backoff,
    turns: Semaphore,
}

/// What follows an attempt.
enum Verdict {
    Answer(HttpResponse),
    /// Again, after a wait that the server asks for; whether it only wants patience.
    Repeat {
        failed: Failed,
        wait: Option<Duration>,
        is_throttled: bool,
    },
    Failed(Failed),
}

impl Service {
    pub(super) fn new(config: &S3Config) -> Result<Self> {
        let credential =
            AwsCredential { key_id: config.access_key.clone(), secret_key: config.secret_key.clone(), token: None };
        Ok(Self {
            client: config.client()?,
            credential,
            region: config.region.clone(),
            acl: config.acl.as_deref().and_then(|acl| HeaderValue::from_str(acl).ok()),
            timeout: config.timeout,
            retries: config.retries,
            backoff: Backoff::new(config.backoff_initial, config.backoff_max),
            turns: Semaphore::new(config.max_requests),
        })
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Failed> {
        let (mut repetitions, mut throttles) = (0, 0);
        loop {
            let (failed, wait, is_throttled) = match self.attempt(request.clone()).await {
                Verdict::Answer(answer) => return Ok(answer),
                Verdict::Failed(failed) => return Err(failed),
                Verdict::Repeat { failed, wait, is_throttled } => (failed, wait, is_throttled),
            };
            let (count, limit) =
                if is_throttled { (&mut throttles, MAX_THROTTLES) } else { (&mut repetitions, self.retries) };
            if *count == limit {
                return Err(failed);
            }
            let wait = wait.unwrap_or_else(|| self.backoff.delay(*count));
            *count += 1;
            tracing::debug!(reason = failed.reason, ?wait, "a request to S3 is repeated");
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, mut request: HttpRequest) -> Verdict {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let method = request.method().clone();
        let what = format!("{method} {}", request.uri());
        if let Err(error) = self.prepare(&mut request) {
            return Verdict::Failed(Failed { may_pass: false, reason: format!("{what}: {error}") });
        }
        let size = request.body().content_length() as u64;
        let is_copy = request.headers().contains_key(COPY_SOURCE);
        let limit = self.timeout + Duration::from_secs(size / LOW_SPEED);
        let Ok(answer) = tokio::time::timeout(limit, self.client.call(request)).await else {
            let failed = Failed { may_pass: true, reason: format!("{what}: no answer in time") };
            return Verdict::Repeat { failed, wait: None, is_throttled: false };
        };
        match answer {
            Err(error) => of_transport(&what, &error),
            Ok(mut answer) => {
                if let Some(time) = date(answer.headers()) {
                    answer.extensions_mut().insert(AnsweredAt(time));
                }
                judge(&what, &method, is_copy, answer).await
            }
        }
    }

    /// Adds what the library does not, and signs.
    fn prepare(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let query = request.uri().query().unwrap_or_default();
        let makes_object = match *request.method() {
            Method::PUT => !query.contains("partNumber="),
            Method::POST => query.starts_with("uploads"),
            _ => false,
        };
        if makes_object {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default();
            let (kind, lifetime) = headers_of(name);
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(lifetime));
            if headers.contains_key(COPY_SOURCE) {
                // S3 refuses to copy an object to itself if nothing is said to change.
                headers.insert(METADATA_DIRECTIVE, HeaderValue::from_static("REPLACE"));
            }
            if let Some(acl) = &self.acl {
                headers.insert(ACL, acl.clone());
            }
        }
        // The library's own signature is as old as the request, and does not cover what was added.
        let digest = request.headers().get(CONTENT_SHA256).and_then(|value| from_hex(value.as_bytes()));
        request.headers_mut().remove(AUTHORIZATION);
        let authorizer = AwsAuthorizer::new(&self.credential, "s3", &self.region).with_crypto(&OpenSsl);
        authorizer.try_authorize(request, digest.as_deref())
    }
}

impl HttpService for Service {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        // The kind is one that the library does not repeat.
        Box::pin(
            async move { self.send(request).await.map_err(|failed| HttpError::new(HttpErrorKind::Unknown, failed)) },
        )
    }
}

/// Content type and lifetime of what is stored under a name, as the reference sets them.
fn headers_of(name: &str) -> (&'static str, &'static str) {
    if name.starts_with(".cvmfs") && !name.starts_with(".cvmfsalt-") {
        ("application/x-cvmfs", "max-age=61")
    } else {
        ("application/octet-stream", "max-age=259200")
    }
}

fn of_transport(what: &str, error: &HttpError) -> Verdict {
    let cause = error.source().and_then(|source| source.downcast_ref::<reqwest::Error>());
    let reason = cause.map_or_else(|| error.to_string(), root_cause);
    let may_pass = !cause.is_some_and(is_final);
    let failed = Failed { may_pass, reason: format!("{what}: {reason}") };
    if may_pass { Verdict::Repeat { failed, wait: None, is_throttled: false } } else { Verdict::Failed(failed) }
}

async fn judge(what: &str, method: &Method, is_copy: bool, answer: HttpResponse) -> Verdict {
    let status = answer.status();
    let is_answer = match status {
        StatusCode::NOT_MODIFIED | StatusCode::PRECONDITION_FAILED => true,
        // Nothing is missing that is to be written, but for the bucket.
        StatusCode::NOT_FOUND => is_copy || !matches!(*method, Method::PUT | Method::POST),
        status => status.is_success(),
    };
    if is_answer {
        return Verdict::Answer(answer);
    }
    let wait = wait_of(answer.headers());
    let body = answer.into_body().bytes().await.unwrap_or_default();
    let body = String::from_utf8_lossy(&body);
    let mut reason = format!("{what}: HTTP status {}", status.as_u16());
    if let Some(message) = message(&body) {
        reason = format!("{reason}, {message}");
    } else if status == StatusCode::FORBIDDEN && *method == Method::HEAD {
        reason.push_str("; the key must be allowed to list the bucket");
    }
    let may_pass =
        matches!(status.as_u16(), 408 | 409 | 429 | 500 | 502 | 503 | 504) || body.contains("RequestTimeout");
    let failed = Failed { may_pass, reason };
    if !may_pass {
        return Verdict::Failed(failed);
    }
    Verdict::Repeat { failed, wait, is_throttled: status == StatusCode::TOO_MANY_REQUESTS }
}

/// What the server asks for.
fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER).or_else(|| headers.get("x-retry-in"))?.as_bytes();
    let milliseconds = str::from_utf8(value).ok().and_then(|text| text.trim().strip_suffix("ms")?.parse().ok());
    Some(match milliseconds {
        Some(milliseconds) => Duration::from_millis(milliseconds).min(RETRY_AFTER_MAX),
        None => parse_retry_after(value, RETRY_AFTER_MAX),
    })
}

/// Code and message of an error document.
fn message(body: &str) -> Option<String> {
    let element = |name: &str| {
        let rest = body.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once("</")?.0.chars().take(MESSAGE_LENGTH).collect::<String>())
    };
    let code = element("Code")?;
    Some(element("Message").map_or_else(|| code.clone(), |message| format!("{code}: {message}")))
}

/// The time in the header `Date`.
fn date(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(DATE)?.to_str().ok()?;
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    u64::try_from(time.unix_timestamp()).ok().map(Duration::from_secs)
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(text).ok()?;
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_in_both_forms() {
        for (name, value, expected) in [
            ("retry-after", "3", 3000),
            ("retry-after", "60", 10_000),
            ("x-retry-in", "250ms", 250),
            ("x-retry-in", "2", 2000),
            ("x-retry-in", "99999ms", 10_000),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(wait_of(&headers), Some(Duration::from_millis(expected)), "{name}: {value}");
        }
        assert_eq!(wait_of(&HeaderMap::new()), None);
    }

    #[test]
    fn the_clock_of_the_server_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(date(&headers), Some(Duration::from_secs(784_111_777)));
    }

    #[test]
    fn errors_are_told_in_the_words_of_the_server() {
        let body = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>no b</Message></Error>";
        assert_eq!(message(body).as_deref(), Some("NoSuchBucket: no b"));
        assert_eq!(message("<html>"), None);
    }
}
