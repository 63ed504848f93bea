//! A repository in memory, for tests and experiments.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Key, Listed, NamedFile, PruneStore, Put, ReadStore, StagedObject, WriteStore};
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::ObjectId;

type Files = BTreeMap<Key, Arc<[u8]>>;

/// A store whose clones share one content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    files: Files,
    /// When objects were put or reused for the last time.
    modified: BTreeMap<ObjectId, Duration>,
    clock: Duration,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<Key> {
        self.content().files.keys().copied().collect()
    }

    /// Sets the clock, which stands still otherwise.
    pub fn set_clock(&self, time: Duration) {
        self.content().clock = time;
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // A panic elsewhere cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &Key) -> Result<Arc<[u8]>> {
        let files = &self.content().files;
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
        let mut content = self.content();
        let now = content.clock;
        content.modified.insert(*id, now);
        let previous = content.files.insert(Key::Object(*id), stored.into());
        Ok(if previous.is_some_and(|bytes| bytes.len() == stored.len()) { Put::Present } else { Put::New })
    }

    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        let mut content = self.content();
        let now = content.clock;
        let is_whole = content.files.get(&Key::Object(*id)).is_some_and(|bytes| bytes.len() as u64 == stored_size);
        if is_whole {
            content.modified.insert(*id, now);
        }
        Ok(is_whole)
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        Ok(Box::new(Staged { store: self.clone(), bytes: Vec::new() }))
    }

    fn discard(&self, id: &ObjectId) -> Result<()> {
        let mut content = self.content();
        content.modified.remove(id);
        content.files.remove(&Key::Object(*id));
        Ok(())
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        self.content().files.insert(Key::Named(file), bytes.into());
        Ok(())
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        self.content().files.remove(&Key::Named(file));
        Ok(())
    }

    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        self.content().files.insert(Key::Shortcut(*id), Arc::default());
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn remove_abandoned(&self, _before: UnixSeconds) -> Result<u64> {
        Ok(0)
    }
}

impl PruneStore for MemoryStore {
    fn clock(&self) -> Result<Duration> {
        Ok(self.content().clock)
    }

    fn list(
        &self,
        first: u8,
        wanted: &mut dyn FnMut(&ObjectId) -> bool,
        visit: &mut dyn FnMut(Listed) -> Result<()>,
    ) -> Result<()> {
        let mut listed = Vec::new();
        {
            let content = self.content();
            for (key, bytes) in &content.files {
                if let Key::Object(id) = key
                    && id.hash.digest()[0] == first
                    && wanted(id)
                {
                    let modified = content.modified.get(id).copied().unwrap_or_default();
                    listed.push(Listed { id: *id, stored_size: bytes.len() as u64, modified });
                }
            }
        }
        listed.into_iter().try_for_each(visit)
    }

    fn prune(&self, objects: &[ObjectId], older_than: Duration) -> Result<Vec<ObjectId>> {
        let mut content = self.content();
        let mut kept = Vec::new();
        for id in objects {
            if content.modified.get(id).is_some_and(|modified| *modified >= older_than) {
                kept.push(*id);
                continue;
            }
            content.modified.remove(id);
            content.files.remove(&Key::Object(*id));
            content.files.remove(&Key::Shortcut(*id));
        }
        Ok(kept)
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
        super::super::conformance::prune_store(&super::MemoryStore::new());
    }
}
