//! A source that misbehaves on purpose: files from a directory, unless a test has something else in mind.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What is done with a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// These bytes instead.
    Content(Vec<u8>),
    /// These header lines and bytes instead.
    Headed(&'static str, Vec<u8>),
    /// A status and header lines instead.
    Status(u16, &'static str),
    /// The connection is closed after half of the content, whose length was announced.
    Truncate,
    /// The connection is reset after half of the content.
    Reset,
    /// A byte now and then.
    Trickle,
    /// One bit of the content is wrong.
    Flip,
    /// A length that is too large or too small by so much.
    WrongLength(i64),
}

/// Decides about a request: path below the repository, and how many there were for it before.
pub(crate) type Mind = dyn Fn(&str, usize) -> Option<Fault> + Send + Sync;

/// A server on the loopback device; its threads end with the test process.
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<HashMap<String, usize>>>,
}

impl Source {
    /// Serves files of `storage`.
    pub(crate) fn start(storage: &Path, mind: impl Fn(&str, usize) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::<Mutex<HashMap<String, usize>>>::default();
        let (storage, mind, count): (PathBuf, Arc<Mind>, _) = (storage.to_owned(), Arc::new(mind), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (storage, mind, count) = (storage.clone(), Arc::clone(&mind), Arc::clone(&count));
                thread::spawn(move || while serve(&stream, &storage, &*mind, &count).is_some() {});
            }
        });
        Self { address, seen }
    }

    /// The URL of something in the repository.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/cvmfs/{}/{path}", self.address, crate::harness::REPOSITORY)
    }

    /// How often a path was asked for.
    pub(crate) fn requests(&self, path: &str) -> usize {
        self.seen.lock().expect("not poisoned").get(path).copied().unwrap_or_default()
    }
}

/// Answers one request; `None` when the connection is to be closed.
fn serve(mut stream: &TcpStream, storage: &Path, mind: &Mind, seen: &Mutex<HashMap<String, usize>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    stream.read_exact(&mut vec![0; length.unwrap_or(0)]).ok()?;
    let (method, rest) = head.split_once(' ')?;
    let path = rest.split(' ').next()?.splitn(4, '/').nth(3)?.to_owned();
    let nth = {
        let mut seen = seen.lock().expect("not poisoned");
        let count = seen.entry(path.clone()).or_default();
        *count += 1;
        *count - 1
    };
    let content = std::fs::read(storage.join(&path));
    let mut send = |status: u16, headers: &str, length: i64, content: &[u8]| {
        let head = format!("HTTP/1.1 {status} Evil\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        if method == "HEAD" { Some(()) } else { stream.write_all(content).ok() }
    };
    let size = |content: &[u8]| i64::try_from(content.len()).expect("small");
    let fault = mind(&path, nth);
    let content = match (&fault, content) {
        (Some(Fault::Content(content)), _) => content.clone(),
        (Some(Fault::Headed(headers, content)), _) => return send(200, headers, size(content), content),
        (Some(Fault::Status(status, headers)), _) => return send(*status, headers, 0, b""),
        (_, Ok(content)) => content,
        (_, Err(_)) => return send(404, "", 0, b""),
    };
    let half = &content[..content.len() / 2];
    match fault {
        None | Some(Fault::Content(_) | Fault::Headed(..) | Fault::Status(..)) => {
            send(200, "", size(&content), &content)
        }
        Some(Fault::Truncate) => {
            send(200, "", size(&content), half)?;
            None
        }
        Some(Fault::Reset) => {
            // Unread bytes make the system reset the connection; the next request of the client is such.
            send(200, "", size(&content), half)?;
            rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok()?;
            thread::sleep(Duration::from_millis(100));
            None
        }
        Some(Fault::Trickle) => {
            send(200, "", size(&content), b"")?;
            for byte in &content {
                stream.write_all(&[*byte]).ok()?;
                thread::sleep(Duration::from_millis(150));
            }
            None
        }
        Some(Fault::Flip) => {
            let mut wrong = content.clone();
            wrong[content.len() / 2] ^= 4;
            send(200, "", size(&content), &wrong)
        }
        Some(Fault::WrongLength(by)) => {
            send(200, "", size(&content) + by, &content)?;
            None
        }
    }
}
