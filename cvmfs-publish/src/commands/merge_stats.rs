use std::path::PathBuf;

use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_core::statistics::{Merged, merge};

/// Merge statistics databases of one repository into a new one
///
/// Files of older versions are brought to the form of today. A row that several files have is there once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish merge-stats stats.db stats-of-last-year.db
  cvmfs-publish merge-stats -o all.db publisher-a/stats.db publisher-b/stats.db
  cvmfs-publish print-stats --database all.db")]
pub(super) struct Arguments {
    /// Databases
    #[arg(value_name = "FILE", required = true, num_args = 2..)]
    files: Vec<PathBuf>,
    /// The new one; a statistics database that is there is replaced
    #[arg(short, long, value_name = "FILE", default_value = "output.db")]
    output: PathBuf,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let merged = merge(&arguments.files, &arguments.output)?;
    let Merged { name, publications, collections, repeated } = &merged;
    let text = format!(
        "{}: {publications} publications and {collections} collections of garbage of {name}; {repeated} rows were there twice\n",
        arguments.output.display()
    );
    global.print(&merged, &text)
}
