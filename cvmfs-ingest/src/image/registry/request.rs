//! One request: its turn, its authorization, its repetitions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::{parse_retry_after, root_cause};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, Url};
use tokio::sync::OwnedSemaphorePermit;

use super::authorization::{Authorization, Challenge, shown};
use super::{Access, Repository, is_final, is_same_place};

/// The largest answer that is looked at for what is wrong, in bytes.
const COMPLAINT_SIZE_MAX: usize = 64 << 10;

/// How often a wait looks whether it is to end.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    headers: HeaderMap,
    body: Bytes,
}

/// The head of an answer, and its turn, which lasts as long.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    _turn: OwnedSemaphorePermit,
}

/// What became of one attempt.
enum Attempt {
    Answered(Response),
    /// It may be answered later, in a while that the other side may have named.
    Later(String, Option<Duration>),
}

impl Ask {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// Adds a header; a value that cannot be one is left out.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    fn is_push(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD)
    }
}

impl Repository {
    /// Asks, and reads the whole answer of at most `size_max` bytes.
    pub(super) async fn read(&self, ask: &Ask, size_max: u64) -> Result<(HeaderMap, Vec<u8>)> {
        let mut repetitions = 0;
        loop {
            let mut answer = self.ask(ask).await?;
            let mut bytes = Vec::new();
            let broken = loop {
                match self.or_cancelled(answer.response.chunk()).await? {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                    Ok(None) => return Ok((answer.response.headers().clone(), bytes)),
                    Err(error) => break root_cause(&error),
                }
                if bytes.len() as u64 > size_max {
                    return Err(Error::malformed(
                        shown(&ask.url),
                        format!("the answer is larger than {size_max} bytes"),
                    ));
                }
            };
            drop(answer);
            self.wait(ask, &mut repetitions, &broken, None).await?;
        }
    }

    /// Asks until there is an answer that says yes.
    ///
    /// # Errors
    /// `NotFound`, `Refused` for good, or `Unavailable` after all repetitions.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer> {
        let host = self.shared.host(&ask.url);
        let (mut repetitions, mut challenges) = (0, 0);
        // Only the registry itself gets to see who we are.
        let is_ours = is_same_place(&ask.url, &self.base);
        let mut authorization = if is_ours { self.known_authorization(ask.is_push()).await } else { None };
        loop {
            // The turn is given back while waiting to repeat.
            let turn =
                self.or_cancelled(Arc::clone(&host.turns).acquire_owned()).await?.expect("nobody closes the turns");
            let response = match self.attempt(ask, authorization.as_ref()).await? {
                Attempt::Answered(response) => response,
                // Of a list of images, each would wait as long.
                Attempt::Later(reason, _) if host.is_down() => {
                    let reason = format!("{reason}, as others were told just now, also after repetitions");
                    return Err(Error::Unavailable { what: shown(&ask.url), reason });
                }
                Attempt::Later(reason, wait) => {
                    drop(turn);
                    let waited = self.wait(ask, &mut repetitions, &reason, wait).await;
                    if matches!(waited, Err(Error::Unavailable { .. })) {
                        *host.down_since() = Some(Instant::now());
                    }
                    waited?;
                    continue;
                }
            };
            *host.down_since() = None;
            let status = response.status();
            if status.is_success() {
                return Ok(Answer { response, _turn: turn });
            }
            let is_challenge = status.as_u16() == 401 && is_ours && is_same_place(response.url(), &self.base);
            // The second time for a token that was taken back meanwhile.
            if is_challenge && challenges < 2 {
                challenges += 1;
                let challenge = Challenge::of(response.headers());
                let complaint = refusal(ask, response, authorization.as_ref()).await;
                drop(turn);
                authorization = self.authorize(ask.is_push(), challenge, authorization.as_ref()).await?;
                if authorization.is_some() {
                    continue;
                }
                return Err(complaint);
            }
            return Err(refusal(ask, response, authorization.as_ref()).await);
        }
    }

    /// Sends a request once.
    async fn attempt(&self, ask: &Ask, authorization: Option<&Authorization>) -> Result<Attempt> {
        let mut request: RequestBuilder =
            self.shared.client.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
        if ask.is_push() {
            request = request.body(ask.body.clone());
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.value.clone());
        }
        let response = match self.or_cancelled(request.send()).await? {
            Ok(response) => response,
            Err(error) if is_final(&error) => {
                let reason = root_cause(&error);
                let hint = hint(&ask.url, &reason);
                return Err(Error::Refused { what: shown(&ask.url), reason: format!("{reason}{hint}") });
            }
            Err(error) => return Ok(Attempt::Later(root_cause(&error), None)),
        };
        let headers = response.headers();
        // Source: Docker Hub, "Usage and limits": `RateLimit-Remaining: 76;w=21600`.
        if let Some(left) = headers.get("ratelimit-remaining").and_then(|value| value.to_str().ok()) {
            tracing::debug!(url = shown(&ask.url), left, "rate limit");
        }
        let status = response.status().as_u16();
        if !matches!(status, 408 | 429 | 500 | 502..=504) {
            return Ok(Attempt::Answered(response));
        }
        let max = self.shared.options.retry_after_max;
        let wait = headers.get(RETRY_AFTER).map(|value| parse_retry_after(value.as_bytes(), max));
        Ok(Attempt::Later(format!("HTTP status {}", response.status()), wait))
    }

    /// Waits before a repetition, if there is to be one more.
    pub(super) async fn wait(
        &self,
        ask: &Ask,
        repetitions: &mut u32,
        reason: &str,
        wait: Option<Duration>,
    ) -> Result<()> {
        if *repetitions >= self.shared.options.retries {
            let reason = format!("{reason}, also after {repetitions} repetitions");
            return Err(Error::Unavailable { what: shown(&ask.url), reason });
        }
        let wait = wait.unwrap_or_else(|| self.shared.backoff.delay(*repetitions));
        tracing::info!(url = shown(&ask.url), reason, ?wait, "repeating");
        *repetitions += 1;
        self.or_cancelled(tokio::time::sleep(wait)).await
    }

    /// Waits for something, but not much longer than until somebody asked to stop.
    pub(super) async fn or_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            self.shared.options.cancel.check()?;
            if let Ok(done) = tokio::time::timeout(CANCEL_POLL, &mut work).await {
                return Ok(done);
            }
        }
    }

    /// What helped with an earlier request of the same kind.
    async fn known_authorization(&self, is_push: bool) -> Option<Authorization> {
        let known = self.authorization(is_push);
        let known = known.lock().await;
        known.clone().filter(Authorization::is_fresh)
    }

    /// Answers a challenge to a request that had `used`; `None` if that cannot be.
    async fn authorize(
        &self,
        is_push: bool,
        challenge: Option<Challenge>,
        used: Option<&Authorization>,
    ) -> Result<Option<Authorization>> {
        let Some(challenge) = challenge else { return Ok(None) };
        let known = self.authorization(is_push);
        // Others who are challenged meanwhile wait, and use what comes.
        let mut known = known.lock().await;
        let is_other = |one: &Authorization| used.is_none_or(|used| used.value != one.value);
        if let Some(newer) = known.as_ref().filter(|known| known.is_fresh() && is_other(known)) {
            return Ok(Some(newer.clone()));
        }
        let (shared, path, host) = (Arc::clone(&self.shared), self.path.clone(), self.host());
        let found = tokio::task::spawn_blocking(move || shared.options.credentials.find(&host, &path)).await;
        let found = found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let scope = format!("repository:{}:{}", self.path, if is_push { "pull,push" } else { "pull" });
        let client = &self.shared.client;
        let mut repetitions = 0;
        let answer = loop {
            match challenge.answer(client, found.as_ref(), &self.base, &scope).await {
                Err(Error::Unavailable { what, reason }) => {
                    let ask = Ask::new(Method::GET, what.parse().unwrap_or_else(|_| self.base.clone()));
                    self.wait(&ask, &mut repetitions, &reason, None).await?;
                }
                answer => break answer?,
            }
        };
        known.clone_from(&answer);
        // The same once more would be refused once more.
        Ok(answer.filter(is_other))
    }

    fn authorization(&self, is_push: bool) -> Arc<tokio::sync::Mutex<Option<Authorization>>> {
        let access = Access { host: self.host(), repository: self.path.clone(), is_push };
        let mut all = self.shared.authorizations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(all.entry(access).or_default())
    }

    /// The registry, with its port if that is not the usual one.
    fn host(&self) -> String {
        let port = self.base.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}{port}", self.base.host_str().unwrap_or_default())
    }
}

/// What helps if a request is refused for this reason without an answer.
fn hint(url: &Url, reason: &str) -> &'static str {
    match url.scheme() {
        "https" if reason.contains("certificate") => {
            " (--registry-ca names the certificate of an authority of your own)"
        }
        "https" => " (a registry without TLS must be asked for as http://)",
        _ => "",
    }
}

/// What a refusal of a request that had `used` says, with the registry's own words.
async fn refusal(ask: &Ask, mut response: Response, used: Option<&Authorization>) -> Error {
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > COMPLAINT_SIZE_MAX {
            break;
        }
    }
    let what = shown(&ask.url);
    match status {
        404 | 410 => Error::not_found(what),
        _ => {
            let who = match used.and_then(|used| used.source.as_ref()) {
                _ if !matches!(status, 401 | 403) => String::new(),
                Some(source) => format!(" (with the credentials from {source})"),
                None => " (without credentials)".to_owned(),
            };
            Error::Refused { what, reason: format!("HTTP status {status}{}{who}", complaint(&bytes)) }
        }
    }
}

/// The codes and messages of an error document, on one line.
fn complaint(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Complaint>,
    }
    #[derive(serde::Deserialize)]
    struct Complaint {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return String::new() };
    let all: Vec<_> = document.errors.iter().map(|one| format!("{} {}", one.code, one.message)).collect();
    let all = all.join("; ").replace(|letter: char| letter.is_control(), " ");
    if all.trim().is_empty() { String::new() } else { format!(": {}", all.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_say_what_is_wrong() {
        let text =
            br#"{"errors":[{"code":"DENIED","message":"requested access\nis denied","detail":[1]},{"code":"X"}]}"#;
        assert_eq!(complaint(text), ": DENIED requested access is denied; X");
        assert_eq!(complaint(b"<html>"), "");
        assert_eq!(complaint(b"{\"errors\":[]}"), "");
    }
}
