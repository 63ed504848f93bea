use std::path::PathBuf;

use cvmfs_core::cli::{GlobalArgs, RepoArg, StatisticsArgs};
use cvmfs_core::error::Result;
use cvmfs_core::statistics::StatisticsFile;

/// Print the statistics of a repository: a row a publication, or a collection of garbage
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish print-stats
  cvmfs-publish print-stats -t gc --json
  cvmfs-publish print-stats -s , -o publications.csv
  cvmfs-publish print-stats --database merged.db")]
pub(super) struct Arguments {
    #[command(flatten)]
    statistics: StatisticsArgs,
    #[command(flatten)]
    repo: RepoArg,
    /// The rows of this file, such as one that merge-stats wrote
    #[arg(long, value_name = "FILE", conflicts_with = "repo")]
    database: Option<PathBuf>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let file = match &arguments.database {
        Some(path) => StatisticsFile::open(path)?,
        None => {
            let root = global.server_root()?;
            StatisticsFile::of_repository(&root, &arguments.repo.resolve(&root)?)?
        }
    };
    arguments.statistics.run(global, &file)
}
