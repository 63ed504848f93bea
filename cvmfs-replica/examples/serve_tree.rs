//! Serves a tree of repositories until interrupted: `serve_tree ROOT ADDRESS…`.
//!
//! `ROOT` holds `srv/cvmfs/<repository>/`, as an installed server does below `/`.

use std::io::Write as _;
use std::net::SocketAddr;

use cvmfs_replica::serve::{Repositories, ServeOptions, listen, serve};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let repositories = Repositories::scan(arguments.next().ok_or("usage: serve_tree ROOT ADDRESS…")?);
    let addresses = arguments.map(|address| address.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
    cvmfs_core::cli::raise_open_file_limit();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let listeners = listen(&addresses)?;
        for listener in &listeners {
            let names = repositories.names()?.join(", ");
            writeln!(std::io::stdout(), "http://{}/cvmfs/ has {names}", listener.local_addr()?)?;
        }
        let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
        Ok::<_, Box<dyn std::error::Error>>(serve(listeners, repositories, ServeOptions::default(), stop).await?)
    })?;
    writeln!(std::io::stdout(), "{} requests on {} connections", outcome.requests, outcome.connections)?;
    Ok(())
}
