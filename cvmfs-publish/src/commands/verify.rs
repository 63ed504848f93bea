use cvmfs_core::cli::{GlobalArgs, human_bytes};
use cvmfs_core::error::Result;
use cvmfs_core::path::RepoPath;
use cvmfs_publish::inspect;

/// Read every file of a revision back: all signatures, hashes and sizes are checked
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  cvmfs-publish verify --tag v1.0 /software")]
pub(super) struct Arguments {
    /// Path in the repository
    #[arg(default_value = "/")]
    path: RepoPath,
    #[command(flatten)]
    tree: super::TreeArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut tree = arguments.tree.open(global)?;
    let found = inspect::read_back(&mut tree, &arguments.path)?;
    let text = format!(
        "{} entries, {} files with {} in {} objects: all are as they should be\n",
        found.entries,
        found.files,
        human_bytes(found.bytes),
        found.objects
    );
    global.print(&found, &text)
}
