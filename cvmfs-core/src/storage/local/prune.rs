//! Removing old objects from a directory while others may reuse them.
//!
//! Between a look at the age of an object and its removal somebody may be told that it is there. So an object is moved
//! aside, where nobody makes it young any more, looked at once more, and put back if it was made young after all.
//!
//! It stays in its directory, under another name: to move it elsewhere takes a lock of the whole file system, which
//! costs as much as all the rest. A file in `data/txn` says in which directory something may be aside, for those who
//! come after a process that was killed.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Directory, since_1970};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{ObjectId, ObjectKind};
use crate::storage::Key;
use crate::unique::unique_name;

/// What the names of objects begin with that are aside: `data/ff/removed-049c…`.
const ASIDE: &str = "removed-";
/// What the names of the files begin with that say where: `data/txn/removing-ff-<unique name>`.
const REMOVING: &str = "removing-";

/// Removes objects unless they are young; returns those that stay.
pub(super) fn prune(storage: &Directory, objects: &[ObjectId], older_than: Duration) -> Result<Vec<ObjectId>> {
    let mut kept = Vec::new();
    for objects in objects.chunk_by(|one, other| first_byte(one) == first_byte(other)) {
        let Some(directory) = ObjectDirectory::open(storage, first_byte(&objects[0]))? else { continue };
        let mark = format!("data/txn/{REMOVING}{:02x}-{}", directory.first, unique_name());
        storage.create(&mark)?;
        for id in objects {
            if !directory.prune(&id.to_string()[2..], older_than)? {
                kept.push(*id);
            } else if !matches!(id.kind, ObjectKind::File | ObjectKind::Chunk) {
                storage.unlink(&Key::Shortcut(*id).to_string())?;
            }
        }
        // After an error it stays.
        storage.unlink(&mark)?;
    }
    Ok(kept)
}

/// Puts back what is aside: a process that was killed there may have moved what somebody counts on.
pub(super) fn put_all_back(storage: &Directory) -> Result<()> {
    let marks = storage.path.join("data/txn");
    let entries = match fs::read_dir(&marks) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.at(&marks)?,
    };
    for entry in entries {
        let name = entry.at(&marks)?.file_name();
        let first = name.to_str().and_then(|name| name.strip_prefix(REMOVING)).and_then(|rest| rest.get(..2));
        let Some(Ok(first)) = first.map(|first| u8::from_str_radix(first, 16)) else { continue };
        if let Some(directory) = ObjectDirectory::open(storage, first)? {
            directory.put_all_back()?;
        }
    }
    Ok(())
}

fn first_byte(id: &ObjectId) -> u8 {
    id.hash.digest()[0]
}

/// One of the 256 directories of objects, kept open.
struct ObjectDirectory<'a> {
    storage: &'a Directory,
    first: u8,
    file: File,
}

impl<'a> ObjectDirectory<'a> {
    /// `None` if it does not exist.
    fn open(storage: &'a Directory, first: u8) -> Result<Option<Self>> {
        let name = format!("data/{first:02x}");
        match storage.open_file(&name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(file) => Ok(Some(Self { storage, first, file })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(storage.error(&name, error)),
        }
    }

    fn error(&self, name: &str, error: Errno) -> Error {
        self.storage.error(&format!("data/{:02x}/{name}", self.first), error)
    }

    /// When a file was written or made young for the last time; `None` if it does not exist.
    fn modified(&self, name: &str) -> Result<Option<Duration>> {
        match rustix::fs::statat(&self.file, name, AtFlags::empty()) {
            Ok(stat) => Ok(Some(since_1970(stat.st_mtime, stat.st_mtime_nsec))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error(name, error)),
        }
    }

    /// Removes an object unless it is young; returns whether it is gone.
    fn prune(&self, name: &str, older_than: Duration) -> Result<bool> {
        match self.modified(name)? {
            None => return Ok(true),
            Some(modified) if modified >= older_than => return Ok(false),
            Some(_) => {}
        }
        let aside = format!("{ASIDE}{name}");
        // Nobody takes the place of what another one moved there: that one may have seen already that it is old.
        let moved = match rustix::fs::renameat_with(&self.file, name, &self.file, &aside, RenameFlags::NOREPLACE) {
            // Not on every file system.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&self.file, name, &self.file, &aside),
            result => result,
        };
        match moved {
            Err(Errno::NOENT) => return Ok(true),
            Err(Errno::EXIST) => return Ok(false),
            result => result.map_err(|error| self.error(name, error))?,
        }
        match self.modified(&aside)? {
            // Somebody else put it back.
            None => Ok(false),
            Some(modified) if modified >= older_than => self.put_back(&aside, name).map(|()| false),
            Some(_) => self.unlink(&aside).map(|()| true),
        }
    }

    fn unlink(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.file, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error(name, error)),
        }
    }

    /// Gives an object that was moved aside its name again, unless there is one of that name by now.
    fn put_back(&self, aside: &str, name: &str) -> Result<()> {
        let moved = match rustix::fs::renameat_with(&self.file, aside, &self.file, name, RenameFlags::NOREPLACE) {
            // Not on every file system.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::linkat(&self.file, aside, &self.file, name, AtFlags::empty()) {
                    Ok(()) => return self.unlink(aside),
                    error => error,
                }
            }
            result => result,
        };
        match moved {
            Err(Errno::EXIST) => self.unlink(aside),
            // Somebody else did it.
            Err(Errno::NOENT) => Ok(()),
            result => result.map_err(|error| self.error(aside, error)),
        }
    }

    fn put_all_back(&self) -> Result<()> {
        let path = self.storage.path.join(format!("data/{:02x}", self.first));
        for entry in fs::read_dir(&path).at(&path)? {
            let file_name = entry.at(&path)?.file_name();
            if let Some((aside, name)) = file_name.to_str().and_then(|aside| Some((aside, aside.strip_prefix(ASIDE)?)))
            {
                self.put_back(aside, name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::LocalStore;
    use super::*;
    use crate::clock::UnixSeconds;
    use crate::hash::Algorithm;
    use crate::storage::{PruneStore as _, ReadStore as _, WriteStore as _};

    /// As a collector does that is killed right after it moved an object aside.
    fn move_aside(store: &LocalStore, id: &ObjectId) {
        let key = Key::Object(*id).to_string();
        let (directory, name) = key.rsplit_once('/').unwrap();
        store.0.create(&format!("data/txn/{REMOVING}{}-killed", &directory[5..])).unwrap();
        store.0.rename(&key, &format!("{directory}/{ASIDE}{name}")).unwrap();
    }

    #[test]
    fn what_was_moved_aside_is_there_after_a_flush() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        for (content, is_put_again) in [(b"one", false), (b"two", true)] {
            let id = ObjectId::of(Algorithm::Rmd160, ObjectKind::Chunk, content);
            store.put(&id, content).unwrap();
            move_aside(&store, &id);
            assert_eq!(store.size(&id.into()).unwrap(), None);
            if is_put_again {
                store.put(&id, content).unwrap();
            }
            store.flush().unwrap();
            assert_eq!(store.read(&id.into()).unwrap(), content);
            let objects = directory.path().join(Key::Object(id).to_string());
            assert_eq!(fs::read_dir(objects.parent().unwrap()).unwrap().count(), 1);
        }
    }

    /// The file that says where it is goes last, whatever its age.
    #[test]
    fn what_was_moved_aside_outlives_the_files_of_dead_processes() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, b"content");
        store.put(&id, b"content").unwrap();
        move_aside(&store, &id);
        assert_eq!(store.remove_abandoned(UnixSeconds(i64::MAX)).unwrap(), 1);
        assert_eq!(store.read(&id.into()).unwrap(), b"content");
    }

    #[test]
    fn nothing_is_left_of_what_goes() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        let ids = [b"one", b"two"].map(|content| {
            let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, content);
            store.put(&id, content).unwrap();
            id
        });
        assert_eq!(store.prune(&ids, Duration::MAX).unwrap(), []);
        let files = |name: &str| fs::read_dir(directory.path().join("data").join(name)).unwrap().count();
        assert!((0..=u8::MAX).all(|first| files(&format!("{first:02x}")) == 0) && files("txn") == 0);
    }
}
