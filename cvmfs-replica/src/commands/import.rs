use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::replica::{self, AddOptions, ImportOptions};

use super::add_replica::{SourceArgs, print};

/// Take over the storage of a Stratum 1 that exists, in place
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A Stratum 1 with configuration files of cvmfs_server needs no import: its replicas are known already.

Examples:
  cvmfs-replica import software.example.org --stratum0 http://s0.example.org/cvmfs/software.example.org --public-key example.org.pub
  cvmfs-replica import mirror.example.org --storage /data/mirror --stratum0 URL --public-key /etc/cvmfs/keys/example.org"
)]
pub(super) struct Arguments {
    /// Name of the replica on this server, and of its storage unless that is elsewhere
    #[arg(value_name = "ALIAS")]
    name: RepositoryName,
    #[command(flatten)]
    source: SourceArgs,
    // So that both commands share the arguments for sources.
    #[arg(long, hide = true)]
    pass_through: bool,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let replica = AddOptions { alias: Some(arguments.name.clone()), ..arguments.source.options()? };
    let replica = replica::import(&global.server_root()?, &ImportOptions { replica })?;
    print(global, &replica, &format!("replica {} is taken over; `cvmfs-replica snapshot` goes on\n", replica.alias))
}
