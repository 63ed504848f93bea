//! One publisher at a time: the reference's lock file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::progress::Cancel;

/// The exclusive right to change the head of a repository on this machine; given back when dropped.
#[derive(Debug)]
#[must_use = "dropping the lock gives it back"]
pub struct PublishLock {
    _lock: FileLock,
}

impl PublishLock {
    /// Takes the lock in the repository's spool directory, waiting at most `patience`.
    ///
    /// # Errors
    /// `Conflict` if another process keeps the lock, or if the reference's tools have a transaction open: its publish
    /// would overwrite ours.
    pub fn acquire(spool: &Path, patience: Duration, cancel: &Cancel) -> Result<Self> {
        let path = spool.join("is_publishing.lock");
        let lock = FileLock::acquire(&path, patience, cancel)?
            .ok_or_else(|| Error::conflict(path.display().to_string(), "another process is publishing"))?;
        refuse_foreign_transaction(spool)?;
        Ok(Self { _lock: lock })
    }
}

/// # Errors
/// `Conflict` if the reference's tools have a transaction open.
pub(crate) fn refuse_foreign_transaction(spool: &Path) -> Result<()> {
    if let Some(marker) = foreign_transaction(spool) {
        let reason = "a transaction of cvmfs_server is open; publish or abort it first";
        return Err(Error::conflict(marker.display().to_string(), reason));
    }
    Ok(())
}

/// The reference's sign that its tools have a transaction open.
pub(super) fn foreign_transaction(spool: &Path) -> Option<PathBuf> {
    let marker = spool.join("in_transaction.lock");
    marker.exists().then_some(marker)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

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
