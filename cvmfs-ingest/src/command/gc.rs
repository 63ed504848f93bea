use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_ingest::image::clean::{Collected, collect};
use cvmfs_ingest::image::inventory::Garbage;

/// Remove layers and root file systems that no image refers to
///
/// Objects stay in the storage until the repository's own garbage collection.
#[derive(Debug, clap::Args)]
#[command(
    alias = "garbage-collection",
    after_help = "Examples:
  cvmfs-ingest gc --dry-run
  cvmfs-ingest gc --grace-period 30"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Days that something stays after it was seen for the first time that nothing refers to it
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    grace_period: u32,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let options = super::clean_options(&publisher, arguments.dry_run, now()?)?;
    let seconds = i64::from(arguments.grace_period) * 86_400;
    let cancel = cancel_on_signals()?;
    let before = super::revision_to_follow(&publisher, &options)?;
    let collected = global.publish(&publisher, before, |_| {
        let collected = collect(&publisher, seconds, &options, &cancel)?;
        let revision = collected.revision;
        Ok((collected, revision))
    })?;
    global.print(&collected, &summary(&collected, arguments.dry_run))
}

fn summary(collected: &Collected, dry_run: bool) -> String {
    let count = |Garbage { flat, layers, podman }: &Garbage| {
        format!("{} root file systems, {} layers, {} images of podman", flat.len(), layers.len(), podman.len())
    };
    let mut text = String::new();
    for (kind, names) in
        [("flat", &collected.removed.flat), ("layer", &collected.removed.layers), ("podman", &collected.removed.podman)]
    {
        text.extend(names.iter().map(|name| format!("{kind} {name}\n")));
    }
    let removed = if dry_run { "to remove" } else { "removed" };
    text += &format!("{removed}: {}\n", count(&collected.removed));
    text += &format!("within the grace period: {}\n", count(&collected.waiting));
    if let Some(revision) = collected.revision {
        text += &format!("revision {revision}\n");
    }
    text
}
