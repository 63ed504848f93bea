//! Plain requests for files, answered without the HTTP library.
//!
//! ```text
//! head ─► plain? ─yes─► answer ─► send: one call for head and body, or sendfile ─► next head
//!           └─no──► the connection goes to hyper, with what was read of it
//! ```
//!
//! Nearly all requests of clients and caches are alike: GET or HEAD for a file, HTTP/1.1, no body, the connection
//! stays open. For those this is the shortest way: a large file goes from the system's memory to the socket without
//! being copied through ours, and a small one takes two system calls if it is in [`super::cache`]. Everything else
//! that HTTP has (bodies, other versions, pages, functions, malformed requests) is hyper's, so nothing is judged
//! here: a request that is not plain beyond doubt is passed on as it came.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use rustix::net::SendFlags;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;

use super::access::{self, Record};
use super::answer::{Content, ResponseBody, plain_answer};
use super::connection::Shared;
use super::route::{Target, route};

/// Header lines of a plain request; more are left to hyper.
const HEADERS_MAX: usize = 64;

/// Room for the heads of a few requests.
const BUFFER_SIZE: usize = 4096;

/// What the bytes of a connection begin with.
enum Head {
    /// A part of a head.
    Incomplete,
    /// A plain request, with its length in bytes and what it names.
    Plain(Box<Request<()>>, usize, Target),
    /// Something that is not for us.
    Other,
}

/// Answers plain requests until another one comes, which is returned with the connection; `None` at its end.
///
/// # Errors
/// Those of the connection, and `TimedOut` for a client that is too slow.
pub(super) async fn run(
    mut stream: TcpStream,
    client: SocketAddr,
    shared: &Arc<Shared>,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
) -> io::Result<Option<(TcpStream, Bytes)>> {
    let mut buffer = BytesMut::with_capacity(BUFFER_SIZE);
    let mut out = Vec::new();
    loop {
        let (request, length, target) = match examine(&buffer, shared) {
            Head::Plain(request, length, target) => (request, length, target),
            Head::Other => return Ok(Some((stream, buffer.freeze()))),
            Head::Incomplete if buffer.len() >= shared.options.max_header_size => {
                return Ok(Some((stream, buffer.freeze())));
            }
            Head::Incomplete => {
                let is_idle = buffer.is_empty();
                // The room of the heads before is used again, or a head would not fit in one piece some day.
                buffer.reserve(BUFFER_SIZE);
                let read = tokio::time::timeout(shared.options.request_timeout, stream.read_buf(&mut buffer));
                let read = tokio::select! {
                    biased;
                    read = read => read,
                    () = stopped.as_mut(), if is_idle => return Ok(None),
                };
                // Whoever sends a head in pieces is hyper's, which limits the time for all of them.
                match read?? {
                    0 => return Ok(None),
                    _ if is_idle => continue,
                    _ => return Ok(Some((stream, buffer.freeze()))),
                }
            }
        };
        buffer.advance(length);
        shared.metrics.begin_request();
        let record = shared.options.access_log.then(|| Record::new(client, &request));
        let response = plain_answer(&request, target, shared).await;
        write_head(&response, &mut out);
        send(&stream, &out, response, record, shared).await?;
    }
}

/// Looks whether `bytes` begin with a plain request.
fn examine(bytes: &[u8], shared: &Shared) -> Head {
    if bytes.is_empty() {
        return Head::Incomplete;
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Head::Incomplete,
        Err(_) => return Head::Other,
    };
    plain_request(&parsed, shared)
        .map_or(Head::Other, |(request, target)| Head::Plain(Box::new(request), length, target))
}

fn plain_request(parsed: &httparse::Request<'_, '_>, shared: &Shared) -> Option<(Request<()>, Target)> {
    let method = match parsed.method? {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        _ => return None,
    };
    let path = parsed.path.filter(|path| path.starts_with('/') && path.len() <= shared.options.max_uri_length)?;
    if parsed.version != Some(1) {
        return None;
    }
    let uri = Uri::try_from(path).ok()?;
    let target = route(uri.path()).filter(|target| matches!(target, Target::File(_) | Target::Health(_)))?;
    let mut request = Request::new(());
    for header in parsed.headers.iter() {
        let is = |name: &HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&header::CONNECTION) {
            if !header.value.eq_ignore_ascii_case(b"keep-alive") {
                return None;
            }
        } else if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT, header::UPGRADE].iter().any(is) {
            return None;
        } else if let Some(name) = CONSIDERED.iter().find(|name| is(name)) {
            request.headers_mut().append(name, HeaderValue::from_bytes(header.value).ok()?);
        }
    }
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    Some((request, target))
}

/// The headers that an answer or its log may depend on.
const CONSIDERED: [HeaderName; 7] = [
    header::RANGE,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::USER_AGENT,
    access::INFO,
];

/// Writes status line and headers as hyper would.
fn write_head(response: &Response<ResponseBody>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(response.status().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(response.status().canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        let mut begins = true;
        for byte in name.as_str().bytes() {
            out.push(if begins { byte.to_ascii_uppercase() } else { byte });
            begins = byte == b'-';
        }
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Sends a response; `head` is its written head.
async fn send(
    stream: &TcpStream,
    head: &[u8],
    response: Response<ResponseBody>,
    record: Option<Record>,
    shared: &Shared,
) -> io::Result<()> {
    let stall_timeout = shared.options.write_stall_timeout;
    let status = response.status();
    let mut body = response.into_body();
    if let Some(record) = record {
        body = body.logged(record.status(status));
    }
    match body.take_content() {
        Content::Bytes(content) => {
            send_all(stream, head, &content, stall_timeout).await?;
            shared.metrics.add_bytes(content.len());
            body.count(content.len());
        }
        Content::File(mut file) => {
            let writable = Writable { stream, stall_timeout };
            writable.all(head, SendFlags::MORE).await?;
            while let Some(sent) = file.send_some(&writable).await? {
                shared.metrics.add_bytes(sent);
                body.count(sent);
            }
        }
        Content::Stream(mut blocks) => {
            let writable = Writable { stream, stall_timeout };
            writable.all(head, SendFlags::MORE).await?;
            while let Some(block) = blocks.next().await {
                let block = block?;
                writable.all(&block, SendFlags::empty()).await?;
                shared.metrics.add_bytes(block.len());
                body.count(block.len());
            }
        }
    }
    Ok(())
}

/// Sends two pieces in one go.
async fn send_all(stream: &TcpStream, head: &[u8], body: &[u8], stall_timeout: Duration) -> io::Result<()> {
    let writable = Writable { stream, stall_timeout };
    let sent = writable.once(|| stream.try_write_vectored(&[IoSlice::new(head), IoSlice::new(body)])).await?;
    match sent.checked_sub(head.len()) {
        Some(of_body) => writable.all(&body[of_body..], SendFlags::empty()).await,
        None => {
            writable.all(&head[sent..], SendFlags::MORE).await?;
            writable.all(body, SendFlags::empty()).await
        }
    }
}

/// A socket whose client must take something within some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writable<'a> {
    stream: &'a TcpStream,
    stall_timeout: Duration,
}

impl Writable<'_> {
    /// Sends all of `bytes`.
    pub(super) async fn all(&self, mut bytes: &[u8], flags: SendFlags) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.with(|socket| Ok(rustix::net::send(socket, bytes, flags)?)).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Carries out one system call on the socket as soon as it can take something.
    pub(super) async fn with(&self, mut call: impl FnMut(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        self.once(|| self.stream.try_io(Interest::WRITABLE, || call(self.stream))).await
    }

    async fn once(&self, mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        // A fast client must not keep the others on this thread waiting.
        tokio::task::coop::consume_budget().await;
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::timeout(self.stall_timeout, self.stream.writable()).await??;
                }
                result => return result,
            }
        }
    }
}
