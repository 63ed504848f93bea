//! Web servers and proxies that misbehave on purpose, one scripted answer per request.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::storage::Key;
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslAcceptor, SslMethod};
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
        let (objects, busy) = <(Arc<Mutex<HashMap<String, Vec<u8>>>>, Arc<AtomicUsize>)>::default();
        let (found, left) = (Arc::clone(&objects), Arc::clone(&busy));
        let server = Self::serve(move |mut stream, seen| {
            while let Some(head) = read_head(&mut stream) {
                let request = Request::parse(&head);
                let content = found.lock().expect("not poisoned").get(&request.line).cloned();
                seen.lock().expect("not poisoned").push(request);
                let is_busy =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
                let answer = match content {
                    _ if is_busy => Answer::with_headers(503, &["Retry-After: 0"], b""),
                    Some(content) => Answer::keep_alive(&content),
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
        let line = format!("GET /cvmfs/test.example.org/{}", Key::Object(*id));
        self.objects.lock().expect("not poisoned").insert(line, content.to_vec());
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

    /// An address that refuses connections.
    pub(crate) fn refused() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback device takes servers");
        listener.local_addr().expect("a bound socket has an address")
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
            Then::Reset => thread::sleep(Duration::from_millis(30)),
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

fn forward(mut client: TcpStream, requests: &Mutex<Vec<Request>>) -> Option<()> {
    let head = read_head(&mut client)?;
    let request = Request::parse(&head);
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
