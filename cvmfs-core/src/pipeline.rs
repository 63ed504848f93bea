//! The pipeline: from a stream of changes to stored objects and a change set.
//!
//! ```text
//! source thread            workers (all cores)             recorder thread
//! next change, read, cut ─► deflate, hash, put ─► results ─► change set, in source order
//! ```
//!
//! Memory is bounded by the bytes in flight, whatever the number or size of files: the source thread takes its bytes
//! from a [`Budget`], workers give them back.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::{mem, thread};

use crate::change::{Change, ChangeSource, Content, Metadata};
use crate::changeset::ChangeSet;
use crate::chunking::ChunkSizes;
use crate::compression::{CompressingWriter, Compression, Compressor, Effort};
use crate::entry::{Chunk, EntryKind, FileContent, FileObjects};
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ObjectId, ObjectKind};
use crate::object::{ObjectWriter, StoredObject, read_error};
use crate::path::RepoPath;
use crate::progress::{Cancel, Progress};
use crate::storage::{Put, WriteStore};

/// Bytes read from the source at a time.
const BLOCK_SIZE: usize = 256 * 1024;
/// What a change costs of the budget besides its content: it waits in memory for those before it.
const CHANGE_COST: usize = 1024;
/// A file that is not cut and larger than this is deflated as a stream instead of whole in memory.
const WHOLE_FILE_MAX: u64 = 16 << 20;

/// How content becomes objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hash algorithm of new objects.
    pub algorithm: Algorithm,
    /// Compression of new objects.
    pub compression: Compression,
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
            compression: Compression::default(),
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
/// # Errors
/// Those of source, storage and change set; the first one ends the run. Objects that were stored stay: the next run
/// finds them.
pub fn run(
    source: &mut dyn ChangeSource,
    store: &dyn WriteStore,
    changes: &mut ChangeSet,
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
        options,
        progress,
        budget: Budget::new(in_flight),
        compressors: Mutex::default(),
        failed: AtomicBool::new(false),
    };
    let (results, inbox) = channel();
    thread::scope(|threads| {
        let recorder =
            Recorder { changes, shared: &shared, next: 0, waiting: BTreeMap::new(), outcome: Outcome::default() };
        let recorder = threads.spawn(move || recorder.run(&inbox));
        let read =
            pool.in_place_scope(|workers| Reader { source, shared: &shared, workers, results, cancel, next: 0 }.run());
        let recorded = recorder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A recorder's failure comes first: the reader then only stopped because of it.
        match (recorded, read) {
            (Ok(outcome), Ok(())) => Ok(outcome),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    })
}

/// What all threads see.
struct Shared<'a> {
    store: &'a dyn WriteStore,
    options: &'a Options,
    progress: &'a dyn Progress,
    budget: Budget,
    /// Idle compressors, with their working memory.
    compressors: Mutex<Vec<Compressor>>,
    /// Set by the recorder when going on makes no sense.
    failed: AtomicBool,
}

/// A message to the recorder; numbers count the changes of the source.
enum Message {
    /// A change that needs no content.
    Ready(u64, Change),
    /// A file whose content follows, in any order.
    File(u64, RepoPath, Metadata, u64),
    /// A stored piece of a file.
    Piece(u64, Result<Piece>),
    /// The file was read to its end and has so many pieces.
    End(u64, usize),
}

/// A stored piece of a file.
struct Piece {
    chunk: Chunk,
    kind: ObjectKind,
    stored_size: u64,
    put: Put,
}

/// The source thread: reads and cuts.
struct Reader<'a, 'scope, 'env> {
    source: &'a mut dyn ChangeSource,
    shared: &'env Shared<'env>,
    workers: &'a rayon::Scope<'scope>,
    results: Sender<Message>,
    cancel: &'a Cancel,
    next: u64,
}

impl<'env: 'scope, 'scope> Reader<'_, 'scope, 'env> {
    fn run(mut self) -> Result<()> {
        while let Some(change) = self.source.next()? {
            self.cancel.check()?;
            if self.shared.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.shared.budget.take(CHANGE_COST);
            let number = self.next;
            self.next += 1;
            match change {
                Change::Put { path, metadata, content: Content::Read { size } } => {
                    self.send(Message::File(number, path.clone(), metadata, size));
                    let pieces = self.read_file(number, &path, size)?;
                    self.send(Message::End(number, pieces));
                }
                change => self.send(Message::Ready(number, change)),
            }
        }
        Ok(())
    }

    /// The recorder only stops listening when it has failed, which `run` notices.
    fn send(&self, message: Message) {
        let _ = self.results.send(message);
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
        self.shared.budget.take(length);
        let mut bytes = vec![0; length];
        self.read_exact(path, &mut bytes)?;
        self.store_piece(number, 0, ObjectKind::File, bytes);
        Ok(())
    }

    /// Reads a file that may become several objects, and returns their number.
    fn read_chunks(&mut self, number: u64, path: &RepoPath, size: u64, sizes: ChunkSizes) -> Result<usize> {
        let mut cutter = sizes.cutter();
        let mut block = vec![0; BLOCK_SIZE];
        let (mut piece, mut pieces, mut offset, mut left) = (Vec::new(), 0, 0, size);
        while left > 0 {
            let length = usize::try_from(left).map_or(BLOCK_SIZE, |left| left.min(BLOCK_SIZE));
            self.shared.budget.take(length);
            self.read_exact(path, &mut block[..length])?;
            left -= length as u64;
            let mut rest = &block[..length];
            while let Some(cut) = cutter.next_cut(rest) {
                piece.extend_from_slice(&rest[..cut]);
                rest = &rest[cut..];
                offset += self.store_piece(number, offset, ObjectKind::Chunk, mem::take(&mut piece));
                pieces += 1;
            }
            piece.extend_from_slice(rest);
        }
        // A file without a cut is stored as if it had been small.
        let kind = if pieces == 0 { ObjectKind::File } else { ObjectKind::Chunk };
        self.store_piece(number, offset, kind, piece);
        Ok(pieces + 1)
    }

    /// Reads a large file that becomes one object, without holding it in memory.
    fn read_stream(&mut self, number: u64, path: &RepoPath, size: u64) -> Result<()> {
        let Options { algorithm, compression, effort, .. } = *self.shared.options;
        let mut content = ExactReader { source: &mut *self.source, left: size };
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
        self.send(Message::Piece(number, Ok(Piece { chunk, kind: ObjectKind::File, stored_size, put })));
        Ok(())
    }

    fn read_exact(&mut self, path: &RepoPath, buffer: &mut [u8]) -> Result<()> {
        let left = buffer.len() as u64;
        let mut content = ExactReader { source: &mut *self.source, left };
        content.read_exact(buffer).map_err(|error| read_error(&path.to_string(), error))
    }

    /// Hands a piece to the workers and returns its size.
    fn store_piece(&self, number: u64, offset: u64, kind: ObjectKind, plain: Vec<u8>) -> u64 {
        let size = plain.len() as u64;
        let results = self.results.clone();
        let shared = self.shared;
        self.workers.spawn(move |_| {
            let piece = shared.store_piece(offset, kind, &plain);
            shared.budget.give(plain.len());
            shared.progress.advance(plain.len() as u64);
            let _ = results.send(Message::Piece(number, piece));
        });
        size
    }
}

impl Shared<'_> {
    /// A worker's job: deflate, hash, put.
    fn store_piece(&self, offset: u64, kind: ObjectKind, plain: &[u8]) -> Result<Piece> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let deflated;
        let stored = match self.options.compression {
            Compression::Zlib => {
                let idle = self.compressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut compressor = idle.unwrap_or_else(|| Compressor::new(self.options.effort));
                deflated = compressor.compress(plain);
                self.compressors.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
                &deflated[..]
            }
            Compression::None => plain,
        };
        let id = ObjectId::of(self.options.algorithm, kind, stored);
        let put = self.store.put(&id, stored)?;
        let chunk = Chunk { offset, size: plain.len() as u64, hash: id.hash };
        Ok(Piece { chunk, kind, stored_size: stored.len() as u64, put })
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

/// The recorder thread: puts results into source order.
struct Recorder<'a> {
    changes: &'a mut ChangeSet,
    shared: &'a Shared<'a>,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    outcome: Outcome,
}

impl Recorder<'_> {
    fn run(mut self, inbox: &Receiver<Message>) -> Result<Outcome> {
        let result = inbox.iter().try_for_each(|message| self.receive(message));
        if result.is_err() {
            self.shared.failed.store(true, Ordering::Relaxed);
            // The reader may be waiting for the budget of changes that nobody will record any more.
            self.shared.budget.open();
        }
        result.map(|()| self.outcome)
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Ready(number, change) => {
                self.waiting.insert(number, Waiting::Ready(change));
            }
            Message::File(number, path, metadata, size) => {
                self.waiting.insert(number, Waiting::File { path, metadata, size, pieces: Vec::new(), expected: None });
            }
            Message::Piece(number, piece) => {
                let piece = piece?;
                match piece.put {
                    Put::New => {
                        self.outcome.objects_new += 1;
                        self.outcome.bytes_stored += piece.stored_size;
                    }
                    Put::Present => self.outcome.objects_reused += 1,
                }
                if let Some(Waiting::File { pieces, .. }) = self.waiting.get_mut(&number) {
                    pieces.push(piece);
                }
            }
            Message::End(number, count) => {
                if let Some(Waiting::File { expected, .. }) = self.waiting.get_mut(&number) {
                    *expected = Some(count);
                }
            }
        }
        while self
            .waiting
            .first_key_value()
            .is_some_and(|(number, waiting)| *number == self.next && waiting.is_complete())
        {
            let Some((_, waiting)) = self.waiting.pop_first() else { break };
            self.next += 1;
            self.record(waiting)?;
            self.shared.budget.give(CHANGE_COST);
        }
        Ok(())
    }

    fn record(&mut self, waiting: Waiting) -> Result<()> {
        self.outcome.changes += 1;
        match waiting {
            Waiting::Ready(change) => {
                match &change {
                    Change::Put { content: Content::Directory, .. } | Change::Ensure { .. } => {
                        self.outcome.directories += 1
                    }
                    Change::Put { content: Content::Symlink { .. }, .. } => self.outcome.symlinks += 1,
                    Change::Put { content: Content::Special(_), .. } => self.outcome.specials += 1,
                    Change::Put { .. } => self.outcome.files += 1,
                    Change::Link { .. } => self.outcome.hardlinks += 1,
                    Change::Remove { .. } | Change::Clear { .. } => {}
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
                let Options { compression, external, .. } = *self.shared.options;
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

/// Bytes that may be in flight.
struct Budget {
    left: Mutex<Option<usize>>,
    given: Condvar,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        Self { left: Mutex::new(Some(bytes)), given: Condvar::new() }
    }

    /// Waits until so many bytes are left, and takes them.
    fn take(&self, bytes: usize) {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self
            .given
            .wait_while(left, |left| left.is_some_and(|left| left < bytes))
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = &mut *left {
            *left -= bytes;
        }
    }

    fn give(&self, bytes: usize) {
        if let Some(left) = &mut *self.left.lock().unwrap_or_else(PoisonError::into_inner) {
            *left += bytes;
        }
        self.given.notify_one();
    }

    /// Lets everybody through from now on.
    fn open(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.given.notify_all();
    }
}
