//! Which way a request goes: the choice of server and proxy, and what is remembered of their failures.
//!
//! Servers are used in the configured order. One that failed is *demoted*: it comes last for a while. The one that
//! stood in is *preferred* for as long, because a manifest of one server and objects of another may not fit. Proxies
//! come in groups: the members of a group share the requests, the next group is used when all of them failed.
//!
//! Source: `cvmfs/network/download.cc`, `SwitchHost`, `SwitchProxy`.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

use crate::error::{Error, Result};
use crate::storage::Key;

/// Prints a URL without the user name and password that it may hold.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs without a host, which hold no credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// Parses the addresses of a repository's servers, separated by `;` as in `CVMFS_SERVER_URL`.
///
/// Each is the URL of the repository's root, such as `http://stratum1.example.org/cvmfs/sw.example.org`.
///
/// # Errors
/// `InvalidInput` if one is not a plain `http` or `https` URL.
pub fn parse_servers(list: &str) -> Result<Vec<Url>> {
    list.split(';').map(str::trim).filter(|text| !text.is_empty()).map(parse_server).collect()
}

fn parse_server(text: &str) -> Result<Url> {
    // The text is not repeated in errors: it may hold a password at a place that only a parser could find.
    let url = Url::parse(text).map_err(|error| Error::invalid("server URL", error.to_string()))?;
    check_server(&url)?;
    Ok(url)
}

fn check_server(url: &Url) -> Result<()> {
    let invalid = |reason: &str| Err(Error::invalid(format!("server URL {}", shown(url)), reason));
    match url.scheme() {
        "http" | "https" => {}
        _ => return invalid("neither http nor https"),
    }
    if url.query().is_some() || url.fragment().is_some() {
        return invalid("requests have no query");
    }
    Ok(())
}

/// Percent-encodes what clients percent-encode, so that caches see one name for one object.
///
/// What a URL parser encoded already stays as it is.
///
/// Source: `EscapeUrlChar` in `cvmfs/network/download.cc`.
fn escape_path(path: &str) -> String {
    use std::fmt::Write as _;

    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/:.@+_~,[]-%".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    escaped
}

/// The mirrors of one repository.
#[derive(Debug)]
pub(super) struct Servers {
    urls: Vec<Url>,
    reset_after: Duration,
    state: Mutex<ServerState>,
}

#[derive(Debug)]
struct ServerState {
    /// The server that stood in for a failed one, and since when it is used first.
    preferred: Option<(usize, Instant)>,
    demoted: Demoted,
}

impl Servers {
    pub(super) fn new(urls: Vec<Url>, reset_after: Duration) -> Result<Self> {
        if urls.is_empty() {
            return Err(Error::invalid("list of servers", "is empty"));
        }
        urls.iter().try_for_each(check_server)?;
        let state = ServerState { preferred: None, demoted: Demoted::new(urls.len(), reset_after) };
        Ok(Self { urls, reset_after, state: Mutex::new(state) })
    }

    pub(super) fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// The address of `key` at one server.
    pub(super) fn url(&self, server: usize, key: &Key) -> Url {
        let mut url = self.urls[server].clone();
        let path = format!("{}/{key}", url.path().trim_end_matches('/'));
        url.set_path(&escape_path(&path));
        url
    }

    /// All servers, the best first.
    pub(super) fn order(&self, now: Instant) -> Vec<usize> {
        let mut state = lock(&self.state);
        state.preferred.take_if(|(_, since)| is_over(*since, self.reset_after, now));
        let preferred = state.preferred.map(|(server, _)| server);
        let mut order: Vec<_> = (0..self.urls.len()).collect();
        order.sort_by_key(|server| (state.demoted.contains(*server, now), Some(*server) != preferred));
        order
    }

    /// Remembers that `server` delivered what a better one did not.
    pub(super) fn prefer(&self, server: usize, now: Instant) {
        let mut state = lock(&self.state);
        state.demoted.remove(server);
        state.preferred = Some((server, now));
    }

    /// Remembers that `server` failed.
    pub(super) fn demote(&self, server: usize, now: Instant) {
        lock(&self.state).demoted.insert(server, now);
    }
}

/// One way to the servers.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Hop {
    Direct,
    Through(Url),
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("DIRECT"),
            Self::Through(url) => f.write_str(&shown(url)),
        }
    }
}

/// Groups of proxies, in the syntax of `CVMFS_HTTP_PROXY`.
///
/// `;` separates groups, which are used one after the other; `|` separates the members of a group, which share the
/// load; `DIRECT` stands for no proxy. The empty text, and the default, is `DIRECT`.
///
/// ```
/// use cvmfs_core::fetch::ProxyChain;
///
/// let chain: ProxyChain = "http://squid1:3128|http://squid2:3128;DIRECT".parse()?;
/// assert_eq!(format!("{chain:?}"), "[[http://squid1:3128/, http://squid2:3128/], [DIRECT]]");
/// # Ok::<(), cvmfs_core::error::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyChain {
    groups: Vec<Vec<Hop>>,
}

impl ProxyChain {
    pub(super) fn groups(&self) -> &[Vec<Hop>] {
        &self.groups
    }
}

impl Default for ProxyChain {
    fn default() -> Self {
        Self { groups: vec![vec![Hop::Direct]] }
    }
}

impl fmt::Debug for ProxyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.groups.fmt(f)
    }
}

impl FromStr for ProxyChain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut groups = Vec::new();
        for group in text.split(';') {
            let members = group.split('|').map(str::trim).filter(|text| !text.is_empty()).map(parse_hop);
            let members = members.collect::<Result<Vec<_>>>()?;
            if !members.is_empty() {
                groups.push(members);
            }
        }
        Ok(if groups.is_empty() { Self::default() } else { Self { groups } })
    }
}

fn parse_hop(text: &str) -> Result<Hop> {
    match text {
        "DIRECT" => return Ok(Hop::Direct),
        "auto" => return Err(Error::Unsupported { what: "automatic proxy discovery".to_owned() }),
        _ => {}
    }
    let invalid = |reason: String| Error::invalid("proxy", reason);
    // Like libcurl, `proxy.example.org:3128` is an HTTP proxy.
    let text = if text.contains("://") { text } else { &format!("http://{text}") };
    let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
    match url.scheme() {
        "http" | "https" => Ok(Hop::Through(url)),
        scheme => Err(Error::Unsupported { what: format!("proxy protocol {scheme}") }),
    }
}

/// Takes turns over the proxies of a chain; proxies are numbered through all groups.
#[derive(Debug)]
pub(super) struct ProxyRotation {
    /// The sizes of the groups.
    groups: Vec<usize>,
    turn: AtomicUsize,
    demoted: Mutex<Demoted>,
}

impl ProxyRotation {
    pub(super) fn new(chain: &ProxyChain, reset_after: Duration) -> Self {
        let groups: Vec<_> = chain.groups.iter().map(Vec::len).collect();
        let demoted = Mutex::new(Demoted::new(groups.iter().sum(), reset_after));
        Self { groups, turn: AtomicUsize::new(0), demoted }
    }

    /// All proxies, the best first; every call is the turn of another member of a group.
    pub(super) fn order(&self, now: Instant) -> Vec<usize> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let demoted = lock(&self.demoted);
        let (mut order, mut last) = (Vec::new(), Vec::new());
        let mut start = 0;
        for size in &self.groups {
            let (failed, mut usable): (Vec<_>, Vec<_>) =
                (start..start + size).partition(|proxy| demoted.contains(*proxy, now));
            if !usable.is_empty() {
                let first = turn % usable.len();
                usable.rotate_left(first);
            }
            order.extend(usable);
            last.extend(failed);
            start += size;
        }
        order.extend(last);
        order
    }

    /// Remembers that `proxy` works.
    pub(super) fn restore(&self, proxy: usize) {
        lock(&self.demoted).remove(proxy);
    }

    /// Remembers that `proxy` failed.
    pub(super) fn demote(&self, proxy: usize, now: Instant) {
        lock(&self.demoted).insert(proxy, now);
    }
}

/// Who failed, and when, which counts for a while.
#[derive(Debug)]
struct Demoted {
    since: Vec<Option<Instant>>,
    reset_after: Duration,
}

impl Demoted {
    fn new(count: usize, reset_after: Duration) -> Self {
        Self { since: vec![None; count], reset_after }
    }

    fn contains(&self, index: usize, now: Instant) -> bool {
        self.since[index].is_some_and(|since| !is_over(since, self.reset_after, now))
    }

    fn insert(&mut self, index: usize, now: Instant) {
        self.since[index] = Some(now);
    }

    fn remove(&mut self, index: usize) {
        self.since[index] = None;
    }
}

fn is_over(since: Instant, reset_after: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= reset_after
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // All changes are single assignments, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::NamedFile;

    const MINUTE: Duration = Duration::from_mins(1);

    fn servers(list: &str) -> Servers {
        Servers::new(parse_servers(list).unwrap(), MINUTE).unwrap()
    }

    fn rotation(chain: &str) -> ProxyRotation {
        ProxyRotation::new(&chain.parse().unwrap(), MINUTE)
    }

    #[test]
    fn addresses_are_escaped_like_those_of_clients() {
        for (root, expected) in [
            ("http://h/cvmfs/r.example.org", "http://h/cvmfs/r.example.org/.cvmfspublished"),
            ("http://h:8000/cvmfs/r/", "http://h:8000/cvmfs/r/.cvmfspublished"),
            ("http://h", "http://h/.cvmfspublished"),
            ("http://h/a b/(c)", "http://h/a%20b/%28c%29/.cvmfspublished"),
            ("http://h/[x],~@+:_-", "http://h/[x],~@+:_-/.cvmfspublished"),
            ("http://h/ü$", "http://h/%C3%BC%24/.cvmfspublished"),
        ] {
            assert_eq!(servers(root).url(0, &NamedFile::Manifest.into()).as_str(), expected);
        }
    }

    #[test]
    fn refuses_servers_that_are_no_plain_web_addresses() {
        for (list, expected) in [
            ("file:///srv/cvmfs/r", "server URL file:///srv/cvmfs/r: neither http nor https"),
            ("http://u:secret@h/r?x=1", "server URL http://h/r?x=1: requests have no query"),
            ("http://h;nonsense:secret@", "server URL nonsense:secret@: neither http nor https"),
            ("http://u:secret@h:port/", "server URL: invalid port number"),
        ] {
            assert_eq!(parse_servers(list).unwrap_err().to_string(), expected);
        }
        assert_eq!(Servers::new(Vec::new(), MINUTE).unwrap_err().to_string(), "list of servers: is empty");
    }

    #[test]
    fn a_failed_server_comes_last_until_its_time_is_over() {
        let servers = servers("http://a;http://b;http://c");
        let start = Instant::now();
        assert_eq!(servers.order(start), [0, 1, 2]);
        servers.demote(0, start);
        assert_eq!(servers.order(start), [1, 2, 0]);
        servers.demote(1, start + MINUTE / 2);
        assert_eq!(servers.order(start + MINUTE / 2), [2, 0, 1]);
        assert_eq!(servers.order(start + MINUTE), [0, 2, 1]);
        assert_eq!(servers.order(start + MINUTE * 2), [0, 1, 2]);
    }

    #[test]
    fn the_server_that_stood_in_stays_for_a_while() {
        let servers = servers("http://a;http://b;http://c");
        let start = Instant::now();
        servers.prefer(2, start);
        assert_eq!(servers.order(start), [2, 0, 1]);
        servers.demote(2, start);
        assert_eq!(servers.order(start), [0, 1, 2]);
        servers.prefer(2, start);
        assert_eq!(servers.order(start + MINUTE), [0, 1, 2]);
    }

    #[test]
    fn members_of_a_group_take_turns_and_groups_do_not() {
        let proxies = rotation("http://a|http://b;http://c|http://d|http://e;DIRECT");
        let now = Instant::now();
        assert_eq!(proxies.order(now), [0, 1, 2, 3, 4, 5]);
        assert_eq!(proxies.order(now), [1, 0, 3, 4, 2, 5]);
        assert_eq!(proxies.order(now), [0, 1, 4, 2, 3, 5]);
        proxies.demote(0, now);
        assert_eq!(proxies.order(now), [1, 2, 3, 4, 5, 0]);
        proxies.demote(1, now);
        assert_eq!(proxies.order(now), [3, 4, 2, 5, 0, 1]);
        proxies.restore(1);
        assert_eq!(proxies.order(now), [1, 4, 2, 3, 5, 0]);
        assert_eq!(proxies.order(now + MINUTE), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn parses_the_syntax_of_clients() {
        for (text, expected) in [
            ("", "[[DIRECT]]"),
            (";", "[[DIRECT]]"),
            ("DIRECT", "[[DIRECT]]"),
            ("squid:3128", "[[http://squid:3128/]]"),
            (
                "http://u:secret@a:1|https://b:2;;http://c:3;DIRECT",
                "[[http://a:1/, https://b:2/], [http://c:3/], [DIRECT]]",
            ),
        ] {
            assert_eq!(format!("{:?}", text.parse::<ProxyChain>().unwrap()), expected);
        }
        for (text, expected) in [
            ("auto;DIRECT", "automatic proxy discovery is not supported"),
            ("socks5://u:secret@a:1", "proxy protocol socks5 is not supported"),
            ("http://u:secret@:3128", "proxy: empty host"),
        ] {
            assert_eq!(text.parse::<ProxyChain>().unwrap_err().to_string(), expected);
        }
    }
}
