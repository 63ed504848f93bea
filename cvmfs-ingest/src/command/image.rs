use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, human_bytes, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::progress::{Cancel, Unit};
use cvmfs_ingest::image::convert::{Converter, Outcome, Request};
use cvmfs_ingest::image::reference::{Reference, Transport, docker_name};
use cvmfs_ingest::image::thin;

use super::conversion::ConversionArgs;
use super::registry::RegistryArgs;

/// Convert one container image
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-ingest image registry.example.org/team/app:1.0
  cvmfs-ingest image docker://debian:stable-slim --platform all
  cvmfs-ingest image oci-archive:app.tar --name registry.example.org/team/app:1.0
  cvmfs-ingest image docker-archive:saved.tar --name registry.example.org/team/app:1.0")]
pub(super) struct Arguments {
    /// The image: `[SCHEME://]REGISTRY/REPOSITORY:TAG`, `docker://NAME`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or
    /// `docker-archive:FILE[:NAME]`
    image: Transport,
    /// What it is called in the repository, as `REGISTRY/REPOSITORY:TAG` [default: as in the registry]
    #[arg(long, value_name = "NAME")]
    name: Option<Reference>,
    /// Push a thin image under this name, for Docker with the graph driver
    #[arg(long, value_name = "NAME", conflicts_with = "skip_layers")]
    thin: Option<Reference>,
    #[command(flatten)]
    repo: RepoArg,
    #[command(flatten)]
    conversion: ConversionArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let options = arguments.conversion.options(&publisher, now()?)?;
    let listener = arguments.conversion.listener()?;
    let cancel = cancel_on_signals()?;
    let request = request(arguments, &cancel)?;
    let before = publisher.head(options.contents.owned.now)?.manifest().revision;
    let outcome = global.publish(&publisher, Some(before), |progress| {
        progress.phase("layers", Unit::Bytes, None);
        let converter = Converter::new(&publisher, options, &*listener)?;
        let outcome = converter.convert(&request, progress, &cancel)?;
        let revision = outcome.revision;
        Ok((outcome, revision))
    })?;
    global.warn(&outcome.warnings);
    global.print(&outcome, &summary(&outcome))
}

/// What is asked for, of whom.
fn request(arguments: &Arguments, cancel: &Cancel) -> Result<Request> {
    let registries = arguments.registry.registries(cancel)?;
    let (store, reference) = registries.open(&arguments.image)?;
    let thin = arguments.thin.as_ref().map(|name| thin::Target::new(name, &registries)).transpose()?;
    let name = match (&arguments.name, &arguments.image) {
        (Some(name), _) if name.is_pattern() => {
            return Err(Error::invalid(name.whole_name(), "one image has one name, and not a pattern"));
        }
        (Some(name), _) => name.clone(),
        (None, Transport::Registry(reference)) => reference.clone(),
        (None, Transport::DockerArchive(_, Some(name))) => docker_name(name)?,
        (None, _) => {
            return Err(Error::invalid("--name", "an image from a file needs a name: REGISTRY/REPOSITORY:TAG"));
        }
    };
    Ok(Request { name, store, reference, thin })
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { name, digest, layers, layers_fetched, bytes_fetched, seconds, .. } = outcome;
    match outcome.revision {
        Some(revision) => format!(
            "{name}: revision {revision}, {digest}\n{layers_fetched} of {layers} layers fetched ({}) in {seconds:.1} s\n",
            human_bytes(*bytes_fetched)
        ),
        None => format!("{name}: unchanged, {digest}\n"),
    }
}
