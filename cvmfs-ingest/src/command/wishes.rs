//! What all commands share that do what wish lists say.

use std::fs;
use std::path::{Path, PathBuf};

use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_ingest::image::recipe::{Fault, Recipe};
use cvmfs_ingest::image::registry::{Registries, Secret};
use cvmfs_ingest::image::thin::Outputs;

/// The variable with the password of whoever pushes thin images.
const PASSWORD_VARIABLE: &str = "DUCC_OUTPUT_REGISTRY_PASS";

/// What is done besides converting the images of a wish list.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Wish lists")]
pub(super) struct WishListArgs {
    /// Push a thin image of each image, under the name that the wish list's `output_format` gives it, as its `user` with
    /// the password in DUCC_OUTPUT_REGISTRY_PASS
    #[arg(long, conflicts_with = "skip_layers")]
    thin: bool,
    /// Wish list with nothing but `ignoreErrors`: images whose failure is no failure of ours
    #[arg(long, value_name = "FILE", env = "DUCC_IGNORE_ERRORS_FILE")]
    ignore_errors: Option<PathBuf>,
}

impl WishListArgs {
    /// Reads a wish list, and what else is to be ignored.
    pub(super) fn read(&self, path: &Path) -> Result<Recipe> {
        let mut recipe = read_recipe(path)?;
        if let Some(file) = &self.ignore_errors {
            recipe.ignore_errors.add_file(&file.display().to_string(), &fs::read_to_string(file).at(file)?)?;
        }
        Ok(recipe)
    }

    /// Where thin images go, if some are wanted.
    pub(super) fn outputs(&self, registries: &Registries) -> Option<Outputs> {
        let password = || std::env::var(PASSWORD_VARIABLE).ok().map(Secret::new);
        self.thin.then(|| Outputs::new(registries, password()))
    }
}

/// Tells what is wrong with a wish list.
pub(super) fn tell(global: &GlobalArgs, file: &Path, recipe: &Recipe, faults: &[Fault]) {
    let file = file.display();
    let mut told: Vec<_> = faults
        .iter()
        .map(|Fault { line, reason, ignored }| {
            format!("{file}:{line}: {reason}{}", if *ignored { " (ignored)" } else { "" })
        })
        .collect();
    if recipe.is_empty() {
        told.push(format!("{file}: it wants no images: there is nothing below `input`"));
    }
    global.warn(&told);
}

/// Reads a wish list whose images are at the top of a repository.
pub(super) fn read_recipe(path: &Path) -> Result<Recipe> {
    let recipe = Recipe::parse(&path.display().to_string(), &fs::read_to_string(path).at(path)?)?;
    if !recipe.directory.is_root() {
        let what = format!("images below the directory {} of a repository", recipe.directory);
        return Err(Error::Unsupported { what });
    }
    Ok(recipe)
}
