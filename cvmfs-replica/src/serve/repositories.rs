//! Which repositories are served, and from where.

use std::collections::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::storage::{LocalStore, NamedFile, ReadStore, S3Config, S3Store, StoragePlace};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::bucket::Bucket;
use super::file::{Disk, open_directory};
use super::route::{Place, is_repository_name};

/// What makes a directory of the tree a repository.
pub(super) const MANIFEST: &str = ".cvmfspublished";

/// How long a storage directory is used without looking whether its name still leads to it.
const DIRECTORY_TRUSTED_FOR: Duration = Duration::from_secs(1);

/// Storage directories by repository name or alias.
///
/// A repository appears with its first manifest and is gone with its directory: nothing is remembered for longer than a
/// second, and what is not found in a remembered directory is looked up anew.
///
/// ```
/// # fn main() -> cvmfs_core::error::Result<()> {
/// use cvmfs_replica::serve::Repositories;
///
/// let repositories = Repositories::scan("/").with("mirror", "/data/software.example.org")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Repositories {
    tree: Option<PathBuf>,
    root: Option<PathBuf>,
    named: BTreeMap<String, PathBuf>,
    /// Storages that configuration files of the root name, at other places than in the tree, or in buckets.
    configured: Arc<RwLock<BTreeMap<String, Configured>>>,
    opened: Arc<RwLock<HashMap<String, Opened>>>,
}

/// A storage that a configuration file names.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub(super) storage: Storage,
    /// Whether it is served only once it has a revision.
    pub(super) needs_manifest: bool,
}

/// Where the files of a repository are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Storage {
    Directory(PathBuf),
    Bucket(Arc<Bucket>),
}

impl Storage {
    /// Opens it, for whoever can wait.
    pub(super) fn open(&self) -> Result<Arc<dyn ReadStore>> {
        match self {
            Self::Directory(directory) => Ok(Arc::new(LocalStore::open(directory)?)),
            Self::Bucket(bucket) => Ok(bucket.store()),
        }
    }
}

impl TryFrom<&StoragePlace> for Storage {
    type Error = Error;

    fn try_from(place: &StoragePlace) -> Result<Self> {
        match place {
            StoragePlace::Local(directory) => Ok(Self::Directory(directory.clone())),
            StoragePlace::S3 { config, alias, temporary } => {
                let store = S3Store::open(S3Config::load(config, alias, temporary)?)?;
                Ok(Self::Bucket(Arc::new(Bucket::new(place.clone(), store))))
            }
        }
    }
}

/// A storage directory that was found at some time.
#[derive(Debug)]
struct Opened {
    directory: Arc<OwnedFd>,
    found: Instant,
}

impl Repositories {
    /// Serves everything below `<root>/srv/cvmfs/`.
    ///
    /// Every directory there with a `.cvmfspublished` in it is a repository, under the directory's name; it may be
    /// a link to where the data really is. `info/` holds the server-wide documents. The tree need not exist yet.
    pub fn scan(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        Self { tree: Some(root.join("srv/cvmfs")), root: Some(root.to_owned()), ..Self::default() }
    }

    /// Serves `directory` as `name`, in preference to a directory of that name in the tree.
    ///
    /// # Errors
    /// `InvalidInput` if `name` cannot be a repository or an alias.
    pub fn with(mut self, name: &str, directory: impl Into<PathBuf>) -> Result<Self> {
        if !is_repository_name(name) {
            return Err(Error::invalid(format!("repository name {name:?}"), "cannot be part of an address"));
        }
        self.named.insert(name.to_owned(), directory.into());
        Ok(self)
    }

    /// The names that are served at this moment, in alphabetical order.
    ///
    /// # Errors
    /// `Io` if the tree cannot be listed; a tree that does not exist is an empty one.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: BTreeSet<String> = self.named.keys().cloned().collect();
        let configured: Vec<String> = self.configured().keys().cloned().collect();
        names.extend(configured.into_iter().filter(|name| self.is_served(name)));
        if let Some(tree) = &self.tree {
            let entries = match std::fs::read_dir(tree) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names.into_iter().collect()),
                entries => entries.at(tree)?,
            };
            for entry in entries {
                let name = entry.at(tree)?.file_name();
                names.extend(name.into_string().ok().filter(|name| is_repository_name(name) && self.is_served(name)));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Opens the directory that paths at `place` are relative to.
    ///
    /// The operator places this directory, so links on the way are followed; below it they are not.
    pub(super) fn open(&self, place: &Place, disk: Disk, now: Instant) -> io::Result<Arc<OwnedFd>> {
        let name = match place {
            Place::Info => return open_directory(&self.tree()?.join("info"), disk).map(Arc::new),
            Place::Repository(name) => name,
        };
        if disk == Disk::CachedOnly
            && let Some(opened) = self.opened.read().unwrap_or_else(PoisonError::into_inner).get(name)
            && now.duration_since(opened.found) < DIRECTORY_TRUSTED_FOR
        {
            return Ok(Arc::clone(&opened.directory));
        }
        let result = match self.named.get(name) {
            Some(directory) => open_directory(directory, disk),
            None if self.configured().get(name).is_some_and(|configured| !configured.needs_manifest) => {
                open_directory(&self.directory(name).ok_or(io::ErrorKind::NotFound)?, disk)
            }
            None => open_published(&self.directory(name).ok_or(io::ErrorKind::NotFound)?, disk),
        };
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(directory) => {
                let directory = Arc::new(directory);
                opened.insert(name.clone(), Opened { directory: Arc::clone(&directory), found: now });
                Ok(directory)
            }
            Err(error) => {
                opened.remove(name);
                Err(error)
            }
        }
    }

    /// The root with configuration files, if there is one.
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Where the storage of a repository is, whether it exists or not.
    pub(super) fn storage(&self, name: &str) -> Option<Storage> {
        let configured = || self.configured().get(name).map(|configured| configured.storage.clone());
        let given = self.named.get(name).cloned().map(Storage::Directory).or_else(configured);
        given.or_else(|| Some(Storage::Directory(self.tree.as_ref()?.join(name))))
    }

    /// The bucket of a repository that is not in a directory.
    pub(super) fn bucket(&self, name: &str) -> Option<Arc<Bucket>> {
        match &self.configured().get(name)?.storage {
            Storage::Bucket(bucket) if !self.named.contains_key(name) => Some(Arc::clone(bucket)),
            Storage::Bucket(_) | Storage::Directory(_) => None,
        }
    }

    fn directory(&self, name: &str) -> Option<PathBuf> {
        match self.storage(name)? {
            Storage::Directory(directory) => Some(directory),
            Storage::Bucket(_) => None,
        }
    }

    /// Takes the places of storages from configuration files; `storages` makes them of the former ones.
    pub(super) fn configure(
        &self,
        storages: impl FnOnce(&BTreeMap<String, Configured>) -> BTreeMap<String, Configured>,
    ) {
        let storages = storages(&self.configured());
        *self.configured.write().unwrap_or_else(PoisonError::into_inner) = storages;
    }

    fn configured(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Configured>> {
        self.configured.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self) -> io::Result<&Path> {
        self.tree.as_deref().ok_or(io::ErrorKind::NotFound.into())
    }

    /// A bucket that cannot be asked is one that is served.
    fn is_served(&self, name: &str) -> bool {
        if let Some(bucket) = self.bucket(name) {
            return !matches!(bucket.store().size(&NamedFile::Manifest.into()), Ok(None));
        }
        self.open(&Place::Repository(name.to_owned()), Disk::Wait, Instant::now()).is_ok()
    }
}

/// Opens a directory of the tree, unless it is something else than a repository with a revision.
fn open_published(path: &Path, disk: Disk) -> io::Result<OwnedFd> {
    let directory = open_directory(path, disk)?;
    let (flags, mode) = (OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    match disk {
        Disk::Wait => rustix::fs::openat(&directory, MANIFEST, flags, mode),
        Disk::CachedOnly => rustix::fs::openat2(&directory, MANIFEST, flags, mode, ResolveFlags::CACHED),
    }?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(root: &Path, name: &str, published: bool) {
        let directory = root.join("srv/cvmfs").join(name);
        std::fs::create_dir_all(&directory).unwrap();
        if published {
            std::fs::write(directory.join(".cvmfspublished"), "").unwrap();
        }
    }

    #[test]
    fn a_repository_is_a_directory_with_a_manifest() {
        let root = tempfile::tempdir().unwrap();
        let repositories = Repositories::scan(root.path());
        assert_eq!(repositories.names().unwrap(), Vec::<String>::new());
        make(root.path(), "b.example.org", true);
        make(root.path(), "a.example.org", false);
        make(root.path(), "info", true);
        make(root.path(), ".hidden", true);
        std::fs::write(root.path().join("srv/cvmfs/file"), "").unwrap();
        assert_eq!(repositories.names().unwrap(), ["b.example.org"]);
        make(root.path(), "a.example.org", true);
        assert_eq!(repositories.names().unwrap(), ["a.example.org", "b.example.org"]);
    }

    #[test]
    fn a_given_directory_needs_a_name_that_fits_an_address() {
        let root = tempfile::tempdir().unwrap();
        let repositories = Repositories::default().with("alias", root.path()).unwrap();
        assert_eq!(repositories.names().unwrap(), ["alias"]);
        assert!(repositories.open(&Place::Repository("alias".to_owned()), Disk::Wait, Instant::now()).is_ok());
        for name in ["", "info", "../x", "a/b", ".a", "a b", "a%2e"] {
            assert!(Repositories::default().with(name, root.path()).is_err(), "{name}");
        }
    }
}
