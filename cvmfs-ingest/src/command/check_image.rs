use cvmfs_core::cli::GlobalArgs;
use cvmfs_core::error::{Error, Result};
use cvmfs_ingest::image::reference::Transport;
use serde::Serialize;

/// Take the name of an image apart
#[derive(Debug, clap::Args)]
#[command(
    alias = "check-image-syntax",
    alias = "image-check",
    after_help = "Examples:
  cvmfs-ingest check-image https://registry.example.org/team/app:1.0
  cvmfs-ingest check-image --machine-friendly 'registry.example.org/team/app:1.*'"
)]
pub(super) struct Arguments {
    /// The image: `[SCHEME://]REGISTRY[:PORT]/REPOSITORY[:TAG][@DIGEST]`, or `docker://NAME`
    image: Transport,
    /// Print comma-separated values
    #[arg(short = 'z', long, conflicts_with = "json")]
    machine_friendly: bool,
}

/// What a name says.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    scheme: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
    is_pattern: bool,
    simple_name: String,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let Transport::Registry(image) = &arguments.image else {
        return Err(Error::invalid("image", "it is in a file, and has no name of a registry to take apart"));
    };
    let report = Report {
        name: image.whole_name(),
        scheme: image.scheme.to_string(),
        registry: image.registry.clone(),
        repository: image.repository.clone(),
        tag: image.tag.clone(),
        digest: image.digest.map(|digest| digest.to_string()),
        is_pattern: image.is_pattern(),
        simple_name: image.simple_name(),
    };
    global.print(&report, &if arguments.machine_friendly { csv(&report) } else { table(&report) })
}

/// The columns of the reference; the user and whether this is a thin image are no part of a name.
fn csv(report: &Report) -> String {
    let Report { name, scheme, registry, repository, .. } = report;
    let (tag, digest) = (report.tag.as_deref().unwrap_or_default(), report.digest.as_deref().unwrap_or_default());
    format!(
        "name,user,scheme,registry,repository,tag,digest,is_thin\n\
         {name},,{scheme},{registry},{repository},{tag},{digest},false\n"
    )
}

fn table(report: &Report) -> String {
    let none = "-";
    let rows = [
        ("name", &report.name[..]),
        ("scheme", &report.scheme),
        ("registry", &report.registry),
        ("repository", &report.repository),
        ("tag", report.tag.as_deref().unwrap_or(none)),
        ("digest", report.digest.as_deref().unwrap_or(none)),
        ("pattern", if report.is_pattern { "yes" } else { "no" }),
        ("simple name", &report.simple_name),
    ];
    rows.iter().map(|(key, value)| format!("{key:12} {value}\n")).collect()
}
