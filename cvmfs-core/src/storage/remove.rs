//! Removing a storage as a whole.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{NamedFile, S3Config, S3Store, StoragePlace};
use crate::error::{Error, IoContext as _, Result, remove_if_there};
use crate::progress::{Cancel, Progress, Unit};

/// What the removal of a storage came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemovedStorage {
    /// Objects that went; of a bucket, documents as well.
    pub objects: u64,
    /// What was found beside them, is not of a repository, and stays.
    pub left: Vec<PathBuf>,
}

impl StoragePlace {
    /// Counts the objects of the storage, and their stored bytes; none if it does not exist.
    pub fn measure(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<(u64, u64)> {
        let store = match self.open() {
            Err(error) if error.is_not_found() && matches!(self, Self::Local(_)) => return Ok((0, 0)),
            store => store?,
        };
        progress.phase("counting", Unit::Objects, None);
        let (mut objects, mut bytes) = (0, 0);
        for first in 0..=u8::MAX {
            cancel.check()?;
            store.list(first, &mut |_| true, &mut |object| {
                (objects, bytes) = (objects + 1, bytes + object.stored_size);
                progress.advance(1);
                Ok(())
            })?;
        }
        Ok((objects, bytes))
    }

    /// Removes a repository's storage: first what makes it one, so that nobody reads half of it, then the objects.
    ///
    /// Fine if some or all of it has gone before: a removal that was interrupted is repeated. Of a directory only
    /// what a repository has goes; it stays itself if there is something else in it.
    pub fn remove(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<RemovedStorage> {
        match self {
            Self::Local(directory) => remove_directory(directory, progress, cancel),
            Self::S3 { config, alias, temporary } => {
                progress.phase("removing", Unit::Objects, None);
                let store = S3Store::open(S3Config::load(config, alias, temporary)?)?;
                Ok(RemovedStorage { objects: store.remove_all(progress, cancel)?, left: Vec::new() })
            }
        }
    }
}

/// Removes a storage directory, which may be a link to where it really is.
fn remove_directory(place: &Path, progress: &dyn Progress, cancel: &Cancel) -> Result<RemovedStorage> {
    let directory = match fs::canonicalize(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Nothing, or a link to nothing.
            remove_if_there(place)?;
            return Ok(RemovedStorage::default());
        }
        directory => directory.at(place)?,
    };
    remove_if_there(&directory.join(NamedFile::Manifest.name()))?;
    for path in entries(&directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".cvmfs") && !path.is_dir() {
            remove_if_there(&path)?;
        }
    }

    progress.phase("removing", Unit::Objects, None);
    let data = directory.join("data");
    let objects = if data.is_dir() {
        let prefixes: Vec<PathBuf> = entries(&data)?.into_iter().filter(|path| is_prefix(path)).collect();
        let removed = prefixes.par_iter().map(|prefix| {
            cancel.check()?;
            let count = if prefix.ends_with("txn") { 0 } else { entries(prefix)?.len() as u64 };
            fs::remove_dir_all(prefix).at(prefix)?;
            progress.advance(count);
            Ok(count)
        });
        removed.collect::<Result<Vec<u64>>>()?.iter().sum()
    } else {
        0
    };
    // Where the reference puts statistics for the web.
    let stats = directory.join("stats");
    if stats.is_dir() {
        fs::remove_dir_all(&stats).at(&stats)?;
    }
    let mut left = Vec::new();
    remove_empty(&data, &mut left)?;
    remove_empty(&directory, &mut left)?;
    if left.is_empty() && place.is_symlink() {
        remove_if_there(place)?;
    }
    Ok(RemovedStorage { objects, left })
}

/// Whether this is a directory of objects, or the one of those that are being written.
fn is_prefix(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_hex = name.len() == 2 && name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    (is_hex || name == "txn") && path.is_dir() && !path.is_symlink()
}

/// Removes a directory that should be empty; notes what is in it otherwise.
fn remove_empty(directory: &Path, left: &mut Vec<PathBuf>) -> Result<()> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DirectoryNotEmpty => {
                for path in entries(directory)? {
                    // What is in a directory says more than the directory.
                    if !left.iter().any(|left| left.starts_with(&path)) {
                        left.push(path);
                    }
                }
                Ok(())
            }
            // A file system of its own stays mounted where it is.
            ErrorKind::NotFound | ErrorKind::ResourceBusy => Ok(()),
            _ => Err(Error::io(directory, error)),
        },
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(directory).at(directory)?;
    read.map(|entry| entry.at(directory).map(|entry| entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Algorithm, ObjectId, ObjectKind};
    use crate::progress::Silent;
    use crate::storage::{LocalStore, Put, WriteStore as _};

    fn storage(directory: &Path) -> StoragePlace {
        let store = LocalStore::create(directory).unwrap();
        for number in 0..300_u32 {
            let content = number.to_le_bytes();
            let id = ObjectId::of(Algorithm::Sha1, ObjectKind::Catalog, &content);
            assert_eq!(store.put(&id, &content).unwrap(), Put::New);
            if number == 7 {
                store.put_shortcut(&id).unwrap();
            }
        }
        for file in NamedFile::ALL {
            store.write(file, b"x").unwrap();
        }
        fs::write(directory.join("data/txn/half"), "x").unwrap();
        fs::create_dir(directory.join("stats")).unwrap();
        fs::write(directory.join("stats/stats.db"), "x").unwrap();
        StoragePlace::Local(directory.to_owned())
    }

    fn remove(place: &StoragePlace) -> RemovedStorage {
        place.remove(&Silent, &Cancel::new()).unwrap()
    }

    #[test]
    fn everything_goes_and_once_more_is_fine() {
        let temp = tempfile::tempdir().unwrap();
        let place = storage(&temp.path().join("s"));
        assert_eq!(place.measure(&Silent, &Cancel::new()).unwrap(), (300, 1200));
        assert_eq!(remove(&place), RemovedStorage { objects: 300, left: vec![] });
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        assert_eq!(remove(&place), RemovedStorage::default());
        assert_eq!(place.measure(&Silent, &Cancel::new()).unwrap(), (0, 0));
    }

    #[test]
    fn what_is_not_of_a_repository_stays() {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().join("s");
        let place = storage(&directory);
        fs::write(directory.join("data/thesis.tex"), "x").unwrap();
        fs::create_dir(directory.join("photos")).unwrap();
        std::os::unix::fs::symlink(temp.path(), directory.join("data/ab.link")).unwrap();
        let mut left = remove(&place).left;
        left.sort();
        assert_eq!(left, ["data/ab.link", "data/thesis.tex", "photos"].map(|name| directory.join(name)));
        assert!(!directory.join("data/00").exists() && !directory.join(".cvmfspublished").exists());
    }

    #[test]
    fn a_link_goes_with_what_it_leads_to() {
        let temp = tempfile::tempdir().unwrap();
        let (real, link) = (temp.path().join("real"), temp.path().join("link"));
        storage(&real);
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(remove(&StoragePlace::Local(link)).objects, 300);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn asked_to_stop_it_can_be_repeated() {
        let temp = tempfile::tempdir().unwrap();
        let place = storage(&temp.path().join("s"));
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(matches!(place.remove(&Silent, &cancel), Err(Error::Cancelled)));
        assert!(!temp.path().join("s/.cvmfspublished").exists());
        assert_eq!(remove(&place).objects, 300);
    }
}
