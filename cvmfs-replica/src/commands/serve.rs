use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, now, parse_bytes};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::progress::Cancel;
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::NamedFile;
use cvmfs_replica::replica::Replica;
use cvmfs_replica::schedule::{Schedule, ScheduleOptions};
use cvmfs_replica::serve::{self, Listener, Notices, Repositories, ServeOptions, TlsFiles};
use cvmfs_replica::snapshot::{Ending, SnapshotOutcome};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Where the reference keeps the database, below the root.
const GEO_DATABASE: &str = "var/lib/cvmfs-server/geo/GeoLite2-City.mmdb";

/// Serve all repositories below srv/cvmfs over HTTP, until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica --root ./site serve --listen 127.0.0.1:8000
  cvmfs-replica serve --listen 0.0.0.0:80 --listen '[::]:80' --access-log
  cvmfs-replica serve --listen 0.0.0.0:8000 --snapshot-every 180
  cvmfs-replica serve --listen 0.0.0.0:8000 --listen-tls 0.0.0.0:8443 \\
      --tls-certificate /etc/ssl/server.pem --tls-key /etc/ssl/server.key

SIGHUP makes it read configuration, geographic database and certificate again; SIGINT and SIGTERM end it.")]
pub(super) struct Arguments {
    /// Address and port to listen on; may be repeated
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    listen: Vec<String>,
    /// Log every request
    #[arg(long)]
    access_log: bool,
    /// Address and port to listen on with TLS; may be repeated
    #[arg(long, value_name = "ADDR", requires = "tls_certificate")]
    listen_tls: Vec<String>,
    /// Certificate for TLS with those of its authorities, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, in PEM form
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// MaxMind database of cities, to tell clients the order of servers by distance
    /// [default: var/lib/cvmfs-server/geo/GeoLite2-City.mmdb below --root, if it exists]
    #[arg(long, value_name = "FILE")]
    geo_database: Option<PathBuf>,
    /// Fetch objects that a replica lacks while clients wait, for all replicas (as CVMFS_REPLICA_PULL_THROUGH=yes does for one)
    #[arg(long)]
    pull_through: bool,
    /// Serve machines only: no overview of the repositories, no browser of their trees
    #[arg(long)]
    no_pages: bool,
    /// Threads that answer requests [default: one a processor]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Memory for small objects that are asked for often
    #[arg(long, value_name = "BYTES", default_value = "128M", value_parser = parse_bytes)]
    object_cache: u64,
    /// Connections served at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = ServeOptions::default().max_connections)]
    max_connections: usize,
    /// Answers with many small objects, for replicas, that are given at the same time; 0 to offer none
    #[arg(long, value_name = "NUMBER", default_value_t = ServeOptions::default().max_bundles)]
    max_bundles: usize,
    /// Bring replicas to the newest revision of their sources this often, in seconds, and when told of one
    #[arg(long, value_name = "SECONDS")]
    snapshot_every: Option<u64>,
    /// Seconds that running answers get after the interrupt
    #[arg(long, value_name = "SECONDS", default_value_t = ServeOptions::default().shutdown_grace.as_secs())]
    grace: u64,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let repositories = Repositories::scan(root.path());
    let addresses = resolve("--listen", &arguments.listen)?;
    let tls_addresses = resolve("--listen-tls", &arguments.listen_tls)?;
    let identity = arguments.tls_certificate.clone().zip(arguments.tls_key.clone());
    let geo_database = arguments.geo_database.clone().unwrap_or_else(|| root.path().join(GEO_DATABASE));
    if arguments.geo_database.is_some() && !geo_database.exists() {
        return Err(Error::not_found(format!("geographic database {}", geo_database.display())));
    }
    let reload = Arc::new(Notify::new());
    let notices = Arc::new(Notices::new(root.clone()));
    let schedule = match arguments.snapshot_every {
        Some(seconds) => Some(start_schedule(root.clone(), Duration::from_secs(seconds), &notices)?),
        None => None,
    };
    let options = ServeOptions {
        tls: identity.map(|(certificate, key)| TlsFiles { certificate, key }),
        geo_database: Some(geo_database),
        pull_through: arguments.pull_through,
        pages: !arguments.no_pages,
        threads: arguments.threads,
        object_cache_size: arguments.object_cache,
        reload: Arc::clone(&reload),
        notices: Some(notices),
        access_log: arguments.access_log,
        max_connections: arguments.max_connections,
        max_bundles: arguments.max_bundles,
        shutdown_grace: Duration::from_secs(arguments.grace),
        ..ServeOptions::default()
    };
    serve::raise_open_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().at("tokio runtime")?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).at("signal handler")?;
        let mut terminate = signal(SignalKind::terminate()).at("signal handler")?;
        let mut hangup = signal(SignalKind::hangup()).at("signal handler")?;
        let mut listeners: Vec<Listener> = serve::listen(&addresses)?.into_iter().map(Listener::from).collect();
        if !tls_addresses.is_empty() {
            listeners.extend(serve::listen(&tls_addresses)?.into_iter().map(Listener::tls));
        }
        if !global.quiet {
            let names = repositories.names()?.join(", ");
            for listener in &listeners {
                // Whoever started us waits for this line.
                let _ = writeln!(std::io::stderr(), "serving {}/cvmfs/ ({names})", listener.url()?);
            }
        }
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                reload.notify_one();
            }
        });
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        serve::serve(listeners, repositories, options, shutdown).await
    })?;
    // A snapshot that is running stops; the next one goes on where it was.
    if let Some((cancel, schedule)) = schedule {
        cancel.cancel();
        schedule.wait();
    }
    let text =
        format!("{} connections, {} requests, {} aborted\n", outcome.connections, outcome.requests, outcome.aborted);
    global.print(&outcome, &text)
}

/// Has replicas brought to new revisions, and those who listen told of them. Returns what ends it, and what ends then.
fn start_schedule(root: ServerRoot, every: Duration, notices: &Arc<Notices>) -> Result<(Cancel, Arc<Schedule>)> {
    let cancel = Cancel::new();
    let options = ScheduleOptions { every, ..ScheduleOptions::default() };
    let teller = Arc::clone(notices);
    let report = move |replica: &Replica, result: &Result<SnapshotOutcome>| match result {
        Ok(outcome) if outcome.ending == Ending::Updated => {
            tracing::info!(alias = %replica.alias, revision = outcome.revision, "snapshot");
            let manifest = replica.storage.join(NamedFile::Manifest.name());
            let told =
                std::fs::read(&manifest).at(&manifest).and_then(|bytes| teller.announce(&replica.name, &bytes, now()?));
            if let Err(error) = told {
                tracing::warn!(alias = %replica.alias, %error, "cannot tell of a new revision");
            }
        }
        Ok(outcome) if outcome.ending == Ending::Incomplete => {
            tracing::warn!(alias = %replica.alias, failures = %outcome.failures, "snapshot is incomplete");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(alias = %replica.alias, %error, "snapshot"),
    };
    let schedule = Arc::new(Schedule::start(root, options, now, cancel.clone(), report)?);
    notices.attach(Arc::clone(&schedule));
    Ok((cancel, schedule))
}

fn resolve(option: &str, texts: &[String]) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for text in texts {
        let found =
            text.to_socket_addrs().map_err(|error| Error::invalid(format!("{option} {text}"), error.to_string()))?;
        addresses.extend(found);
    }
    Ok(addresses)
}
