//! Change sets under construction, in the spool directory.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use crate::changeset::ChangeSet;
use crate::error::{IoContext as _, Result};
use crate::hash::ContentHash;
use crate::unique::unique_name;

/// A change set whose file goes away with the value.
#[derive(Debug)]
pub struct OpenChangeSet {
    changes: ChangeSet,
    path: PathBuf,
}

impl OpenChangeSet {
    pub(super) fn create(directory: &Path, base: ContentHash) -> Result<Self> {
        fs::create_dir_all(directory).at(directory)?;
        let path = directory.join(unique_name());
        Ok(Self { changes: ChangeSet::create(&path, base)?, path })
    }
}

impl Deref for OpenChangeSet {
    type Target = ChangeSet;

    fn deref(&self) -> &ChangeSet {
        &self.changes
    }
}

impl DerefMut for OpenChangeSet {
    fn deref_mut(&mut self) -> &mut ChangeSet {
        &mut self.changes
    }
}

impl Drop for OpenChangeSet {
    fn drop(&mut self) {
        remove_files(&self.path);
    }
}

/// Removes the database and the files that SQLite keeps beside it.
fn remove_files(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.to_owned().into_os_string();
        file.push(suffix);
        // Absent is as good as removed.
        let _ = fs::remove_file(file);
    }
}
