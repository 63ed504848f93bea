//! Ingest: tarballs become one revision.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cvmfs_core::catalog::MARKER;
use cvmfs_core::changeset::ChangeSet;
use cvmfs_core::commit::{self, Publisher};
use cvmfs_core::error::{IoContext as _, Result};
use cvmfs_core::pipeline;
use cvmfs_core::progress::{Cancel, Progress, Unit};
use cvmfs_core::repository::{Repository, Selector};
use serde::Serialize;

use crate::source::{self, Input, TarSource};

/// Choices for an ingest.
#[derive(Debug, Clone)]
pub struct Options {
    /// How tarballs are read.
    pub source: source::Options,
    /// How content is stored.
    pub pipeline: pipeline::Options,
    /// How the revision is made.
    pub commit: commit::Options,
    /// Plain bytes to come, for the progress bar, if known.
    pub total_bytes: Option<u64>,
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
    let head = publisher.head(options.commit.now)?;
    let journal = Journal::create(publisher)?;
    let mut changes = ChangeSet::create(&journal.0, head.manifest().root_catalog)?;

    progress.phase("ingest", Unit::Bytes, options.total_bytes);
    let mut source_options = options.source.clone();
    source_options.catalog &= !keeps_marker(&head, &source_options)?;
    let mut source = TarSource::new(inputs, source_options)?;
    let content = pipeline::run(&mut source, &*publisher.store, &mut changes, &options.pipeline, progress, cancel)?;
    let stored = Instant::now();

    let mut commit = publisher.commit(&mut changes, &options.commit, progress, cancel)?;
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

/// Whether the base directory has its marker already and keeps it: a new one would differ by its time alone, so the same
/// command again would make another revision.
fn keeps_marker(head: &Repository, options: &source::Options) -> Result<bool> {
    if !options.catalog || options.base_dir.is_root() {
        return Ok(false);
    }
    let marker = options.base_dir.child(MARKER)?;
    let goes = options.delete.iter().any(|path| marker.starts_with(path));
    Ok(!goes && head.tree(&Selector::Head)?.find(&marker)?.is_some())
}

/// The file of a change set, which goes away with the run.
struct Journal(PathBuf);

impl Journal {
    fn create(publisher: &Publisher) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let directory = publisher.config.spool.join("changes");
        fs::create_dir_all(&directory).at(&directory)?;
        let path = directory.join(format!("ingest-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let journal = Self(path);
        // Left by a process that was killed and had our process id.
        journal.remove();
        Ok(journal)
    }

    fn remove(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            // Absent is as good as removed.
            let _ = fs::remove_file(path);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.remove();
    }
}
