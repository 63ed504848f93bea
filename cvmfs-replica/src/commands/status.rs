use cvmfs_core::cli::{GlobalArgs, human_bytes};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Result;
use cvmfs_core::path::RepositoryName;
use cvmfs_replica::status::{Status, status};

/// Show what replicas have, and how their last snapshots went
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica status
  cvmfs-replica status --runs 20 software.example.org")]
pub(super) struct Arguments {
    /// Names of replicas [default: all]
    #[arg(value_name = "ALIAS")]
    names: Vec<RepositoryName>,
    /// So many of the last snapshots
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    runs: usize,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let meant = super::replicas(&global.server_root()?, &arguments.names)?;
    let states = meant.replicas.iter().map(|replica| status(replica, arguments.runs)).collect::<Result<Vec<_>>>()?;
    let unusable = meant.unusable.iter().map(|(alias, error)| format!("{alias}\n  {error}\n"));
    let text: String = states.iter().map(describe).chain(unusable).collect();
    global.print(&states, &text)?;
    meant.unusable.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

fn describe(status: &Status) -> String {
    let mut text = format!("{}\n", status.alias);
    let mut line = |label: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            text.push_str(&format!("  {label:18}{value}\n"));
        }
    };
    line("repository", Some(&status.name).filter(|name| **name != status.alias).map(String::as_str));
    line("source", Some(&status.sources.join(", ")));
    line("group", Some(&status.group));
    line("pass-through", status.pass_through.then_some("requests are passed on to the source"));
    line("not active", (!status.active).then_some("left out of snapshots of all replicas"));
    let revision = match (status.revision, &status.published) {
        (Some(revision), Some(published)) => format!("{revision}, published {published}"),
        (Some(revision), None) => revision.to_string(),
        _ => "none yet".to_owned(),
    };
    line("revision", Some(&revision).filter(|_| !status.pass_through).map(String::as_str));
    line("root catalog", status.root_hash.as_deref());
    line("last snapshot", status.last_snapshot.as_deref());
    line("last gc", status.last_gc.as_deref());
    line("whitelist expires", status.whitelist_expires.as_deref());
    line("running", status.snapshotting.then_some("a snapshot runs, or was killed"));
    for run in &status.history {
        let start = UnixSeconds(run.start).iso();
        let how = match (&run.error, run.ending) {
            (Some(error), _) => format!("failed: {error}"),
            (None, ending) => ending.map_or_else(String::new, |ending| format!("{ending:?}").to_lowercase()),
        };
        let (objects, bytes) = (run.counts.objects, human_bytes(run.counts.bytes));
        text.push_str(&format!("  {start}  {:.1} s, {objects} objects, {bytes}: {how}\n", run.seconds));
    }
    text
}
