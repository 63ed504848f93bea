use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_publish::history::{self, Named};

/// Publish the tree of an older revision as the newest one
///
/// Tags of the revisions in between are removed, and the tag that was given moves to the new revision. There is no
/// `trunk-previous` after that until something is published.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish rollback --dry-run
  cvmfs-publish rollback
  cvmfs-publish rollback v1.0")]
pub(super) struct Arguments {
    /// A tag, number or root hash
    #[arg(default_value = "trunk-previous", hide_default_value = false)]
    revision: String,
    /// Show which tags would be removed, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    repo: RepoArg,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let now = now()?;
    if arguments.dry_run {
        let plan = history::plan_rollback(&publisher.head(now)?, &arguments.revision)?;
        let text = format!(
            "would go back from revision {} to the tree of revision {}\n{}",
            plan.revision,
            plan.target_revision,
            list(&plan.removed_tags, "would be removed")
        );
        return global.print(&plan, &text);
    }
    let options = history::Options::new(now);
    let done = history::roll_back(&publisher, &arguments.revision, &options, &cancel_on_signals()?)?;
    let text = format!(
        "revision {} ({}) has the tree of revision {}\n{}",
        done.revision,
        done.root_hash,
        done.target_revision,
        list(&done.removed_tags, "removed")
    );
    global.print(&done, &text)
}

fn list(tags: &[Named], what: &str) -> String {
    tags.iter()
        .map(|tag| format!("{what}: tag {} of revision {} ({})\n", tag.name, tag.revision, tag.root_hash))
        .collect()
}
