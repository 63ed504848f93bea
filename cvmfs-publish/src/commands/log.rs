use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::Result;
use cvmfs_publish::history::{self, LogEntry};

/// List revisions from the newest back: number, time, tags, size and what it grew by
///
/// Ends where the storage has no older revisions any more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish log -n 5
  cvmfs-publish log --json | jq -r '.[] | [.revision, .change.bytes] | @tsv'")]
pub(super) struct Arguments {
    /// At most so many revisions
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    revision: super::RevisionArgs,
    #[command(flatten)]
    source: super::SourceArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let repository = arguments.source.open(global)?;
    let entries = history::log(&repository, &arguments.revision.selector(), arguments.limit)?;
    let text: String = entries.iter().map(line).collect();
    global.print(&entries, &text)
}

fn line(entry: &LogEntry) -> String {
    let LogEntry { revision, time, tags, size, change, .. } = entry;
    let change = change.map_or_else(
        || "unknown".into(),
        |change| format!("{:+} entries, {:+} bytes, {:+} catalogs", change.entries, change.bytes, change.catalogs),
    );
    let names: Vec<&str> = tags.iter().map(|tag| &tag.name[..]).collect();
    format!("{revision:6}  {time}  {} entries, {} bytes ({change})  {}\n", size.entries, size.bytes, names.join(" "))
}
