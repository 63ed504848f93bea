use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::check::Means;
use cvmfs_core::cli::{CheckArgs, Checked, GlobalArgs, cancel_on_signals, check_verdict, now};
use cvmfs_core::error::Result;
use cvmfs_core::fetch::{HttpStore, parse_servers};
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::check::with_subject;
use serde::Serialize;

/// How long to wait for a snapshot before a replica is mended.
const PATIENCE: Duration = Duration::from_mins(10);

/// Look for everything that can be wrong with replicas
///
/// Signatures, tags, reflog, every catalog and every row, counters, and the existence and size of every object. What is
/// wrong is printed, a line a thing; the exit code is 3 then. Objects are mended from the source of the replica.
#[derive(Debug, clap::Args)]
#[command(after_help = "Without names: all replicas that are active and had a snapshot.

Examples:
  cvmfs-replica check
  cvmfs-replica check --data software.example.org
  cvmfs-replica check --incremental --json
  cvmfs-replica check --data --repair software.example.org")]
pub(super) struct Arguments {
    /// Names of replicas
    #[arg(value_name = "ALIAS")]
    names: Vec<RepositoryName>,
    #[command(flatten)]
    check: CheckArgs,
}

/// What is printed of one replica.
#[derive(Serialize)]
struct Line {
    alias: String,
    #[serde(flatten)]
    checked: Checked,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let (now, cancel) = (now()?, cancel_on_signals()?);
    let mut meant = super::replicas(&global.server_root()?, &arguments.names)?;
    meant.retain(|replica| Ok(!replica.is_pass_through));
    if arguments.names.is_empty() {
        meant.retain(|replica| Ok(replica.is_active && replica.is_complete()?));
    }
    let mut text: String = meant.unusable.iter().map(|(alias, error)| format!("{alias}: {error}\n")).collect();
    let mut first_error = meant.unusable.into_iter().next().map(|(_, error)| error);
    let mut lines = Vec::new();
    for replica in meant.replicas {
        let checked = with_subject(&replica, |subject| {
            let _lock = arguments.check.repair.then(|| replica.lock(PATIENCE, &cancel)).transpose()?;
            let sources = match &arguments.check.from {
                Some(url) => parse_servers(url)?,
                None => replica.sources.clone(),
            };
            let mirror = HttpStore::new(sources, replica.http_options()?)?;
            // The lock of the replica is held all the time; only a Stratum 0 can count anew.
            let means = Means { mirror: Some(Arc::new(mirror)), lock: &|| Ok(Box::new(())), recount: None };
            arguments.check.run(global, subject, &means, now, &cancel)
        })?;
        text.push_str(&format!("{}:\n{}", replica.alias, checked.summary()));
        if let Err(error) = check_verdict(&replica.alias, &checked.report) {
            first_error.get_or_insert(error);
        }
        lines.push(Line { alias: replica.alias.to_string(), checked });
    }
    global.print(&lines, &text)?;
    first_error.map_or(Ok(()), Err)
}
