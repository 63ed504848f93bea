//! What can be wrong with an archive.

use std::fmt;
use std::io;

use cvmfs_core::path::display;

use super::Format;

/// The result of everything in this module that can fail.
pub type Result<T, E = ArchiveError> = std::result::Result<T, E>;

/// Why an archive cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The stream ends too early.
    #[error("{at}: the archive ends within {within}")]
    Truncated {
        /// Where the stream ends, and the entry that is incomplete.
        at: Position,
        /// The part that is incomplete.
        within: &'static str,
    },
    /// Bytes that are no tar archive, or a damaged one.
    #[error("{at}: {reason}")]
    Malformed {
        /// The header in question.
        at: Position,
        /// What is wrong with it.
        reason: String,
    },
    /// A valid entry that cannot be represented.
    #[error("{at}: {what} is not supported")]
    Unsupported {
        /// The entry.
        at: Position,
        /// The feature in words.
        what: String,
    },
    /// More than the caller wants to read.
    #[error("{at}: the archive has more than {limit} bytes uncompressed")]
    TooLarge {
        /// How far reading came, or the entry that is too large.
        at: Position,
        /// The caller's limit.
        limit: u64,
    },
    /// Compressed data that is damaged, incomplete or followed by something else.
    #[error("{at}: cannot decompress {format} data")]
    Decompression {
        /// How far decompressing came.
        at: Position,
        /// The compression.
        format: Format,
        /// The decoder's reason.
        source: io::Error,
    },
    /// The source of the archive failed.
    #[error("{at}: reading failed")]
    Io {
        /// How far reading came.
        at: Position,
        /// The system's reason.
        source: io::Error,
    },
}

/// A place in an uncompressed archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// Bytes before it.
    pub offset: u64,
    /// Path of the entry, once known.
    pub path: Option<Vec<u8>>,
}

impl Position {
    pub(super) fn new(offset: u64, path: &[u8]) -> Self {
        Self { offset, path: Some(path.to_vec()) }
    }
}

impl From<u64> for Position {
    fn from(offset: u64) -> Self {
        Self { offset, path: None }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "archive entry {} at byte {}", display(path), self.offset),
            None => write!(f, "archive at byte {}", self.offset),
        }
    }
}

impl ArchiveError {
    pub(super) fn malformed(at: impl Into<Position>, reason: impl Into<String>) -> Self {
        Self::Malformed { at: at.into(), reason: reason.into() }
    }

    pub(super) fn unsupported(at: impl Into<Position>, what: impl Into<String>) -> Self {
        Self::Unsupported { at: at.into(), what: what.into() }
    }

    /// Takes an error of the input; those that [`super::decompress`] put into it come out as they were.
    pub(super) fn from_input(offset: u64, error: io::Error) -> Self {
        match error.downcast() {
            Ok(inner) => inner,
            Err(source) => Self::Io { at: offset.into(), source },
        }
    }

    /// Names the entry that the error is about, unless it names one already.
    pub(super) fn in_entry(mut self, entry: &[u8]) -> Self {
        match &mut self {
            Self::Truncated { at, .. }
            | Self::Malformed { at, .. }
            | Self::Unsupported { at, .. }
            | Self::TooLarge { at, .. }
            | Self::Decompression { at, .. }
            | Self::Io { at, .. } => {
                at.path.get_or_insert_with(|| entry.to_vec());
            }
        }
        self
    }
}

impl From<ArchiveError> for io::Error {
    fn from(error: ArchiveError) -> Self {
        let kind = match &error {
            ArchiveError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            ArchiveError::Malformed { .. } => io::ErrorKind::InvalidData,
            ArchiveError::Unsupported { .. } => io::ErrorKind::Unsupported,
            ArchiveError::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            ArchiveError::Decompression { source, .. } | ArchiveError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_entry_and_offset() {
        let error = ArchiveError::malformed(512, "no");
        assert_eq!(error.to_string(), "archive at byte 512: no");
        assert_eq!(error.in_entry(b"a\nb").to_string(), "archive entry a\\nb at byte 512: no");
        let error = ArchiveError::Truncated { at: Position::new(7, b"x"), within: "a header" };
        assert_eq!(error.to_string(), "archive entry x at byte 7: the archive ends within a header");
        let error = ArchiveError::unsupported(Position::new(7, b"x"), "type 'M'");
        assert_eq!(error.in_entry(b"y").to_string(), "archive entry x at byte 7: type 'M' is not supported");
    }

    #[test]
    fn survives_the_passage_through_an_io_error() {
        let passed = ArchiveError::from_input(99, ArchiveError::malformed(512, "no").into());
        assert!(matches!(passed, ArchiveError::Malformed { at: Position { offset: 512, .. }, .. }));
        let foreign = ArchiveError::from_input(99, io::ErrorKind::BrokenPipe.into());
        assert!(matches!(foreign, ArchiveError::Io { at: Position { offset: 99, .. }, .. }));
    }
}
