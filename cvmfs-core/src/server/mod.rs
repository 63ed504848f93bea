//! Where a server keeps things: the reference's own places below a root directory, and its configuration files.
//!
//! With the root `/` an installed server is used as it stands; with another directory everything is below that.
//!
//! Source: `cvmfs/server/cvmfs_server_common.sh`.

mod config;
mod keys;
mod user;
mod variables;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext as _, Result};
use crate::path::RepositoryName;
use crate::storage::StoragePlace;

pub use config::{AutoGc, AutomaticNesting, NestingConfig, RepositoryConfig};
pub use keys::{PublisherKeys, load_master_keys};
pub use user::SystemUser;
pub use variables::Variables;

/// What `server.conf` is called while a repository is being removed.
const REMOVED: &str = "server.conf.removed";

/// The directory tree of a server.
#[derive(Debug, Clone)]
pub struct ServerRoot(PathBuf);

impl ServerRoot {
    /// Uses the tree below a directory, made absolute so that configuration files hold absolute paths.
    pub fn new(root: &Path) -> Result<Self> {
        std::path::absolute(root).map(Self).at(root)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Configuration files of a repository.
    pub fn config_dir(&self, name: &RepositoryName) -> PathBuf {
        self.configs().join(name.as_str())
    }

    /// Keys of all repositories.
    pub fn keys_dir(&self) -> PathBuf {
        self.0.join("etc/cvmfs/keys")
    }

    /// Storages of all repositories.
    pub fn storages(&self) -> PathBuf {
        self.0.join("srv/cvmfs")
    }

    /// Storage of a repository.
    pub fn storage_dir(&self, name: &RepositoryName) -> PathBuf {
        self.storages().join(name.as_str())
    }

    /// Working files of a repository.
    pub fn spool_dir(&self, name: &RepositoryName) -> PathBuf {
        self.0.join("var/spool/cvmfs").join(name.as_str())
    }

    /// A key file of a repository: `masterkey`, `pub`, `key` or `crt`.
    pub fn key_file(&self, name: &RepositoryName, extension: &str) -> PathBuf {
        self.keys_dir().join(format!("{name}.{extension}"))
    }

    /// The file whose existence makes a repository known.
    pub fn server_conf(&self, name: &RepositoryName) -> PathBuf {
        self.config_dir(name).join("server.conf")
    }

    /// What [`server_conf`](Self::server_conf) is called from the beginning of the repository's removal to its end.
    pub fn removed_conf(&self, name: &RepositoryName) -> PathBuf {
        self.config_dir(name).join(REMOVED)
    }

    /// Documents about the server, which are served.
    pub fn info_dir(&self) -> PathBuf {
        self.storages().join("info/v1")
    }

    fn configs(&self) -> PathBuf {
        self.0.join("etc/cvmfs/repositories.d")
    }

    /// The configured repositories, sorted.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>> {
        let known = self.known_repositories()?;
        Ok(known.into_iter().filter(|(_, is_whole)| *is_whole).map(|(name, _)| name).collect())
    }

    /// The configured repositories, sorted, and those whose removal was interrupted, with `false`.
    pub fn known_repositories(&self) -> Result<Vec<(RepositoryName, bool)>> {
        let configs = self.configs();
        let mut names = Vec::new();
        let entries = match fs::read_dir(&configs) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            result => result.at(&configs)?,
        };
        for entry in entries {
            let entry = entry.at(&configs)?;
            let is_whole = entry.path().join("server.conf").is_file();
            if is_whole || entry.path().join(REMOVED).is_file() {
                let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
                names.extend(name.map(|name| (name, is_whole)));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Another configured repository that has the same storage as one of this name, or one inside of it.
    pub fn other_with_storage(&self, name: &RepositoryName, storage: &StoragePlace) -> Result<Option<RepositoryName>> {
        let real = |directory: &Path| fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        for other in self.repositories()?.into_iter().filter(|other| other != name) {
            // Whoever cannot be understood cannot be asked.
            let Ok(variables) = Variables::load(&self.server_conf(&other)) else { continue };
            let theirs = match variables.storage() {
                Ok(theirs) => theirs.unwrap_or_else(|| StoragePlace::Local(self.storage_dir(&other))),
                Err(_) => continue,
            };
            let is_shared = match (storage, &theirs) {
                (StoragePlace::Local(ours), StoragePlace::Local(theirs)) => real(theirs).starts_with(real(ours)),
                (
                    StoragePlace::S3 { config, alias, .. },
                    StoragePlace::S3 { config: their_config, alias: their_alias, .. },
                ) => real(config) == real(their_config) && alias == their_alias,
                _ => false,
            };
            if is_shared {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    /// The repository that is meant when none is named: the only one that is configured.
    ///
    /// # Errors
    /// `InvalidInput` if there are several, `NotFound` if there is none.
    pub fn only_repository(&self) -> Result<RepositoryName> {
        let mut names = self.repositories()?;
        match (names.pop(), names.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(Error::not_found(format!("a repository configured below {}", self.configs().display()))),
            (Some(last), false) => {
                let names: Vec<String> = names.iter().chain([&last]).map(ToString::to_string).collect();
                Err(Error::invalid("repository", format!("name one of {}", names.join(", "))))
            }
        }
    }
}
