//! Open transactions: changes of several commands that become one revision, or none.
//!
//! ```text
//! spool/<fqrn>/transaction/about.json   who opened it, and when
//!                          changes.db   the change set
//!                          lock         held while a command adds changes, publishes or aborts
//! ```
//!
//! An open transaction takes no lock that others want: other publishers go on, and the change set is applied to the
//! head of the moment when it is published. What one command adds is there as a whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Options, Outcome, Publisher, Rehearsal};
use crate::changeset::{ChangeSet, Needs, needs};
use crate::clock::UnixSeconds;
use crate::durable;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::DIGEST_SIZE;
use crate::lock::{try_lock, wait_for};
use crate::progress::{Cancel, Progress, Silent};
use crate::unique::unique_name;

/// What is known of an open transaction without looking at its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// When it was opened, in seconds since 1970.
    pub opened: i64,
    /// Who opened it, in words.
    pub opened_by: String,
    /// The revision that was the head then.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
}

impl About {
    /// What is known of the transaction that is open in a spool directory, if there is one.
    pub fn read(spool: &Path) -> Result<Option<Self>> {
        let file = directory_in(spool).join("about.json");
        match fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            bytes => {
                let about = serde_json::from_slice(&bytes.at(&file)?);
                about.map(Some).map_err(|error| Error::malformed(file.display().to_string(), error.to_string()))
            }
        }
    }
}

/// The exclusive right to add to an open transaction, to publish or to abort it.
///
/// Dropping the value drops what was added since it was taken.
#[derive(Debug)]
pub struct Transaction<'a> {
    publisher: &'a Publisher,
    about: About,
    changes: ChangeSet,
    _lock: File,
}

impl Publisher {
    fn transaction_directory(&self) -> PathBuf {
        directory_in(&self.config.spool)
    }

    /// Opens a transaction; waits at most `patience` for another one to end.
    ///
    /// # Errors
    /// `Conflict` if there is another one; those of [`Publisher::head`].
    pub fn open_transaction(
        &self,
        now: UnixSeconds,
        opened_by: String,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<About> {
        let nothing_open = || Ok(self.transaction()?.is_none().then_some(()));
        if wait_for(patience, cancel, nothing_open)?.is_none()
            && let Some(about) = self.transaction()?
        {
            return Err(already_open(&about));
        }
        let head = self.head(now)?;
        let manifest = head.manifest();
        let base = self.base(&head)?.0.root();
        let root_hash = base.to_string();
        let about = About { opened: now.0, opened_by, revision: manifest.revision, root_hash };

        let directory = self.scratch()?.join(unique_name());
        fs::create_dir(&directory).at(&directory)?;
        ChangeSet::create(&changes_in(&directory), base)?.close_durably()?;
        durable::replace(
            &directory.join("about.json"),
            &serde_json::to_vec(&about).map_err(|error| not_written(&error))?,
        )?;
        durable::replace(&directory.join("lock"), b"")?;
        let place = self.transaction_directory();
        match rustix::fs::rename(&directory, &place) {
            Ok(()) => durable::sync_directory(&self.config.spool)?,
            // Somebody else was faster.
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                fs::remove_dir_all(&directory).at(&directory)?;
                let damaged = || Error::conflict(place.display().to_string(), "it is damaged; abort it first");
                return Err(self.transaction()?.map_or_else(damaged, |about| already_open(&about)));
            }
            Err(error) => return Err(Error::io(place, error.into())),
        }
        Ok(about)
    }

    /// The open transaction, if there is one.
    pub fn transaction(&self) -> Result<Option<About>> {
        About::read(&self.config.spool)
    }

    /// Joins the open transaction; waits at most `patience` for another command that adds to it.
    ///
    /// # Errors
    /// `NotFound` if none is open, `Conflict` if another command goes on for too long.
    pub fn join_transaction(&self, patience: Duration, cancel: &Cancel) -> Result<Transaction<'_>> {
        let directory = self.transaction_directory();
        let Some(about) = self.transaction()? else {
            let damaged = Error::malformed(directory.display().to_string(), "about.json is missing");
            return Err(if directory.exists() { damaged } else { none_open() });
        };
        let lock = lock(&directory, patience, cancel)?;
        // Whoever held the lock may have ended the transaction.
        if self.transaction()?.as_ref() != Some(&about) {
            return Err(gone(&directory));
        }
        let changes = ChangeSet::open(&changes_in(&directory))?;
        Ok(Transaction { publisher: self, about, changes, _lock: lock })
    }

    /// Ends the open transaction without any effect, also one whose files are damaged.
    ///
    /// # Errors
    /// `NotFound` if none is open, `Conflict` if another command adds to it for too long.
    pub fn abort_transaction(&self, patience: Duration, cancel: &Cancel) -> Result<()> {
        let directory = self.transaction_directory();
        if !directory.exists() {
            return Err(none_open());
        }
        let _lock = lock(&directory, patience, cancel)?;
        self.remove_transaction()
    }

    /// Takes the right to the open transaction, as [`join_transaction`](Self::join_transaction), only to look what it
    /// needs of the storage; `None` if none is open.
    pub(crate) fn transaction_needs(
        &self,
        patience: Duration,
        cancel: &Cancel,
        visit: &mut dyn FnMut(&[u8; DIGEST_SIZE]) -> Result<()>,
    ) -> Result<Option<Needs>> {
        let directory = self.transaction_directory();
        if !directory.exists() {
            return Ok(None);
        }
        let _lock = match lock(&directory, patience, cancel) {
            Err(_) if !directory.exists() => return Ok(None),
            lock => lock?,
        };
        let changes = changes_in(&directory);
        // Whoever held the lock may have ended the transaction.
        if changes.exists() { needs(&changes, visit).map(Some) } else { Ok(None) }
    }

    fn remove_transaction(&self) -> Result<()> {
        let (place, remains) = (self.transaction_directory(), self.scratch()?.join(unique_name()));
        fs::rename(&place, &remains).at(&place)?;
        durable::sync_directory(&self.config.spool)?;
        fs::remove_dir_all(&remains).at(&remains)
    }
}

impl Transaction<'_> {
    /// What is known of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The changes so far.
    pub fn changes(&self) -> &ChangeSet {
        &self.changes
    }

    /// The changes, to add more.
    pub fn changes_mut(&mut self) -> &mut ChangeSet {
        &mut self.changes
    }

    /// The repository as it would be if the transaction were published now.
    pub fn rehearse(&mut self, now: UnixSeconds) -> Result<Rehearsal> {
        let rehearsal = self.publisher.rehearsal(now)?;
        self.changes.undo_after(|changes| {
            rehearsal.commit(
                changes,
                &Options { patience: Duration::ZERO, ..Options::new(now) },
                &Silent,
                &Cancel::new(),
            )
        })?;
        Ok(rehearsal)
    }

    /// Keeps what was added; from here on it survives everything, the end of the machine's power included.
    pub fn keep(self) -> Result<()> {
        self.publisher.store.flush()?;
        self.changes.close_durably()
    }

    /// Makes the changes one revision. If that fails, the transaction stays open as it was.
    pub fn publish(mut self, options: &Options, progress: &dyn Progress, cancel: &Cancel) -> Result<Outcome> {
        let mut outcome = self.publisher.commit(&mut self.changes, options, progress, cancel)?;
        // The revision is out: nothing may fail any more.
        let removed = self.publisher.remove_transaction();
        outcome
            .warnings
            .extend(removed.err().map(|error| format!("the transaction is still there, abort it: {error}")));
        Ok(outcome)
    }
}

/// Waits for the exclusive right to a transaction; a file that is dropped gives it back.
fn lock(directory: &Path, patience: Duration, cancel: &Cancel) -> Result<File> {
    let lock = wait_for(patience, cancel, || try_lock(&directory.join("lock")))?;
    lock.ok_or_else(|| Error::conflict("the open transaction", "another command is adding to it"))
}

/// The lock of the open transaction, if a command holds it.
pub(super) fn is_being_added_to(spool: &Path) -> Result<Option<PathBuf>> {
    let lock = directory_in(spool).join("lock");
    if !lock.exists() {
        return Ok(None);
    }
    Ok(if try_lock(&lock)?.is_none() { Some(lock) } else { None })
}

fn directory_in(spool: &Path) -> PathBuf {
    spool.join("transaction")
}

fn changes_in(directory: &Path) -> PathBuf {
    directory.join("changes.db")
}

fn not_written(error: &serde_json::Error) -> Error {
    Error::invalid("JSON", error.to_string())
}

fn already_open(about: &About) -> Error {
    let opened = UnixSeconds(about.opened).iso();
    Error::conflict("transaction", format!("{} opened one at {opened}; publish or abort it first", about.opened_by))
}

fn none_open() -> Error {
    Error::not_found("an open transaction")
}

fn gone(place: &Path) -> Error {
    Error::conflict(place.display().to_string(), "the transaction has just ended")
}
