//! Listening addresses and the loop that takes connections from them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::error::{Error, IoContext as _, Result};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::connection::{self, Shared, stopped};
use super::workers::Workers;

/// Connections that the system keeps for us while we are busy; it cuts this down to its own limit.
const BACKLOG: u32 = 4096;

/// How long to wait after the system could not give us a connection, normally for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// A listening socket, and what is spoken there.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    is_tls: bool,
}

impl Listener {
    /// Speaks TLS; needs [`super::ServeOptions::tls`].
    pub fn tls(socket: TcpListener) -> Self {
        Self { socket, is_tls: true }
    }

    /// The address of a page there.
    ///
    /// # Errors
    /// `Io` if the system does not tell.
    pub fn url(&self) -> Result<String> {
        let address = self.socket.local_addr().at("listening address")?;
        Ok(format!("{}://{address}", if self.is_tls { "https" } else { "http" }))
    }
}

impl From<TcpListener> for Listener {
    /// Speaks plain HTTP.
    fn from(socket: TcpListener) -> Self {
        Self { socket, is_tls: false }
    }
}

/// Opens a listening socket for each of `addresses`; must be called within a tokio runtime.
///
/// `[::]` takes IPv4 connections, too, unless an IPv4 address with the same port is listed as well.
///
/// # Errors
/// `Conflict` if another program listens there; `InvalidInput` if the address is not one of this machine, needs
/// privileges, or none is given.
pub fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    if addresses.is_empty() {
        return Err(Error::invalid("server", "no address to listen on"));
    }
    let open = |&address| bind(address, addresses).map_err(|error| explain(address, &error));
    addresses.iter().map(open).collect()
}

fn bind(address: SocketAddr, all: &[SocketAddr]) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        let shares_port = all.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        rustix::net::sockopt::set_ipv6_v6only(&socket, shares_port)?;
    }
    // A restarted server must not wait for the connections of its predecessor to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn explain(address: SocketAddr, error: &io::Error) -> Error {
    let what = format!("cannot listen on {address}");
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::conflict(what, "another program listens there"),
        io::ErrorKind::PermissionDenied => Error::invalid(what, "ports below 1024 need privileges"),
        io::ErrorKind::AddrNotAvailable => Error::invalid(what, "this machine does not have that address"),
        _ => Error::invalid(what, error.to_string()),
    }
}

/// What became of the connections of one listener.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Accepted {
    pub(super) connections: u64,
    pub(super) aborted: u64,
}

/// Takes connections until `stopping` turns true, then gives those in use some time to finish.
pub(super) async fn run(
    listener: Listener,
    slots: Arc<Semaphore>,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    mut stopping: watch::Receiver<bool>,
) -> Accepted {
    let mut running = JoinSet::new();
    let mut outcome = Accepted::default();
    loop {
        let (stream, client) = tokio::select! {
            () = stopped(&mut stopping) => break,
            accepted = accept(&listener.socket) => accepted,
        };
        // Waiting here, with one connection in hand, leaves the others in the system's queue.
        let slot = tokio::select! {
            () = stopped(&mut stopping) => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        outcome.connections += 1;
        let (shared, stopping, is_tls) = (Arc::clone(&shared), stopping.clone(), listener.is_tls);
        let serving = async move {
            // The socket moves to the thread that will serve it.
            match TcpStream::from_std(stream) {
                Ok(stream) => connection::run(stream, client, is_tls, shared, stopping).await,
                Err(error) => tracing::warn!(%client, %error, "cannot serve a connection"),
            }
            drop(slot);
        };
        running.spawn_on(serving, workers.next());
        while running.try_join_next().is_some() {}
    }
    drop(listener);
    let finish = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.options.shutdown_grace, finish).await.is_err() {
        outcome.aborted = running.len() as u64;
        running.shutdown().await;
    }
    outcome
}

/// Waits for a connection, whatever goes wrong in between.
async fn accept(listener: &TcpListener) -> (std::net::TcpStream, SocketAddr) {
    loop {
        let accepted = listener.accept().await.and_then(|(stream, client)| Ok((stream.into_std()?, client)));
        match accepted {
            Ok((stream, client)) => return (stream, unmapped(client)),
            // The client has changed its mind already; the next one is waiting.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | TimedOut)
}

/// Writes IPv4 clients of an IPv6 socket as what they are.
fn unmapped(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}
