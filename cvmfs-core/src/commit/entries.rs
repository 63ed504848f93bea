//! How many entries a commit adds, changes and removes, by type.
//!
//! What comes and what changes is counted as it is written. What goes is not: whole trees go at once. It follows from the
//! counters of the tree before and after.

use crate::catalog::Counters;
use crate::entry::{Entry, EntryKind};

/// Numbers of changed entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Entries {
    /// Paths that were not there.
    pub added: u64,
    /// Paths whose entry changed.
    pub changed: u64,
    /// Paths that went.
    pub removed: u64,
    /// Regular files among them; a path that changed its type went and came.
    pub files: Tally,
    /// Directories among them.
    pub directories: Tally,
    /// Symbolic links among them.
    pub symlinks: Tally,
    /// FIFOs, sockets and devices among them.
    pub specials: Tally,
    /// Plain bytes of files that came, and of those that changed.
    pub bytes_added: u64,
    /// Plain bytes of files that went, and of those that changed, before.
    pub bytes_removed: u64,
}

/// Numbers of changed entries of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Tally {
    /// Those that came.
    pub added: u64,
    /// Those that changed and kept their type.
    pub changed: u64,
    /// Those that went.
    pub removed: u64,
}

impl Entries {
    /// Counts an entry that came, or takes the place of one of another type.
    fn came(&mut self, entry: &Entry) {
        self.tally(entry).added += 1;
        self.bytes_added += file_size(entry);
    }

    /// Counts an entry that was not there.
    pub(super) fn add(&mut self, entry: &Entry) {
        self.added += 1;
        self.came(entry);
    }

    /// Counts an entry that takes the place of another one.
    pub(super) fn change(&mut self, old: &Entry, new: &Entry) {
        self.changed += 1;
        if std::mem::discriminant(&old.kind) == std::mem::discriminant(&new.kind) {
            self.tally(new).changed += 1;
            self.bytes_added += file_size(new);
        } else {
            self.came(new);
        }
    }

    fn tally(&mut self, entry: &Entry) -> &mut Tally {
        match entry.kind {
            EntryKind::Directory(_) => &mut self.directories,
            EntryKind::File(_) => &mut self.files,
            EntryKind::Symlink { .. } => &mut self.symlinks,
            EntryKind::Special(_) => &mut self.specials,
        }
    }

    /// Counts what went: what was there and what came, less what is there.
    pub(super) fn settle(&mut self, before: Counters, after: Counters) {
        let went = |before: u64, came: u64, after: u64| (before + came).saturating_sub(after);
        // Directories with a nested catalog count in both catalogs.
        let directories = |counters: Counters| counters.directory.saturating_sub(counters.nested);
        let entries = |counters: Counters| counters.entries().saturating_sub(counters.nested);
        self.files.removed = went(before.regular, self.files.added, after.regular);
        self.directories.removed = went(directories(before), self.directories.added, directories(after));
        self.symlinks.removed = went(before.symlink, self.symlinks.added, after.symlink);
        self.specials.removed = went(before.special, self.specials.added, after.special);
        self.removed = went(entries(before), self.added, entries(after));
        self.bytes_removed = went(before.file_size, self.bytes_added, after.file_size);
    }
}

fn file_size(entry: &Entry) -> u64 {
    match &entry.kind {
        EntryKind::File(file) => file.size,
        _ => 0,
    }
}
