//! One error vocabulary for the whole toolkit.
//!
//! A variant is what a caller *acts on*: wait, repair, distrust, give up. Every message names the thing it
//! speaks of (path, object, URL, repository); the cause, where there is one, is in [`std::error::Error::source`].

use std::path::{Path, PathBuf};

use crate::change::Origin;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, grouped by what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The named thing does not exist.
    #[error("{what} not found")]
    NotFound {
        /// Object, file, tag or path in words.
        what: String,
    },
    /// An object that something refers to does not exist.
    #[error("{what} is missing")]
    MissingObject {
        /// The object's place.
        what: String,
    },
    /// Stored or received bytes do not have the hash that names them.
    #[error("{what}: content hash is {actual}, expected {expected}")]
    HashMismatch {
        /// Where the bytes came from.
        what: String,
        /// The hash that names the bytes.
        expected: String,
        /// The hash that they have.
        actual: String,
    },
    /// Bytes that do not follow their format.
    #[error("{what}: {reason}")]
    Malformed {
        /// The file, object or text in question, with line or offset where known.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A signature, name or fingerprint check failed.
    #[error("{what} is not trusted: {reason}")]
    Untrusted {
        /// The document that failed the check.
        what: String,
        /// The failed check.
        reason: String,
    },
    /// A document that was valid once and is not any more.
    #[error("{what} has expired ({expiry})")]
    Expired {
        /// The document.
        what: String,
        /// When it expired, readable.
        expiry: String,
    },
    /// Somebody else changed, or is changing, what this operation needs.
    #[error("{what}: {reason}")]
    Conflict {
        /// The repository, path or lock.
        what: String,
        /// Who or what stands in the way.
        reason: String,
    },
    /// Somebody else was faster; the same operation on what is there now may succeed.
    #[error("{what} was changed by another machine meanwhile")]
    Superseded {
        /// The document that is not any more what this operation started from.
        what: String,
    },
    /// The input asks for something impossible or forbidden.
    #[error("{what}: {reason}")]
    InvalidInput {
        /// The argument, configuration key, archive entry.
        what: String,
        /// Why it cannot be.
        reason: String,
    },
    /// Valid, but not handled by this software.
    #[error("{what} is not supported")]
    Unsupported {
        /// The feature in words.
        what: String,
    },
    /// A remote side did not answer properly; the same request may succeed later.
    #[error("{what}: {reason}")]
    Unavailable {
        /// The URL or service.
        what: String,
        /// The last failure.
        reason: String,
    },
    /// A remote side refused for good; repeating the same request does not help.
    #[error("{what}: {reason}")]
    Refused {
        /// The URL or service.
        what: String,
        /// Its refusal.
        reason: String,
    },
    /// The operating system refused an operation on a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// SQLite refused an operation on a database.
    #[error("{what}: database error")]
    Database {
        /// Which database.
        what: String,
        /// SQLite's reason.
        source: Cause,
    },
    /// OpenSSL refused a cryptographic operation.
    #[error("{what}")]
    Crypto {
        /// The operation in words.
        what: String,
        /// OpenSSL's reason.
        source: Cause,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A file system error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// Bytes that do not follow their format.
    pub fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), reason: reason.into() }
    }

    /// An impossible or forbidden request.
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidInput { what: what.into(), reason: reason.into() }
    }

    /// A missing thing.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// A failed check of a signature, name or fingerprint.
    pub fn untrusted(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Untrusted { what: what.into(), reason: reason.into() }
    }

    /// Something else stands in the way.
    pub fn conflict(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Conflict { what: what.into(), reason: reason.into() }
    }

    /// A database error in `what`.
    pub fn database(what: impl Into<String>, source: rusqlite::Error) -> Self {
        Self::Database { what: what.into(), source: Box::new(source) }
    }

    /// A failed cryptographic operation.
    pub fn crypto(what: impl Into<String>, source: openssl::error::ErrorStack) -> Self {
        Self::Crypto { what: what.into(), source: Box::new(source) }
    }

    /// Says where an impossible request comes from; other errors stay as they are.
    #[must_use]
    pub fn from_origin(self, origin: Option<&Origin>) -> Self {
        let Some(origin) = origin else { return self };
        let at = |what| format!("{origin}: {what}");
        match self {
            Self::InvalidInput { what, reason } => Self::InvalidInput { what: at(what), reason },
            Self::Conflict { what, reason } => Self::Conflict { what: at(what), reason },
            other => other,
        }
    }

    /// For an object that something refers to: that it is not there is damage.
    #[must_use]
    pub(crate) fn of_referenced_object(self) -> Self {
        match self {
            Self::NotFound { what } => Self::MissingObject { what },
            other => other,
        }
    }

    /// For a failure of the store that takes what comes from a source: like that of a disk, it says nothing about the
    /// source.
    #[must_use]
    pub fn of_target(self) -> Self {
        match self {
            Self::Unavailable { what, reason } | Self::Refused { what, reason } => {
                Self::io(what, std::io::Error::other(reason))
            }
            other => other,
        }
    }

    /// The same error for another one who waits for the same thing; the cause of one stays with the first.
    #[must_use]
    pub(crate) fn repeated(&self) -> Self {
        match self {
            Self::NotFound { what } => Self::NotFound { what: what.clone() },
            Self::HashMismatch { what, expected, actual } => {
                Self::HashMismatch { what: what.clone(), expected: expected.clone(), actual: actual.clone() }
            }
            Self::Malformed { what, reason } => Self::Malformed { what: what.clone(), reason: reason.clone() },
            Self::Refused { what, reason } => Self::Refused { what: what.clone(), reason: reason.clone() },
            Self::Unavailable { what, reason } => Self::Unavailable { what: what.clone(), reason: reason.clone() },
            Self::Cancelled => Self::Cancelled,
            Self::Io { path, source } => Self::io(path, std::io::Error::from(source.kind())),
            other => Self::Unavailable { what: "object".to_owned(), reason: other.to_string() },
        }
    }

    /// Whether the same operation may succeed if it is simply repeated later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the error says that a thing is absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// Turns SQLite's results into ours, naming the database.
pub(crate) trait DatabaseContext<T> {
    /// Names the database that an error came from.
    fn in_database(self, what: &dyn std::fmt::Display) -> Result<T>;
}

impl<T> DatabaseContext<T> for std::result::Result<T, rusqlite::Error> {
    fn in_database(self, what: &dyn std::fmt::Display) -> Result<T> {
        self.map_err(|source| Error::database(what.to_string(), source))
    }
}

/// Turns the operating system's results into ours, naming the file.
pub trait IoContext<T> {
    /// Names the file that an error came from.
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io(path, source))
    }
}

/// Removes a file; fine if it does not exist.
///
/// # Errors
/// `Io` for any other reason why it stays.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}
