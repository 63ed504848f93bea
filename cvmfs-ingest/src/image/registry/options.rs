//! What a caller can choose about registries.

use std::path::PathBuf;
use std::time::Duration;

use cvmfs_core::error::{Error, Result};
use cvmfs_core::progress::Cancel;

use super::credentials::CredentialSources;
use crate::image::reference::{Reference, Scheme};

/// Choices for all registries; the defaults suit public ones.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Where user names and passwords come from; by default from nowhere.
    pub credentials: CredentialSources,
    /// Registries that are asked instead of others. The first one that is for a host counts.
    pub mirrors: Vec<Mirror>,
    /// Registries, as `host[:port]`, that are spoken to without TLS though their images are not called `http://`.
    pub plain_http: Vec<String>,
    /// Certificates in PEM form that are trusted besides those of the system.
    pub ca_bundle: Option<PathBuf>,
    /// The proxies on the way.
    pub proxies: Proxies,
    /// The most requests to one host at a time. One lasts until its answer is read to the end, or dropped: whoever needs
    /// several blobs at once must not wait for more of them than this.
    pub requests_per_host: usize,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long an answer may stand still.
    pub read_timeout: Duration,
    /// How often a request is repeated; a download that gets on begins to count anew.
    pub retries: u32,
    /// The longest wait before the first repetition; later ones double it.
    pub backoff_initial: Duration,
    /// The longest wait before any repetition.
    pub backoff_max: Duration,
    /// The longest wait that a registry can ask for.
    pub retry_after_max: Duration,
    /// Ends requests and waits soon after somebody asked for that.
    pub cancel: Cancel,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            credentials: CredentialSources::default(),
            mirrors: Vec::new(),
            plain_http: Vec::new(),
            ca_bundle: None,
            proxies: Proxies::default(),
            requests_per_host: 8,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            retries: 5,
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_mins(1),
            retry_after_max: Duration::from_mins(5),
            cancel: Cancel::new(),
        }
    }
}

impl RegistryOptions {
    /// The choices that variables of the environment make: credentials, mirrors (`DUCC_<NAME>_PROXY`) and proxies.
    /// `variable` gives the value of one.
    ///
    /// # Errors
    /// `InvalidInput` for variables that do not fit together.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let (credentials, mirrors) = CredentialSources::from_environment(variable)?;
        let either = |upper: &str| {
            let value = variable(upper).or_else(|| variable(&upper.to_lowercase()));
            value.filter(|value| !value.is_empty())
        };
        // A server that is run by others may be made to see HTTP_PROXY by a header of a request; that concerns no
        // command line.
        let proxies = Proxies { http: either("HTTP_PROXY"), https: either("HTTPS_PROXY"), none: either("NO_PROXY") };
        Ok(Self { credentials, mirrors, proxies, ..Self::default() })
    }
}

/// Proxies on the way to registries, as the variables of the environment have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proxies {
    /// The one for plain HTTP.
    pub http: Option<String>,
    /// The one for HTTPS.
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached without, separated by commas.
    pub none: Option<String>,
}

/// A registry that is asked instead of others: a cache that fetches what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The hosts that it is asked for.
    pub hosts: HostPattern,
    /// How it is spoken to; like the registry itself if not said.
    pub scheme: Option<Scheme>,
    /// The host, with a port if there is one.
    pub host: String,
    /// What goes in front of repositories, without slash at either end; often empty.
    pub path: String,
}

impl Mirror {
    /// Reads `[scheme://]host[:port][/path]`.
    ///
    /// # Errors
    /// `InvalidInput` if it is none.
    pub fn new(hosts: HostPattern, text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::invalid(format!("the mirror {text:?}"), reason);
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(wrong("its scheme is neither http nor https")),
            None => (None, text),
        };
        // What is a name of an image with something behind it is a host and a path.
        let name: Reference = format!("{}/mirror", rest.trim_end_matches('/')).parse().map_err(|_| wrong("no host"))?;
        let path = name.repository.strip_suffix("mirror").unwrap_or_default().trim_end_matches('/');
        Ok(Self { hosts, scheme, host: name.registry, path: path.to_owned() })
    }
}

/// Hosts by name: exactly that one, or those within a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: String,
    /// What repositories must begin with.
    path: String,
}

impl HostPattern {
    /// Reads `host[:port][/path]`; a scheme, the `v2` of the protocol, and a leading dot are passed over.
    ///
    /// # Errors
    /// `InvalidInput` if it is empty.
    pub fn new(text: &str) -> Result<Self> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        let path = if path == "v2" { "" } else { path.strip_prefix("v2/").unwrap_or(path) };
        let host = host.trim_start_matches('.').to_ascii_lowercase();
        if host.is_empty() {
            return Err(Error::invalid(format!("{text:?}"), "names no host"));
        }
        Ok(Self { host, path: path.to_owned() })
    }

    /// Whether a registry (`host[:port]`) and its repository are meant: by its name, or the end of its name.
    pub fn matches(&self, registry: &str, repository: &str) -> bool {
        let registry = registry.to_ascii_lowercase();
        let without_port = registry.rsplit_once(':').map_or(&registry[..], |(host, _)| host);
        let has_port = self.host.contains(':');
        let host = if has_port { &registry[..] } else { without_port };
        let is_within = host.strip_suffix(&self.host).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let below = repository.strip_prefix(&self.path);
        is_within && below.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_match_exactly_or_by_suffix() {
        for (pattern, registry, repository, expected) in [
            ("r.example.org", "r.example.org", "a", true),
            ("r.example.org", "R.example.org:5000", "a", true),
            ("r.example.org:5000", "r.example.org:5000", "a", true),
            ("r.example.org:5000", "r.example.org", "a", false),
            ("example.org", "r.example.org", "a", true),
            (".example.org", "r.example.org", "a", true),
            ("example.org", "rexample.org", "a", false),
            ("example.org", "example.org.evil.net", "a", false),
            ("cern", "gitlab-registry.cern.ch", "a", false),
            ("https://r.example.org/v2/", "r.example.org", "a", true),
            ("r.example.org/v2/atlas", "r.example.org", "atlas/x", true),
            ("r.example.org/atlas", "r.example.org", "atlas", true),
            ("r.example.org/atlas", "r.example.org", "atlasx", false),
        ] {
            assert_eq!(
                HostPattern::new(pattern).unwrap().matches(registry, repository),
                expected,
                "{pattern} {registry}"
            );
        }
        assert!(HostPattern::new("https://").is_err());
    }

    #[test]
    fn mirrors_have_a_path() {
        let mirror = |text: &str| {
            let hosts = HostPattern::new("r.example.org").unwrap();
            Mirror::new(hosts, text).map(|mirror| (mirror.scheme, mirror.host, mirror.path))
        };
        assert_eq!(mirror("m:5000").unwrap(), (None, "m:5000".into(), String::new()));
        assert_eq!(mirror("http://m/a/b/").unwrap(), (Some(Scheme::Http), "m".into(), "a/b".into()));
        for wrong in ["", "ftp://m", "m/../x", "m:x"] {
            assert!(mirror(wrong).is_err(), "{wrong}");
        }
    }
}
