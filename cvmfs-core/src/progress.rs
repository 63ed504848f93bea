//! What long work reports, and how it is asked to stop.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// What the numbers of a phase count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Plain bytes.
    Bytes,
    /// Catalogs.
    Catalogs,
    /// Entries of the tree.
    Entries,
    /// Objects.
    Objects,
}

/// Receives reports of long work, from any thread.
pub trait Progress: fmt::Debug + Send + Sync {
    /// A new phase begins; the one before has ended.
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>);

    /// So much more of the current phase is done.
    fn advance(&self, amount: u64);
}

/// Reports to nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &'static str, _unit: Unit, _total: Option<u64>) {}

    fn advance(&self, _amount: u64) {}
}

/// A request to stop, shared by its clones.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Nobody asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all work that has a clone to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// What a signal handler sets to ask.
    #[cfg(feature = "cli")]
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Fails with `Cancelled` once somebody asked.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}
