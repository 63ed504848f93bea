//! Small objects in memory.
//!
//! Objects never change, so the ones that many clients ask for need not be opened and read again for each. An entry
//! is believed for some seconds only: then a damaged object that was repaired, or one that was removed, is seen.
//! What was asked for lately stays, up to a number of bytes; the rest goes in large steps, which costs nothing to
//! keep account of.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cvmfs_core::hash::ObjectId;

use super::respond::Facts;

/// How long an object is taken from memory without looking at its file.
const TRUSTED_FOR: Duration = Duration::from_secs(10);

/// What an entry takes besides its content, roughly.
const ENTRY_SIZE: u64 = 256;

/// An object as it was read.
#[derive(Debug, Clone)]
pub(super) struct CachedObject {
    pub(super) content: Bytes,
    pub(super) facts: Facts,
    read: Instant,
}

/// Objects by repository and name.
#[derive(Debug)]
pub(super) struct ObjectCache {
    /// Most bytes of one generation.
    limit: u64,
    generations: Mutex<Generations>,
}

type Objects = HashMap<ObjectId, CachedObject>;

/// What was used since the last step, and what was used between the two steps before.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, Objects>,
    young_bytes: u64,
    old: HashMap<String, Objects>,
}

impl ObjectCache {
    /// Keeps at most about `limit` bytes; with 0 nothing.
    pub(super) fn new(limit: u64) -> Self {
        Self { limit: limit / 2, generations: Mutex::default() }
    }

    /// The object as it was read within the last seconds.
    pub(super) fn get(&self, repository: &str, id: &ObjectId, now: Instant) -> Option<CachedObject> {
        let mut generations = self.lock();
        let is_trusted = |object: &&CachedObject| now.duration_since(object.read) < TRUSTED_FOR;
        if let Some(object) = generations.young.get(repository).and_then(|objects| objects.get(id)) {
            return Some(object).filter(is_trusted).cloned();
        }
        let object = generations.old.get_mut(repository)?.remove(id)?;
        Some(&object).filter(is_trusted)?;
        let gone = self.insert_young(&mut generations, repository, id, object.clone());
        drop(generations);
        drop(gone);
        Some(object)
    }

    /// Remembers an object that was read at `now`.
    pub(super) fn put(&self, repository: &str, id: &ObjectId, content: &Bytes, facts: Facts, now: Instant) {
        if content.len() as u64 + ENTRY_SIZE <= self.limit {
            let object = CachedObject { content: content.clone(), facts, read: now };
            // Freeing many objects takes a while, and others wait for the lock.
            let gone = self.insert_young(&mut self.lock(), repository, id, object);
            drop(gone);
        }
    }

    /// Returns what had to go.
    fn insert_young(
        &self,
        generations: &mut Generations,
        repository: &str,
        id: &ObjectId,
        object: CachedObject,
    ) -> HashMap<String, Objects> {
        let size = object.content.len() as u64 + ENTRY_SIZE;
        let mut gone = HashMap::new();
        if generations.young_bytes + size > self.limit {
            let young = std::mem::take(&mut generations.young);
            gone = std::mem::replace(&mut generations.old, young);
            generations.young_bytes = 0;
        }
        generations.young_bytes += size;
        if let Some(objects) = generations.young.get_mut(repository) {
            objects.insert(*id, object);
        } else {
            generations.young.insert(repository.to_owned(), Objects::from([(*id, object)]));
        }
        gone
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        // Whoever panicked here left maps that are whole.
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use cvmfs_core::hash::{Algorithm, ObjectKind};

    use super::*;

    fn object(number: u64) -> (ObjectId, Bytes, Facts) {
        let content = Bytes::from(number.to_string().repeat(1000));
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, &content);
        (id, content.clone(), Facts { size: content.len() as u64, modified: SystemTime::UNIX_EPOCH, inode: number })
    }

    #[test]
    fn an_object_is_believed_for_some_seconds_in_its_repository() {
        let cache = ObjectCache::new(1 << 20);
        let (id, content, facts) = object(1);
        let start = Instant::now();
        cache.put("a", &id, &content, facts, start);
        let found = |repository, seconds| cache.get(repository, &id, start + Duration::from_secs(seconds));
        assert_eq!(found("a", 9).map(|object| (object.content, object.facts)), Some((content, facts)));
        assert!(found("b", 0).is_none());
        assert!(found("a", 10).is_none());
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let cache = ObjectCache::new(40_000);
        let now = Instant::now();
        let (first, content, facts) = object(0);
        cache.put("a", &first, &content, facts, now);
        let others: Vec<ObjectId> = (1000..1200)
            .map(|number| {
                let (id, content, facts) = object(number);
                cache.put("a", &id, &content, facts, now);
                assert!(cache.get("a", &first, now).is_some(), "{number}");
                id
            })
            .collect();
        let kept = others.iter().filter(|id| cache.get("a", id, now).is_some()).count();
        assert!((1..20).contains(&kept), "{kept}");
        assert!(ObjectCache::new(0).get("a", &first, now).is_none());
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let cache = ObjectCache::new(0);
        let (id, content, facts) = object(1);
        cache.put("a", &id, &content, facts, Instant::now());
        assert!(cache.get("a", &id, Instant::now()).is_none());
    }
}
