//! What became of jobs, for monitors.

use super::{Done, Kind};
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::path::RepositoryName;

/// The runs of one job since the schedule began.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The repository.
    pub name: RepositoryName,
    /// The kind of job.
    pub kind: Kind,
    /// Since when it is running.
    pub running_since: Option<UnixSeconds>,
    /// Runs that ended well.
    pub successes: u64,
    /// Runs that failed.
    pub failures: u64,
    /// Runs that failed since the last one that ended well.
    pub failures_in_a_row: u64,
    /// When one ended, however it did.
    pub last_end: Option<UnixSeconds>,
    /// When one ended well for the last time.
    pub last_success: Option<UnixSeconds>,
    /// How long the last one took.
    pub seconds: f64,
    /// What all of them did.
    pub done: Done,
    /// Why the last one failed, if it did.
    pub error: Option<String>,
}

impl Record {
    pub(super) fn new(name: RepositoryName, kind: Kind) -> Self {
        Self {
            name,
            kind,
            running_since: None,
            successes: 0,
            failures: 0,
            failures_in_a_row: 0,
            last_end: None,
            last_success: None,
            seconds: 0.0,
            done: Done::default(),
            error: None,
        }
    }

    /// Enters what became of a run; one that was cancelled tells nothing.
    pub(super) fn end(&mut self, now: Option<UnixSeconds>, seconds: f64, result: &Result<Done>) {
        self.running_since = None;
        if matches!(result, Err(Error::Cancelled)) {
            return;
        }
        (self.last_end, self.seconds) = (now, seconds);
        match result {
            Ok(done) => {
                self.successes += 1;
                self.failures_in_a_row = 0;
                self.last_success = self.last_end;
                self.done.objects += done.objects;
                self.done.bytes += done.bytes;
                self.error = None;
            }
            Err(error) => {
                self.failures += 1;
                self.failures_in_a_row += 1;
                self.error = Some(error.to_string());
            }
        }
    }
}
