use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, UpkeepArgs, now, parse_interval};
use cvmfs_core::error::Result;
use cvmfs_replica::cli::ServerArgs;
use cvmfs_replica::replica::Replica;
use cvmfs_replica::schedule::{self, ScheduleOptions};
use cvmfs_replica::snapshot::{Ending, SnapshotOutcome};

/// Serve all repositories below srv/cvmfs over HTTP, until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica --root ./site serve --listen 127.0.0.1:8000
  cvmfs-replica serve --listen 0.0.0.0:80 --listen '[::]:80' --access-log
  cvmfs-replica serve --listen 0.0.0.0:8000 --snapshot-every 180 --gc-every '1 day' --check-every '1 week'
  cvmfs-replica serve --listen 0.0.0.0:8000 --listen-tls 0.0.0.0:8443 \\
      --tls-certificate /etc/ssl/server.pem --tls-key /etc/ssl/server.key

SIGHUP makes it read configuration, geographic database and certificate again; SIGINT and SIGTERM end it.")]
pub(super) struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    /// Fetch objects that a replica lacks while clients wait, for all replicas (as CVMFS_REPLICA_PULL_THROUGH=yes does for one)
    #[arg(long)]
    pull_through: bool,
    /// Bring replicas to the newest revision of their sources this often, in seconds, and when told of one
    #[arg(long, value_name = "TIME", value_parser = parse_interval, help_heading = "Jobs")]
    snapshot_every: Option<Duration>,
    #[command(flatten)]
    upkeep: UpkeepArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let options = ScheduleOptions {
        snapshot_every: arguments.snapshot_every,
        gc_every: arguments.upkeep.gc_every,
        check_every: arguments.upkeep.check_every,
        check_data: arguments.upkeep.check_data,
        ..ScheduleOptions::default()
    };
    arguments.server.run(global, arguments.pull_through, |beside| {
        if !options.is_any() {
            return Ok(None);
        }
        let teller = beside.notices;
        // Those who listen are told of what is new; what failed is in the log already.
        let report = move |replica: &Replica, result: &Result<SnapshotOutcome>| match result {
            Ok(outcome) if outcome.ending == Ending::Updated => {
                tracing::info!(alias = %replica.alias, revision = outcome.revision, "snapshot");
                let announce = |manifest: Option<Vec<u8>>| {
                    manifest.map_or(Ok(()), |bytes| teller.announce(&replica.name, &bytes, now()?))
                };
                let told = replica.manifest().and_then(announce);
                if let Err(error) = told {
                    tracing::warn!(alias = %replica.alias, %error, "cannot tell of a new revision");
                }
            }
            _ => {}
        };
        schedule::start(beside.root, options, now, beside.cancel, report).map(Some)
    })
}
