//! Rehearsals: a publisher that changes nothing.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Publisher;
use crate::clock::UnixSeconds;
use crate::diff::{self, Difference, Side, Summary};
use crate::error::{IoContext as _, Result};
use crate::hash::ContentHash;
use crate::repository::Selector;
use crate::storage::{LayeredStore, LocalStore};
use crate::tree::Tree;
use crate::unique::unique_name;

/// A publisher that does everything as the real one, down to the signed manifest, but on top of the repository instead
/// of in it. What it stores is in the spool directory until the value goes away.
#[derive(Debug)]
pub struct Rehearsal {
    publisher: Publisher,
    directory: PathBuf,
    /// The root catalog that the repository had in the beginning.
    base: ContentHash,
}

impl Rehearsal {
    pub(super) fn of(publisher: &Publisher, now: UnixSeconds) -> Result<Self> {
        publisher.refuse_checkout("what would become of it cannot be shown now")?;
        let base = publisher.head(now)?.manifest().root_catalog;
        let directory = publisher.scratch()?.join(unique_name());
        let spool = directory.join("spool");
        fs::create_dir_all(&spool).at(&spool)?;
        // From here on the directory goes away whatever happens.
        let mut rehearsal = Self { publisher: publisher.clone(), directory, base };
        rehearsal.publisher.config.notification_server = None;
        rehearsal.publisher.config.statistics.path = spool.join("stats.db");
        rehearsal.publisher.config.spool.clone_from(&spool);
        let upper = LocalStore::create(rehearsal.directory.join("storage"))?;
        rehearsal.publisher.store = Arc::new(LayeredStore::new(upper, publisher.read_store()));
        let (current, intended) = publisher.reflog().checksum_files();
        for file in [current, intended] {
            copy_if_there(&file, &spool)?;
        }
        Ok(rehearsal)
    }

    /// Calls `visit` with everything that is different now, in tree order.
    pub fn differences(&self, now: UnixSeconds, visit: &mut dyn FnMut(&Difference) -> Result<()>) -> Result<Summary> {
        let mut before = Tree::new(self.read_store(), self.base, &self.scratch()?);
        let mut after = self.head(now)?.tree(&Selector::Head)?;
        let mut summary = Summary::default();
        diff::diff(Side::whole(&mut before), Side::whole(&mut after), diff::Options::default(), &mut |difference| {
            summary.add(&difference);
            visit(&difference)
        })?;
        Ok(summary)
    }
}

fn copy_if_there(file: &Path, directory: &Path) -> Result<()> {
    let name = file.file_name().unwrap_or_default();
    match fs::copy(file, directory.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(file),
        _ => Ok(()),
    }
}

impl Deref for Rehearsal {
    type Target = Publisher;

    fn deref(&self) -> &Publisher {
        &self.publisher
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        // What cannot be removed now is removed with what other runs leave behind.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
