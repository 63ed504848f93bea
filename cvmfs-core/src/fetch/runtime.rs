//! The crossing from blocking to asynchronous code.

use std::fmt;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{IoContext as _, Result};

/// A thread that drives connections, for callers that block.
pub struct Connections {
    /// Taken only by `drop`.
    runtime: Option<Runtime>,
}

impl Connections {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Io` if the system does not allow that.
    pub fn new() -> Result<Self> {
        // Waiting for the network takes no processor: one thread drives all connections.
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("fetch").enable_all().build();
        Ok(Self { runtime: Some(runtime.at("asynchronous runtime")?) })
    }

    /// Runs a future to its end.
    ///
    /// May be called from any thread. One that runs asynchronous tasks is blocked meanwhile, like by any other wait;
    /// `spawn_blocking` is the better place.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send,
    {
        let runtime = self.runtime.as_ref().expect("the runtime is there until drop");
        if Handle::try_current().is_err() {
            return runtime.block_on(future);
        }
        // This may be a thread on which tokio panics when it is blocked; there is no way to ask.
        let outcome = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Where asynchronous tasks run.
    pub(crate) fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("the runtime is there until drop").handle().clone()
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // Unlike dropping the runtime, this does not wait, and so may happen in asynchronous code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
