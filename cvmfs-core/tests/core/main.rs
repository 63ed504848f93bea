//! What `cvmfs_core` does for those who embed it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod model;

mod commit;
mod conflicts;
mod diff;
mod fetch;
