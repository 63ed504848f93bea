//! A repository to be replicated, made by the library.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_publish::{mkfs, publish};

use crate::harness::{REPOSITORY, noise};

pub(crate) fn now() -> UnixSeconds {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    UnixSeconds(now.try_into().expect("a time"))
}

/// Makes an empty repository.
pub(crate) fn make(directory: &Path) -> (ServerRoot, RepositoryName) {
    let name: RepositoryName = REPOSITORY.parse().expect("a name");
    let root = ServerRoot::new(directory).expect("root");
    mkfs::mkfs(&root, &name, &mkfs::Options::new(now())).expect("mkfs");
    (root, name)
}

/// A directory in memory, if possible: every snapshot flushes its file system, which others may keep busy.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("temporary directory")
}

/// Publishes a revision with some files and two catalogs; `content` makes the difference.
pub(crate) fn publish_files(root: &ServerRoot, name: &RepositoryName, content: &str) {
    let tree = scratch();
    let nested = tree.path().join("nested");
    fs::create_dir(&nested).expect("directory");
    fs::write(nested.join(".cvmfscatalog"), "").expect("file");
    for number in 0..5 {
        fs::write(nested.join(format!("small{number}")), format!("{content} {number}\n").repeat(100)).expect("file");
    }
    fs::write(tree.path().join("large"), noise(300_000, content.len() as u64 + u64::from(content.as_bytes()[0])))
        .expect("file");
    fs::write(tree.path().join("same"), "in both revisions").expect("file");
    let publisher = Publisher::open(root, name).expect("publisher");
    let from = publish::From::directory(tree.path());
    let options = publish::Options::new(&publisher, from, RepoPath::root(), now());
    publish::publish(&publisher, &options, &Silent, &Cancel::new()).expect("publish");
}
