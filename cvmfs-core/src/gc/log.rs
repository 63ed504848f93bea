//! The list of what was removed, one object a line, in a file that grows from run to run.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Report;
use crate::clock::UnixSeconds;
use crate::error::{IoContext as _, Result};
use crate::hash::ObjectId;

/// An open list. Objects are entered before they are removed.
///
/// Source: `cvmfs/swissknife_gc.cc`, `cvmfs/garbage_collection/garbage_collector_impl.h`.
#[derive(Debug)]
pub struct DeletionLog {
    file: Mutex<File>,
    path: PathBuf,
}

impl DeletionLog {
    /// Collects with a list of what goes, if there is to be one. `collect` enters objects before they are removed.
    pub fn around<T>(
        path: Option<&Path>,
        now: UnixSeconds,
        collect: impl FnOnce(Report<'_>) -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let log = path.map(|path| Self::open(path, now)).transpose()?;
        let result = collect(&|objects| log.as_ref().map_or(Ok(()), |log| log.add(objects)))?;
        let finished = UnixSeconds(now.0.saturating_add_unsigned(started.elapsed().as_secs()));
        log.map_or(Ok(()), |log| log.finish(finished))?;
        Ok(result)
    }

    /// Opens the list in a file and notes that a run begins.
    fn open(path: &Path, now: UnixSeconds) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path).at(path)?;
        let log = Self { file: Mutex::new(file), path: path.to_owned() };
        log.write(&format!("# Garbage Collection started at {}\n", now.day_and_time()))?;
        Ok(log)
    }

    /// Enters objects.
    fn add(&self, objects: &[ObjectId]) -> Result<()> {
        let lines: String = objects.iter().map(|id| format!("{id}\n")).collect();
        self.write(&lines)
    }

    /// Notes that the run has ended.
    fn finish(self, now: UnixSeconds) -> Result<()> {
        self.write(&format!("# Garbage Collection finished at {}\n\n", now.day_and_time()))
    }

    fn write(&self, text: &str) -> Result<()> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes()).at(&self.path)
    }
}
