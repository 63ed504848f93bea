use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, human_bytes, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Unit};
use cvmfs_core::repository::Selector;
use cvmfs_ingest::image::batch::{self, Report};
use cvmfs_ingest::image::convert::{Converter, Outcome, Planned, Request};
use cvmfs_ingest::image::inventory::Inventory;
use cvmfs_ingest::image::recipe::{Fault, IgnoreList, Wish};
use cvmfs_ingest::image::registry::Registries;
use cvmfs_ingest::image::thin::Outputs;
use serde::Serialize;

use super::conversion::ConversionArgs;
use super::registry::RegistryArgs;
use super::wishes::WishListArgs;

/// How often a loop that waits looks whether it is to stop.
const POLL: Duration = Duration::from_millis(200);

/// Convert all container images of a wish list
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-ingest convert recipe.yaml
  cvmfs-ingest convert --dry-run recipe.yaml
  cvmfs-ingest convert --loop --interval 600 --notification-file /var/log/images recipe.yaml

The exit code is 0 only if every image of the list is in the repository.")]
pub(super) struct Arguments {
    /// The wish list
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// The repository [default: the one that the wish list names]
    #[arg(long, value_name = "FQRN", env = "CVMFS_REPO")]
    repo: Option<RepositoryName>,
    /// Show what would be fetched, added and moved, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Begin anew when all is done, until interrupted; the wish list is read again each time
    #[arg(long = "loop", conflicts_with = "dry_run")]
    repeat: bool,
    /// Seconds between the beginnings of two rounds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "repeat")]
    interval: u64,
    /// Images that are worked on at once
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    images: usize,
    /// Make one revision of all images, not one each
    #[arg(long)]
    one_revision: bool,
    #[command(flatten)]
    wishes: WishListArgs,
    #[command(flatten)]
    conversion: ConversionArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let cancel = cancel_on_signals()?;
    // Tokens and connections live as long as the loop.
    let registries = arguments.registry.registries(&cancel)?;
    let outputs = arguments.wishes.outputs(&registries);
    let round = || round(global, arguments, &registries, outputs.as_ref(), &cancel);
    if !arguments.repeat {
        return round();
    }
    loop {
        let begin = Instant::now();
        match round() {
            // Being interrupted is how a loop ends.
            Err(Error::Cancelled) => return Ok(()),
            Err(error) => global.warn(&[error.to_string()]),
            Ok(()) => {}
        }
        while begin.elapsed() < Duration::from_secs(arguments.interval) {
            if cancel.check().is_err() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
    }
}

/// What became of a wish list.
#[derive(Debug, Serialize)]
struct Summary {
    images: Vec<Report>,
    faults: Vec<Fault>,
    /// Images of the repository that the list does not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unlisted: Vec<String>,
}

/// Converts what the wish list stands for now, or says what that would do.
fn round(
    global: &GlobalArgs,
    arguments: &Arguments,
    registries: &Registries,
    outputs: Option<&Outputs>,
    cancel: &Cancel,
) -> Result<()> {
    let wanted = Wanted::read(global, arguments, registries, outputs)?;
    let options = arguments.conversion.options(&wanted.publisher, now()?)?;
    let listener = arguments.conversion.listener()?;
    if arguments.dry_run {
        return rehearse(global, &wanted, &Converter::new(&wanted.publisher, options, &*listener)?);
    }

    // 1. Convert.
    let Wanted { publisher, wishes, requests, faults, ignored, .. } = &wanted;
    let batch = batch::Options { parallel: arguments.images, one_revision: arguments.one_revision };
    let before = publisher.head(options.contents.owned.now)?.manifest().revision;
    let mut reports = global.publish(publisher, Some(before), |progress| {
        progress.phase("layers", Unit::Bytes, None);
        let converter = Converter::new(publisher, options, &*listener)?;
        let reports = batch::convert(&converter, requests, batch, progress, cancel)?;
        let revision = reports.iter().filter_map(Report::revision).max();
        Ok((reports, revision))
    })?;

    // 2. What the operator should know, and the failures that count.
    for (report, wish) in reports.iter_mut().zip(wishes) {
        if let Report::Done(Outcome { name, warnings, .. }) = report {
            global.warn(&warnings.iter().map(|warning| format!("{name}: {warning}")).collect::<Vec<_>>());
        }
        report.ignore_if(ignored.has(&wish.image));
    }
    let (failed, text) = (failures(&reports, faults), summary(&reports));
    global.print(&Summary { images: reports, faults: faults.clone(), unlisted: Vec::new() }, &text)?;
    fail_if(failed, &arguments.recipe)
}

/// How much of a list failed that should not have.
fn failures(reports: &[Report], faults: &[Fault]) -> usize {
    let images = reports.iter().filter(|report| report.is_failure());
    images.count() + faults.iter().filter(|fault| !fault.ignored).count()
}

/// Says what a round would do.
fn rehearse(global: &GlobalArgs, wanted: &Wanted<'_>, converter: &Converter<'_>) -> Result<()> {
    let mut reports = batch::plan(converter, &wanted.requests);
    for (report, wish) in reports.iter_mut().zip(&wanted.wishes) {
        report.ignore_if(wanted.ignored.has(&wish.image));
    }
    let unlisted = unlisted(&wanted.publisher, &wanted.wishes)?;
    let mut text: String = reports.iter().map(planned_text).collect();
    text.extend(unlisted.iter().map(|name| format!("{name}: not in the list; `prune` would take it away\n")));
    text += &planned_total(&reports);
    let failed = failures(&reports, &wanted.faults);
    global.print(&Summary { images: reports, faults: wanted.faults.clone(), unlisted }, &text)?;
    fail_if(failed, wanted.file)
}

/// What a wish list asks for now, and where it is to be.
struct Wanted<'a> {
    file: &'a Path,
    publisher: Publisher,
    wishes: Vec<Wish>,
    /// One a wish.
    requests: Vec<Result<Request, (String, Error)>>,
    /// Lines that ask for nothing that can be had; they have been told.
    faults: Vec<Fault>,
    /// Images whose failure is none.
    ignored: IgnoreList,
}

impl<'a> Wanted<'a> {
    fn read(
        global: &GlobalArgs,
        arguments: &'a Arguments,
        registries: &Registries,
        outputs: Option<&Outputs>,
    ) -> Result<Self> {
        // 1. The list.
        let recipe = arguments.wishes.read(&arguments.recipe)?;

        // 2. The repository.
        let named = arguments.repo.as_ref().or(recipe.repository.as_ref());
        let name =
            named.ok_or_else(|| Error::invalid(arguments.recipe.display().to_string(), "it names no repository"))?;
        if let Some(other) = recipe.repository.as_ref().filter(|other| *other != name) {
            global.warn(&[format!(
                "the wish list is for {other}; its images go to {name}, as --repo or CVMFS_REPO says"
            )]);
        }
        let publisher = Publisher::open(&global.server_root()?, name)?;

        // 3. The images that patterns stand for now.
        let expansion = recipe.expand(&|image| registries.repository(image)?.tags());
        let requests = expansion.images.iter().map(|wish| {
            let request = |image| {
                let thin = outputs.map(|outputs| outputs.target(&recipe, image)).transpose()?;
                Ok(Request { thin, ..Request::new(image, registries)? })
            };
            request(&wish.image).map_err(|error| (wish.image.whole_name(), error))
        });
        let requests = requests.collect();
        let mut faults = [recipe.faults.clone(), expansion.faults].concat();
        faults.sort_by_key(|fault| fault.line);
        let file = &arguments.recipe;
        super::wishes::tell(global, file, &recipe, &faults);
        let ignored = recipe.ignore_errors;
        Ok(Self { file, publisher, wishes: expansion.images, requests, faults, ignored })
    }
}

fn fail_if(failed: usize, recipe: &Path) -> Result<()> {
    if failed == 0 {
        return Ok(());
    }
    let reason = format!("{failed} of its lines and images failed");
    Err(Error::Unavailable { what: recipe.display().to_string(), reason })
}

/// The images of the repository that a list does not have.
fn unlisted(publisher: &Publisher, listed: &[Wish]) -> Result<Vec<String>> {
    let listed: BTreeSet<_> = listed.iter().map(|wish| super::repository_name(&wish.image)).collect::<Result<_>>()?;
    let mut tree = publisher.head(now()?)?.tree(&Selector::Head)?;
    let images = Inventory::read(&mut tree, &publisher.config.name)?.images;
    Ok(images.into_iter().filter(|image| !listed.contains(image.plain_name())).map(|image| image.name).collect())
}

/// One line an image, and one for all.
fn summary(reports: &[Report]) -> String {
    let mut text = String::new();
    let (mut new, mut unchanged, mut bytes) = (0, 0, 0);
    for report in reports {
        match report {
            Report::Done(Outcome {
                name,
                revision: Some(revision),
                layers,
                layers_fetched,
                bytes_fetched,
                seconds,
                ..
            }) => {
                new += 1;
                bytes += bytes_fetched;
                let size = human_bytes(*bytes_fetched);
                text += &format!(
                    "{name}: revision {revision}; {layers_fetched} of {layers} layers fetched, {size}, {seconds:.1} s\n"
                );
            }
            Report::Done(_) | Report::Planned(_) => unchanged += 1,
            Report::Failed { name, error, ignored } => text += &failed_text(name, error, *ignored),
        }
    }
    let failed = failed_count(reports);
    text + &format!("{new} converted, {unchanged} unchanged, {failed}; {} fetched\n", human_bytes(bytes))
}

fn planned_text(report: &Report) -> String {
    match report {
        Report::Failed { name, error, ignored } => failed_text(name, error, *ignored),
        Report::Planned(Planned { name, current: false, layers, bytes, moves, .. }) => {
            let verb = if *moves { "move" } else { "add" };
            match layers {
                0 => format!("{name}: {verb}; nothing to fetch\n"),
                1 => format!("{name}: {verb}; fetch 1 layer, {}\n", human_bytes(*bytes)),
                _ => format!("{name}: {verb}; fetch {layers} layers, {}\n", human_bytes(*bytes)),
            }
        }
        Report::Planned(Planned { name, .. }) | Report::Done(Outcome { name, .. }) => format!("{name}: unchanged\n"),
    }
}

/// What would be done in all. Layers that several images share are fetched once.
fn planned_total(reports: &[Report]) -> String {
    let (mut new, mut unchanged, mut blobs) = (0, 0, BTreeMap::new());
    for report in reports {
        match report {
            Report::Planned(Planned { current: false, missing, .. }) => {
                new += 1;
                blobs.extend(missing.iter().map(|blob| (blob.digest, blob.size)));
            }
            Report::Planned(_) | Report::Done(_) => unchanged += 1,
            Report::Failed { .. } => {}
        }
    }
    let (failed, bytes) = (failed_count(reports), human_bytes(blobs.values().sum()));
    format!("{new} to convert, {unchanged} unchanged, {failed}; {bytes} to fetch\n")
}

fn failed_text(name: &str, error: &str, ignored: bool) -> String {
    format!("{name}: failed{}: {error}\n", if ignored { " (ignored)" } else { "" })
}

fn failed_count(reports: &[Report]) -> String {
    let failed = reports.iter().filter(|report| matches!(report, Report::Failed { .. })).count();
    match failed - reports.iter().filter(|report| report.is_failure()).count() {
        0 => format!("{failed} failed"),
        ignored => format!("{failed} failed ({ignored} ignored)"),
    }
}
