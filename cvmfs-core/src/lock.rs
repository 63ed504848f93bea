//! Lock files as the reference uses them: `flock` on a file that is unlinked on release.
//!
//! Source: `cvmfs/server/cvmfs_server_util.sh`, `cvmfs/util/posix.cc`.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, IoContext as _, Result};
use crate::progress::Cancel;

/// How often what others hold is tried again.
const POLL: Duration = Duration::from_millis(20);

/// Tries again and again until something is there; `None` if that takes longer than `patience`.
///
/// # Errors
/// Those of trying; `Cancelled` if somebody asks to stop.
pub(crate) fn wait_for<T>(
    patience: Duration,
    cancel: &Cancel,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let started = Instant::now();
    loop {
        cancel.check()?;
        let found = attempt()?;
        if found.is_some() || started.elapsed() >= patience {
            return Ok(found);
        }
        thread::sleep(POLL);
    }
}

/// Locks a file, which is made if it does not exist; `None` if somebody else holds it. Dropping the file gives it back.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    try_flock(path, FlockOperation::NonBlockingLockExclusive)
}

fn try_flock(path: &Path, operation: FlockOperation) -> Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at(path)?;
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::io(path, error.into())),
    }
}

/// The right that a lock file stands for; given back when dropped.
#[derive(Debug)]
#[must_use = "dropping the lock gives it back"]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock, waiting at most `patience`; `None` if another process keeps it for longer.
    pub fn acquire(path: &Path, patience: Duration, cancel: &Cancel) -> Result<Option<Self>> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive, patience, cancel)
    }

    /// Takes the lock together with others who do so, waiting at most `patience` for whoever has it alone.
    pub fn share(path: &Path, patience: Duration, cancel: &Cancel) -> Result<Option<Self>> {
        Self::take(path, FlockOperation::NonBlockingLockShared, patience, cancel)
    }

    fn take(path: &Path, operation: FlockOperation, patience: Duration, cancel: &Cancel) -> Result<Option<Self>> {
        let file = wait_for(patience, cancel, || {
            // The holder before us may have unlinked the file that we just locked.
            Ok(match try_flock(path, operation)? {
                Some(file) if is_same_file(&file, path)? => Some(file),
                _ => None,
            })
        })?;
        Ok(file.map(|file| Self { file, path: path.to_owned() }))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Unlinked while still held, so that nobody locks a file that is about to go; of those who share it by the last.
        if rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_same_file(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().at(path)?;
    Ok(fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_shared_or_held_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let cancel = Cancel::new();
        let alone = || FileLock::acquire(&path, Duration::ZERO, &cancel).unwrap();
        let shared = || FileLock::share(&path, Duration::ZERO, &cancel).unwrap();
        let (first, second) = (shared().unwrap(), shared().unwrap());
        assert!(alone().is_none());
        drop(first);
        assert!(alone().is_none());
        drop(second);
        assert!(!path.exists());
        let held = alone().unwrap();
        assert!(shared().is_none());
        drop(held);
        assert!(!path.exists());
    }
}
