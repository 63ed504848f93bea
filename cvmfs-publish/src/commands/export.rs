use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, human_bytes};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_publish::export;

/// Write a subtree of a revision as a tar archive
///
/// The archive (PAX format) has names relative to the path, hard links, extended attributes, devices, and times to the
/// nanosecond. All content is verified; an archive after an error is not complete.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish export /software/1.0 | zstd > software-1.0.tar.zst
  cvmfs-publish export --tag v1.0 / | cvmfs-ingest --repo other.example.org --tar - --base-dir imported")]
pub(super) struct Arguments {
    /// Path in the repository
    path: RepoPath,
    /// Write to this file instead of standard output; it appears when it is complete
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    tree: super::TreeArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut tree = arguments.tree.open(global)?;
    let cancel = cancel_on_signals()?;
    let Some(file) = &arguments.output else {
        let mut out = BufWriter::new(io::stdout().lock());
        let exported = export::export(&mut tree, &arguments.path, &mut out, &cancel)?;
        global.warn(&exported.warnings);
        return Ok(());
    };
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(directory).at(directory)?;
    let exported = export::export(&mut tree, &arguments.path, &mut BufWriter::new(&mut new), &cancel)?;
    new.persist(file).map_err(|error| Error::io(file, error.error))?;
    global.warn(&exported.warnings);
    let text = format!(
        "{} entries ({} of them hard links) with {} in {}\n",
        exported.entries,
        exported.hard_links,
        human_bytes(exported.bytes),
        file.display()
    );
    global.print(&exported, &text)
}
