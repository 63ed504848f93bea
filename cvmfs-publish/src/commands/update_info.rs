use std::fs;
use std::path::PathBuf;

use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::info;
use serde::Serialize;

use super::document::DocumentArgs;

/// Write the documents about this server: repositories.json, and meta.json from what the administrator says
///
/// They are for other web servers: `cvmfs-replica serve` makes the list of repositories itself. Without --file and --edit an
/// existing meta.json stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish update-info
  cvmfs-publish update-info --edit
  cvmfs-publish update-info --file contacts.json")]
pub(super) struct Arguments {
    #[command(flatten)]
    document: DocumentArgs,
    /// Accepted for scripts that have it: nothing is edited unless that is asked for
    #[arg(short = 'e', hide = true)]
    no_edit: bool,
    /// Accepted for scripts that have it: no other web server is configured
    #[arg(short = 'p', hide = true)]
    no_apache: bool,
}

/// What was written.
#[derive(Serialize)]
struct Written {
    repositories: PathBuf,
    meta: PathBuf,
    /// Whether that one is new.
    meta_changed: bool,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let meta = root.info_dir().join(info::META);
    let present = match fs::read(&meta) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        present => Some(present.map_err(|error| Error::io(&meta, error))?),
    };
    let template = || info::meta_template().into_bytes();
    // Nothing is written if what is given is wrong.
    let new = match (&present, arguments.document.is_given()) {
        (present, true) => Some(arguments.document.get(global, present.as_deref().unwrap_or(&template()))?),
        (None, false) => Some(template()),
        (Some(_), false) => None,
    };
    let repositories =
        info::write(&root, info::REPOSITORIES, info::Repositories::configured(&root)?.to_json().as_bytes())?;
    let changed = new.filter(|new| present.as_ref() != Some(new));
    if let Some(text) = &changed {
        info::write(&root, info::META, text)?;
    }
    let written = Written { repositories, meta, meta_changed: changed.is_some() };
    let note = if written.meta_changed { "" } else { " (unchanged)" };
    let text = format!("{}\n{}{note}\n", written.repositories.display(), written.meta.display());
    global.print(&written, &text)
}
