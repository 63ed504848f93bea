//! The history of a repository: its revisions, the names that they have, and going back to one of them.

mod checkout;
mod log;
mod rollback;
mod tags;

pub use checkout::{CheckedOut, check_out};
pub use log::{LogEntry, Size, log};
pub use rollback::{Plan, RolledBack, plan_rollback, roll_back};
pub use tags::{Edited, Named, add_tag, list_tags, move_tag, remove_tags};

use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;

/// Choices for a change of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The time of the change.
    pub now: UnixSeconds,
    /// How long to wait for another publisher.
    pub patience: Duration,
}

impl Options {
    /// A change at `now`.
    pub fn new(now: UnixSeconds) -> Self {
        Self { now, patience: Duration::from_mins(10) }
    }
}
