use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_replica::replica::Replica;
use cvmfs_replica::status::status;

/// List the replicas of this server
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica list
  cvmfs-replica list --group nightly --json")]
pub(super) struct Arguments {
    /// Only those of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut replicas = Replica::all(&global.server_root()?)?;
    if let Some(group) = &arguments.group {
        replicas.retain(|replica| replica.group == *group);
    }
    let states = replicas.iter().map(|replica| status(replica, 0)).collect::<Result<Vec<_>>>()?;
    let mut text = String::new();
    for state in &states {
        let what = match (state.pass_through, state.revision) {
            (true, _) => "pass-through".to_owned(),
            (false, Some(revision)) => format!("revision {revision}"),
            (false, None) => "no snapshot yet".to_owned(),
        };
        let inactive = if state.active { "" } else { ", not active" };
        text.push_str(&format!("{} ({what}{inactive}) from {}\n", state.alias, state.sources.join(", ")));
    }
    global.print(&states, &text)
}
