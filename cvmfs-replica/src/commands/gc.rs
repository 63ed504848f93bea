use cvmfs_core::cli::{GarbageArgs, GlobalArgs, cancel_on_signals, garbage_summary, now};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::gc::Outcome;
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::gc::{Skipped, collect, is_needless};
use cvmfs_replica::replica::Replica;
use serde::Serialize;

/// Remove what no revision needs that is to be kept
///
/// The newest revision and those with tags always stay. Nothing is done for a replica whose source has not collected
/// garbage since the replica did.
#[derive(Debug, clap::Args)]
#[command(after_help = "Without names: all replicas that are active and whose repository allows it.

Examples:
  cvmfs-replica gc
  cvmfs-replica gc --dry-run software.example.org
  cvmfs-replica gc --keep-revisions 0 --always software.example.org")]
pub(super) struct Arguments {
    /// Names of replicas
    #[arg(value_name = "ALIAS")]
    names: Vec<RepositoryName>,
    /// Also if the source has not collected garbage
    #[arg(long)]
    always: bool,
    #[command(flatten)]
    garbage: GarbageArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let (now, cancel) = (now()?, cancel_on_signals()?);
    let mut meant = super::replicas(&global.server_root()?, &arguments.names)?;
    if arguments.names.is_empty() {
        meant.retain(|replica| Ok(replica.is_active));
    }
    let mut done: Vec<Line> = meant.unusable.iter().map(|(alias, error)| Line::failed(alias, error)).collect();
    let mut first_error = meant.unusable.into_iter().next().map(|(_, error)| error);
    for replica in meant.replicas {
        let skipped = is_needless(&replica, &cancel).map(|skipped| match skipped {
            Some(Skipped::SourceUnchanged) if arguments.always => None,
            Some(Skipped::NotCollectable) if !arguments.names.is_empty() => None,
            skipped => skipped,
        });
        let result = match skipped {
            Err(error) => Err(error),
            Ok(Some(skipped)) => Ok(Line::skipped(&replica, skipped)),
            Ok(None) => {
                let options = arguments.garbage.options(now)?;
                let log = replica.deletion_log.as_deref();
                let outcome = arguments.garbage.run(global, now, log, |report, progress| {
                    collect(&replica, &options, arguments.garbage.dry_run, report, progress, &cancel)
                });
                outcome.map(|outcome| Line::collected(&replica, outcome))
            }
        };
        match result {
            Ok(line) => done.push(line),
            Err(error @ Error::Cancelled) => return Err(error),
            Err(error) => {
                done.push(Line::failed(&replica.alias, &error));
                first_error.get_or_insert(error);
            }
        }
    }
    let text: String = done.iter().map(|line| format!("{}: {}\n", line.alias, line.text)).collect();
    global.print(&done, &text)?;
    first_error.map_or(Ok(()), Err)
}

/// What is printed of one replica.
#[derive(Default, Serialize)]
struct Line {
    alias: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<Skipped>,
    #[serde(flatten)]
    outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    text: String,
}

impl Line {
    fn skipped(replica: &Replica, skipped: Skipped) -> Self {
        let text = match skipped {
            Skipped::Empty => "it has no snapshot yet",
            Skipped::PassThrough => "it passes requests on; nothing to do",
            Skipped::NotCollectable => "the repository does not allow it",
            Skipped::SourceUnchanged => "the source has not collected since; nothing to do (see --always)",
        };
        Self { alias: replica.alias.to_string(), skipped: Some(skipped), text: text.to_owned(), ..Self::default() }
    }

    fn collected(replica: &Replica, outcome: Outcome) -> Self {
        let text = garbage_summary(&outcome);
        Self { alias: replica.alias.to_string(), outcome: Some(outcome), text, ..Self::default() }
    }

    fn failed(alias: &RepositoryName, error: &Error) -> Self {
        let text = error.to_string();
        Self { alias: alias.to_string(), error: Some(text.clone()), text, ..Self::default() }
    }
}
