//! The access log: one event per response, when its last byte is handed to the system or the client is gone.

use std::net::SocketAddr;
use std::time::Instant;

use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode, Uri};

/// The path of the file that a client wants an object for, if it is configured to tell.
pub(super) const INFO: HeaderName = HeaderName::from_static("cvmfs-info");

/// A response on its way; logs itself when dropped, so that interrupted ones are logged as well.
#[derive(Debug)]
pub(super) struct Record {
    client: SocketAddr,
    method: Method,
    uri: Uri,
    agent: String,
    info: String,
    started: Instant,
    status: StatusCode,
    bytes: u64,
}

impl Record {
    /// Notes what is asked for.
    pub(super) fn new(client: SocketAddr, request: &Request<impl Sized>) -> Self {
        Self {
            client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            agent: text(request.headers(), &header::USER_AGENT),
            info: text(request.headers(), &INFO),
            started: Instant::now(),
            status: StatusCode::OK,
            bytes: 0,
        }
    }

    /// Notes how it is answered.
    #[must_use]
    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Notes that body bytes are handed to the connection.
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Text from the client is logged in its quoted form, or it could forge lines.
        tracing::info!(
            target: "access",
            client = %self.client,
            method = %self.method,
            path = ?self.uri.path(),
            status = self.status.as_u16(),
            bytes = self.bytes,
            seconds = self.started.elapsed().as_secs_f64(),
            agent = ?self.agent,
            info = ?self.info,
        );
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}
