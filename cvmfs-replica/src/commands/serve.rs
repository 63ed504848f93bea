use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_replica::serve::{self, Repositories, ServeOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Serve all repositories below srv/cvmfs over HTTP, until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica --root ./site serve --listen 127.0.0.1:8000
  cvmfs-replica serve --listen 0.0.0.0:80 --listen '[::]:80' --access-log")]
pub(super) struct Arguments {
    /// Address and port to listen on; may be repeated
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    listen: Vec<String>,
    /// Log every request
    #[arg(long)]
    access_log: bool,
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

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let repositories = Repositories::scan(global.server_root()?.path());
    let addresses = resolve(&arguments.listen)?;
    let options = ServeOptions {
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
        let listeners = serve::listen(&addresses)?;
        if !global.quiet {
            let names = repositories.names()?.join(", ");
            for listener in &listeners {
                let address = listener.local_addr().at("listening address")?;
                // Whoever started us waits for this line.
                let _ = writeln!(std::io::stderr(), "serving http://{address}/cvmfs/ ({names})");
            }
        }
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        serve::serve(listeners, repositories, options, shutdown).await
    })?;
    let text =
        format!("{} connections, {} requests, {} aborted\n", outcome.connections, outcome.requests, outcome.aborted);
    global.print(&outcome, &text)
}

fn resolve(texts: &[String]) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for text in texts {
        let found =
            text.to_socket_addrs().map_err(|error| Error::invalid(format!("--listen {text}"), error.to_string()))?;
        addresses.extend(found);
    }
    Ok(addresses)
}
