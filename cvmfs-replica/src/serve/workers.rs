//! The threads that answer requests.
//!
//! Each drives connections of its own, from the first request to the last: what arrives for one wakes the thread that
//! has it and no other. With threads that take work from each other, small requests would spend more time on waking
//! them than on the answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use cvmfs_core::error::{IoContext as _, Result};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Running threads; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<Worker>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    /// Dropping it ends the thread.
    _alive: oneshot::Sender<()>,
}

impl Workers {
    /// Starts so many threads; 0 for one a processor.
    pub(super) fn start(count: usize) -> Result<Self> {
        let count = if count == 0 { available_parallelism().map_or(1, usize::from) } else { count };
        let threads = (0..count).map(|_| Worker::start()).collect::<Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// The thread for the next connection.
    pub(super) fn next(&self) -> &Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.threads[next % self.threads.len()].handle
    }
}

impl Worker {
    fn start() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().at("tokio runtime")?;
        let handle = runtime.handle().clone();
        let (alive, end) = oneshot::channel::<()>();
        let serve = move || {
            drop(runtime.block_on(end));
            // A disk that does not answer must not keep the process from ending.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("serve".to_owned()).spawn(serve).at("thread")?;
        Ok(Self { handle, _alive: alive })
    }
}
