use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::hooks::{Hooks, Operation};
use cvmfs_core::server::SystemUser;

/// Open a transaction: from here on changes can be collected, to become one revision
///
/// Changes come from `rm`, `mv`, `cp`, `ln`, `mkdir`, `chmod`, `chown`, from `publish --from DIR --transaction` and from
/// `cvmfs-ingest --transaction`. `diff --pending` shows them, `publish` makes them one revision, `abort` forgets them.
/// Others may publish meanwhile: the changes are applied to the revision that is the newest in the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish transaction
  cvmfs-publish cp /software/1.0 /software/1.1
  cvmfs-ingest --tar patch.tar --base-dir software/1.1 --transaction
  cvmfs-publish diff --pending
  cvmfs-publish publish --tag v1.1")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Wait so long for another transaction to end; 0 for as long as it takes [default: do not wait]
    #[arg(short = 't', long, value_name = "SECONDS")]
    wait: Option<u64>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let name = arguments.repo.resolve(&root)?;
    let publisher = Publisher::open(&root, &name)?;
    let hooks = Hooks::new(&root, &name);
    let revision = publisher.head(now()?)?.manifest().revision;

    hooks.before(Operation::Transaction, revision)?;
    let patience = match arguments.wait {
        None => Duration::ZERO,
        Some(0) => Duration::MAX,
        Some(seconds) => Duration::from_secs(seconds),
    };
    let opener = SystemUser::current()?.name;
    let about = publisher.open_transaction(now()?, opener, patience, &cancel_on_signals()?)?;
    global.warn(&hooks.after(Operation::Transaction, about.revision));
    global.print(&about, &format!("transaction open at revision {}\n", about.revision))
}
