use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cvmfs_core::path::RepoPath;
use cvmfs_ingest::image::layout::Generated;

#[path = "../../../../tests/support/mounted.rs"]
pub(crate) mod mounted;

/// Does to a directory what the entries say.
pub(crate) fn put(root: &Path, entries: &[Generated]) {
    for entry in entries {
        let path = on_disk(root, entry.path());
        match entry {
            Generated::Directory { .. } => make_directory(&path),
            Generated::Catalog { .. } => {
                make_directory(&path);
                fs::write(path.join(".cvmfscatalog"), "").unwrap();
            }
            Generated::File { bytes, permissions, .. } => {
                remove(&path);
                fs::write(&path, bytes).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*permissions)).unwrap();
            }
            Generated::Symlink { target, .. } => {
                remove(&path);
                symlink(str::from_utf8(target).unwrap(), &path).unwrap();
            }
            Generated::Remove { .. } => remove(&path),
        }
    }
}

pub(crate) fn on_disk(root: &Path, path: &RepoPath) -> PathBuf {
    root.join(str::from_utf8(path.as_bytes()).unwrap())
}

/// Parents are not made: entries come with theirs.
fn make_directory(path: &Path) {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        done => done.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}
