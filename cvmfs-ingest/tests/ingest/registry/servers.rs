//! Registries: Debian's, and one that misbehaves as it is told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};
use serde_json::{Value, json};

use super::support::SCRATCH;
use crate::ports::free_port;

/// The account that the registries with passwords know.
pub(crate) const USER: &str = "robot";
/// Its password.
pub(crate) const PASSWORD: &str = "secret";
/// The same for `htpasswd`: bcrypt, made with Python's `crypt`.
const HTPASSWD: &str = "robot:$2b$04$9707R778W/tqi6BChgwE..Di3xcqj5LIv6pKVPoS4VXcI2jRUspVW\n";
/// What the registry is called to its token service.
const SERVICE: &str = "test registry";

/// A docker-registry of this test binary.
#[derive(Debug)]
pub(crate) struct Registry {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    _process: Child,
}

/// Without any authentication.
pub(crate) static PLAIN: LazyLock<Registry> = LazyLock::new(|| Registry::start("plain", ""));

/// With user and password.
pub(crate) static BASIC: LazyLock<Registry> = LazyLock::new(|| {
    let file = SCRATCH.path().join("htpasswd");
    fs::write(&file, HTPASSWD).unwrap();
    Registry::start("basic", &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()))
});

/// With tokens of [`TOKENS`], and TLS with the certificate of [`IDENTITY`].
pub(crate) static TOKEN: LazyLock<Registry> = LazyLock::new(|| {
    let (certificate, key) = (IDENTITY.certificate_file.display(), IDENTITY.key_file.display());
    let more = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: {SERVICE}\n    issuer: tests\n    \
         rootcertbundle: {certificate}\n",
        TOKENS.address
    );
    Registry::start_with("token", &format!("  tls:\n    certificate: {certificate}\n    key: {key}\n"), &more)
});

/// The token service of [`TOKEN`]: everybody may read `public/…`, the account may do everything.
pub(crate) static TOKENS: LazyLock<Server> = LazyLock::new(|| {
    Server::start(|request| {
        let account = match request.header("authorization") {
            None => None,
            Some(value) if value == basic(USER, PASSWORD) => Some(USER),
            Some(_) => return Reply::status(401),
        };
        let scopes: Vec<_> = request.query("scope").collect();
        let access: Vec<_> = scopes
            .iter()
            .filter_map(|scope| {
                let mut parts = scope.split(':');
                let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
                let is_allowed = |action: &&str| account.is_some() || name.starts_with("public/") && *action == "pull";
                let actions: Vec<_> = actions.split(',').filter(is_allowed).collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let token = IDENTITY.token(&access);
        // Some services call it so, some so.
        let name = if account.is_some() { "access_token" } else { "token" };
        Reply::json(&json!({name: token, "expires_in": 300}))
    })
});

/// The value of an `Authorization` with a password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", openssl::base64::encode_block(format!("{user}:{password}").as_bytes()))
}

/// A key and its certificate, for TLS and for tokens.
pub(crate) struct Identity {
    key: PKey<Private>,
    certificate: X509,
    pub(crate) certificate_file: PathBuf,
    key_file: PathBuf,
}

pub(crate) static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "test").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(1_700_000_000).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    let names =
        SubjectAlternativeName::new().ip("127.0.0.1").dns("localhost").build(&builder.x509v3_context(None, None));
    builder.append_extension(names.unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let certificate = builder.build();
    let (certificate_file, key_file) = (SCRATCH.path().join("registry.crt"), SCRATCH.path().join("registry.key"));
    fs::write(&certificate_file, certificate.to_pem().unwrap()).unwrap();
    fs::write(&key_file, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    Identity { key, certificate, certificate_file, key_file }
});

impl Identity {
    /// A signed token (RFC 7519) that allows this.
    fn token(&self, access: &[Value]) -> String {
        let encode = |bytes: &[u8]| {
            let text = openssl::base64::encode_block(bytes).replace('+', "-").replace('/', "_");
            text.trim_end_matches('=').to_owned()
        };
        let certificate = openssl::base64::encode_block(&self.certificate.to_der().unwrap());
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}).to_string();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "tests", "sub": "", "aud": SERVICE, "exp": now + 300, "nbf": now - 60, "iat": now - 60,
            "jti": now.to_string(), "access": access,
        });
        let text = format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).unwrap();
        format!("{text}.{}", encode(&signer.sign_oneshot_to_vec(text.as_bytes()).unwrap()))
    }
}

impl Registry {
    fn start(name: &str, more: &str) -> Self {
        Self::start_with(name, "", more)
    }

    fn start_with(name: &str, http: &str, more: &str) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let directory = SCRATCH.path().join(format!("registry-{name}"));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: {address}\n{http}{more}",
            directory.display()
        );
        fs::write(&file, text).unwrap();
        // Statics are never dropped: the end of our end of the pipe is what ends the registry.
        let script = "docker-registry serve \"$1\" >\"$1.log\" 2>&1 & cat >/dev/null; kill $!; wait";
        let mut process = Command::new("sh")
            .args(["-c", script, "registry"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..500 {
            if TcpStream::connect(&address).is_ok() {
                return Self { address, _process: process };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        process.kill().and_then(|()| process.wait()).unwrap();
        panic!("no registry: {}", fs::read_to_string(file.with_extension("yml.log")).unwrap_or_default());
    }
}

/// A request that a [`Server`] got.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) target: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| &value[..])
    }

    /// The values of a parameter, decoded.
    pub(crate) fn query(&self, name: &str) -> impl Iterator<Item = String> {
        let url: reqwest::Url = format!("http://x{}", self.target).parse().unwrap();
        let pairs: Vec<_> =
            url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect();
        pairs.into_iter()
    }
}

/// What a [`Server`] answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Ends the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(crate) fn json(value: &Value) -> Self {
        Self::bytes(value.to_string())
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn cut(self, at: usize) -> Self {
        Self { cut: Some(at), ..self }
    }
}

/// An HTTP server that answers what it is told, one request a connection.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    /// The most requests at a time so far.
    pub(crate) busiest: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let (busiest, busy) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let server = Self { address, requests: Arc::clone(&requests), busiest: Arc::clone(&busiest) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, answer) = (Arc::clone(&requests), Arc::clone(&answer));
                let (busiest, busy) = (Arc::clone(&busiest), Arc::clone(&busy));
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let Some(request) = read_request(&stream) else { return };
                    requests.lock().unwrap().push(request.clone());
                    busiest.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let reply = answer(&request);
                    busy.fetch_sub(1, Ordering::SeqCst);
                    write_reply(&stream, &request, &reply);
                });
            }
        });
        server
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    Some(Request { method, target, headers })
}

fn write_reply(mut stream: &TcpStream, request: &Request, reply: &Reply) {
    let mut text =
        format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let body = if request.method == "HEAD" {
        &[][..]
    } else {
        &reply.body[..reply.cut.unwrap_or(usize::MAX).min(reply.body.len())]
    };
    // The client may have gone.
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
    let _ = stream.shutdown(Shutdown::Write);
}
