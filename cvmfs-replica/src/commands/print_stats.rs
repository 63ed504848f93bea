use cvmfs_core::cli::{GlobalArgs, RepoArg, StatisticsArgs};
use cvmfs_core::error::Result;
use cvmfs_core::statistics::StatisticsFile;

/// Print the statistics of a replica: a row a collection of garbage
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica print-stats -t gc
  cvmfs-replica print-stats -t gc --json --repo software.example.org")]
pub(super) struct Arguments {
    #[command(flatten)]
    statistics: StatisticsArgs,
    #[command(flatten)]
    repo: RepoArg,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let file = StatisticsFile::of_repository(&root, &arguments.repo.resolve(&root)?)?;
    arguments.statistics.run(global, &file)
}
