use std::io::Write as _;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, OUTPUT, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::{Publisher, Replace};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::info;
use cvmfs_core::server::{RepositoryConfig, load_master_keys};
use cvmfs_publish::inspect;
use serde::Serialize;

use super::document::DocumentArgs;

/// Publish a description of the repository: who runs it, what it has
///
/// Without --file and --edit the present one is printed. The tree and its revision stay; the manifest is signed anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish update-repoinfo
  cvmfs-publish update-repoinfo --edit
  cvmfs-publish update-repoinfo --file description.json
  cvmfs-publish update-repoinfo | jq '.email = \"new@example.org\"' | cvmfs-publish update-repoinfo --file -")]
pub(super) struct Arguments {
    #[command(flatten)]
    document: DocumentArgs,
    #[command(flatten)]
    repo: RepoArg,
    /// Seconds to wait for another publisher
    #[arg(short, long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// What became of it.
#[derive(Serialize)]
struct Updated {
    changed: bool,
    metainfo: Option<String>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let (name, now) = (arguments.repo.resolve(&root)?, now()?);
    let template = || info::repository_template().into_bytes();
    if !arguments.document.is_given() {
        // Whoever cannot publish may look.
        let store = RepositoryConfig::load(&root, &name)?.storage.open()?;
        let repository = inspect::open(store, &name, &load_master_keys(&root, &name)?, now)?;
        let present = repository.metainfo()?.unwrap_or_else(template);
        let mut out = std::io::stdout().lock();
        let written = out.write_all(&present).and_then(|()| out.flush());
        return written.map_err(|error| Error::io(OUTPUT, error));
    }
    let (publisher, cancel) = (Publisher::open(&root, &name)?, cancel_on_signals()?);
    let head = publisher.head(now)?;
    let present = head.metainfo()?.unwrap_or_else(template);
    let text = arguments.document.get(global, &present)?;
    let replace =
        if arguments.document.is_edited() { Replace::Exactly(head.manifest().metainfo) } else { Replace::Any };
    // An editor takes its time.
    let now = cvmfs_core::cli::now()?.max(now);
    let patience = Duration::from_secs(arguments.timeout);
    let manifest = publisher.set_metainfo(&text, replace, now, patience, &cancel)?;
    let metainfo = manifest.as_ref().unwrap_or_else(|| head.manifest()).metainfo;
    let updated = Updated { changed: manifest.is_some(), metainfo: metainfo.map(|hash| hash.to_string()) };
    let text = if updated.changed { "description published\n" } else { "unchanged\n" };
    global.print(&updated, text)
}
