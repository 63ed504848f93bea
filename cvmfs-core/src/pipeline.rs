//! The pipeline: from a stream of changes to stored objects and a change set.
//!
//! ```text
//! source thread                          workers (all cores)
//! next change ─► read ─► cut ──────────► deflate ─► hash ─► put
//!                                                            │
//! change set, in source order ◄────────── mailbox ◄──────────┘
//! ```
//!
//! Memory is bounded by the bytes in flight, whatever the number or size of files: the source thread reads no further
//! while too many are, and takes results out of the mailbox instead.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::change::{Change, ChangeSource, Content, Metadata, Origin};
use crate::changeset::{ChangeSet, Stored};
use crate::chunking::ChunkSizes;
use crate::compression::{CompressingWriter, Compression, Compressor, Effort, Policy};
use crate::entry::{Chunk, EntryKind, FileContent, FileObjects};
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ObjectId, ObjectKind};
use crate::known::{KnownContent, KnownObject, PieceKey};
use crate::object::{ObjectWriter, StoredObject, read_error};
use crate::path::RepoPath;
use crate::progress::{Cancel, Progress};
use crate::storage::{Put, WriteStore};

/// Bytes read from the source at a time.
const BLOCK_SIZE: usize = 256 * 1024;
/// Most changes that wait in memory for one before them.
const MAX_WAITING: usize = 20_000;
/// A file that is not cut and larger than this is deflated as a stream instead of whole in memory.
const WHOLE_FILE_MAX: u64 = 16 << 20;
/// Bytes at the beginning of such a file by which it is judged whether it is worth deflating.
const JUDGED_SIZE: usize = 1 << 20;

/// How content becomes objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hash algorithm of new objects.
    pub algorithm: Algorithm,
    /// How new files are stored.
    pub compression: Policy,
    /// Who compresses, and how hard.
    pub effort: Effort,
    /// Chunk sizes; `None` stores every file whole.
    pub chunking: Option<ChunkSizes>,
    /// Whether new files are marked as kept on an external data server.
    pub external: bool,
    /// Worker threads; 0 for one a core.
    pub threads: usize,
    /// Plain bytes that may be in memory at once, but at least the largest piece; `None` for what the threads need to
    /// work side by side.
    pub max_bytes_in_flight: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            compression: Policy::default(),
            effort: Effort::default(),
            chunking: Some(ChunkSizes::default()),
            external: false,
            threads: 0,
            max_bytes_in_flight: None,
        }
    }
}

/// What went through the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Outcome {
    /// Changes from the source.
    pub changes: u64,
    /// Regular files read.
    pub files: u64,
    /// Directories put or ensured.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Hard links.
    pub hardlinks: u64,
    /// FIFOs, sockets and devices.
    pub specials: u64,
    /// Plain bytes read.
    pub bytes_read: u64,
    /// Objects that were not in the storage.
    pub objects_new: u64,
    /// Objects that were.
    pub objects_reused: u64,
    /// Stored bytes of new objects.
    pub bytes_stored: u64,
}

/// Runs a source to its end: stores content, records changes.
///
/// With a `known`-content index, pieces that are in it are not compressed again.
///
/// # Errors
/// Those of source, storage and change set; the first one ends the run. Objects that were stored stay: the next run
/// finds them.
pub fn run(
    source: &mut dyn ChangeSource,
    store: &dyn WriteStore,
    changes: &mut ChangeSet,
    known: Option<&KnownContent>,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .thread_name(|index| format!("pipeline-{index}"))
        .build()
        .map_err(|error| Error::invalid("threads", error.to_string()))?;
    let largest = usize::try_from(options.chunking.map_or(WHOLE_FILE_MAX, |sizes| sizes.max())).unwrap_or(usize::MAX);
    // One piece is being read while each thread works on one of average size.
    let useful = largest.saturating_add(pool.current_num_threads().saturating_mul(largest / 2));
    let in_flight = options.max_bytes_in_flight.unwrap_or(useful).max(largest.saturating_add(2 * BLOCK_SIZE));
    let shared = Shared {
        store,
        known,
        options,
        progress,
        in_flight,
        mailbox: Mutex::default(),
        delivered: Condvar::new(),
        compressors: Mutex::default(),
    };
    let mut recorder = Recorder { options, changes, next: 0, waiting: BTreeMap::new(), outcome: Outcome::default() };
    let read = pool.in_place_scope(|workers| {
        let mut reader = Reader { source, shared: &shared, workers, recorder: &mut recorder, next: 0 };
        reader.run(cancel).inspect_err(|_| shared.mailbox().closed = true)
    });
    // Whoever is asked to stop may find the input cut off.
    cancel.check()?;
    // A failed worker is why the reader stopped, if one did.
    recorder.take(mem::take(&mut shared.mailbox().results))?;
    read?;
    let Outcome { objects_new, objects_reused, bytes_stored, .. } = recorder.outcome;
    recorder.changes.add_stored(Stored { objects_new, objects_reused, bytes_stored })?;
    Ok(recorder.outcome)
}

/// What all threads see.
struct Shared<'a> {
    store: &'a dyn WriteStore,
    known: Option<&'a KnownContent>,
    options: &'a Options,
    progress: &'a dyn Progress,
    /// Plain bytes that may be in memory at once.
    in_flight: usize,
    mailbox: Mutex<Mailbox>,
    /// Signalled when a waiting source thread can go on.
    delivered: Condvar,
    /// Idle compressors, with their working memory.
    compressors: Mutex<Vec<Compressor>>,
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
struct Wanted {
    /// No more bytes in memory than this.
    bytes: usize,
    /// No more jobs than this.
    jobs: usize,
}

/// A piece of a file that is to be stored.
struct Job {
    /// The number of its change.
    number: u64,
    /// Where in the file it begins.
    offset: u64,
    kind: ObjectKind,
    compression: Policy,
    plain: Vec<u8>,
}

/// A stored piece of a file.
struct Piece {
    chunk: Chunk,
    kind: ObjectKind,
    compression: Compression,
    stored_size: u64,
    put: Put,
}

impl Shared<'_> {
    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker does: deflate, hash, put, deliver.
    fn work(&self, job: Job) {
        if self.mailbox().closed {
            return;
        }
        let result = self.store_piece(&job);
        let (number, length) = (job.number, job.plain.len());
        drop(job);
        self.progress.advance(length as u64);
        let mut mailbox = self.mailbox();
        mailbox.results.push((number, result));
        mailbox.bytes -= length;
        mailbox.jobs -= 1;
        if mailbox.wanted.is_some_and(|wanted| mailbox.is(wanted)) {
            mailbox.wanted = None;
            self.delivered.notify_one();
        }
    }

    fn store_piece(&self, job: &Job) -> Result<Piece> {
        let algorithm = self.options.algorithm;
        let &Job { offset, kind, compression, ref plain, .. } = job;
        let size = plain.len() as u64;
        let piece = |object: KnownObject, put| Piece {
            chunk: Chunk { offset, size, hash: object.id.hash },
            kind,
            compression: object.compression,
            stored_size: object.stored_size,
            put,
        };
        let Some(known) = self.known else {
            let (object, put) = self.compress_and_put(job)?;
            return Ok(piece(object, put));
        };
        let key = PieceKey::of(plain, kind, algorithm, compression);
        if let Some(object) = known.find(&key, kind, algorithm)
            && self.store.reuse(&object.id, object.stored_size)?
        {
            return Ok(piece(object, Put::Present));
        }
        let (object, put) = self.compress_and_put(job)?;
        known.remember(key, object, size);
        Ok(piece(object, put))
    }

    fn compress_and_put(&self, job: &Job) -> Result<(KnownObject, Put)> {
        let Options { algorithm, effort, .. } = *self.options;
        let &Job { kind, compression, ref plain, .. } = job;
        let put = |stored: &[u8], compression| {
            let id = ObjectId::of(algorithm, kind, stored);
            let put = self.store.put(&id, stored)?;
            Ok((KnownObject { id, stored_size: stored.len() as u64, compression }, put))
        };
        if compression == Policy::None {
            return put(plain, Compression::None);
        }
        let idle = self.compressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(effort));
        let stored = compressor.compress(plain);
        let result = if compression == Policy::Auto && stored.len() >= plain.len() {
            put(plain, Compression::None)
        } else {
            put(stored, Compression::Zlib)
        };
        self.compressors.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        result
    }
}

impl Mailbox {
    fn is(&self, wanted: Wanted) -> bool {
        self.jobs == 0 || (self.bytes <= wanted.bytes && self.jobs <= wanted.jobs)
    }
}

/// The source thread: reads, cuts, and records what is stored.
struct Reader<'a, 'scope, 'env> {
    source: &'a mut dyn ChangeSource,
    shared: &'env Shared<'env>,
    workers: &'a rayon::Scope<'scope>,
    recorder: &'a mut Recorder<'env>,
    next: u64,
}

impl<'env: 'scope, 'scope> Reader<'_, 'scope, 'env> {
    fn run(&mut self, cancel: &Cancel) -> Result<()> {
        while let Some(change) = self.source.next()? {
            cancel.check()?;
            let number = self.next;
            self.next += 1;
            let origin = self.source.origin();
            match change {
                Change::Put { path, metadata, content: Content::Read { size } } => {
                    let file = Waiting::File { path: path.clone(), metadata, size, pieces: Vec::new(), expected: None };
                    self.recorder.add(number, origin, file)?;
                    let pieces = self.read_file(number, &path, size)?;
                    self.recorder.expect(number, pieces)?;
                }
                change => self.recorder.add(number, origin, Waiting::Ready(change))?,
            }
            if self.recorder.waiting.len() > MAX_WAITING {
                self.wait(Wanted { bytes: usize::MAX, jobs: 0 })?;
            }
        }
        self.wait(Wanted { bytes: 0, jobs: 0 })
    }

    /// Waits until so little is in flight, and records what came in.
    fn wait(&mut self, wanted: Wanted) -> Result<()> {
        let mut mailbox = self.shared.mailbox();
        while !mailbox.is(wanted) {
            mailbox.wanted = Some(wanted);
            mailbox = self.shared.delivered.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
        let results = mem::take(&mut mailbox.results);
        drop(mailbox);
        self.recorder.take(results)
    }

    /// Takes so many bytes of the budget.
    fn take(&mut self, bytes: usize) -> Result<()> {
        let mailbox = self.shared.mailbox();
        let fits = mailbox.bytes.saturating_add(bytes) <= self.shared.in_flight;
        drop(mailbox);
        if !fits {
            // Not woken for every piece: the workers have enough to do until half of it is gone.
            let low = (self.shared.in_flight / 2).min(self.shared.in_flight.saturating_sub(bytes));
            self.wait(Wanted { bytes: low, jobs: usize::MAX })?;
        }
        self.shared.mailbox().bytes += bytes;
        Ok(())
    }

    fn read_file(&mut self, number: u64, path: &RepoPath, size: u64) -> Result<usize> {
        let sizes = self.shared.options.chunking.filter(|sizes| size > sizes.min());
        match sizes {
            Some(sizes) => self.read_chunks(number, path, size, sizes),
            None if size > WHOLE_FILE_MAX => self.read_stream(number, path, size).map(|()| 1),
            None => self.read_whole(number, path, size).map(|()| 1),
        }
    }

    /// Reads a file that becomes one object.
    fn read_whole(&mut self, number: u64, path: &RepoPath, size: u64) -> Result<()> {
        let length = usize::try_from(size).expect("the caller sends larger files elsewhere");
        self.take(length)?;
        let mut bytes = vec![0; length];
        self.read_exact(path, &mut bytes)?;
        let compression = self.shared.options.compression;
        self.store_piece(Job { number, offset: 0, kind: ObjectKind::File, compression, plain: bytes });
        Ok(())
    }

    /// Reads a file that may become several objects, and returns their number.
    fn read_chunks(&mut self, number: u64, path: &RepoPath, size: u64, sizes: ChunkSizes) -> Result<usize> {
        let Options { mut compression, effort, .. } = *self.shared.options;
        let mut cutter = sizes.cutter();
        let mut block = vec![0; BLOCK_SIZE];
        let (mut piece, mut pieces, mut offset, mut left) = (Vec::new(), 0, 0, size);
        while left > 0 {
            let length = usize::try_from(left).map_or(BLOCK_SIZE, |left| left.min(BLOCK_SIZE));
            self.take(length)?;
            self.read_exact(path, &mut block[..length])?;
            left -= length as u64;
            let mut rest = &block[..length];
            while let Some(cut) = cutter.next_cut(rest) {
                piece.extend_from_slice(&rest[..cut]);
                rest = &rest[cut..];
                if pieces == 0 {
                    // All chunks of a file are stored as its first one.
                    compression = compression.judge(effort.engine, &piece).into();
                }
                let plain = mem::take(&mut piece);
                offset += self.store_piece(Job { number, offset, kind: ObjectKind::Chunk, compression, plain });
                pieces += 1;
            }
            piece.extend_from_slice(rest);
        }
        // A file without a cut is stored as if it had been small.
        let kind = if pieces == 0 { ObjectKind::File } else { ObjectKind::Chunk };
        self.store_piece(Job { number, offset, kind, compression, plain: piece });
        Ok(pieces + 1)
    }

    /// Reads a large file that becomes one object, without holding it in memory.
    fn read_stream(&mut self, number: u64, path: &RepoPath, size: u64) -> Result<()> {
        let Options { algorithm, compression, effort, .. } = *self.shared.options;
        let mut start = vec![0; JUDGED_SIZE];
        self.read_exact(path, &mut start)?;
        let compression = compression.judge(effort.engine, &start);
        let left = size - start.len() as u64;
        let mut content = io::Cursor::new(start).chain(ExactReader { source: &mut *self.source, left });
        let fail = |error| read_error(&path.to_string(), error);
        let mut sink = ObjectWriter::new(self.shared.store, algorithm)?;
        let progress = |size| self.shared.progress.advance(size);
        match compression {
            Compression::Zlib => {
                let mut writer = CompressingWriter::new(&mut sink, effort.level);
                copy(&mut content, &mut writer, progress).and_then(|()| writer.finish()).map_err(fail)?;
            }
            Compression::None => copy(&mut content, &mut sink, progress).map_err(fail)?,
        }
        let StoredObject { id, stored_size, put } = sink.finish(ObjectKind::File)?;
        let chunk = Chunk { offset: 0, size, hash: id.hash };
        self.recorder.take(vec![(number, Ok(Piece { chunk, kind: ObjectKind::File, compression, stored_size, put }))])
    }

    fn read_exact(&mut self, path: &RepoPath, buffer: &mut [u8]) -> Result<()> {
        let left = buffer.len() as u64;
        let mut content = ExactReader { source: &mut *self.source, left };
        content.read_exact(buffer).map_err(|error| read_error(&path.to_string(), error))
    }

    /// Hands a piece, whose bytes are taken of the budget, to the workers and returns its size.
    fn store_piece(&self, job: Job) -> u64 {
        let size = job.plain.len() as u64;
        let shared = self.shared;
        shared.mailbox().jobs += 1;
        self.workers.spawn(move |_| shared.work(job));
        size
    }
}

/// Content of the current change that must not end early.
struct ExactReader<'a> {
    source: &'a mut dyn ChangeSource,
    left: u64,
}

impl Read for ExactReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if length == 0 {
            return Ok(0);
        }
        let size = self.source.read(&mut buffer[..length])?;
        if size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the content is shorter than announced"));
        }
        self.left -= size as u64;
        Ok(size)
    }
}

fn copy(content: &mut dyn Read, sink: &mut dyn io::Write, progress: impl Fn(u64)) -> io::Result<()> {
    let mut block = vec![0; BLOCK_SIZE];
    loop {
        let size = content.read(&mut block)?;
        if size == 0 {
            return Ok(());
        }
        sink.write_all(&block[..size])?;
        progress(size as u64);
    }
}

/// A change that waits for its pieces or for changes before it.
enum Waiting {
    Ready(Change),
    File { path: RepoPath, metadata: Metadata, size: u64, pieces: Vec<Piece>, expected: Option<usize> },
}

/// Puts results into source order.
struct Recorder<'a> {
    options: &'a Options,
    changes: &'a mut ChangeSet,
    next: u64,
    waiting: BTreeMap<u64, (Option<Origin>, Waiting)>,
    outcome: Outcome,
}

impl Recorder<'_> {
    /// Takes in the next change.
    fn add(&mut self, number: u64, origin: Option<Origin>, waiting: Waiting) -> Result<()> {
        self.waiting.insert(number, (origin, waiting));
        self.record_complete()
    }

    /// Learns how many pieces a file has.
    fn expect(&mut self, number: u64, count: usize) -> Result<()> {
        if let Some((_, Waiting::File { expected, .. })) = self.waiting.get_mut(&number) {
            *expected = Some(count);
        }
        self.record_complete()
    }

    /// Takes in stored pieces; fails if one could not be stored.
    fn take(&mut self, results: Vec<(u64, Result<Piece>)>) -> Result<()> {
        for (number, piece) in results {
            let piece = piece?;
            match piece.put {
                Put::New => {
                    self.outcome.objects_new += 1;
                    self.outcome.bytes_stored += piece.stored_size;
                }
                Put::Present => self.outcome.objects_reused += 1,
            }
            if let Some((_, Waiting::File { pieces, .. })) = self.waiting.get_mut(&number) {
                pieces.push(piece);
            }
        }
        self.record_complete()
    }

    /// Records what is complete and not waiting for anything before it.
    fn record_complete(&mut self) -> Result<()> {
        while let Some(first) = self.waiting.first_entry()
            && *first.key() == self.next
            && first.get().1.is_complete()
        {
            let (origin, waiting) = first.remove();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::changeset::Op;
    use crate::entry::Mtime;
    use crate::hash::ContentHash;
    use crate::object;
    use crate::progress::Silent;
    use crate::storage::{Key, MemoryStore, NamedFile, ReadStore, StagedObject};
    use crate::xattr::Xattrs;

    /// Gives files of these contents, by name; fails where `None` stands.
    struct Files {
        contents: Vec<(String, Option<Vec<u8>>)>,
        next: usize,
        at: usize,
        announced: Option<u64>,
    }

    impl Files {
        fn new(files: Vec<(String, Option<Vec<u8>>)>) -> Self {
            Self { contents: files, next: 0, at: 0, announced: None }
        }
    }

    impl ChangeSource for Files {
        fn next(&mut self) -> Result<Option<Change>> {
            let Some((name, content)) = self.contents.get(self.next) else { return Ok(None) };
            (self.next, self.at) = (self.next + 1, 0);
            let content = content.as_ref().ok_or_else(|| Error::invalid("source", "broken"))?;
            let metadata =
                Metadata { permissions: 0o644, uid: 0, gid: 0, mtime: Mtime::seconds(0), xattrs: Xattrs::new() };
            let size = self.announced.unwrap_or(content.len() as u64);
            Ok(Some(Change::Put { path: name.parse()?, metadata, content: Content::Read { size } }))
        }

        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let content = self.contents[self.next - 1].1.as_deref().unwrap_or_default();
            let size = buffer.len().min(content.len() - self.at).min(1000);
            buffer[..size].copy_from_slice(&content[self.at..self.at + size]);
            self.at += size;
            Ok(size)
        }
    }

    /// A store that fails at the n-th object.
    #[derive(Debug)]
    struct Failing(MemoryStore, AtomicUsize);

    impl ReadStore for Failing {
        fn describe(&self, key: &Key) -> String {
            self.0.describe(key)
        }
        fn read(&self, key: &Key) -> Result<Vec<u8>> {
            self.0.read(key)
        }
        fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
            self.0.open(key)
        }
        fn size(&self, key: &Key) -> Result<Option<u64>> {
            self.0.size(key)
        }
    }

    impl WriteStore for Failing {
        fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
            if self.1.fetch_sub(1, Ordering::Relaxed) == 0 {
                return Err(Error::Unavailable { what: "store".into(), reason: "full".into() });
            }
            self.0.put(id, stored)
        }
        fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
            self.0.reuse(id, stored_size)
        }
        fn stage(&self) -> Result<Box<dyn StagedObject>> {
            self.0.stage()
        }
        fn discard(&self, id: &ObjectId) -> Result<()> {
            self.0.discard(id)
        }
        fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
            self.0.write(file, bytes)
        }
        fn remove(&self, file: NamedFile) -> Result<()> {
            self.0.remove(file)
        }
        fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
            self.0.put_shortcut(id)
        }
        fn flush(&self) -> Result<()> {
            self.0.flush()
        }
        fn remove_abandoned(&self, before: crate::clock::UnixSeconds) -> Result<u64> {
            self.0.remove_abandoned(before)
        }
    }

    fn noise(seed: u32, size: usize) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(size).collect()
    }

    /// Bytes that no compressor shrinks; the generator of `noise` repeats itself too soon.
    fn random(seed: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn small_chunks() -> Options {
        Options { chunking: Some(ChunkSizes::new(1024, 2048, 4096).unwrap()), ..Options::default() }
    }

    fn run_on(source: &mut Files, store: &dyn WriteStore, options: &Options) -> Result<Results> {
        run_with(source, store, None, options)
    }

    type Results = (Outcome, Vec<(String, FileContent)>);

    fn run_with(
        source: &mut Files,
        store: &dyn WriteStore,
        known: Option<&KnownContent>,
        options: &Options,
    ) -> Result<Results> {
        let directory = tempfile::tempdir().unwrap();
        let mut changes = ChangeSet::create(&directory.path().join("set"), ContentHash::null(Algorithm::Sha1))?;
        let outcome = run(source, store, &mut changes, known, options, &Silent, &Cancel::new())?;
        let mut files = Vec::new();
        changes.for_each(|pending| {
            if let Op::Put(entry) = pending.op
                && let EntryKind::File(file) = entry.kind
            {
                files.push((pending.path.to_string(), file));
            }
            Ok(())
        })?;
        Ok((outcome, files))
    }

    #[test]
    fn content_reads_back_on_any_number_of_threads_and_in_any_form() {
        let contents: Vec<Vec<u8>> =
            (0..40).map(|index| noise(index, [0, 1, 1023, 1024, 1025, 5000, 70_000][index as usize % 7])).collect();
        let mut results = Vec::new();
        for (threads, compression, chunked) in [
            (1, Policy::Zlib, true),
            (2, Policy::Zlib, true),
            (8, Policy::Zlib, true),
            (2, Policy::None, true),
            (2, Policy::Zlib, false),
            (1, Policy::Auto, true),
            (8, Policy::Auto, true),
        ] {
            let options = Options { threads, compression, max_bytes_in_flight: Some(1), ..small_chunks() };
            let options = if chunked { options } else { Options { chunking: None, ..options } };
            let files =
                contents.iter().enumerate().map(|(index, content)| (format!("f{index:02}"), Some(content.clone())));
            let store = MemoryStore::new();
            let (outcome, files) = run_on(&mut Files::new(files.collect()), &store, &options).unwrap();
            assert_eq!(outcome.files, 40);
            assert_eq!(outcome.bytes_read, contents.iter().map(|content| content.len() as u64).sum::<u64>());
            for ((_, file), content) in files.iter().zip(&contents) {
                let mut plain = Vec::new();
                for (id, size) in file.parts() {
                    let before = plain.len();
                    object::open(&store, &id, file.compression).unwrap().read_to_end(&mut plain).unwrap();
                    assert_eq!((plain.len() - before) as u64, size);
                }
                assert_eq!(plain, *content);
            }
            results.push(files);
        }
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
        assert_eq!(results[5], results[6]);
    }

    /// Text shrinks, noise does not.
    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let text = |size: usize| b"all work and no play ".iter().copied().cycle().take(size).collect::<Vec<u8>>();
        let noise = |size| random(7, size);
        let large = usize::try_from(WHOLE_FILE_MAX).unwrap() + 1;
        let chunked = small_chunks().chunking;
        let directory = tempfile::tempdir().unwrap();
        let known = KnownContent::open(&directory.path().join("known"), 1000).unwrap();
        let store = MemoryStore::new();
        for (content, chunking, expected) in [
            (text(500), chunked, Compression::Zlib),
            (noise(500), chunked, Compression::None),
            (b"short".to_vec(), chunked, Compression::None),
            // Without a cut: zeros would have none, but for the largest size.
            (vec![0; 4096], chunked, Compression::Zlib),
            (text(50_000), chunked, Compression::Zlib),
            (noise(50_000), chunked, Compression::None),
            ([text(5000), noise(50_000)].concat(), chunked, Compression::Zlib),
            ([noise(5000), text(50_000)].concat(), chunked, Compression::None),
            (text(large), None, Compression::Zlib),
            (noise(large), None, Compression::None),
        ] {
            let options = Options { compression: Policy::Auto, chunking, ..Options::default() };
            for known in [None, Some(&known), Some(&known)] {
                let mut source = Files::new(vec![("file".into(), Some(content.clone()))]);
                let (_, files) = run_with(&mut source, &store, known, &options).unwrap();
                let file = &files[0].1;
                assert_eq!(file.compression, expected, "{} bytes", content.len());
                let mut plain = Vec::new();
                for (id, _) in file.parts() {
                    object::open(&store, &id, file.compression).unwrap().read_to_end(&mut plain).unwrap();
                }
                assert!(plain == content);
            }
        }
    }

    /// What was stored for one policy says nothing about another.
    #[test]
    fn the_result_does_not_depend_on_who_filled_the_index() {
        let directory = tempfile::tempdir().unwrap();
        let known = KnownContent::open(&directory.path().join("known"), 1000).unwrap();
        let store = MemoryStore::new();
        for _ in 0..2 {
            for (compression, expected) in [
                (Policy::Zlib, [Compression::Zlib, Compression::Zlib]),
                (Policy::None, [Compression::None, Compression::None]),
                (Policy::Auto, [Compression::Zlib, Compression::None]),
            ] {
                let contents = vec![("a".into(), Some(vec![0; 500])), ("b".into(), Some(random(7, 500)))];
                let options = Options { compression, ..Options::default() };
                let (_, files) = run_with(&mut Files::new(contents), &store, Some(&known), &options).unwrap();
                assert_eq!([files[0].1.compression, files[1].1.compression], expected, "{compression}");
            }
        }
    }

    /// The data and boundaries are those of the chunking test vectors.
    #[test]
    fn large_files_are_cut_and_files_without_a_cut_are_not_chunks() {
        let files = vec![("chunked".into(), Some(noise(1, 65_536))), ("whole".into(), Some(vec![0; 4096]))];
        let (_, files) = run_on(&mut Files::new(files), &MemoryStore::new(), &small_chunks()).unwrap();
        let FileObjects::Chunked { chunks, bulk: None } = &files[0].1.objects else { panic!("not chunked: {files:?}") };
        let offsets: Vec<u64> = chunks.iter().map(|chunk| chunk.offset).collect();
        assert_eq!(offsets[..4], [0, 1860, 5956, 7356]);
        assert_eq!(offsets.len(), 35);
        assert!(matches!(files[1].1.objects, FileObjects::Whole(_)));
    }

    #[test]
    fn a_large_file_without_chunking_is_streamed_into_one_object() {
        let size = usize::try_from(WHOLE_FILE_MAX).unwrap() + 1;
        let files = vec![("large".into(), Some(vec![7; size]))];
        let store = MemoryStore::new();
        let (outcome, files) =
            run_on(&mut Files::new(files), &store, &Options { chunking: None, ..Options::default() }).unwrap();
        let [(id, length)] = files[0].1.parts()[..] else { panic!("more than one object") };
        assert_eq!((length, outcome.objects_new), (size as u64, 1));
        let mut plain = Vec::new();
        object::open(&store, &id, Compression::Zlib).unwrap().read_to_end(&mut plain).unwrap();
        assert!(plain == vec![7; size]);
    }

    #[test]
    fn the_first_failure_ends_the_run_wherever_it_happens() {
        let files = || (0..100).map(|index| (format!("f{index:02}"), Some(noise(index, 3000)))).collect::<Vec<_>>();
        let (_, stored) = run_on(&mut Files::new(files()), &MemoryStore::new(), &small_chunks()).unwrap();
        let objects: usize = stored.iter().map(|(_, file)| file.parts().len()).sum();
        for failing in [0, 1, 50, objects - 1] {
            let store = Failing(MemoryStore::new(), AtomicUsize::new(failing));
            let error = run_on(&mut Files::new(files()), &store, &small_chunks()).unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "object {failing}: {error}");
        }
        for failing in [0, 1, 99] {
            let mut files = files();
            files[failing].1 = None;
            let error = run_on(&mut Files::new(files), &MemoryStore::new(), &small_chunks()).unwrap_err();
            assert!(matches!(error, Error::InvalidInput { .. }), "change {failing}: {error}");
        }
    }

    #[test]
    fn content_shorter_than_announced_is_an_error() {
        for size in [10, 5000] {
            let mut source = Files::new(vec![("short".into(), Some(vec![1; size]))]);
            source.announced = Some(size as u64 + 1);
            let error = run_on(&mut source, &MemoryStore::new(), &small_chunks()).unwrap_err();
            assert!(error.to_string().contains("shorter than announced"), "{error}");
        }
    }

    #[test]
    fn a_cancelled_run_stops() {
        let directory = tempfile::tempdir().unwrap();
        let mut changes = ChangeSet::create(&directory.path().join("set"), ContentHash::null(Algorithm::Sha1)).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        let mut source = Files::new(vec![("f".into(), Some(vec![1]))]);
        let result = run(&mut source, &MemoryStore::new(), &mut changes, None, &Options::default(), &Silent, &cancel);
        assert!(matches!(result, Err(Error::Cancelled)));
    }
}
