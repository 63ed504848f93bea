//! Who we are: user names and passwords from where people have them already.
//!
//! 1. `DUCC_AUTH_REGISTRIES` and the variables that it names.
//! 2. podman's `auth.json`: `$REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`.
//! 3. Docker's `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`.
//!
//! Files may name helpers, programs that keep passwords. All of it is read when a registry asks for it, so a long-running
//! process sees changes. It is our own code because podman's files have keys with paths, of which the longest counts, and
//! Docker's have those of Docker Hub; that is most of what there is to it.
//!
//! Source: `ducc/lib/image.go`; `containers-auth.json(5)`; Docker's `cli/config/configfile`, `docker-credential-helpers`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cvmfs_core::error::{Error, IoContext as _, Result};
use serde::Deserialize;

use super::options::{HostPattern, Mirror};
use crate::image::manifest::from_json;
use crate::image::reference::DOCKER_HUB;

/// How files and helpers call Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The other names of Docker Hub.
const DOCKER_HUB_HOSTS: [&str; 4] = [DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
/// The user name by which helpers say that the secret is a token.
const TOKEN_USER: &str = "<token>";

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(super) String);

impl Secret {
    /// Keeps a text from being printed.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What a registry gets to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A user name and a password.
    Password(String, Secret),
    /// A token that gets others.
    IdentityToken(Secret),
}

/// Credentials, and where they are from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) credentials: Credentials,
    pub(super) source: String,
}

/// Where credentials come from.
#[derive(Debug, Clone, Default)]
pub struct CredentialSources {
    /// From the environment.
    entries: Vec<Entry>,
    /// Files, the first that has something counts.
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    hosts: HostPattern,
    user: String,
    password: Secret,
}

impl CredentialSources {
    /// What variables of the environment say, and the mirrors that they name.
    ///
    /// # Errors
    /// `InvalidInput` for an entry without host, or with neither user and password nor mirror.
    pub(super) fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<(Self, Vec<Mirror>)> {
        let (mut sources, mut mirrors) = (Self::default(), Vec::new());
        let names = variable("DUCC_AUTH_REGISTRIES").unwrap_or_default();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let key = |what: &str| format!("DUCC_{name}_{what}");
            let get = |what: &str| variable(&key(what)).filter(|value| !value.is_empty());
            let ident = get("IDENT").ok_or_else(|| Error::invalid(key("IDENT"), "is not set"))?;
            let hosts = HostPattern::new(&ident)?;
            match (get("PROXY"), get("USER"), get("PASS")) {
                (Some(mirror), ..) => mirrors.push(Mirror::new(hosts, &mirror)?),
                (None, Some(user), Some(password)) => {
                    let password = Secret(password);
                    sources.entries.push(Entry { name: name.to_owned(), hosts, user, password });
                }
                (None, ..) => {
                    let reason = "needs either a user and a password, or a proxy";
                    return Err(Error::invalid(format!("DUCC_{name}_*"), reason));
                }
            }
        }
        let place = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let below = |name: &str, path: &str| place(name).map(|directory| directory.join(path));
        let files = [
            place("REGISTRY_AUTH_FILE"),
            below("XDG_RUNTIME_DIR", "containers/auth.json"),
            below("XDG_CONFIG_HOME", "containers/auth.json").or_else(|| below("HOME", ".config/containers/auth.json")),
            below("DOCKER_CONFIG", "config.json").or_else(|| below("HOME", ".docker/config.json")),
        ];
        sources.files = files.into_iter().flatten().collect();
        Ok((sources, mirrors))
    }

    /// Uses these credentials for a host, whatever else there is for it.
    pub fn prefer(&mut self, hosts: HostPattern, user: &str, password: Secret) {
        let entry = Entry { name: "OUTPUT_REGISTRY".to_owned(), hosts, user: user.to_owned(), password };
        self.entries.insert(0, entry);
    }

    /// Looks in this file before all others.
    pub fn prefer_file(&mut self, file: PathBuf) {
        self.files.insert(0, file);
    }

    /// The credentials for a repository of a registry (`host[:port]`), if there are some.
    ///
    /// # Errors
    /// `Io` and `Malformed` for a file that is there and cannot be read, `Refused` by a helper.
    pub(super) fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.hosts.matches(registry, repository)) {
            let credentials = Credentials::Password(entry.user.clone(), entry.password.clone());
            return Ok(Some(Found { credentials, source: format!("DUCC_{}_USER", entry.name) }));
        }
        for file in &self.files {
            let bytes = match fs::read(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes.at(file)?,
            };
            let source = file.display().to_string();
            let file: AuthFile = from_json(&source, &bytes)?;
            if let Some(credentials) = file.find(&source, registry, repository)? {
                return Ok(Some(Found { credentials, source }));
            }
        }
        Ok(None)
    }
}

/// Docker's `config.json`, and podman's `auth.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl AuthFile {
    fn find(&self, source: &str, registry: &str, repository: &str) -> Result<Option<Credentials>> {
        let host = plain_host(registry);
        let helper = self.cred_helpers.iter().find(|(key, _)| plain_key(key) == host).map(|(_, helper)| helper);
        for helper in helper.into_iter().chain(&self.creds_store).filter(|helper| !helper.is_empty()) {
            let server = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
            if let Some(credentials) = ask_helper(helper, server)? {
                return Ok(Some(credentials));
            }
        }
        // The entry that says most about the repository.
        let mut place = Some(format!("{host}/{repository}"));
        while let Some(key) = place {
            let entry = self.auths.iter().find(|(other, _)| plain_key(other) == key);
            if let Some(credentials) = entry.map(|(_, entry)| entry.credentials(source)).transpose()?.flatten() {
                return Ok(Some(credentials));
            }
            place = key.rsplit_once('/').map(|(above, _)| above.to_owned());
        }
        Ok(None)
    }
}

impl AuthEntry {
    /// `None` for an entry that only notes that a helper knows.
    fn credentials(&self, source: &str) -> Result<Option<Credentials>> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(Secret(token))));
        }
        if let (Some(user), Some(password)) = (given(&self.username), given(&self.password)) {
            return Ok(Some(Credentials::Password(user, Secret(password))));
        }
        let Some(auth) = given(&self.auth) else { return Ok(None) };
        // Never with what was in it: it is a secret.
        let wrong = || Error::malformed(source, "an entry is not a user name, a colon and a password in base64");
        let bytes = openssl::base64::decode_block(&auth).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (user, password) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Some(Credentials::Password(user.to_owned(), Secret(password.trim_end_matches('\0').to_owned()))))
    }
}

/// A registry, with one name for all those of Docker Hub.
fn plain_host(registry: &str) -> String {
    let registry = registry.to_ascii_lowercase();
    if DOCKER_HUB_HOSTS.contains(&&registry[..]) { DOCKER_HUB.to_owned() } else { registry }
}

/// A key of a file in the form that is looked for. Old ones are whole URLs, whose path says nothing.
fn plain_key(key: &str) -> String {
    match key.split_once("://") {
        Some((_, rest)) => plain_host(rest.split('/').next().unwrap_or_default()),
        None => match key.split_once('/') {
            Some((host, path)) => format!("{}/{}", plain_host(host), path.trim_end_matches('/')),
            None => plain_host(key),
        },
    }
}

/// Asks a program for the credentials of a server.
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    if helper.contains('/') {
        return Err(Error::invalid(program, "no name of a program"));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .at(&program)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not listen says so by its exit code.
        let _ = input.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().at(&program)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return if said.contains("credentials not found") {
            Ok(None)
        } else {
            Err(Error::Refused { what: program, reason: format!("{} ({said})", output.status) })
        };
    }
    // An error of the parser could repeat the secret.
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| Error::malformed(&program, "its answer is not what helpers answer"))?;
    let secret = Secret(answer.secret);
    Ok(Some(match &answer.username[..] {
        TOKEN_USER => Credentials::IdentityToken(secret),
        _ => Credentials::Password(answer.username, secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password(user.into(), Secret(password.into()))
    }

    fn environment(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn variables_name_hosts() {
        let variables = environment(&[
            ("DUCC_AUTH_REGISTRIES", "ONE, TWO,MIRROR"),
            ("DUCC_ONE_IDENT", "r.example.org"),
            ("DUCC_ONE_USER", "u1"),
            ("DUCC_ONE_PASS", "p1"),
            ("DUCC_TWO_IDENT", "example.org"),
            ("DUCC_TWO_USER", "u2"),
            ("DUCC_TWO_PASS", "p2"),
            ("DUCC_MIRROR_IDENT", "docker.io"),
            ("DUCC_MIRROR_PROXY", "harbor.example.org/hub"),
        ]);
        let (sources, mirrors) = CredentialSources::from_environment(&variables).unwrap();
        let find = |host| sources.find(host, "a").unwrap().map(|found| (found.credentials, found.source));
        assert_eq!(find("r.example.org"), Some((password("u1", "p1"), "DUCC_ONE_USER".into())));
        assert_eq!(find("s.example.org:5000"), Some((password("u2", "p2"), "DUCC_TWO_USER".into())));
        assert_eq!(find("example.com"), None);
        assert_eq!((mirrors.len(), &mirrors[0].host[..], &mirrors[0].path[..]), (1, "harbor.example.org", "hub"));

        let nameless = environment(&[("DUCC_AUTH_REGISTRIES", "A")]);
        assert!(CredentialSources::from_environment(&nameless).unwrap_err().to_string().contains("DUCC_A_IDENT"));
        let half = environment(&[("DUCC_AUTH_REGISTRIES", "A"), ("DUCC_A_IDENT", "x"), ("DUCC_A_USER", "u")]);
        assert!(CredentialSources::from_environment(&half).unwrap_err().to_string().contains("either a user"));
    }

    #[test]
    fn files_of_docker_and_podman() {
        // base64: "user:pass:word", "hub:secret", "deep:d", "short:s"
        let file: AuthFile = serde_json::from_str(
            r#"{"auths": {
                "r.example.org:5000": {"auth": "dXNlcjpwYXNzOndvcmQ="},
                "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
                "q.example.org/team/app": {"auth": "ZGVlcDpk"},
                "q.example.org": {"auth": "c2hvcnQ6cw=="},
                "t.example.org": {"identitytoken": "tok", "auth": "dTo="},
                "p.example.org": {"username": "u", "password": "p"},
                "helper.example.org": {},
                "bad.example.org": {"auth": "!"}
            }}"#,
        )
        .unwrap();
        let find = |registry, repository| file.find("auth.json", registry, repository);
        for (registry, repository, expected) in [
            ("r.example.org:5000", "a", Some(password("user", "pass:word"))),
            ("r.example.org", "a", None),
            ("docker.io", "library/debian", Some(password("hub", "secret"))),
            ("registry.hub.docker.com", "library/debian", Some(password("hub", "secret"))),
            ("q.example.org", "team/app", Some(password("deep", "d"))),
            ("q.example.org", "team/app/sub", Some(password("deep", "d"))),
            ("q.example.org", "team/application", Some(password("short", "s"))),
            ("t.example.org", "a", Some(Credentials::IdentityToken(Secret("tok".into())))),
            ("p.example.org", "a", Some(password("u", "p"))),
            ("helper.example.org", "a", None),
        ] {
            assert_eq!(find(registry, repository).unwrap(), expected, "{registry}");
        }
        assert!(find("bad.example.org", "a").is_err());
    }

    #[test]
    fn secrets_are_not_printed() {
        let shown = format!("{:?}", password("user", "hidden"));
        assert!(shown.contains("user") && !shown.contains("hidden"), "{shown}");
    }
}
