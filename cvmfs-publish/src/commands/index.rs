use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, human_bytes, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::repository::Selector;
use cvmfs_publish::index;

/// Show the index of known content, or fill it from the newest revision
///
/// Content that is in the index is not compressed again when it is published again. Publishing keeps the index up to date;
/// rebuild it for a repository that other tools published, or after it was deleted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish index
  cvmfs-publish index --rebuild --repo software.example.org")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Read every file of the newest revision, and add it
    #[arg(long)]
    rebuild: bool,
    /// Threads that read [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true, requires = "rebuild")]
    threads: usize,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let known = publisher.known_content()?;
    if !arguments.rebuild {
        let summary = index::summary(&known)?;
        let text = format!("{} pieces in {} ({})\n", summary.pieces, summary.file, human_bytes(summary.bytes));
        return global.print(&summary, &text);
    }
    let mut tree = publisher.head(now()?)?.tree(&Selector::Head)?;
    let progress = global.progress();
    let rebuilt =
        index::rebuild(&known, &mut tree, &*publisher.store, arguments.threads, &*progress, &cancel_on_signals()?)?;
    drop(progress);
    global.warn(&rebuilt.problems);
    let text = format!(
        "{} objects with {} are known; {:.1} s\n",
        rebuilt.objects,
        human_bytes(rebuilt.bytes),
        rebuilt.seconds
    );
    global.print(&rebuilt, &text)?;
    match rebuilt.unreadable {
        0 => Ok(()),
        count => Err(Error::malformed(publisher.config.name.to_string(), format!("{count} objects cannot be read"))),
    }
}
