//! The source thread: reads, cuts, and records what is stored.

use std::io::{self, Read};
use std::mem;

use super::recorder::{Recorder, Waiting};
use super::worker::{Batch, Job, Piece, Shared, Wanted};
use super::{BLOCK_SIZE, Options, WHOLE_FILE_MAX};
use crate::change::{Change, ChangeSource, Content};
use crate::chunking::ChunkSizes;
use crate::compression::{CompressingWriter, Compression};
use crate::entry::Chunk;
use crate::error::{Error, Result};
use crate::hash::ObjectKind;
use crate::object::{ObjectWriter, StoredObject, read_error};
use crate::path::RepoPath;
use crate::progress::Cancel;

/// Most changes that wait in memory for one before them.
const MAX_WAITING: usize = 20_000;
/// Bytes at the beginning of a large file by which it is judged whether it is worth deflating.
const JUDGED_SIZE: usize = 1 << 20;
/// Files up to this size go to the workers together.
const SMALL_FILE: usize = 64 * 1024;
/// Plain bytes, or pieces, that are enough for a worker.
const BATCH_BYTES: usize = 256 * 1024;
const BATCH_PIECES: usize = 128;

/// The state of the source thread.
pub(super) struct Reader<'a, 'scope, 'env> {
    source: &'a mut dyn ChangeSource,
    shared: &'env Shared<'env>,
    workers: &'a rayon::Scope<'scope>,
    recorder: &'a mut Recorder<'env>,
    cancel: &'a Cancel,
    next: u64,
    /// Small files that are not with the workers yet.
    batch: Batch,
}

impl<'a, 'env: 'scope, 'scope> Reader<'a, 'scope, 'env> {
    pub(super) fn new(
        source: &'a mut dyn ChangeSource,
        shared: &'env Shared<'env>,
        workers: &'a rayon::Scope<'scope>,
        recorder: &'a mut Recorder<'env>,
        cancel: &'a Cancel,
    ) -> Self {
        Self { source, shared, workers, recorder, cancel, next: 0, batch: shared.batch() }
    }

    /// Reads the source to its end, until everything is stored and recorded.
    pub(super) fn run(&mut self) -> Result<()> {
        while let Some(change) = self.source.next()? {
            self.cancel.check()?;
            let number = self.next;
            self.next += 1;
            let origin = self.source.origin();
            match change {
                Change::Put { path, metadata, content: Content::Read { size } } => {
                    check_size(&path, size, self.shared.options.file_size_limit)
                        .map_err(|error| error.from_origin(origin.as_ref()))?;
                    let file = Waiting::File { path: path.clone(), metadata, size, pieces: Vec::new(), expected: None };
                    self.recorder.add(origin, file)?;
                    let pieces = self.read_file(number, &path, size)?;
                    self.recorder.expect(number, pieces)?;
                }
                change => self.recorder.add(origin, Waiting::Ready(change))?,
            }
            if self.recorder.waiting() > MAX_WAITING {
                self.wait(Wanted { bytes: usize::MAX, jobs: 0 })?;
            }
        }
        self.wait(Wanted { bytes: 0, jobs: 0 })
    }

    /// Waits until so little is in flight, and records what came in.
    fn wait(&mut self, wanted: Wanted) -> Result<()> {
        self.hand_over();
        self.recorder.take(self.shared.wait(wanted))
    }

    /// Takes so many bytes of the budget.
    fn take(&mut self, bytes: usize) -> Result<()> {
        if !self.shared.try_take(bytes) {
            // Not woken for every batch of small files: the workers have enough to do until half of it is gone. Large pieces
            // are few, and the next one has to be there when a worker is done with its own.
            let room = self.shared.in_flight.saturating_sub(bytes);
            let low = if bytes > SMALL_FILE { room } else { room.min(self.shared.in_flight / 2) };
            self.wait(Wanted { bytes: low, jobs: usize::MAX })?;
            self.shared.take(bytes);
        }
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
        let compression = self.shared.options.compression;
        let job = Job { number, offset: 0, kind: ObjectKind::File, compression };
        if length > SMALL_FILE {
            let mut plain = vec![0; length];
            self.read_exact(path, &mut plain)?;
            self.store_piece(job, plain);
            return Ok(());
        }
        let (source, cancel) = (&mut *self.source, self.cancel);
        self.batch.add(job, length, |plain| read_exact(source, cancel, path, plain))?;
        if self.batch.bytes() >= BATCH_BYTES || self.batch.len() >= BATCH_PIECES {
            self.hand_over();
            self.recorder.take(self.shared.results())?;
        }
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
                offset += self.store_piece(Job { number, offset, kind: ObjectKind::Chunk, compression }, plain);
                pieces += 1;
            }
            piece.extend_from_slice(rest);
        }
        // A file without a cut is stored as if it had been small.
        let kind = if pieces == 0 { ObjectKind::File } else { ObjectKind::Chunk };
        self.store_piece(Job { number, offset, kind, compression }, piece);
        Ok(pieces + 1)
    }

    /// Reads a large file that becomes one object, without holding it in memory.
    fn read_stream(&mut self, number: u64, path: &RepoPath, size: u64) -> Result<()> {
        let Options { algorithm, compression, effort, threads, .. } = *self.shared.options;
        let mut start = vec![0; JUDGED_SIZE];
        self.read_exact(path, &mut start)?;
        let compression = compression.judge(effort.engine, &start);
        let left = size - start.len() as u64;
        let mut content =
            io::Cursor::new(start).chain(ExactReader { source: &mut *self.source, cancel: self.cancel, left });
        let fail = |error| read_error(&path.to_string(), error);
        let mut sink = ObjectWriter::new(self.shared.store, algorithm)?;
        let progress = |size| self.shared.progress.advance(size);
        match compression {
            Compression::Zlib => {
                let mut writer = CompressingWriter::new(&mut sink, effort.level, threads).map_err(fail)?;
                copy(&mut content, &mut writer, progress).and_then(|()| writer.finish()).map_err(fail)?;
            }
            Compression::None => copy(&mut content, &mut sink, progress).map_err(fail)?,
        }
        let StoredObject { id, stored_size, put } = sink.finish(ObjectKind::File)?;
        let chunk = Chunk { offset: 0, size, hash: id.hash };
        self.recorder.take(vec![(number, Ok(Piece { chunk, kind: ObjectKind::File, compression, stored_size, put }))])
    }

    fn read_exact(&mut self, path: &RepoPath, buffer: &mut [u8]) -> Result<()> {
        read_exact(&mut *self.source, self.cancel, path, buffer)
    }

    /// Hands a piece, whose bytes are taken of the budget, to the workers and returns its size.
    fn store_piece(&self, job: Job, plain: Vec<u8>) -> u64 {
        let size = plain.len() as u64;
        self.spawn(Batch::of(job, plain));
        size
    }

    /// Hands small files to the workers.
    fn hand_over(&mut self) {
        if self.batch.len() > 0 {
            let next = self.shared.batch();
            let batch = mem::replace(&mut self.batch, next);
            self.spawn(batch);
        }
    }

    fn spawn(&self, batch: Batch) {
        let shared = self.shared;
        shared.expect(batch.len());
        self.workers.spawn(move |_| shared.work(batch));
    }
}

/// Reads content of the current change.
fn read_exact(source: &mut dyn ChangeSource, cancel: &Cancel, path: &RepoPath, buffer: &mut [u8]) -> Result<()> {
    let left = buffer.len() as u64;
    ExactReader { source, cancel, left }.read_exact(buffer).map_err(|error| read_error(&path.to_string(), error))
}

fn check_size(path: &RepoPath, size: u64, limit: u64) -> Result<()> {
    if size > limit {
        let reason = format!("it has {size} bytes; the limit for files is {limit} (CVMFS_FILE_MBYTE_LIMIT)");
        return Err(Error::invalid(path.to_string(), reason));
    }
    Ok(())
}

/// Content of the current change that must not end early.
struct ExactReader<'a> {
    source: &'a mut dyn ChangeSource,
    cancel: &'a Cancel,
    left: u64,
}

impl Read for ExactReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if length == 0 {
            return Ok(0);
        }
        // Files of holes are long, and read fast.
        self.cancel.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
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
