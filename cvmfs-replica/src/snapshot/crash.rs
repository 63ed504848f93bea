//! After a crash of the machine: what an unfinished run wrote may be damaged.
//!
//! Objects are not flushed one by one. While a run is unfinished, a note in the spool directory says when it began, and
//! under which boot of the system. If the next run finds the note of another boot, objects that are younger than the
//! note are hashed, and damaged ones removed, before any is believed. In a client's cache, where a hash cannot be told, all
//! of them go.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{IoContext as _, Result};
use cvmfs_core::progress::Cancel;
use cvmfs_core::storage::WriteStore;

/// Changes with every start of the system.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The note of a run that is not finished.
#[derive(Debug)]
#[must_use = "the note stays until the run says that it ended"]
pub(crate) struct Unfinished(PathBuf);

/// Notes that a run begins, after dealing with what one before a crash left behind.
///
/// After a crash `forget` is called first, for what is known of objects that may go though they are not damaged.
pub(crate) fn begin(
    spool: &Path,
    store: &dyn WriteStore,
    forget: impl FnOnce() -> Result<()>,
    cancel: &Cancel,
) -> Result<Unfinished> {
    let note = spool.join("unfinished");
    // Where the system does not say, no crash is seen.
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    match fs::read_to_string(&note) {
        // The note of a run that was killed covers this one as well.
        Ok(text) if text == boot => {}
        Ok(_) => {
            let began = UnixSeconds(fs::metadata(&note).at(&note)?.mtime());
            forget()?;
            let removed = store.discard_damaged(began, cancel)?;
            if removed > 0 {
                tracing::warn!(removed, "removed objects that were damaged when the system went down");
            }
            write_durably(&note, &boot)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => write_durably(&note, &boot)?,
        Err(error) => return Err(cvmfs_core::error::Error::io(&note, error)),
    }
    Ok(Unfinished(note))
}

fn write_durably(note: &Path, boot: &str) -> Result<()> {
    let mut file = File::create(note).at(note)?;
    file.write_all(boot.as_bytes()).and_then(|()| file.sync_all()).at(note)
}

impl Unfinished {
    /// Notes that the run has ended and all that it wrote is durable.
    pub(crate) fn end(self) -> Result<()> {
        fs::remove_file(&self.0).at(&self.0)
    }
}
