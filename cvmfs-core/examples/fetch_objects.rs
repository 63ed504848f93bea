//! Copies objects from a web server into a directory: `fetch_objects URL DIRECTORY < names`.

use std::sync::Arc;
use std::time::Instant;

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::queue::{ObjectQueue, QueueOptions};
use cvmfs_core::fetch::{HttpOptions, HttpStore, parse_servers};
use cvmfs_core::progress::Cancel;
use cvmfs_core::storage::LocalStore;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or_else(|| Error::invalid("arguments", "URL DIRECTORY"));
    let source = HttpStore::new(parse_servers(&next()?)?, HttpOptions::default())?;
    let destination = LocalStore::create(next()?)?;
    let started = Instant::now();
    let queue = ObjectQueue::new(Arc::new(source), Arc::new(destination), QueueOptions::default(), Cancel::new())?;
    for line in std::io::stdin().lines() {
        queue.request(line.at("standard input")?.parse()?, 0)?;
    }
    queue.close();
    let (mut objects, mut bytes) = (0_u64, 0_u64);
    while let Some(fetched) = queue.next_result() {
        objects += 1;
        bytes += fetched.result?;
    }
    println!(
        "{objects} objects, {bytes} bytes, {:.3} s, {} in flight",
        started.elapsed().as_secs_f64(),
        queue.in_flight_limit()
    );
    Ok(())
}
