//! `cvmfs-ingest`: tarballs and container images into a repository, on the command line.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = command::Arguments::parse();
    // All layers of an image are read at once.
    cvmfs_core::cli::raise_open_file_limit();
    cvmfs_core::cli::run(&arguments.global, || command::run(&arguments))
}
