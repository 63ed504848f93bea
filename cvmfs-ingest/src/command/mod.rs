//! One file a command: arguments, conversion to library options, call, print.

mod check_image;
mod conversion;
mod convert;
mod expand;
mod gc;
mod image;
mod images;
mod ingest;
mod listen;
mod prune;
mod registry;
mod wishes;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use cvmfs_core::cli::{EXIT_CODES, GlobalArgs};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::path::{RepoPath, display};
use cvmfs_ingest::Options;
use cvmfs_ingest::image::clean;
use cvmfs_ingest::image::layout::NamePlace;
use cvmfs_ingest::image::reference::Reference;

/// Stream tarballs, or container images with the subcommands, into a CernVM-FS repository
#[derive(Debug, Parser)]
#[command(name = "cvmfs-ingest", version, subcommand_negates_reqs = true, after_help = format!("Examples:
  cvmfs-ingest --tar layer.tar --base-dir software/1.0
  xz -dc layer.tar.xz | cvmfs-ingest --tar - --base-dir software/1.0
  cvmfs-ingest --delete software/1.0 --tar new.tar.gz --base-dir software/1.1 --catalog --tag v1.1
  cvmfs-ingest --whiteouts oci --tar base.tar.gz --tar update.tar.gz --base-dir images/app --dry-run

{EXIT_CODES}"))]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(flatten)]
    ingest: ingest::Arguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    CheckImage(check_image::Arguments),
    Expand(expand::Arguments),
    Image(Box<image::Arguments>),
    Convert(Box<convert::Arguments>),
    Images(images::Arguments),
    Listen(Box<listen::Arguments>),
    Prune(prune::Arguments),
    Gc(gc::Arguments),
}

impl Arguments {
    /// Parses the command line. Ends the process if it cannot be, or if help is asked for.
    pub(crate) fn parse() -> Self {
        let mut definition = Self::command();
        let matches = definition.get_matches_mut();
        // clap's own check for this would also refuse common options in front of a subcommand.
        if let Some(subcommand) = matches.subcommand_name() {
            let of_ingest = ingest::Arguments::augment_args(clap::Command::new("ingest"));
            let is_given = |argument: &&clap::Arg| {
                of_ingest.get_arguments().any(|other| other.get_id() == argument.get_id())
                    && matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
            };
            let given = definition.get_arguments().find(is_given).map(ToString::to_string);
            if let Some(argument) = given {
                let message = format!("'{argument}' cannot stand before the subcommand '{subcommand}'");
                definition.error(ErrorKind::ArgumentConflict, message).exit();
            }
        }
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let global = &arguments.global;
    match &arguments.command {
        None => ingest::run(global, &arguments.ingest),
        Some(Command::CheckImage(arguments)) => check_image::run(global, arguments),
        Some(Command::Expand(arguments)) => expand::run(global, arguments),
        Some(Command::Image(arguments)) => image::run(global, arguments),
        Some(Command::Convert(arguments)) => convert::run(global, arguments),
        Some(Command::Images(arguments)) => images::run(global, arguments),
        Some(Command::Listen(arguments)) => listen::run(global, arguments),
        Some(Command::Prune(arguments)) => prune::run(global, arguments),
        Some(Command::Gc(arguments)) => gc::run(global, arguments),
    }
}

/// How images are taken away.
fn clean_options(publisher: &Publisher, dry_run: bool, now: UnixSeconds) -> Result<clean::Options> {
    let Options { source, publication } = Options::new(&publisher.config, RepoPath::root(), now)?;
    Ok(clean::Options { publication, owner: source.ownership.implied, now, dry_run })
}

/// The revision before the one that taking away may make.
fn revision_to_follow(publisher: &Publisher, options: &clean::Options) -> Result<Option<u64>> {
    let revision = || Ok(publisher.head(options.now)?.manifest().revision);
    (!options.dry_run).then(revision).transpose()
}

/// What an image is called in the repository.
fn repository_name(image: &Reference) -> Result<String> {
    Ok(display(NamePlace::of(image)?.link().as_bytes()))
}
