//! Documents that people write: from a file, from standard input, or in an editor.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::info::check_document;

/// Where a document comes from.
#[derive(Debug, clap::Args)]
pub(super) struct DocumentArgs {
    /// Take the document from a file; `-` is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "edit")]
    file: Option<PathBuf>,
    /// Edit the present document with $VISUAL, $EDITOR or vi
    #[arg(long)]
    edit: bool,
}

impl DocumentArgs {
    /// Whether a new document is given.
    pub(super) fn is_given(&self) -> bool {
        self.edit || self.file.is_some()
    }

    /// Whether it is made out of the present one.
    pub(super) fn is_edited(&self) -> bool {
        self.edit
    }

    /// Gets the document, and checks it; `present` is what is edited.
    ///
    /// # Errors
    /// `InvalidInput` if it is no JSON object. What was edited is left in a file then, which the message names.
    pub(super) fn get(&self, global: &GlobalArgs, present: &[u8]) -> Result<Vec<u8>> {
        let (text, warnings) = match &self.file {
            Some(file) if file == Path::new("-") => {
                let mut text = Vec::new();
                std::io::stdin().lock().read_to_end(&mut text).at("standard input")?;
                let warnings = check_document("standard input", &text)?;
                (text, warnings)
            }
            Some(file) => {
                let text = fs::read(file).at(file)?;
                let warnings = check_document(&file.display().to_string(), &text)?;
                (text, warnings)
            }
            None => edit(present)?,
        };
        global.warn(&warnings);
        Ok(text)
    }
}

/// Lets somebody edit a text, and returns it with what looks wrong.
fn edit(present: &[u8]) -> Result<(Vec<u8>, Vec<String>)> {
    let file = tempfile::Builder::new().prefix("cvmfs-").suffix(".json").tempfile().at("temporary file")?;
    fs::write(file.path(), present).at(file.path())?;
    let variable = |name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
    let editor = variable("VISUAL").or_else(|| variable("EDITOR")).unwrap_or_else(|| "vi".into());
    // Such variables hold options as well, and paths with blanks in quotes: the shell knows.
    let script = format!("{editor} \"$1\"");
    let status = Command::new("/bin/sh").args(["-c", &script, "sh"]).arg(file.path()).status().at("/bin/sh")?;
    if !status.success() {
        return Err(Error::invalid(format!("editor {editor}"), format!("it ended with {status}; nothing was changed")));
    }
    let text = fs::read(file.path()).at(file.path())?;
    match check_document(&file.path().display().to_string(), &text) {
        Ok(warnings) => Ok((text, warnings)),
        Err(error) => {
            // Nobody has to type it again.
            let (_, path) = file.keep().map_err(|error| Error::io("temporary file", error.error))?;
            let reason = format!("{error}; mend it there, and give it with --file {}", path.display());
            Err(Error::invalid("edited document", reason))
        }
    }
}
