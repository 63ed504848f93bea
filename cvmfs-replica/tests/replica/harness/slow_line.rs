//! A long way to a server: a proxy that hands on every byte some time later, and loses none.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Blocks on their way in one direction of a connection. What a line holds is speed times delay: here, plenty.
const BLOCKS: usize = 4096;

/// Hands on connections to `server`, both ways with half of `round_trip` delay, as long as the process lives.
///
/// Returns the address to connect to.
pub(crate) fn start(server: SocketAddr, round_trip: Duration) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, server, round_trip));
            }
        });
    });
    Ok(address)
}

async fn connect(client: TcpStream, server: SocketAddr, round_trip: Duration) {
    // The line answers at once that it is connected; the handshake would take a round trip.
    tokio::time::sleep(round_trip).await;
    let Ok(server) = TcpStream::connect(server).await else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(carry(from_client, to_server, round_trip / 2), carry(from_server, to_client, round_trip / 2));
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    delay: Duration,
) {
    let (sender, mut blocks) = mpsc::channel::<(Instant, Vec<u8>)>(BLOCKS);
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..size].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((when, block)) = blocks.recv().await {
            tokio::time::sleep_until(when).await;
            if to.write_all(&block).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    };
    tokio::join!(read, write);
}
