//! Pushing thin images: what Docker daemons with the graph driver pull from a registry instead of the layers.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, IoContext as _, Result, remove_if_there};

use super::Image;
use super::digest::Digest;
use super::layout::thin::{MANIFEST_TYPE, Thin, thin};
use super::recipe::Recipe;
use super::reference::Reference;
use super::registry::{HostPattern, Registries, Repository, Secret};
use super::source::ImageStore;

/// Where the thin images of wish lists go.
#[derive(Debug)]
pub struct Outputs {
    registries: Registries,
    password: Option<Secret>,
    /// Whoever pushes, by host and user: tokens are asked for once.
    accounts: Mutex<HashMap<(String, String), Registries>>,
}

impl Outputs {
    /// Pushes to registries as the users that wish lists name, with this password; without one, as everything else is
    /// asked for.
    pub fn new(registries: &Registries, password: Option<Secret>) -> Self {
        Self { registries: registries.clone(), password, accounts: Mutex::default() }
    }

    /// Where the thin image of an image of a wish list goes.
    ///
    /// # Errors
    /// `InvalidInput` if the list's format makes no name of it.
    pub fn target(&self, recipe: &Recipe, image: &Reference) -> Result<Target> {
        let name = recipe.output_format.name(image)?;
        Target::new(&name, &self.account(&name.registry, &recipe.user)?)
    }

    fn account(&self, registry: &str, user: &str) -> Result<Registries> {
        let Some(password) = self.password.as_ref().filter(|_| !user.is_empty()) else {
            return Ok(self.registries.clone());
        };
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (registry.to_owned(), user.to_owned());
        if let Some(account) = accounts.get(&key) {
            return Ok(account.clone());
        }
        let account = self.registries.with_account(HostPattern::new(registry)?, user, password);
        accounts.insert(key, account.clone());
        Ok(account)
    }
}

/// Where the thin image of an image goes.
#[derive(Debug, Clone)]
pub struct Target {
    name: Reference,
    repository: Repository,
    /// What the repository is called by those who read it.
    read_as: String,
    tag: String,
}

impl Target {
    /// A name in a registry.
    ///
    /// # Errors
    /// `InvalidInput` for a name without tag.
    pub fn new(name: &Reference, registries: &Registries) -> Result<Self> {
        let tag = name.tag.clone().filter(|_| !name.is_pattern());
        let tag = tag.ok_or_else(|| Error::invalid(name.whole_name(), "a thin image needs a tag"))?;
        let read_as = registries.repository(name)?.describe();
        Ok(Self { name: name.clone(), repository: registries.origin(name)?, read_as, tag })
    }

    /// The whole name.
    pub fn name(&self) -> String {
        self.name.whole_name()
    }

    /// Whether this is where an image comes from, whose digest is known.
    pub(super) fn replaces(&self, store: &dyn ImageStore, reference: &str, resolved: &Digest) -> Result<bool> {
        if ![self.repository.describe(), self.read_as.clone()].contains(&store.describe()) {
            return Ok(false);
        }
        if reference == self.tag {
            return Ok(true);
        }
        match store.digest(&self.tag) {
            Err(error) if error.is_not_found() => Ok(false),
            digest => Ok(digest?.is_some_and(|digest| digest == *resolved)),
        }
    }

    /// Pushes the thin image of an image whose layers a repository has; `origin` is what the image was asked for as.
    pub(super) fn push(&self, publisher: &Publisher, origin: &str, image: &Image) -> Result<()> {
        let Thin { layer, config, manifest } = thin(&publisher.config.name, origin, image)?;
        self.repository.put_blob(Bytes::from(layer.bytes))?;
        self.repository.put_blob(Bytes::from(config.bytes))?;
        self.repository.put_manifest(&self.tag, MANIFEST_TYPE, Bytes::from(manifest.bytes))?;
        self.note(publisher, false)
    }

    /// Whether the image was published and the thin image not pushed.
    pub(super) fn is_pending(&self, publisher: &Publisher) -> Result<bool> {
        let path = self.mark(publisher);
        path.try_exists().at(&path)
    }

    /// Notes whether the thin image is still to be pushed, for the case that it does not come to that.
    pub(super) fn note(&self, publisher: &Publisher, pending: bool) -> Result<()> {
        let path = self.mark(publisher);
        if pending {
            fs::create_dir_all(path.parent().unwrap_or(&path)).at(&path)?;
            return fs::write(&path, self.name()).at(&path);
        }
        remove_if_there(&path)
    }

    fn mark(&self, publisher: &Publisher) -> PathBuf {
        publisher.config.spool.join("thin-images").join(Digest::of(self.name().as_bytes()).hex())
    }
}
