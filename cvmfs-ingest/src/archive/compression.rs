//! Finds out how an archive is compressed, and decodes it on its own thread.
//!
//! ```text
//! input ─ sniff ─> Format ─ decoder thread ─ blocks in a bounded channel ─> Blocks (a Read)
//! ```
//!
//! The thread ends when the input ends, when decoding fails, or at the first block after the reader is dropped.

use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use zlib_rs::{Inflate, InflateFlush, Status};

use super::{ArchiveError, Result};

/// Uncompressed bytes that go to the consumer at once: large enough that passing them on costs nothing next to
/// decoding them, small enough that a slow pipe does not hold back much.
const BLOCK_SIZE: usize = 256 * 1024;
/// Blocks between decoder and consumer; a fixed amount of memory that evens out their speeds.
const BLOCKS_IN_FLIGHT: usize = 4;
/// Compressed bytes per read from the input.
const INPUT_BUFFER: usize = 128 * 1024;
/// Memory that an xz stream may demand. `xz -9` needs 65 MiB; the format would allow 4 GiB.
/// Zstandard has a limit of its own: windows of up to 128 MiB, as in its command line tool.
const XZ_MEMORY_LIMIT: u64 = 1 << 30;
/// What zlib's window size must be for a member of gzip: the largest window, and 16 for the header.
const GZIP_WINDOW_BITS: u8 = 15 + 16;
/// Bytes that [`Format::sniff`] wants to see.
const MAGIC_SIZE: usize = 10;

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not compressed.
    Plain,
    /// gzip, with any number of members.
    Gzip,
    /// Zstandard, with any number of frames.
    Zstd,
    /// xz, with any number of streams.
    Xz,
    /// bzip2, with any number of streams.
    Bzip2,
}

impl Format {
    /// Recognises a format by its first bytes; `Plain` is whatever is nothing else.
    ///
    /// A tar archive begins with a file name, so each pattern has something that no sane name has.
    fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // An ordinary frame, or a skippable one: pzstd and zstd:chunked images begin with such.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // The block magic is checked too, since a file may well be named `BZh9`. An empty stream has only the
            // end magic.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90] => Self::Bzip2,
            _ => Self::Plain,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// Returns the format of `input` and a reader of its uncompressed bytes.
///
/// Reads the first few bytes at once; the input need not be seekable. Decoding happens on a new thread, some blocks
/// ahead of the consumer; uncompressed input is passed through. Zeros after the last gzip or bzip2 member are
/// padding, as tapes leave it; anything else behind the end is an error.
///
/// The reader fails with errors that hold an [`ArchiveError`], which [`super::Archive`] takes out again.
///
/// # Errors
/// `Io` if the first bytes cannot be read or no thread can be started. Damaged data shows when it is read.
pub fn decompress(mut input: Box<dyn Read + Send>) -> Result<(Format, Box<dyn Read + Send>)> {
    let start = read_start(&mut input).map_err(|source| ArchiveError::Io { at: 0.into(), source })?;
    let format = Format::sniff(&start);
    let input: Box<dyn Read + Send> = Box::new(Cursor::new(start).chain(input));
    if format == Format::Plain {
        return Ok((format, input));
    }
    let (sender, messages) = sync_channel(BLOCKS_IN_FLIGHT);
    thread::Builder::new()
        .name(format!("{format} decoder"))
        .spawn(move || decode(format, input, &sender))
        .map_err(|source| ArchiveError::Io { at: 0.into(), source })?;
    Ok((format, Box::new(Blocks { messages, current: Cursor::default(), state: BlocksState::Open })))
}

fn read_start(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(MAGIC_SIZE);
    input.take(MAGIC_SIZE as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// What the decoder thread sends. The end is a message of its own: a thread that died must not look like it.
enum Message {
    Block(Vec<u8>),
    End,
    Failed(io::Error),
}

/// The decoder thread.
fn decode(format: Format, input: Box<dyn Read + Send>, sender: &SyncSender<Message>) {
    let input = BufReader::with_capacity(INPUT_BUFFER, Source(input));
    let mut decompressed = 0;
    let failed = |source: io::Error, decompressed: u64| {
        // Errors of the input itself are marked by `Source`; all others are the decoder's.
        if source.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<ArchiveError>) {
            source
        } else {
            ArchiveError::Decompression { at: decompressed.into(), format, source }.into()
        }
    };
    let mut decoder = match decoder(format, input) {
        Ok(decoder) => decoder,
        Err(error) => return drop(sender.send(Message::Failed(failed(error, 0)))),
    };
    loop {
        let (block, error) = read_block(&mut *decoder);
        decompressed += block.len() as u64;
        let last = block.len() < BLOCK_SIZE;
        if !block.is_empty() && sender.send(Message::Block(block)).is_err() {
            // The consumer lost interest, and nobody is left to tell.
            return;
        }
        if last {
            let message = error.map_or(Message::End, |error| Message::Failed(failed(error, decompressed)));
            return drop(sender.send(message));
        }
    }
}

/// Reads one block; a short one is the last, and comes with the error that cut it, if any.
fn read_block(decoder: &mut dyn Read) -> (Vec<u8>, Option<io::Error>) {
    let mut block = vec![0; BLOCK_SIZE];
    let mut filled = 0;
    let mut failure = None;
    while filled < block.len() {
        match decoder.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    block.truncate(filled);
    (block, failure)
}

type Input = BufReader<Source>;

fn decoder(format: Format, input: Input) -> io::Result<Box<dyn Read>> {
    Ok(match format {
        Format::Plain => Box::new(input),
        Format::Gzip => Box::new(Members::<GzipMember>::new(input)),
        Format::Bzip2 => Box::new(Members::<bzip2::bufread::BzDecoder<Input>>::new(input)),
        Format::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
        Format::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
    })
}

/// The input of a decoder: retries interrupted reads, and marks its errors as not the decoder's.
struct Source(Box<dyn Read + Send>);

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Io { at: 0.into(), source }.into()),
                count => return count,
            }
        }
    }
}

/// A decoder of one gzip or bzip2 member.
trait Member: Read {
    /// First byte of each member.
    const MAGIC: u8;
    fn start(input: Input) -> Self;
    /// Gives the input back, positioned behind the member once that was read to its end.
    fn into_input(self) -> Input;
}

/// One member of a gzip file; its checksum and its length are checked at its end.
struct GzipMember {
    inflate: Inflate,
    input: Input,
    is_at_end: bool,
}

impl Member for GzipMember {
    const MAGIC: u8 = 0x1f;

    fn start(input: Input) -> Self {
        Self { inflate: Inflate::new(true, GZIP_WINDOW_BITS), input, is_at_end: false }
    }

    fn into_input(self) -> Input {
        self.input
    }
}

impl Read for GzipMember {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.is_at_end && !buffer.is_empty() {
            let input = self.input.fill_buf()?;
            let is_cut_short = input.is_empty();
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(input, buffer, InflateFlush::NoFlush)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.as_str()))?;
            let count = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(usize::MAX);
            self.input.consume(count(before_in, self.inflate.total_in()));
            self.is_at_end = status == Status::StreamEnd;
            match count(before_out, self.inflate.total_out()) {
                0 if is_cut_short => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "a gzip member is cut short"));
                }
                0 => {}
                produced => return Ok(produced),
            }
        }
        Ok(0)
    }
}

impl Member for bzip2::bufread::BzDecoder<Input> {
    const MAGIC: u8 = b'B';

    fn start(input: Input) -> Self {
        Self::new(input)
    }

    fn into_input(self) -> Input {
        self.into_inner()
    }
}

/// Reads members one after the other.
///
/// The multi-member decoders of the two crates take zero padding for a damaged member.
struct Members<D> {
    /// `None` behind the last one.
    current: Option<D>,
}

impl<D: Member> Members<D> {
    fn new(input: Input) -> Self {
        Self { current: Some(D::start(input)) }
    }
}

impl<D: Member> Read for Members<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.current {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let input = self.current.take().map(D::into_input);
            self.current = input.map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// Starts the member that follows, if one does.
fn next_member<D: Member>(mut input: Input) -> io::Result<Option<D>> {
    let Some(&first) = input.fill_buf()?.first() else {
        return Ok(None);
    };
    if first == D::MAGIC {
        return Ok(Some(D::start(input)));
    }
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        if buffer.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(ErrorKind::InvalidData, "garbage after the end of the compressed data"));
        }
        let count = buffer.len();
        input.consume(count);
    }
}

/// The consumer's end of the channel.
struct Blocks {
    messages: Receiver<Message>,
    current: Cursor<Vec<u8>>,
    state: BlocksState,
}

enum BlocksState {
    Open,
    Ended,
    Failed,
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.state {
                BlocksState::Open => {}
                BlocksState::Ended => return Ok(0),
                BlocksState::Failed => return Err(io::Error::other("decompression has failed before")),
            }
            match self.messages.recv() {
                Ok(Message::Block(block)) => self.current = Cursor::new(block),
                Ok(Message::End) => self.state = BlocksState::Ended,
                Ok(Message::Failed(error)) => {
                    self.state = BlocksState::Failed;
                    return Err(error);
                }
                Err(_) => {
                    self.state = BlocksState::Failed;
                    return Err(io::Error::other("the decoder thread died"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    type Encode = fn(&[u8]) -> Vec<u8>;
    const ENCODERS: [(Format, Encode); 4] =
        [(Format::Gzip, gzip), (Format::Bzip2, bzip2), (Format::Xz, xz), (Format::Zstd, zstd)];

    fn read_all(bytes: Vec<u8>) -> (Format, io::Result<Vec<u8>>) {
        let (format, mut reader) = decompress(Box::new(Cursor::new(bytes))).unwrap();
        let mut content = Vec::new();
        (format, reader.read_to_end(&mut content).map(|_| content))
    }

    /// Longer than all blocks in flight, so that the decoder has to wait, and without patterns: in data that
    /// compresses well, bzip2 has bytes that mean nothing.
    fn sample() -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()
        };
        (0..500_000).flat_map(|_| next()).map(|byte| byte & 15).collect()
    }

    #[test]
    fn recognises_each_format_and_reads_all_its_members() {
        let sample = sample();
        for (expected, encode) in ENCODERS {
            let (format, content) = read_all([encode(&sample), encode(b""), encode(b"end")].concat());
            assert_eq!(format, expected);
            assert!(content.unwrap() == [&sample[..], b"end"].concat(), "{expected}");
            let (format, content) = read_all(encode(b""));
            assert_eq!((format, content.unwrap()), (expected, Vec::new()));
        }
    }

    #[test]
    fn passes_other_bytes_through() {
        for bytes in [&b""[..], b"B", b"BZh9", b"BZh91AY", b"BZh9 is a name", b"\x1f\x8b", b"\xfd7zXZ", b"some text"] {
            let (format, content) = read_all(bytes.to_vec());
            assert_eq!((format, &content.unwrap()[..]), (Format::Plain, bytes));
        }
    }

    #[test]
    fn zstd_may_begin_with_a_skippable_frame() {
        let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd";
        let (format, content) = read_all([&skippable[..], &zstd(b"text"), skippable].concat());
        assert_eq!((format, &content.unwrap()[..]), (Format::Zstd, &b"text"[..]));
    }

    #[test]
    fn every_truncation_is_an_error() {
        for (format, encode) in ENCODERS {
            let whole = [encode(b"first, first, first"), encode(b"second")].concat();
            let boundary = encode(b"first, first, first").len();
            for length in MAGIC_SIZE..whole.len() {
                let error = match read_all(whole[..length].to_vec()) {
                    (_, Ok(content)) => {
                        assert_eq!((length, &content[..]), (boundary, &b"first, first, first"[..]), "{format}");
                        continue;
                    }
                    (_, Err(error)) => error,
                };
                assert!(matches!(error.downcast(), Ok(ArchiveError::Decompression { .. })), "{format} {length}");
            }
        }
    }

    #[test]
    fn zeros_may_follow_but_nothing_else() {
        for (format, encode) in ENCODERS {
            let padded = read_all([encode(b"text"), vec![0; 300_000]].concat()).1;
            match format {
                // Stream padding is part of the xz format as long as it comes in fours; Zstandard has none.
                Format::Gzip | Format::Bzip2 | Format::Xz => assert_eq!(padded.unwrap(), b"text"),
                Format::Plain | Format::Zstd => assert!(padded.is_err()),
            }
            for garbage in [&b"x"[..], b"\0\0\0\0x", b"\x1f", b"BZh", b"more than a header of garbage"] {
                assert!(read_all([&encode(b"text")[..], garbage].concat()).1.is_err(), "{format} {garbage:?}");
            }
        }
    }

    #[test]
    fn damaged_content_is_an_error() {
        let sample = sample();
        for (format, encode) in ENCODERS {
            let mut bytes = encode(&sample);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            let Err(error) = read_all(bytes).1 else { panic!("{format} data with a changed byte was accepted") };
            assert!(matches!(error.downcast(), Ok(ArchiveError::Decompression { .. })), "{format}");
        }
    }

    #[test]
    fn an_xz_stream_that_wants_too_much_memory_is_refused() {
        // An encoder with such a dictionary would itself want gigabytes: patch its size (2^31 + 2^30 bytes) and the
        // checksum into the 12-byte block header of an ordinary stream.
        let mut bytes = xz(b"text");
        let at = bytes[12..24].windows(3).position(|w| w[..2] == [0x21, 0x01]).unwrap() + 12 + 2;
        bytes[at] = 39;
        let sum = crc32(&bytes[12..20]).to_le_bytes();
        bytes[20..24].copy_from_slice(&sum);
        let error = read_all(bytes).1.unwrap_err();
        assert!(matches!(error.downcast(), Ok(ArchiveError::Decompression { format: Format::Xz, .. })));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    /// Fails after its bytes, and tells when it is dropped.
    struct Failing(Cursor<Vec<u8>>, Option<mpsc::Sender<()>>);

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::new(ErrorKind::ConnectionReset, "cable cut")),
                count => Ok(count),
            }
        }
    }

    impl Drop for Failing {
        fn drop(&mut self) {
            if let Some(sender) = &self.1 {
                sender.send(()).unwrap();
            }
        }
    }

    #[test]
    fn an_error_of_the_input_is_not_blamed_on_the_data() {
        for (format, encode) in ENCODERS {
            let mut bytes = encode(&sample());
            bytes.truncate(bytes.len() / 2);
            let (_, mut reader) = decompress(Box::new(Failing(Cursor::new(bytes), None))).unwrap();
            let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{format}");
            assert!(matches!(error.downcast(), Ok(ArchiveError::Io { .. })), "{format}");
            assert!(reader.read(&mut [0]).is_err(), "an error is not followed by an end");
        }
    }

    #[test]
    fn dropping_the_reader_ends_the_thread() {
        for (format, encode) in ENCODERS {
            let (sender, dropped) = mpsc::channel();
            let (_, mut reader) = decompress(Box::new(Failing(Cursor::new(encode(&sample())), Some(sender)))).unwrap();
            reader.read_exact(&mut [0; 10]).unwrap();
            drop(reader);
            dropped.recv_timeout(Duration::from_mins(1)).unwrap_or_else(|_| panic!("{format} thread still runs"));
        }
    }
}
