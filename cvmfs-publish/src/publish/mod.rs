//! Publishing a directory, or the upper directory of an overlay.
//!
//! ```text
//! directory ─► walk ─────► source (directory, upper) ─► pipeline ─► change set ─► commit
//!              (threads)     │ compared with
//! head ─────► tree ──────────┘
//! ```
//!
//! 1. `walk` lists directories ahead, on several threads;
//! 2. `directory` joins each with what the repository has there, `upper` asks the repository for what the overlay has;
//! 3. `compare` turns pairs into changes. What is unchanged ends here, unread.
//!
//! [`publish`] makes a revision of it, or adds it to the open transaction.

mod compare;
mod directory;
mod graft;
mod listing;
mod overlay;
mod source;
mod upper;
mod walk;

use std::path::{Path, PathBuf};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::publication::{self, Outcome};

pub use compare::Policy;
pub use listing::Exclude;
pub use source::{Options as SourceOptions, TreeSource};

/// What is published.
#[derive(Debug, Clone)]
pub enum From {
    /// A directory that the base directory becomes equal to.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// Whether what the directory does not have is removed from the base directory.
        delete: bool,
        /// What is neither published nor removed.
        exclude: Vec<Exclude>,
        /// Whether directories that other file systems are mounted on are published without their content.
        one_file_system: bool,
    },
    /// The upper directory of an overlay over the base directory.
    Upper {
        /// Where it is.
        path: PathBuf,
        /// The overlay keeps its signs in attributes `user.*`, not `trusted.*`.
        userxattr: bool,
    },
}

impl From {
    /// A directory with nothing left out.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory { path: path.into(), delete: true, exclude: Vec::new(), one_file_system: false }
    }

    /// The directory that is read.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory { path, .. } | Self::Upper { path, .. } => path,
        }
    }
}

/// Choices for publishing a directory.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is read, and how.
    pub source: SourceOptions,
    /// Whether the base directory becomes a nested catalog.
    pub catalog: bool,
    /// How content is stored and the revision is made.
    pub publication: publication::Options,
}

impl Options {
    /// What the repository's configuration asks for: everything as the directory has it, owners included.
    pub fn new(publisher: &Publisher, from: From, base_dir: RepoPath, now: UnixSeconds) -> Self {
        let config = &publisher.config;
        let policy = Policy {
            uid: None,
            gid: None,
            xattrs: config.xattrs,
            mtime_nanoseconds: config.mtime_nanoseconds,
            checksum: false,
        };
        Self {
            source: SourceOptions { from, base_dir, policy, external: config.external, threads: 0, now },
            catalog: false,
            publication: publication::Options::new(config, now),
        }
    }
}

/// Publishes a directory as one revision, or finds that nothing changed.
///
/// # Errors
/// `Io` if the directory cannot be opened, `InvalidInput` if it cannot go to the base directory.
/// After any error the repository is as it was, but for objects that nothing refers to yet.
pub fn publish(publisher: &Publisher, options: &Options, progress: &dyn Progress, cancel: &Cancel) -> Result<Outcome> {
    let base_dir = &options.source.base_dir;
    if options.catalog && base_dir.is_root() {
        return Err(Error::invalid(
            "--catalog",
            "the root directory cannot be a nested catalog: give a base directory",
        ));
    }
    let mut publication = options.publication.clone();
    publication.catalogs.extend(options.catalog.then(|| base_dir.clone()));
    let open_source = |tree| TreeSource::open(&options.source, tree, cancel);
    publication::publish(publisher, open_source, &publication, progress, cancel)
}
