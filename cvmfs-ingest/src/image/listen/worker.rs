//! What is done about a hint: it says where to look, and the registry says what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::hooks::{Hooks, Operation};
use cvmfs_core::path::display;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::repository::Selector;

use super::feed::Feed;
use super::payload::{Action, Hint};
use super::queue::{Durability, Fate, Job};
use super::{Allowed, Registry, Shared};
use crate::image::convert::{self, Converter, Request};
use crate::image::inventory::{Inventory, Named};
use crate::image::layout::NamePlace;
use crate::image::notify::{Event, Listener};
use crate::image::reference::Reference;
use crate::image::thin::Outputs;
use crate::image::{clean, source};

/// How often somebody looks whether everything is to end.
pub(super) const CANCEL_CHECK: Duration = Duration::from_millis(100);
/// How long to wait when the queue cannot be written.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// Choices for one piece of work.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How images are converted, with the time of now.
    pub convert: convert::Options,
    /// How they are taken away.
    pub clean: clean::Options,
}

/// What the work is done with.
pub struct Service<'a> {
    /// The repository.
    pub publisher: &'a Publisher,
    /// Where images come from.
    pub registry: &'a dyn Registry,
    /// Where the thin images of wish lists go, if some are wanted.
    pub outputs: Option<Outputs>,
    /// What is run before and after publishing.
    pub hooks: &'a Hooks,
    /// Whoever wants to know what happens.
    pub listener: &'a dyn Listener,
    /// Makes the choices, anew for each piece of work.
    pub plan: &'a (dyn Fn() -> Result<Plan> + Sync),
    /// What is allowed now, and which images are wanted without notifications.
    pub allowed: &'a (dyn Fn() -> Result<Allowed> + Sync),
    /// Tells the time.
    pub clock: fn() -> Result<UnixSeconds>,
    /// Called once, when notifications are taken, with the address.
    pub ready: &'a (dyn Fn(SocketAddr) + Sync),
}

/// What came of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Done {
    /// A revision with the image.
    Published { revision: u64, layers: usize, bytes: u64 },
    /// Nothing: the repository was as the registry is.
    Unchanged,
    /// Names were removed.
    Removed(Vec<String>),
    /// So many images of a repository of the registry were queued.
    Queued(usize),
    /// Nothing: it is not allowed any more.
    NotAllowed,
}

impl Done {
    fn name(&self) -> &'static str {
        match self {
            Self::Published { .. } => "published",
            Self::Unchanged => "unchanged",
            Self::Removed(_) => "removed",
            Self::Queued(_) => "queued",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// Tells both.
#[derive(Debug)]
struct Both<'a>(&'a dyn Listener, &'a Feed);

impl Listener for Both<'_> {
    fn hear(&self, event: &Event) {
        self.0.hear(event);
        self.1.hear(event);
    }
}

/// Does what is due until it is cancelled.
pub(super) fn work(service: &Service<'_>, shared: &Shared, cancel: &Cancel) {
    while cancel.check().is_ok() {
        match shared.queue.take(CANCEL_CHECK) {
            Ok(Some(job)) => finish(service, shared, &job, cancel),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the queue cannot be written");
                std::thread::sleep(QUEUE_PAUSE);
            }
        }
    }
}

/// Does one thing, and tells what came of it.
fn finish(service: &Service<'_>, shared: &Shared, job: &Job, cancel: &Cancel) {
    let start = Instant::now();
    // A fault of ours with one image is not the end of all others.
    let result = catch_unwind(AssertUnwindSafe(|| run(service, shared, job, cancel)));
    let result = result
        .unwrap_or_else(|_panic| Err(Error::invalid(job.hint.image.to_string(), "working on it failed unexpectedly")));
    // Whatever breaks when everything is to end, broke because of that.
    let result = result.or_else(|error| cancel.check().and(Err(error)));
    let ignored = shared.allowed().ignores(&job.hint.image);
    let fate = shared.queue.finish(job, &result, ignored).unwrap_or_else(|error| {
        tracing::error!(%error, "the queue cannot be written");
        Fate::Done
    });
    let (image, took) = (&job.hint.image, start.elapsed());
    let name = match (&result, fate) {
        (Ok(done), _) => {
            tracing::info!(%image, seconds = took.as_secs_f64(), ?done, "done");
            done.name()
        }
        (Err(Error::Cancelled), _) => return,
        (Err(error), Fate::Failed) if ignored => {
            tracing::info!(%image, attempts = job.attempt, %error, "given up, as expected");
            "ignored"
        }
        (Err(error), Fate::Failed) => {
            tracing::error!(%image, attempts = job.attempt, %error, "given up");
            "given_up"
        }
        (Err(error), Fate::Again(wait)) => {
            tracing::warn!(%image, attempt = job.attempt, %error, again_in = wait.as_secs_f64(), "failed");
            "failed"
        }
        (Err(_), Fate::Done) => "failed",
    };
    let now = (service.clock)().unwrap_or(UnixSeconds(0));
    shared.metrics.attempt(name, took, result.as_ref().ok(), now);
}

fn run(service: &Service<'_>, shared: &Shared, job: &Job, cancel: &Cancel) -> Result<Done> {
    // What is allowed may be something else than when the hint came.
    let Some(image) = shared.allowed().admit(&job.hint) else { return Ok(Done::NotAllowed) };
    match job.hint.action {
        Action::Push if image.tag.is_none() && image.digest.is_none() => {
            queue_all(service, shared, &image, job.durability)
        }
        Action::Push => convert(service, shared, image, cancel),
        Action::Delete => remove_missing(service, shared, &image, cancel),
    }
}

/// Queues all images of a repository of a registry that are allowed.
fn queue_all(service: &Service<'_>, shared: &Shared, image: &Reference, durability: Durability) -> Result<Done> {
    let allowed = shared.allowed();
    let tags = service.registry.tags(image)?;
    // What a registry calls a tag and is none, could be no path.
    let images = tags.iter().filter_map(|tag| image.with_tag(tag).ok());
    let hints = images.map(|image| Hint { action: Action::Push, image });
    let hints: Vec<Hint> =
        hints.filter_map(|hint| Some(Hint { image: allowed.admit(&hint)?, action: hint.action })).collect();
    shared.queue.add(&hints, durability, (service.clock)()?)?;
    Ok(Done::Queued(hints.len()))
}

fn convert(service: &Service<'_>, shared: &Shared, image: Reference, cancel: &Cancel) -> Result<Done> {
    let Plan { convert, .. } = (service.plan)()?;
    let before = service.publisher.head(convert.contents.owned.now)?.manifest().revision;
    service.hooks.before(Operation::Publish, before)?;
    let store = service.registry.open(&image)?;
    // Whether it has a thin image, and what that is called, is said by wish lists only.
    let allowed = shared.allowed();
    let recipe = allowed.recipe_of(&image);
    let thin = service.outputs.as_ref().zip(recipe).map(|(outputs, recipe)| outputs.target(recipe, &image));
    let thin = thin.transpose()?;
    let request = Request { reference: image.fetch_reference()?, name: image, store, thin };
    let listener = Both(service.listener, &shared.feed);
    let outcome = Converter::new(service.publisher, convert, &listener)?.convert(&request, &Silent, cancel)?;
    for warning in &outcome.warnings {
        tracing::warn!(image = %request.name, "{warning}");
    }
    let Some(revision) = outcome.revision else { return Ok(Done::Unchanged) };
    for warning in service.hooks.after(Operation::Publish, revision) {
        tracing::warn!(image = %request.name, "{warning}");
    }
    Ok(Done::Published { revision, layers: outcome.layers_fetched, bytes: outcome.bytes_fetched })
}

/// Removes the names of images whose tags a repository of a registry does not have any more.
fn remove_missing(service: &Service<'_>, shared: &Shared, repository: &Reference, cancel: &Cancel) -> Result<Done> {
    let Plan { clean, .. } = (service.plan)()?;
    let head = service.publisher.head(clean.now)?;
    let before = head.manifest().revision;
    let inventory = Inventory::read(&mut head.tree(&Selector::Head)?, &service.publisher.config.name)?;
    // 1. What is here of it, by tag; what has only a digest is wanted whatever the registry calls it.
    let allowed = shared.allowed();
    let here: BTreeSet<Reference> = inventory
        .images
        .iter()
        .filter_map(|named| named.plain_name().parse::<Reference>().ok())
        .filter(|image| image.registry == repository.registry && image.repository == repository.repository)
        .filter(|image| image.tag.is_some())
        .filter(|image| allowed.admit(&Hint { action: Action::Push, image: image.clone() }).is_some())
        .collect();
    // 2. What of it is not there.
    let store = service.registry.open(repository)?;
    let mut gone = BTreeMap::new();
    for tag in here.iter().filter_map(|image| image.tag.as_deref()) {
        cancel.check()?;
        if is_missing(&*store, tag)? {
            let image = Reference { tag: Some(tag.to_owned()), ..repository.clone() };
            gone.insert(display(NamePlace::of(&image)?.link().as_bytes()), tag);
        }
    }
    if gone.is_empty() {
        return Ok(Done::Unchanged);
    }
    // 3. That goes here as well, unless it was pushed and converted meanwhile.
    service.hooks.before(Operation::Publish, before)?;
    let is_gone = |named: &Named| gone.get(named.plain_name()).map_or(Ok(false), |tag| is_missing(&*store, tag));
    let pruned = clean::prune(service.publisher, &is_gone, &clean, cancel)?;
    let Some(revision) = pruned.revision else { return Ok(Done::Unchanged) };
    for warning in service.hooks.after(Operation::Publish, revision) {
        tracing::warn!(%repository, "{warning}");
    }
    Ok(Done::Removed(pruned.names))
}

/// Whether a registry says that it has no such tag.
fn is_missing(store: &dyn source::ImageStore, tag: &str) -> Result<bool> {
    let found = match store.digest(tag) {
        Ok(None) => store.manifest(tag).map(drop),
        found => found.map(drop),
    };
    match found {
        Ok(()) => Ok(false),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) => Err(error),
    }
}

/// Queues what is wanted without notifications, now and then: one may have been lost.
pub(super) fn watch(service: &Service<'_>, shared: &Arc<Shared>, every: Duration, cancel: &Cancel) {
    while cancel.check().is_ok() {
        if let Err(error) = queue_wanted(service, shared) {
            tracing::error!(%error, "what is wanted cannot be queued");
        }
        let next = Instant::now() + every;
        while Instant::now() < next && cancel.check().is_ok() {
            std::thread::sleep(CANCEL_CHECK);
        }
    }
}

fn queue_wanted(service: &Service<'_>, shared: &Shared) -> Result<()> {
    let allowed = Arc::new((service.allowed)()?);
    shared.allow(Arc::clone(&allowed));
    let hint = |image: &Reference| {
        let image = if image.is_pattern() { Reference { tag: None, ..image.clone() } } else { image.clone() };
        Hint { action: Action::Push, image }
    };
    let hints: BTreeSet<Hint> = allowed.images().map(hint).collect();
    let hints: Vec<Hint> = hints.into_iter().collect();
    shared.queue.add(&hints, Durability::Volatile, (service.clock)()?).map(drop)
}

impl fmt::Debug for Service<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("registry", &self.registry).finish_non_exhaustive()
    }
}
