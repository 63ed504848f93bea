//! Listing one directory of the file system: names, metadata, extended attributes, targets of links.
//!
//! Everything is found from the source's top directory down, and no symbolic link is followed on the way, so that
//! nobody who can write there makes us read something else.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cvmfs_core::entry::{Mtime, Special};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::glob::Pattern;
use cvmfs_core::path::RepoPath;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// From this many entries on, a directory is looked at by several threads.
const LARGE: usize = 8192;
/// Bytes of names that are asked for at a time.
const NAMES_SIZE: usize = 64 * 1024;
/// Most bytes of one extended attribute that Linux has.
const XATTR_MAX: usize = 64 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    Special(Special),
}

/// What the system knows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) kind: Kind,
    pub(super) permissions: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Mtime,
    /// Time of the last change of anything, in seconds and nanoseconds.
    pub(super) changed: (i64, u64),
    pub(super) links: u64,
    /// File system and number there: what the names of one file have in common.
    pub(super) inode: (u64, u64),
}

/// An entry of a directory.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: Vec<u8>,
    pub(super) status: Status,
    /// Extended attributes as they are.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Target of a symbolic link.
    pub(super) target: Vec<u8>,
}

/// Which entries count.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    /// Paths, relative to the top directory, that are as if they were not there.
    pub(super) exclude: Vec<Exclude>,
    /// Whether extended attributes are read.
    pub(super) xattrs: bool,
    /// Whether directories of other file systems stay closed.
    pub(super) one_file_system: bool,
}

/// A pattern for paths to leave out.
///
/// Without a slash in it, it is for the last component at any depth; else for the whole path from the top directory.
/// Wildcards stay within one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclude {
    components: Vec<Pattern>,
    anchored: bool,
}

impl std::str::FromStr for Exclude {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::invalid(format!("pattern {text:?}"), reason);
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let pattern = Pattern::parse(trimmed.as_bytes())
            .ok_or_else(|| invalid("a backslash must be followed by *, ? or \\"))?
            .components();
        if pattern.is_empty() {
            return Err(invalid("it matches nothing"));
        }
        Ok(Self { components: pattern, anchored: trimmed.contains('/') })
    }
}

impl Exclude {
    /// Whether a path, relative to the top directory, is left out.
    pub(super) fn matches(&self, path: &RepoPath) -> bool {
        if !self.anchored {
            return self.components[0].matches(path.name());
        }
        self.components.len() == path.components().count()
            && self.components.iter().zip(path.components()).all(|(pattern, name)| pattern.matches(name))
    }
}

impl Selection {
    /// Whether a path, relative to the top directory, is left out.
    pub(super) fn excludes(&self, path: &RepoPath) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(path))
    }
}

/// How a thread names entries where the system takes no directory for names to start from: for extended attributes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lister {
    /// By their paths, which the system follows from the root directory for each of them.
    Paths,
    /// By their names alone: the thread has a working directory of its own, and goes where it lists.
    Names,
}

impl Lister {
    /// For a thread that does nothing else than listing: it gets a working directory of its own, if that is allowed.
    pub(super) fn of_own_thread() -> Self {
        #[expect(deprecated, reason = "unsafe for descriptors only: those of a thread would not be valid in others")]
        match rustix::thread::unshare(UnshareFlags::FS) {
            Ok(()) => Self::Names,
            // Containers may forbid it.
            Err(_) => Self::Paths,
        }
    }

    /// Goes to a directory, and returns what is to be put before the names of its entries.
    fn enter(self, directory: &OwnedFd, path: &Path) -> Vec<u8> {
        match self {
            Self::Names if rustix::process::fchdir(directory).is_ok() => Vec::new(),
            _ => [path.as_os_str().as_bytes(), b"/"].concat(),
        }
    }
}

/// The top directory of a source.
#[derive(Debug)]
pub(super) struct Top {
    directory: OwnedFd,
    path: PathBuf,
    pub(super) status: Status,
}

impl Top {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).at(path)?;
        let status = Status::new(&rustix::fs::fstat(&directory).map_err(io::Error::from).at(path)?);
        Ok(Self { directory, path: path.to_owned(), status })
    }

    /// The path of an entry for messages, and for what only works with paths.
    pub(super) fn path(&self, below: &RepoPath) -> PathBuf {
        if below.is_root() { self.path.clone() } else { self.path.join(OsStr::from_bytes(below.as_bytes())) }
    }

    /// Whether an entry is on the file system of the top directory.
    pub(super) fn is_same_file_system(&self, found: &Found) -> bool {
        found.status.inode.0 == self.status.inode.0
    }

    /// The top directory itself as an entry.
    pub(super) fn found(&self, selection: &Selection) -> Result<Found> {
        let xattrs = if selection.xattrs { read_xattrs(&self.path).at(&self.path)? } else { Vec::new() };
        Ok(Found { name: Vec::new(), status: self.status, xattrs, target: Vec::new() })
    }

    /// Opens an entry; following no link, waiting for nobody.
    fn open_below(&self, below: &RepoPath, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if below.is_root() { OsStr::new(".") } else { OsStr::from_bytes(below.as_bytes()) };
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            // Kernels before 5.6, and sandboxes that do not know it.
            Err(Errno::NOSYS | Errno::PERM) => Ok(rustix::fs::openat(&self.directory, path, flags, Mode::empty())?),
            result => Ok(result?),
        }
    }

    /// Opens a regular file, and says what it is now.
    ///
    /// # Errors
    /// `Conflict` if it is not a regular file any more.
    pub(super) fn open_file(&self, below: &RepoPath) -> Result<(File, Status)> {
        let path = self.path(below);
        let file = File::from(self.open_below(below, OFlags::empty()).at(&path)?);
        let status = file_status(&file, &path)?;
        if status.kind != Kind::File {
            return Err(changed(&path));
        }
        Ok((file, status))
    }

    /// Lists a directory, sorted by name. Entries that vanish meanwhile are not in it.
    pub(super) fn list(&self, below: &RepoPath, selection: &Selection, lister: Lister) -> Result<Vec<Found>> {
        let path = self.path(below);
        let directory = self.open_below(below, OFlags::DIRECTORY).at(&path)?;
        let mut names = read_names(&directory).at(&path)?;
        if !selection.exclude.is_empty() {
            let mut kept = Vec::with_capacity(names.len());
            for (inode, name) in names {
                if !selection.excludes(&below.child(&name)?) {
                    kept.push((inode, name));
                }
            }
            names = kept;
        }
        // On a disk that has to be read, in the order in which it is laid out.
        names.sort_unstable();
        let prefix = lister.enter(&directory, &path);
        let look = |names: &mut [(u64, Vec<u8>)]| -> Result<Vec<Found>> {
            let mut place = prefix.clone();
            // Nearly all of them are still there.
            let mut found = Vec::with_capacity(names.len());
            for (_, name) in names {
                place.extend_from_slice(name);
                let looked = look_at(&directory, name, &place, selection);
                place.truncate(prefix.len());
                found.extend(looked.map_err(|error| Error::io(path.join(OsStr::from_bytes(name)), error))?);
            }
            Ok(found)
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut found = if names.len() < LARGE || threads == 1 {
            look(&mut names)?
        } else {
            let length = names.len().div_ceil(threads);
            let pieces: Vec<Result<Vec<Found>>> = std::thread::scope(|scope| {
                let running: Vec<_> = names.chunks_mut(length).map(|piece| scope.spawn(|| look(piece))).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                    Ok(piece) => piece,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                running.into_iter().map(join).collect()
            });
            pieces.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()
        };
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

/// What an open file is now.
pub(super) fn file_status(file: &File, path: &Path) -> Result<Status> {
    Ok(Status::new(&rustix::fs::fstat(file).map_err(io::Error::from).at(path)?))
}

/// The error for what is not any more what it was.
pub(super) fn changed(path: &Path) -> Error {
    Error::conflict(path.display().to_string(), "it changed while it was read; run again when nobody writes to it")
}

impl Status {
    fn new(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Unknown => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Special(Special::Fifo),
            FileType::Socket => Kind::Special(Special::Socket),
            FileType::CharacterDevice => Kind::Special(Special::CharacterDevice(stat.st_rdev)),
            FileType::BlockDevice => Kind::Special(Special::BlockDevice(stat.st_rdev)),
        };
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).ok();
        Self {
            kind,
            permissions: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size.unsigned_abs(),
            mtime: Mtime { seconds: stat.st_mtime, nanoseconds },
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            links: stat.st_nlink,
            inode: (stat.st_dev, stat.st_ino),
        }
    }
}

/// Names with their inode numbers, without `.` and `..`.
fn read_names(directory: &OwnedFd) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut names = Vec::new();
    let mut buffer = vec![MaybeUninit::uninit(); NAMES_SIZE];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((entry.ino(), name.to_vec()));
        }
    }
    Ok(names)
}

/// Looks at an entry of an open directory, and takes its name; `None` if it vanished. `place` is where it is for calls
/// that take no directory.
fn look_at(directory: &OwnedFd, name: &mut Vec<u8>, place: &[u8], selection: &Selection) -> io::Result<Option<Found>> {
    let in_directory = OsStr::from_bytes(name);
    let stat = match rustix::fs::statat(directory, in_directory, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        result => result?,
    };
    let status = Status::new(&stat);
    let target = match status.kind {
        Kind::Symlink => match rustix::fs::readlinkat(directory, in_directory, Vec::new()) {
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            result => result?.into_bytes(),
        },
        _ => Vec::new(),
    };
    let xattrs = if selection.xattrs {
        match read_xattrs(Path::new(OsStr::from_bytes(place))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        }
    } else {
        Vec::new()
    };
    Ok(Some(Found { name: std::mem::take(name), status, xattrs, target }))
}

/// Reads the extended attributes of a path itself; none where the file system has none.
fn read_xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut small = [0_u8; 1024];
    let keys = match rustix::fs::llistxattr(path, &mut small[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => small[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_MAX];
            let length = rustix::fs::llistxattr(path, &mut large[..])?;
            large.truncate(length);
            large
        }
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    for key in keys.split(|&byte| byte == 0).filter(|key| !key.is_empty()) {
        let name = OsStr::from_bytes(key);
        let value = match rustix::fs::lgetxattr(path, name, &mut small[..]) {
            Ok(length) => small[..length].to_vec(),
            Err(Errno::RANGE) => {
                let mut large = vec![0; XATTR_MAX];
                let length = rustix::fs::lgetxattr(path, name, &mut large[..])?;
                large.truncate(length);
                large
            }
            // Removed meanwhile, or listed without being there.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(error) => return Err(error.into()),
        };
        xattrs.push((key.to_vec(), value));
    }
    Ok(xattrs)
}

/// Whether this process sees attributes `trusted.*`: without the privilege they are just not listed.
pub(super) fn sees_trusted_attributes(directory: &Path) -> bool {
    // Removing what does not exist changes nothing, and is refused to those who cannot see it.
    match rustix::fs::removexattr(directory, c"trusted.cvmfs.does-not-exist") {
        Err(Errno::PERM) => false,
        Err(Errno::ROFS) => rustix::process::geteuid().is_root(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn path(text: &str) -> RepoPath {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_are_for_names_or_for_paths() {
        for (pattern, matching, others) in [
            ("*.tmp", vec!["a.tmp", "d/e/.tmp"], vec!["a.tmp/b", "tmp"]),
            ("cache/", vec!["cache", "d/cache"], vec!["cached"]),
            ("/cache", vec!["cache"], vec!["d/cache"]),
            ("d/*/x", vec!["d/e/x"], vec!["d/x", "d/e/f/x", "a/d/e/x"]),
            ("\\*", vec!["*", "d/*"], vec!["a"]),
        ] {
            let exclude: Exclude = pattern.parse().unwrap();
            assert!(matching.iter().all(|text| exclude.matches(&path(text))), "{pattern}");
            assert!(!others.iter().any(|text| exclude.matches(&path(text))), "{pattern}");
        }
        for pattern in ["", "/", "a\\b"] {
            assert!(pattern.parse::<Exclude>().is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn no_link_is_followed_on_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        let top = Top::open(directory.path()).unwrap();
        assert!(top.list(&path("link"), &Selection::default(), Lister::Paths).is_err());
        assert!(top.open_file(&path("link/secret")).is_err());
    }

    #[test]
    fn what_vanished_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("gone")).unwrap();
        fs::write(directory.path().join("file"), "x").unwrap();
        let top = Top::open(directory.path()).unwrap();
        fs::remove_dir(directory.path().join("gone")).unwrap();
        fs::remove_file(directory.path().join("file")).unwrap();
        let error = top.list(&path("gone"), &Selection::default(), Lister::Paths).unwrap_err().to_string();
        assert!(error.contains("/gone"), "{error}");
        fs::create_dir(directory.path().join("file")).unwrap();
        assert!(matches!(top.open_file(&path("file")), Err(Error::Conflict { .. })));
    }

    #[test]
    fn large_directories_are_listed_whole_and_sorted() {
        let directory = tempfile::tempdir().unwrap();
        let count = LARGE + 1;
        for number in 0..count {
            fs::write(directory.path().join(number.to_string()), "").unwrap();
        }
        let first = directory.path().join("0");
        // Not every file system has attributes.
        let has_xattrs = rustix::fs::setxattr(&first, "user.a", b"1", rustix::fs::XattrFlags::empty()).is_ok();
        let top = Top::open(directory.path()).unwrap();
        let selection = Selection { xattrs: true, ..Selection::default() };
        let list = |lister| top.list(&RepoPath::root(), &selection, lister).unwrap();
        let found = list(Lister::Paths);
        let mut expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        expected.sort();
        assert!(found.iter().map(|found| &found.name[..]).eq(expected.iter().map(String::as_bytes)));
        assert_eq!(found[0].xattrs.iter().any(|(key, _)| key == b"user.a"), has_xattrs);

        // A thread that goes there finds the same, and nobody else goes with it.
        let here = std::env::current_dir().unwrap();
        let found_there = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let lister = Lister::of_own_thread();
                let found = list(lister);
                // No name is looked for where others are.
                assert!(matches!(lister, Lister::Paths) || fs::metadata("0").is_ok());
                found
            });
            there.join().unwrap()
        });
        assert_eq!(format!("{found_there:?}"), format!("{found:?}"));
        assert_eq!(std::env::current_dir().unwrap(), here);
    }
}
