//! A repository in a local directory, in the reference's layout.

mod prune;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::{Key, Listed, NamedFile, PruneStore, Put, ReadStore, StagedObject, WriteStore};
use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{Hasher, ObjectId};
use crate::progress::Cancel;
use crate::unique::unique_name;

/// Stored bytes up to which an object is small.
const SMALL_OBJECT: usize = 64 * 1024;

/// A repository below one directory: 256 object directories and `txn` in `data/`, named files beside it.
///
/// Objects are written to `data/txn`, without a name where that is possible, and get theirs when they are whole. There is
/// no flush per object; [`WriteStore::flush`] flushes the whole file system once.
///
/// Source: `cvmfs/upload_local.cc`.
#[derive(Debug)]
pub struct LocalStore(Arc<Directory>);

/// The repository's directory, kept open: names are looked up from there, not from the root of the system.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    file: File,
    /// Whether files can be made without a name, as far as is known.
    unnamed: AtomicBool,
}

impl Directory {
    fn open(path: PathBuf) -> Result<Arc<Self>> {
        let file = File::open(&path).at(&path)?;
        Ok(Arc::new(Self { path, file, unnamed: AtomicBool::new(true) }))
    }

    /// An error on something in the directory; `NotFound` if it is not there.
    fn error(&self, name: &str, error: Errno) -> Error {
        let path = self.path.join(name);
        if error == Errno::NOENT { Error::not_found(path.display().to_string()) } else { Error::io(path, error.into()) }
    }

    fn open_file(&self, name: &str, flags: OFlags) -> Result<File, Errno> {
        rustix::fs::openat(&self.file, name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o666)).map(File::from)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        file_size(&self.file, name).map_err(|error| self.error(name, error))
    }

    /// Whether a whole object is in place; if so, makes it young.
    fn reuse(&self, name: &str, size: u64) -> Result<bool> {
        match self.size(name)? {
            Some(found) if found == size => {
                let now = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
                let times = Timestamps { last_access: now(UTIME_OMIT), last_modification: now(UTIME_NOW) };
                match rustix::fs::utimensat(&self.file, name, &times, AtFlags::empty()) {
                    // Objects of another owner cannot be touched; a collector that spares young objects runs as that
                    // owner, and so does whoever else publishes.
                    Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(true),
                    // Collected between the two calls.
                    Err(Errno::NOENT) => Ok(false),
                    Err(error) => Err(self.error(name, error)),
                }
            }
            Some(found) => {
                tracing::warn!(path = %self.path.join(name).display(), found, expected = size, "replacing a damaged object");
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn unlink(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.file, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error(name, error)),
        }
    }

    /// Writes a file that has no name and gives it one, which changes one directory and not two.
    ///
    /// Returns `false` if it has to be done with a temporary name: on file systems that have no such files, on kernels
    /// that let only privileged processes name them, and if there is something of that name.
    fn put_unnamed(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        if !self.unnamed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let linked = match self.open_file("data/txn", OFlags::WRONLY | OFlags::TMPFILE) {
            Ok(mut file) => {
                file.write_all(bytes).at(self.path.join("data/txn"))?;
                rustix::fs::linkat(&file, "", &self.file, name, AtFlags::EMPTY_PATH)
            }
            Err(error) => Err(error),
        };
        if linked.is_err_and(|error| error != Errno::EXIST) {
            self.unnamed.store(false, Ordering::Relaxed);
        }
        Ok(linked.is_ok())
    }

    fn create(&self, name: &str) -> Result<File> {
        let create = || self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL);
        let file = match create() {
            // A storage that was copied without its empty directories.
            Err(Errno::NOENT) => {
                let path = self.path.join(name);
                let parent = path.parent().unwrap_or(&self.path);
                fs::create_dir_all(parent).at(parent)?;
                create()
            }
            result => result,
        };
        file.map_err(|error| self.error(name, error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        rustix::fs::renameat(&self.file, from, &self.file, to)
    }
}

/// The size of what has a name below a directory; `None` if there is no such thing.
fn file_size(directory: &File, name: &str) -> Result<Option<u64>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::empty()) {
        Ok(stat) => Ok(Some(stat.st_size.unsigned_abs())),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A time of a file; those before 1970 count as 1970.
fn since_1970(seconds: i64, nanoseconds: u64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)) + Duration::from_nanos(nanoseconds)
}

impl LocalStore {
    /// Uses the storage below `root`, which must exist.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if !root.join("data").is_dir() {
            return Err(Error::not_found(format!("repository storage {}", root.display())));
        }
        Directory::open(root).map(Self)
    }

    /// Creates the directories of an empty storage below `root`; fine if some exist.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let objects = (0..=u8::MAX).map(|first| format!("{first:02x}"));
        for name in objects.chain(["txn".into()]) {
            let directory = root.join("data").join(name);
            fs::create_dir_all(&directory).at(&directory)?;
        }
        Directory::open(root).map(Self)
    }

    /// The directory of the repository.
    pub fn root(&self) -> &Path {
        &self.0.path
    }

    /// Removes the objects that satisfy a condition, and returns their number.
    pub fn discard_if(&self, cancel: &Cancel, condition: &dyn Fn(&ObjectId, &Path) -> Result<bool>) -> Result<u64> {
        let mut removed = 0;
        for first in 0..=u8::MAX {
            let directory = self.0.path.join(format!("data/{first:02x}"));
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.at(&directory)?,
            };
            for entry in entries {
                cancel.check()?;
                let entry = entry.at(&directory)?;
                let name = format!("{first:02x}{}", entry.file_name().to_string_lossy());
                let Ok(id) = name.parse::<ObjectId>() else { continue };
                if condition(&id, &entry.path())? {
                    self.discard(&id)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Creates a file that no other process or thread uses, on the file system of the objects.
    fn temporary(&self) -> Result<Temporary> {
        let name = format!("data/txn/{}", unique_name());
        let file = self.0.create(&name)?;
        Ok(Temporary { file, name, size: 0, directory: Arc::clone(&self.0), renamed: false })
    }
}

impl ReadStore for LocalStore {
    fn describe(&self, key: &Key) -> String {
        self.0.path.join(key.to_string()).display().to_string()
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(key)?.read_to_end(&mut bytes).at(self.describe(key))?;
        Ok(bytes)
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        let name = key.to_string();
        let file = self.0.open_file(&name, OFlags::RDONLY).map_err(|error| self.0.error(&name, error))?;
        Ok(Box::new(file))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.0.size(&key.to_string())
    }

    /// Each name is looked up in the directory that it is in, which is looked up once.
    fn sizes(&self, objects: &[ObjectId]) -> Result<Vec<Option<u64>>> {
        let mut sizes = Vec::with_capacity(objects.len());
        for objects in objects.chunk_by(|one, other| one.hash.digest()[0] == other.hash.digest()[0]) {
            let directory = format!("data/{:02x}", objects[0].hash.digest()[0]);
            let opened = match self.0.open_file(&directory, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => None,
                opened => Some(opened.map_err(|error| self.0.error(&directory, error))?),
            };
            for id in objects {
                let name = id.to_string();
                sizes.push(match opened.as_ref().map(|opened| file_size(opened, &name[2..])) {
                    None => None,
                    Some(size) => size.map_err(|error| self.0.error(&Key::Object(*id).to_string(), error))?,
                });
            }
        }
        Ok(sizes)
    }
}

impl WriteStore for LocalStore {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        let name = Key::Object(*id).to_string();
        let is_there = || self.0.reuse(&name, stored.len() as u64);
        // A small object is written before it is known whether it is there: most are not, and to look takes long, too.
        let is_large = stored.len() > SMALL_OBJECT;
        if is_large && is_there()? {
            return Ok(Put::Present);
        }
        if self.0.put_unnamed(&name, stored)? {
            return Ok(Put::New);
        }
        if !is_large && is_there()? {
            return Ok(Put::Present);
        }
        let mut temporary = self.temporary()?;
        temporary.write_all(stored).at(temporary.path())?;
        temporary.rename(&name)?;
        Ok(Put::New)
    }

    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        self.0.reuse(&Key::Object(*id).to_string(), stored_size)
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        Ok(Box::new(self.temporary()?))
    }

    fn discard(&self, id: &ObjectId) -> Result<()> {
        self.0.unlink(&Key::Object(*id).to_string())
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        let mut temporary = self.temporary()?;
        temporary.write_all(bytes).and_then(|()| temporary.file.sync_all()).at(temporary.path())?;
        temporary.rename(file.name())?;
        self.0.file.sync_all().at(&self.0.path)
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        self.0.unlink(file.name())
    }

    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        let name = Key::Shortcut(*id).to_string();
        match rustix::fs::symlinkat(Key::Object(*id).to_string(), &self.0.file, &name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(self.0.error(&name, error)),
        }
    }

    fn flush(&self) -> Result<()> {
        prune::put_all_back(&self.0)?;
        rustix::fs::syncfs(&self.0.file).map_err(io::Error::from).at(&self.0.path)
    }

    /// Hashes all of them.
    fn discard_damaged(&self, since: UnixSeconds, cancel: &Cancel) -> Result<u64> {
        self.discard_if(cancel, &|id, path| {
            if fs::metadata(path).is_ok_and(|metadata| metadata.mtime() < since.0) {
                return Ok(false);
            }
            let mut hasher = Hasher::new(id.hash.algorithm());
            io::copy(&mut File::open(path).at(path)?, &mut hasher).at(path)?;
            Ok(hasher.finish() != id.hash)
        })
    }

    fn remove_abandoned(&self, before: UnixSeconds) -> Result<u64> {
        prune::put_all_back(&self.0)?;
        remove_old_files(&self.0.path.join("data/txn"), before)
    }
}

impl PruneStore for LocalStore {
    /// That of the file system.
    fn clock(&self) -> Result<Duration> {
        let temporary = self.temporary()?;
        let metadata = temporary.file.metadata().at(temporary.path())?;
        Ok(since_1970(metadata.mtime(), metadata.mtime_nsec().cast_unsigned()))
    }

    fn list(
        &self,
        first: u8,
        wanted: &mut dyn FnMut(&ObjectId) -> bool,
        visit: &mut dyn FnMut(Listed) -> Result<()>,
    ) -> Result<()> {
        let prefix = format!("{first:02x}");
        let directory = self.0.path.join("data").join(&prefix);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at(&directory)?,
        };
        let mut name = String::new();
        for entry in entries {
            let entry = entry.at(&directory)?;
            let file_name = entry.file_name();
            let Some(rest) = file_name.to_str() else { continue };
            name.clear();
            name.push_str(&prefix);
            name.push_str(rest);
            let Ok(id) = name.parse::<ObjectId>() else { continue };
            if !wanted(&id) {
                continue;
            }
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.at(entry.path())?,
            };
            if metadata.is_file() {
                let modified = since_1970(metadata.mtime(), metadata.mtime_nsec().cast_unsigned());
                visit(Listed { id, stored_size: metadata.len(), modified })?;
            }
        }
        Ok(())
    }

    fn prune(&self, objects: &[ObjectId], older_than: Duration) -> Result<Vec<ObjectId>> {
        prune::prune(&self.0, objects, older_than)
    }
}

/// Removes regular files that were last written before a time; fine if the directory does not exist.
pub(crate) fn remove_old_files(directory: &Path, before: UnixSeconds) -> Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result.at(directory)?,
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.at(directory)?.path();
        // A file that goes meanwhile is not ours to remove.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.mtime() >= before.0 {
            continue;
        }
        let gone = if metadata.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed += u64::from(gone.is_ok());
    }
    Ok(removed)
}

/// A file in `data/txn`, removed unless it is renamed.
#[derive(Debug)]
struct Temporary {
    file: File,
    name: String,
    size: u64,
    directory: Arc<Directory>,
    renamed: bool,
}

impl Temporary {
    fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    fn rename(mut self, to: &str) -> Result<()> {
        match self.directory.rename(&self.name, to) {
            // A storage that was copied without its empty directories.
            Err(Errno::NOENT) => {
                let destination = self.directory.path.join(to);
                let parent = destination.parent().unwrap_or(&self.directory.path);
                fs::create_dir_all(parent).at(parent)?;
                self.directory.rename(&self.name, to).map_err(|error| self.directory.error(to, error))?;
            }
            result => result.map_err(|error| self.directory.error(to, error))?,
        }
        self.renamed = true;
        Ok(())
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl StagedObject for Temporary {
    fn sync(&self) -> Result<()> {
        self.file.sync_data().at(self.path())
    }

    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put> {
        let name = Key::Object(*id).to_string();
        if self.directory.reuse(&name, self.size)? {
            return Ok(Put::Present);
        }
        self.rename(&name)?;
        Ok(Put::New)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = rustix::fs::unlinkat(&self.directory.file, &self.name, AtFlags::empty())
        {
            tracing::warn!(path = %self.path().display(), %error, "cannot remove a temporary file");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::hash::{Algorithm, ObjectKind};

    #[test]
    fn keeps_the_contract() {
        for unnamed in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let store = LocalStore::create(directory.path()).unwrap();
            store.0.unnamed.store(unnamed, Ordering::Relaxed);
            super::super::conformance::prune_store(&store);
        }
    }

    /// As in a storage that was copied without them.
    #[test]
    fn missing_directories_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        for content in [b"one", b"two"] {
            fs::remove_dir_all(directory.path().join("data")).unwrap();
            let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, content);
            assert_eq!(store.sizes(&[id]).unwrap(), [None]);
            assert_eq!(store.put(&id, content).unwrap(), Put::New);
            assert_eq!(store.read(&id.into()).unwrap(), content);
        }
    }

    #[test]
    fn a_short_object_in_place_is_repaired() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, b"content");
        let path = directory.path().join(Key::Object(id).to_string());
        for damaged in [&b""[..], b"cont"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(store.put(&id, b"content").unwrap(), Put::New);
            assert_eq!(fs::read(&path).unwrap(), b"content");
        }
    }

    #[test]
    fn an_object_that_is_reused_becomes_young() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, b"content");
        let path = directory.path().join(Key::Object(id).to_string());
        store.put(&id, b"content").unwrap();
        File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(store.put(&id, b"content").unwrap(), Put::Present);
        assert!(fs::metadata(&path).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn what_dead_processes_left_goes_when_it_is_old() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        for (name, seconds) in [("old", 1000), ("young", 2000)] {
            let file = File::create(directory.path().join("data/txn").join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        }
        assert_eq!(store.remove_abandoned(UnixSeconds(2000)).unwrap(), 1);
        assert!(directory.path().join("data/txn/young").exists());
        assert!(!directory.path().join("data/txn/old").exists());
    }

    #[test]
    fn nothing_temporary_stays_behind() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        store.stage().unwrap().write_all(b"forgotten").unwrap();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, b"content");
        store.put(&id, b"content").unwrap();
        let mut staged = store.stage().unwrap();
        staged.write_all(b"content").unwrap();
        assert_eq!(staged.finish(&id).unwrap(), Put::Present);
        assert_eq!(fs::read_dir(directory.path().join("data/txn")).unwrap().count(), 0);
    }
}
