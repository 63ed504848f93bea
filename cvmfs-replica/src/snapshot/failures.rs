//! What could not be had: the first failures in words, the others as a number.

use std::fmt;

use cvmfs_core::error::Error;
use cvmfs_core::hash::ObjectId;
use serde::Serialize;

/// Failures that are told in words.
const SHOWN: usize = 10;

/// Objects and documents that a run could not get.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failures {
    /// The first ones, each with its URL.
    pub first: Vec<String>,
    /// How many there are in all.
    pub count: u64,
    /// What the first ones are about.
    #[serde(skip)]
    ids: Vec<ObjectId>,
}

impl Failures {
    /// Adds a failure.
    pub(crate) fn add(&mut self, id: ObjectId, error: &Error) {
        tracing::debug!(%id, %error, "failed");
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(error.to_string());
            self.ids.push(id);
        }
    }

    /// Adds other failures.
    pub(crate) fn extend(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(SHOWN);
        self.ids.extend(other.ids);
        self.ids.truncate(SHOWN);
    }

    /// Takes a failure back.
    pub(crate) fn forgive(&mut self, id: ObjectId) {
        self.count = self.count.saturating_sub(1);
        if let Some(at) = self.ids.iter().position(|other| *other == id) {
            self.ids.remove(at);
            self.first.remove(at);
        }
    }

    /// Whether nothing failed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join("; "))?;
        match self.count.saturating_sub(self.first.len() as u64) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
