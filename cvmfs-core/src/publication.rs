//! A publication: a source of changes becomes one revision. These steps are the same for every input.
//!
//! ```text
//! begin ─► run a source into the change set ─► commit ─► Outcome
//! ```
//!
//! [`publish`] takes all of them. Whoever collects several sources for one revision calls [`Publisher::begin`], [`run`]
//! for each source, and [`Publisher::commit`].

use std::time::Instant;

use serde::Serialize;

use crate::change::ChangeSource;
use crate::changeset::ChangeSet;
use crate::clock::UnixSeconds;
use crate::commit::{self, Publisher};
use crate::error::Result;
use crate::pipeline;
use crate::progress::{Cancel, Progress, Unit};
use crate::server::RepositoryConfig;

/// Choices that do not depend on the source.
#[derive(Debug, Clone)]
pub struct Options {
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
    /// What the repository's configuration asks for.
    pub fn new(config: &RepositoryConfig, now: UnixSeconds) -> Self {
        Self {
            pipeline: pipeline::Options {
                algorithm: config.algorithm,
                compression: config.compression.into(),
                chunking: config.chunking,
                external: config.external,
                ..pipeline::Options::default()
            },
            use_index: true,
            commit: commit::Options::new(now),
            total_bytes: None,
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The revision; its warnings include those of the source.
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

/// Publishes one source as one revision.
///
/// 1. the head is verified: nothing is compressed for a repository that cannot be published;
/// 2. the source is opened; it may look at what the change set is made for;
/// 3. content is stored, changes are recorded;
/// 4. the change set is committed.
///
/// # Errors
/// After any error the repository is as it was, but for objects that nothing refers to yet.
pub fn publish<S: ChangeSource>(
    publisher: &Publisher,
    open_source: impl FnOnce(&ChangeSet) -> Result<S>,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let start = Instant::now();
    let mut changes = publisher.begin(options.commit.now)?;
    let mut source = open_source(&changes)?;
    let content = run(publisher, &mut source, &mut changes, options, progress, cancel)?;
    let mut warnings = source.take_warnings();
    drop(source);
    let stored = Instant::now();

    let mut commit = publisher.commit(&mut changes, &options.commit, progress, cancel)?;
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

/// Runs one source into a change set: stores content, records changes.
///
/// # Errors
/// Those of source, storage and change set. Objects that were stored stay: the next run finds them.
pub fn run(
    publisher: &Publisher,
    source: &mut dyn ChangeSource,
    changes: &mut ChangeSet,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<pipeline::Outcome> {
    progress.phase("content", Unit::Bytes, options.total_bytes);
    let known = options.use_index.then(|| publisher.known_content()).transpose()?;
    pipeline::run(source, &*publisher.store, changes, known.as_ref(), &options.pipeline, progress, cancel)
}
