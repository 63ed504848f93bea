//! Which storage a repository has: `CVMFS_UPSTREAM_STORAGE`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{LocalStore, PruneStore, S3Config, S3Store};
use crate::error::{Error, IoContext as _, Result};
use crate::path::RepositoryName;

/// The place of a repository's storage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoragePlace {
    /// A directory.
    Local(PathBuf),
    /// A bucket.
    S3 {
        /// The file with `CVMFS_S3_*` variables.
        config: PathBuf,
        /// What all keys begin with.
        alias: String,
        /// Directory for objects on their way.
        temporary: PathBuf,
    },
}

impl StoragePlace {
    /// Reads a definition such as `local,/srv/x/data/txn,/srv/x` or `S3,/spool/x/tmp,x.example.org@/etc/cvmfs/s3.conf`.
    ///
    /// Returns `None` if it is no definition.
    ///
    /// # Errors
    /// `Unsupported` for other kinds of storage.
    pub fn parse(definition: &str) -> Result<Option<Self>> {
        match definition.split(',').collect::<Vec<_>>()[..] {
            ["local", _, directory] => Ok(Some(Self::Local(directory.into()))),
            ["S3", temporary, place] => Ok(match place.split('@').collect::<Vec<_>>()[..] {
                [alias, config] if !alias.is_empty() && !config.is_empty() => {
                    Some(Self::S3 { config: config.into(), alias: alias.into(), temporary: temporary.into() })
                }
                _ => None,
            }),
            [kind, _, _] => Err(Error::Unsupported { what: format!("storage of type {kind:?}") }),
            _ => Ok(None),
        }
    }

    /// The definition, as [`parse`](Self::parse) reads it.
    pub fn definition(&self) -> String {
        match self {
            Self::Local(directory) => format!("local,{0}/data/txn,{0}", directory.display()),
            Self::S3 { config, alias, temporary } => {
                format!("S3,{},{alias}@{}", temporary.display(), config.display())
            }
        }
    }

    /// A new place in the bucket that `file` describes, for a repository that clients find at `url`, a URL of the bucket
    /// without the name of the repository; with that name, which is the URL of the repository.
    ///
    /// Where buckets are part of host names, the path of the URL is a part of all keys.
    ///
    /// # Errors
    /// Those of [`S3Config::load`].
    ///
    /// Source: `get_upstream_config` in `cvmfs/server/cvmfs_server_util.sh`.
    pub fn in_bucket(file: &Path, temporary: PathBuf, name: &RepositoryName, url: &str) -> Result<(Self, String)> {
        let config = std::path::absolute(file).at(file)?;
        let s3 = S3Config::load(&config, name.as_str(), &temporary)?;
        let url = url.trim_end_matches('/');
        let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| path);
        let alias = match path {
            Some(path) if s3.dns_buckets => format!("{path}/{name}"),
            _ => name.to_string(),
        };
        Ok((Self::S3 { config, alias, temporary }, format!("{url}/{name}")))
    }

    /// Opens the storage.
    ///
    /// # Errors
    /// `NotFound` if the directory does not exist; those of [`S3Config::load`].
    pub fn open(&self) -> Result<Arc<dyn PruneStore>> {
        match self {
            Self::Local(directory) => Ok(Arc::new(LocalStore::open(directory)?)),
            Self::S3 { config, alias, temporary } => {
                Ok(Arc::new(S3Store::open(S3Config::load(config, alias, temporary)?)?))
            }
        }
    }

    /// Opens the storage, with the directories that it needs.
    pub fn create(&self) -> Result<Arc<dyn PruneStore>> {
        match self {
            Self::Local(directory) => Ok(Arc::new(LocalStore::create(directory)?)),
            Self::S3 { .. } => self.open(),
        }
    }

    /// The directory, for what works on files.
    ///
    /// # Errors
    /// `Unsupported` for a bucket.
    pub fn directory(&self) -> Result<&Path> {
        match self {
            Self::Local(directory) => Ok(directory),
            Self::S3 { .. } => {
                Err(Error::Unsupported { what: format!("{self}: this needs a local storage directory; a bucket") })
            }
        }
    }
}

impl fmt::Display for StoragePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(directory) => write!(f, "{}", directory.display()),
            Self::S3 { config, alias, .. } => write!(f, "{alias} in the bucket of {}", config.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_read_and_written() {
        for text in ["local,/srv/x/data/txn,/srv/x", "S3,/spool/x/tmp,a/x.example.org@/etc/cvmfs/s3.conf"] {
            assert_eq!(StoragePlace::parse(text).unwrap().unwrap().definition(), text);
        }
        for text in ["", "local", "S3,/tmp,x", "S3,/tmp,x@y@z", "S3,/tmp,@y", "local,a,b,c"] {
            assert_eq!(StoragePlace::parse(text).unwrap(), None, "{text}");
        }
        assert!(StoragePlace::parse("gw,/tmp,http://x").is_err());
    }
}
