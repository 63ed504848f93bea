use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_core::listing::Listed;
use cvmfs_core::path::RepoPath;
use cvmfs_publish::inspect;

/// List a directory of a revision
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish ls -l /software
  cvmfs-publish ls -R --tag v1.0 --json / | jq '.[].path'")]
pub(super) struct Arguments {
    /// Path in the repository
    #[arg(default_value = "/")]
    path: RepoPath,
    /// Show type, permissions, links, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// Everything below the path, too
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    tree: super::TreeArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut tree = arguments.tree.open(global)?;
    let listed = inspect::list(&mut tree, &arguments.path, arguments.recursive)?;
    let text: String =
        listed.iter().map(|entry| if arguments.long { long(entry) } else { format!("{}\n", entry.path) }).collect();
    global.print(&listed, &text)
}

fn long(entry: &Listed) -> String {
    let letter = match entry.kind {
        "file" => '-',
        "symlink" => 'l',
        other => other.chars().next().unwrap_or('?'),
    };
    let target = entry.target.as_ref().map_or_else(String::new, |target| format!(" -> {target}"));
    let note = if entry.nested_catalog { " [catalog]" } else { "" };
    let time = cvmfs_core::clock::UnixSeconds(entry.mtime);
    let Listed { mode, links, uid, gid, size, path, .. } = entry;
    format!("{letter}{mode} {links:3} {uid:5} {gid:5} {size:12} {time} {path}{target}{note}\n")
}
