//! One forward pass over the entries of an archive.
//!
//! 1. Skip what is left of the previous entry.
//! 2. Read headers; collect those that extend the next entry (long names, PAX records).
//! 3. Put header and extensions together into an [`Entry`].
//! 4. Hand out its content on request, with the holes of sparse files as zeros.

use std::fmt;
use std::io::{self, Read};

use super::header::{self, Dialect, Header};
use super::parts::{Extensions, Parts};
use super::pax::{MAX_HEADER_SIZE, Records};
use super::sparse::{self, Run, SparseFile};
use super::stream::{Stream, padded};
use super::{ArchiveError, Entry, EntryKind, Position, Result};

/// Longest GNU long name in bytes; Linux has paths of 4 KiB.
const MAX_NAME_SIZE: u64 = 1 << 20;
/// Largest file: sizes are signed in every operating system.
const MAX_FILE_SIZE: u64 = i64::MAX.cast_unsigned();

/// Reads an archive entry by entry.
///
/// Any reader will do, also `&[u8]`; small reads are buffered. The archive ends with two blocks of zeros or with the
/// stream; the rest of the stream is read, so that damage there is noticed, and ignored.
pub struct Archive<R> {
    stream: Stream<R>,
    state: State,
    /// Records that apply to all entries from here on.
    global: Records,
    /// Whether any PAX header was seen: only then may hard links have content.
    is_pax: bool,
    /// Bytes of the files so far, holes included.
    content: u64,
    /// Whether the last entry must be filled up to whole blocks.
    needs_last_padding: bool,
}

enum State {
    /// Content of the current entry, perhaps none, is next.
    Within(Body),
    Ended,
    /// An error was reported; the position is not known any more.
    Failed,
}

/// What is left of an entry.
#[derive(Default)]
struct Body {
    path: Vec<u8>,
    /// Stored bytes of the content.
    stored: u64,
    /// Bytes behind them up to the next header: padding, and content that nobody wants.
    padding: u64,
    /// `None` unless the file is sparse.
    sparse: Option<SparseFile>,
}

impl<R: Read> Archive<R> {
    /// Begins at the first byte of `input`. Nothing is read yet.
    pub fn new(input: R) -> Self {
        Self::with_limit(input, u64::MAX)
    }

    /// The same for an archive that may have at most `limit` bytes: its own, and those of its files with their holes.
    pub fn with_limit(input: R, limit: u64) -> Self {
        Self {
            stream: Stream::new(input, limit),
            state: State::Within(Body::default()),
            global: Records::default(),
            is_pax: false,
            content: 0,
            needs_last_padding: true,
        }
    }

    /// Accepts an archive that ends right after the content of its last entry, in the middle of a block, as Go's programs
    /// do. Whether it was cut off there must be known from elsewhere.
    ///
    /// Upstream: `umoci insert` writes such archives.
    #[must_use]
    pub fn without_last_padding(self) -> Self {
        Self { needs_last_padding: false, ..self }
    }

    /// Returns the next entry in archive order; `None` at the end, and from then on.
    ///
    /// Content of the previous entry that was not read is skipped. An empty stream is an archive without entries.
    ///
    /// # Errors
    /// `Malformed`, `Truncated`, `Unsupported` or `TooLarge` for what this archive cannot be read beyond,
    /// `Decompression` and `Io` for failures of the input. After an error all further calls fail.
    #[expect(clippy::should_implement_trait, reason = "entries are lent: content is read from the archive itself")]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let body = match std::mem::replace(&mut self.state, State::Failed) {
            State::Within(body) => body,
            State::Ended => {
                self.state = State::Ended;
                return Ok(None);
            }
            State::Failed => return Err(self.failed_before()),
        };
        self.finish(&body).map_err(|error| error.in_entry(&body.path))?;
        let Some((entry, body)) = self.next_entry()? else {
            self.state = State::Ended;
            return Ok(None);
        };
        self.state = State::Within(body);
        Ok(Some(entry))
    }

    /// Reads content of the current entry, like [`Read::read`]; 0 at its end, and for all that is not a file.
    ///
    /// # Errors
    /// `Truncated`, `Decompression` or `Io`. After an error all further calls fail.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let error = match &mut self.state {
            State::Within(body) => match body.read(&mut self.stream, buffer) {
                Ok(count) => return Ok(count),
                Err(error) => error.in_entry(&body.path),
            },
            State::Ended => return Ok(0),
            State::Failed => self.failed_before(),
        };
        self.state = State::Failed;
        Err(error)
    }

    /// Returns the content of the current entry as a reader. Its errors hold an [`ArchiveError`].
    pub fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    fn failed_before(&self) -> ArchiveError {
        ArchiveError::malformed(self.stream.offset(), "cannot go on after an error")
    }

    /// Skips what was not read. Content and padding are two steps so that errors tell them apart.
    fn finish(&mut self, body: &Body) -> Result<()> {
        self.stream.skip(body.stored, "the content of an entry")?;
        match self.stream.skip(body.padding, "the padding of an entry") {
            Err(ArchiveError::Truncated { .. }) if !self.needs_last_padding && self.stream.is_within_block() => Ok(()),
            skipped => skipped,
        }
    }

    fn next_entry(&mut self) -> Result<Option<(Entry, Body)>> {
        let mut extensions = Extensions::default();
        loop {
            let at = self.stream.offset();
            let block = match self.stream.block("a header")? {
                Some(block) if header::is_zero(&block) => None,
                Some(block) => Some(block),
                None if extensions.any => return Err(self.stream.truncated("the headers of an entry")),
                // Upstream: GNU tar accepts archives without end marker as well.
                None => return Ok(None),
            };
            let Some(block) = block else {
                if extensions.any {
                    return Err(ArchiveError::malformed(at, "extended header without the entry it extends"));
                }
                self.read_end_marker(at)?;
                return Ok(None);
            };
            let header = Header::parse(&block).map_err(|reason| match at {
                0 => ArchiveError::malformed(at, format!("this is not a tar archive ({reason})")),
                _ => ArchiveError::malformed(at, reason),
            })?;
            match header.typeflag() {
                b'L' => extensions.long_name = Some(self.read_long_name(&header, at)?),
                b'K' => extensions.long_link = Some(self.read_long_name(&header, at)?),
                // Solaris wrote `X` before `x` was standard.
                b'x' | b'X' => {
                    let content = self.read_records(&header, at)?;
                    extensions.records.add(&content).map_err(|reason| ArchiveError::malformed(at, reason))?;
                }
                b'g' => {
                    let content = self.read_records(&header, at)?;
                    self.global.add(&content).map_err(|reason| ArchiveError::malformed(at, reason))?;
                    // Belongs to the archive rather than to the entry behind it, so it may also stand last.
                    continue;
                }
                // A volume label names the tape. It is no entry, nor what extensions before it could be about.
                b'V' => {
                    self.skip_entry(&header, at)?;
                    extensions = Extensions::default();
                    continue;
                }
                _ => return self.read_entry(&header, &extensions, at).map(Some),
            }
            extensions.any = true;
        }
    }

    /// Checks what follows the first block of zeros at `at`, and reads to the end of the stream.
    ///
    /// The reference tools stop at a lone block of zeros too; but since that is also what a damaged header looks
    /// like, entries behind it would be lost silently.
    fn read_end_marker(&mut self, at: u64) -> Result<()> {
        match self.stream.block("the end marker")? {
            Some(block) if !header::is_zero(&block) => {
                Err(ArchiveError::malformed(at, "a single block of zeros where the end marker has two"))
            }
            Some(_) => self.stream.drain(),
            None => Ok(()),
        }
    }

    fn read_long_name(&mut self, header: &Header, at: u64) -> Result<Vec<u8>> {
        let mut name = self.read_extension(header, at, MAX_NAME_SIZE, "long name")?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn read_records(&mut self, header: &Header, at: u64) -> Result<Vec<u8>> {
        self.is_pax = true;
        self.read_extension(header, at, MAX_HEADER_SIZE, "PAX header")
    }

    fn read_extension(&mut self, header: &Header, at: u64, limit: u64, what: &'static str) -> Result<Vec<u8>> {
        let size = header.size().map_err(|reason| ArchiveError::malformed(at, reason))?;
        let length = usize::try_from(size)
            .ok()
            .filter(|_| size <= limit)
            .ok_or_else(|| ArchiveError::malformed(at, format!("{what} of {size} bytes, more than {limit}")))?;
        self.stream.padded_bytes(length, what)
    }

    fn skip_entry(&mut self, header: &Header, at: u64) -> Result<()> {
        let size = header.size().ok().and_then(padded);
        let size = size.ok_or_else(|| ArchiveError::malformed(at, "volume label of unusable size"))?;
        self.stream.skip(size, "a volume label")
    }

    /// Puts an entry together. Its content, if it has any, is next in the stream.
    fn read_entry(&mut self, header: &Header, extensions: &Extensions, at: u64) -> Result<(Entry, Body)> {
        let parts = Parts::new(header, extensions, &self.global, at)?;
        if parts.records.get(b"GNU.volume.offset").is_some() {
            return Err(parts.unsupported("a file continued from another volume"));
        }
        let mut size = parts.size()?;
        let mut body = Body { path: parts.path.clone(), ..Body::default() };
        let kind = match header.typeflag() {
            0 | b'0' | b'7' if !parts.is_directory() => {
                body.sparse = sparse::from_records(&parts.records, &mut size, at, &mut self.stream)
                    .map_err(|error| error.in_entry(&parts.path))?;
                body.stored = size;
                EntryKind::File { size: body.sparse.as_ref().map_or(size, SparseFile::size) }
            }
            b'S' => {
                let gnu = header.as_gnu().ok_or_else(|| parts.unsupported("a sparse file in star's format"))?;
                let file = sparse::from_gnu_header(gnu, size, at, &mut self.stream)
                    .map_err(|error| error.in_entry(&parts.path))?;
                body.stored = size;
                EntryKind::File { size: body.sparse.insert(file).size() }
            }
            _ => parts.kind()?,
        };
        if matches!(kind, EntryKind::File { size } if size > MAX_FILE_SIZE) {
            return Err(parts.malformed("the file is larger than files can be"));
        }
        if let EntryKind::File { size } = kind {
            self.content = self.content.saturating_add(size);
            if self.content > self.stream.limit() {
                let at = Position::new(at, &parts.path);
                return Err(ArchiveError::TooLarge { at, limit: self.stream.limit() });
            }
        }
        // Upstream: libarchive, Go and Python ignore the size of what can have no content, as POSIX has it: some
        // writers record the size of the directory or of the link's target there.
        let follows = match header.typeflag() {
            b'1' if size > 0 => link_has_content(header.dialect(), self.is_pax, &mut self.stream)?,
            b'1'..=b'6' => false,
            _ => true,
        };
        if follows {
            body.padding = padded(size).ok_or_else(|| parts.malformed("the size is too large"))? - body.stored;
        }
        Ok((parts.entry(kind)?, body))
    }
}

/// Finds out whether content follows the header of a hard link whose size is not zero.
///
/// Old writers recorded the size of the target and stored nothing; POSIX.1-2001 allows to store the content once
/// more, in PAX archives only. As nothing marks such an archive for sure, the next block decides in between.
///
/// Upstream: `header_common` in libarchive's `archive_read_support_format_tar.c`.
fn link_has_content<R: Read>(dialect: Dialect, is_pax: bool, stream: &mut Stream<R>) -> Result<bool> {
    match dialect {
        Dialect::V7 | Dialect::Gnu => return Ok(false),
        Dialect::Ustar if is_pax => return Ok(true),
        Dialect::Ustar => {}
    }
    let Some(block) = stream.block("a header")? else {
        return Ok(false);
    };
    stream.unread(&block);
    Ok(!header::is_zero(&block) && !header::has_valid_checksum(&block))
}

impl Body {
    fn read<R: Read>(&mut self, stream: &mut Stream<R>, buffer: &mut [u8]) -> Result<usize> {
        let run = match &self.sparse {
            None => Run::Stored(self.stored),
            Some(sparse) => sparse.run(),
        };
        let up_to = |length| usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let count = match run {
            Run::End => 0,
            Run::Hole(length) => {
                let count = up_to(length);
                buffer[..count].fill(0);
                count
            }
            Run::Stored(length) => match up_to(length) {
                0 => 0,
                wanted => match stream.read(&mut buffer[..wanted])? {
                    0 => return Err(stream.truncated("the content of an entry")),
                    count => {
                        self.stored -= count as u64;
                        count
                    }
                },
            },
        };
        if let Some(sparse) = &mut self.sparse {
            sparse.advance(count as u64);
        }
        Ok(count)
    }
}

impl<R> fmt::Debug for Archive<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("is_pax", &self.is_pax).finish_non_exhaustive()
    }
}

/// The content of an archive's current entry; see [`Archive::content`].
#[derive(Debug)]
pub struct Content<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.read(buffer)?)
    }
}
