//! What nothing needs: found by a listing, removed catalogs first.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rayon::ThreadPool;

use super::records::{Condemned, CondemnedObjects, Digest, Reached, digests, visit_condemned};
use super::{Report, Tally};
use crate::error::Result;
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::parallel::work_off;
use crate::progress::{Cancel, Progress};
use crate::storage::{Listed, PruneStore};

/// Objects that are removed in one go.
const BATCH: usize = 1000;

pub(super) struct Sweep<'a> {
    pub(super) store: &'a dyn PruneStore,
    pub(super) pool: &'a ThreadPool,
    /// Objects that were put or reused since then stay.
    pub(super) older_than: Duration,
    /// Catalogs may go whatever their age.
    pub(super) is_exclusive: bool,
}

/// What the listing showed.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Different objects that are needed.
    pub(super) reached: u64,
    pub(super) condemned: Tally,
    pub(super) young: Tally,
    /// Those of them that the reflog has.
    pub(super) young_listed: HashSet<ObjectId>,
    pub(super) catalogs: Catalogs,
}

/// Condemned catalogs.
#[derive(Debug, Default)]
pub(super) struct Catalogs {
    /// Roots that the reflog has. They are superseded, so they need not be old.
    roots: Vec<Listed>,
    /// All others, the youngest first.
    nested: Vec<Listed>,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Removed {
    pub(super) gone: Tally,
    pub(super) revived: u64,
}

impl Removed {
    pub(super) fn and(self, other: Self) -> Self {
        Self { gone: self.gone.and(other.gone), revived: self.revived + other.revived }
    }
}

impl Catalogs {
    pub(super) fn count(&self) -> u64 {
        (self.roots.len() + self.nested.len()) as u64
    }

    pub(super) fn ids(&self) -> Vec<ObjectId> {
        self.roots.iter().chain(&self.nested).map(|catalog| catalog.id).collect()
    }

    /// Takes out those that came into use, and returns how many they were.
    pub(super) fn spare(&mut self, in_use: &HashSet<ContentHash>) -> u64 {
        let before = self.count();
        self.roots.retain(|catalog| !in_use.contains(&catalog.id.hash));
        self.nested.retain(|catalog| !in_use.contains(&catalog.id.hash));
        before - self.count()
    }
}

impl Sweep<'_> {
    /// Compares the storage with what is reached. `unlisted` are root objects that leave the reflog; other objects that
    /// go are entered into `condemned`.
    pub(super) fn find(
        &self,
        reached: &Reached,
        unlisted: &[ObjectId],
        condemned: &CondemnedObjects,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Found> {
        let unlisted: HashSet<ObjectId> = unlisted.iter().copied().collect();
        let found = Mutex::new(Found::default());
        work_off(self.pool, 0..=u8::MAX, |first, _| {
            cancel.check()?;
            let digests = digests(reached, first)?;
            let mut here = Found { reached: digests.len() as u64, ..Found::default() };
            let mut writer = condemned.writer();
            let mut seen = 0_u64;
            let mut is_unreached = |id: &ObjectId| {
                seen += 1;
                digests.binary_search(id.hash.digest()).is_err()
            };
            self.store.list(first, &mut is_unreached, &mut |object| {
                let Listed { id, stored_size, modified } = object;
                let is_catalog = id.kind == ObjectKind::Catalog;
                let is_listed = unlisted.contains(&id);
                let is_root = is_catalog && is_listed;
                if modified >= self.older_than && !is_root && !(is_catalog && self.is_exclusive) {
                    here.young.add(stored_size);
                    here.young_listed.extend(is_listed.then_some(id));
                    return Ok(());
                }
                here.condemned.add(stored_size);
                match (is_root, is_catalog) {
                    (true, _) => here.catalogs.roots.push(object),
                    (_, true) => here.catalogs.nested.push(object),
                    _ => writer.add(&Condemned { id, stored_size }.encode())?,
                }
                Ok(())
            })?;
            drop(writer);
            progress.advance(seen);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.reached += here.reached;
            found.condemned = found.condemned.and(here.condemned);
            found.young = found.young.and(here.young);
            found.young_listed.extend(here.young_listed);
            found.catalogs.roots.append(&mut here.catalogs.roots);
            found.catalogs.nested.append(&mut here.catalogs.nested);
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.catalogs.roots.sort_by_key(|catalog| catalog.id);
        // Catalogs are stored before those above them. So those above go first, and one that is left is complete.
        found.catalogs.nested.sort_by_key(|catalog| (std::cmp::Reverse(catalog.modified), catalog.id));
        Ok(found)
    }

    /// Removes condemned root catalogs, whatever their age: they are superseded, and the caller has the lock.
    pub(super) fn remove_roots(&self, catalogs: &Catalogs, report: Report<'_>) -> Result<Removed> {
        let mut removed = Removed::default();
        for batch in catalogs.roots.chunks(BATCH) {
            removed = removed.and(self.remove(batch.iter().map(condemned), Duration::MAX, report)?);
        }
        Ok(removed)
    }

    /// Removes all other condemned catalogs.
    pub(super) fn remove_nested(
        &self,
        catalogs: &Catalogs,
        report: Report<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Removed> {
        progress.advance(catalogs.roots.len() as u64);
        let older_than = if self.is_exclusive { Duration::MAX } else { self.older_than };
        let mut removed = Removed::default();
        for batch in catalogs.nested.chunks(BATCH) {
            cancel.check()?;
            removed = removed.and(self.remove(batch.iter().map(condemned), older_than, report)?);
            progress.advance(batch.len() as u64);
        }
        Ok(removed)
    }

    /// Removes everything else, but for what was `reached` later.
    pub(super) fn remove_objects(
        &self,
        condemned: &CondemnedObjects,
        reached: &Reached,
        report: Report<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Removed> {
        let removed = Mutex::new(Removed::default());
        work_off(self.pool, 0..=u8::MAX, |first, _| {
            let reached: Vec<Digest> = digests(reached, first)?;
            visit_condemned(condemned, first, &mut |objects| {
                for batch in objects.chunks(BATCH) {
                    cancel.check()?;
                    let is_unreached = |object: &&Condemned| reached.binary_search(object.id.hash.digest()).is_err();
                    let unreached: Vec<Condemned> = batch.iter().filter(is_unreached).copied().collect();
                    let revived = (batch.len() - unreached.len()) as u64;
                    let gone = self.remove(unreached.into_iter(), self.older_than, report)?;
                    let mut removed = removed.lock().unwrap_or_else(PoisonError::into_inner);
                    *removed = removed.and(gone).and(Removed { revived, ..Removed::default() });
                    progress.advance(batch.len() as u64);
                }
                Ok(())
            })
        })?;
        Ok(removed.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn remove(
        &self,
        objects: impl Iterator<Item = Condemned>,
        older_than: Duration,
        report: Report<'_>,
    ) -> Result<Removed> {
        let objects: Vec<Condemned> = objects.collect();
        let ids: Vec<ObjectId> = objects.iter().map(|object| object.id).collect();
        report(&ids)?;
        let kept: HashSet<ObjectId> = self.store.prune(&ids, older_than)?.into_iter().collect();
        let mut removed = Removed { revived: kept.len() as u64, ..Removed::default() };
        for object in objects.iter().filter(|object| !kept.contains(&object.id)) {
            removed.gone.add(object.stored_size);
        }
        Ok(removed)
    }
}

fn condemned(catalog: &Listed) -> Condemned {
    Condemned { id: catalog.id, stored_size: catalog.stored_size }
}
