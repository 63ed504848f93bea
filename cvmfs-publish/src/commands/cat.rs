use std::io;

use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_core::path::RepoPath;
use cvmfs_publish::inspect;

/// Print the content of a file of a revision, verified
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish cat /software/README
  cvmfs-publish cat --tag v1.0 /software/tool > tool")]
pub(super) struct Arguments {
    /// Path of a regular file in the repository
    path: RepoPath,
    #[command(flatten)]
    tree: super::TreeArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut tree = arguments.tree.open(global)?;
    inspect::cat(&mut tree, &arguments.path, &mut io::stdout().lock())?;
    Ok(())
}
