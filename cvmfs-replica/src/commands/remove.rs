use cvmfs_core::cli::{GlobalArgs, cancel_on_signals};
use cvmfs_core::error::Result;
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::replica;
use serde::Serialize;

/// Remove a replica: configuration, working files and storage
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica remove software.example.org
  cvmfs-replica remove --keep-storage software.example.org")]
pub(super) struct Arguments {
    /// Name of the replica
    #[arg(value_name = "ALIAS")]
    name: RepositoryName,
    /// Leave the storage as it is
    #[arg(long)]
    keep_storage: bool,
}

#[derive(Serialize)]
struct Removed {
    alias: String,
    storage_kept: bool,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let removed =
        replica::remove(&global.server_root()?, &arguments.name, arguments.keep_storage, &cancel_on_signals()?)?;
    let text = if arguments.keep_storage {
        format!("replica {} is removed; {} is left\n", removed.alias, removed.storage)
    } else {
        format!("replica {} is removed\n", removed.alias)
    };
    global.print(&Removed { alias: removed.alias.to_string(), storage_kept: arguments.keep_storage }, &text)
}
