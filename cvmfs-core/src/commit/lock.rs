//! One publisher at a time: the reference's lock file.
//!
//! Source: `cvmfs/server/cvmfs_server_util.sh`, `cvmfs/util/posix.cc` (`flock` on a file that is unlinked on release).

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
pub(super) fn wait_for<T>(
    patience: Duration,
    cancel: &Cancel,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        cancel.check()?;
        let found = attempt()?;
        if found.is_some() || Instant::now() >= deadline {
            return Ok(found);
        }
        thread::sleep(POLL);
    }
}

/// Locks a file, which is made if it does not exist; `None` if somebody else holds it. Dropping the file gives it back.
pub(super) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::io(path, error.into())),
    }
}

/// The exclusive right to change the head of a repository on this machine; given back when dropped.
#[derive(Debug)]
#[must_use = "dropping the lock gives it back"]
pub struct PublishLock {
    _file: File,
    path: PathBuf,
}

impl PublishLock {
    /// Takes the lock in the repository's spool directory, waiting at most `patience`.
    ///
    /// # Errors
    /// `Conflict` if another process keeps the lock, or if the reference's tools have a transaction open: its publish
    /// would overwrite ours.
    pub fn acquire(spool: &Path, patience: Duration, cancel: &Cancel) -> Result<Self> {
        let path = spool.join("is_publishing.lock");
        let file = wait_for(patience, cancel, || {
            // The holder before us may have unlinked the file that we just locked.
            Ok(match try_lock(&path)? {
                Some(file) if is_same_file(&file, &path)? => Some(file),
                _ => None,
            })
        })?;
        let file = file.ok_or_else(|| Error::conflict(path.display().to_string(), "another process is publishing"))?;
        let lock = Self { _file: file, path };
        refuse_foreign_transaction(spool)?;
        Ok(lock)
    }
}

impl Drop for PublishLock {
    fn drop(&mut self) {
        // Unlinked while still held, so that nobody locks a file that is about to go.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().at(path)?;
    Ok(fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())))
}

fn refuse_foreign_transaction(spool: &Path) -> Result<()> {
    let marker = spool.join("in_transaction.lock");
    if marker.exists() {
        let reason = "a transaction of cvmfs_server is open; publish or abort it first";
        return Err(Error::conflict(marker.display().to_string(), reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it_and_the_next_gets_it() {
        let spool = tempfile::tempdir().unwrap();
        let acquire = |patience| PublishLock::acquire(spool.path(), patience, &Cancel::new());
        let first = acquire(Duration::ZERO).unwrap();
        assert!(matches!(acquire(Duration::from_millis(50)), Err(Error::Conflict { .. })));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| acquire(Duration::from_secs(10)).map(drop));
            thread::sleep(Duration::from_millis(60));
            drop(first);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_open_transaction_of_the_reference_is_respected() {
        let spool = tempfile::tempdir().unwrap();
        fs::write(spool.path().join("in_transaction.lock"), "").unwrap();
        assert!(matches!(
            PublishLock::acquire(spool.path(), Duration::ZERO, &Cancel::new()),
            Err(Error::Conflict { .. })
        ));
    }
}
