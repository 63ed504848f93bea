//! Limits on catalogs, checked before content is stored.
//!
//! How many entries a catalog will have depends on all changes, and on markers and rules that any of them may bring. So
//! the source is read twice: once without its content, into a change set that is committed in a rehearsal and taken back.
//! A source that can be read only once is refused as soon as one of its directories is too large: no marker splits the
//! entries of one directory. Edits have no content: they are rehearsed as they are, so that no catalog is stored in vain.
//! In any case the commit checks the catalogs that it makes.

use std::io;

use super::{Draft, Options};
use crate::change::{Change, ChangeSource, Content, Origin};
use crate::changeset::ChangeSet;
use crate::commit;
use crate::compression::Compression;
use crate::dirtab;
use crate::entry::{FileContent, FileObjects};
use crate::error::Result;
use crate::hash::Algorithm;
use crate::path::RepoPath;
use crate::pipeline;
use crate::progress::{Cancel, Silent};
use crate::storage::WriteStore;

/// Refuses a source that would exceed a limit, as far as that can be known before its content is read.
pub(super) fn survey(
    draft: &mut Draft<'_>,
    source: &dyn ChangeSource,
    options: &Options,
    cancel: &Cancel,
) -> Result<()> {
    let nesting = &draft.publisher.config.nesting;
    let preview = if can_rehearse(draft)? { source.preview()? } else { None };
    let Some(preview) = preview else {
        draft.changes().limit_directories(nesting.root_limit, nesting.nested_limit.max(nesting.root_limit));
        return Ok(());
    };
    let rules = RepoPath::root().child(dirtab::NAME)?;
    let mut preview = WithoutContent { source: preview, algorithm: options.pipeline.algorithm, rules };
    rehearse(draft, options.commit.threads, cancel, |changes, store| {
        pipeline::run(&mut preview, store, changes, None, &options.pipeline, &Silent, cancel)?;
        options.catalogs.iter().try_for_each(|path| changes.want_catalog(path))
    })
}

/// Refuses changes that are recorded, and have no content, if they would exceed a limit.
pub(super) fn check(draft: &mut Draft<'_>, threads: usize, cancel: &Cancel) -> Result<()> {
    if can_rehearse(draft)? { rehearse(draft, threads, cancel, |_, _| Ok(())) } else { Ok(()) }
}

/// What becomes of a branch cannot be rehearsed.
fn can_rehearse(draft: &Draft<'_>) -> Result<bool> {
    Ok(draft.publisher.checkout()?.is_none())
}

/// Commits the changes, with those that `more` adds, in a rehearsal, and takes these back.
fn rehearse(
    draft: &mut Draft<'_>,
    threads: usize,
    cancel: &Cancel,
    more: impl FnOnce(&mut ChangeSet, &dyn WriteStore) -> Result<()>,
) -> Result<()> {
    let now = draft.now;
    let rehearsal = draft.publisher.rehearsal(now)?;
    draft.changes().undo_after(|changes| {
        more(changes, &*rehearsal.store)?;
        let options = commit::Options { threads, ..commit::Options::new(now) };
        rehearsal.commit(changes, &options, &Silent, cancel).map(drop)
    })
}

/// Changes whose files are not read, but for the one that decides what becomes a catalog.
struct WithoutContent {
    source: Box<dyn ChangeSource>,
    algorithm: Algorithm,
    rules: RepoPath,
}

impl ChangeSource for WithoutContent {
    fn next(&mut self) -> Result<Option<Change>> {
        Ok(match self.source.next()? {
            Some(Change::Put { path, metadata, content: Content::Read { size } }) if path != self.rules => {
                let objects = FileObjects::Whole(self.algorithm.hash(b""));
                let compression = Compression::default();
                let file = FileContent { size, compression, objects, external: false, direct_io: false };
                Some(Change::Put { path, metadata, content: Content::Stored(file) })
            }
            other => other,
        })
    }

    fn origin(&self) -> Option<Origin> {
        self.source.origin()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer)
    }
}
