//! Serves a repository over HTTP, reads a file of it as a client would, and stops the server.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

mod sample;

use std::error::Error;
use std::sync::Arc;
use std::{io, thread};

use cvmfs_core::entry::EntryKind;
use cvmfs_core::fetch::{HttpOptions, HttpStore, parse_servers};
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::server::load_master_keys;
use cvmfs_replica::serve::{Repositories, ServeOptions, ServeOutcome, listen, serve};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let (root, name, now) = sample::publish(directory.path())?;

    // The server runs in a thread of its own until `stop` is sent to it.
    let runtime = Runtime::new()?;
    let listeners = runtime.block_on(async { listen(&["127.0.0.1:0".parse().expect("an address")]) })?;
    let address = listeners[0].local_addr()?;
    let repositories = Repositories::scan(root.path());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = thread::spawn(move || {
        let stopped = async { stopped.await.unwrap_or_default() };
        runtime.block_on(serve(listeners, repositories, ServeOptions::default(), stopped))
    });

    let url = format!("http://{address}/cvmfs/{name}");
    let store = Arc::new(HttpStore::new(parse_servers(&url)?, HttpOptions::default())?);
    let repository = Repository::open(store, &name, &load_master_keys(&root, &name)?, now, directory.path())?;
    let mut tree = repository.tree(&Selector::Head)?;
    let path = "tools/hello".parse()?;
    let EntryKind::File(file) = tree.get(&path)?.entry.kind else { return Err("not a file".into()) };
    let content = io::read_to_string(tree.open_file(&path, &file)?)?;
    println!("{url}{path} is {content:?}");
    assert_eq!(content, "hello\n");

    // Readers keep their connections open; the server closes idle ones when it stops.

    stop.send(()).map_err(|()| "the server has ended already")?;
    let ServeOutcome { connections, requests, .. } = server.join().expect("the server does not panic")?;
    println!("{requests} requests on {connections} connections");
    Ok(())
}
