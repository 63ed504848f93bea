//! A repository in a local directory, in the reference's layout.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Key, NamedFile, Put, ReadStore, StagedObject, WriteStore};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::ObjectId;

/// A repository below one directory: 256 object directories and `txn` in `data/`, named files beside it.
///
/// Objects are written to `data/txn` and renamed. There is no flush per object; [`WriteStore::flush`] flushes
/// the whole file system once.
///
/// Source: `cvmfs/upload_local.cc`.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// Uses the storage below `root`, which must exist.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if root.join("data").is_dir() {
            Ok(Self { root })
        } else {
            Err(Error::not_found(format!("repository storage {}", root.display())))
        }
    }

    /// Creates the directories of an empty storage below `root`; fine if some exist.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for first in 0..=u8::MAX {
            let directory = root.join(format!("data/{first:02x}"));
            fs::create_dir_all(&directory).at(&directory)?;
        }
        let temporary = root.join("data/txn");
        fs::create_dir_all(&temporary).at(&temporary)?;
        Ok(Self { root })
    }

    /// The directory of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.to_string())
    }

    /// Creates a file that no other process or thread uses, on the file system of the objects.
    ///
    /// The name is random: processes in different containers have the same process ids and may share the storage.
    fn temporary(&self) -> Result<Temporary> {
        let directory = self.root.join("data/txn");
        let file = tempfile::Builder::new()
            .prefix("object-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&directory)
            .at(&directory)?;
        let (file, path) = file.keep().map_err(|error| error.error).at(&directory)?;
        Ok(Temporary { file, path, size: 0, root: self.root.clone(), renamed: false })
    }
}

impl ReadStore for LocalStore {
    fn describe(&self, key: &Key) -> String {
        self.path(key).display().to_string()
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        let path = self.path(key);
        fs::read(&path).map_err(|error| not_found_or_io(&path, error))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        let path = self.path(key);
        let file = File::open(&path).map_err(|error| not_found_or_io(&path, error))?;
        Ok(Box::new(file))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        let path = self.path(key);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, error)),
        }
    }
}

impl WriteStore for LocalStore {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        if reuse(&self.path(&Key::Object(*id)), stored.len() as u64)? {
            return Ok(Put::Present);
        }
        let mut temporary = self.temporary()?;
        temporary.write_all(stored).at(&temporary.path)?;
        temporary.rename(&Key::Object(*id))?;
        Ok(Put::New)
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        Ok(Box::new(self.temporary()?))
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        let mut temporary = self.temporary()?;
        temporary.write_all(bytes).at(&temporary.path)?;
        temporary.file.sync_all().at(&temporary.path)?;
        temporary.rename(&Key::Named(file))?;
        sync_directory(&self.root)
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        let path = self.path(&Key::Named(file));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, error)),
            _ => Ok(()),
        }
    }

    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        let path = self.path(&Key::Shortcut(*id));
        match std::os::unix::fs::symlink(Key::Object(*id).to_string(), &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::io(path, error)),
            _ => Ok(()),
        }
    }

    fn flush(&self) -> Result<()> {
        let directory = File::open(&self.root).at(&self.root)?;
        rustix::fs::syncfs(&directory).map_err(io::Error::from).at(&self.root)
    }
}

/// A file in `data/txn`, removed unless it is renamed.
#[derive(Debug)]
struct Temporary {
    file: File,
    path: PathBuf,
    size: u64,
    root: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn rename(mut self, key: &Key) -> Result<()> {
        let destination = self.root.join(key.to_string());
        match fs::rename(&self.path, &destination) {
            // A storage that was copied without its empty directories.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let directory = destination.parent().unwrap_or(&self.root);
                fs::create_dir_all(directory).at(directory)?;
                fs::rename(&self.path, &destination).at(&destination)?;
            }
            result => result.at(&destination)?,
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
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put> {
        if reuse(&self.root.join(Key::Object(*id).to_string()), self.size)? {
            return Ok(Put::Present);
        }
        self.rename(&Key::Object(*id))?;
        Ok(Put::New)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary file");
        }
    }
}

/// Whether a whole object is in place; if so, makes it young.
fn reuse(path: &Path, size: u64) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == size => {
            // Objects of another owner cannot be touched; a collector that spares young objects must run as that owner.
            match File::open(path).and_then(|file| file.set_modified(SystemTime::now())) {
                Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(Error::io(path, error)),
                _ => Ok(true),
            }
        }
        Ok(metadata) => {
            tracing::warn!(path = %path.display(), found = metadata.len(), expected = size, "replacing a damaged object");
            Ok(false)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, error)),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).at(path)
}

fn not_found_or_io(path: &Path, error: io::Error) -> Error {
    if error.kind() == ErrorKind::NotFound {
        Error::not_found(path.display().to_string())
    } else {
        Error::io(path, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Algorithm, ObjectKind};

    #[test]
    fn keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        super::super::conformance::write_store(&LocalStore::create(directory.path()).unwrap());
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
