//! What `cvmfs-ingest` does, as a program and as a library.
#![allow(
    clippy::unwrap_used,
    clippy::duration_suboptimal_units,
    clippy::cast_possible_truncation,
    clippy::items_after_statements,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod accidents;
mod archive;
mod faults;
mod layouts;
mod listen;
#[path = "../../../tests/support/ports.rs"]
mod ports;
mod registry;
