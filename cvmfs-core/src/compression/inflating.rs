//! Zlib streams as readers.

use std::fmt;
use std::io::{self, Read};

use zlib_rs::{Inflate, InflateFlush, Status};

use super::{BLOCK_SIZE, WINDOW_BITS, difference, invalid};

/// A reader that inflates one zlib stream.
///
/// Its errors of kind `InvalidData` mean that the stream is malformed, cut short or followed by other bytes.
pub struct InflatingReader<R: Read> {
    inflate: Inflate,
    source: R,
    block: Box<[u8]>,
    /// The part of `block` that is not consumed yet.
    pending: std::ops::Range<usize>,
    done: bool,
}

impl<R: Read> fmt::Debug for InflatingReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InflatingReader")
    }
}

impl<R: Read> InflatingReader<R> {
    /// Reads a zlib stream from `source`.
    pub fn new(source: R) -> Self {
        Self {
            inflate: Inflate::new(true, WINDOW_BITS),
            source,
            block: vec![0; BLOCK_SIZE].into(),
            pending: 0..0,
            done: false,
        }
    }

    /// After the end of the zlib stream the source must end, too: its own checks run at its end.
    fn expect_end(&mut self) -> io::Result<()> {
        self.done = true;
        if !self.pending.is_empty() || self.source.read(&mut self.block)? > 0 {
            return Err(invalid("data after the end of the zlib stream"));
        }
        Ok(())
    }
}

impl<R: Read> Read for InflatingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.done || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let mut at_end = false;
            if self.pending.is_empty() {
                let size = self.source.read(&mut self.block)?;
                self.pending = 0..size;
                at_end = size == 0;
            }
            let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(&self.block[self.pending.clone()], buffer, InflateFlush::NoFlush)
                .map_err(|error| invalid(error.as_str()))?;
            self.pending.start += difference(self.inflate.total_in(), consumed);
            let size = difference(self.inflate.total_out(), produced);
            if status == Status::StreamEnd {
                self.expect_end()?;
                return Ok(size);
            }
            if size > 0 {
                return Ok(size);
            }
            if at_end {
                return Err(invalid("the zlib stream is cut short"));
            }
        }
    }
}
