//! Ingest: tarballs become one revision.

use std::time::Instant;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{self, Publisher};
use cvmfs_core::error::Result;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::path::RepoPath;
use cvmfs_core::pipeline;
use cvmfs_core::progress::{Cancel, Progress, Unit};
use cvmfs_core::server::{RepositoryConfig, SystemUser};
use serde::Serialize;

use crate::source::{self, Input, Ownership, TarSource};

/// Choices for an ingest.
#[derive(Debug, Clone)]
pub struct Options {
    /// How tarballs are read.
    pub source: source::Options,
    /// How content is stored.
    pub pipeline: pipeline::Options,
    /// Whether content that was stored before is recognised instead of compressed again.
    pub use_index: bool,
    /// How the revision is made.
    pub commit: commit::Options,
    /// Plain bytes to come, for the progress bar, if known.
    pub total_bytes: Option<u64>,
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
            pipeline: pipeline::Options {
                algorithm: config.algorithm,
                compression: config.compression,
                chunking: config.chunking,
                external: config.external,
                ..pipeline::Options::default()
            },
            use_index: true,
            commit: commit::Options::new(now),
            total_bytes: None,
        })
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The revision.
    #[serde(flatten)]
    pub commit: commit::Outcome,
    /// What was read and stored.
    pub content: pipeline::Outcome,
    /// Wall time.
    pub seconds: Seconds,
    /// Plain megabytes (10^6) read a second.
    pub megabytes_per_second: f64,
}

/// Wall time by phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Seconds {
    /// Reading, compressing, hashing and storing content.
    pub content: f64,
    /// Catalogs and the new revision.
    pub commit: f64,
    /// Both.
    pub total: f64,
}

/// Ingests tarballs in order into one revision.
///
/// 1. the head is verified: nothing is compressed for a repository that cannot be published;
/// 2. content is stored, changes are recorded;
/// 3. the change set is committed.
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
    let start = Instant::now();
    let mut changes = publisher.begin(options.commit.now)?;

    progress.phase("ingest", Unit::Bytes, options.total_bytes);
    let mut source = TarSource::new(inputs, options.source.clone())?;
    let known = options.use_index.then(|| publisher.known_content()).transpose()?;
    let store = &*publisher.store;
    let content = pipeline::run(&mut source, store, &mut changes, known.as_ref(), &options.pipeline, progress, cancel)?;
    drop(known);
    let stored = Instant::now();

    let mut commit_options = options.commit.clone();
    commit_options.catalogs.extend(options.source.catalog.then(|| options.source.base_dir.clone()));
    let mut commit = publisher.commit(&mut changes, &commit_options, progress, cancel)?;
    let mut warnings = source.take_warnings();
    warnings.append(&mut commit.warnings);
    commit.warnings = warnings;
    let seconds = Seconds {
        content: (stored - start).as_secs_f64(),
        commit: stored.elapsed().as_secs_f64(),
        total: start.elapsed().as_secs_f64(),
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let megabytes_per_second = content.bytes_read as f64 / 1e6 / seconds.total.max(1e-9);
    Ok(Outcome { commit, content, seconds, megabytes_per_second })
}
