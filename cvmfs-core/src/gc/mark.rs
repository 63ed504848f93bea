//! What the retained revisions reach: every catalog is opened once, on several threads.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;

use super::Place;
use super::records::Reached;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::hash::ContentHash;
use crate::parallel::work_off;
use crate::progress::{Cancel, Progress};
use crate::storage::ReadStore;

/// Walks trees and remembers which catalogs it has seen.
pub(super) struct Marker<'a> {
    place: &'a dyn Place,
    store: Arc<dyn ReadStore>,
    scratch: PathBuf,
    pool: &'a ThreadPool,
    walked: Mutex<HashSet<ContentHash>>,
}

impl<'a> Marker<'a> {
    pub(super) fn new(place: &'a dyn Place, scratch: PathBuf, pool: &'a ThreadPool) -> Self {
        let store = place.store() as Arc<dyn ReadStore>;
        Self { place, store, scratch, pool, walked: Mutex::default() }
    }

    /// All catalogs that were seen.
    pub(super) fn walked(&self) -> MutexGuard<'_, HashSet<ContentHash>> {
        self.walked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters everything that root catalogs reach, themselves included, and that was not entered before.
    ///
    /// # Errors
    /// That of the first catalog that cannot be read: without it nobody knows what is needed.
    pub(super) fn mark(
        &self,
        roots: &[ContentHash],
        reached: &Reached,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let fresh: Vec<ContentHash> = {
            let mut walked = self.walked();
            roots.iter().copied().filter(|root| walked.insert(*root)).collect()
        };
        work_off(self.pool, fresh, |hash, more| {
            cancel.check()?;
            let catalog = Catalog::fetch(&*self.store, hash, &self.scratch)?;
            let mut writer = reached.writer();
            writer.add(hash.digest())?;
            catalog.objects(None, &mut |object| writer.add(object.id.hash.digest()))?;
            drop(writer);
            let nested = catalog.nested()?;
            let mut walked = self.walked();
            let wanted = nested.iter().filter(|nested| self.place.has_catalog(&nested.path));
            more.extend(wanted.map(|nested| nested.hash).filter(|hash| walked.insert(*hash)));
            progress.advance(1);
            Ok(())
        })
    }
}
