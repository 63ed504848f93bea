use cvmfs_core::cli::{GlobalArgs, RepoArg, human_bytes, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::repository::Selector;
use cvmfs_ingest::image::inventory::{Inventory, Named};

/// List the container images of a repository
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-ingest images
  cvmfs-ingest images --json --repo images.example.org")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let mut tree = publisher.head(now()?)?.tree(&Selector::Head)?;
    let images = Inventory::read(&mut tree, &publisher.config.name)?.images;
    global.print(&images, &table(&images))
}

fn table(images: &[Named]) -> String {
    let width = images.iter().map(|image| image.name.len()).max().unwrap_or(0).max(4);
    let mut text =
        format!("{:width$}  {:12}  {:14}  {:>6}  {:>10}  CONVERTED\n", "NAME", "ID", "PLATFORM", "LAYERS", "SIZE");
    for Named { name, config, platform, layers, size, converted, .. } in images {
        let id = config.strip_prefix("sha256:").map_or(&config[..], |hex| &hex[..12]);
        let size = size.map_or_else(|| "-".to_owned(), human_bytes);
        let platform = if platform.is_empty() { "-" } else { platform };
        let converted = converted.as_deref().unwrap_or("-");
        text += &format!("{name:width$}  {id:12}  {platform:14}  {layers:>6}  {size:>10}  {converted}\n");
    }
    text
}
