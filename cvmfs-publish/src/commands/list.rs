use cvmfs_core::census::census;
use cvmfs_core::cli::{GlobalArgs, now};
use cvmfs_core::error::Result;

/// List the repositories of this server, replicas among them, with their state
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish list
  cvmfs-publish list --json | jq -r '.[] | select(.whitelist_days_left < 7) | .name'")]
pub(super) struct Arguments {}

pub(super) fn run(global: &GlobalArgs, _arguments: &Arguments) -> Result<()> {
    let listed = census(&global.server_root()?, now()?)?;
    let text: String = listed.iter().map(|repository| format!("{repository}\n")).collect();
    global.print(&listed, &text)
}
