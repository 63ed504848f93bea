//! Archives of all kinds, read by `cvmfs_ingest::archive`.
//!
//! - `crafted`: rare constructs, put together byte by byte.
//! - `tools`: archives of real trees by GNU tar, bsdtar and Python, compared with the file system.
//! - `damage`: truncated, altered and arbitrary archives.

mod crafted;
mod damage;
mod support;
mod tools;
