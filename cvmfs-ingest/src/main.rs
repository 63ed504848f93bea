//! `cvmfs-ingest`: tarballs into a repository, on the command line.

mod command;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = command::Arguments::parse();
    cvmfs_core::cli::run(&arguments.global, || command::run(&arguments))
}
