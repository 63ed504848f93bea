use std::fs;
use std::path::PathBuf;

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_ingest::image::recipe::{Fault, Recipe};
use serde::Serialize;

use super::registry::RegistryArgs;
use super::wishes::tell;

/// List the images that a wish list stands for now
#[derive(Debug, clap::Args)]
#[command(
    alias = "expand-wildcard",
    after_help = "Examples:
  cvmfs-ingest expand recipe.yaml
  cvmfs-ingest expand --json --mirror docker.io=cache.example.org/hub recipe.yaml"
)]
pub(super) struct Arguments {
    /// The wish list
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// What a wish list stands for.
#[derive(Debug, Serialize)]
struct Report {
    images: Vec<Image>,
    faults: Vec<Fault>,
}

#[derive(Debug, Serialize)]
struct Image {
    line: u64,
    name: String,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let name = arguments.recipe.display().to_string();
    let recipe = Recipe::parse(&name, &fs::read_to_string(&arguments.recipe).at(&arguments.recipe)?)?;
    let cancel = cancel_on_signals()?;
    let registries = arguments.registry.registries(&cancel)?;
    let expansion = recipe.expand(&|image| registries.repository(image)?.tags());
    cancel.check()?;
    let mut faults = [recipe.faults.clone(), expansion.faults].concat();
    faults.sort_by_key(|fault| fault.line);
    let images = expansion.images.iter().map(|wish| Image { line: wish.line, name: wish.image.whole_name() });
    let report = Report { images: images.collect(), faults };

    tell(global, &arguments.recipe, &recipe, &report.faults);
    let text: String = report.images.iter().map(|image| format!("{}\n", image.name)).collect();
    global.print(&report, &text)?;
    match report.faults.iter().filter(|fault| !fault.ignored).count() {
        0 => Ok(()),
        1 => Err(Error::invalid(name, "1 line stands for nothing")),
        count => Err(Error::invalid(name, format!("{count} lines stand for nothing"))),
    }
}
