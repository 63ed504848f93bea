//! The bytes of an archive, counted and in blocks.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read};

use super::{ArchiveError, Result};

/// Unit of everything in a tar archive, in bytes.
pub(super) const BLOCK_SIZE: usize = 512;

/// One unit of an archive.
pub(super) type Block = [u8; BLOCK_SIZE];

/// Bytes per read from the input, unless the caller wants more at once.
const BUFFER_SIZE: usize = 64 * 1024;

/// A reader that knows its position. Its errors do not know the entry.
pub(super) struct Stream<R> {
    input: BufReader<R>,
    /// Bytes taken so far, without `unread`.
    offset: u64,
    /// Bytes that may be taken at most.
    limit: u64,
    unread: Option<Block>,
}

/// Size of `length` bytes with the padding that fills their last block.
pub(super) fn padded(length: u64) -> Option<u64> {
    length.checked_next_multiple_of(BLOCK_SIZE as u64)
}

impl<R: Read> Stream<R> {
    pub(super) fn new(input: R, limit: u64) -> Self {
        Self { input: BufReader::with_capacity(BUFFER_SIZE, input), offset: 0, limit, unread: None }
    }

    /// Position of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether what was read so far is no whole number of blocks.
    pub(super) fn is_within_block(&self) -> bool {
        !self.offset.is_multiple_of(BLOCK_SIZE as u64)
    }

    /// Bytes that may be taken at most.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Reads the next block; `None` if the stream ends before it.
    pub(super) fn block(&mut self, within: &'static str) -> Result<Option<Block>> {
        if let Some(block) = self.unread.take() {
            self.offset += BLOCK_SIZE as u64;
            return Ok(Some(block));
        }
        let mut block = [0; BLOCK_SIZE];
        let mut filled = 0;
        while filled < BLOCK_SIZE {
            match self.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.truncated(within)),
                count => filled += count,
            }
        }
        Ok(Some(block))
    }

    /// Reads a block that must be there.
    pub(super) fn expect_block(&mut self, within: &'static str) -> Result<Block> {
        self.block(within)?.ok_or_else(|| self.truncated(within))
    }

    /// Puts the block read last back; only [`Self::block`] and [`Self::skip`] may follow.
    pub(super) fn unread(&mut self, block: &Block) {
        self.offset -= BLOCK_SIZE as u64;
        self.unread = Some(*block);
    }

    /// Reads some bytes into a non-empty buffer; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        debug_assert!(self.unread.is_none(), "a block that was put back must be taken as a block");
        self.retry(|input| input.read(buffer))
    }

    /// Reads and forgets at most `length` bytes; 0 at the end.
    fn discard(&mut self, length: u64) -> Result<u64> {
        let count = self.retry(|input| {
            let available = input.fill_buf()?.len();
            let count = usize::try_from(length).unwrap_or(available).min(available);
            input.consume(count);
            Ok(count)
        })?;
        Ok(count as u64)
    }

    fn retry(&mut self, mut read: impl FnMut(&mut BufReader<R>) -> io::Result<usize>) -> Result<usize> {
        loop {
            match read(&mut self.input) {
                Ok(count) => {
                    self.offset += count as u64;
                    if self.offset > self.limit {
                        return Err(ArchiveError::TooLarge { at: self.offset.into(), limit: self.limit });
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::from_input(self.offset, error)),
            }
        }
    }

    /// Reads `length` bytes and the padding behind them. The caller has checked the length against a limit.
    pub(super) fn padded_bytes(&mut self, length: usize, within: &'static str) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length.next_multiple_of(BLOCK_SIZE));
        while bytes.len() < length {
            bytes.extend_from_slice(&self.expect_block(within)?);
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Reads and forgets `length` bytes.
    pub(super) fn skip(&mut self, mut length: u64, within: &'static str) -> Result<()> {
        if length >= BLOCK_SIZE as u64 && self.unread.take().is_some() {
            self.offset += BLOCK_SIZE as u64;
            length -= BLOCK_SIZE as u64;
        }
        while length > 0 {
            match self.discard(length)? {
                0 => return Err(self.truncated(within)),
                count => length -= count,
            }
        }
        Ok(())
    }

    /// Reads and forgets the rest.
    pub(super) fn drain(&mut self) -> Result<()> {
        while self.discard(u64::MAX)? > 0 {}
        Ok(())
    }

    pub(super) fn truncated(&self, within: &'static str) -> ArchiveError {
        ArchiveError::Truncated { at: self.offset.into(), within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_reads_and_puts_back() {
        let bytes = [7; 3 * BLOCK_SIZE + 1];
        let mut stream = Stream::new(&bytes[..], u64::MAX);
        let block = stream.block("test").unwrap().unwrap();
        assert_eq!(stream.offset(), 512);
        stream.unread(&block);
        assert_eq!(stream.offset(), 0);
        stream.block("test").unwrap().unwrap();
        assert_eq!(stream.padded_bytes(3, "test").unwrap(), [7; 3]);
        stream.skip(512, "test").unwrap();
        assert_eq!(stream.offset(), 1536);
        assert!(matches!(stream.block("test"), Err(ArchiveError::Truncated { at, .. }) if at.offset == 1537));
    }

    #[test]
    fn tells_a_clean_end_from_a_torn_one() {
        let mut stream = Stream::new(&[0; 512][..], u64::MAX);
        assert!(stream.block("test").unwrap().is_some());
        assert!(stream.block("test").unwrap().is_none());
        assert!(stream.skip(0, "test").is_ok());
        assert!(matches!(stream.skip(1, "test"), Err(ArchiveError::Truncated { .. })));
        assert!(matches!(stream.expect_block("test"), Err(ArchiveError::Truncated { .. })));
    }
}
