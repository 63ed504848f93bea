use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hooks::Hooks;
use cvmfs_ingest::image::listen::auth::Secret;
use cvmfs_ingest::image::listen::{Allowed, Options, Place, Plan, Service, listen, queue};

use super::conversion::ConversionArgs;
use super::registry::RegistryArgs;
use super::wishes::WishListArgs;

/// The variable with the secret, if there is no file.
const SECRET_VARIABLE: &str = "CVMFS_INGEST_SECRET";

/// Keep container images as their registries have them, told by notifications, until interrupted
///
/// Takes what Harbor, Docker distribution, GitLab and Quay send, and {"image": "REGISTRY/REPOSITORY:TAG", "action": "push"}
/// or "delete". A notification says where to look; what is done depends on what is found there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-ingest listen --listen 0.0.0.0:8080 --secret-file /etc/cvmfs/images.secret --recipe recipe.yaml
  cvmfs-ingest listen --allow registry.example.org/team --webhook https://chat.example.org/hooks/images
  curl -H \"Authorization: $SECRET\" -d '{\"image\": \"registry.example.org/team/app:1.0\"}' http://localhost:8080/
  curl -H \"Authorization: $SECRET\" http://localhost:8080/queue

POST / takes notifications; GET /queue, /events, /metrics and /healthz show how it goes. The secret is the value of the header
Authorization, or signs the body (X-Hub-Signature-256: sha256=...). What is interrupted stays in the queue for the next time.")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: String,
    /// File with the secret that whoever notifies knows [default: the variable CVMFS_INGEST_SECRET; without it, only this
    /// machine can be listened to]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Take notifications for all images of a registry, or of a part of it: `[SCHEME://]HOST[:PORT][/PATH]`; may be repeated
    #[arg(long, value_name = "PLACE", required_unless_present = "recipe")]
    allow: Vec<Place>,
    /// Wish list: take notifications for its images, and look for them without; may be repeated
    #[arg(long, value_name = "FILE")]
    recipe: Vec<PathBuf>,
    /// Look for the images of the wish lists every so many seconds; the lists are read again each time
    #[arg(long, value_name = "SECONDS", default_value_t = Options::default().every.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
    /// Images that are worked on at once
    #[arg(long, value_name = "NUMBER", default_value_t = Options::default().jobs)]
    images: usize,
    /// How often an image is tried before it is given up
    #[arg(long, value_name = "NUMBER", default_value_t = queue::Options::default().attempts_max, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// Seconds to wait after the first failure, at most; twice as long after each further one, up to half an hour
    #[arg(long, value_name = "SECONDS", default_value_t = queue::Options::default().backoff_initial.as_secs())]
    retry_after: u64,
    /// Images that may be queued
    #[arg(long, value_name = "NUMBER", default_value_t = queue::Options::default().length_max)]
    queue_length: usize,
    #[command(flatten)]
    wishes: WishListArgs,
    #[command(flatten)]
    conversion: ConversionArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let options = Options {
        secret: secret(arguments)?,
        queue: queue::Options {
            length_max: arguments.queue_length,
            attempts_max: arguments.attempts,
            backoff_initial: Duration::from_secs(arguments.retry_after),
            ..queue::Options::default()
        },
        jobs: arguments.images,
        every: Duration::from_secs(arguments.interval),
        ..Options::default()
    };
    let listener = arguments.conversion.listener()?;
    let cancel = cancel_on_signals()?;
    let registries = arguments.registry.registries(&cancel)?;
    let plan = || {
        let now = now()?;
        Ok(Plan {
            convert: arguments.conversion.options(&publisher, now)?,
            clean: super::clean_options(&publisher, false, now)?,
        })
    };
    let service = Service {
        publisher: &publisher,
        registry: &registries,
        outputs: arguments.wishes.outputs(&registries),
        hooks: &Hooks::new(&root, &publisher.config.name),
        listener: &*listener,
        plan: &plan,
        allowed: &|| allowed(arguments, &publisher),
        clock: now,
        ready: &|address| {
            if !global.quiet {
                // Whoever started us waits for this line.
                let _ = writeln!(std::io::stderr(), "listening on http://{address}/ for {}", publisher.config.name);
            }
        },
    };
    listen(bind(&arguments.listen)?, &service, options, &cancel)
}

/// The secret of the file, or else of the environment.
fn secret(arguments: &Arguments) -> Result<Option<Secret>> {
    match &arguments.secret_file {
        Some(file) => Secret::new(&fs::read_to_string(file).at(file)?).map(Some),
        None => std::env::var(SECRET_VARIABLE).ok().map(|text| Secret::new(&text)).transpose(),
    }
}

/// What notifications may be about now.
fn allowed(arguments: &Arguments, publisher: &Publisher) -> Result<Allowed> {
    let read = |path: &PathBuf| {
        let recipe = arguments.wishes.read(path)?;
        let file = path.display();
        let name = &publisher.config.name;
        if let Some(other) = recipe.repository.as_ref().filter(|other| *other != name) {
            return Err(Error::invalid(file.to_string(), format!("it is for {other}, not for {name}")));
        }
        for fault in &recipe.faults {
            tracing::warn!("{file}:{}: {}", fault.line, fault.reason);
        }
        Ok(recipe)
    };
    let recipes = arguments.recipe.iter().map(read).collect::<Result<_>>()?;
    Ok(Allowed { places: arguments.allow.clone(), recipes })
}

fn bind(address: &str) -> Result<TcpListener> {
    let invalid = |error: std::io::Error| Error::invalid(format!("--listen {address}"), error.to_string());
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(invalid)?.collect();
    TcpListener::bind(&addresses[..]).map_err(invalid)
}
