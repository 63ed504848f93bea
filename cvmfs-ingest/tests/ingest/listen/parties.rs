//! Repositories, running services, registries that notify them, and clients that speak HTTP by hand.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::server::ServerRoot;
use cvmfs_publish::mkfs;
use serde_json::Value;
use tempfile::TempDir;

use crate::ports::free_port;
use crate::registry::servers::PASSWORD;

pub(crate) const NAME: &str = "images.example.org";
pub(crate) const SECRET: &str = "correct horse";

pub(crate) fn now() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed())
}

/// A server with an empty repository.
pub(crate) fn repository() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = ServerRoot::new(directory.path()).unwrap();
    mkfs::mkfs(&root, &NAME.parse().unwrap(), &mkfs::Options::new(now())).unwrap();
    directory
}

/// Waits until something holds; says what if that takes too long.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program, as a service.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
    /// What it says on standard error.
    pub(crate) said: Arc<Mutex<String>>,
}

impl Process {
    /// Starts `listen` for a repository, on a free port unless the arguments say which.
    pub(crate) fn start(root: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"));
        command.arg("--root").arg(root).arg("listen").args(arguments).env("CVMFS_INGEST_SECRET", SECRET);
        command.env("DUCC_OUTPUT_REGISTRY_PASS", PASSWORD);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on http://").and_then(|rest| rest.split_once('/'));
        let address = address.unwrap_or_else(|| panic!("it said: {line}")).0.to_owned();
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, address, said }
    }

    pub(crate) fn client(&self) -> Client {
        Client { address: self.address.clone() }
    }

    /// Sends a signal, and waits for the end.
    pub(crate) fn end(mut self, signal: &str) -> Option<i32> {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who speaks to a service.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: String,
}

impl Client {
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends a request, and gives status and body of the answer.
    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        head.extend(headers.iter().map(|header| format!("{header}\r\n")));
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        // The service may answer, and end the connection, before it has read everything.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        answer(&mut stream)
    }

    /// Sends a notification with the secret.
    pub(crate) fn notify(&self, body: &str) -> u16 {
        self.ask("POST", "/notify", &[&format!("Authorization: {SECRET}")], body.as_bytes()).0
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let (status, body) = self.ask("GET", path, &[&format!("Authorization: {SECRET}")], b"");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) fn queue(&self) -> Value {
        serde_json::from_str(&self.get("/queue")).unwrap()
    }

    /// A sample of the metrics, without `cvmfs_ingest_`; 0 if there is none.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("cvmfs_ingest_{name} ")));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until so many attempts had this result.
    #[track_caller]
    pub(crate) fn wait_for_attempts(&self, result: &str, count: u32) {
        let name = format!("attempts_total{{result=\"{result}\"}}");
        wait_for(&name, || (self.metric(&name) >= u64::from(count)).then_some(()));
    }
}

/// Status and body of an answer.
pub(crate) fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    // A connection that ends in the middle of what we send may end with an error, after the answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status, body.unwrap_or_default())
}

/// Debian's docker-registry, on a port of its own, which notifies a service.
pub(crate) struct Registry {
    process: Child,
    pub(crate) address: String,
    _directory: TempDir,
}

/// An address of this machine that nobody listens on.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

impl Registry {
    pub(crate) fn start(address: &str, service: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n\
             storage:\n  delete: {{enabled: true}}\n  filesystem: {{rootdirectory: '{}'}}\n\
             notifications:\n  endpoints:\n  - name: cvmfs\n    url: http://{service}/notify\n    \
             headers: {{Authorization: ['Bearer {SECRET}']}}\n    timeout: 2s\n    threshold: 3\n    backoff: 200ms\n",
            directory.path().join("data").display()
        );
        fs::write(&file, text).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new("docker-registry").arg("serve").arg(&file).stdout(Stdio::null()).stderr(log).spawn();
        let registry = Self { process: process.unwrap(), address: address.to_owned(), _directory: directory };
        wait_for("docker-registry", || TcpStream::connect(address).ok());
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A web server that notes the bodies that it gets, and refuses so many requests at first.
pub(crate) struct Sink {
    pub(crate) url: String,
    pub(crate) bodies: Arc<Mutex<Vec<String>>>,
}

impl Sink {
    pub(crate) fn start(refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook?secret=1", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut input = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    if input.read_line(&mut line).unwrap_or(0) <= 2 {
                        break;
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                input.read_exact(&mut body).unwrap();
                let status = if number < refusals { 503 } else { 200 };
                if status == 200 {
                    noted.lock().unwrap().push(String::from_utf8(body).unwrap());
                }
                let reply = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(reply.as_bytes());
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        Self { url, bodies }
    }
}
