use std::time::Duration;

use cvmfs_core::changeset::Summary;
use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals};
use cvmfs_core::commit::{About, Publisher};
use cvmfs_core::error::Result;
use cvmfs_core::hooks::{Hooks, Operation};
use serde::Serialize;

/// Forget the changes of the open transaction
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish abort")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
}

/// What was forgotten.
#[derive(Debug, Serialize)]
struct Aborted {
    transaction: About,
    changes: Summary,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let name = arguments.repo.resolve(&root)?;
    let publisher = Publisher::open(&root, &name)?;
    let hooks = Hooks::new(&root, &name);

    let transaction = publisher.join_transaction(Duration::ZERO, &cancel_on_signals()?)?;
    let aborted = Aborted { transaction: transaction.about().clone(), changes: transaction.changes().summary()? };
    let revision = aborted.transaction.revision;
    hooks.before(Operation::Abort, revision)?;
    transaction.abort()?;
    global.warn(&hooks.after(Operation::Abort, revision));
    let Summary { ensured, put, links, removed } = aborted.changes;
    global.print(&aborted, &format!("transaction aborted: {} changes forgotten\n", ensured + put + links + removed))
}
