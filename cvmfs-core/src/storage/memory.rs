//! A repository in memory, for tests and experiments.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Key, NamedFile, Put, ReadStore, StagedObject, WriteStore};
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::ObjectId;

type Files = BTreeMap<Key, Arc<[u8]>>;

/// A store whose clones share one content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Files>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<Key> {
        self.files().keys().copied().collect()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        // A panic elsewhere cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &Key) -> Result<Arc<[u8]>> {
        let files = self.files();
        let key = if let Key::Shortcut(id) = key
            && files.contains_key(key)
        {
            &Key::Object(*id)
        } else {
            key
        };
        files.get(key).cloned().ok_or_else(|| Error::not_found(self.describe(key)))
    }
}

impl ReadStore for MemoryStore {
    fn describe(&self, key: &Key) -> String {
        format!("memory:{key}")
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        Ok(self.get(key)?.to_vec())
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new(self.get(key)?)))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        match self.get(key) {
            Ok(bytes) => Ok(Some(bytes.len() as u64)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl WriteStore for MemoryStore {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        let previous = self.files().insert(Key::Object(*id), stored.into());
        Ok(if previous.is_some_and(|bytes| bytes.len() == stored.len()) { Put::Present } else { Put::New })
    }

    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        Ok(self.size(&Key::Object(*id))? == Some(stored_size))
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        Ok(Box::new(Staged { store: self.clone(), bytes: Vec::new() }))
    }

    fn discard(&self, id: &ObjectId) -> Result<()> {
        self.files().remove(&Key::Object(*id));
        Ok(())
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        self.files().insert(Key::Named(file), bytes.into());
        Ok(())
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        self.files().remove(&Key::Named(file));
        Ok(())
    }

    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        self.files().insert(Key::Shortcut(*id), Arc::default());
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn remove_abandoned(&self, _before: UnixSeconds) -> Result<u64> {
        Ok(0)
    }
}

#[derive(Debug)]
struct Staged {
    store: MemoryStore,
    bytes: Vec<u8>,
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StagedObject for Staged {
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put> {
        self.store.put(id, &self.bytes)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keeps_the_contract() {
        super::super::conformance::write_store(&super::MemoryStore::new());
    }
}
