//! Checks of a replica: its own storage and reflog, and what it selects of the repository.

use cvmfs_core::check::Subject;
use cvmfs_core::error::Result;

use crate::replica::Replica;

/// Works on what there is to check of a replica.
///
/// # Errors
/// `NotFound` if it has no storage or no key; those of the work.
pub fn with_subject<T>(replica: &Replica, work: impl FnOnce(&Subject<'_>) -> Result<T>) -> Result<T> {
    let master_keys = replica.master_keys()?;
    work(&Subject {
        store: replica.storage.open()?,
        spool: &replica.spool,
        name: &replica.name,
        master_keys: &master_keys,
        is_replica: true,
        has_catalog: &|path| replica.selection.has_path(path),
    })
}
