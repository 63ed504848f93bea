//! `cvmfs-replica`: the Stratum 1 on the command line.

mod commands;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = commands::Arguments::parse();
    cvmfs_core::cli::run(&arguments.global, || commands::run(&arguments))
}
