//! The cache directory of clients as a store: objects are kept as clients use them.
//!
//! Source: `cvmfs/cache_posix.cc`, `Store` in `cvmfs/swissknife_pull.cc`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::compression::{Compression, InflatingReader};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hash::ObjectId;
use cvmfs_core::object;
use cvmfs_core::progress::Cancel;
use cvmfs_core::storage::{Key, NamedFile, Put, ReadStore, StagedObject, WriteStore};
use tempfile::TempPath;

/// Members of the group may share the cache.
const DIRECTORY_MODE: u32 = 0o770;
const FILE_MODE: u32 = 0o660;

/// Takes objects that are stored one way at the source.
///
/// What is in the cache is whole, because it got its name last, unless the system went down before it was flushed: then
/// files may be empty, or [`discard_damaged`](WriteStore::discard_damaged) removes them.
#[derive(Debug, Clone)]
pub(super) struct CacheStore {
    directory: PathBuf,
    compression: Compression,
}

impl CacheStore {
    /// Makes the directories of a cache; fine if some exist.
    pub(super) fn create(directory: &Path, compression: Compression) -> Result<Self> {
        let objects = (0..=u8::MAX).map(|first| format!("{first:02x}"));
        for name in objects.chain(["txn".into(), "quarantaine".into()]) {
            let path = directory.join(name);
            fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&path).at(&path)?;
        }
        Ok(Self { directory: directory.to_owned(), compression })
    }

    /// Where an object is: without the letter for its kind.
    pub(super) fn path(&self, id: &ObjectId) -> PathBuf {
        let name = id.hash.to_string();
        self.directory.join(&name[..2]).join(&name[2..])
    }

    /// Whether an object is there. An empty file is what a crash leaves; that of an empty object is soon fetched again.
    pub(super) fn has(&self, id: &ObjectId) -> Result<bool> {
        Ok(self.size(&Key::Object(*id))?.is_some_and(|size| size > 0))
    }

    fn temporary(&self) -> Result<(File, TempPath)> {
        temporary(&self.directory.join("txn"))
    }

    /// Gives what a reader has, inflated if that is how it is stored, the name of an object.
    fn keep(&self, id: &ObjectId, stored: impl Read) -> Result<Put> {
        let path = self.path(id);
        let (mut file, temporary) = self.temporary()?;
        let place = path.display().to_string();
        match self.compression {
            Compression::Zlib => io::copy(&mut InflatingReader::new(stored), &mut file),
            Compression::None => io::copy(&mut { stored }, &mut file),
        }
        .map_err(|error| object::read_error(&place, error))?;
        let is_new = !self.has(id)?;
        temporary.persist(&path).map_err(|error| Error::io(&path, error.error))?;
        Ok(if is_new { Put::New } else { Put::Present })
    }

    /// The cache has no files with the names of a storage.
    fn no_named_files<T>() -> Result<T> {
        Err(Error::Unsupported { what: "named files in a client's cache".into() })
    }
}

/// Creates a file that becomes an object of a cache.
pub(super) fn temporary(directory: &Path) -> Result<(File, TempPath)> {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path);
    let file = tempfile::Builder::new().prefix("preload-").make_in(directory, open).at(directory)?;
    let (file, path) = file.into_parts();
    // Whatever the process's mask says.
    file.set_permissions(Permissions::from_mode(FILE_MODE)).at(&path)?;
    Ok((file, path))
}

impl ReadStore for CacheStore {
    fn describe(&self, key: &Key) -> String {
        match key {
            Key::Object(id) => self.path(id).display().to_string(),
            other => self.directory.join(other.to_string()).display().to_string(),
        }
    }

    fn read(&self, _key: &Key) -> Result<Vec<u8>> {
        Self::no_named_files()
    }

    fn open(&self, _key: &Key) -> Result<Box<dyn Read + Send>> {
        Self::no_named_files()
    }

    /// The size of an object as it is in the cache.
    fn size(&self, key: &Key) -> Result<Option<u64>> {
        let Key::Object(id) = key else { return Ok(None) };
        let path = self.path(id);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => Ok(Some(result.at(&path)?.len())),
        }
    }
}

impl WriteStore for CacheStore {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        self.keep(id, stored)
    }

    fn reuse(&self, id: &ObjectId, _stored_size: u64) -> Result<bool> {
        self.has(id)
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        let (file, path) = self.temporary()?;
        Ok(Box::new(Staged { cache: self.clone(), file, _path: path }))
    }

    fn discard(&self, id: &ObjectId) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.at(&path),
        }
    }

    fn write(&self, _file: NamedFile, _bytes: &[u8]) -> Result<()> {
        Self::no_named_files()
    }

    fn remove(&self, _file: NamedFile) -> Result<()> {
        Self::no_named_files()
    }

    fn put_shortcut(&self, _id: &ObjectId) -> Result<()> {
        Self::no_named_files()
    }

    fn flush(&self) -> Result<()> {
        let directory = File::open(&self.directory).at(&self.directory)?;
        rustix::fs::syncfs(&directory).map_err(io::Error::from).at(&self.directory)
    }

    /// Removes all that were written since: their names are hashes of what they were before they were inflated.
    fn discard_damaged(&self, since: UnixSeconds, cancel: &Cancel) -> Result<u64> {
        let mut removed = 0;
        for first in 0..=u8::MAX {
            cancel.check()?;
            let directory = self.directory.join(format!("{first:02x}"));
            for entry in fs::read_dir(&directory).at(&directory)? {
                let path = entry.at(&directory)?.path();
                if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.mtime() >= since.0) {
                    fs::remove_file(&path).at(&path)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn remove_abandoned(&self, _before: UnixSeconds) -> Result<u64> {
        Ok(0)
    }
}

/// A large object on its way: its stored bytes.
#[derive(Debug)]
struct Staged {
    cache: CacheStore,
    file: File,
    _path: TempPath,
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl StagedObject for Staged {
    fn finish(mut self: Box<Self>, id: &ObjectId) -> Result<Put> {
        self.file.rewind().at(&self.cache.directory)?;
        self.cache.keep(id, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use cvmfs_core::hash::{Algorithm, ObjectKind};

    use super::*;

    #[test]
    fn what_a_crash_leaves_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = CacheStore::create(directory.path(), Compression::None).unwrap();
        let [old, young] = [b"old", b"new"].map(|content| {
            let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, content);
            cache.put(&id, content).unwrap();
            assert!(cache.has(&id).unwrap());
            id
        });
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        File::open(cache.path(&old)).unwrap().set_modified(time).unwrap();
        assert_eq!(cache.discard_damaged(UnixSeconds(1001), &Cancel::default()).unwrap(), 1);
        assert_eq!([old, young].map(|id| cache.has(&id).unwrap()), [true, false]);
        fs::write(cache.path(&old), "").unwrap();
        assert!(!cache.has(&old).unwrap());
    }
}
