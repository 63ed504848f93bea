//! Converting images: a name becomes layers, trees, links and records in the repository, in one revision.
//!
//! ```text
//! ask what the name stands for ─► (as recorded: done) ─► manifest, configuration ─► fetch layers ─► publish
//!        one request                                        verified              side by side   one at a time
//! ```

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::entry::EntryKind;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::display;
use cvmfs_core::progress::{Cancel, Progress, Silent};
use cvmfs_core::publication;
use cvmfs_core::repository::Selector;
use cvmfs_core::tree::Tree;
use serde::Serialize;

use super::contents::{ImageSource, Owned, Wanted};
use super::digest::Digest;
use super::layer::Layers;
use super::layout::bookkeeping::Policy;
use super::layout::podman::Links;
use super::layout::{FlatPlace, Generated, NamePlace};
use super::library::{Library, flat_permissions, platforms, read_record};
use super::manifest::{self, Platforms};
use super::notify::{Event, Listener, action, new_id};
use super::reference::Reference;
use super::registry::Registries;
use super::source::ImageStore;
use super::{Descriptor, Image, Layer, clean, contents, thin};

/// An image that a repository is to have.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it is called in the repository.
    pub name: Reference,
    /// Where it is.
    pub store: Arc<dyn ImageStore>,
    /// What it is called there: a tag or a digest.
    pub reference: String,
    /// Where its thin image goes, if one is wanted.
    pub thin: Option<thin::Target>,
}

impl Request {
    /// An image that is called in the repository as in its registry.
    ///
    /// # Errors
    /// `InvalidInput` if it has neither a tag nor a digest.
    pub fn new(image: &Reference, registries: &Registries) -> Result<Self> {
        let store = Arc::new(registries.repository(image)?);
        Ok(Self { name: image.clone(), store, reference: image.fetch_reference()?, thin: None })
    }
}

/// Choices for converting.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is made of images.
    pub contents: contents::Options,
    /// Whether images are converted again that did not change.
    pub again: bool,
    /// Layers that are fetched at once.
    pub parallel: usize,
    /// How content is stored and revisions are made.
    pub publication: publication::Options,
}

impl Options {
    /// What the repository's configuration asks for.
    pub fn new(publisher: &Publisher, policy: Policy, now: UnixSeconds) -> Result<Self> {
        let defaults = crate::Options::new(&publisher.config, cvmfs_core::path::RepoPath::root(), now)?;
        Ok(Self {
            contents: contents::Options {
                policy,
                links: Links::absolute(&publisher.config.name),
                owned: Owned { owner: defaults.source.ownership.implied, now },
            },
            again: false,
            parallel: 4,
            publication: defaults.publication,
        })
    }
}

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Outcome {
    /// What it was asked for as.
    pub name: String,
    /// What the name stands for: the digest of a manifest or index.
    pub digest: String,
    /// The revision that it came with; `None` if everything was there.
    pub revision: Option<u64>,
    /// Layers of all its platforms, each once.
    pub layers: usize,
    /// Those that were fetched for it.
    pub layers_fetched: usize,
    /// Bytes of these, compressed.
    pub bytes_fetched: u64,
    /// Wall time.
    pub seconds: f64,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What converting an image would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// What it is asked for as.
    pub name: String,
    /// What the name stands for: the digest of a manifest or index.
    pub digest: String,
    /// Whether there is nothing to do.
    pub current: bool,
    /// Whether the name leads to another image now.
    pub moves: bool,
    /// Layers that would be fetched.
    pub layers: usize,
    /// Bytes of these, compressed.
    pub bytes: u64,
    /// These. Other images may want the same ones.
    #[serde(skip)]
    pub missing: Vec<Descriptor>,
}

/// Converts images for one repository, several at once.
#[derive(Debug)]
pub struct Converter<'a> {
    publisher: &'a Publisher,
    layers: Layers<'a>,
    options: Options,
    slots: Slots,
    listener: &'a dyn Listener,
    /// Held while an image is published. Layers that the repository has now, and that others may still look for.
    published: Mutex<Vec<Layer>>,
}

impl<'a> Converter<'a> {
    /// A converter that publishes with `publisher`, and tells `listener` what happens.
    pub fn new(publisher: &'a Publisher, options: Options, listener: &'a dyn Listener) -> Result<Self> {
        let layers = Layers::new(publisher, options.publication.pipeline.clone())?;
        let slots = Slots { free: Mutex::new(options.parallel.max(1)), freed: Condvar::new() };
        Ok(Self { publisher, layers, options, slots, listener, published: Mutex::new(Vec::new()) })
    }

    /// Converts an image, unless the repository has it as it is now.
    ///
    /// # Errors
    /// Nothing of the image is visible after an error. Layers that were fetched are not fetched again the next time.
    pub fn convert(&self, request: &Request, progress: &dyn Progress, cancel: &Cancel) -> Result<Outcome> {
        let start = Instant::now();
        let id = new_id();
        let begins = Event { image: request.name.simple_name(), ..Event::now(action::IMAGE_BEGINS) }.with_id(&id);
        self.listener.hear(&begins);
        let result = self.prepare(request, progress, cancel).and_then(|mut prepared| {
            self.publish(&mut [&mut prepared], cancel)?;
            self.push_thin(&prepared)?;
            Ok(Outcome { seconds: start.elapsed().as_secs_f64(), ..prepared.outcome })
        });
        let ends = Event { action: action::IMAGE_ENDS, time: Event::now(action::IMAGE_ENDS).time, ..begins };
        self.listener.hear(&ends.with_result(start.elapsed().as_secs_f64(), &result));
        result
    }

    /// Says what converting an image would do.
    pub fn plan(&self, request: &Request) -> Result<Planned> {
        let resolved = resolved(request)?;
        let mut tree = self.head()?;
        let mut planned = Planned {
            name: request.name.whole_name(),
            digest: resolved.to_string(),
            current: self.is_current(&mut tree, &request.name, request.thin.as_ref(), &resolved)?,
            moves: tree.find(NamePlace::of(&request.name)?.link())?.is_some(),
            layers: 0,
            bytes: 0,
            missing: Vec::new(),
        };
        if !planned.current {
            let images =
                manifest::resolve(&*request.store, &resolved.to_string(), &self.options.contents.policy.platforms)?;
            let missing = self.missing(tree, &images)?;
            planned.layers = missing.len();
            planned.bytes = missing.iter().map(|layer| layer.blob.size).sum();
            planned.missing = missing.into_iter().map(|layer| layer.blob.clone()).collect();
        }
        Ok(planned)
    }

    /// Whether there is nothing to do for an image.
    fn is_current(
        &self,
        tree: &mut Tree,
        name: &Reference,
        thin: Option<&thin::Target>,
        resolved: &Digest,
    ) -> Result<bool> {
        if self.options.again || thin.map_or(Ok(false), |thin| thin.is_pending(self.publisher))? {
            return Ok(false);
        }
        let policy = Policy { thin: thin.map(thin::Target::name), ..self.options.contents.policy.clone() };
        has_as_wanted(tree, name, resolved, &policy)
    }

    /// The layers of images that are neither in the repository nor fetched.
    fn missing<'i>(&self, tree: Tree, images: &'i [Image]) -> Result<Vec<&'i Layer>> {
        let mut library = Library::new(tree, &self.layers);
        let mut missing = Vec::new();
        for layer in distinct_layers(images) {
            if library.unpacked(layer)?.is_none() && self.layers.open(layer)?.is_none() {
                missing.push(layer);
            }
        }
        Ok(missing)
    }

    /// Does all for an image but publish it: fetches what is missing.
    pub fn prepare(&self, request: &Request, progress: &dyn Progress, cancel: &Cancel) -> Result<Prepared> {
        let start = Instant::now();

        // 1. What does the name stand for, and is that what the repository has?
        let resolved = resolved(request)?;
        let replaces = |thin: &thin::Target| thin.replaces(&*request.store, &request.reference, &resolved);
        if request.thin.as_ref().map_or(Ok(false), replaces)? {
            let reason = "the thin image would take the place of the image that it stands for";
            return Err(Error::invalid(request.name.whole_name(), reason));
        }
        let mut tree = self.head()?;
        let mut outcome =
            Outcome { name: request.name.whole_name(), digest: resolved.to_string(), ..Outcome::default() };
        if self.is_current(&mut tree, &request.name, request.thin.as_ref(), &resolved)? {
            outcome.seconds = start.elapsed().as_secs_f64();
            return Ok(Prepared { outcome, wanted: None, fetched: Vec::new(), thin: None });
        }

        // 2. Its documents. The digest is asked for, so that a name that moves meanwhile moves for the next run only.
        let images =
            manifest::resolve(&*request.store, &resolved.to_string(), &self.options.contents.policy.platforms)?;
        outcome.layers = distinct_layers(&images).count();

        // 3. Its layers, as far as they are not at hand.
        let missing = self.missing(tree, &images)?;
        let (fetched, warnings): (Vec<_>, Vec<_>) =
            self.fetch(request, &missing, progress, cancel)?.into_iter().unzip();
        outcome.warnings = warnings.concat();
        outcome.layers_fetched = fetched.len();
        outcome.bytes_fetched = fetched.iter().map(|blob| blob.size).sum();
        outcome.seconds = start.elapsed().as_secs_f64();
        let thin = request.thin.as_ref().map(thin::Target::name);
        let wanted = Wanted { name: request.name.clone(), resolved, images, thin };
        Ok(Prepared { outcome, wanted: Some(wanted), fetched, thin: request.thin.clone() })
    }

    /// The tree of the newest revision.
    fn head(&self) -> Result<Tree> {
        self.publisher.head(self.options.contents.owned.now)?.tree(&Selector::Head)
    }

    /// Fetches layers side by side, as many as there are slots for, and returns those that nobody else fetched
    /// meanwhile, each with warnings. The first failure ends it.
    fn fetch(
        &self,
        request: &Request,
        missing: &[&Layer],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Vec<(Descriptor, Vec<String>)>> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let work = || {
            while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let _slot = self.slots.take();
                let result = self.fetch_one(request, layer, progress, cancel);
                if result.is_err() {
                    next.store(missing.len(), Ordering::Relaxed);
                }
                let fetched = result.map(|warnings| Some((layer.blob.clone(), warnings?))).transpose();
                results.lock().unwrap_or_else(PoisonError::into_inner).extend(fetched);
            }
        };
        thread::scope(|scope| {
            for _ in 0..missing.len().min(self.options.parallel.max(1)) {
                scope.spawn(work);
            }
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
    }

    fn fetch_one(
        &self,
        request: &Request,
        layer: &Layer,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Option<Vec<String>>> {
        let start = Instant::now();
        let event = |action| Event {
            image: request.name.simple_name(),
            layer: layer.blob.digest.hex(),
            size_bytes: layer.blob.size.to_string(),
            ..Event::now(action)
        };
        let id = new_id();
        self.listener.hear(&event(action::LAYER_BEGINS).with_id(&id));
        let result = self.layers.fetch(&*request.store, layer, progress, cancel);
        let seconds = start.elapsed().as_secs_f64();
        self.listener.hear(&event(action::LAYER_ENDS).with_id(&id).with_result(seconds, &result));
        result
    }

    /// Publishes images as one revision. Their thin images are still to be pushed.
    pub fn publish(&self, prepared: &mut [&mut Prepared], cancel: &Cancel) -> Result<()> {
        if prepared.iter().all(|prepared| prepared.wanted.is_none()) {
            return Ok(());
        }
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = contents::lock(self.publisher, self.options.publication.commit.patience, cancel)?;
        // Another process may have published the same meanwhile.
        let mut tree = self.head()?;
        for Prepared { wanted, thin, .. } in prepared.iter_mut().map(|prepared| &mut **prepared) {
            if let Some(Wanted { name, resolved, .. }) = wanted
                && self.is_current(&mut tree, name, thin.as_ref(), resolved)?
            {
                *wanted = None;
            }
        }
        let wanted: Vec<Wanted> = prepared.iter().filter_map(|prepared| prepared.wanted.clone()).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        for target in prepared.iter().filter_map(|prepared| prepared.thin.as_ref()) {
            target.note(self.publisher, true)?;
        }
        clean::refer_again(self.publisher, wanted.iter().flat_map(|wanted| &wanted.images))?;
        let open = |tree| ImageSource::new(tree, &self.layers, &wanted, &self.options.contents);
        let outcome = publication::publish(self.publisher, open, &self.options.publication, &Silent, cancel)?;
        let images = || wanted.iter().flat_map(|wanted| &wanted.images);
        if self.options.contents.policy.layers.is_some() {
            published.extend(distinct_layers(images()).cloned());
        }
        let Some(commit) = outcome.finished.revision().filter(|commit| commit.changed) else { return Ok(()) };
        for Prepared { outcome, fetched, .. } in prepared.iter_mut().map(|prepared| &mut **prepared) {
            if let Some(wanted) = wanted.iter().find(|wanted| wanted.name.whole_name() == outcome.name) {
                outcome.revision = Some(commit.revision);
                self.tell_published(wanted, fetched)?;
            }
        }
        if let Some(Prepared { outcome: first, .. }) = prepared.first_mut() {
            first.warnings.extend(outcome.warnings);
        }
        Ok(())
    }

    /// Pushes the thin image of an image that was published, if one is wanted.
    pub fn push_thin(&self, prepared: &Prepared) -> Result<()> {
        let (Some(target), Some(wanted)) = (&prepared.thin, &prepared.wanted) else { return Ok(()) };
        let image = wanted.main().map(|image| target.push(self.publisher, &wanted.name.whole_name(), image));
        image.unwrap_or(Ok(()))
    }

    fn tell_published(&self, wanted: &Wanted, layers: &[Descriptor]) -> Result<()> {
        for layer in layers {
            self.listener.hear(&Event { layer: layer.digest.hex(), ..Event::now(action::LAYER_PUBLISHED) });
        }
        for image in &wanted.images {
            self.listener.hear(&Event {
                image: wanted.name.simple_name(),
                public_path: display(wanted.place(image)?.link().as_bytes()),
                private_path: display(FlatPlace::of(image).root().as_bytes()),
                ..Event::now(action::IMAGE_PUBLISHED)
            });
        }
        Ok(())
    }
}

/// An image whose layers are at hand.
#[derive(Debug)]
pub struct Prepared {
    /// What became of it so far.
    pub outcome: Outcome,
    /// What is to be published; `None` if the repository has it.
    wanted: Option<Wanted>,
    /// The layers that were fetched for it.
    fetched: Vec<Descriptor>,
    /// Where its thin image is to be pushed.
    thin: Option<thin::Target>,
}

impl Prepared {
    /// Whether there is something to publish for it.
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }
}

impl From<Outcome> for Prepared {
    /// An image that was published already.
    fn from(outcome: Outcome) -> Self {
        Self { outcome, wanted: None, fetched: Vec::new(), thin: None }
    }
}

impl Drop for Converter<'_> {
    fn drop(&mut self) {
        for layer in self.published.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // What stays is removed when it is old.
            let _ = self.layers.forget(layer);
        }
    }
}

/// What a name stands for now.
fn resolved(request: &Request) -> Result<Digest> {
    match request.store.digest(&request.reference)? {
        Some(digest) => Ok(digest),
        None => Ok(Digest::of(&request.store.manifest(&request.reference)?.0.bytes)),
    }
}

/// Whether the repository has what a name stands for, with all that is wanted of it.
fn has_as_wanted(tree: &mut Tree, name: &Reference, resolved: &Digest, policy: &Policy) -> Result<bool> {
    let place = NamePlace::of(name)?;
    let mut records = Vec::new();
    if policy.platforms == Platforms::All {
        for platform in platforms(tree)? {
            let place = place.below(&platform);
            records.extend(read_record(tree, &place)?.map(|record| (place, record)));
        }
    }
    if records.is_empty() {
        records.extend(read_record(tree, &place)?.map(|record| (place, record)));
    }
    for (place, record) in &records {
        if !record.is_current(resolved, policy) {
            return Ok(false);
        }
        let flat = FlatPlace::of_config(&record.config);
        let is_as_wanted = |tree: &mut Tree| {
            Ok(leads_to(tree, &place.public(&flat))? && flat_permissions(tree, &flat)? == Some(policy.permissions))
        };
        if policy.flat && !is_as_wanted(tree)? {
            return Ok(false);
        }
    }
    Ok(!records.is_empty())
}

/// Whether a link is in the tree, and what it leads to.
fn leads_to(tree: &mut Tree, link: &Generated) -> Result<bool> {
    let Generated::Symlink { path, target } = link else { return Ok(false) };
    let row = tree.find(path)?;
    Ok(row.is_some_and(|row| matches!(row.entry.kind, EntryKind::Symlink { target: present } if present == *target)))
}

/// The layers of images, each once.
fn distinct_layers<'i>(images: impl IntoIterator<Item = &'i Image>) -> impl Iterator<Item = &'i Layer> {
    let mut seen = HashSet::new();
    images.into_iter().flat_map(|image| &image.layers).filter(move |layer| seen.insert(layer.blob.digest))
}

/// A number of things that may be done at once.
#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Slots {
    fn take(&self) -> Slot<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Slot(self)
    }
}

/// The right to do one of them, until it is dropped.
struct Slot<'a>(&'a Slots);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
