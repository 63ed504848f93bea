use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::progress::Cancel;
use cvmfs_ingest::image::clean::{Pruned, prune};
use cvmfs_ingest::image::inventory::Named;
use cvmfs_ingest::image::recipe::{Fault, Recipe};
use cvmfs_ingest::image::reference::Reference;

use super::registry::RegistryArgs;
use super::wishes::read_recipe;

/// Take away the names of images that are not wanted any more
///
/// What the images are made of stays until `gc` removes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-ingest prune --dry-run recipe.yaml more.yaml
  cvmfs-ingest prune --image registry.example.org/team/app:1.0")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Wish lists, which also name the repository: images that are in none of them are taken away
    #[arg(value_name = "RECIPE", required_unless_present = "image", conflicts_with = "image")]
    recipes: Vec<PathBuf>,
    /// An image to take away, as `REGISTRY/REPOSITORY:TAG`; may be repeated
    #[arg(long, value_name = "NAME")]
    image: Vec<Reference>,
    /// Show what would be taken away, and take nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    // 1. The lists, if there are some, and the repository.
    let lists: Vec<(&Path, Recipe)> =
        arguments.recipes.iter().map(|path| Ok((&**path, read_recipe(path)?))).collect::<Result<_>>()?;
    let root = global.server_root()?;
    let named = arguments.repo.repo.as_ref().or(lists.iter().find_map(|(_, recipe)| recipe.repository.as_ref()));
    let publisher = Publisher::open(&root, &named.cloned().map_or_else(|| root.only_repository(), Ok)?)?;
    let options = super::clean_options(&publisher, arguments.dry_run, now()?)?;
    let cancel = cancel_on_signals()?;

    // 2. What stays of it, or what goes.
    let names = names(&arguments.image)?;
    let wanted = wanted(&lists, arguments, &publisher, &cancel)?;
    let is_gone = |image: &Named| {
        let name = image.plain_name();
        Ok(if lists.is_empty() { names.contains(name) } else { !wanted.contains(name) })
    };

    // 3. Take it away.
    let before = super::revision_to_follow(&publisher, &options)?;
    let pruned = global.publish(&publisher, before, |_| {
        let pruned = prune(&publisher, &is_gone, &options, &cancel)?;
        let revision = pruned.revision;
        Ok((pruned, revision))
    })?;
    global.print(&pruned, &summary(&pruned, arguments.dry_run))?;
    match names.iter().find(|name| !pruned.names.iter().any(|pruned| pruned.ends_with(name.as_str()))) {
        Some(missing) => Err(Error::not_found(format!("image {missing}"))),
        None => Ok(()),
    }
}

/// What the wish lists stand for now. A line that cannot be used, or a registry that does not answer, is no reason to take
/// anything away.
fn wanted(
    lists: &[(&Path, Recipe)],
    arguments: &Arguments,
    publisher: &Publisher,
    cancel: &Cancel,
) -> Result<BTreeSet<String>> {
    let registries = arguments.registry.registries(cancel)?;
    let mut wanted = BTreeSet::new();
    for (path, recipe) in lists {
        let file = path.display();
        if let Some(other) = recipe.repository.as_ref().filter(|name| **name != publisher.config.name) {
            return Err(Error::invalid(
                file.to_string(),
                format!("it is for {other}, not for {}", publisher.config.name),
            ));
        }
        if recipe.is_empty() {
            return Err(Error::invalid(file.to_string(), "it wants no images, and all of its images would go"));
        }
        let expansion = recipe.expand(&|image| registries.repository(image)?.tags());
        if let Some(Fault { line, reason, .. }) = recipe.faults.iter().chain(&expansion.faults).next() {
            return Err(Error::invalid(format!("{file}:{line}"), reason));
        }
        wanted.extend(names(expansion.images.iter().map(|wish| &wish.image))?);
    }
    Ok(wanted)
}

/// What images are called in the repository.
fn names<'i>(images: impl IntoIterator<Item = &'i Reference>) -> Result<BTreeSet<String>> {
    images.into_iter().map(super::repository_name).collect()
}

fn summary(Pruned { names, revision }: &Pruned, dry_run: bool) -> String {
    let verb = if dry_run { "would take away" } else { "took away" };
    let mut text: String = names.iter().map(|name| format!("{verb} {name}\n")).collect();
    text += &revision.map_or_else(|| "nothing changed\n".to_owned(), |revision| format!("revision {revision}\n"));
    text
}
