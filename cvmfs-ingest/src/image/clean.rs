//! Taking images away: first their names, and after some time, when nobody can be using them any more, what they are made
//! of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::durable;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::publication;
use cvmfs_core::repository::Selector;
use cvmfs_core::tree::Tree;
use serde::Serialize;

use super::Image;
use super::contents::{self, ImageSource, Owned};
use super::inventory::{Garbage, Inventory, Named};
use super::layout::Generated;

/// Choices for cleaning.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the revision is made.
    pub publication: publication::Options,
    /// Who owns what is written.
    pub owner: (u32, u32),
    /// The time.
    pub now: UnixSeconds,
    /// Whether only to say what would be done.
    pub dry_run: bool,
}

/// What was taken away, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Pruned {
    /// Names.
    pub names: Vec<String>,
    /// The revision without them; `None` if nothing changed.
    pub revision: Option<u64>,
}

/// What was removed, or would be, and what waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Collected {
    /// Removed.
    pub removed: Garbage,
    /// Nothing refers to it, but that is not for long enough.
    pub waiting: Garbage,
    /// The revision without it; `None` if nothing changed.
    pub revision: Option<u64>,
}

/// Removes the names of images. What they are made of stays for [`collect`].
///
/// # Errors
/// Nothing is removed after an error.
pub fn prune(
    publisher: &Publisher,
    is_gone: &dyn Fn(&Named) -> Result<bool>,
    options: &Options,
    cancel: &Cancel,
) -> Result<Pruned> {
    let _lock = contents::lock(publisher, options.publication.commit.patience, cancel)?;
    let mut tree = head(publisher, options)?;
    let inventory = Inventory::read(&mut tree, &publisher.config.name)?;
    let mut gone = Vec::new();
    for image in &inventory.images {
        if is_gone(image)? {
            gone.push(image);
        }
    }
    let names = gone.iter().map(|image| image.name.clone()).collect();
    let entries = inventory.unname(&gone, &mut tree, options.now)?;
    Ok(Pruned { names, revision: publish(publisher, entries, options, cancel)? })
}

/// Removes layers and trees that nothing has referred to for a grace period, in seconds.
///
/// # Errors
/// Nothing is removed after an error.
pub fn collect(publisher: &Publisher, grace_period: i64, options: &Options, cancel: &Cancel) -> Result<Collected> {
    let _lock = contents::lock(publisher, options.publication.commit.patience, cancel)?;
    let mut tree = head(publisher, options)?;
    let inventory = Inventory::read(&mut tree, &publisher.config.name)?;
    let garbage = inventory.garbage()?;
    let mut since = Since::load(publisher)?;
    since.update(&garbage, options.now);
    let is_due = |name: &String| options.now.0 - since.0.get(name).copied().unwrap_or(options.now.0) >= grace_period;
    let (removed, waiting) = garbage.partition(&is_due);
    let entries = inventory.remove(&removed, &mut tree, options.now)?;
    let revision = publish(publisher, entries, options, cancel)?;
    if !options.dry_run {
        since.update(&waiting, options.now);
        since.save(publisher)?;
    }
    Ok(Collected { removed, waiting, revision })
}

/// Notes that images are referred to again: what they are made of has the whole grace period before it when they go, and not
/// what was left of an earlier one. The lock of those who publish images is held.
pub(super) fn refer_again<'i>(publisher: &Publisher, images: impl IntoIterator<Item = &'i Image>) -> Result<()> {
    let mut since = Since::load(publisher)?;
    let before = since.0.len();
    for image in images {
        since.0.remove(&image.config.digest.hex());
        for layer in &image.layers {
            since.0.remove(&layer.blob.digest.hex());
        }
    }
    if since.0.len() == before { Ok(()) } else { since.save(publisher) }
}

fn head(publisher: &Publisher, options: &Options) -> Result<Tree> {
    publisher.head(options.now)?.tree(&Selector::Head)
}

fn publish(publisher: &Publisher, entries: Vec<Generated>, options: &Options, cancel: &Cancel) -> Result<Option<u64>> {
    if options.dry_run || entries.is_empty() {
        return Ok(None);
    }
    let owned = Owned { owner: options.owner, now: options.now };
    let open = |_| Ok(ImageSource::generated(entries, owned));
    let outcome = publication::publish(publisher, open, &options.publication, &Silent, cancel)?;
    Ok(outcome.finished.revision().filter(|commit| commit.changed).map(|commit| commit.revision))
}

impl Garbage {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.flat.iter().chain(&self.layers).chain(&self.podman)
    }

    /// What is due, and the rest.
    fn partition(self, is_due: &dyn Fn(&String) -> bool) -> (Self, Self) {
        let split = |names: Vec<String>| names.into_iter().partition(is_due);
        let (flat, layers, podman) = (split(self.flat), split(self.layers), split(self.podman));
        (
            Self { flat: flat.0, layers: layers.0, podman: podman.0 },
            Self { flat: flat.1, layers: layers.1, podman: podman.1 },
        )
    }
}

/// Since when nothing refers to something, as far as this publisher has seen.
#[derive(Debug, Default)]
struct Since(BTreeMap<String, i64>);

impl Since {
    fn path(publisher: &Publisher) -> PathBuf {
        publisher.config.spool.join("image-garbage.json")
    }

    fn load(publisher: &Publisher) -> Result<Self> {
        let path = Self::path(publisher);
        match fs::read(&path) {
            // Begun anew, all of it stays longer.
            Ok(bytes) => Ok(Self(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "since when things are garbage is lost");
                BTreeMap::new()
            }))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io(path, error)),
        }
    }

    /// Notes what is garbage now for the first time, and forgets what is not any more.
    fn update(&mut self, garbage: &Garbage, now: UnixSeconds) {
        let names: BTreeSet<&String> = garbage.names().collect();
        self.0.retain(|name, _| names.contains(name));
        for name in names {
            self.0.entry(name.clone()).or_insert(now.0);
        }
    }

    fn save(&self, publisher: &Publisher) -> Result<()> {
        let path = Self::path(publisher);
        let bytes = serde_json::to_vec(&self.0).expect("names and numbers can be written as JSON");
        durable::replace(&path, &bytes)
    }
}
