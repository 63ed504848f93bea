//! Scenarios that cross the crates: whole commands, beside what other programs make of the same.
//!
//! One program, because linking one takes as long as linking each of twenty.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

#[path = "../support/mounted.rs"]
mod mounted;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tarball.rs"]
mod tarball;

mod check;
mod containers;
mod fixture;
mod gc;
mod history;
mod ingest_tree;
mod interrupted_commands;
mod kill;
mod lines;
mod masterkeycard;
mod pages;
mod power_loss;
mod pull_through;
mod random_trees;
mod reference;
mod reference_admin;
mod reference_health;
mod reference_history;
mod reference_replica;
mod reference_rewrite;
mod replica;
mod reproducible;
mod rewrite;
mod s3;
mod service;
mod statistics;
mod transaction;
