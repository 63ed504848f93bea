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

/// How often a taken lock is tried again.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// The exclusive right that a lock file stands for; given back when dropped.
#[derive(Debug)]
#[must_use = "dropping the lock gives it back"]
pub struct FileLock {
    _file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock, waiting at most `patience`; `None` if another process keeps it for longer.
    pub fn acquire(path: &Path, patience: Duration, cancel: &Cancel) -> Result<Option<Self>> {
        let started = Instant::now();
        loop {
            cancel.check()?;
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at(path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The holder before us may have unlinked the file that we just locked.
                Ok(()) if is_same_file(&file, path)? => return Ok(Some(Self { _file: file, path: path.to_owned() })),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if started.elapsed() < patience => thread::sleep(POLL),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(Error::io(path, error.into())),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Unlinked while still held, so that nobody locks a file that is about to go.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().at(path)?;
    Ok(fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())))
}
