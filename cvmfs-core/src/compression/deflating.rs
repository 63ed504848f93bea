//! Zlib streams as writers.

use std::fmt;
use std::io::{self, Write};

use rayon::prelude::*;
use zlib_rs::adler32::adler32;
use zlib_rs::{Deflate, DeflateFlush};

use super::{WINDOW_BITS, difference, room};

/// Plain bytes of a block.
const BLOCK_SIZE: usize = 256 * 1024;
/// How far back in the plain bytes a block refers.
const WINDOW_SIZE: usize = 1 << WINDOW_BITS;
/// The header of a zlib stream with the largest window.
const HEADER: [u8; 2] = [0x78, 0x9c];
/// More than an empty block takes, which brings a stream to the border of a byte.
const BORDER: usize = 64;

/// A writer that deflates what it gets, with zlib-rs on several threads, into another writer.
///
/// Each block is deflated on its own and refers to what is before it, so the stream is the same on any number of threads,
/// and hardly longer than one that was made in one piece.
pub struct CompressingWriter<W: Write> {
    sink: W,
    /// The window of the next block, and what is not deflated yet.
    plain: Vec<u8>,
    window: usize,
    threads: Vec<Block>,
    checksum: u32,
}

/// The working memory of a thread.
struct Block {
    deflate: Deflate,
    stored: Vec<u8>,
    size: usize,
}

impl<W: Write> fmt::Debug for CompressingWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CompressingWriter")
    }
}

impl<W: Write> CompressingWriter<W> {
    /// Begins a zlib stream of level 1 to 9, on so many threads of the pool that it is used in; 0 for all of them.
    pub fn new(mut sink: W, level: u8, threads: usize) -> io::Result<Self> {
        sink.write_all(&HEADER)?;
        let threads = if threads == 0 { rayon::current_num_threads() } else { threads };
        let block = |_| Block {
            deflate: Deflate::new(i32::from(level.clamp(1, 9)), false, WINDOW_BITS),
            stored: Vec::new(),
            size: 0,
        };
        Ok(Self { sink, plain: Vec::new(), window: 0, threads: (0..threads).map(block).collect(), checksum: 1 })
    }

    /// Ends the stream and returns the sink.
    pub fn finish(mut self) -> io::Result<W> {
        self.deflate(DeflateFlush::Finish)?;
        self.sink.write_all(&self.checksum.to_be_bytes())?;
        Ok(self.sink)
    }

    /// Deflates what is there, a block a thread. `end` is the end of the last one.
    fn deflate(&mut self, end: DeflateFlush) -> io::Result<()> {
        let (plain, start) = (&self.plain[..], self.window);
        let blocks = (plain.len() - start).div_ceil(BLOCK_SIZE).max(1);
        self.threads[..blocks].par_iter_mut().enumerate().try_for_each(|(index, block)| {
            let from = start + index * BLOCK_SIZE;
            let to = plain.len().min(from + BLOCK_SIZE);
            let end = if index + 1 == blocks { end } else { DeflateFlush::SyncFlush };
            block.deflate(&plain[from.saturating_sub(WINDOW_SIZE)..from], &plain[from..to], end)
        })?;
        self.checksum = adler32(self.checksum, &plain[start..]);
        self.threads[..blocks].iter().try_for_each(|block| self.sink.write_all(&block.stored[..block.size]))?;
        self.plain.drain(..self.plain.len().saturating_sub(WINDOW_SIZE));
        self.window = self.plain.len();
        Ok(())
    }
}

impl Block {
    fn deflate(&mut self, window: &[u8], plain: &[u8], end: DeflateFlush) -> io::Result<()> {
        self.deflate.reset();
        if !window.is_empty() {
            self.deflate.set_dictionary(window).map_err(|error| io::Error::other(error.as_str()))?;
        }
        let stored = room(&mut self.stored, zlib_rs::compress_bound(plain.len()) + BORDER);
        self.deflate.compress(plain, stored, end).map_err(|error| io::Error::other(error.as_str()))?;
        self.size = difference(self.deflate.total_out(), 0);
        assert!(self.size < stored.len(), "the output has the size bound of the format");
        Ok(())
    }
}

impl<W: Write> Write for CompressingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = |writer: &Self| writer.window + writer.threads.len() * BLOCK_SIZE - writer.plain.len();
        // Not as soon as it is full: the last block of a stream has another end.
        if room(self) == 0 {
            self.deflate(DeflateFlush::SyncFlush)?;
        }
        let length = bytes.len().min(room(self));
        self.plain.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
