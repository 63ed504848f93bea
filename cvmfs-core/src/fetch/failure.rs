//! What can go wrong with a request, what to do about it, and which error remains when nothing helped.
//!
//! | failure | remedy |
//! | --- | --- |
//! | connection, reset, too slow, short | repeat with back-off, then the next proxy or server |
//! | 429; 503 with `Retry-After` | repeat when the server says, then the next server |
//! | other 5xx, 404, 400, redirection | next server at once |
//! | other status | next server at once; through a proxy, which may have said it, the next proxy |
//! | wrong hash | repeat once around all caches, then the next server |
//!
//! Source: `cvmfs/network/network_errors.h`, `VerifyAndFinalize` in `cvmfs/network/download.cc`.

use std::error::Error as StdError;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};

use super::client::{ProxyTlsError, SendError};
use super::retry::parse_retry_after;
use crate::error::Error;
use crate::hash::ContentHash;

/// One failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) blame: Blame,
    /// The (shown) proxy that the request went through, if it is to blame.
    pub(super) proxy: Option<String>,
}

/// Who is taken to be at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    Server,
    Proxy,
}

/// How an attempt failed.
#[derive(Debug)]
pub(super) enum Kind {
    /// Nobody could be reached.
    Connect(String),
    /// The answer broke off or is too slow.
    Transfer(String),
    /// The server wants to be asked later.
    Busy { status: StatusCode, retry_after: Option<Duration> },
    /// The server is broken for now.
    ServerError(StatusCode),
    /// The server does not have it.
    Missing,
    /// The server or proxy does not want to, and will not.
    Refused(String),
    /// The answer is not what was asked for.
    BadAnswer(String),
    /// The content is not what was asked for.
    BadHash { expected: ContentHash, actual: ContentHash, note: String },
    /// The bytes could not be kept; not the network's fault.
    Local(Error),
}

/// What may help.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Ask again in a while, of the given length if the server wishes one.
    Repeat(Option<Duration>),
    /// Ask again, and make caches ask as well.
    BypassCaches,
    /// Ask somebody else.
    MoveOn,
}

impl Failure {
    pub(super) fn new(kind: Kind, blame: Blame) -> Self {
        Self { kind, blame, proxy: None }
    }

    pub(super) fn server(kind: Kind) -> Self {
        Self::new(kind, Blame::Server)
    }

    /// Classifies why there is no answer; `nearest` is who was asked.
    pub(super) fn of_request(error: &SendError, nearest: Blame) -> Self {
        let error = match error {
            SendError::Refused(reason) => return Self::server(Kind::Refused((*reason).to_owned())),
            SendError::Transport(error) => error,
        };
        let reason = innermost(error);
        if error.is_connect() && is_tls_failure(error) {
            // A certificate that is refused now is refused in a second as well.
            let is_of_proxy = causes(error).any(<dyn StdError>::is::<ProxyTlsError>);
            let blame = if is_of_proxy { Blame::Proxy } else { Blame::Server };
            Self::new(Kind::Refused(format!("TLS: {reason}")), blame)
        } else if error.is_connect() {
            Self::new(Kind::Connect(format!("cannot connect: {reason}")), nearest)
        } else {
            Self::new(Kind::Transfer(format!("transfer failed: {reason}")), nearest)
        }
    }

    /// Classifies an answer that broke off.
    pub(super) fn of_body(error: &hyper::Error, nearest: Blame) -> Self {
        Self::new(Kind::Transfer(format!("transfer failed: {}", innermost(error))), nearest)
    }

    /// Classifies an answer by its status; `None` if it is a success.
    pub(super) fn of_answer(
        status: StatusCode,
        headers: &HeaderMap,
        nearest: Blame,
        retry_after_max: Duration,
    ) -> Option<Self> {
        let retry_after = || headers.get(RETRY_AFTER).map(|value| parse_retry_after(value.as_bytes(), retry_after_max));
        let kind = match status.as_u16() {
            200..=299 => return None,
            404 | 410 => Kind::Missing,
            429 => Kind::Busy { status, retry_after: retry_after() },
            503 if headers.contains_key(RETRY_AFTER) => Kind::Busy { status, retry_after: retry_after() },
            500..=599 => Kind::ServerError(status),
            300..=399 => Kind::Refused(format!("HTTP status {}, an unwanted redirection", status.as_u16())),
            other => Kind::Refused(format!("HTTP status {other}")),
        };
        let blame = match status.as_u16() {
            // Upstream: statuses that only a proxy is likely to make up, such as 403 and 407, count against it.
            300..=399 | 400 | 404 | 410 | 429 | 500..=599 if !says_proxy_error(headers) => Blame::Server,
            _ => nearest,
        };
        Some(Self::new(kind, blame))
    }

    pub(super) fn remedy(&self) -> Remedy {
        match &self.kind {
            Kind::Connect(_) | Kind::Transfer(_) => Remedy::Repeat(None),
            Kind::Busy { retry_after, .. } => Remedy::Repeat(*retry_after),
            Kind::BadHash { .. } | Kind::BadAnswer(_) => Remedy::BypassCaches,
            Kind::ServerError(_) | Kind::Missing | Kind::Refused(_) | Kind::Local(_) => Remedy::MoveOn,
        }
    }

    /// Whether fewer requests at a time might do better.
    pub(super) fn is_pushback(&self) -> bool {
        matches!(self.kind, Kind::Busy { .. } | Kind::Transfer(_) | Kind::ServerError(StatusCode::SERVICE_UNAVAILABLE))
    }

    /// Whether the server that is to blame should be avoided for a while.
    ///
    /// One that lacks a file may be in best health: some files are optional, and collected garbage is gone everywhere.
    pub(super) fn demotes(&self) -> bool {
        !matches!(self.kind, Kind::Missing | Kind::Local(_))
    }

    pub(super) fn reason(&self) -> String {
        match &self.kind {
            Kind::Connect(reason) | Kind::Transfer(reason) | Kind::Refused(reason) | Kind::BadAnswer(reason) => {
                reason.clone()
            }
            Kind::Busy { status, .. } | Kind::ServerError(status) => format!("HTTP status {}", status.as_u16()),
            Kind::Missing => "HTTP status 404".to_owned(),
            Kind::BadHash { expected, actual, note } => format!("content hash is {actual}, expected {expected}{note}"),
            Kind::Local(error) => error.to_string(),
        }
    }

    /// How much this failure says about the outcome, compared to those at other servers.
    ///
    /// Damage must not be hidden by anything. What may pass comes before what will not, so that callers that can
    /// wait do wait. Absence is a fact only if all servers agree on it.
    fn weight(&self) -> u8 {
        match &self.kind {
            Kind::Local(_) => 5,
            Kind::BadHash { .. } => 4,
            Kind::BadAnswer(_) => 3,
            Kind::Connect(_) | Kind::Transfer(_) | Kind::Busy { .. } | Kind::ServerError(_) => 2,
            Kind::Refused(_) => 1,
            Kind::Missing => 0,
        }
    }
}

/// The failures of one request at all servers that were asked.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<(String, Failure)>);

impl Failures {
    /// Adds how the server with the (shown) `url` failed.
    pub(super) fn add(&mut self, url: String, failure: Failure) {
        let place = match &failure.proxy {
            Some(proxy) => format!("{url} through proxy {proxy}"),
            None => url,
        };
        self.0.push((place, failure));
    }

    /// Makes one error of the weightiest failure, mentioning the others; `what` is the thing asked for.
    pub(super) fn into_error(mut self, what: &str) -> Error {
        let weightiest = (0..self.0.len()).rev().max_by_key(|&index| self.0[index].1.weight());
        let Some(index) = weightiest else {
            return Error::Unavailable { what: what.to_owned(), reason: "no server was asked".to_owned() };
        };
        let (url, failure) = self.0.remove(index);
        let mut reason = failure.reason();
        for (other, failure) in &self.0 {
            reason = format!("{reason}; {other}: {}", failure.reason());
        }
        match failure.kind {
            Kind::Local(error) => error,
            Kind::BadHash { expected, actual, note } => {
                let (expected, actual) = (expected.to_string(), actual.to_string());
                Error::HashMismatch { what: format!("{url}{note}"), expected, actual }
            }
            Kind::BadAnswer(_) => Error::malformed(url, reason),
            Kind::Connect(_) | Kind::Transfer(_) | Kind::Busy { .. } | Kind::ServerError(_) => {
                Error::Unavailable { what: url, reason }
            }
            Kind::Refused(_) => Error::Refused { what: url, reason },
            Kind::Missing => {
                self.0.insert(index, (url, Failure::server(Kind::Missing)));
                let urls: Vec<_> = self.0.into_iter().map(|(url, _)| url).collect();
                Error::not_found(format!("{what} ({})", urls.join(", ")))
            }
        }
    }
}

/// Whether a proxy says that it, not the server, made up this answer.
fn says_proxy_error(headers: &HeaderMap) -> bool {
    headers.contains_key("x-squid-error")
        || headers.get_all("proxy-status").iter().any(|value| value.to_str().is_ok_and(|text| text.contains("error=")))
}

/// The innermost cause; outer ones only say that a request failed, and may repeat its URL with a password.
pub fn root_cause(error: &reqwest::Error) -> String {
    innermost(error)
}

/// Whether a request that failed without an answer will do so again: a redirection that is not wanted, a certificate that
/// is not trusted, a URL that is none.
pub fn is_final(error: &reqwest::Error) -> bool {
    error.is_redirect() || error.is_builder() || is_tls_failure(error)
}

pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map_or_else(|| "unknown error".to_owned(), ToString::to_string)
}

fn is_tls_failure(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(<dyn StdError>::is::<openssl::error::ErrorStack>)
}

fn causes<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}
