//! Workers: pieces of files become objects.

use std::mem;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Options;
use crate::compression::{Compression, Compressor, Policy};
use crate::entry::Chunk;
use crate::error::Result;
use crate::hash::{ObjectId, ObjectKind};
use crate::known::{KnownContent, KnownObject, PieceKey};
use crate::progress::Progress;
use crate::storage::{Put, WriteStore};

/// What all threads see.
pub(super) struct Shared<'a> {
    pub(super) store: &'a dyn WriteStore,
    pub(super) known: Option<&'a KnownContent>,
    pub(super) options: &'a Options,
    pub(super) progress: &'a dyn Progress,
    /// Plain bytes that may be in memory at once.
    pub(super) in_flight: usize,
    mailbox: Mutex<Mailbox>,
    /// Signalled when a waiting source thread can go on.
    delivered: Condvar,
    /// Idle compressors, with their working memory.
    compressors: Mutex<Vec<Compressor>>,
    /// Buffers of small pieces that are stored.
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// What workers deliver to the source thread.
#[derive(Default)]
struct Mailbox {
    /// Stored pieces with the number of their change.
    results: Vec<(u64, Result<Piece>)>,
    /// Plain bytes in memory.
    bytes: usize,
    /// Pieces that are not delivered yet.
    jobs: usize,
    /// The state in which a waiting source thread wants to be woken.
    wanted: Option<Wanted>,
    /// Nobody will look at results any more.
    closed: bool,
}

/// What the source thread waits for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// No more bytes in memory than this.
    pub(super) bytes: usize,
    /// No more jobs than this.
    pub(super) jobs: usize,
}

impl Mailbox {
    fn is(&self, wanted: Wanted) -> bool {
        self.jobs == 0 || (self.bytes <= wanted.bytes && self.jobs <= wanted.jobs)
    }
}

/// Pieces that one worker stores: a large one, or small ones together, so that handing them over costs little.
#[derive(Default)]
pub(super) struct Batch {
    /// The plain bytes of all pieces. What follows them is left from pieces before.
    buffer: Vec<u8>,
    used: usize,
    jobs: Vec<(Job, Range<usize>)>,
}

/// A piece of a file that is to be stored.
pub(super) struct Job {
    /// The number of its change.
    pub(super) number: u64,
    /// Where in the file it begins.
    pub(super) offset: u64,
    pub(super) kind: ObjectKind,
    pub(super) compression: Policy,
}

impl Batch {
    /// One piece.
    pub(super) fn of(job: Job, plain: Vec<u8>) -> Self {
        Self { used: plain.len(), jobs: vec![(job, 0..plain.len())], buffer: plain }
    }

    fn pieces(&self) -> impl Iterator<Item = (&Job, &[u8])> {
        self.jobs.iter().map(|(job, place)| (job, &self.buffer[place.clone()]))
    }

    /// Number of pieces.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Plain bytes of all pieces.
    pub(super) fn bytes(&self) -> usize {
        self.used
    }

    /// Adds a piece of `size` bytes that `fill` writes.
    pub(super) fn add(&mut self, job: Job, size: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let place = self.used..self.used + size;
        if self.buffer.len() < place.end {
            self.buffer.resize(place.end, 0);
        }
        fill(&mut self.buffer[place.clone()])?;
        self.used = place.end;
        self.jobs.push((job, place));
        Ok(())
    }
}

/// A stored piece of a file.
pub(super) struct Piece {
    pub(super) chunk: Chunk,
    pub(super) kind: ObjectKind,
    pub(super) compression: Compression,
    pub(super) stored_size: u64,
    pub(super) put: Put,
}

impl<'a> Shared<'a> {
    pub(super) fn new(
        store: &'a dyn WriteStore,
        known: Option<&'a KnownContent>,
        options: &'a Options,
        progress: &'a dyn Progress,
        in_flight: usize,
    ) -> Self {
        Self {
            store,
            known,
            options,
            progress,
            in_flight,
            mailbox: Mutex::default(),
            delivered: Condvar::new(),
            compressors: Mutex::default(),
            buffers: Mutex::default(),
        }
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        lock(&self.mailbox)
    }

    /// An empty batch with a buffer that was in use before, if one is idle.
    pub(super) fn batch(&self) -> Batch {
        Batch { buffer: lock(&self.buffers).pop().unwrap_or_default(), ..Batch::default() }
    }

    /// Takes so many bytes of the budget, if they fit.
    pub(super) fn try_take(&self, bytes: usize) -> bool {
        let mut mailbox = self.mailbox();
        let fits = mailbox.bytes.saturating_add(bytes) <= self.in_flight;
        if fits {
            mailbox.bytes += bytes;
        }
        fits
    }

    /// Takes so many bytes of the budget, whether they fit or not.
    pub(super) fn take(&self, bytes: usize) {
        self.mailbox().bytes += bytes;
    }

    /// Counts pieces that are going to be delivered.
    pub(super) fn expect(&self, pieces: usize) {
        self.mailbox().jobs += pieces;
    }

    /// Waits until so little is in flight, and returns what came in.
    pub(super) fn wait(&self, wanted: Wanted) -> Vec<(u64, Result<Piece>)> {
        let mut mailbox = self.mailbox();
        while !mailbox.is(wanted) {
            mailbox.wanted = Some(wanted);
            mailbox = self.delivered.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
        mem::take(&mut mailbox.results)
    }

    /// Returns what came in.
    pub(super) fn results(&self) -> Vec<(u64, Result<Piece>)> {
        mem::take(&mut self.mailbox().results)
    }

    /// Nobody will look at results any more.
    pub(super) fn close(&self) {
        self.mailbox().closed = true;
    }

    /// What a worker does: deflate, hash, put, deliver.
    pub(super) fn work(&self, batch: Batch) {
        if self.mailbox().closed {
            return;
        }
        let mut results = Vec::with_capacity(batch.len());
        self.store(&batch, &mut results);
        let (bytes, pieces) = (batch.bytes(), batch.len());
        if pieces > 1 {
            lock(&self.buffers).push(batch.buffer);
        } else {
            drop(batch);
        }
        self.progress.advance(bytes as u64);
        let mut mailbox = self.mailbox();
        mailbox.results.append(&mut results);
        mailbox.bytes -= bytes;
        mailbox.jobs -= pieces;
        if mailbox.wanted.is_some_and(|wanted| mailbox.is(wanted)) {
            mailbox.wanted = None;
            self.delivered.notify_one();
        }
    }

    /// Stores pieces up to the first that cannot be.
    fn store(&self, batch: &Batch, results: &mut Vec<(u64, Result<Piece>)>) {
        let keys = self.keys(batch);
        let present = match self.present(&keys, batch.len()) {
            Ok(present) => present,
            Err(error) => {
                results.extend(batch.jobs.first().map(|(job, _)| (job.number, Err(error))));
                return;
            }
        };
        let mut keys = keys.into_iter();
        let mut compressor = None;
        for ((job, plain), present) in batch.pieces().zip(present) {
            let (key, size) = (keys.next().map(|(key, _)| key), plain.len() as u64);
            let stored = match present {
                Some(object) => Ok((object, Put::Present)),
                None => self.compress_and_put(job, plain, key, &mut compressor),
            };
            let piece = stored.map(|(object, put)| Piece {
                chunk: Chunk { offset: job.offset, size, hash: object.id.hash },
                kind: job.kind,
                compression: object.compression,
                stored_size: object.stored_size,
                put,
            });
            let failed = piece.is_err();
            results.push((job.number, piece));
            if failed {
                break;
            }
        }
        lock(&self.compressors).extend(compressor);
    }

    /// The names of pieces in the index of known content; none if there is no index.
    fn keys(&self, batch: &Batch) -> Vec<(PieceKey, ObjectKind)> {
        let algorithm = self.options.algorithm;
        let name = |(job, plain): (&Job, &[u8])| (PieceKey::of(plain, job.kind, algorithm, job.compression), job.kind);
        if self.known.is_some() { batch.pieces().map(name).collect() } else { Vec::new() }
    }

    /// The objects of pieces whose content is known and stored, asked for all together.
    fn present(&self, keys: &[(PieceKey, ObjectKind)], pieces: usize) -> Result<Vec<Option<KnownObject>>> {
        let Some(known) = self.known else { return Ok(vec![None; pieces]) };
        let mut found = known.find_all(keys, self.options.algorithm);
        let objects: Vec<(ObjectId, u64)> =
            found.iter().flatten().map(|object| (object.id, object.stored_size)).collect();
        let answers = self.store.reuse_all(&objects)?;
        for (known, is_there) in found.iter_mut().filter(|known| known.is_some()).zip(answers) {
            *known = known.filter(|_| is_there);
        }
        Ok(found)
    }

    fn compress_and_put(
        &self,
        job: &Job,
        plain: &[u8],
        key: Option<PieceKey>,
        compressor: &mut Option<Compressor>,
    ) -> Result<(KnownObject, Put)> {
        let Options { algorithm, effort, .. } = *self.options;
        let &Job { kind, compression, .. } = job;
        let put = |stored: &[u8], compression| {
            let id = ObjectId::of(algorithm, kind, stored);
            let put = self.store.put(&id, stored)?;
            let object = KnownObject { id, stored_size: stored.len() as u64, compression };
            if let (Some(known), Some(key)) = (self.known, key) {
                known.remember(key, object, plain.len() as u64);
            }
            Ok((object, put))
        };
        if compression == Policy::None {
            return put(plain, Compression::None);
        }
        let idle = || lock(&self.compressors).pop().unwrap_or_else(|| Compressor::new(effort));
        let stored = compressor.get_or_insert_with(idle).compress(plain);
        if compression == Policy::Auto && stored.len() >= plain.len() {
            return put(plain, Compression::None);
        }
        put(stored, Compression::Zlib)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
