//! Results in source order, into the change set.

use std::collections::VecDeque;

use super::worker::Piece;
use super::{Options, Outcome};
use crate::change::{Change, Content, Metadata, Origin};
use crate::changeset::ChangeSet;
use crate::compression::Compression;
use crate::entry::{EntryKind, FileContent, FileObjects};
use crate::error::Result;
use crate::hash::ObjectKind;
use crate::path::RepoPath;
use crate::storage::Put;

/// A change that waits for its pieces or for changes before it.
pub(super) enum Waiting {
    Ready(Change),
    File { path: RepoPath, metadata: Metadata, size: u64, pieces: Vec<Piece>, expected: Option<usize> },
}

/// Puts results into source order.
pub(super) struct Recorder<'a> {
    options: &'a Options,
    pub(super) changes: &'a mut ChangeSet,
    /// The number of the first change that waits; the others follow.
    next: u64,
    waiting: VecDeque<(Option<Origin>, Waiting)>,
    pub(super) outcome: Outcome,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(options: &'a Options, changes: &'a mut ChangeSet) -> Self {
        Self { options, changes, next: 0, waiting: VecDeque::new(), outcome: Outcome::default() }
    }

    /// Number of changes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes in the next change.
    pub(super) fn add(&mut self, origin: Option<Origin>, waiting: Waiting) -> Result<()> {
        self.waiting.push_back((origin, waiting));
        self.record_complete()
    }

    /// Learns how many pieces a file has.
    pub(super) fn expect(&mut self, number: u64, count: usize) -> Result<()> {
        if let Some(Waiting::File { expected, .. }) = self.get(number) {
            *expected = Some(count);
        }
        self.record_complete()
    }

    /// Takes in stored pieces; fails if one could not be stored.
    pub(super) fn take(&mut self, results: Vec<(u64, Result<Piece>)>) -> Result<()> {
        for (number, piece) in results {
            let piece = piece?;
            match piece.put {
                Put::New => {
                    self.outcome.objects_new += 1;
                    self.outcome.bytes_stored += piece.stored_size;
                }
                Put::Present => self.outcome.objects_reused += 1,
            }
            if let Some(Waiting::File { pieces, .. }) = self.get(number) {
                pieces.push(piece);
            }
        }
        self.record_complete()
    }

    fn get(&mut self, number: u64) -> Option<&mut Waiting> {
        let index = usize::try_from(number.checked_sub(self.next)?).ok()?;
        self.waiting.get_mut(index).map(|(_, waiting)| waiting)
    }

    /// Records what is complete and not waiting for anything before it.
    fn record_complete(&mut self) -> Result<()> {
        while self.waiting.front().is_some_and(|(_, first)| first.is_complete())
            && let Some((origin, waiting)) = self.waiting.pop_front()
        {
            self.next += 1;
            self.changes.set_origin(origin.as_ref())?;
            self.record(waiting)?;
        }
        Ok(())
    }

    fn record(&mut self, waiting: Waiting) -> Result<()> {
        self.outcome.changes += 1;
        match waiting {
            Waiting::Ready(change) => {
                match &change {
                    Change::Put { content: Content::Directory, .. } | Change::Ensure { .. } => {
                        self.outcome.directories += 1;
                    }
                    Change::Put { content: Content::Symlink { .. }, .. } => self.outcome.symlinks += 1,
                    Change::Put { content: Content::Special(_), .. } => self.outcome.specials += 1,
                    Change::Put { .. } => self.outcome.files += 1,
                    Change::Link { .. } => self.outcome.hardlinks += 1,
                    Change::Remove { .. } | Change::Clear { .. } | Change::Whiteout { .. } | Change::Opaque { .. } => {}
                }
                self.changes.record(change)
            }
            Waiting::File { path, metadata, size, mut pieces, .. } => {
                self.outcome.files += 1;
                self.outcome.bytes_read += size;
                pieces.sort_by_key(|piece| piece.chunk.offset);
                let objects = match &pieces[..] {
                    [piece] if piece.kind == ObjectKind::File => FileObjects::Whole(piece.chunk.hash),
                    _ => FileObjects::Chunked { chunks: pieces.iter().map(|piece| piece.chunk).collect(), bulk: None },
                };
                let compression = pieces.first().map_or_else(Compression::default, |piece| piece.compression);
                let external = self.options.external;
                let file = FileContent { size, compression, objects, external, direct_io: false };
                self.changes.put(&path, &metadata.into_entry(EntryKind::File(file)))
            }
        }
    }
}

impl Waiting {
    fn is_complete(&self) -> bool {
        match self {
            Self::Ready(_) => true,
            Self::File { pieces, expected, .. } => *expected == Some(pieces.len()),
        }
    }
}
