//! One file a command: arguments, conversion to library options, call, print.

mod serve;

use clap::{Parser, Subcommand};
use cvmfs_core::cli::{EXIT_CODES, GlobalArgs};
use cvmfs_core::error::Result;

/// Replicate and serve CernVM-FS repositories (Stratum 1)
#[derive(Debug, Parser)]
#[command(name = "cvmfs-replica", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Serve(serve) => serve::run(&arguments.global, serve),
    }
}
