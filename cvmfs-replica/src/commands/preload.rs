use std::path::PathBuf;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, human_bytes, now};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::{Url, parse_servers};
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::preload::{PreloadOptions, preload};
use cvmfs_replica::replica::Transfer;

/// Fill the cache directory of clients with a revision, or a part of it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Clients use the directory with CVMFS_ALIEN_CACHE, or as their cache (CVMFS_CACHE_BASE is above it).

Examples:
  cvmfs-replica preload --stratum0 http://s1.example.org/cvmfs/software.example.org --public-key example.org.pub --cache /nfs/cvmfs
  cvmfs-replica preload --stratum0 URL --public-key /etc/cvmfs/keys/example.org --cache /nfs/cvmfs --paths wanted.txt"
)]
pub(super) struct Arguments {
    /// URL of the repository at the source; may be repeated, the best first
    #[arg(long, value_name = "URL", required = true)]
    stratum0: Vec<String>,
    /// Public master key, or a directory of such files; may be repeated
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    public_key: Vec<PathBuf>,
    /// The cache directory
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// File with a path specification of what to fetch [default: everything]
    #[arg(long, value_name = "FILE")]
    paths: Option<PathBuf>,
    /// Name of the repository [default: the one that the source has]
    #[arg(long, value_name = "FQRN")]
    name: Option<RepositoryName>,
    /// Most requests in flight
    #[arg(long, value_name = "NUMBER", default_value_t = Transfer::default().max_requests)]
    max_requests: usize,
    /// Seconds that a connection may take, and a transfer may be too slow
    #[arg(long, value_name = "SECONDS", default_value_t = Transfer::default().timeout.as_secs())]
    timeout: u64,
    /// How often what may pass is tried again
    #[arg(long, value_name = "NUMBER", default_value_t = Transfer::default().retries)]
    retries: u32,
    /// Proxies on the way to the source, as in CVMFS_HTTP_PROXY
    #[arg(long, value_name = "PROXIES", default_value = "", hide_default_value = true)]
    proxy: String,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let sources = arguments.stratum0.iter().map(|url| parse_servers(url)).collect::<Result<Vec<Vec<Url>>>>()?.concat();
    let options = PreloadOptions {
        now: now()?,
        sources,
        public_keys: arguments.public_key.clone(),
        name: arguments.name.clone(),
        paths: arguments.paths.clone(),
        transfer: Transfer {
            max_requests: arguments.max_requests,
            timeout: Duration::from_secs(arguments.timeout),
            retries: arguments.retries,
            proxies: arguments.proxy.parse()?,
            ..Transfer::default()
        },
    };
    let progress = global.progress();
    let outcome = preload(&arguments.cache, &options, &*progress, &cancel_on_signals()?)?;
    drop(progress);
    let ending = if outcome.complete { "is in the cache" } else { "is not complete" };
    let text = format!(
        "{}: revision {} {ending}; {} objects fetched, {}, in {:.1} s\n",
        outcome.name,
        outcome.revision,
        outcome.counts.objects,
        human_bytes(outcome.counts.bytes),
        outcome.seconds
    );
    global.print(&outcome, &text)?;
    if outcome.complete {
        return Ok(());
    }
    let what = format!("preload of {}", outcome.name);
    Err(Error::Unavailable { what, reason: outcome.failures.to_string() })
}
