//! Web servers and proxies that misbehave on purpose, one scripted answer per request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::storage::Key;
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslMethod, select_next_proto};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509Name};

/// One scripted answer. A script's last answer is given to all further requests.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    KeepAlive,
    Reset,
    /// Sends spaces, one every 20 ms, until the client goes away.
    Trickle,
    /// Answers nothing more until the client goes away.
    Hang,
}

impl Answer {
    /// Status 200 with the right length.
    pub(crate) fn ok(content: &[u8]) -> Self {
        Self::with_headers(200, &[], content)
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::with_headers(status, &[], b"<html>an error page</html>")
    }

    pub(crate) fn with_headers(status: u16, headers: &[&str], content: &[u8]) -> Self {
        let length = format!("Content-Length: {}", content.len());
        let headers: Vec<_> = headers.iter().copied().chain([&*length, "Connection: close"]).collect();
        Self::raw(status, &headers, content)
    }

    /// Status 200 claiming a length of `length`.
    pub(crate) fn with_length(length: usize, content: &[u8]) -> Self {
        Self::raw(200, &[&format!("Content-Length: {length}")], content)
    }

    /// Only the given headers.
    pub(crate) fn raw(status: u16, headers: &[&str], content: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        Self { bytes: [head.as_bytes(), content].concat(), then: Then::Close }
    }

    pub(crate) fn keep_alive(content: &[u8]) -> Self {
        Self { then: Then::KeepAlive, ..Self::with_length(content.len(), content) }
    }

    pub(crate) fn reset(self) -> Self {
        Self { then: Then::Reset, ..self }
    }

    pub(crate) fn trickle(self) -> Self {
        Self { then: Then::Trickle, ..self }
    }

    pub(crate) fn hang() -> Self {
        Self { bytes: Vec::new(), then: Then::Hang }
    }
}

/// A request as it came in: the request line, and the header lines in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<String>,
}

impl Request {
    fn parse(head: &str) -> Self {
        let mut lines = head.lines();
        let line = lines.next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
        let headers = lines.map(str::to_lowercase).filter(|line| !line.is_empty()).collect();
        Self { line, headers }
    }

    pub(crate) fn has(&self, header: &str) -> bool {
        self.headers.iter().any(|line| line == header)
    }
}

/// The bundles of two that a server offers.
const OFFER: &str = "X-CVMFS-Bundle: api/v1.0/bundle; max-objects=2; max-bytes=10000";

/// What comes of a request for a bundle.
#[derive(Debug, Clone)]
pub(crate) enum Bundle {
    /// What was asked for.
    Whole,
    /// What was asked for, without the last byte.
    Cut,
    /// Says of what was asked for, again and again, that it is to be asked for singly: more than the offer allows.
    Endless,
    /// An answer that is no bundle.
    Other(Answer),
}

impl Bundle {
    fn answer(&self, names: &[u8], objects: &Mutex<HashMap<String, Vec<u8>>>) -> Answer {
        let names = String::from_utf8_lossy(names);
        let whole = names.lines().flat_map(|name| {
            let id = name.parse().expect("an object");
            let object = objects.lock().expect("not poisoned")[&object_line(&id)].clone();
            [format!("{name} {}\n", object.len()).into_bytes(), object].concat()
        });
        let content: Vec<u8> = match self {
            Self::Whole => whole.collect(),
            Self::Cut => whole.collect::<Vec<u8>>().split_last().map(|(_, cut)| cut.to_vec()).unwrap_or_default(),
            Self::Endless => {
                names.lines().map(|name| format!("{name} +\n")).collect::<String>().repeat(300).into_bytes()
            }
            Self::Other(answer) => return answer.clone(),
        };
        let length = content.len() + usize::from(matches!(self, Self::Cut));
        let length = format!("Content-Length: {length}");
        Answer::raw(200, &["Content-Type: application/x-cvmfs-bundle", &length, "Connection: close"], &content)
    }
}

fn object_line(id: &ObjectId) -> String {
    format!("GET /cvmfs/test.example.org/{}", Key::Object(*id))
}

/// A server on the loopback device; its threads end with the test process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<Mutex<usize>>,
    /// By request line; for servers with objects.
    objects: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// How many more requests for objects are answered with 503.
    busy: Arc<AtomicUsize>,
}

impl Server {
    /// A server that has these contents as file objects.
    pub(crate) fn start_objects<'a>(contents: impl IntoIterator<Item = &'a Vec<u8>>) -> Self {
        Self::start_bundles(contents, [])
    }

    /// The same; it offers bundles of two objects with its manifest. What comes of each, in turn, is in `bundles`; the
    /// last is given to all further requests.
    pub(crate) fn start_bundles<'a>(
        contents: impl IntoIterator<Item = &'a Vec<u8>>,
        bundles: impl Into<Vec<Bundle>>,
    ) -> Self {
        let (objects, busy) = <(Arc<Mutex<HashMap<String, Vec<u8>>>>, Arc<AtomicUsize>)>::default();
        let (found, left, bundles) = (Arc::clone(&objects), Arc::clone(&busy), bundles.into());
        let posted = AtomicUsize::new(0);
        let server = Self::serve(move |mut stream, seen| {
            while let Some(head) = read_head(&mut stream) {
                let request = Request::parse(&head);
                let Some(body) = read_body(&mut stream, &request) else { return };
                let content = found.lock().expect("not poisoned").get(&request.line).cloned();
                seen.lock().expect("not poisoned").push(request.clone());
                let is_busy =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
                let answer = match content {
                    _ if is_busy => Answer::with_headers(503, &["Retry-After: 0"], b""),
                    _ if request.line.starts_with("POST ") => {
                        let bundle = bundles.get(posted.fetch_add(1, Ordering::Relaxed)).or(bundles.last());
                        bundle.map_or(Answer::status(405), |bundle| bundle.answer(&body, &found))
                    }
                    // As proxies ask for.
                    Some(content) if request.has("connection: close") => Answer::ok(&content),
                    Some(content) => Answer::keep_alive(&content),
                    None if request.line.ends_with("/.cvmfspublished") => {
                        Answer::with_headers(200, &[OFFER], b"manifest")
                    }
                    None => Answer::status(404),
                };
                if stream.write_all(&answer.bytes).is_err() || answer.then == Then::Close {
                    return;
                }
            }
        });
        let server = Self { objects, busy, ..server };
        for content in contents {
            server.replace(&ObjectId::of(Algorithm::Sha1, ObjectKind::File, content), content);
        }
        server
    }

    /// Delivers `content` as the object `id` from now on.
    pub(crate) fn replace(&self, id: &ObjectId, content: &[u8]) {
        self.objects.lock().expect("not poisoned").insert(object_line(id), content.to_vec());
    }

    /// Answers nothing about objects until the value is dropped.
    pub(crate) fn hold(&self) -> impl Drop + '_ {
        self.objects.lock().expect("not poisoned")
    }

    /// Answers the next requests for objects with 503.
    pub(crate) fn be_busy(&self, requests: usize) {
        self.busy.store(requests, Ordering::Relaxed);
    }

    pub(crate) fn start(script: impl Into<Vec<Answer>>) -> Self {
        let script = script.into();
        Self::serve(move |stream, state| answer_requests(stream, &script, state))
    }

    /// A proxy that forwards requests with an absolute URL, one per connection.
    pub(crate) fn start_proxy() -> Self {
        Self::serve(|stream, state| {
            let _ = forward(stream, state);
        })
    }

    /// A proxy that makes tunnels for whoever says who they are; the requests in them it cannot read.
    pub(crate) fn start_tunnel(authorization: &'static str) -> Self {
        Self::serve(move |stream, state| {
            let _ = tunnel(stream, authorization, state);
        })
    }

    fn serve(handle: impl Fn(TcpStream, &Mutex<Vec<Request>>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback device takes servers");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (requests, connections) = <(Arc<Mutex<Vec<Request>>>, Arc<Mutex<usize>>)>::default();
        let (seen, count, handle) = (Arc::clone(&requests), Arc::clone(&connections), Arc::new(handle));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                *count.lock().expect("not poisoned") += 1;
                let (seen, handle) = (Arc::clone(&seen), Arc::clone(&handle));
                thread::spawn(move || handle(stream, &seen));
            }
        });
        Self { address, requests, connections, objects: Arc::default(), busy: Arc::default() }
    }

    /// An `https` server for `localhost` with a fresh self-signed certificate, which is returned in PEM form.
    pub(crate) fn start_tls(answer: Answer) -> Result<(Self, Vec<u8>), ErrorStack> {
        let (key, certificate) = self_signed("localhost")?;
        let pem = certificate.to_pem()?;
        let mut acceptor = SslAcceptor::mozilla_intermediate(SslMethod::tls())?;
        acceptor.set_private_key(&key)?;
        acceptor.set_certificate(&certificate)?;
        let acceptor = acceptor.build();
        let server = Self::serve(move |stream, state| {
            let Ok(mut stream) = acceptor.accept(stream) else { return };
            if let Some(head) = read_head(&mut stream) {
                state.lock().expect("not poisoned").push(Request::parse(&head));
                let _ = stream.write_all(&answer.bytes);
            }
        });
        Ok((server, pem))
    }

    /// An address that refuses connections; nobody else gets it while the process lives.
    pub(crate) fn refused() -> SocketAddr {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("the loopback device has room");
        let address = socket.local_addr().expect("a bound socket has an address");
        std::mem::forget(socket);
        address
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }

    /// The request lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.line).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().expect("not poisoned")
    }

    pub(crate) fn root(&self) -> String {
        root(self.address)
    }
}

/// A server that speaks HTTP/2, and on its first connection never says a word. Its root, and its certificate in PEM form.
pub(crate) fn start_http_2(content: &'static [u8]) -> Result<(String, Vec<u8>), ErrorStack> {
    let (key, certificate) = self_signed("localhost")?;
    let mut acceptor = SslAcceptor::mozilla_intermediate(SslMethod::tls())?;
    acceptor.set_private_key(&key)?;
    acceptor.set_certificate(&certificate)?;
    acceptor.set_alpn_select_callback(|_, offered| select_next_proto(b"\x02h2", offered).ok_or(AlpnError::NOACK));
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback device has room");
    let address = listener.local_addr().expect("a bound socket has an address");
    listener.set_nonblocking(true).expect("a socket");
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let mut frozen = None;
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let ssl = Ssl::new(acceptor.context()).expect("TLS");
            let mut stream = tokio_openssl::SslStream::new(ssl, stream).expect("TLS");
            if Pin::new(&mut stream).accept().await.is_err() {
                continue;
            }
            if frozen.is_none() {
                frozen = Some(stream);
                continue;
            }
            let service = hyper::service::service_fn(move |_| async move {
                Ok::<_, Infallible>(hyper::Response::new(http_body_util::Full::new(bytes::Bytes::from_static(content))))
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        }
    };
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(serve);
    });
    Ok((root(address).replace("http://127.0.0.1", "https://localhost"), certificate.to_pem()?))
}

/// The URL of the test repository at a server.
pub(crate) fn root(address: SocketAddr) -> String {
    format!("http://{address}/cvmfs/test.example.org")
}

fn answer_requests(mut stream: TcpStream, script: &[Answer], requests: &Mutex<Vec<Request>>) {
    while let Some(answer) = next_answer(&mut stream, script, requests) {
        if stream.write_all(&answer.bytes).is_err() {
            return;
        }
        match answer.then {
            Then::KeepAlive => continue,
            // The client must have read the answer's beginning, or the reset swallows it.
            Then::Reset => thread::sleep(Duration::from_millis(200)),
            Then::Close => {}
            Then::Trickle => {
                while stream.write_all(b" ").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Then::Hang => {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        return;
    }
}

/// Waits for a request and picks its answer; reads the request unless the connection is to be reset.
fn next_answer(stream: &mut TcpStream, script: &[Answer], requests: &Mutex<Vec<Request>>) -> Option<Answer> {
    let head = peek_head(stream)?;
    let answer = {
        let mut requests = requests.lock().expect("not poisoned");
        requests.push(Request::parse(&head));
        script.get(requests.len() - 1).or(script.last()).cloned()?
    };
    // A connection that is closed with unread bytes is reset by the kernel.
    if answer.then != Then::Reset {
        read_head(stream)?;
    }
    // A client does not expect content after HEAD.
    if head.starts_with("HEAD ") {
        let end =
            answer.bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.bytes.len(), |at| at + 4);
        return Some(Answer { bytes: answer.bytes[..end].to_vec(), ..answer });
    }
    Some(answer)
}

fn peek_head(stream: &TcpStream) -> Option<String> {
    let mut buffer = [0; 8192];
    loop {
        let size = stream.peek(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..size]);
        if size == 0 {
            return None;
        }
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            return Some(head.to_owned());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads what a request brings along.
fn read_body(stream: &mut impl Read, request: &Request) -> Option<Vec<u8>> {
    let length = request.headers.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok().map(|()| body)
}

fn forward(mut client: TcpStream, requests: &Mutex<Vec<Request>>) -> Option<()> {
    let head = read_head(&mut client)?;
    let request = Request::parse(&head);
    let body = read_body(&mut client, &request)?;
    requests.lock().expect("not poisoned").push(request.clone());
    let (method, url) = request.line.split_once(' ')?;
    let (host, path) = url.strip_prefix("http://")?.split_once('/')?;
    let Ok(mut server) = TcpStream::connect(host) else {
        let answer = Answer::with_headers(503, &["X-Squid-Error: ERR_CONNECT_FAIL 111"], b"");
        return client.write_all(&answer.bytes).ok();
    };
    write!(server, "{method} /{path} HTTP/1.1\r\n").ok()?;
    for header in request.headers.iter().filter(|header| !header.starts_with("connection:")) {
        write!(server, "{header}\r\n").ok()?;
    }
    write!(server, "connection: close\r\n\r\n").ok()?;
    server.write_all(&body).ok()?;
    std::io::copy(&mut server, &mut client).ok().map(drop)
}

fn self_signed(host: &str) -> Result<(PKey<Private>, X509), ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut name = X509Name::builder()?;
    name.append_entry_by_text("CN", host)?;
    let name = name.build();
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    certificate.set_pubkey(&key)?;
    certificate.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    certificate.set_not_after(Asn1Time::days_from_now(1)?.as_ref())?;
    let names = SubjectAlternativeName::new().dns(host).build(&certificate.x509v3_context(None, None))?;
    certificate.append_extension(names)?;
    certificate.sign(&key, MessageDigest::sha256())?;
    Ok((key, certificate.build()))
}

fn tunnel(mut client: TcpStream, authorization: &str, seen: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let Some(head) = read_head(&mut client) else { return Ok(()) };
    let request = Request::parse(&head);
    let is_allowed = request.has(&format!("proxy-authorization: {authorization}"));
    let target = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().expect("not poisoned").push(request);
    if !is_allowed {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    }
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    std::io::copy(&mut server, &mut client).map(drop)
}
