//! The row of a publication in the statistics database.

use super::{Options, Outcome};
use crate::changeset::Stored;
use crate::error::Result;
use crate::statistics::{Run, StatisticsFile, Table};

/// Adds the row of a publication.
///
/// # Errors
/// `InvalidInput` if the file belongs to another repository, `Database` if it cannot be written.
pub(super) fn record(file: &StatisticsFile, options: &Options, outcome: &Outcome, stored: Stored) -> Result<()> {
    let entries = outcome.entries;
    let (files, directories, symlinks) = (entries.files, entries.directories, entries.symlinks);
    let numbers = [
        outcome.revision,
        files.added,
        files.removed,
        files.changed,
        stored.objects_new,
        stored.objects_reused,
        outcome.catalogs,
        directories.added,
        directories.removed,
        directories.changed,
        symlinks.added,
        symlinks.removed,
        symlinks.changed,
        entries.bytes_added,
        entries.bytes_removed,
        stored.bytes_stored,
        outcome.catalog_bytes,
        1,
    ];
    file.add(Table::Publications, Run { start: options.now, took: options.started.elapsed() }, &numbers)
}
