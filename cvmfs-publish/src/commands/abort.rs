use std::time::Duration;

use cvmfs_core::changeset::Summary;
use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::{About, Publisher};
use cvmfs_core::error::{Error, Result};
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
    transaction: Option<About>,
    changes: Summary,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let name = arguments.repo.resolve(&root)?;
    let publisher = Publisher::open(&root, &name)?;
    let hooks = Hooks::new(&root, &name);

    let cancel = cancel_on_signals()?;
    let joined = publisher.join_transaction(Duration::ZERO, &cancel);
    let looked = joined.and_then(|transaction| Ok((transaction.about().clone(), transaction.changes().summary()?)));
    let aborted = match looked {
        Ok((about, changes)) => Aborted { transaction: Some(about), changes },
        Err(error @ (Error::NotFound { .. } | Error::Conflict { .. })) => return Err(error),
        Err(damage) => {
            global.warn(&[format!("the transaction is damaged: {damage}")]);
            Aborted { transaction: None, changes: Summary::default() }
        }
    };
    let revision = publisher.head(now()?)?.manifest().revision;
    hooks.before(Operation::Abort, revision)?;
    publisher.abort_transaction(Duration::ZERO, &cancel)?;
    global.warn(&hooks.after(Operation::Abort, revision));
    let Summary { ensured, put, links, removed } = aborted.changes;
    global.print(&aborted, &format!("transaction aborted: {} changes forgotten\n", ensured + put + links + removed))
}
