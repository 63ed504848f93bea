//! The service's HTTP: few requests, small, from programs; and from whoever else can reach the port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::progress::Cancel;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinSet;

use super::Shared;
use super::auth::Proof;
use super::metrics::Rejection;
use super::payload::{self, Hint, Notification};
use super::queue::{Added, Durability};
use super::worker::CANCEL_CHECK;

/// Bytes of the largest head of a request.
const HEAD_MAX: usize = 16 * 1024;
/// How long to wait when the system gives us no connection, normally for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// Pieces of a stream that wait for a client; one that is further behind is cut off.
const STREAM_BACKLOG: usize = 64;
/// How often a stream without events says that it is there: proxies, and clients that went away, want to know.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// What a sender is to wait if the queue is full, in seconds.
const RETRY_AFTER: &str = "60";

/// Serves until it is cancelled.
pub(super) fn serve(socket: std::net::TcpListener, shared: &Arc<Shared>, cancel: &Cancel) -> Result<()> {
    socket.set_nonblocking(true).at("listening socket")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at("tokio runtime")?;
    runtime.block_on(async {
        let socket = TcpListener::from_std(socket).at("listening socket")?;
        let stop = watch::Sender::new(false);
        let slots = Arc::new(Semaphore::new(shared.options.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
        let mut running = JoinSet::new();
        let mut check = tokio::time::interval(CANCEL_CHECK);
        loop {
            let accepted = tokio::select! {
                _ = check.tick() => {
                    if cancel.check().is_err() {
                        break;
                    }
                    while running.try_join_next().is_some() {}
                    continue;
                }
                // Those who wait for a slot wait in the system's queue.
                accepted = accept(&socket, &slots) => accepted,
            };
            match accepted {
                Ok((stream, client, slot)) => {
                    let (shared, stopping) = (Arc::clone(shared), stop.subscribe());
                    running.spawn(async move {
                        run(stream, client, shared, stopping).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(socket);
        stop.send_replace(true);
        let finish = async { while running.join_next().await.is_some() {} };
        // Those who take longer lose their connection; what they were told is true.
        let _ = tokio::time::timeout(shared.options.grace, finish).await;
        running.shutdown().await;
        Ok(())
    })
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(socket: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, client) = socket.accept().await?;
    Ok((stream, client, slot))
}

/// Serves the requests of one client.
async fn run(stream: TcpStream, client: SocketAddr, shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
    let timeout = shared.options.request_timeout;
    // Heads and small bodies are written at once; the system gives up a client that takes none of them.
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let prepared =
        stream.set_nodelay(true).and_then(|()| Ok(rustix::net::sockopt::set_tcp_user_timeout(&stream, milliseconds)?));
    if let Err(error) = prepared {
        tracing::debug!(%client, %error, "cannot set socket options");
    }
    let stream_stopping = stopping.clone();
    let service = service_fn(|request| {
        let (shared, stopping) = (Arc::clone(&shared), stream_stopping.clone());
        async move { Ok::<_, Infallible>(answer(request, client, &shared, stopping).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeout)
            .max_header_size(HEAD_MAX)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "connection ended");
    }
}

/// Waits until the service is to end.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the service itself is gone, which is a reason to stop as well.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    shared: &Arc<Shared>,
    stopping: watch::Receiver<bool>,
) -> Response<ResponseBody> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/" | "/notify" if request.method() == Method::POST => take(request, client, shared).await,
        "/" | "/notify" => refuse(StatusCode::METHOD_NOT_ALLOWED, "notifications come with POST"),
        "/queue" | "/events" | "/metrics" | "/healthz" if !is_read => {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "there is only something to read")
        }
        "/healthz" => respond(StatusCode::OK, "text/plain", "ok\n"),
        "/metrics" => {
            let text = shared.metrics.render(shared.queue.lengths(), shared.feed.listeners());
            respond(StatusCode::OK, "text/plain; version=0.0.4", text)
        }
        "/queue" | "/events" if !is_known(shared, request.headers()) => unauthorized(),
        "/queue" => queue(shared),
        "/events" => events(shared, stopping),
        _ => refuse(StatusCode::NOT_FOUND, "there is nothing of that name"),
    }
}

/// Whether a request has the secret itself, if there is one.
fn is_known(shared: &Shared, headers: &HeaderMap) -> bool {
    shared.options.secret.as_ref().is_none_or(|secret| secret.look_at(headers) == Proof::Known)
}

/// Takes a notification.
async fn take(request: Request<Incoming>, client: SocketAddr, shared: &Arc<Shared>) -> Response<ResponseBody> {
    let rejected = |reason, response| {
        shared.metrics.reject(reason, 1);
        tracing::info!(%client, ?reason, "a notification is not taken");
        response
    };
    let (head, body) = request.into_parts();
    // 1. Who is it? Nobody reads what strangers send.
    let proof = match &shared.options.secret {
        Some(secret) => secret.look_at(&head.headers),
        // Pages in a browser on this machine can send it requests as well.
        None if head.headers.contains_key(header::ORIGIN) => Proof::None,
        None => Proof::Known,
    };
    if proof == Proof::None {
        return rejected(Rejection::Unauthorized, unauthorized());
    }
    // 2. What is it?
    let body = tokio::time::timeout(shared.options.request_timeout, read(body, shared.options.body_max)).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(StatusCode::PAYLOAD_TOO_LARGE)) => {
            let response = refuse(StatusCode::PAYLOAD_TOO_LARGE, "a notification is not that large");
            return rejected(Rejection::TooLarge, response);
        }
        Ok(Err(status)) => return rejected(Rejection::Malformed, refuse(status, "the body cannot be read")),
        Err(_timeout) => {
            return rejected(Rejection::TooSlow, refuse(StatusCode::REQUEST_TIMEOUT, "the body takes too long"));
        }
    };
    let verified = shared.options.secret.as_ref().map_or(Ok(true), |secret| secret.verify(&proof, &body));
    match verified {
        Ok(true) => {}
        Ok(false) => return rejected(Rejection::Unauthorized, unauthorized()),
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
    let notification = match payload::parse(&body) {
        Ok(notification) => notification,
        Err(error) => {
            return rejected(Rejection::Malformed, refuse(StatusCode::BAD_REQUEST, &error.to_string()));
        }
    };
    // 3. What of it is wanted?
    let (worker, form) = (Arc::clone(shared), notification.form);
    match tokio::task::spawn_blocking(move || enqueue(&worker, client, notification)).await {
        Ok(Ok((added, refused))) => {
            let reply =
                json!({"form": form.name(), "queued": added.queued, "joined": added.joined, "refused": refused});
            respond(StatusCode::ACCEPTED, "application/json", format!("{reply}\n"))
        }
        Ok(Err(error)) => {
            tracing::error!(%client, %error, "a notification cannot be queued");
            shared.metrics.reject(Rejection::NotQueued, 1);
            let status = match error {
                Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let mut response = refuse(status, "the queue takes no more now");
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            response
        }
        Err(failure) => {
            tracing::error!(%client, %failure, "a notification cannot be queued");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "an internal error")
        }
    }
}

/// Queues what is allowed of a notification; gives what is not. Waits for the disk.
fn enqueue(shared: &Shared, client: SocketAddr, notification: Notification) -> Result<(Added, Vec<String>)> {
    let allowed = shared.allowed();
    let (mut hints, mut refused) = (Vec::new(), notification.refused);
    let bad_names = refused.len();
    for hint in notification.hints {
        match allowed.admit(&hint) {
            Some(image) => hints.push(Hint { action: hint.action, image }),
            None => refused.push(format!("the image \"{}\": nobody asked for it", hint.image)),
        }
    }
    if !refused.is_empty() {
        tracing::info!(%client, ?refused, "a notification names images that are refused");
    }
    // A registry that is told of an error sends the same again, and nothing else until it is taken.
    let added = if hints.is_empty() {
        Added::default()
    } else {
        shared.queue.add(&hints, Durability::Durable, (shared.clock)()?)?
    };
    shared.metrics.notification(notification.form.name(), hints.len());
    shared.metrics.reject(Rejection::BadName, bad_names);
    shared.metrics.reject(Rejection::NotAllowed, refused.len() - bad_names);
    Ok((added, refused))
}

/// Receives a body, unless it is too long.
async fn read(body: Incoming, max: usize) -> Result<Vec<u8>, StatusCode> {
    if body.size_hint().lower() > max as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let data = frame.map_err(|_| StatusCode::BAD_REQUEST)?.into_data().unwrap_or_default();
        if bytes.len() + data.len() > max {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn queue(shared: &Shared) -> Response<ResponseBody> {
    let lengths = shared.queue.lengths();
    let document = json!({
        "waiting": lengths.waiting, "running": lengths.running, "failed": lengths.failed, "ignored": lengths.ignored,
        "entries": shared.queue.shown(),
    });
    respond(StatusCode::OK, "application/json", format!("{document:#}\n"))
}

/// Begins a stream of events.
fn events(shared: &Shared, mut stopping: watch::Receiver<bool>) -> Response<ResponseBody> {
    let mut news = shared.feed.subscribe();
    let (sender, pieces) = mpsc::channel(STREAM_BACKLOG);
    tokio::spawn(async move {
        loop {
            let piece = tokio::select! {
                piece = tokio::time::timeout(SIGN_OF_LIFE, news.recv()) => piece,
                () = sender.closed() => return,
                () = stopped(&mut stopping) => return,
            };
            let piece = match piece {
                Ok(Ok(event)) => Bytes::from(event.as_bytes().to_vec()),
                Ok(Err(broadcast::error::RecvError::Lagged(missed))) => Bytes::from(format!(": {missed} missed\n\n")),
                Ok(Err(broadcast::error::RecvError::Closed)) => return,
                Err(_timeout) => Bytes::from_static(b":\n\n"),
            };
            if sender.try_send(piece).is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(ResponseBody::Stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Bytes(Some(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refuse(status: StatusCode, reason: &str) -> Response<ResponseBody> {
    respond(status, "application/json", format!("{}\n", json!({ "error": reason })))
}

fn unauthorized() -> Response<ResponseBody> {
    let mut response = refuse(StatusCode::UNAUTHORIZED, "the secret, or a signature with it, is missing or wrong");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The body of a response.
#[derive(Debug)]
enum ResponseBody {
    /// All of it.
    Bytes(Option<Bytes>),
    /// Piece by piece, until there is no sender any more.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Self::Bytes(bytes) => bytes.take(),
            Self::Stream(pieces) => match pieces.poll_recv(context) {
                Poll::Ready(piece) => piece,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Bytes(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
