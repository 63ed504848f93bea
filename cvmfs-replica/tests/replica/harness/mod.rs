//! A tree of repositories, a server for it on a port of its own, and a client that sends exactly what it is told.

#![allow(unreachable_pub, reason = "helpers of tests")]

pub mod evil;
pub mod mmdb;
pub mod original;
pub mod slow_line;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_replica::serve::{Repositories, ServeOptions, ServeOutcome, listen, serve};
use tokio::sync::oneshot;

/// More bytes than the buffers of both sides of a connection can hide.
pub const LARGE: usize = 32 << 20;

/// The repository that every site has.
pub const REPOSITORY: &str = "test.example.org";

/// Far more than any test needs, so that a broken one fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory as the server's root.
pub struct Site {
    root: tempfile::TempDir,
}

impl Site {
    /// Makes a root with one repository that has a manifest.
    pub fn new() -> Self {
        let site = Self { root: tempfile::tempdir().expect("temporary directory") };
        site.put(".cvmfspublished", b"manifest of revision 1\n");
        site
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The storage directory of the repository.
    pub fn storage(&self) -> PathBuf {
        self.root().join("srv/cvmfs").join(REPOSITORY)
    }

    /// Writes a file of the repository as the tools do: under another name first.
    pub fn put(&self, path: &str, content: &[u8]) {
        let path = self.storage().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
        let temporary = path.with_extension("temporary");
        std::fs::write(&temporary, content).expect("file");
        std::fs::rename(&temporary, &path).expect("rename");
    }

    /// Stores an object and returns its path below the repository.
    pub fn put_object(&self, kind: ObjectKind, content: &[u8]) -> String {
        let name = ObjectId::of(Algorithm::Sha1, kind, content).to_string();
        let path = format!("data/{}/{}", &name[..2], &name[2..]);
        self.put(&path, content);
        path
    }
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<ServeOutcome>>,
}

impl Server {
    pub fn start(site: &Site) -> Self {
        Self::with(site, ServeOptions::default())
    }

    pub fn with(site: &Site, options: ServeOptions) -> Self {
        let repositories = Repositories::scan(site.root());
        let (stop, stopped) = oneshot::channel();
        let (started, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("runtime").block_on(async {
                let listeners = listen(&[SocketAddr::from(([127, 0, 0, 1], 0))]).expect("listener");
                started.send(listeners[0].local_addr().expect("address")).expect("the test waits");
                let stopped = async { drop(stopped.await) };
                serve(listeners, repositories, options, stopped).await.expect("server")
            })
        });
        Self { address: address.recv().expect("the server starts"), stop: Some(stop), thread: Some(thread) }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Sends one request, as it is, on a connection of its own.
    pub fn connect_and(&self, request: &str) -> Reply {
        let mut client = self.connect();
        client.send(request);
        client.reply()
    }

    /// Sends one request on a connection of its own; `path` is below the repository.
    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "")
    }

    /// Like `get`, with another method and more header lines, each ending with `\r\n`.
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> Reply {
        let mut client = self.connect();
        client.send(format!("{method} /cvmfs/{REPOSITORY}/{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        client.reply_to(method)
    }

    /// Asks the server to stop and returns at once.
    pub fn begin_stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).expect("the server runs");
    }

    /// Waits until the server has stopped.
    pub fn finish(mut self) -> ServeOutcome {
        drop(self.stop.take());
        self.thread.take().expect("finished once").join().expect("the server does not panic")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub version: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        Self { stream }
    }

    pub fn send(&mut self, request: impl AsRef<[u8]>) {
        self.stream.write_all(request.as_ref()).expect("request sent");
    }

    /// Reads the response to a GET.
    pub fn reply(&mut self) -> Reply {
        self.reply_to("GET")
    }

    /// Reads a response; to HEAD it has no body, whatever its length says.
    pub fn reply_to(&mut self, method: &str) -> Reply {
        let mut reply = self.head().expect("a response");
        let has_body = method != "HEAD" && reply.status != 304;
        let length = if has_body { reply.header("content-length").parse().expect("a length") } else { 0 };
        reply.body = vec![0; length];
        self.stream.read_exact(&mut reply.body).expect("the whole body");
        reply
    }

    /// Reads the head of a response, or `None` if the connection ends.
    pub fn head(&mut self) -> Option<Reply> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                read => read.expect("a response in time"),
            };
            head.extend(byte);
        }
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.lines();
        let mut status = lines.next().expect("a status line").splitn(3, ' ');
        let version = status.next().expect("a version").to_owned();
        let status = status.next().expect("a status").parse().expect("a number");
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        Some(Reply { version, status, headers: lines.filter_map(header).collect(), body: Vec::new() })
    }

    /// Reads at most `count` bytes of a body; fewer if the connection ends.
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        let mut body = Vec::new();
        let read = (&self.stream).take(count as u64).read_to_end(&mut body);
        match read {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("no data in time: {error}"),
            _ => body,
        }
    }

    /// Says that nothing more will be sent.
    pub fn close_half(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    }

    /// Whether the server has ended the connection.
    pub fn is_closed(&mut self) -> bool {
        self.read(1).is_empty()
    }
}

/// Bytes that do not compress or repeat, and differ with `seed`.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56).to_le_bytes()[0]
    };
    std::iter::repeat_with(step).take(length).collect()
}
