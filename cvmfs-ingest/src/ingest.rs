//! Ingest: tarballs become one revision.

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::publication::{self, Outcome};
use cvmfs_core::server::{RepositoryConfig, SystemUser};

use crate::source::{self, Input, Ownership, TarSource};

/// Choices for an ingest.
#[derive(Debug, Clone)]
pub struct Options {
    /// How tarballs are read.
    pub source: source::Options,
    /// How content is stored and the revision is made.
    pub publication: publication::Options,
}

impl Options {
    /// What the repository's configuration asks for: everything below `base_dir`, owned by the repository's owner.
    ///
    /// # Errors
    /// `Io` if the users of this system cannot be looked up.
    pub fn new(config: &RepositoryConfig, base_dir: RepoPath, now: UnixSeconds) -> Result<Self> {
        let owner = SystemUser::named(&config.owner).or_else(|_| SystemUser::current())?;
        Ok(Self {
            source: source::Options {
                base_dir,
                delete: Vec::new(),
                catalog: false,
                ownership: Ownership {
                    uid: IdMap::constant(owner.uid),
                    gid: IdMap::constant(owner.gid),
                    implied: (owner.uid, owner.gid),
                },
                whiteouts: false,
                size_limit: u64::MAX,
                xattrs: config.xattrs,
                mtime_nanoseconds: config.mtime_nanoseconds,
                now,
            },
            publication: publication::Options::new(config, now),
        })
    }
}

/// Ingests tarballs in order into one revision.
///
/// # Errors
/// After any error the repository is as it was, but for objects that nothing refers to yet.
pub fn ingest(
    publisher: &Publisher,
    inputs: Vec<Input>,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let mut publication = options.publication.clone();
    publication.catalogs.extend(options.source.catalog.then(|| options.source.base_dir.clone()));
    let open_source = |_| TarSource::new(inputs, options.source.clone());
    publication::publish(publisher, open_source, &publication, progress, cancel)
}
