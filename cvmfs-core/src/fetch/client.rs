//! Requests that all take one way: to servers directly, or through one proxy.
//!
//! Connections are those of `hyper-util`; this adds proxies, TLS and redirections. Certificates are read when the first
//! TLS connection is made, and not before: OpenSSL takes longer to parse those of the system than a source that is read
//! in the clear takes to say that nothing is new.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use openssl::x509::X509;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use tokio_openssl::SslStream;
use tower_service::Service;

use super::failure::innermost;
use super::route::{Hop, shown};
use super::{HttpOptions, Redirects};
use crate::error::{Error, IoContext as _, Result};

/// After so long without a sign of life the system asks whether a peer is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Servers that speak HTTP/2 are not asked for a sign of life more often than this.
const SIGN_OF_LIFE_MIN: Duration = Duration::from_millis(100);
/// How long connections wait for the next request.
const IDLE: Duration = Duration::from_secs(90);
/// How many redirections are followed for one request, if any.
const REDIRECTS_MAX: u32 = 4;
/// HTTP/2 if the server has it.
const PROTOCOLS: &[u8] = b"\x02h2\x08http/1.1";

type BoxError = Box<dyn StdError + Send + Sync>;

/// Sends requests one way, over connections that are kept.
#[derive(Debug)]
pub(crate) struct Client {
    connections: legacy::Client<Connector, Full<Bytes>>,
    /// What each request has.
    headers: HeaderMap,
    /// What requests have that a proxy reads.
    proxy_authorization: Option<HeaderValue>,
    redirects: Redirects,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    Transport(legacy::Error),
    /// A redirection that is not followed, or a URL that cannot be asked for.
    Refused(&'static str),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => f.write_str(&innermost(error)),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

/// There is no TLS connection to the proxy, as opposed to the server behind it.
#[derive(Debug)]
pub(super) struct ProxyTlsError(BoxError);

impl fmt::Display for ProxyTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no TLS connection to the proxy")
    }
}

impl StdError for ProxyTlsError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

impl Client {
    /// # Errors
    /// `InvalidInput`, or what [`certificates`] returns.
    pub(crate) fn new(hop: &Hop, options: &HttpOptions) -> Result<Self> {
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| Error::invalid("HTTP client", "the user agent is no value of a header"))?;
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("*/*")), (USER_AGENT, user_agent)]);
        let connector = Connector::new(hop, options)?;
        // One connection has all requests to a server. If it is frozen, it must have ended when they are repeated.
        let sign_of_life = (options.low_speed_time / 3).max(SIGN_OF_LIFE_MIN);
        Ok(Self {
            headers,
            proxy_authorization: connector.proxy.as_ref().and_then(|proxy| proxy.authorization.clone()),
            connections: legacy::Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .http2_keep_alive_interval(sign_of_life)
                .http2_keep_alive_timeout(sign_of_life)
                .build(connector),
            redirects: options.redirects,
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, SendError> {
        let mut url = url.clone();
        let mut redirections = 0;
        loop {
            let request = self.request(method, &url, headers, body.clone())?;
            let answer = self.connections.request(request).await.map_err(SendError::Transport)?;
            let is_redirection = matches!(answer.status().as_u16(), 301..=303 | 307 | 308);
            if self.redirects == Redirects::Refuse || !is_redirection {
                return Ok(answer);
            }
            let Some(target) = answer.headers().get(LOCATION) else { return Ok(answer) };
            if redirections == REDIRECTS_MAX {
                return Err(SendError::Refused("too many redirects"));
            }
            redirections += 1;
            let target = target.to_str().ok().and_then(|target| url.join(target).ok());
            url = target.ok_or(SendError::Refused("a redirection to no URL"))?;
        }
    }

    fn request(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, SendError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri(url).ok_or(SendError::Refused("no URL of a web server"))?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().extend(headers.clone());
        if let Some(value) = basic_authorization(url) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        if let (Some(value), "http") = (&self.proxy_authorization, url.scheme()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, value.clone());
        }
        Ok(request)
    }
}

/// A URL as requests have it: without user name, password and fragment.
fn uri(url: &Url) -> Option<Uri> {
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let mut url = url.clone();
    url.set_fragment(None);
    shown(&url).parse().ok()
}

/// The credentials that a URL holds.
fn basic_authorization(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut pair: Vec<u8> = percent_decode_str(url.username()).collect();
    pair.push(b':');
    pair.extend(percent_decode_str(url.password().unwrap_or_default()));
    let mut value = HeaderValue::try_from(format!("Basic {}", openssl::base64::encode_block(&pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Makes connections.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: Arc<Tls>,
    proxy: Option<Proxy>,
    /// Whether it connects to the proxy.
    is_to_proxy: bool,
    timeout: Duration,
}

#[derive(Clone)]
struct Proxy {
    uri: Uri,
    authorization: Option<HeaderValue>,
}

impl Connector {
    fn new(hop: &Hop, options: &HttpOptions) -> Result<Self> {
        let proxy = match hop {
            Hop::Direct => None,
            Hop::Through(url) => {
                let uri = uri(url).ok_or_else(|| Error::invalid(format!("proxy {hop:?}"), "cannot be used"))?;
                Some(Proxy { uri, authorization: basic_authorization(url) })
            }
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_connect_timeout(Some(options.connect_timeout));
        let certificates = options.ca_bundle.as_deref().map(read_certificates).transpose()?;
        let tls = Arc::new(Tls { certificates: certificates.unwrap_or_default(), connector: Mutex::default() });
        Ok(Self { tcp, tls, proxy, is_to_proxy: false, timeout: options.connect_timeout })
    }

    async fn connect(mut self, uri: Uri) -> Result<Stream, BoxError> {
        let Some(proxy) = self.proxy.take() else { return self.connect_to_peer(uri).await };
        self.is_to_proxy = true;
        if !is_tls(&uri) {
            return Ok(Stream { is_proxied: true, ..self.connect_to_peer(proxy.uri).await? });
        }
        let tls = Arc::clone(&self.tls);
        let mut tunnel = Tunnel::new(proxy.uri, self);
        if let Some(authorization) = proxy.authorization {
            tunnel = tunnel.with_auth(authorization);
        }
        let stream = tunnel.call(uri.clone()).await?;
        tls.connect(&uri, stream).await
    }

    /// Connects to whom a URI names, with TLS if it says so.
    async fn connect_to_peer(mut self, uri: Uri) -> Result<Stream, BoxError> {
        let tcp = self.tcp.call(uri.clone()).await?;
        let stream = Stream { io: Box::new(tcp), is_proxied: false, is_http_2: false };
        if !is_tls(&uri) {
            return Ok(stream);
        }
        let connected = self.tls.connect(&uri, stream).await;
        connected.map_err(|error| if self.is_to_proxy { ProxyTlsError(error).into() } else { error })
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let this = self.clone();
        Box::pin(async move {
            if is_tls(&uri) {
                // The time that this takes is not the network's.
                this.tls.connector()?;
            }
            let timeout = this.timeout;
            let too_slow = |_| BoxError::from(io::Error::new(io::ErrorKind::TimedOut, "operation timed out"));
            tokio::time::timeout(timeout, this.connect(uri)).await.map_err(too_slow)?
        })
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

fn is_tls(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// What TLS connections need.
struct Tls {
    /// Trusted besides those of the system.
    certificates: Vec<X509>,
    /// Made for the first connection.
    connector: Mutex<Option<SslConnector>>,
}

impl Tls {
    /// Speaks TLS with the host of a URI.
    async fn connect(&self, uri: &Uri, stream: Stream) -> Result<Stream, BoxError> {
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ssl = self.connector()?.configure()?.into_ssl(host)?;
        let mut stream = SslStream::new(ssl, TokioIo::new(stream))?;
        Pin::new(&mut stream).connect().await?;
        let is_http_2 = stream.ssl().selected_alpn_protocol() == Some(b"h2");
        Ok(Stream { io: Box::new(TokioIo::new(stream)), is_proxied: false, is_http_2 })
    }

    fn connector(&self) -> Result<SslConnector, BoxError> {
        let mut made = self.connector.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connector) = &*made {
            return Ok(connector.clone());
        }
        // This reads the certificates of the system.
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        builder.set_alpn_protos(PROTOCOLS)?;
        for certificate in &self.certificates {
            builder.cert_store_mut().add_cert(certificate.clone())?;
        }
        Ok(made.insert(builder.build()).clone())
    }
}

/// Reads certificates in PEM form, at least one.
///
/// # Errors
/// `Io` or `Malformed`.
pub fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>> {
    let malformed = |reason: String| Error::malformed(path.display().to_string(), reason);
    let certificate = |certificate: X509| {
        let der = certificate.to_der().map_err(|error| malformed(error.to_string()))?;
        reqwest::Certificate::from_der(&der).map_err(|error| malformed(error.to_string()))
    };
    read_certificates(path)?.into_iter().map(certificate).collect()
}

fn read_certificates(path: &Path) -> Result<Vec<X509>> {
    let pem = std::fs::read(path).at(path)?;
    let malformed = |reason: String| Error::malformed(path.display().to_string(), reason);
    let certificates = X509::stack_from_pem(&pem).map_err(|error| malformed(error.to_string()))?;
    if certificates.is_empty() {
        return Err(malformed("holds no certificate".to_owned()));
    }
    Ok(certificates)
}

/// A connection.
struct Stream {
    io: Box<dyn Io>,
    /// Whether requests name the server.
    is_proxied: bool,
    is_http_2: bool,
}

trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxied);
        if self.is_http_2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
