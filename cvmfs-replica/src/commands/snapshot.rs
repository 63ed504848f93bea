use std::collections::HashMap;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, human_bytes, now, parse_bytes, raise_open_file_limit};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::replica::Replica;
use cvmfs_replica::schedule::{self, ScheduleOptions};
use cvmfs_replica::snapshot::{Ending, FormerRevisions, SnapshotOptions, SnapshotOutcome, snapshot};
use serde::Serialize;

use super::Meant;

/// Bring replicas to the newest revision of their source
#[derive(Debug, clap::Args)]
#[command(after_help = "Without names: all replicas that are active, the one whose last snapshot is oldest first.

Examples:
  cvmfs-replica snapshot
  cvmfs-replica snapshot software.example.org
  cvmfs-replica snapshot --group nightly --no-wait
  cvmfs-replica snapshot --watch")]
pub(super) struct Arguments {
    /// Names of replicas
    #[arg(value_name = "ALIAS")]
    names: Vec<RepositoryName>,
    /// All active replicas of this group
    #[arg(long, value_name = "NAME", conflicts_with = "names")]
    group: Option<String>,
    /// Go on for ever: every so many seconds, and as soon as a source that is subscribed to (CVMFS_REPLICA_SUBSCRIBE)
    /// tells of a new revision
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "180",
        conflicts_with_all = ["skip_new", "no_wait", "accept_older", "history", "no_history", "bandwidth", "max_catalog_size"])]
    watch: Option<u64>,
    /// Leave out replicas that never had a snapshot
    #[arg(long, conflicts_with = "names")]
    skip_new: bool,
    /// Fail (4) if another snapshot of the replica is running, instead of waiting for its end
    #[arg(long)]
    no_wait: bool,
    /// Take a revision that is older than what the replica has
    #[arg(long)]
    accept_older: bool,
    /// Fetch former revisions with the first snapshot as well
    #[arg(long)]
    history: bool,
    /// Leave out former revisions, such as those that the source lost, unless they have a tag
    #[arg(long, conflicts_with = "history")]
    no_history: bool,
    /// Most bytes a second to fetch, such as 20M
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<String>,
    /// Most bytes of a catalog, inflated
    #[arg(long, value_name = "BYTES")]
    max_catalog_size: Option<String>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    raise_open_file_limit();
    if let Some(seconds) = arguments.watch {
        return watch(global, arguments, Duration::from_secs(seconds));
    }
    let mut options = SnapshotOptions::new(now()?);
    options.accept_older = arguments.accept_older;
    options.former = match (arguments.history, arguments.no_history) {
        (true, _) => FormerRevisions::All,
        (_, true) => FormerRevisions::None,
        _ => FormerRevisions::SinceLast,
    };
    if arguments.no_wait {
        options.patience = Duration::ZERO;
    }
    if let Some(size) = &arguments.max_catalog_size {
        options.max_catalog_size = parse_bytes(size)?;
    }
    let bandwidth = arguments.bandwidth.as_deref().map(parse_bytes).transpose()?;
    let cancel = cancel_on_signals()?;
    let meant = select(global, arguments)?;
    let mut done: Vec<Line> = meant.unusable.iter().map(|(alias, error)| Line::new(alias, Err(error))).collect();
    let mut first_error = meant.unusable.into_iter().next().map(|(_, error)| error);
    for mut replica in meant.replicas {
        replica.transfer.bytes_per_second = bandwidth.or(replica.transfer.bytes_per_second);
        let progress = global.progress();
        let result = snapshot(&replica, &options, &*progress, &cancel);
        drop(progress);
        let line = Line::new(&replica.alias, result.as_ref());
        match result {
            Ok(outcome) => {
                global.warn(&outcome.warnings);
                if outcome.ending == Ending::Incomplete {
                    let what = format!("snapshot of {}", replica.alias);
                    let reason = format!("{}; the replica keeps its revision", outcome.failures);
                    first_error.get_or_insert(Error::Unavailable { what, reason });
                }
            }
            Err(error @ Error::Cancelled) => return Err(error),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
        done.push(line);
    }
    let text: String = done.iter().map(|line| format!("{}\n", line.text)).collect();
    global.print(&done, &text)?;
    first_error.map_or(Ok(()), Err)
}

/// Makes snapshots until a signal comes; prints a line for each that changed or failed.
fn watch(global: &GlobalArgs, arguments: &Arguments, every: Duration) -> Result<()> {
    // Names are checked now, not when it is too late to see the error.
    select(global, arguments)?;
    let options = ScheduleOptions {
        snapshot_every: Some(every),
        names: arguments.names.clone(),
        group: arguments.group.clone(),
        ..ScheduleOptions::default()
    };
    let printer = global.clone();
    let report = move |replica: &Replica, result: &Result<SnapshotOutcome>| {
        if !matches!(result, Ok(SnapshotOutcome { ending: Ending::Unchanged | Ending::PassThrough, .. })) {
            let line = Line::new(&replica.alias, result.as_ref());
            // Whoever read this is gone; the snapshots go on.
            drop(printer.print(&line, &format!("{}\n", line.text)));
        }
    };
    schedule::start(global.server_root()?, options, now, cancel_on_signals()?, report)?.wait();
    Ok(())
}

/// The replicas that are meant, the one whose last snapshot is oldest first.
///
/// # Errors
/// `NotFound` if there is none, or none of the group.
fn select(global: &GlobalArgs, arguments: &Arguments) -> Result<Meant> {
    let mut meant = super::replicas(&global.server_root()?, &arguments.names)?;
    if !arguments.names.is_empty() {
        return Ok(meant);
    }
    let group = arguments.group.as_ref();
    meant.retain(|replica| Ok(replica.is_active && group.is_none_or(|group| replica.group == *group)));
    // One whose configuration cannot be read may be of the group.
    if let Some(group) = group.filter(|_| meant.replicas.is_empty() && meant.unusable.is_empty()) {
        return Err(Error::not_found(format!("an active replica of the group {group:?}")));
    }
    let mut dates = HashMap::new();
    meant.retain(|replica| {
        let date = replica.last_snapshot()?;
        dates.insert(replica.alias.clone(), date);
        Ok(date.is_some() || !arguments.skip_new)
    });
    meant.replicas.sort_by_key(|replica| dates.get(&replica.alias).copied().flatten());
    Ok(meant)
}

/// What is printed of one replica.
#[derive(Serialize)]
struct Line {
    alias: String,
    #[serde(flatten)]
    outcome: Option<SnapshotOutcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    text: String,
}

impl Line {
    fn new(alias: &RepositoryName, result: Result<&SnapshotOutcome, &Error>) -> Self {
        let alias = alias.to_string();
        let text = match result {
            Ok(outcome) => format!("{alias}: {}", summary(outcome)),
            Err(error) => format!("{alias}: {error}"),
        };
        Self { alias, outcome: result.ok().cloned(), error: result.err().map(ToString::to_string), text }
    }
}

fn summary(outcome: &SnapshotOutcome) -> String {
    let revision = outcome.revision.map_or_else(|| "no revision".to_owned(), |revision| format!("revision {revision}"));
    let fetched = format!(
        "{} objects fetched, {}, in {:.1} s",
        outcome.counts.objects,
        human_bytes(outcome.counts.bytes),
        outcome.seconds
    );
    match outcome.ending {
        Ending::Updated => format!("{revision}; {fetched}"),
        Ending::Unchanged => format!("{revision} is up to date"),
        Ending::Incomplete => format!("incomplete, still {revision}; {fetched}; {} failed", outcome.failures.count),
        Ending::PassThrough => "passes requests on; nothing to do".to_owned(),
    }
}
