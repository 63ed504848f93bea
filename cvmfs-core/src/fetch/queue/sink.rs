//! Where the bytes of an object wait until they are verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::Sink;
use crate::error::{IoContext as _, Result};
use crate::hash::ObjectId;
use crate::storage::{Put, StagedObject, WriteStore};

/// What an object in memory costs besides its bytes.
const OVERHEAD: usize = 512;

/// Counts the memory of all objects on their way.
#[derive(Debug)]
pub(super) struct MemoryInUse {
    used: AtomicUsize,
    max: usize,
}

impl MemoryInUse {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Counts `bytes` more, unless that is too much.
    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.max;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A share of the memory.
#[derive(Debug)]
struct Share {
    memory: Arc<MemoryInUse>,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize) -> bool {
        let fits = self.memory.take(bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    fn release(&mut self) {
        self.memory.give_back(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

/// An object that arrives.
pub(super) struct Arrival<'a> {
    destination: &'a dyn WriteStore,
    per_object: usize,
    arrived: Arrived,
}

/// An object that has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    bytes: Vec<u8>,
    share: Share,
    staged: Option<Box<dyn StagedObject>>,
}

impl<'a> Arrival<'a> {
    pub(super) fn new(destination: &'a dyn WriteStore, memory: &Arc<MemoryInUse>, per_object: usize) -> Self {
        let share = Share { memory: Arc::clone(memory), bytes: 0 };
        Self { destination, per_object, arrived: Arrived { bytes: Vec::new(), share, staged: None } }
    }

    /// What came; to be called when it is verified.
    pub(super) fn into_arrived(self) -> Arrived {
        self.arrived
    }
}

impl Sink for Arrival<'_> {
    fn restart(&mut self) -> Result<()> {
        self.arrived.bytes = Vec::new();
        self.arrived.share.release();
        self.arrived.staged = None;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Arrived { bytes: memory, share, staged } = &mut self.arrived;
        if staged.is_none() {
            let overhead = if share.bytes == 0 { OVERHEAD } else { 0 };
            if memory.len() + bytes.len() <= self.per_object && share.grow(bytes.len() + overhead) {
                memory.extend_from_slice(bytes);
                return Ok(());
            }
            let mut object = self.destination.stage()?;
            object.write_all(memory).at("staged object")?;
            *staged = Some(object);
            *memory = Vec::new();
            share.release();
        }
        staged.as_mut().map_or(Ok(()), |object| object.write_all(bytes)).at("staged object")
    }
}

impl Arrived {
    /// A small object that is here already.
    pub(super) fn whole(bytes: Vec<u8>, memory: &Arc<MemoryInUse>) -> Self {
        Self { bytes, share: Share { memory: Arc::clone(memory), bytes: 0 }, staged: None }
    }

    /// Puts the object into the storage, under the name of which the content was verified.
    pub(super) fn put(self, destination: &dyn WriteStore, id: &ObjectId) -> Result<Put> {
        match self.staged {
            Some(object) => object.finish(id),
            None => destination.put(id, &self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::hash::{Algorithm, ObjectKind};
    use crate::storage::{LocalStore, ReadStore as _};

    #[test]
    fn what_exceeds_the_memory_goes_to_the_storage() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        let staged = || std::fs::read_dir(directory.path().join("data/txn")).unwrap().count();
        let memory = Arc::new(MemoryInUse::new(3 * (1000 + OVERHEAD)));
        let mut arrivals: Vec<_> = (0..4).map(|_| Arrival::new(&store, &memory, 1000)).collect();
        for (arrival, expected) in arrivals.iter_mut().zip([0, 0, 0, 1]) {
            arrival.restart().unwrap();
            arrival.write(&[1; 600]).unwrap();
            arrival.write(&[2; 400]).unwrap();
            assert_eq!(staged(), expected);
        }
        // One that is larger than it may be takes no memory.
        arrivals[0].write(&[3; 1]).unwrap();
        assert_eq!(staged(), 2);
        assert_eq!(memory.used.load(Ordering::Relaxed), 2 * (1000 + OVERHEAD));
        // One that begins again does not, either.
        arrivals[1].restart().unwrap();
        arrivals[0].restart().unwrap();
        assert_eq!(staged(), 1);
        assert_eq!(memory.used.load(Ordering::Relaxed), 1000 + OVERHEAD);

        let content = [&[1; 600][..], &[2; 400]].concat();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, &content);
        for (index, put) in [(3, Put::New), (2, Put::Present)] {
            assert_eq!(arrivals.remove(index).into_arrived().put(&store, &id).unwrap(), put);
            let mut stored = Vec::new();
            store.open(&id.into()).unwrap().read_to_end(&mut stored).unwrap();
            assert_eq!(stored, content);
        }
        drop(arrivals);
        assert_eq!((staged(), memory.used.load(Ordering::Relaxed)), (0, 0));
    }
}
