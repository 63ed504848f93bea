//! What the two `serve` commands share, of a Stratum 1 and of a Stratum 0: arguments, and a server that runs until it is
//! asked to end. Each adds what is to be done beside.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, parse_bytes, raise_open_file_limit};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::progress::Cancel;
use cvmfs_core::schedule::Schedule;
use cvmfs_core::server::ServerRoot;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::serve::{self, Listener, Notices, Repositories, ServeOptions, TlsFiles};

/// Where the reference keeps the database, below the root.
const GEO_DATABASE: &str = "var/lib/cvmfs-server/geo/GeoLite2-City.mmdb";

/// Where a server listens that is not told anything else.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// Arguments of servers.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Address and port to listen on; may be repeated [default: 127.0.0.1:8000, none with --listen-tls]
    #[arg(long, value_name = "ADDR")]
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
    /// Seconds that running answers get after the interrupt
    #[arg(long, value_name = "SECONDS", default_value_t = ServeOptions::default().shutdown_grace.as_secs())]
    grace: u64,
}

/// What jobs beside a server may need.
#[derive(Debug)]
pub struct Beside {
    /// The server's directory tree.
    pub root: ServerRoot,
    /// Tells those who listen of new revisions.
    pub notices: Arc<Notices>,
    /// Asks to end when the server is asked to.
    pub cancel: Cancel,
}

impl ServerArgs {
    /// Serves until SIGINT or SIGTERM comes; a second one ends the process at once. SIGHUP has everything read again.
    ///
    /// `pull_through` is that of [`ServeOptions`]; `begin` begins what is to be done beside, if anything.
    ///
    /// # Errors
    /// `InvalidInput` or `NotFound` for arguments that cannot be; those of [`serve::serve`] and of `begin`.
    pub fn run(
        &self,
        global: &GlobalArgs,
        pull_through: bool,
        begin: impl FnOnce(Beside) -> Result<Option<Arc<Schedule>>>,
    ) -> Result<()> {
        let root = global.server_root()?;
        let repositories = Repositories::scan(root.path());
        let is_default = self.listen.is_empty() && self.listen_tls.is_empty();
        let addresses = if is_default { vec![DEFAULT_ADDRESS] } else { resolve("--listen", &self.listen)? };
        let tls_addresses = resolve("--listen-tls", &self.listen_tls)?;
        let geo_database = self.geo_database.clone().unwrap_or_else(|| root.path().join(GEO_DATABASE));
        if self.geo_database.is_some() && !geo_database.exists() {
            return Err(Error::not_found(format!("geographic database {}", geo_database.display())));
        }
        let (reload, notices) = (Arc::new(Notify::new()), Arc::new(Notices::new(root.clone())));
        raise_open_file_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().at("tokio runtime")?;
        let served = runtime.block_on(async {
            let cancel = cancel_on_signals()?;
            let mut interrupt = signal(SignalKind::interrupt()).at("signal handler")?;
            let mut terminate = signal(SignalKind::terminate()).at("signal handler")?;
            let mut hangup = signal(SignalKind::hangup()).at("signal handler")?;
            let mut listeners: Vec<Listener> = Vec::new();
            if !addresses.is_empty() {
                listeners.extend(serve::listen(&addresses)?.into_iter().map(Listener::from));
            }
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
            // Only a server that has its addresses begins to work: a second one by mistake must not.
            let schedule = begin(Beside { root: root.clone(), notices: Arc::clone(&notices), cancel })?;
            if let Some(schedule) = &schedule {
                notices.attach(Arc::clone(schedule));
            }
            let reloading = Arc::clone(&reload);
            tokio::spawn(async move {
                while hangup.recv().await.is_some() {
                    reloading.notify_one();
                }
            });
            let shutdown = async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            let options = ServeOptions {
                tls: self
                    .tls_certificate
                    .clone()
                    .zip(self.tls_key.clone())
                    .map(|(certificate, key)| TlsFiles { certificate, key }),
                geo_database: Some(geo_database),
                pull_through,
                pages: !self.no_pages,
                threads: self.threads,
                object_cache_size: self.object_cache,
                reload,
                notices: Some(notices),
                schedule: schedule.clone(),
                access_log: self.access_log,
                max_connections: self.max_connections,
                max_bundles: self.max_bundles,
                shutdown_grace: Duration::from_secs(self.grace),
                ..ServeOptions::default()
            };
            let outcome = serve::serve(listeners, repositories, options, shutdown).await?;
            Ok::<_, Error>((schedule, outcome))
        });
        // A disk that does not answer must not keep the process from ending.
        runtime.shutdown_background();
        let (schedule, outcome) = served?;
        // What was running has been asked to stop; the next run goes on, or begins again.
        if let Some(schedule) = schedule
            && !has_ended(schedule, Duration::from_secs(self.grace))
        {
            tracing::warn!("a job does not end; it is left behind");
        }
        let text = format!(
            "{} connections, {} requests, {} aborted\n",
            outcome.connections, outcome.requests, outcome.aborted
        );
        global.print(&outcome, &text)
    }
}

/// Waits for jobs to end, not for ever; whether they did.
fn has_ended(schedule: Arc<Schedule>, patience: Duration) -> bool {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        schedule.wait();
        drop(schedule);
        // Nobody waits any more.
        let _ = ended.send(());
    });
    end.recv_timeout(patience).is_ok()
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
