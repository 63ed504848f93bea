//! The pipeline: from a stream of changes to stored objects and a change set.
//!
//! ```text
//! source thread                          workers (all cores)
//! next change ─► read ─► cut ──────────► deflate ─► hash ─► put
//!                                                            │
//! change set, in source order ◄────────── mailbox ◄──────────┘
//! ```
//!
//! Small files go to the workers several at a time, large ones in pieces.
//!
//! Memory is bounded by the bytes in flight, whatever the number or size of files: the source thread reads no further
//! while too many are, and takes results out of the mailbox instead.

mod reader;
mod recorder;
mod worker;

use crate::change::ChangeSource;
use crate::changeset::{ChangeSet, Stored};
use crate::chunking::ChunkSizes;
use crate::compression::{Effort, Policy};
use crate::error::{Error, Result};
use crate::hash::Algorithm;
use crate::known::KnownContent;
use crate::progress::{Cancel, Progress};
use crate::storage::WriteStore;
use reader::Reader;
use recorder::Recorder;
use worker::Shared;

/// Bytes read from the source at a time.
const BLOCK_SIZE: usize = 256 * 1024;
/// A file that is not cut and larger than this is deflated as a stream instead of whole in memory.
const WHOLE_FILE_MAX: u64 = 16 << 20;

/// How content becomes objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hash algorithm of new objects.
    pub algorithm: Algorithm,
    /// How new files are stored.
    pub compression: Policy,
    /// Who compresses, and how hard.
    pub effort: Effort,
    /// Chunk sizes; `None` stores every file whole.
    pub chunking: Option<ChunkSizes>,
    /// Whether new files are marked as kept on an external data server.
    pub external: bool,
    /// Bytes that a file may have; a larger one is refused before any of it is read.
    pub file_size_limit: u64,
    /// Worker threads, and threads that deflate a large file that is not cut; 0 for one a core.
    pub threads: usize,
    /// Plain bytes that may be in memory at once, but at least the largest piece; `None` for what the threads need to
    /// work side by side.
    pub max_bytes_in_flight: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            compression: Policy::default(),
            effort: Effort::default(),
            chunking: Some(ChunkSizes::default()),
            external: false,
            file_size_limit: u64::MAX,
            threads: 0,
            max_bytes_in_flight: None,
        }
    }
}

/// What went through the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Outcome {
    /// Changes from the source.
    pub changes: u64,
    /// Regular files read.
    pub files: u64,
    /// Directories put or ensured.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Hard links.
    pub hardlinks: u64,
    /// FIFOs, sockets and devices.
    pub specials: u64,
    /// Plain bytes read.
    pub bytes_read: u64,
    /// Objects that were not in the storage.
    pub objects_new: u64,
    /// Objects that were.
    pub objects_reused: u64,
    /// Stored bytes of new objects.
    pub bytes_stored: u64,
}

/// Runs a source to its end: stores content, records changes.
///
/// With a `known`-content index, pieces that are in it are not compressed again.
///
/// # Errors
/// Those of source, storage and change set; the first one ends the run. Objects that were stored stay: the next run
/// finds them.
pub fn run(
    source: &mut dyn ChangeSource,
    store: &dyn WriteStore,
    changes: &mut ChangeSet,
    known: Option<&KnownContent>,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .thread_name(|index| format!("pipeline-{index}"))
        .build()
        .map_err(|error| Error::invalid("threads", error.to_string()))?;
    let largest = usize::try_from(options.chunking.map_or(WHOLE_FILE_MAX, |sizes| sizes.max())).unwrap_or(usize::MAX);
    // One piece is being read while each thread works on one of average size.
    let useful = largest.saturating_add(pool.current_num_threads().saturating_mul(largest / 2));
    let in_flight = options.max_bytes_in_flight.unwrap_or(useful).max(largest.saturating_add(2 * BLOCK_SIZE));
    let shared = Shared::new(store, known, options, progress, in_flight);
    let mut recorder = Recorder::new(options, changes);
    let read = pool.in_place_scope(|workers| {
        let mut reader = Reader::new(source, &shared, workers, &mut recorder, cancel);
        reader.run().inspect_err(|_| shared.close())
    });
    // Whoever is asked to stop may find the input cut off.
    cancel.check()?;
    // A failed worker is why the reader stopped, if one did.
    if let Some(failed) = shared.results().into_iter().find_map(|(_, piece)| piece.err()) {
        return Err(failed);
    }
    read?;
    let Outcome { objects_new, objects_reused, bytes_stored, .. } = recorder.outcome;
    recorder.changes.add_stored(Stored { objects_new, objects_reused, bytes_stored })?;
    Ok(recorder.outcome)
}

#[cfg(test)]
mod tests;
