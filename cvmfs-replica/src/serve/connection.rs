//! One connection: its requests one after the other, and the limits that keep it from lasting for ever.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cvmfs_core::schedule;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};

use super::ServeOptions;
use super::access::Record;
use super::answer::{ResponseBody, answer};
use super::cache::ObjectCache;
use super::direct;
use super::geo::Geo;
use super::librarian::Librarian;
use super::metrics::Metrics;
use super::pull::Puller;
use super::repositories::Repositories;
use super::socket::Socket;
use super::state::States;
use super::tls::Tls;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) repositories: Arc<Repositories>,
    pub(super) objects: ObjectCache,
    pub(super) options: ServeOptions,
    pub(super) metrics: Metrics,
    /// One permit for each bundle that may be answered.
    pub(super) bundles: Arc<Semaphore>,
    pub(super) states: States,
    /// `None` if there are no pages.
    pub(super) librarian: Option<Librarian>,
    pub(super) downloads: Arc<Semaphore>,
    pub(super) geo: RwLock<Option<Arc<Geo>>>,
    pub(super) tls: Option<Tls>,
    pub(super) puller: Puller,
}

impl Shared {
    /// The geographic database, if there is one.
    pub(super) fn geo(&self) -> Option<Arc<Geo>> {
        self.geo.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of the jobs of the service.
    pub(super) fn records(&self) -> Vec<schedule::Record> {
        self.options.schedule.as_ref().map_or_else(Vec::new, |schedule| schedule.records())
    }

    /// Reads the geographic database again, or for the first time.
    pub(super) fn load_geo(&self) {
        let Some(file) = &self.options.geo_database else { return };
        match self.geo() {
            Some(geo) => geo.reload(),
            None if file.exists() => match Geo::open(file) {
                Ok(geo) => *self.geo.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(geo)),
                Err(error) => tracing::error!(%error, "cannot load the geographic database"),
            },
            None => {}
        }
    }

    /// Reads the configuration files of the server.
    pub(super) fn load_configuration(&self) {
        self.states.reload(&self.repositories, self.options.pull_through);
    }
}

/// Serves the requests of one client until it leaves, is too slow, or `stopping` turns true.
///
/// On `stopping` the request at hand is still answered, however long it takes; whoever waits sets the limit.
pub(super) async fn run(
    stream: TcpStream,
    client: SocketAddr,
    is_tls: bool,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let _open = shared.metrics.open_connection();
    // Heads and small bodies are written at once; waiting to fill a packet would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%client, %error, "cannot set TCP_NODELAY");
    }
    let mut stopped = pin!(stopped(&mut stopping));
    if is_tls {
        let Some(tls) = &shared.tls else { return };
        let socket = Socket::from(stream);
        match tls.accept(socket.clone(), shared.options.request_timeout).await {
            Ok(stream) => run_http(stream, Bytes::new(), socket, client, &shared, stopped).await,
            Err(error) => tracing::debug!(%client, %error, "no TLS connection"),
        }
        return;
    }
    match direct::run(stream, client, &shared, stopped.as_mut()).await {
        Ok(Some((stream, read))) => {
            let socket = Socket::from(stream);
            run_http(socket.clone(), read, socket, client, &shared, stopped).await;
        }
        Ok(None) => {}
        // Clients that vanish or are too slow are everyday life.
        Err(error) => tracing::debug!(%client, %error, "connection ended"),
    }
}

/// Serves requests of all kinds with hyper; `read` has come before what `stream`, which goes through `socket`, will bring.
async fn run_http<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    read: Bytes,
    socket: Socket,
    client: SocketAddr,
    shared: &Arc<Shared>,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
) {
    let options = &shared.options;
    let io = TokioIo::new(StallGuard::new(stream, read, options.write_stall_timeout));
    let service = service_fn(|mut request: Request<Incoming>| {
        // For answers that last until the client leaves.
        request.extensions_mut().insert(socket.clone());
        handle(request, client, shared)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.request_timeout)
            .max_header_size(options.max_header_size)
            // HTTP does not care, but scripts that look for `Content-Length` in the output of curl do.
            .title_case_headers(true)
            // Simple clients close their half after the request; they still want the answer.
            .half_close(true)
            .serve_connection(io, service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped.as_mut() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::debug!(%client, %error, cause, "connection ended");
    }
}

/// Waits until the server is to stop.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server itself is gone, which is a reason to stop as well.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

async fn handle(
    request: Request<Incoming>,
    client: SocketAddr,
    shared: &Arc<Shared>,
) -> Result<Response<ResponseBody>, Infallible> {
    shared.metrics.begin_request();
    let record = shared.options.access_log.then(|| Record::new(client, &request));
    let response = answer(request, client, shared).await;
    let status = response.status();
    let response = response.map(|body| body.metered(Arc::clone(shared)));
    Ok(match record {
        Some(record) => response.map(|body| body.logged(record.status(status))),
        None => response,
    })
}

/// A stream that fails when the other side takes no bytes for too long.
#[derive(Debug)]
struct StallGuard<S> {
    stream: S,
    /// What was read of it before.
    read: Bytes,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether a write is waiting and `timer` is set for it.
    waiting: bool,
}

impl<S> StallGuard<S> {
    fn new(stream: S, read: Bytes, limit: Duration) -> Self {
        Self { stream, read, limit, timer: None, waiting: false }
    }

    /// Passes on the result of a write, unless it has been pending for too long.
    fn watch<T>(&mut self, result: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = false;
            return result;
        }
        let deadline = || Instant::now() + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline())));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(deadline());
        }
        timer.as_mut().poll(context).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "client takes no data")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let count = self.read.len().min(buffer.remaining());
            buffer.put_slice(&self.read.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(result, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(result, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(result, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
