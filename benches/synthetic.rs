//! Fills a repository with entries whose objects cost next to nothing to make: for benchmarks of what looks at all of them.
//!
//! `cargo bench --bench synthetic -- SERVER_ROOT NAME ENTRIES [--linked]` commits files that all differ, 1000 a directory
//! and ten directories a nested catalog, to a repository that is empty. Their objects are some bytes each, not compressed.
//! With `--linked` they are hard links to a few files instead, for numbers of objects that no disk has room for: names as
//! in a real repository, but bytes that do not have their hash, and a few inodes.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, thread};

use cvmfs_core::change::{Change, Content, Metadata};
use cvmfs_core::changeset::ChangeSet;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{Options, Publisher};
use cvmfs_core::compression::Compression;
use cvmfs_core::entry::{FileContent, FileObjects, Mtime};
use cvmfs_core::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::Key;
use cvmfs_core::xattr::Xattrs;

type Failure = Box<dyn Error + Send + Sync>;

/// Bytes of an object, as `Objects::bytes` writes them.
const SIZE: u64 = 100;
const FILES_IN_DIRECTORY: u64 = 1000;
const FILES_IN_CATALOG: u64 = 10 * FILES_IN_DIRECTORY;
/// Names of one inode; ext4 has at most 65,000.
const NAMES_OF_FILE: u64 = 60_000;

fn main() -> Result<(), Failure> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (arguments, linked) = match &arguments[..] {
        [arguments @ .., last] if last == "--linked" => (arguments, true),
        arguments => (arguments, false),
    };
    let [root, name, entries] = arguments else {
        return Err("usage: synthetic SERVER_ROOT NAME ENTRIES [--linked]".into());
    };
    let (root, name) = (ServerRoot::new(Path::new(root))?, name.parse::<RepositoryName>()?);
    let entries = entries.parse()?;
    let publisher = Publisher::open(&root, &name)?;
    let objects = Objects { publisher: &publisher, directory: publisher.config.storage.directory()?, linked };
    let half = entries / 2;
    thread::scope(|threads| {
        let first = threads.spawn(|| objects.make(0..half));
        let second = objects.make(half..entries);
        first.join().expect("the thread does not panic").and(second)
    })?;

    let now = UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().try_into()?);
    let mut changes = publisher.begin(now)?;
    record(&mut changes, &objects, entries)?;
    publisher.commit(&mut changes, &Options::new(now), &Silent, &Cancel::new())?;
    Ok(())
}

struct Objects<'a> {
    publisher: &'a Publisher,
    /// That of the storage.
    directory: &'a Path,
    linked: bool,
}

impl Objects<'_> {
    fn bytes(number: u64) -> Vec<u8> {
        format!("{number:0100}").into_bytes()
    }

    fn hash(&self, number: u64) -> ContentHash {
        self.publisher.config.algorithm.hash(&Self::bytes(number))
    }

    fn make(&self, numbers: std::ops::Range<u64>) -> Result<(), Failure> {
        let mut names_left = 0;
        let mut file = PathBuf::new();
        for number in numbers {
            let id = ObjectId::new(self.hash(number), ObjectKind::File);
            if !self.linked || names_left == 0 {
                self.publisher.store.put(&id, &Self::bytes(number))?;
                file = self.directory.join(Key::Object(id).to_string());
                names_left = NAMES_OF_FILE;
            } else {
                fs::hard_link(&file, self.directory.join(Key::Object(id).to_string()))?;
            }
            names_left -= 1;
        }
        Ok(())
    }
}

fn record(changes: &mut ChangeSet, objects: &Objects<'_>, entries: u64) -> Result<(), Failure> {
    let metadata = |permissions| Metadata {
        permissions,
        uid: 0,
        gid: 0,
        mtime: Mtime::seconds(1_700_000_000),
        xattrs: Xattrs::new(),
    };
    let (mut catalog, mut directory) = (RepoPath::root(), RepoPath::root());
    for number in 0..entries {
        let put_directory = |changes: &mut ChangeSet, path: &RepoPath| {
            let (path, metadata) = (path.clone(), metadata(0o755));
            changes.record(Change::Put { path, metadata, content: Content::Directory })
        };
        if number % FILES_IN_CATALOG == 0 {
            catalog = format!("c{:05}", number / FILES_IN_CATALOG).parse()?;
            put_directory(changes, &catalog)?;
            changes.want_catalog(&catalog)?;
        }
        if number % FILES_IN_DIRECTORY == 0 {
            directory = catalog.child(format!("d{}", number % FILES_IN_CATALOG / FILES_IN_DIRECTORY).as_bytes())?;
            put_directory(changes, &directory)?;
        }
        let content = FileContent {
            size: SIZE,
            compression: Compression::None,
            objects: FileObjects::Whole(objects.hash(number)),
            external: false,
            direct_io: false,
        };
        let path = directory.child(format!("file{number:08}").as_bytes())?;
        changes.record(Change::Put { path, metadata: metadata(0o644), content: Content::Stored(content) })?;
    }
    Ok(())
}
