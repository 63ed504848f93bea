//! A Stratum 1 as a library and as a service: what it fetches, and what it answers.

mod harness;

mod bundle;
mod connections;
mod evil_source;
mod functions;
mod hanging;
#[path = "../../../tests/support/ports.rs"]
mod ports;
mod schedule;
mod serve;
mod squid;
