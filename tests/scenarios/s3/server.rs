//! A real S3 server in this process, with a layer in front that counts requests and spoils some.
//!
//! The server keeps objects as plain files, `<directory>/<bucket>/<key>`, so that the independent verifier can read what
//! is in the bucket as it reads a storage directory.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub(crate) const BUCKET: &str = "bucket";
const ACCESS_KEY: &str = "AKIDTEST";
const SECRET_KEY: &str = "secret/with+signs";

/// How a request is spoiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not carried out, status 429 with a wait.
    Throttled,
    /// Not carried out, and no answer while anybody waits.
    Hang,
    /// Carried out, and the answer ends in the middle of its body, if it has one.
    Half,
    /// Not carried out, status 500.
    Internal,
    /// Not carried out, status 503 with a wait.
    Busy,
    /// Not carried out, no answer.
    Cut,
    /// Carried out, no answer.
    Lost,
    /// Not carried out, and it would be the same again: status 403.
    Denied,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] =
        [Self::Internal, Self::Busy, Self::Denied, Self::Throttled, Self::Hang, Self::Cut, Self::Lost, Self::Half];
}

#[derive(Default)]
struct Faults {
    seen: AtomicU64,
    /// The first request that is spoiled, how many are, and how.
    plan: Mutex<Option<(u64, u64, Fault)>>,
    log: Mutex<Vec<String>>,
    /// The server looks at conditions and then writes: one at a time, as a real service does.
    conditional: tokio::sync::Mutex<()>,
}

pub(crate) struct Server {
    directory: PathBuf,
    temporary: Option<TempDir>,
    address: SocketAddr,
    faults: Arc<Faults>,
    // Dropped last: what it runs uses the rest.
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start() -> Self {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let mut server = Self::start_in(temporary.path(), "127.0.0.1");
        server.temporary = Some(temporary);
        server
    }

    /// Keeps the bucket below a directory, where it may be already; listens on a free port of an address.
    pub(crate) fn start_in(directory: &Path, address: &str) -> Self {
        std::fs::create_dir_all(directory.join(BUCKET)).expect("bucket");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(directory).expect("server"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        // Each operation on a file is a task for the blocking threads: with hundreds of them, waking them is most of the work.
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).max_blocking_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let listener = runtime.block_on(TcpListener::bind((address, 0))).expect("listener");
        let address = listener.local_addr().expect("address");
        let faults = Arc::<Faults>::default();
        runtime.spawn(accept(listener, service, Arc::clone(&faults)));
        Self { directory: directory.to_owned(), temporary: None, address, faults, _runtime: runtime }
    }

    /// The configuration file for this server.
    pub(crate) fn configuration(&self, more: &str) -> String {
        format!(
            "CVMFS_S3_HOST={}\nCVMFS_S3_PORT={}\nCVMFS_S3_BUCKET={BUCKET}\nCVMFS_S3_ACCESS_KEY={ACCESS_KEY}\n\
             CVMFS_S3_SECRET_KEY={SECRET_KEY}\nCVMFS_S3_DNS_BUCKETS=false\nCVMFS_S3_TIMEOUT=10\n{more}",
            self.address.ip(),
            self.address.port()
        )
    }

    /// Where the server keeps everything.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the objects of the bucket are.
    pub(crate) fn bucket(&self) -> PathBuf {
        self.directory.join(BUCKET)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.faults.seen.load(Ordering::Relaxed)
    }

    /// Spoils requests from the `first` next one on, counted from 0.
    pub(crate) fn spoil(&self, first: u64, count: u64, fault: Fault) {
        *self.faults.plan.lock().expect("plan") = Some((self.requests() + first, count, fault));
    }

    pub(crate) fn heal(&self) {
        *self.faults.plan.lock().expect("plan") = None;
    }

    /// Methods and paths of the requests since the last call.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.faults.log.lock().expect("log"))
    }
}

async fn accept(listener: TcpListener, service: S3Service, faults: Arc<Faults>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        // Or an answer in two pieces waits for the other side to confirm the first, which takes 40 ms.
        // It fails for who is gone already.
        let _ = socket.set_nodelay(true);
        let (service, faults) = (service.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            let handle = hyper::service::service_fn(|request| answer(&service, &faults, request));
            // A connection that is cut on purpose ends with an error.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), handle).await;
        });
    }
}

async fn answer(service: &S3Service, faults: &Faults, request: Request<Incoming>) -> io::Result<Response<s3s::Body>> {
    let number = faults.seen.fetch_add(1, Ordering::Relaxed);
    let line = format!("{} {}", request.method(), request.uri());
    faults.log.lock().expect("log").push(line);
    let plan = *faults.plan.lock().expect("plan");
    let fault = plan.filter(|(first, count, _)| (*first..first + count).contains(&number)).map(|(.., fault)| fault);
    let refuse = |status: u16| {
        let code = if status == 403 { "AccessDenied" } else { "SlowDown" };
        let body = Bytes::from(format!("<Error><Code>{code}</Code><Message>as ordered</Message></Error>"));
        let response = Response::builder().status(status).header("retry-after", "0");
        response.body(s3s::Body::http_body(Full::new(body))).map_err(io::Error::other)
    };
    match fault {
        Some(Fault::Internal) => return refuse(500),
        Some(Fault::Busy) => return refuse(503),
        Some(Fault::Denied) => return refuse(403),
        Some(Fault::Throttled) => return refuse(429),
        Some(Fault::Cut) => return Err(io::Error::other("cut")),
        // The future is dropped with the connection.
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Lost | Fault::Half) | None => {}
    }
    let is_conditional = *request.method() == Method::PUT && request.uri().path().contains("/.cvmfs");
    let _turn = if is_conditional { Some(faults.conditional.lock().await) } else { None };
    let response =
        service.call(request.map(s3s::Body::from)).await.map_err(|error| io::Error::other(format!("{error:?}")))?;
    match fault {
        Some(Fault::Lost) => Err(io::Error::other("cut")),
        Some(Fault::Half) => {
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| io::Error::other(error.to_string()))?.to_bytes();
            let half = Half(Some(body.slice(..body.len() / 2)).filter(|_| !body.is_empty()));
            Ok(Response::from_parts(head, s3s::Body::http_body(half)))
        }
        _ => Ok(response),
    }
}

/// The first half of a body, and then an error; nothing of an empty one.
struct Half(Option<Bytes>);

impl Body for Half {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match self.0.take() {
            None => None,
            Some(bytes) if bytes.is_empty() => Some(Err(io::Error::other("cut"))),
            Some(bytes) => {
                self.0 = Some(Bytes::new());
                Some(Ok(Frame::data(bytes)))
            }
        })
    }
}
