//! What goes on in a repository, as its spool directory shows.

use std::path::Path;

use super::lock::foreign_transaction;
use super::transaction::is_being_added_to;
use super::{About, Checkout};
use crate::changeset;
use crate::error::{Error, Result};

/// What goes on in a repository on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    /// The open transaction.
    pub transaction: Option<About>,
    /// Whether the reference's tools have a transaction open.
    pub foreign_transaction: bool,
    /// What is checked out.
    pub checkout: Option<Checkout>,
}

impl Activity {
    /// Looks at a spool directory; nothing goes on in one that does not exist.
    ///
    /// # Errors
    /// `Malformed` for files that cannot be understood.
    pub fn of(spool: &Path) -> Result<Self> {
        Ok(Self {
            transaction: About::read(spool)?,
            foreign_transaction: foreign_transaction(spool).is_some(),
            checkout: Checkout::read(spool)?,
        })
    }

    /// Finds out whether a command is at work that will publish, or adds to the open transaction.
    ///
    /// # Errors
    /// `Conflict` if there is one.
    pub fn refuse_work(spool: &Path) -> Result<()> {
        let at_work = |what: &Path| Err(Error::conflict(what.display().to_string(), "a command is at work on it"));
        if let Some(lock) = is_being_added_to(spool)? {
            return at_work(&lock);
        }
        match changeset::change_sets(spool)?.iter().find(|file| changeset::is_in_use(file)) {
            Some(file) => at_work(file),
            None => Ok(()),
        }
    }
}
