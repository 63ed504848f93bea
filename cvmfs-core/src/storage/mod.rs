//! Where repositories are kept: small traits, layered by power, and their backends.
//!
//! ```text
//! ReadStore ◄── WriteStore ◄── PruneStore     serving and reading take the first, publishing and replicating the
//!     ▲             ▲              ▲            second, collection of garbage the third
//!   http      one on top of     local, S3, memory
//!                another
//! ```
//!
//! Backends are dumb: they move bytes under [`Key`]s and promise what the traits say. Nothing a store returns is
//! trusted: hashes are checked by [`crate::object`], signatures by [`crate::trust`]. Nobody outside this module
//! makes a storage path from strings.

pub mod conformance;
mod layered;
mod local;
mod memory;
mod place;
mod remove;
pub mod s3;

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::UnixSeconds;
use crate::error::Result;
use crate::hash::ObjectId;
use crate::progress::Cancel;

pub use layered::LayeredStore;
pub use local::LocalStore;
pub(crate) use local::remove_old_files;
pub use memory::MemoryStore;
pub use place::StoragePlace;
pub use remove::RemovedStorage;
pub use s3::{S3Config, S3Download, S3Facts, S3Store};

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
    /// It was not there, or only a damaged copy of it; or that is not known yet.
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

    /// Returns the stored sizes of many objects, in their order; `None` for those that do not exist.
    ///
    /// This implementation is for stores where the next answer is not far.
    fn sizes(&self, ids: &[ObjectId]) -> Result<Vec<Option<u64>>> {
        ids.iter().map(|id| self.size(&Key::Object(*id))).collect()
    }

    /// Whether other machines may change it at the same time, so that a lock of this machine is not enough.
    fn is_shared(&self) -> bool {
        false
    }
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

    /// The same for many objects with their stored sizes; the answers have their order.
    ///
    /// This implementation is for stores where the next answer is not far.
    fn reuse_all(&self, objects: &[(ObjectId, u64)]) -> Result<Vec<bool>> {
        objects.iter().map(|(id, stored_size)| self.reuse(id, *stored_size)).collect()
    }

    /// Begins an object whose name is not known yet; dropping the value forgets it.
    fn stage(&self) -> Result<Box<dyn StagedObject>>;

    /// Removes an object that was found to be damaged, so that it can be put again; fine if it does not exist.
    fn discard(&self, id: &ObjectId) -> Result<()>;

    /// Replaces a named file atomically and durably.
    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()>;

    /// Replaces a named file if what is in place `is_expected` (`None` if nothing is there); `false` if it is not.
    ///
    /// No two that expect the same succeed, on however many machines. This implementation is for stores that are changed
    /// on one machine only: whoever calls it has the lock that all others take.
    fn write_if(
        &self,
        file: NamedFile,
        bytes: &[u8],
        is_expected: &(dyn Fn(Option<&[u8]>) -> bool + Sync),
    ) -> Result<bool> {
        let current = match self.read(&file.into()) {
            Err(error) if error.is_not_found() => None,
            current => Some(current?),
        };
        let is_expected = is_expected(current.as_deref());
        if is_expected {
            self.write(file, bytes)?;
        }
        Ok(is_expected)
    }

    /// Removes a named file; fine if it does not exist.
    fn remove(&self, file: NamedFile) -> Result<()>;

    /// Places the shortcut to an object outside `data/`.
    fn put_shortcut(&self, id: &ObjectId) -> Result<()>;

    /// Waits until everything that was put before is in place, for whoever puts what refers to it.
    ///
    /// This implementation is for stores where nobody is told that a put has ended before it has.
    fn finish_puts(&self) -> Result<()> {
        Ok(())
    }

    /// The same storage for one operation, which is not told of failures of those before it and beside it.
    ///
    /// What could not be put fails every later call of [`finish_puts`](Self::finish_puts) and [`flush`](Self::flush) of
    /// the value that it was put through, so an operation must put and flush through the same one. `None` for stores where
    /// nobody is told that a put has ended before it has: they can be used as they are.
    fn for_operation(&self) -> Option<Arc<dyn WriteStore>> {
        None
    }

    /// Makes everything that was put before durable.
    fn flush(&self) -> Result<()>;

    /// Removes objects that were written since a time and that a crash of this machine has damaged, and returns their
    /// number: what was not flushed may have its name and not its content.
    ///
    /// This implementation is for stores where an object is whole as soon as it has its name, whatever happens.
    fn discard_damaged(&self, _since: UnixSeconds, _cancel: &Cancel) -> Result<u64> {
        Ok(0)
    }

    /// Removes what processes that died before a time left half written, and returns how many files that were.
    fn remove_abandoned(&self, before: UnixSeconds) -> Result<u64>;
}

/// Lists objects and removes many of them.
///
/// Times are those of the storage's own clock, as durations since 1970: no other clock says how old an object is.
pub trait PruneStore: WriteStore {
    /// The time by the storage's clock: what is put or reused from now on is not older than that.
    fn clock(&self) -> Result<Duration>;

    /// Calls `visit` with the objects whose names begin with the byte `first`, in no particular order; only with those
    /// that are `wanted`, because size and age of an object may take a look at the object itself.
    ///
    /// Objects that come or go meanwhile may be among them or not.
    fn list(
        &self,
        first: u8,
        wanted: &mut dyn FnMut(&ObjectId) -> bool,
        visit: &mut dyn FnMut(Listed) -> Result<()>,
    ) -> Result<()>;

    /// Removes objects, with their shortcuts, that were neither put nor reused since `older_than`, and returns the
    /// others, which stay. Fine for objects that do not exist.
    ///
    /// An object that is put or reused at the same time survives: to whoever was told that it is there, it is there after
    /// the next [`flush`](WriteStore::flush), even if the process that removes is killed in between. (In a bucket of S3
    /// that flush fails instead; see [`S3Store`].)
    fn prune(&self, objects: &[ObjectId], older_than: Duration) -> Result<Vec<ObjectId>>;
}

/// An object in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub id: ObjectId,
    /// Stored bytes.
    pub stored_size: u64,
    /// When it was put or reused for the last time.
    pub modified: Duration,
}

/// An object under construction in a [`WriteStore`].
pub trait StagedObject: Write + Send + fmt::Debug {
    /// Makes the written bytes durable before they get their name, for whoever puts single objects that no
    /// [`flush`](WriteStore::flush) follows.
    ///
    /// This implementation is for stores where an object is whole as soon as it has its name, whatever happens.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Gives the written bytes their name; the same promises as [`WriteStore::put`].
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put>;
}
