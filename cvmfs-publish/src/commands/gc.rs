use cvmfs_core::cli::{GarbageArgs, GlobalArgs, RepoArg, cancel_on_signals, garbage_summary, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::gc::{self, Stratum0};

/// Remove what no revision needs that is to be kept
///
/// The newest revision, those with tags, what is checked out and what is being worked on always stay. Others may publish
/// meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish gc --dry-run
  cvmfs-publish gc --keep-since '2 weeks ago' --log /var/log/cvmfs/removed.log
  cvmfs-publish gc --keep-revisions 0 --grace-period 0")]
pub(super) struct Arguments {
    #[command(flatten)]
    garbage: GarbageArgs,
    #[command(flatten)]
    repo: RepoArg,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let store = publisher.config.storage.open()?;
    let (now, cancel) = (now()?, cancel_on_signals()?);
    let options = arguments.garbage.options(now)?;
    let log = publisher.config.deletion_log.clone();
    let place = Stratum0::new(publisher, store, now);
    let outcome = arguments.garbage.run(global, now, log.as_deref(), |report, progress| {
        let run = if arguments.garbage.dry_run { gc::rehearse } else { gc::collect };
        run(&place, &options, report, progress, &cancel)
    })?;
    global.print(&outcome, &format!("{}\n", garbage_summary(&outcome)))
}
