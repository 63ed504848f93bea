//! The CernVM-FS Stratum 1: a read-only copy of repositories, served over HTTP.
//!
//! ```text
//! Stratum 0 ─► snapshot ─► storage directory ─► serve ─► caches ─► clients
//! ```
//!
//! [`replica`] knows which repositories are replicated, and how. [`snapshot`] brings a replica to the newest revision of its
//! source. [`serve`] offers the storage directories of repositories to caches and clients. It needs no other web server,
//! and it serves a Stratum 0 just as well.

pub mod check;
pub mod cli;
pub mod gc;
pub mod preload;
pub mod replica;
pub mod schedule;
pub mod select;
pub mod serve;
pub mod snapshot;
pub mod status;
