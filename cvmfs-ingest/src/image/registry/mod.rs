//! Registries: manifests, blobs and tags over HTTP, and the way up for images that we make.
//!
//! ```text
//! Registries ─► Repository ─► ask: host's turn ─► token ─► request ─► answer
//!                   │                    ▲          │          │
//!                   └─ Download          │          └─ 401: challenge
//!                                        └─ 429, 5xx, broken: wait, again
//! ```
//!
//! What comes is not verified here: whoever asked has the digest, and checks it. Credentials go to the registry that they are
//! for and to its token service, and nowhere else: not to where a redirection leads, nor to places that a layer names.
//!
//! Source: OCI distribution specification.

mod authorization;
mod credentials;
mod download;
mod options;
mod request;
mod upload;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::{Backoff, Connections, certificates, is_final};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LINK};
use reqwest::{Client, Method, NoProxy, Proxy, Url};
use tokio::sync::Semaphore;

pub use credentials::{CredentialSources, Secret};
pub use options::{HostPattern, Mirror, Proxies, RegistryOptions};

use self::authorization::{Authorization, shown};
use self::download::Download;
use self::request::Ask;
use super::digest::Digest;
use super::manifest::{DOCUMENT_SIZE_MAX, from_json, media_type};
use super::reference::{DOCKER_HUB, Reference, Scheme, Transport};
use super::source::ImageStore;
use super::{Descriptor, Document, local};

/// Where Docker Hub answers; its name is that of a web site.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// How many tags are asked for at once.
const TAGS_PER_PAGE: usize = 1000;
/// The most pages of tags.
const PAGES_MAX: usize = 10_000;
/// The largest page of tags, in bytes.
const PAGE_SIZE_MAX: u64 = 16 << 20;
/// The header with the digest of a manifest.
const DIGEST_HEADER: &str = "docker-content-digest";

/// All registries: connections, tokens and limits that are shared.
#[derive(Clone)]
pub struct Registries {
    shared: Arc<Shared>,
}

struct Shared {
    options: RegistryOptions,
    client: Client,
    backoff: Arc<Backoff>,
    /// What is known of each host, whoever asks it.
    hosts: Arc<Mutex<HashMap<String, Arc<Host>>>>,
    authorizations: Mutex<HashMap<Access, Arc<tokio::sync::Mutex<Option<Authorization>>>>>,
    connections: Arc<Connections>,
}

/// How long nobody repeats requests to a host that did not answer one after all its repetitions.
const DOWN: Duration = Duration::from_mins(1);

/// A host that is asked.
struct Host {
    turns: Arc<Semaphore>,
    down_since: Mutex<Option<Instant>>,
}

impl Host {
    fn is_down(&self) -> bool {
        self.down_since().is_some_and(|since| since.elapsed() < DOWN)
    }

    fn down_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.down_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an authorization is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Access {
    host: String,
    repository: String,
    is_push: bool,
}

/// The images of one name in a registry.
#[derive(Clone)]
pub struct Repository {
    shared: Arc<Shared>,
    /// What ends in `/v2/<repository>/`.
    base: Url,
    /// The path in the registry, with what a mirror puts in front.
    path: String,
}

impl Registries {
    /// Prepares to ask registries; no request is sent yet.
    ///
    /// # Errors
    /// `InvalidInput`, `Io` and `Malformed` for proxies and certificates that cannot be used.
    pub fn new(options: RegistryOptions) -> Result<Self> {
        let shared = Shared {
            client: build_client(&options)?,
            backoff: Arc::new(Backoff::new(options.backoff_initial, options.backoff_max)),
            hosts: Arc::default(),
            authorizations: Mutex::default(),
            connections: Arc::new(Connections::new()?),
            options,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The same registries, over the same connections, as somebody who has this account at some of them.
    #[must_use]
    pub fn with_account(&self, hosts: HostPattern, user: &str, password: &Secret) -> Self {
        let Shared { options, client, backoff, hosts: turns, connections, authorizations: _ } = &*self.shared;
        let mut options = options.clone();
        options.credentials.prefer(hosts, user, password.clone());
        let shared = Shared {
            options,
            client: client.clone(),
            backoff: Arc::clone(backoff),
            hosts: Arc::clone(turns),
            // What one may do is not what another may.
            authorizations: Mutex::default(),
            connections: Arc::clone(connections),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The repository that a name is in.
    ///
    /// # Errors
    /// `InvalidInput` for a name that no URL can have.
    pub fn repository(&self, reference: &Reference) -> Result<Repository> {
        let is_meant = |mirror: &&Mirror| mirror.hosts.matches(&reference.registry, &reference.repository);
        self.repository_at(reference, self.shared.options.mirrors.iter().find(is_meant))
    }

    /// The same, to push to it: not what a mirror has of it.
    ///
    /// # Errors
    /// As above.
    pub fn origin(&self, reference: &Reference) -> Result<Repository> {
        self.repository_at(reference, None)
    }

    fn repository_at(&self, reference: &Reference, mirror: Option<&Mirror>) -> Result<Repository> {
        let options = &self.shared.options;
        let (scheme, host, path) = match mirror {
            Some(mirror) => {
                let path = [&mirror.path[..], &reference.repository].join("/");
                (mirror.scheme.unwrap_or(reference.scheme), &mirror.host[..], path.trim_start_matches('/').to_owned())
            }
            None if matches!(&reference.registry[..], DOCKER_HUB | "index.docker.io") => {
                (reference.scheme, DOCKER_HUB_HOST, reference.repository.clone())
            }
            None => (reference.scheme, &reference.registry[..], reference.repository.clone()),
        };
        let is_plain = options.plain_http.iter().any(|plain| plain.eq_ignore_ascii_case(host));
        let scheme = if is_plain { Scheme::Http } else { scheme };
        let base = format!("{scheme}://{host}/v2/{path}/");
        let base = base.parse().map_err(|_| Error::invalid(reference.whole_name(), "cannot be made a URL"))?;
        Ok(Repository { shared: Arc::clone(&self.shared), base, path })
    }

    /// Opens wherever an image is, and gives the tag or digest that it has there.
    ///
    /// # Errors
    /// Those of [`local::open`]; `InvalidInput` for a name without tag and digest. A registry is not asked yet.
    pub fn open(&self, transport: &Transport) -> Result<(Arc<dyn ImageStore>, String)> {
        match (local::open(transport)?, transport) {
            (Some(opened), _) => Ok(opened),
            (None, Transport::Registry(reference)) => {
                Ok((Arc::new(self.repository(reference)?), reference.fetch_reference()?))
            }
            (None, _) => unreachable!("everything but a registry is local"),
        }
    }
}

impl Repository {
    /// All tags, sorted.
    ///
    /// # Errors
    /// `NotFound` if there is no such repository, and others as of any request.
    pub fn tags(&self) -> Result<Vec<String>> {
        self.shared.connections.block_on(self.fetch_tags())
    }

    async fn fetch_tags(&self) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut tags = BTreeSet::new();
        let mut url = self.url("tags/list");
        url.query_pairs_mut().append_pair("n", &TAGS_PER_PAGE.to_string());
        let mut seen = BTreeSet::new();
        while seen.len() < PAGES_MAX && seen.insert(url.to_string()) {
            let (headers, bytes) = self.read(&Ask::new(Method::GET, url.clone()), PAGE_SIZE_MAX).await?;
            let page: Page = from_json(&shown(&url), &bytes)?;
            tags.extend(page.tags.unwrap_or_default());
            match next_page(&headers).map(|next| url.join(&next).map(|next| self.encrypted(next))) {
                // Another host must not see what is for this one.
                Some(Ok(next)) if is_same_place(&next, &self.base) => url = next,
                Some(_) => return Err(Error::malformed(shown(&url), "the next page of tags is at another host")),
                None => return Ok(tags.into_iter().collect()),
            }
        }
        Err(Error::malformed(shown(&url), "the pages of tags have no end"))
    }

    fn manifest_ask(&self, method: Method, reference: &str) -> Ask {
        Ask::new(method, self.url(&format!("manifests/{reference}"))).header(ACCEPT, &media_type::MANIFESTS.join(", "))
    }

    async fn fetch_manifest(&self, reference: &str) -> Result<(Document, Option<String>)> {
        let ask = self.manifest_ask(Method::GET, reference);
        let (headers, bytes) = self.read(&ask, DOCUMENT_SIZE_MAX).await?;
        let document = Document { digest: Digest::of(&bytes), bytes };
        if let Some(said) = said_digest(&headers)
            && said != document.digest
        {
            let (expected, actual) = (said.to_string(), document.digest.to_string());
            return Err(Error::HashMismatch { what: shown(&ask.url), expected, actual });
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| Some(value.to_str().ok()?.to_owned()));
        Ok((document, content_type))
    }

    async fn fetch_digest(&self, reference: &str) -> Result<Option<Digest>> {
        let answer = match self.ask(&self.manifest_ask(Method::HEAD, reference)).await {
            // A registry that does not know the question, or could say why not: answers to HEAD have no words.
            Err(Error::Refused { reason, .. })
                if ["HTTP status 403", "HTTP status 405"].iter().any(|status| reason.starts_with(status)) =>
            {
                return Ok(None);
            }
            answer => answer?,
        };
        Ok(said_digest(answer.response.headers()))
    }

    /// A place that the registry names. One behind a proxy that ends TLS may not know that it is spoken to with it.
    fn encrypted(&self, mut place: Url) -> Url {
        let is_own =
            place.host_str() == self.base.host_str() && place.port().is_none_or(|port| Some(port) == self.base.port());
        if is_own && place.scheme() == "http" && self.base.scheme() == "https" {
            // Both fail only for URLs without a host, or of other schemes.
            let _ = place.set_scheme("https");
            let _ = place.set_port(self.base.port());
        }
        place
    }

    fn url(&self, below: &str) -> Url {
        // What is put together here has no characters that a URL could not have.
        self.base.join(below).unwrap_or_else(|_| self.base.clone())
    }
}

impl ImageStore for Repository {
    fn describe(&self) -> String {
        let port = self.base.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}://{}{port}/{}", self.base.scheme(), self.base.host_str().unwrap_or_default(), self.path)
    }

    /// One HEAD request, which Docker Hub does not count as a pull; none for a digest.
    fn digest(&self, reference: &str) -> Result<Option<Digest>> {
        if let Ok(digest) = reference.parse() {
            return Ok(Some(digest));
        }
        self.shared.connections.block_on(self.fetch_digest(reference))
    }

    fn manifest(&self, reference: &str) -> Result<(Document, Option<String>)> {
        self.shared.connections.block_on(self.fetch_manifest(reference))
    }

    /// Layers that registries do not distribute are fetched from where their descriptor says, and from here only if that
    /// says nothing.
    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(Download::start(self.clone(), blob)?))
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({})", self.describe())
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Whether both are at one host, spoken to in the same way.
fn is_same_place(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// The digest that an answer says its manifest has.
fn said_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

/// The target of `Link: <…>; rel="next"`, relative or not.
///
/// Source: RFC 8288.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|text| text.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        };
        parameters.split(';').any(is_next).then(|| target.to_owned())
    })
}

fn build_client(options: &RegistryOptions) -> Result<Client> {
    let follow = reqwest::redirect::Policy::custom(|attempt| {
        let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if was_secure && attempt.url().scheme() != "https" {
            attempt.error("a redirection from https to http")
        } else if attempt.previous().len() > 5 {
            attempt.error("more than five redirections")
        } else {
            attempt.follow()
        }
    });
    let mut builder = Client::builder()
        // The environment is the binary's business.
        .no_proxy()
        .referer(false)
        .user_agent(concat!("cvmfs-ingest/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout)
        .redirect(follow);
    // As in Go's programs, this machine is reached without proxies.
    let none = format!("{},localhost,127.0.0.0/8,::1", options.proxies.none.as_deref().unwrap_or_default());
    let unusable = |_| Error::invalid("a proxy of the environment", "cannot be used");
    let http = options.proxies.http.as_deref().map(Proxy::http).transpose().map_err(unusable)?;
    let https = options.proxies.https.as_deref().map(Proxy::https).transpose().map_err(unusable)?;
    for proxy in http.into_iter().chain(https) {
        builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(&none)));
    }
    if let Some(path) = &options.ca_bundle {
        builder = builder.tls_certs_merge(certificates(path)?);
    }
    builder.build().map_err(|error| Error::invalid("HTTP client", error.to_string()))
}

impl Shared {
    /// The turns of the host of a URL.
    fn host(&self, url: &Url) -> Arc<Host> {
        let name =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let host = hosts.entry(name).or_insert_with(|| {
            let turns = Arc::new(Semaphore::new(self.options.requests_per_host.max(1)));
            Arc::new(Host { turns, down_since: Mutex::new(None) })
        });
        Arc::clone(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page() {
        let next = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(LINK, value.parse().unwrap());
            }
            next_page(&headers)
        };
        assert_eq!(next(&["</v2/a/tags/list?n=2&last=b>; rel=\"next\""]).unwrap(), "/v2/a/tags/list?n=2&last=b");
        assert_eq!(next(&["<x>; rel=prev, <y>; title=z; REL=Next"]).unwrap(), "y");
        assert_eq!(next(&["<x>; rel=prev", "<y>; rel=next"]).unwrap(), "y");
        assert_eq!(next(&["<x>; rel=prev", "y; rel=next", "<z>"]), None);
    }

    #[test]
    fn places_of_an_encrypted_registry_are_encrypted() {
        let registries = Registries::new(RegistryOptions::default()).unwrap();
        for (registry, place, expected) in [
            ("https://r", "http://r/v2/x?y", "https://r/v2/x?y"),
            ("https://r:5000", "http://r/v2/x", "https://r:5000/v2/x"),
            ("https://r:5000", "http://r:5000/v2/x", "https://r:5000/v2/x"),
            ("https://r:5000", "http://r:80/v2/x", "https://r:5000/v2/x"),
            ("https://r:5000", "http://r:81/v2/x", "http://r:81/v2/x"),
            ("https://r", "http://s/v2/x", "http://s/v2/x"),
            ("http://r", "http://r/v2/x", "http://r/v2/x"),
        ] {
            let store = registries.repository(&format!("{registry}/a").parse().unwrap()).unwrap();
            assert_eq!(store.encrypted(place.parse().unwrap()).as_str(), expected);
        }
    }

    #[test]
    fn mirrors_and_hub_change_only_where_requests_go() {
        let mirror = |hosts, text| Mirror::new(HostPattern::new(hosts).unwrap(), text).unwrap();
        let options = RegistryOptions {
            mirrors: vec![mirror("m.example.org", "http://cache:5000/p/q"), mirror("n.example.org", "cache")],
            plain_http: vec!["plain:5000".into()],
            ..RegistryOptions::default()
        };
        let registries = Registries::new(options).unwrap();
        for (name, expected) in [
            ("r.example.org/a/b:1", "https://r.example.org/v2/a/b/"),
            ("http://r.example.org/a/b:1", "http://r.example.org/v2/a/b/"),
            ("m.example.org/a/b:1", "http://cache:5000/v2/p/q/a/b/"),
            ("n.example.org/a:1", "https://cache/v2/a/"),
            ("plain:5000/a:1", "http://plain:5000/v2/a/"),
            ("docker.io/library/debian:1", "https://registry-1.docker.io/v2/library/debian/"),
            ("registry.hub.docker.com/library/debian:1", "https://registry.hub.docker.com/v2/library/debian/"),
        ] {
            assert_eq!(registries.repository(&name.parse().unwrap()).unwrap().base.as_str(), expected);
        }
    }
}
