//! What a caller can choose about fetching.

use std::path::PathBuf;
use std::time::Duration;

use super::{Bandwidth, ProxyChain};

/// Choices of an [`HttpStore`](super::HttpStore); the defaults suit server tools on wide area networks.
///
/// Source: `cvmfs/network/download.h` and the table of parameters in `cvmfs_server`.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// The proxies to go through; by default none.
    pub proxies: ProxyChain,
    /// How long a connection may take to be made, name lookup and TLS handshake included.
    pub connect_timeout: Duration,
    /// The bytes per second below which a transfer is too slow.
    pub low_speed_limit: u64,
    /// How long a transfer may be too slow, or an answer may be awaited.
    pub low_speed_time: Duration,
    /// How often a failed transfer is repeated at one server before the next one is asked.
    pub retries: u32,
    /// The longest wait before the first repetition; later ones double it.
    pub backoff_initial: Duration,
    /// The longest wait before any repetition.
    pub backoff_max: Duration,
    /// The longest wait that a server can ask for with `Retry-After`.
    pub retry_after_max: Duration,
    /// The `User-Agent` of all requests.
    pub user_agent: String,
    /// Certificates in PEM form that are trusted for `https` besides those of the system.
    pub ca_bundle: Option<PathBuf>,
    /// The largest accepted named file, in bytes.
    pub max_named_size: u64,
    /// The largest accepted object in stored bytes; keeps an endless answer from filling memory or disk. Certificates and
    /// meta info have at most 16 MiB in any case.
    pub max_object_size: u64,
    /// What to do with answers that point elsewhere.
    pub redirects: Redirects,
    /// Asks caches for a fresh copy of every named file, not only of the reflog.
    pub fresh_named_files: bool,
    /// How long a failed server is used last only, and a stand-in for it first.
    pub server_reset: Duration,
    /// How long a failed proxy is used last only.
    pub proxy_reset: Duration,
    /// What all requests with a copy of these options may receive together.
    pub bandwidth: Bandwidth,
    /// Whether many small objects are asked for in one request, where a server offers that.
    pub bundles: Bundles,
    /// Where large objects wait for their verification; by default the system's place for temporary files.
    pub temporary_directory: Option<PathBuf>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            proxies: ProxyChain::default(),
            connect_timeout: Duration::from_secs(10),
            low_speed_limit: 1024,
            low_speed_time: Duration::from_secs(30),
            retries: 3,
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(5),
            retry_after_max: Duration::from_mins(1),
            user_agent: concat!("cvmfs-core/", env!("CARGO_PKG_VERSION")).to_owned(),
            ca_bundle: None,
            max_named_size: 1 << 20,
            max_object_size: 16 << 30,
            redirects: Redirects::Refuse,
            fresh_named_files: false,
            server_reset: Duration::from_mins(30),
            proxy_reset: Duration::from_mins(5),
            bandwidth: Bandwidth::default(),
            bundles: Bundles::default(),
            temporary_directory: None,
        }
    }
}

/// What to do with answers that point elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirects {
    /// They count as failures of the server, as in clients that are not told otherwise.
    #[default]
    Refuse,
    /// Up to four are followed for one request.
    Follow,
}

/// Whether many small objects are asked for in one request, where a server offers that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bundles {
    /// Never.
    Never,
    /// Only of servers that are asked directly: caches keep single objects, and nothing of bundles.
    #[default]
    Direct,
    /// Also through proxies.
    Always,
}
