use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, human_bytes};
use cvmfs_core::error::Result;
use cvmfs_core::path::RepositoryName;
use cvmfs_publish::rmfs::{self, Options, Outcome};

/// Remove a repository: configuration, working files and storage
///
/// Nothing is asked. Keys stay unless --keys is given. Interrupted, it is finished by running it again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish rmfs --dry-run software.example.org
  cvmfs-publish rmfs software.example.org
  cvmfs-publish rmfs --keep-storage software.example.org     # later: cvmfs-publish import")]
pub(super) struct Arguments {
    /// Name of the repository
    name: RepositoryName,
    /// Leave the storage as it is
    #[arg(short = 'p', long)]
    keep_storage: bool,
    /// Remove the keys as well, the master key among them
    #[arg(long, conflicts_with = "keep_storage")]
    keys: bool,
    /// Remove it although a transaction is open, and forget its changes
    #[arg(long)]
    drop_transaction: bool,
    /// Show what would go, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Accepted for scripts that have it: nothing is ever asked
    #[arg(short, long, hide = true)]
    force: bool,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let Arguments { name, keep_storage, keys, drop_transaction, dry_run, .. } = arguments;
    let options = Options { keep_storage: *keep_storage, keys: *keys, drop_transaction: *drop_transaction };
    let (root, cancel, progress) = (global.server_root()?, cancel_on_signals()?, global.progress());
    let run = if *dry_run { rmfs::rehearse } else { rmfs::remove };
    let outcome = run(&root, name, options, &*progress, &cancel)?;
    drop(progress);
    global.warn(&outcome.warnings);
    global.print(&outcome, &summary(&outcome))
}

fn summary(outcome: &Outcome) -> String {
    let (goes, stays) = if outcome.dry_run { ("would go", "would stay") } else { ("removed", "left") };
    let line = |verb: &str, what: &String| format!("{verb}: {what}\n");
    let mut text: String = outcome.removed.iter().map(|what| line(goes, what)).collect();
    text.extend(outcome.kept.iter().map(|what| line(stays, what)));
    let objects = match (outcome.objects, outcome.bytes) {
        (0, _) => String::new(),
        (objects, None) => format!(", with {objects} objects"),
        (objects, Some(bytes)) => format!(", with {objects} objects ({})", human_bytes(bytes)),
    };
    let verb = if outcome.dry_run { "would be removed" } else { "is removed" };
    text.push_str(&format!("repository {} {verb}{objects}\n", outcome.name));
    text
}
