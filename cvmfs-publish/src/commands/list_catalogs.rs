use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_publish::catalogs::{CatalogInfo, list_catalogs};

/// List the catalogs of a revision as a tree
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish list-catalogs --sizes --entries
  cvmfs-publish list-catalogs --plain --digests --tag v1.0")]
pub(super) struct Arguments {
    /// Show bytes of the databases
    #[arg(short, long)]
    sizes: bool,
    /// Show numbers of entries
    #[arg(short, long)]
    entries: bool,
    /// Show hashes
    #[arg(short, long)]
    digests: bool,
    /// No lines of a tree before the paths
    #[arg(short = 'x', long)]
    plain: bool,
    #[command(flatten)]
    tree: super::TreeArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut tree = arguments.tree.open(global)?;
    let catalogs = list_catalogs(&mut tree)?;
    let text: String = catalogs.iter().map(|catalog| line(catalog, arguments)).collect();
    global.print(&catalogs, &text)
}

/// As the reference prints it: tree, hash, size, entries, path.
fn line(catalog: &CatalogInfo, arguments: &Arguments) -> String {
    let mut line = match catalog.depth {
        depth if depth > 0 && !arguments.plain => format!("{}├─ ", "│  ".repeat(depth - 1)),
        _ => String::new(),
    };
    if arguments.digests {
        line.push_str(&format!("{} ", catalog.hash));
    }
    if arguments.sizes {
        line.push_str(&format!("{}B ", catalog.bytes));
    }
    if arguments.entries {
        line.push_str(&format!("{} ", catalog.entries));
    }
    line.push_str(&catalog.path);
    line.push('\n');
    line
}
