//! A store on top of another one: reads see both, writes go to the upper one only.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Key, NamedFile, Put, ReadStore, StagedObject, WriteStore};
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::ObjectId;
use crate::progress::Cancel;

/// Keeps the lower store as it is, whatever is written. What the upper store has hides what the lower one has.
#[derive(Debug)]
pub struct LayeredStore<U> {
    upper: U,
    lower: Arc<dyn ReadStore>,
    /// Named files that were removed and may still be in the lower store.
    removed: Mutex<BTreeSet<NamedFile>>,
}

impl<U: WriteStore> LayeredStore<U> {
    /// Puts an empty store on top of another one.
    pub fn new(upper: U, lower: Arc<dyn ReadStore>) -> Self {
        Self { upper, lower, removed: Mutex::default() }
    }

    fn is_removed(&self, key: &Key) -> bool {
        matches!(key, Key::Named(file) if self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(file))
    }

    /// Asks the upper store, then the lower one.
    fn either<T>(&self, key: &Key, read: impl Fn(&dyn ReadStore) -> Result<T>) -> Result<T> {
        match read(&self.upper) {
            Err(error) if error.is_not_found() && !self.is_removed(key) => read(&*self.lower),
            other => other,
        }
    }

    fn is_below(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        Ok(self.lower.size(&Key::Object(*id))? == Some(stored_size))
    }
}

impl<U: WriteStore> ReadStore for LayeredStore<U> {
    fn describe(&self, key: &Key) -> String {
        match self.upper.size(key) {
            Ok(Some(_)) => self.upper.describe(key),
            _ => self.lower.describe(key),
        }
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        self.either(key, |store| store.read(key))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        self.either(key, |store| store.open(key))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        match self.upper.size(key)? {
            None if !self.is_removed(key) => self.lower.size(key),
            size => Ok(size),
        }
    }

    /// Only what the upper store lacks is asked of the lower one, all of it at once.
    fn sizes(&self, ids: &[ObjectId]) -> Result<Vec<Option<u64>>> {
        let mut sizes = self.upper.sizes(ids)?;
        let missing: Vec<ObjectId> =
            ids.iter().zip(&sizes).filter(|(_, size)| size.is_none()).map(|(id, _)| *id).collect();
        let mut below = self.lower.sizes(&missing)?.into_iter();
        for size in sizes.iter_mut().filter(|size| size.is_none()) {
            *size = below.next().flatten();
        }
        Ok(sizes)
    }

    fn is_shared(&self) -> bool {
        self.lower.is_shared()
    }
}

impl<U: WriteStore> WriteStore for LayeredStore<U> {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        if self.is_below(id, stored.len() as u64)? { Ok(Put::Present) } else { self.upper.put(id, stored) }
    }

    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        Ok(self.is_below(id, stored_size)? || self.upper.reuse(id, stored_size)?)
    }

    fn reuse_all(&self, objects: &[(ObjectId, u64)]) -> Result<Vec<bool>> {
        let ids: Vec<ObjectId> = objects.iter().map(|(id, _)| *id).collect();
        let below = self.lower.sizes(&ids)?;
        let reuse = |(below, (id, stored_size)): (Option<u64>, &(ObjectId, u64))| {
            Ok(below == Some(*stored_size) || self.upper.reuse(id, *stored_size)?)
        };
        below.into_iter().zip(objects).map(reuse).collect()
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        Ok(Box::new(Staged { upper: self.upper.stage()?, lower: Arc::clone(&self.lower), size: 0 }))
    }

    /// An object of the lower store stays.
    fn discard(&self, id: &ObjectId) -> Result<()> {
        self.upper.discard(id)
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        self.upper.write(file, bytes)?;
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
        Ok(())
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).insert(file);
        self.upper.remove(file)
    }

    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        let object = Key::Object(*id);
        if self.upper.size(&object)?.is_none() {
            // A shortcut leads to an object of the same store.
            let stored = self.lower.read(&object).map_err(Error::of_referenced_object)?;
            self.upper.put(id, &stored)?;
        }
        self.upper.put_shortcut(id)
    }

    fn finish_puts(&self) -> Result<()> {
        self.upper.finish_puts()
    }

    fn flush(&self) -> Result<()> {
        self.upper.flush()
    }

    fn discard_damaged(&self, since: UnixSeconds, cancel: &Cancel) -> Result<u64> {
        self.upper.discard_damaged(since, cancel)
    }

    fn remove_abandoned(&self, before: UnixSeconds) -> Result<u64> {
        self.upper.remove_abandoned(before)
    }
}

/// An object on its way into the upper store, unless the lower one has it.
#[derive(Debug)]
struct Staged {
    upper: Box<dyn StagedObject>,
    lower: Arc<dyn ReadStore>,
    size: u64,
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.upper.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.upper.flush()
    }
}

impl StagedObject for Staged {
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put> {
        if self.lower.size(&Key::Object(*id))? == Some(self.size) { Ok(Put::Present) } else { self.upper.finish(id) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MemoryStore, conformance};
    use super::*;
    use crate::hash::{Algorithm, ObjectKind};

    #[test]
    fn keeps_the_contract_on_top_of_an_empty_store() {
        conformance::write_store(&LayeredStore::new(MemoryStore::new(), Arc::new(MemoryStore::new())));
    }

    #[test]
    fn the_lower_store_is_seen_and_never_changed() {
        let lower = MemoryStore::new();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, b"below");
        lower.put(&id, b"below").unwrap();
        lower.write(NamedFile::Manifest, b"old").unwrap();
        let keys = lower.keys();
        let upper = MemoryStore::new();
        let store = LayeredStore::new(upper.clone(), Arc::new(lower.clone()));

        assert_eq!(store.put(&id, b"below").unwrap(), Put::Present);
        assert!(store.reuse(&id, 5).unwrap());
        assert_eq!(store.reuse_all(&[(id, 6), (id, 5)]).unwrap(), [false, true]);
        let mut staged = store.stage().unwrap();
        staged.write_all(b"below").unwrap();
        assert_eq!(staged.finish(&id).unwrap(), Put::Present);
        assert_eq!(upper.keys(), []);

        assert_eq!(store.read(&NamedFile::Manifest.into()).unwrap(), b"old");
        store.write(NamedFile::Manifest, b"new").unwrap();
        assert_eq!(store.read(&NamedFile::Manifest.into()).unwrap(), b"new");
        store.remove(NamedFile::Manifest).unwrap();
        assert_eq!(store.size(&NamedFile::Manifest.into()).unwrap(), None);
        assert!(store.read(&NamedFile::Manifest.into()).unwrap_err().is_not_found());
        store.put_shortcut(&id).unwrap();
        assert_eq!(store.read(&Key::Shortcut(id)).unwrap(), b"below");

        assert_eq!(lower.keys(), keys);
        assert_eq!(lower.read(&NamedFile::Manifest.into()).unwrap(), b"old");
    }
}
