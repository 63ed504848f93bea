//! Where repositories are kept: small traits, layered by power, and their backends.
//!
//! ```text
//! ReadStore ◄── WriteStore        serving and reading take the first, publishing and replicating the second
//!     ▲             ▲
//!   http      local, memory, one on top of another
//! ```
//!
//! Backends are dumb: they move bytes under [`Key`]s and promise what the traits say. Nothing a store returns is
//! trusted: hashes are checked by [`crate::object`], signatures by [`crate::trust`]. Nobody outside this module
//! makes a storage path from strings.

pub mod conformance;
mod layered;
mod local;
mod memory;

use std::fmt;
use std::io::{Read, Write};

use crate::clock::UnixSeconds;
use crate::error::Result;
use crate::hash::ObjectId;

pub use layered::LayeredStore;
pub use local::LocalStore;
pub(crate) use local::remove_old_files;
pub use memory::MemoryStore;

/// The name of something in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// An immutable object, named by its content.
    Object(ObjectId),
    /// One of the few files with a fixed name, replaced in place.
    Named(NamedFile),
    /// The shortcut to an object outside `data/`, for repositories whose `data/` is protected.
    Shortcut(ObjectId),
}

/// The fixed names at the root of a repository's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamedFile {
    /// The signed entry point of the newest revision.
    Manifest,
    /// The signed list of accepted certificates.
    Whitelist,
    /// The whitelist as PKCS#7 structure, optional.
    WhitelistPkcs7,
    /// Root objects ever added to this storage.
    Reflog,
    /// Its existence allows Stratum 1 servers to replicate.
    MasterReplica,
    /// State of the server as JSON.
    Status,
    /// Time of the last finished replication; its existence marks the first one as complete.
    LastSnapshot,
    /// Exists while a replication runs.
    IsSnapshotting,
}

impl NamedFile {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Manifest,
        Self::Whitelist,
        Self::WhitelistPkcs7,
        Self::Reflog,
        Self::MasterReplica,
        Self::Status,
        Self::LastSnapshot,
        Self::IsSnapshotting,
    ];

    /// The file name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manifest => ".cvmfspublished",
            Self::Whitelist => ".cvmfswhitelist",
            Self::WhitelistPkcs7 => ".cvmfswhitelist.pkcs7",
            Self::Reflog => ".cvmfsreflog",
            Self::MasterReplica => ".cvmfs_master_replica",
            Self::Status => ".cvmfs_status.json",
            Self::LastSnapshot => ".cvmfs_last_snapshot",
            Self::IsSnapshotting => ".cvmfs_is_snapshotting",
        }
    }
}

impl fmt::Display for Key {
    /// Prints the path relative to the repository's storage root, the same in every backend and over HTTP.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(id) => {
                let text = id.to_string();
                write!(f, "data/{}/{}", &text[..2], &text[2..])
            }
            Self::Named(file) => f.write_str(file.name()),
            Self::Shortcut(id) => write!(f, ".cvmfsalt-{id}"),
        }
    }
}

impl From<ObjectId> for Key {
    fn from(id: ObjectId) -> Self {
        Self::Object(id)
    }
}

impl From<NamedFile> for Key {
    fn from(file: NamedFile) -> Self {
        Self::Named(file)
    }
}

/// Whether a stored object is new in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was not there, or only a damaged copy of it.
    New,
    /// It was there and is whole; its age was reset.
    Present,
}

/// Reads stored bytes.
///
/// All methods may be called from many threads. A key that does not exist is `NotFound`; `Unavailable` may succeed
/// when repeated. The bytes are as stored, and unverified unless a backend says more.
pub trait ReadStore: fmt::Debug + Send + Sync {
    /// Names the place of `key` for messages: a path or URL.
    fn describe(&self, key: &Key) -> String;

    /// Reads a small file or object whole.
    fn read(&self, key: &Key) -> Result<Vec<u8>>;

    /// Opens a file or object for reading from its start.
    ///
    /// What is being read stays whole if it is replaced meanwhile.
    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>>;

    /// Returns the stored size in bytes, `None` if `key` does not exist.
    fn size(&self, key: &Key) -> Result<Option<u64>>;
}

/// Adds and replaces stored bytes.
///
/// Objects are atomic: at every instant, and after a crash that follows [`flush`](Self::flush), an object is absent
/// or whole. Putting the same object twice, or at the same time from several threads or processes, is fine.
pub trait WriteStore: ReadStore {
    /// Stores an object of known content; `id` must be the hash of `stored`.
    ///
    /// An object that is in place already is reused if its size is right, and made young again, so that a garbage
    /// collection that began earlier spares it; one of another size is replaced.
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put>;

    /// Looks whether a whole object of this stored size is in place; if so, makes it young again.
    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool>;

    /// Begins an object whose name is not known yet; dropping the value forgets it.
    fn stage(&self) -> Result<Box<dyn StagedObject>>;

    /// Removes an object that was found to be damaged, so that it can be put again; fine if it does not exist.
    fn discard(&self, id: &ObjectId) -> Result<()>;

    /// Replaces a named file atomically and durably.
    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()>;

    /// Removes a named file; fine if it does not exist.
    fn remove(&self, file: NamedFile) -> Result<()>;

    /// Places the shortcut to an object outside `data/`.
    fn put_shortcut(&self, id: &ObjectId) -> Result<()>;

    /// Makes everything that was put before durable.
    fn flush(&self) -> Result<()>;

    /// Removes what processes that died before a time left half written, and returns how many files that were.
    fn remove_abandoned(&self, before: UnixSeconds) -> Result<u64>;
}

/// An object under construction in a [`WriteStore`].
pub trait StagedObject: Write + Send + fmt::Debug {
    /// Gives the written bytes their name; the same promises as [`WriteStore::put`].
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put>;
}
